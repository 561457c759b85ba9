"""The pacer calls everyone, goes on when one fails, and ends with its last speaker."""

from __future__ import annotations

import asyncio

import pytest

from relay.emulator.softphone import pacer as pacing
from relay.emulator.softphone.pacer import Pacer
from tests.support.waiting import eventually


class Counter:
    def __init__(self) -> None:
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1


async def test_all_are_called_until_they_leave() -> None:
    pacer, one, other = Pacer(), Counter(), Counter()
    pacer.add(one.tick)
    pacer.add(other.tick)
    await eventually(lambda: one.ticks >= 3 and other.ticks >= 3)
    pacer.discard(one.tick)
    left, seen = one.ticks, other.ticks
    await eventually(lambda: other.ticks >= seen + 3)
    assert one.ticks == left
    await pacer.close()
    assert len(pacer) == 0


async def test_it_begins_again_after_the_last_has_left() -> None:
    pacer, one = Pacer(), Counter()
    for _ in range(3):
        before = one.ticks
        pacer.add(one.tick)
        await eventually(lambda before=before: one.ticks > before)  # type: ignore[misc]
        pacer.discard(one.tick)
        await eventually(lambda: pacer._running is not None and pacer._running.done())
        # At once, before the loop has noticed the end of the task.
    await pacer.close()
    await pacer.close()


async def test_one_that_fails_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    pacer, one = Pacer(), Counter()

    def fail() -> None:
        raise ValueError("a mistake of the application")

    pacer.add(fail)
    pacer.add(one.tick)
    await eventually(lambda: one.ticks >= 3)
    await pacer.close()


async def test_ticks_of_a_long_pause_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "MAX_BEHIND_S", 0.0)
    pacer, one = Pacer(), Counter()
    loop = asyncio.get_running_loop()

    def slow() -> None:
        one.tick()
        end = loop.time() + 0.05
        while loop.time() < end:
            pass

    pacer.add(slow)
    await eventually(lambda: one.ticks >= 4)
    await pacer.close()
    assert pacer.skipped >= 3
