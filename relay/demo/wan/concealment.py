"""Packet loss concealment for G.711, in the manner of ITU-T G.711 Appendix I: holes are filled with what was before.

Speech repeats itself: a vowel is one short wave again and again. So the last wave before the hole is repeated: in the
first 10 ms one of them, then the last two in turn, then the last three, as one alone begins to buzz. From 10 ms on it
gets quieter, and after 60 ms there is silence. Where sounds meet, one is faded into the other.

The Appendix delays all sound by 3.75 ms, so that it can still change the end of what comes before a hole. Here the
sound is known as a whole, so nothing is delayed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from operator import mul
from typing import TYPE_CHECKING

from relay.demo.wan.sentence import SAMPLES_PER_PACKET

if TYPE_CHECKING:
    from relay.demo.wan.sound import Samples

# --- given by the Appendix, in samples: 8 are a millisecond ---
# Holes are filled in steps of 10 ms.
STEP = 80
# Voices have between 66 and 200 waves a second.
MIN_PERIOD, MAX_PERIOD = 40, 120
# The last 20 ms are compared with what comes before them, to find the length of a wave.
COMPARED = 160
MAX_CYCLES = 3
# What must be known of the past: three of the longest waves, and a quarter of one to fade with.
HISTORY = MAX_CYCLES * MAX_PERIOD + MAX_PERIOD // 4
# The fade after a hole takes a quarter of a wave, and 4 ms more for each step of the hole after the first.
FADE_PER_STEP = 32
# A fifth of the loudness goes in each step after the first: after this many samples nothing is left.
FADED = 6 * STEP


def conceal(frames: Iterable[Sequence[int] | None]) -> Samples:
    """The samples of a stream of 20 ms frames. Those that are None are missing. Before the first there is silence."""
    said = array("h", bytes(2 * HISTORY))
    hole: _Hole | None = None
    for frame in frames:
        if frame is None:
            hole = hole or _Hole(said)
            said.extend(hole.fill(SAMPLES_PER_PACKET))
        else:
            said.extend(frame if hole is None else hole.lead_into(frame))
            hole = None
    return said[HISTORY:]


class _Hole:
    """One hole, and what fills it. It changes the last quarter of a wave before itself, which leads into the first."""

    def __init__(self, said: Samples) -> None:
        self._history = said[-HISTORY:]
        self._period = period_of(self._history)
        self._quarter = self._period // 4
        self._cycles = 1
        self._loop = self._looped()
        self._at = 0
        self._filled = 0
        said[-self._quarter :] = array("h", self._loop[-self._quarter :])

    def fill(self, samples: int) -> list[int]:
        """Go on for some samples, a whole number of steps."""
        filled: list[int] = []
        while len(filled) < samples:
            filled += self._step()
        return filled

    def lead_into(self, frame: Sequence[int]) -> list[int]:
        """The frame after the hole, of which the beginning is faded in."""
        steps = self._filled // STEP
        fade = min(STEP, self._quarter + FADE_PER_STEP * (steps - 1))
        return [*_crossfade(self._step()[:fade], frame[:fade]), *frame[fade:]]

    def _step(self) -> list[int]:
        """The next 10 ms."""
        if self._filled and self._cycles < MAX_CYCLES:
            old = self._copy(self._at, self._quarter)
            self._cycles += 1
            self._loop = self._looped()
            # The same place in a wave, in the first of them.
            self._at %= self._period
            samples = self._copy(self._at, STEP)
            samples[: self._quarter] = _crossfade(old, samples[: self._quarter])
        else:
            samples = self._copy(self._at, STEP)
        self._at = (self._at + STEP) % len(self._loop)
        quieter = [_at_loudness(sample, self._filled + number) for number, sample in enumerate(samples)]
        self._filled += STEP
        return quieter

    def _copy(self, at: int, samples: int) -> list[int]:
        size = len(self._loop)
        return [self._loop[(at + number) % size] for number in range(samples)]

    def _looped(self) -> list[int]:
        """The last waves. Their end is faded into what comes before their beginning, so that they can be repeated."""
        size = self._cycles * self._period
        loop = list(self._history[-size:])
        before = self._history[-size - self._quarter : -size]
        loop[-self._quarter :] = _crossfade(loop[-self._quarter :], before)
        return loop


def period_of(history: Sequence[int]) -> int:
    """The length of a wave in samples: the one at which the end of the history resembles itself most.

    Of equals it is the shortest. The history has at least ``COMPARED + MAX_PERIOD`` samples.
    """
    end = history[-COMPARED:]

    def likeness(period: int) -> float:
        earlier = history[-COMPARED - period : -period]
        energy = sum(map(mul, earlier, earlier))
        return sum(map(mul, end, earlier)) / math.sqrt(energy) if energy else 0.0

    return max(range(MIN_PERIOD, MAX_PERIOD + 1), key=likeness)


def _crossfade(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """From the one to the other in a straight line. What both agree on stays exactly as it is."""
    size = len(new)
    return [
        (was * (size - number) + becomes * number + size // 2) // size
        for number, (was, becomes) in enumerate(zip(old, new, strict=True))
    ]


def _at_loudness(sample: int, age: int) -> int:
    """A sample of a hole that is ``age`` samples old: as it is for 10 ms, then quieter, silent from 60 ms on."""
    if age < STEP:
        return sample
    span = FADED - STEP
    return (sample * max(0, FADED - age) + span // 2) // span
