"""Control's part of a WebSocket handshake, for real clients: it reads the request and answers what was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from relay.plane.api import Carrier, HttpOpened
from relay.wire.upgrade import build_websocket_response
from tests.support.benches.plane import Bench

SUBPROTOCOLS = {"turn": Carrier.WEBSOCKET, "media.v1": Carrier.SESSION}
# What a session is told when it has been moved: media before that is forgotten.
READY = "ready"


@contextlib.asynccontextmanager
async def answered_upgrades(bench: Bench) -> AsyncIterator[None]:
    """Upgrade all who ask, by sub-protocol; sessions are moved to the bench's target, and told READY."""

    async def answer_all() -> None:
        while True:
            await answer(bench, await bench.event(HttpOpened))

    answering = asyncio.ensure_future(answer_all())
    try:
        yield
    finally:
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering


async def answer(bench: Bench, opened: HttpOpened) -> None:
    """Read one request, and upgrade its connection."""
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=opened.fd) as stream:
        stream.setblocking(False)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(stream, 4096)
        lines = [line.split(": ", 1) for line in head.decode().splitlines()[1:] if line]
        fields = {name.lower(): value for name, value in lines}
        key, subprotocol = fields["sec-websocket-key"], fields["sec-websocket-protocol"]
        carrier = SUBPROTOCOLS[subprotocol]
        response = build_websocket_response(key, subprotocol)
        bench.plane.upgrade(opened.connection, response, carrier, None if carrier is Carrier.SESSION else bench.target)
        if carrier is Carrier.SESSION:
            bench.plane.move(opened.connection, bench.target)
            bench.plane.tell(opened.connection, READY)
        # If control closes the stream before the plane has taken over, it ends the connection.
        assert await loop.sock_recv(stream, 1) == b""
