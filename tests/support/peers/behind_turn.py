"""Peers behind a TURN server: a UDP echo, a queue for what a client receives, and the two against each other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from relay.addresses import Address
from relay.client.turn import TurnConnection
from tests.support.network.bursts import give_room

# Every padding, the length of voice, and the longest payload that surely fits into an Ethernet frame.
SIZES = [0, 1, 2, 3, 4, 5, 172, 182, 183, 1199, 1200, 1400]

# Told of each datagram that an echo sends back.
OnDatagram = Callable[[bytes], None]


class Inbox:
    """What came, in order; its ``put`` is a client's ``on_data``."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Address, bytes]] = asyncio.Queue()

    def put(self, peer: Address, data: bytes) -> None:
        self._queue.put_nowait((peer, data))

    async def get(self) -> tuple[Address, bytes]:
        """The next datagram and its sender."""
        return await self._queue.get()

    @property
    def empty(self) -> bool:
        return self._queue.empty()


@contextlib.asynccontextmanager
async def open_echo(
    host: str = "127.0.0.1", port: int = 0, on_datagram: OnDatagram = lambda _: None
) -> AsyncIterator[Address]:
    """A UDP socket that sends everything back, empty datagrams too; gives its address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as peer:
        give_room(peer)
        peer.bind((host, port))

        def echo() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, sender = peer.recvfrom(65535)
                    on_datagram(data)
                    peer.sendto(data, sender)

        loop = asyncio.get_running_loop()
        loop.add_reader(peer.fileno(), echo)
        try:
            yield Address(*peer.getsockname()[:2])
        finally:
            loop.remove_reader(peer.fileno())


@contextlib.asynccontextmanager
async def open_echo_pair(host: str = "127.0.0.1", on_datagram: OnDatagram = lambda _: None) -> AsyncIterator[Address]:
    """Echoes on two ports in a row, as RTP and RTCP have them; gives the lower address, which is even."""
    while True:
        async with contextlib.AsyncExitStack() as pair:
            lower = await pair.enter_async_context(open_echo(host, 0, on_datagram))
            if lower.port % 2:
                continue
            try:
                await pair.enter_async_context(open_echo(host, lower.port + 1, on_datagram))
            except OSError:
                continue
            yield lower
            return


async def echo_all_sizes(turn: TurnConnection, inbox: Inbox, peer: Address) -> None:
    """Send datagrams of all SIZES to an echo; what comes back must be the same. ``inbox`` is the client's."""
    for size in SIZES:
        data = bytes(index & 0xFF for index in range(size))
        turn.send(peer, data)
        assert await inbox.get() == (peer, data)
    assert turn.dropped == 0
