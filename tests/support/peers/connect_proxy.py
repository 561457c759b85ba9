"""A web proxy that opens tunnels (HTTP CONNECT) if asked with the right name and password; the test can cut them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

from relay.addresses import Address
from relay.tasks import Tasks

USERNAME, PASSWORD = "desk", "hunter2:p@ss"
_EXPECTED = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()


class ConnectProxy:
    """``asked`` are the targets of tunnels; ``refuses`` is a whole response to give instead of tunnels."""

    def __init__(self) -> None:
        self.address = Address("", 0)
        self.asked: list[str] = []
        self.refuses: bytes | None = None
        self.tasks = Tasks()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """As a client gives it."""
        return f"http://{USERNAME}:hunter2%3Ap%40ss@{self.address}"

    def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.start(self._serve(reader, writer), "proxy")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = head.split(" ")[1]
            if self.refuses is not None:
                writer.write(self.refuses)
            elif f"Proxy-Authorization: Basic {_EXPECTED}\r\n" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            else:
                self.asked.append(target)
                host, _, port = target.rpartition(":")
                beyond, back = await asyncio.open_connection(host, int(port))
                self._writers.add(back)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_pump(reader, back), _pump(beyond, writer))
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        """End all connections, and say nothing."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def connect_proxy() -> AsyncIterator[ConnectProxy]:
    """A proxy that serves while the block runs."""
    proxy = ConnectProxy()
    server = await asyncio.start_server(proxy.on_connection, "127.0.0.1", 0)
    proxy.address = Address(*server.sockets[0].getsockname()[:2])
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await proxy.tasks.cancel()
        await server.wait_closed()
