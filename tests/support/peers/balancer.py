"""A balancer in front of several relays: each connection goes to the first of them that takes it, as bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from relay.addresses import Address
from relay.tasks import Tasks


class Balancer:
    """``behind`` are the relays, the preferred one first. The test may change them."""

    def __init__(self, behind: Sequence[Address]) -> None:
        self.address = Address("", 0)
        self.behind = list(behind)
        self.tasks = Tasks()

    def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.start(self._serve(reader, writer), "balancer")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for relay in self.behind:
                with contextlib.suppress(ConnectionRefusedError):
                    beyond, back = await asyncio.open_connection(*relay)
                    await asyncio.gather(_pump(reader, back), _pump(beyond, writer))
                    return
        finally:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until either side has ended. Then the other side ends, too."""
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def open_balancer(*behind: Address) -> AsyncIterator[Balancer]:
    """A balancer that serves while the block runs."""
    balancer = Balancer(behind)
    server = await asyncio.start_server(balancer.on_connection, "127.0.0.1", 0)
    balancer.address = Address(*server.sockets[0].getsockname()[:2])
    try:
        yield balancer
    finally:
        server.close()
        await balancer.tasks.cancel()
        await server.wait_closed()
