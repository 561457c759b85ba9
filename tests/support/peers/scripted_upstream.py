"""An upstream that does what the test says: a UDP socket whose datagrams wait to be asked for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from relay.addresses import Address
from tests.support.network.bursts import give_room


class ScriptedUpstream:
    """Datagrams come out in the order they came in, with the flow's address."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        give_room(self._socket)
        self._socket.bind((host, 0))
        self.address = Address(*self._socket.getsockname()[:2])
        self.received: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data, sender = self._socket.recvfrom(65536)
        except OSError:
            return
        self.received.put_nowait((data, Address(sender[0], sender[1])))

    async def receive(self) -> tuple[bytes, Address]:
        """The next datagram and its sender."""
        return await self.received.get()

    async def expect(self, data: bytes) -> Address:
        """The next datagram must be this one; its sender."""
        got, sender = await self.receive()
        assert got == data, f"got {got[:40].hex()} of {len(got)} bytes, expected {data[:40].hex()} of {len(data)}"
        return sender

    def send(self, flow: Address, data: bytes) -> None:
        """Send a datagram to a flow."""
        self._socket.sendto(data, flow)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()


@contextlib.asynccontextmanager
async def scripted_upstream(host: str = "127.0.0.1") -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(host)
    try:
        yield upstream
    finally:
        upstream.close()
