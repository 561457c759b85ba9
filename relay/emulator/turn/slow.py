"""The plain host: all of UDP in Python, on the asyncio loop. The slow twin of ``native``."""

from __future__ import annotations

import asyncio
import socket

from relay.addresses import Address
from relay.emulator.turn import sockets
from relay.emulator.turn.counters import Counters
from relay.emulator.turn.host import Host
from relay.emulator.turn.relaying import Relaying
from relay.errors import OperatorError
from relay.sockaddr import from_sockaddr
from relay.turn.drops import Drop


class TurnHost(Host):
    """A host whose packets Python carries."""

    _socket: socket.socket
    _loop: asyncio.AbstractEventLoop
    _relaying: Relaying | None = None
    _before = Counters()

    async def _start_udp(self, address: Address) -> Address:
        try:
            self._socket = sockets.open_udp_socket(address, sockets.HOST_BUFFER_BYTES)
        except OSError as error:
            raise OperatorError(f"TURN host on {address}: {error.strerror}") from error
        self._loop = asyncio.get_running_loop()
        self._relaying = Relaying(self._settings, self._credentials, self._nonces, self._send)
        self._loop.add_reader(self._socket.fileno(), self._drain, self._relaying)
        return from_sockaddr(self._socket.getsockname())

    async def _stop_udp(self) -> None:
        if self._relaying is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._relaying.close()
        self._before += self._relaying.counters
        self._relaying = None

    def _drain(self, relaying: Relaying) -> None:
        for _ in range(sockets.MAX_DATAGRAMS_PER_WAKE_UP):
            try:
                data, sender = self._socket.recvfrom(sockets.MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # ICMP says that an earlier datagram did not arrive. UDP promises nothing, so this is ignored.
                continue
            relaying.receive(Address(sender[0], sender[1]), data)

    def _send(self, client: Address, data: bytes) -> Drop | None:
        try:
            self._socket.sendto(data, client)
        except OSError:
            # The socket is full, or there is no route to this address. A network would also drop it silently.
            return Drop.REFUSED
        return None

    def _udp_allocations(self) -> int:
        return 0 if self._relaying is None else self._relaying.allocations

    def _udp_relays(self, address: Address) -> bool:
        return self._relaying is not None and self._relaying.relays(address)

    def _udp_counters(self) -> Counters:
        return self._before if self._relaying is None else self._before + self._relaying.counters

    def _pause_udp(self, paused: bool) -> None:
        if self._relaying is not None:
            self._relaying.paused = paused
