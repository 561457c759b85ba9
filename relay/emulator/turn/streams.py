"""TURN over TCP and TLS (RFC 8656 section 3.1): a listener, its connections and their allocations, on the asyncio loop.

A connection holds one unit that is not complete yet, and what its client has not taken: beyond MAX_WAITING_BYTES data
is dropped, and beyond twice as much of answers the client is cut off. So is a client that sends too many requests, or
too much that nobody passes on. No client waits for another: ``rounds`` bounds what all of them take of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import cast

import structlog

from relay.addresses import Address
from relay.emulator.handshakes import HANDSHAKE_TIMEOUT_S, Handshakes
from relay.emulator.turn.counters import Counters
from relay.emulator.turn.relaying import Relaying
from relay.emulator.turn.rounds import OTHER_COST, Intake, Rounds
from relay.plane.listening import open_listeners
from relay.plane.reference.listener import Listener
from relay.plane.reference.reserve import Reserve
from relay.sockaddr import from_sockaddr
from relay.tasks import Tasks
from relay.turn.credentials import CredentialStore, NonceMint
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings
from relay.wire.channeldata import is_channel_data, pad
from relay.wire.stream import StreamCutter

# A client that has no allocation and says nothing for so long is cut off: an Allocate is sent again for 39.5 s.
IDLE_TIMEOUT_S = 60.0
# From the first byte of a unit to its last. TCP may have lost a segment several times.
UNIT_TIMEOUT_S = 20.0
# A second of 40 calls. More than that is late for voice.
MAX_WAITING_BYTES = 64 * 1024
# What the kernel holds as well. By itself it would hold megabytes.
KERNEL_WAITING_BYTES = 64 * 1024
# What the kernel holds of what a client sends: what has come is read even after the client has gone.
KERNEL_RECEIVED_BYTES = 64 * 1024
# The state of a socket that was reset, the first byte of Linux' TCP_INFO.
TCP_CLOSE = 7
# The emulator serves one machine. A descriptor and some kilobytes each.
MAX_CONNECTIONS = 10_000
# Python takes 20 µs for each request, and the loop is everybody's. A client sends some ten for a call, and one for each
# further peer. Data that is not passed on counts as well: it costs as much, and any stranger can send it.
REQUESTS_PER_SECOND = 100.0
# Those of a desk that sets up all its lines. They take a few milliseconds, about as long as a handshake of TLS.
REQUESTS_AT_ONCE = 200.0
# An aborted transport ends in the next turn of the loop.
CLOSE_TIMEOUT_S = 5.0
# The first two bytes of messages with data (RFC 8656 section 18).
SEND_INDICATION = b"\x00\x16"
DATA_INDICATION = b"\x00\x17"

log = structlog.get_logger()


class StreamListener:
    """Listens from the beginning until ``close``. Raises OperatorError if the address cannot be bound."""

    def __init__(
        self,
        address: Address,
        settings: ServerSettings,
        credentials: CredentialStore,
        nonces: NonceMint | None,
        tls: ssl.SSLContext | None,
        *,
        rounds: Rounds,
        handshakes: Handshakes,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self.rounds = rounds
        self._handshakes = handshakes
        self.relaying = Relaying(settings, credentials, nonces, self._send)
        self._connections: dict[Address, _Connection] = {}
        self._arriving = Tasks()
        # Those that have not shaken hands yet, the oldest first.
        self._newcomers: dict[socket.socket, None] = {}
        self._closed = False
        self._emptied = asyncio.Event()
        self._listener = Listener(self._loop, open_listeners(address, 1)[0], self._welcome)
        self.address = self._listener.address

    @property
    def connections(self) -> int:
        """How many clients are connected, and through with TLS."""
        return len(self._connections)

    @property
    def allocations(self) -> int:
        """How many allocations they have."""
        return self.relaying.allocations

    @property
    def counters(self) -> Counters:
        """A copy of what was counted."""
        return self.relaying.counters

    @property
    def paused(self) -> bool:
        """True while it drops all units and data."""
        return self.relaying.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self.relaying.paused = paused

    async def close(self) -> None:
        """Cut off everybody."""
        self._closed = True
        self._listener.close()
        await self._arriving.cancel()
        # Those whose task had not begun.
        while self._newcomers:
            self._newcomers.popitem()[0].close()
        for connection in list(self._connections.values()):
            connection.abort()
        if self._connections:
            # It may have been empty before.
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), CLOSE_TIMEOUT_S)
            except TimeoutError:
                log.warning("TURN connections are left", address=str(self.address), connections=self.connections)
                self._connections.clear()
        self.relaying.close()

    # Arrival

    def _welcome(self, accepted: socket.socket, _: Address, reserve: Reserve) -> None:
        reserve.give_up()
        if self.connections + len(self._newcomers) >= MAX_CONNECTIONS and not self._make_room():
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_WAITING_BYTES)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_RECEIVED_BYTES)
        self._newcomers[accepted] = None
        self._arriving.start(self._arrive(accepted), "TURN client arrives")

    def _make_room(self) -> bool:
        """Close the oldest client that has no allocation. Returns False if all have one."""
        # A flood of handshakes is at its own expense, and a few newcomers are not at each other's.
        if 2 * len(self._newcomers) > MAX_CONNECTIONS:
            return self._close_newcomer()
        return self._close_connection() or self._close_newcomer()

    def _close_newcomer(self) -> bool:
        newcomer = next(iter(self._newcomers), None)
        if newcomer is None:
            return False
        del self._newcomers[newcomer]
        # Its handshake fails, and ``_arrive`` closes it. It may have gone by itself.
        with contextlib.suppress(OSError):
            newcomer.shutdown(socket.SHUT_RDWR)
        return True

    def _close_connection(self) -> bool:
        now = self._loop.time()
        for connection in list(self._connections.values()):
            if not self.relaying.server.serves(now, connection.client):
                self.remove(connection)
                connection.abort()
                return True
            # It is looked at last the next time.
            self._connections[connection.client] = self._connections.pop(connection.client)
        return False

    async def _arrive(self, accepted: socket.socket) -> None:
        timeout = None if self._tls is None else HANDSHAKE_TIMEOUT_S
        try:
            if self._tls is not None:
                await self._handshakes.turn(accepted)
            await self._loop.connect_accepted_socket(
                lambda: _Connection(self, accepted), accepted, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except OSError:
            # The client has gone, does not speak TLS, or takes too long: nothing that anybody could do about.
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            self._newcomers.pop(accepted, None)

    def add(self, connection: _Connection) -> bool:
        """A connection is ready. Returns False if it came too late."""
        if self._closed:
            return False
        self._newcomers.pop(connection.accepted, None)
        self._connections[connection.client] = connection
        return True

    def remove(self, connection: _Connection) -> None:
        """A connection has ended, and with it its allocation."""
        if self._connections.get(connection.client) is connection:
            del self._connections[connection.client]
            self.relaying.on_client_closed(connection.client)
            if not self._connections:
                self._emptied.set()

    def _send(self, client: Address, data: bytes) -> Drop | None:
        connection = self._connections.get(client)
        return None if connection is None else connection.send(data)


class _Connection(asyncio.Protocol):
    def __init__(self, listener: StreamListener, accepted: socket.socket) -> None:
        self._listener = listener
        self.accepted = accepted
        self._cutter = StreamCutter()
        self._heard = False
        self._ended = False
        self._requests, self._since = REQUESTS_AT_ONCE, 0.0
        # Since when a unit has not been complete, and when somebody looks at that again.
        self._half_since: float | None = None
        self._half: asyncio.TimerHandle | None = None
        self.client = Address("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # isinstance would not do: uvloop's transports of TLS do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(self._listener.rounds, self._transport, self._take)
        self.client = from_sockaddr(transport.get_extra_info("peername") or ("", 0))
        self._idle = self._loop.call_later(IDLE_TIMEOUT_S, self._on_idle)
        if not self._listener.add(self):
            self.abort()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._intake.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._listener.remove(self)

    def abort(self) -> None:
        """Cut the client off. Nothing more of it is looked at."""
        self._end()
        self._transport.abort()

    def _end(self) -> None:
        self._ended = True
        self._intake.close()
        self._idle.cancel()
        if self._half is not None:
            self._half.cancel()

    def _take(self, data: bytes) -> int:
        """Take a piece of the stream. Returns what it cost, in units that are passed on."""
        if self._is_gone():
            self.abort()
            return 0
        cost = 0
        units = self._cutter.feed(data)
        for unit in units:
            passed = self._listener.relaying.receive(self.client, unit) if self._is_welcome(unit) else False
            cost += 1 if passed else OTHER_COST
            if not passed and not self._ended and _is_data(unit):
                self._allows()
            if self._ended:
                return cost
        if self._cutter.fault is not None:
            self.abort()
        else:
            self._watch_half(begins=bool(units))
        return cost

    def _is_gone(self) -> bool:
        if self._transport.is_closing():
            return True
        # While much waits, the transport is not read, and does not see that the client has reset the connection.
        return self._intake.holds and self.accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE

    def _is_welcome(self, unit: bytes) -> bool:
        """Data costs the client nothing if it is passed on, which is known afterwards."""
        return _is_data(unit) or self._allows()

    def _allows(self) -> bool:
        """Take one request off what the client may send. Cuts it off, and returns False, if it has sent too many."""
        now = self._loop.time()
        self._requests = min(REQUESTS_AT_ONCE, self._requests + (now - self._since) * REQUESTS_PER_SECOND) - 1
        self._since = now
        if self._requests >= 0:
            return True
        self._listener.relaying.count(Drop.REQUEST_FLOOD)
        self.abort()
        return False

    def _watch_half(self, *, begins: bool) -> None:
        """Some bytes may wait for the rest of their unit; it ``begins`` if others were complete before it."""
        if not self._cutter.pending:
            self._half_since = None
            return
        if begins or self._half_since is None:
            self._half_since = self._loop.time()
        # A timer for each unit would cost more than the unit.
        self._half = self._half or self._loop.call_later(UNIT_TIMEOUT_S, self._on_half)

    def _on_half(self) -> None:
        self._half = None
        if self._half_since is None:
            return
        if self._intake.holds:
            # It has come, and waits for us.
            self._half_since = self._loop.time()
        left = self._half_since + UNIT_TIMEOUT_S - self._loop.time()
        if left > 0:
            self._half = self._loop.call_later(left, self._on_half)
        else:
            self.abort()

    def _on_idle(self) -> None:
        if not self._heard and not self._listener.relaying.server.serves(self._loop.time(), self.client):
            self.abort()
            return
        self._heard = False
        self._idle = self._loop.call_later(IDLE_TIMEOUT_S, self._on_idle)

    def send(self, data: bytes) -> Drop | None:
        """Send a unit, unless too much waits already."""
        waiting = self._transport.get_write_buffer_size()
        is_data = is_channel_data(data) or data[:2] == DATA_INDICATION
        if self._transport.is_closing() or (is_data and waiting > MAX_WAITING_BYTES):
            return Drop.SLOW_CLIENT
        if waiting > 2 * MAX_WAITING_BYTES:
            self.abort()
            return Drop.SLOW_CLIENT
        self._transport.write(pad(data) if is_data else data)
        return None


def _is_data(unit: bytes) -> bool:
    """True for ChannelData, and for the Send indications that carry data before there is a channel."""
    return is_channel_data(unit) or unit[:2] == SEND_INDICATION
