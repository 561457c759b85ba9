"""Concealment, sample by sample: a wave goes on as it was, gets quieter and ends; what was not lost stays as it was."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest

from relay.demo.wan.concealment import FADED, MAX_PERIOD, MIN_PERIOD, STEP, conceal, period_of

FRAME = 160


def tone(period: int, samples: int, loudness: float = 8000) -> list[int]:
    """A wave that repeats itself exactly, and does not look the same at half its length."""
    one = [
        round(loudness * (math.sin(2 * math.pi * n / period) + 0.5 * math.sin(4 * math.pi * n / period + 1)))
        for n in range(period)
    ]
    return [one[n % period] for n in range(samples)]


def frames(samples: Sequence[int]) -> list[Sequence[int] | None]:
    return [samples[first : first + FRAME] for first in range(0, len(samples), FRAME)]


def without(whole: Sequence[int], *lost: int) -> list[int]:
    """What is heard of it if frames of these numbers are lost."""
    return list(conceal(None if number in lost else frame for number, frame in enumerate(frames(whole))))


def gain(age: int) -> float:
    """The loudness of a hole, from G.711 Appendix I: a fifth less in each 10 ms after the first."""
    return min(1.0, max(0.0, 1.2 - 0.2 * age / STEP))


def test_what_was_not_lost_is_not_changed() -> None:
    noise = random.Random(1)
    whole = [noise.randrange(-32768, 32768) for _ in range(10 * FRAME)]
    assert without(whole) == whole
    assert list(conceal([])) == []


@pytest.mark.parametrize("period", [MIN_PERIOD, 41, 57, 80, 99, MAX_PERIOD])
def test_a_wave_goes_on_exactly_for_10_ms_and_then_gets_quieter(period: int) -> None:
    whole = tone(period, 6 * FRAME)
    heard = without(whole, 4)
    hole = 4 * FRAME
    assert heard[: hole + STEP] == whole[: hole + STEP]
    expected = [sample * gain(age) for age, sample in enumerate(whole[hole : hole + FRAME])]
    assert heard[hole : hole + FRAME] == pytest.approx(expected, abs=0.51)
    # The next frame is faded in within its first 10 ms, and is itself from there on.
    assert heard[hole + FRAME + STEP :] == whole[hole + FRAME + STEP :]
    fading = heard[hole + FRAME : hole + FRAME + STEP]
    assert all(abs(sample) <= abs(full) + 1 for sample, full in zip(fading, whole[hole + FRAME :], strict=False))


def test_bytes_of_a_hole_that_were_worked_out_by_hand() -> None:
    """A pulse every 40 samples. In the second 10 ms it has 1 - 0.2 * (age - 80) / 80 of its height."""
    whole = [10_000 if n % 40 == 0 else 0 for n in range(5 * FRAME)]
    heard = without(whole, 3)
    pulses = {n - 3 * FRAME: sample for n, sample in enumerate(heard) if sample and n >= 3 * FRAME}
    # After the hole, 10 + 32 samples are faded from what the hole would have been (0.8, then 0.7) to what came:
    # the pulse at the very beginning is the hole's, the one at 40 is (7,000 * 2 + 10,000 * 40) / 42.
    assert pulses == {0: 10_000, 40: 10_000, 80: 10_000, 120: 9_000, 160: 8_000, 200: 9_857, 240: 10_000, 280: 10_000}


def test_a_long_loss_fades_to_silence_and_stays_silent() -> None:
    whole = tone(80, 12 * FRAME)
    lost = range(3, 10)
    heard = without(whole, *lost)
    hole = heard[3 * FRAME : 10 * FRAME]
    peaks = [max(map(abs, hole[first : first + STEP])) for first in range(0, FADED, STEP)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1] > 0
    assert set(hole[FADED:]) == {0}
    # It comes back from silence.
    back = heard[10 * FRAME :]
    assert back[0] == 0
    assert back[STEP:] == whole[10 * FRAME + STEP :]


def test_nothing_is_made_of_silence() -> None:
    assert without([0] * 5 * FRAME, 2, 3) == [0] * 5 * FRAME


def test_a_stream_whose_beginning_is_lost_begins_with_silence() -> None:
    whole = tone(80, 4 * FRAME)
    heard = without(whole, 0)
    assert heard[:FRAME] == [0] * FRAME
    assert heard[FRAME + STEP :] == whole[FRAME + STEP :]


def test_a_stream_of_which_nothing_came_is_as_long_and_silent() -> None:
    assert list(conceal([None] * 3)) == [0] * 3 * FRAME


def test_holes_are_filled_one_by_one() -> None:
    """The frame between two holes counts as the past of the second."""
    whole = tone(40, 8 * FRAME)
    heard = without(whole, 3, 5)
    assert heard[4 * FRAME + STEP : 5 * FRAME + STEP] == whole[4 * FRAME + STEP : 5 * FRAME + STEP]


@pytest.mark.parametrize("lost", [(3,), (3, 4), (3, 4, 5)])
def test_where_sounds_meet_there_is_no_click(lost: tuple[int, ...]) -> None:
    """Of a tone that no whole number of samples repeats: it never jumps much further than the tone does itself."""

    def steps(samples: Sequence[int]) -> list[int]:
        return [abs(after - before) for before, after in itertools.pairwise(samples)]

    whole = [round(8000 * math.sin(2 * math.pi * n / 57.5)) for n in range(8 * FRAME)]
    assert max(steps(without(whole, *lost))) < 1.5 * max(steps(whole))
    silent = [0 if n // FRAME in lost else sample for n, sample in enumerate(whole)]
    assert max(steps(silent)) > 2 * max(steps(whole)), "silence instead would click"


def test_noise_that_resembles_itself_nowhere_is_filled_with_noise_no_louder_than_itself() -> None:
    noise = random.Random(2)
    whole = [noise.randrange(-1000, 1000) for _ in range(8 * FRAME)]
    hole = without(whole, 3, 4)[3 * FRAME : 5 * FRAME]
    assert 500 < max(map(abs, hole)) <= 1000
    assert hole != whole[3 * FRAME : 5 * FRAME]


@pytest.mark.parametrize("period", range(MIN_PERIOD, MAX_PERIOD + 1))
def test_the_length_of_a_wave_is_found(period: int) -> None:
    assert period_of(tone(period, 400)) == period


def test_of_lengths_that_are_alike_the_shortest_is_taken() -> None:
    assert period_of(tone(40, 400)) == 40
    assert period_of([0] * 400) == MIN_PERIOD
