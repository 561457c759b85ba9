"""A TLS server in a relay's place that answers upgrades, and then says only what the test has it say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from relay.addresses import Address
from relay.client.session import Session, open_session
from relay.demo.authority import Authority
from relay.tasks import Tasks
from relay.wire.upgrade import build_switching_protocols, build_websocket_response
from relay.wire.websocket import Message, MessageCutter, Opcode, build_close, build_frame

OPENED = {"type": "opened", "relayed": "192.0.2.1:50000", "upstream": "up", "token": "t" * 22, "resume_within_s": 10.0}


class Line:
    """One connection, after the 101."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._cutter = MessageCutter(from_client=True, max_binary_bytes=1 << 20)
        self._messages: list[Message] = []

    async def hear(self) -> dict[str, Any]:
        """The next control message of the client; pings are answered on the way."""
        while True:
            while not self._messages:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self._messages = self._cutter.feed(data)
            message = self._messages.pop(0)
            if message.opcode is Opcode.PING:
                self.frame(Opcode.PONG, message.payload)
            if message.opcode is Opcode.TEXT:
                heard: dict[str, Any] = json.loads(message.payload)
                return heard

    def say(self, **fields: Any) -> None:
        """Send a control message."""
        self.frame(Opcode.TEXT, json.dumps(fields).encode())

    def frame(self, opcode: Opcode, payload: bytes) -> None:
        """Send a frame."""
        self.writer.write(build_frame(opcode, payload))

    def say_close(self, code: int, reason: str) -> None:
        """Send a Close frame."""
        self.frame(Opcode.CLOSE, build_close(code, reason))


Script = Callable[[Line], Any]


class ScriptedRelay:
    """``address`` is where it listens; each connection that is upgraded runs the script."""

    def __init__(self, folder: Path, script: Script, *, upgrades: bool) -> None:
        self.address = Address("", 0)
        self.authority = Authority(folder)
        self._script = script
        self._upgrades = upgrades
        self.tasks = Tasks()

    @property
    def trust(self) -> ssl.SSLContext:
        """What its clients trust."""
        return self.authority.client_context()

    def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.start(self._serve(reader, writer), "scripted relay")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        finally:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, OSError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode() if self._upgrades else ""
            if "connect-udp" in head:
                writer.write(build_switching_protocols("connect-udp", [("Capsule-Protocol", "?1")]))
            elif self._upgrades:
                key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
                subprotocol = head.partition("Sec-WebSocket-Protocol: ")[2].partition("\r\n")[0]
                writer.write(build_websocket_response(key, subprotocol))
            await self._script(Line(reader, writer))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def open_session(self, **more: Any) -> Session:
        """A session there."""
        url = f"wss://{self.address}/media"
        return await open_session(url, ssl_context=self.trust, server_hostname="relay.test", **more)


@contextlib.asynccontextmanager
async def scripted_relay(folder: Path, script: Script, *, upgrades: bool = True) -> AsyncIterator[ScriptedRelay]:
    """Serves while the block runs; without ``upgrades`` the script has the bare stream."""
    relay = ScriptedRelay(folder, script, upgrades=upgrades)
    issued = relay.authority.issue("relay.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.private_key)
    server = await asyncio.start_server(relay.on_connection, "127.0.0.1", 0, ssl=context)
    relay.address = Address(*server.sockets[0].getsockname()[:2])
    try:
        yield relay
    finally:
        server.close()
        await relay.tasks.cancel()
        await server.wait_closed()
