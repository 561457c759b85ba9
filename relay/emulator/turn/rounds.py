"""Whose bytes are next: all connections of TCP and TLS have one bound in each turn of the loop, and share it.

uvloop reads 256 KB of a connection at once. That is 60,000 of the smallest units, and there may be thousands of
connections. Whoever is served here waits for one piece of each of the others, and everybody else for one bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

# What one connection may bring before the next one has its turn: some packets of voice.
PIECE_BYTES = 1024
# A unit that is passed on costs one, any other one OTHER_COST, and each piece one. A turn ends with the piece that
# uses this up: some two milliseconds.
COST_A_TURN = 256
# The server parses and checks a request, and may answer.
OTHER_COST = 4


class Rounds:
    """The turns of the loop, and the intakes that wait for theirs."""

    def __init__(self) -> None:
        self._waiting: deque[Intake] = deque()
        self._left = COST_A_TURN
        self._next: asyncio.Handle | None = None

    def run(self, intake: Intake) -> None:
        """Serve an intake that has bytes, at once if there is nothing before it."""
        while intake.holds and not self._waiting and self._left > 0:
            self._left -= intake.serve()
        if intake.holds:
            self._waiting.append(intake)
        self._plan()

    def _on_turn(self) -> None:
        self._next = None
        self._left = COST_A_TURN
        try:
            while self._waiting and self._left > 0:
                intake = self._waiting.popleft()
                if intake.holds:
                    self._left -= intake.serve()
                if intake.holds:
                    self._waiting.append(intake)
        finally:
            self._plan()

    def _plan(self) -> None:
        if self._next is None and (self._waiting or self._left < COST_A_TURN):
            self._next = asyncio.get_running_loop().call_soon(self._on_turn)


class Intake:
    """What a connection has brought and nobody has looked at. Meanwhile its transport is not read."""

    def __init__(self, rounds: Rounds, transport: asyncio.Transport, take: Callable[[bytes], int]) -> None:
        """``take`` is called with each piece, and returns what it cost."""
        self._rounds = rounds
        self._transport = transport
        self._take = take
        self._rest = b""
        self._at = 0
        self._queued = False
        self._closed = False

    @property
    def holds(self) -> bool:
        """True while there is something to serve."""
        return self._at < len(self._rest)

    def receive(self, data: bytes) -> None:
        """Take bytes of the transport."""
        if self._closed:
            return
        self._rest, self._at = self._rest[self._at :] + data, 0
        if not self._queued:
            self._rounds.run(self)
            self._settle()

    def serve(self) -> int:
        """Pass on one piece. Returns what it cost. An exception ends the connection."""
        piece = self._rest[self._at : self._at + PIECE_BYTES]
        self._at += len(piece)
        try:
            cost = 1 + self._take(piece)
        except Exception:
            self.close()
            self._transport.abort()
            raise
        if self._queued:
            self._settle()
        return cost

    def close(self) -> None:
        """Forget what waits, take nothing more, and leave the transport alone."""
        self._rest, self._at, self._closed = b"", 0, True

    def _settle(self) -> None:
        self._queued = self.holds
        if not self._closed and self._transport.is_reading() == self._queued:
            (self._transport.pause_reading if self._queued else self._transport.resume_reading)()
