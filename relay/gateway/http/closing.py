"""The one response of a connection that aiohttp does not serve, and the end after it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from relay import deadlines
from relay.gateway.http.site import SERVER
from relay.gateway.signaling.http_rules import RELAY_ID

READ_BYTES = 4096
# A client reads a page within a round trip. What it sends meanwhile is read and thrown away: closing a socket with
# unread bytes is a reset, and the page would be lost.
LINGER_S = 2.0
LINGER_BYTES = 256 * 1024


def build_response(
    status: int, body: bytes, content_type: str, fields: Mapping[str, str] | None = None, *, connection: str
) -> bytes:
    """A whole response, the last of its connection, with the id by which the log knows the connection."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Server: {SERVER}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        f"{RELAY_ID}: {connection}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in (fields or {}).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def send_last(connected: socket.socket, response: bytes) -> None:
    """Send the last bytes of a connection, and let the client read them before it is closed. Raises OSError."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with deadlines.timeout(LINGER_S):
            await loop.sock_sendall(connected, response)
            connected.shutdown(socket.SHUT_WR)
            left = LINGER_BYTES
            while left > 0 and (thrown_away := await loop.sock_recv(connected, READ_BYTES)):
                left -= len(thrown_away)
