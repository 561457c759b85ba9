"""HTTP as bytes: an upstream that records what reaches it, and what a server says to bytes on the TLS port."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

from relay.addresses import Address
from tests.support.benches.gateway import Relay
from tests.support.peers.tls_client import TlsClient

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

# Given all bytes of a connection so far, what to answer now; nothing for "wait".
Answer = Callable[[bytes], bytes]


def ok_for_each_head(received: bytes) -> bytes:
    return OK if received.endswith(b"\r\n\r\n") or b"\r\n\r\n" in received else b""


class RecordingUpstream:
    """A TCP server that keeps what comes, connection by connection, and answers each first head."""

    def __init__(self, answer: Answer) -> None:
        self.connections: list[bytearray] = []
        self.ended = 0
        self.port = 0
        self._answer = answer
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def received(self) -> bytes:
        """All of it."""
        return b"".join(self.connections)

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self.connections.append(kept)
        self._writers.add(writer)
        try:
            pending = b""
            while data := await reader.read(65536):
                kept += data
                pending += data
                if answer := self._answer(pending):
                    pending = b""
                    writer.write(answer)
                    await writer.drain()
        except OSError:
            pass
        finally:
            self.ended += 1
            self._writers.discard(writer)
            writer.close()

    def send(self, data: bytes) -> None:
        """Say something on all connections."""
        for writer in self._writers:
            writer.write(data)

    def close_connections(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def recording_upstream(answer: Answer = ok_for_each_head, port: int = 0) -> AsyncIterator[RecordingUpstream]:
    upstream = RecordingUpstream(answer)
    server = await asyncio.start_server(upstream.on_connection, "127.0.0.1", port)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        upstream.close_connections()
        await server.wait_closed()
        while upstream.ended < len(upstream.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def receive_head(client: TlsClient) -> bytes:
    """Up to the end of a response's head, and what has come with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = await client.receive()
        assert chunk, received
        received += chunk
    return received


async def ask(relay: Relay, *parts: bytes, server: Address | None = None) -> bytes:
    """Send bytes to the TLS port, and give back all that comes until the relay closes."""
    client = await TlsClient.open(server or relay.tls, relay.trust)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            await client.send(part)
    return await receive_all(client)


async def receive_all(client: TlsClient) -> bytes:
    """All that comes until the relay closes; then the client is closed."""
    received = b""
    try:
        while chunk := await client.receive():
            received += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        client.abort()
    return received
