"""A TURN server and its relayed sockets on the asyncio loop: the packet path of the slow host, and of TCP and TLS.

Life of a packet, uplink: ``receive`` → the server decides → ``sendto`` on the socket of the relayed address. Downlink:
a relayed socket wakes up → a bounded number of datagrams is taken → the server decides → ``send_to_client``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from relay.addresses import Address
from relay.emulator.turn import sockets
from relay.emulator.turn.counters import Counters
from relay.timer import DeadlineTimer
from relay.turn.commands import CloseRelayed, Command, OpenRelayed, SendToClient, SendToPeer
from relay.turn.credentials import CredentialStore, NonceMint
from relay.turn.drops import Drop
from relay.turn.server import ServerSettings, TurnServer
from relay.wire.stun import HEADER_BYTES, is_stun

# A client keeps its requests below the path's MTU. The native path has the same bound.
MAX_REQUEST_BYTES = 2048


def is_long_request(data: bytes) -> bool:
    """True for a whole STUN request that is longer than any client's."""
    return (
        len(data) > MAX_REQUEST_BYTES
        and is_stun(data)
        and data[0] & 1 == 0
        and data[1] & 0x10 == 0
        and int.from_bytes(data[2:4]) + HEADER_BYTES == len(data)
    )


class Relaying:
    """Carries out what the server decides. ``send_to_client`` says why it did not send, or None."""

    def __init__(
        self,
        settings: ServerSettings,
        credentials: CredentialStore,
        nonces: NonceMint | None,
        send_to_client: Callable[[Address, bytes], Drop | None],
    ) -> None:
        self.server = TurnServer(settings, credentials, nonces=nonces)
        self.paused = False
        self._send_to_client = send_to_client
        self._counters = Counters()
        self._relayed: dict[Address, socket.socket] = {}
        self._loop = asyncio.get_running_loop()
        self._timer = DeadlineTimer(self._on_deadline)

    @property
    def allocations(self) -> int:
        """How many relayed addresses there are."""
        return self.server.relayed

    @property
    def counters(self) -> Counters:
        """A copy of what was counted."""
        return self._counters + Counters(drops=self.server.drops)

    def relays(self, address: Address) -> bool:
        """True for a relayed address that there is now."""
        return self.server.relays(address)

    def receive(self, client: Address, data: bytes) -> bool:
        """Take a datagram, or a unit of a stream, from a client. Returns True if it was data that went on to a peer.

        While the host is paused: if the client has an allocation.
        """
        now = self._loop.time()
        if self.paused:
            self._counters.drops[Drop.PAUSED] += 1
            return self.server.serves(now, client)
        if is_long_request(data):
            self._counters.drops[Drop.OVERSIZE] += 1
            return False
        commands = self.server.receive(now, client, data)
        self._perform(now, commands)
        self._timer.set(self.server.next_deadline())
        return len(commands) == 1 and isinstance(commands[0], SendToPeer)

    def on_client_closed(self, client: Address) -> None:
        """The client's connection has ended."""
        self._perform(self._loop.time(), self.server.on_client_closed(client))
        self._timer.set(self.server.next_deadline())

    def close(self) -> None:
        """Close all relayed sockets. May be repeated."""
        self._timer.cancel()
        while self._relayed:
            self._close(self._relayed.popitem()[1])

    # The way of a packet

    def _perform(self, now: float, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, SendToClient):
                self.count(self._send_to_client(command.client, command.data))
            elif isinstance(command, SendToPeer):
                self._send_to_peer(command)
            elif isinstance(command, OpenRelayed):
                self._open_relayed(now, command.relayed_address)
            elif isinstance(command, CloseRelayed):
                self._close(self._relayed.pop(command.relayed_address))

    def count(self, drop: Drop | None) -> bool:
        """Count what was dropped and why. Returns True if nothing was."""
        if drop is not None:
            self._counters.drops[drop] += 1
        return drop is None

    def _send_to_peer(self, command: SendToPeer) -> None:
        try:
            self._relayed[command.relayed_address].sendto(command.data, command.peer)
        except OSError:
            # The socket is full, or there is no route to this address. A network would also drop it silently.
            self._counters.drops[Drop.REFUSED] += 1
        else:
            self._counters.uplink_packets += 1
            self._counters.uplink_bytes += len(command.data)

    def _drain(self, relayed_address: Address, relayed: socket.socket) -> None:
        now = self._loop.time()
        for _ in range(sockets.MAX_DATAGRAMS_PER_WAKE_UP):
            try:
                data, sender = relayed.recvfrom(sockets.MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # ICMP says that an earlier datagram did not arrive. UDP promises nothing, so this is ignored.
                continue
            if self.paused:
                self._counters.drops[Drop.PAUSED] += 1
                continue
            peer = Address(sender[0], sender[1])
            for command in self.server.receive_from_peer(now, relayed_address, peer, data):
                assert isinstance(command, SendToClient)
                if self.count(self._send_to_client(command.client, command.data)):
                    self._counters.downlink_packets += 1
                    self._counters.downlink_bytes += len(data)

    # Relayed sockets and time

    def _open_relayed(self, now: float, relayed_address: Address) -> None:
        try:
            opened = sockets.open_udp_socket(relayed_address)
        except OSError as error:
            self._perform(now, self.server.on_relayed_failed(now, relayed_address, sockets.lacking(error)))
            return
        self._relayed[relayed_address] = opened
        self._loop.add_reader(opened.fileno(), self._drain, relayed_address, opened)
        self._perform(now, self.server.on_relayed_opened(now, relayed_address))

    def _close(self, closing: socket.socket) -> None:
        self._loop.remove_reader(closing.fileno())
        closing.close()

    def _on_deadline(self, now: float) -> None:
        self._perform(now, self.server.on_deadline(now))
        self._timer.set(self.server.next_deadline())
