"""What the transport of one client brings, one piece in each turn of the loop: other clients have their turn between.

uvloop reads 256 KB at once, and goes on while there is more. That is 100,000 of the smallest units.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Half of the longest TLS record. With the smallest units it takes some ten milliseconds to look at this much.
PIECE_BYTES = 8 * 1024


class Intake:
    """Passes on what comes, in order. While something waits here, the transport is not read."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, take: Callable[[bytes], None]
    ) -> None:
        """``take`` is called with each piece, never within itself."""
        self._loop = loop
        self._transport = transport
        self._take = take
        self._rest = b""
        self._paused = False
        self._closed = False
        self._turn: asyncio.Handle | None = None

    def receive(self, data: bytes) -> None:
        """Take bytes of the transport."""
        if self._rest or self._paused:
            self._rest += data
            self._settle()
        elif len(data) <= PIECE_BYTES:
            self._take(data)
        else:
            self._rest = data
            self._on_turn()

    def pause(self, paused: bool) -> None:
        """Pass on nothing more for now, or go on."""
        self._paused = paused
        self._settle()

    def close(self) -> None:
        """Forget what waits, and leave the transport alone."""
        self._rest, self._closed = b"", True
        if self._turn is not None:
            self._turn.cancel()

    def _on_turn(self) -> None:
        self._turn = None
        if not self._paused:
            piece, self._rest = self._rest[:PIECE_BYTES], self._rest[PIECE_BYTES:]
            self._take(piece)
        self._settle()

    def _settle(self) -> None:
        if self._closed:
            return
        if self._transport.is_reading() == (self._paused or bool(self._rest)):
            (self._transport.pause_reading if self._transport.is_reading() else self._transport.resume_reading)()
        if self._rest and not self._paused:
            self._turn = self._turn or self._loop.call_soon(self._on_turn)
