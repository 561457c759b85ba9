"""One read may bring very much: it is handed on in pieces, in order, and others have their turns in between."""

from __future__ import annotations

import asyncio
from typing import cast

from relay.plane.reference.intake import PIECE_BYTES, Intake

DATA = bytes(range(256)) * (PIECE_BYTES // 100)


class Transport:
    """Knows whether it is read."""

    def __init__(self) -> None:
        self.reads = True

    def is_reading(self) -> bool:
        return self.reads

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True


class Bench:
    """An intake, and what it has handed on."""

    def __init__(self) -> None:
        self.transport, self.taken = Transport(), list[bytes]()
        self.pauses_at = self.closes_at = 0
        transport = cast("asyncio.Transport", self.transport)
        self.intake = Intake(asyncio.get_running_loop(), transport, self._take)

    def _take(self, data: bytes) -> None:
        self.taken.append(data)
        if len(self.taken) == self.pauses_at:
            self.intake.pause(True)
        if len(self.taken) == self.closes_at:
            self.intake.close()

    async def all(self) -> bytes:
        """Let the loop turn until the transport is read again; what was handed on."""
        while not self.transport.reads:
            await self.turn()
        return b"".join(self.taken)

    async def turn(self) -> int:
        """Let the loop turn once; how many pieces were handed on until then."""
        await asyncio.sleep(0)
        return len(self.taken)


async def test_little_is_taken_at_once() -> None:
    bench = Bench()
    for _ in range(3):
        bench.intake.receive(DATA[:PIECE_BYTES])
    assert bench.taken == [DATA[:PIECE_BYTES]] * 3
    assert bench.transport.reads


async def test_much_is_taken_a_piece_a_turn() -> None:
    bench = Bench()
    bench.intake.receive(DATA)
    counts = [len(bench.taken)]
    while not bench.transport.reads:
        counts.append(await bench.turn())
    assert counts == [1, 2, 3]
    assert b"".join(bench.taken) == DATA
    assert max(map(len, bench.taken)) == PIECE_BYTES
    bench.intake.receive(b"more")
    assert bench.taken[-1] == b"more"


async def test_a_pause_in_between() -> None:
    bench = Bench()
    bench.pauses_at = 2
    bench.intake.receive(DATA)
    assert [await bench.turn() for _ in range(4)] == [2, 2, 2, 2]
    assert not bench.transport.reads
    bench.intake.receive(b"more")  # the transport had it already
    bench.intake.pause(False)
    assert await bench.all() == DATA + b"more"


async def test_a_pause_without_a_rest() -> None:
    bench = Bench()
    for paused in (True, True, False, False):
        bench.intake.pause(paused)
        assert bench.transport.reads is not paused
    bench.pauses_at = 1
    bench.intake.receive(b"one")
    assert not bench.transport.reads


async def test_an_end_in_between() -> None:
    """What waits is forgotten, and the transport is its owner's."""
    bench = Bench()
    bench.closes_at = 2
    bench.intake.receive(DATA)
    assert [await bench.turn() for _ in range(4)] == [2, 2, 2, 2]
    bench.intake.pause(False)
    assert not bench.transport.reads
