"""What a window sounded like, from readings that are written by hand and from those of a meter."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.quality import emodel
from relay.quality.meter import Meter
from relay.quality.playout import play
from relay.quality.stream import Direction, RtpStream
from relay.quality.window import MIN_EXPECTED, CallScore, StreamWindow, call_score, codec_of, stream_window
from relay.wire.rtp import RtpHeader, build_packet
from tests.support.properties import repeatable

S = 1_000_000
NOTHING = RtpStream(
    direction=Direction.DOWNLINK,
    ssrc=7,
    payload_type=0,
    clock_hz=8_000,
    packets=0,
    duplicates=0,
    reordered=0,
    restarts=0,
    expected=0,
    late=0,
    missing_runs=0,
    jitter_us=2_500,
    stalls=0,
    longest_pause_us=0,
    idle_us=0,
)
FIRST = replace(NOTHING, packets=1_000, expected=1_000)


def after(
    earlier: RtpStream, packets: int, expected: int, *, late: int = 0, runs: int = 0, duplicates: int = 0
) -> RtpStream:
    """The next reading, by so much more."""
    return replace(
        earlier,
        packets=earlier.packets + packets,
        expected=earlier.expected + expected,
        late=earlier.late + late,
        missing_runs=earlier.missing_runs + runs,
        duplicates=earlier.duplicates + duplicates,
    )


def test_a_perfect_window() -> None:
    window = stream_window(FIRST, after(FIRST, 250, 250))
    assert window == StreamWindow(
        expected=250,
        received=250,
        lost=0,
        late=0,
        missing_percent=0,
        burst_ratio=1,
        jitter_ms=2.5,
        r=93.2,
        mos=emodel.mos(93.2),
        codec=emodel.G711_CONCEALED,
    )


def test_one_percent() -> None:
    """The vector of G.107 with concealment: R 89.56, MOS 4.328."""
    window = stream_window(FIRST, after(FIRST, 495, 500, runs=5))
    assert (window.received, window.lost, window.missing_percent, window.burst_ratio) == (495, 5, 1, 1)
    assert window.r == pytest.approx(89.56, abs=5e-3)
    assert window.mos == pytest.approx(4.328, abs=5e-4)


def test_late_scores_as_lost_does() -> None:
    lost = stream_window(FIRST, after(FIRST, 240, 250, runs=2))
    late = stream_window(FIRST, after(FIRST, 250, 250, late=10, runs=2))
    both = stream_window(FIRST, after(FIRST, 244, 250, late=4, runs=2))
    assert (lost.lost, lost.late, late.lost, late.late, both.lost, both.late) == (10, 0, 0, 10, 6, 4)
    assert lost.r == late.r == both.r
    assert lost.missing_percent == 4
    assert lost.burst_ratio == pytest.approx(5 * 0.96)


def test_runs_are_heard() -> None:
    scattered, bursts = (stream_window(FIRST, after(FIRST, 225, 250, runs=runs)) for runs in (25, 2))
    assert scattered.mos is not None
    assert bursts.mos is not None
    assert scattered.mos > bursts.mos + 0.2


def test_a_run_from_the_window_before() -> None:
    assert stream_window(FIRST, after(FIRST, 230, 250, runs=0)).burst_ratio == pytest.approx(20 * 0.92)


def test_all_of_it_missing_is_silence() -> None:
    window = stream_window(FIRST, after(FIRST, 250, 250, late=250, runs=1))
    assert (window.missing_percent, window.burst_ratio, window.r, window.mos) == (100, 1, 0, 1)


def test_duplicates_hide_nothing() -> None:
    window = stream_window(FIRST, after(FIRST, 250, 250, runs=5, duplicates=10))
    assert (window.received, window.lost, window.expected) == (240, 10, 250)


def test_a_straggler_of_the_window_before_is_no_negative_loss() -> None:
    window = stream_window(FIRST, after(FIRST, 253, 250))
    assert (window.received, window.lost, window.expected, window.missing_percent) == (253, 0, 253, 0)


def test_nothing_expected_is_not_known() -> None:
    for window in (stream_window(FIRST, replace(FIRST, idle_us=5 * S)), stream_window(None, NOTHING)):
        assert (window.expected, window.missing_percent, window.r, window.mos) == (0, None, None, None)
        assert window.burst_ratio == 1


def test_too_few_packets_have_no_score() -> None:
    few = stream_window(FIRST, after(FIRST, 1, MIN_EXPECTED - 1, runs=1))
    assert few.missing_percent == pytest.approx(100 * 8 / 9)
    assert (few.r, few.mos) == (None, None)
    assert stream_window(FIRST, after(FIRST, MIN_EXPECTED, MIN_EXPECTED)).r == 93.2


def test_without_a_clock_there_is_no_score() -> None:
    unknown = replace(after(FIRST, 250, 250), clock_hz=0, jitter_us=0)
    window = stream_window(replace(FIRST, clock_hz=0), unknown)
    assert (window.missing_percent, window.jitter_ms, window.r, window.mos) == (0, 0, None, None)


def test_the_first_window_counts_from_the_first_packet() -> None:
    assert stream_window(None, FIRST).expected == 1_000


def test_a_stream_that_was_forgotten_begins_anew() -> None:
    anew = replace(NOTHING, packets=100, expected=100)
    window = stream_window(FIRST, anew)
    assert (window.expected, window.lost, window.missing_percent) == (100, 0, 0)


@pytest.mark.parametrize("other", [replace(FIRST, ssrc=8), replace(FIRST, direction=Direction.UPLINK)])
def test_two_streams_are_refused(other: RtpStream) -> None:
    with pytest.raises(ValueError, match="two streams"):
        stream_window(FIRST, other)


def test_what_is_known_of_the_delay_counts() -> None:
    later = after(FIRST, 250, 250)
    near, far = stream_window(FIRST, later, 60, network_ms=20), stream_window(FIRST, later, 60, network_ms=120)
    assert near.r == 93.2
    # 120 + 60 + 20: Idd(200) is 3.044.
    assert far.r == pytest.approx(93.2 - 3.044, abs=5e-4)
    assert stream_window(FIRST, later, 160, packetisation_ms=40).r == far.r


@pytest.mark.parametrize("network_ms", [-100.0, math.nan, math.inf])
def test_a_delay_that_cannot_be(network_ms: float) -> None:
    with pytest.raises(ValueError, match="delay"):
        stream_window(FIRST, after(FIRST, 250, 250), network_ms=network_ms)


@pytest.mark.parametrize(
    ("payload_type", "codec"),
    [(0, emodel.G711_CONCEALED), (8, emodel.G711_CONCEALED), (9, emodel.OPUS), (111, emodel.OPUS)],
)
def test_codecs(payload_type: int, codec: emodel.Codec) -> None:
    assert codec_of(payload_type) is codec
    assert stream_window(None, replace(FIRST, payload_type=payload_type)).codec is codec
    assert codec.provisional is (payload_type not in {0, 8})


def test_the_score_of_a_call() -> None:
    good, bad = stream_window(None, FIRST), stream_window(None, after(NOTHING, 500, 1_000, runs=1))
    silent = stream_window(FIRST, FIRST)
    assert good.mos is not None
    assert bad.mos is not None
    score = call_score([good, silent, bad, silent])
    assert score.mos_min == bad.mos
    assert score.mos_mean == pytest.approx((good.mos + bad.mos) / 2)


def test_a_call_of_which_nothing_is_known() -> None:
    assert call_score([]) == call_score([stream_window(FIRST, FIRST)]) == CallScore(None, None)


# With a meter before it


def packets(count: int) -> list[tuple[int, bytes]]:
    """PCMU, 20 ms each."""
    return [(20_000 * i, build_packet(RtpHeader(0, i % 65_536, 160 * i, ssrc=7), b"")) for i in range(count)]


def windows_of(arrivals: list[tuple[int, bytes]], seconds: int) -> list[StreamWindow]:
    """The stream of SSRC 7, read each 5 s."""
    meter = Meter(60_000, {}, Direction.DOWNLINK)
    earlier: RtpStream | None = None
    windows: list[StreamWindow] = []
    waiting = iter([*arrivals, (seconds * S, b"")])
    at, packet = next(waiting)
    for end_us in range(5 * S, seconds * S + 1, 5 * S):
        while at < end_us:
            meter.on_packet(at, packet)
            at, packet = next(waiting)
        later = next(stream for stream in meter.streams(end_us) if stream.ssrc == 7)
        windows.append(stream_window(earlier, later))
        earlier = later
    return windows


def test_a_stall_across_two_windows_counts_where_it_ends() -> None:
    """Nothing comes from second 9 to 12: what was sent then comes late, and is heard as silence."""
    stalled = [(12 * S if 9 * S <= at < 12 * S else at, packet) for at, packet in packets(1_000)]
    first, second, third, fourth = windows_of(stalled, 20)
    assert (first.missing_percent, second.missing_percent, fourth.missing_percent) == (0, 0, 0)
    assert (second.expected, third.expected, third.late, third.lost) == (200, 300, 147, 0)
    assert first.mos == second.mos == fourth.mos == emodel.mos(93.2)
    assert third.mos is not None
    assert third.mos < 1.5


def test_a_stream_that_is_cut_off_is_not_known_until_it_goes_on() -> None:
    cut = [(at, packet) for at, packet in packets(1_250) if not 10 * S <= at < 20 * S]
    scores = [window.mos for window in windows_of(cut, 25)]
    assert scores[2:4] == [None, None]
    # 500 of 750 are missing when it does.
    assert scores[4] is not None
    assert scores[4] < 1.5


def test_the_meter_scores_a_bad_network_as_the_playout_does() -> None:
    """Random loss and delay, known packet by packet to the one, and seen only from the middle by the other."""
    source = random.Random(11)
    delays_ms = [None if source.random() < 0.02 else 5 + source.choice([0, 0, 0, 0, 10, 30, 90]) for _ in range(3_000)]
    heard = play(delays_ms, emodel.G711_CONCEALED, 60)
    arrivals = sorted(
        (at + round(delay * 1_000), packet)
        for (at, packet), delay in zip(packets(3_000), delays_ms, strict=True)
        if delay is not None
    )
    meter = Meter(60_000, {}, Direction.DOWNLINK)
    for at, packet in arrivals:
        meter.on_packet(at, packet)
    window = stream_window(None, meter.streams(0)[0])
    assert (window.expected, window.lost) == (heard.sent, heard.lost)
    assert window.late == heard.late > 300
    assert window.mos == pytest.approx(heard.mos, abs=0.05)


def test_noise_has_no_score() -> None:
    """1,000 sources of random numbers, and one that goes on among them."""
    source = random.Random(5)
    noise = [
        (at + 1 + i, build_packet(RtpHeader(0, source.randrange(65_536), source.randrange(2**32), 100 + ssrc), b""))
        for at, _ in packets(1_000)
        if at >= 1 * S
        for i, ssrc in enumerate(source.sample(range(1_000), 5))
    ]
    assert [window.mos for window in windows_of(sorted([*packets(1_000), *noise]), 20)] == [emodel.mos(93.2)] * 4
    meter = Meter(60_000, {}, Direction.DOWNLINK)
    for at, packet in noise:
        meter.on_packet(at, packet)
    assert all(stream_window(None, stream).mos is None for stream in meter.streams(20 * S))


counts = st.integers(0, 2**40)
readings = st.builds(
    replace,
    st.just(NOTHING),
    packets=counts,
    duplicates=counts,
    expected=counts,
    late=counts,
    missing_runs=counts,
    clock_hz=st.sampled_from([0, 8_000]),
)


@repeatable
@given(st.none() | readings, readings)
def test_any_two_readings_have_figures_that_can_be(earlier: RtpStream | None, later: RtpStream) -> None:
    later = replace(later, packets=later.packets + later.duplicates)
    if earlier is not None:
        earlier = replace(earlier, packets=earlier.packets + earlier.duplicates)
    window = stream_window(earlier, later)
    assert window.expected == window.received + window.lost
    assert 0 <= window.late <= window.received
    assert window.lost >= 0
    assert window.burst_ratio >= 1
    assert (window.missing_percent is None) is (window.expected == 0)
    assert window.missing_percent is None or 0 <= window.missing_percent <= 100
    assert (window.mos is None) is (window.r is None)
    assert window.mos is None or 1 <= window.mos <= 4.5
