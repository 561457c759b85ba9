"""A client of ``/media`` that says what the test says, message by message, and reads what comes."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from relay.wire.upgrade import build_websocket_request, check_websocket, parse_response
from relay.wire.websocket import Message, MessageCutter, Opcode, build_close, build_frame, parse_close
from tests.support.benches.gateway import Relay
from tests.support.peers.tls_client import TlsClient

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
OPEN = {"type": "open", "username": "trader", "password": "secret"}

Json = dict[str, Any]


class RawSession:
    """One WebSocket; ``open`` it, and ``abort`` it in the end."""

    def __init__(self, client: TlsClient) -> None:
        self.client = client
        self._cutter = MessageCutter(from_client=False)
        self._messages: list[Message] = []

    @classmethod
    async def open(cls, relay: Relay, server_name: str = "relay.test", source: str | None = None) -> RawSession:
        """Upgrade, from this address of ours; nothing is said yet."""
        client = await TlsClient.open(relay.tls, relay.trust, server_name, source=source)
        await client.send(build_websocket_request("/media", server_name, KEY, "media.v1"))
        head = b""
        while (response := parse_response(head)) is None:
            received = await client.receive()
            assert received, head
            head += received
        check_websocket(response, KEY, "media.v1")
        session = cls(client)
        session._messages = session._cutter.feed(head[response.size :])
        return session

    async def say(self, text: str | None = None, **fields: Any) -> None:
        """Send a control message."""
        await self._send(Opcode.TEXT, (json.dumps(fields) if text is None else text).encode())

    async def send(self, channel: int, data: bytes) -> None:
        """Send media."""
        await self._send(Opcode.BINARY, channel.to_bytes(2) + data)

    async def say_goodbye(self, code: int | None = 1000) -> None:
        """Close the WebSocket in order."""
        await self._send(Opcode.CLOSE, build_close(code))

    async def _send(self, opcode: Opcode, payload: bytes) -> None:
        await self.client.send(build_frame(opcode, payload, mask=secrets.token_bytes(4)))

    async def _receive(self) -> Message:
        while not self._messages:
            data = await self.client.receive()
            if not data:
                raise EOFError
            self._messages = self._cutter.feed(data)
            assert self._cutter.fault is None
        return self._messages.pop(0)

    async def hear(self) -> Json:
        """The next control message; media before it is dropped. Raises EOFError at the end."""
        while True:
            message = await self._receive()
            assert message.opcode is not Opcode.CLOSE, parse_close(message.payload)
            if message.opcode is Opcode.TEXT:
                heard: Json = json.loads(message.payload)
                return heard

    async def hear_media(self) -> bytes:
        """The next media message, channel number and all; no control message may come before it."""
        while True:
            message = await self._receive()
            if message.opcode is not Opcode.PING:
                assert message.opcode is Opcode.BINARY, message
                return message.payload

    async def hear_close(self) -> tuple[int | None, str]:
        """Code and reason of the Close frame; only media may come before it."""
        while True:
            message = await self._receive()
            if message.opcode is Opcode.CLOSE:
                return parse_close(message.payload)
            assert message.opcode is not Opcode.TEXT, message

    async def ask(self, **fields: Any) -> Json:
        """Say something and hear the answer."""
        await self.say(**fields)
        return await self.hear()

    def cut(self) -> None:
        """End the TCP connection, and say nothing."""
        self.client.reset()

    def abort(self) -> None:
        """Close the socket; may be repeated."""
        self.client.abort()


@contextlib.asynccontextmanager
async def raw_session(relay: Relay, server_name: str = "relay.test") -> AsyncIterator[RawSession]:
    """A session that has said nothing yet, closed with the block."""
    session = await RawSession.open(relay, server_name)
    try:
        yield session
    finally:
        session.abort()


async def echoes(session: RawSession, channel: int, data: bytes = b"voice") -> None:
    """Send media to a peer that echoes, and hear it."""
    await session.send(channel, data)
    assert await session.hear_media() == channel.to_bytes(2) + data
