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
        self._keeps_relays = False
        self._clients: set[asyncio.StreamWriter] = set()
        # Ways to relays that no longer have a client.
        self._left: set[asyncio.StreamWriter] = set()

    def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.start(self._serve(reader, writer), "balancer")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            for relay in self.behind:
                with contextlib.suppress(ConnectionRefusedError):
                    beyond, back = await asyncio.open_connection(*relay)
                    await asyncio.gather(self._pump(reader, back), self._pump(beyond, writer))
                    return
        finally:
            self._clients.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, until either side has ended. Then the other side ends, too."""
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            if not self._keeps_relays or writer in self._clients:
                writer.transport.abort()
            else:
                self._left.add(writer)

    def cut(self, *, also_behind: bool) -> None:
        """End the connections of all clients, and those to relays only if told so: as a network that has died."""
        self._keeps_relays = not also_behind
        for writer in self._clients:
            writer.transport.abort()

    def stop(self) -> None:
        """End what is left."""
        for writer in self._left:
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
        balancer.stop()
        await balancer.tasks.cancel()
        await server.wait_closed()
