"""TLS that the web proxy ends, with a certificate of its own for each name, and the HTTP that it changes on the way."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from relay.ca.certificates import Issuer, certificate_pem, key_pem, new_authority, new_key, sign_server
from relay.emulator.faults import passing, pumps
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import Hop, Kind

LIFETIME = datetime.timedelta(days=7)
# Names that clients ask for. They choose them, so the least recent goes first.
MAX_CONTEXTS = 256
_STRIPPED = (b"upgrade:", b"connection:")


class NotHttp(Exception):
    """What came is not HTTP. An inspecting proxy ends such connections."""


@dataclass
class Asked:
    """What one client has asked for, and the context to answer with: its own, because it notes the name."""

    name: str
    context: ssl.SSLContext


class Certificates:
    """TLS contexts of a proxy, by the name that a client asks for. Files live only while they are loaded."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._key = new_key()
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()

    def answer(self, host: str) -> Asked:
        """For a client that has asked for a tunnel to ``host``. In its ClientHello it may name another."""
        asked = Asked(host, self._make(host))

        def on_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if name and name != host:
                asked.name = name
                connection.context = self._known(name)

        asked.context.sni_callback = on_name
        return asked

    def _known(self, name: str) -> ssl.SSLContext:
        context = self._contexts.pop(name, None) or self._make(name)
        self._contexts[name] = context
        if len(self._contexts) > MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def _make(self, name: str) -> ssl.SSLContext:
        now = datetime.datetime.now(datetime.UTC)
        signed = sign_server(self._issuer, self._key.public_key(), [name], LIFETIME, now)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory(prefix="web-proxy-") as folder:
            file = Path(folder) / "tls.pem"
            file.touch(mode=0o600)
            file.write_bytes(key_pem(self._key) + certificate_pem(signed) + certificate_pem(self._issuer.certificate))
            context.load_cert_chain(file)
        return context


def foreign_issuer() -> Issuer:
    """An authority that nobody knows."""
    return new_authority("Another Firm's Inspection CA", LIFETIME, datetime.datetime.now(datetime.UTC))


async def pass_http(client: pumps.Ends, server: pumps.Ends, board: FaultBoard) -> bool:
    """Pass requests and answers, one after the other, until one side ends; after a 101, bytes.

    Returns True if the connection was cut for idleness. Raises NotHttp, EOFError, OSError or LimitOverrunError.
    """
    while True:
        head = await _request_head(client[0])
        method = head.split(b" ")[0]
        await _pass(_rewritten(head, board), passing.body_of(head), client[0], server[1], board)
        answer = await server[0].readuntil(b"\r\n\r\n")
        body = passing.body_of(answer, method)
        if answer.split(b" ")[1][:3] == b"101":
            client[1].write(answer)
            return await pumps.carry(client, server, board)
        await _pass(answer, body, server[0], client[1], board)
        if body == "to the end":
            return False


async def _request_head(reader: asyncio.StreamReader) -> bytes:
    first = await reader.readexactly(1)
    if not first.isalpha():
        raise NotHttp
    try:
        head = first + await reader.readuntil(b"\r\n\r\n")
        passing.body_of(head)
    except ValueError:
        raise NotHttp from None
    return head


def _rewritten(head: bytes, board: FaultBoard) -> bytes:
    if board.find(Hop.WEB_PROXY, Kind.UPGRADE_STRIPPED) is None:
        return head
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(_STRIPPED))


async def _pass(
    head: bytes, body: passing.Body, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, board: FaultBoard
) -> None:
    delay = board.find(Hop.WEB_PROXY, Kind.DELAY)
    if delay is not None:
        await asyncio.sleep((delay.setting.delay_ms or 0) / 1000)
    await board.until_off(Hop.WEB_PROXY, Kind.STALL)
    writer.write(head)
    async for piece in passing.pieces(body, reader):
        await board.until_off(Hop.WEB_PROXY, Kind.STALL)
        writer.write(piece)
        await writer.drain()
    await writer.drain()
