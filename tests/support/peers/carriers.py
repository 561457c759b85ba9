"""Clients of the carriers that begin with HTTP, byte by byte: WebSocket and capsules over ``TlsClient``."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

from relay.addresses import Address
from relay.plane.api import Carrier, ConnectionId, HttpOpened, Upstream
from relay.wire.capsule import CapsuleCutter
from relay.wire.websocket import Message, MessageCutter, Opcode, build_close, build_frame
from tests.support.benches.plane import Bench
from tests.support.messages import HELLO
from tests.support.peers.scripted_upstream import ScriptedUpstream
from tests.support.peers.tls_client import TlsClient

RESPONSE = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
MASK = b"\x37\xfa\x21\x3d"


def masked(opcode: Opcode, payload: bytes = b"", *, final: bool = True, mask: bytes = MASK) -> bytes:
    """A frame of a client."""
    return build_frame(opcode, payload, mask=mask, final=final)


def binary(payload: bytes) -> bytes:
    """A binary message of a client."""
    return masked(Opcode.BINARY, payload)


def text(content: str) -> bytes:
    """A text message of a client."""
    return masked(Opcode.TEXT, content.encode())


class Carried:
    """A client that has been upgraded, and what it has received."""

    def __init__(self, tls: TlsClient, connection: ConnectionId) -> None:
        self.tls = tls
        self.connection = connection
        self._cutter = MessageCutter(from_client=False, max_binary_bytes=1 << 17)
        self._capsules = CapsuleCutter(max_payload_bytes=1 << 17)
        self._messages: list[Message] = []
        self._payloads: list[bytes] = []

    async def send(self, *frames: bytes) -> None:
        """Each in a TLS record of its own."""
        await self.tls.send(*frames)

    async def message(self) -> Message:
        """The next message of the server, pings among them."""
        while not self._messages:
            data = await self.tls.receive()
            if not data:
                raise EOFError
            self._messages = self._cutter.feed(data)
            assert self._cutter.fault is None
        return self._messages.pop(0)

    async def binary(self) -> bytes:
        """The next message, which must be binary."""
        message = await self.message()
        assert message.opcode is Opcode.BINARY, message
        return message.payload

    async def expect(self, opcode: Opcode, payload: bytes) -> None:
        """The next message must be this one."""
        assert await self.message() == Message(opcode, payload)

    async def expect_close(self, code: int | None, reason: str = "") -> None:
        """The next message must be this Close frame, and then TLS must end in order."""
        await self.expect(Opcode.CLOSE, build_close(code, reason))
        assert await self.tls.receive() == b""

    async def payload(self) -> bytes:
        """The next UDP payload of the server."""
        while not self._payloads:
            data = await self.tls.receive()
            if not data:
                raise EOFError
            self._payloads = self._capsules.feed(data)
            assert self._capsules.fault is None
        return self._payloads.pop(0)


@contextlib.asynccontextmanager
async def carried(bench: Bench, carrier: Carrier, **options: object) -> AsyncIterator[Carried]:
    """A client that has been upgraded towards the bench's target; a session is not moved anywhere yet."""
    async with bench.client(**options) as tls:
        upstream = None if carrier is Carrier.SESSION else bench.target
        yield await upgrade(bench, tls, carrier, upstream)


async def upgrade(bench: Bench, tls: TlsClient, carrier: Carrier, upstream: Upstream | None) -> Carried:
    """Upgrade a client that has not said anything yet."""
    client = Address(*tls.socket.getsockname()[:2])
    await tls.send(b"GET /media HTTP/1.1\r\n\r\n")
    opened = await bench.event(HttpOpened, lambda opened: opened.client == client)
    with socket.socket(fileno=opened.fd):
        bench.plane.upgrade(opened.connection, RESPONSE, carrier, upstream)
        assert await tls.receive_exactly(len(RESPONSE)) == RESPONSE
    return Carried(tls, opened.connection)


@contextlib.asynccontextmanager
async def moved_session(bench: Bench, **options: object) -> AsyncIterator[tuple[Carried, Address]]:
    """A session that has been moved to the bench's target, and its address there."""
    async with carried(bench, Carrier.SESSION, **options) as client:
        yield client, await move(bench, client, bench.target, bench.upstream)


async def move(bench: Bench, client: Carried, target: Upstream, upstream: ScriptedUpstream, fd: int = -1) -> Address:
    """Move a session; its address at the upstream, which gets ``HELLO``."""
    bench.plane.move(client.connection, target, fd)
    bench.plane.request(client.connection, HELLO)
    return await upstream.expect(HELLO)
