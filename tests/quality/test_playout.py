"""What a listener heard of a stream, for streams whose outcome can be told by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.quality import emodel
from relay.quality.playout import DEFAULT_DEADLINE_MS, burst_ratio, nearest_rank, play

# One stream: in order of sending, what became of each packet.
streams = st.lists(st.none() | st.floats(0, 5_000), max_size=200)
deadlines_ms = st.sampled_from([0.0, 40.0, 60.0, 100.0])


def test_nothing_sent_has_no_score() -> None:
    nothing = play([])
    assert (nothing.sent, nothing.received, nothing.late, nothing.lost, nothing.missing) == (0, 0, 0, 0, 0)
    assert nothing.missing_percent is nothing.r is nothing.mos is None
    assert nothing.delay_p50_ms is nothing.delay_p99_ms is None
    assert nothing.burst_ratio == 1


def test_a_perfect_stream() -> None:
    stream = play([5.0] * 100)
    assert (stream.sent, stream.received, stream.late, stream.lost) == (100, 100, 0, 0)
    assert (stream.missing_percent, stream.burst_ratio) == (0, 1)
    assert (stream.delay_p50_ms, stream.delay_p99_ms) == (5, 5)
    assert stream.r == 93.2
    assert stream.mos == pytest.approx(4.41, abs=5e-3)


def test_a_stream_of_which_nothing_came_is_silence() -> None:
    silence = play([None] * 50)
    assert (silence.received, silence.late, silence.lost, silence.missing_percent) == (0, 0, 50, 100)
    assert silence.delay_p50_ms is silence.delay_p99_ms is None
    assert (silence.burst_ratio, silence.r, silence.mos) == (1, 0, 1)


def test_over_tcp_nothing_is_lost_it_is_late() -> None:
    # A stall of 400 ms in 20 s of voice: the 20 packets sent during it all come, at its end.
    stalled = [10.0] * 490 + [410.0 - 20 * i for i in range(20)] + [10.0] * 490
    stream = play(stalled, deadline_ms=60)
    assert (stream.received, stream.lost) == (1000, 0)
    # The last three were delayed by 30, 50 and 70 ms: 10 + 60 is still in time.
    assert (stream.late, stream.missing_percent) == (17, 1.7)
    assert stream.burst_ratio == pytest.approx(17 * 0.983)
    # Rank 990 of 1000: the tenth fastest of the twenty.
    assert stream.delay_p99_ms == 210
    assert stream.r is not None
    assert stream.r < 93.2 - 5


def test_late_scores_as_lost_does() -> None:
    lost = play([10.0, 10.0, None, 10.0] * 25)
    late = play([10.0, 10.0, 900.0, 10.0] * 25)
    assert (lost.lost, lost.late) == (25, 0)
    assert (late.lost, late.late) == (0, 25)
    assert lost.missing == late.missing
    assert (lost.r, lost.mos) == (late.r, late.mos)


def test_the_deadline_counts_from_the_least_delay() -> None:
    delays = [200.0, 240.0, 240.1, 260.0, 260.1, 300.0]
    assert play(delays, deadline_ms=40).late == 4
    assert play(delays, deadline_ms=60).late == 2
    assert play(delays, deadline_ms=100).late == 0
    assert play(delays).late == play(delays, deadline_ms=DEFAULT_DEADLINE_MS).late


def test_the_score_has_the_whole_delay_from_mouth_to_ear() -> None:
    # 120 in the network, 60 in the jitter buffer, 20 in the packet.
    assert play([120.0] * 10, deadline_ms=60).r == pytest.approx(93.2 - 3.044, abs=5e-4)


def test_the_codec_matters() -> None:
    one_in_a_hundred = [10.0] * 99 + [None]
    concealed, plain = play(one_in_a_hundred), play(one_in_a_hundred, codec=emodel.G711)
    assert concealed.codec is emodel.G711_CONCEALED
    assert concealed.r == pytest.approx(89.56, abs=5e-3)
    assert plain.r == pytest.approx(75.28, abs=5e-3)


@pytest.mark.parametrize(
    ("pattern", "ratio"),
    [
        ("", 1),
        ("........", 1),
        ("xxxxxxxx", 1),
        # Runs of 2 at a rate of 1/4: random ones would be 4/3 long.
        ("..xx....", 1.5),
        ("xx......xx......", 1.5),
        # Every other one: more even than chance.
        (".x.x.x.x", 1),
        # One run of 4 in 8: random ones would be 2 long.
        ("....xxxx", 2),
    ],
)
def test_burst_ratio(pattern: str, ratio: float) -> None:
    assert burst_ratio([mark == "x" for mark in pattern]) == pytest.approx(ratio)


def test_random_losses_have_a_burst_ratio_of_one() -> None:
    dice = random.Random(20150601)
    assert burst_ratio([dice.random() < 0.1 for _ in range(200_000)]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("values", "percent", "value"),
    [([7.0], 50, 7), ([1.0, 2.0], 50, 1), ([1.0, 2.0, 3.0], 50, 2), (range(1, 101), 99, 99), (range(1, 102), 99, 100)],
)
def test_nearest_rank(values: list[float], percent: int, value: float) -> None:
    assert nearest_rank(values, percent) == value


def test_nearest_rank_of_nothing() -> None:
    assert nearest_rank([], 50) is None


@pytest.mark.parametrize("bad_ms", [-1.0, math.nan, math.inf])
def test_refuses_what_is_no_delay(bad_ms: float) -> None:
    with pytest.raises(ValueError, match="expected a delay"):
        play([10.0, bad_ms])
    with pytest.raises(ValueError, match="expected a delay"):
        play([10.0], deadline_ms=bad_ms)


@given(streams, deadlines_ms)
def test_every_packet_is_accounted_for(stream: list[float | None], deadline_ms: float) -> None:
    heard = play(stream, deadline_ms=deadline_ms)
    assert heard.sent == len(stream) == heard.received + heard.lost
    assert 0 <= heard.late <= max(0, heard.received - 1), "the fastest packet is never late"
    assert heard.burst_ratio >= 1
    assert (heard.mos is None) == (heard.r is None) == (heard.missing_percent is None) == (not stream)
    assert heard.mos is None or 1 <= heard.mos <= 4.5


@given(streams, deadlines_ms, st.floats(0, 1_000))
def test_slower_as_a_whole_is_not_later(stream: list[float | None], deadline_ms: float, more_ms: float) -> None:
    # Whole milliseconds: a sum of floats may round across the deadline.
    whole = [None if delay is None else float(round(delay)) for delay in stream]
    slower = [None if delay is None else delay + round(more_ms) for delay in whole]
    assert play(slower, deadline_ms=deadline_ms).late == play(whole, deadline_ms=deadline_ms).late


@given(streams)
def test_a_longer_buffer_never_misses_more(stream: list[float | None]) -> None:
    missing = [play(stream, deadline_ms=deadline_ms).missing for deadline_ms in (0, 40, 60, 100, 10_000)]
    assert missing == sorted(missing, reverse=True)
    assert missing[-1] == stream.count(None)
