"""When a handshake of TLS begins: one in each turn of the loop, for all TLS ports of the emulator together.

The server's part of a handshake takes some milliseconds of the loop at once. If 60 clients come back in one moment,
nobody else would have a turn for 60 times as long. So a client first has to say its first record, which costs nobody
anything, and then waits for its turn. A client that cuts its first message into several records can begin earlier than
its turn; no client does that unless it means to.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque

from relay import deadlines

# A whole handshake, and the wait for it.
HANDSHAKE_TIMEOUT_S = 10.0
# Of a record of TLS (RFC 8446 section 5.1): its type, version and length. The longest has 2^14 bytes and some more.
RECORD_HEADER_BYTES = 5
MAX_RECORD_BYTES = (1 << 14) + 256


class Handshakes:
    """Those who wait for their turn, in the order in which they spoke."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next: asyncio.Handle | None = None

    async def turn(self, accepted: socket.socket) -> None:
        """Wait until a client has said its first record, and then for its turn. Raises OSError if it does not."""
        async with deadlines.timeout(HANDSHAKE_TIMEOUT_S):
            await _first_record(accepted)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._plan()
            await turn

    def _plan(self) -> None:
        if self._next is None and self._waiting:
            self._next = asyncio.get_running_loop().call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._next = None
        while self._waiting:
            turn = self._waiting.popleft()
            # It may have been cancelled, or have waited for too long.
            if not turn.done():
                turn.set_result(None)
                break
        self._plan()


async def _first_record(accepted: socket.socket) -> None:
    """Wait for the first record, and leave it in the socket."""
    wanted = RECORD_HEADER_BYTES
    try:
        while True:
            # The kernel wakes nobody before this many bytes are there, or the client is gone.
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            await _readable(accepted)
            head = accepted.recv(RECORD_HEADER_BYTES, socket.MSG_PEEK)
            if len(head) < RECORD_HEADER_BYTES:
                raise ConnectionResetError("gone before its first record")
            length = int.from_bytes(head[3:])
            # What is no record is refused at once by the handshake.
            if wanted > RECORD_HEADER_BYTES or head[0] != 22 or length > MAX_RECORD_BYTES:
                return
            wanted += length
    finally:
        # A socket that was closed meanwhile has no options.
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(accepted, wake)
    try:
        await ready
    finally:
        loop.remove_reader(accepted)
