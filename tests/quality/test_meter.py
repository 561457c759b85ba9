"""The meter on streams whose figures can be told by hand; each on both twins, which give the same."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from relay.quality.meter import Meter, clock_table, nearest_clock, pause_bucket
from relay.quality.stream import Direction, RtpStream
from relay.wire.rtp import RtpHeader, build_packet
from tests.fuzz import _leaves

PCMU = 0
OPUS = 111
DTMF = 126
DEADLINE_US = 60_000
# Of 20 ms.
PCMU_STEP = 160
OPUS_STEP = 960
MS = 1_000
S = 1_000_000
# (when in us, sequence number, timestamp)
Arrival = tuple[int, int, int]
TwinMeter = Meter | _leaves.Meter


def rtp(sequence_number: int, timestamp: int, ssrc: int = 1, payload_type: int = PCMU) -> bytes:
    header = RtpHeader(payload_type, sequence_number % 65_536, timestamp % 2**32, ssrc)
    return build_packet(header, b"voice")


@pytest.fixture(params=["obvious", "compiled"])
def meter(request: pytest.FixtureRequest) -> TwinMeter:
    if request.param == "obvious":
        return Meter(DEADLINE_US, {}, Direction.UPLINK)
    return _leaves.Meter(DEADLINE_US, clock_table({}), Direction.UPLINK)


def hear(meter: TwinMeter, arrivals: Iterable[Arrival], payload_type: int = PCMU) -> RtpStream:
    """Let the packets of one stream come; what is known of it then."""
    now_us = 0
    for now_us, sequence_number, timestamp in arrivals:
        meter.on_packet(now_us, rtp(sequence_number, timestamp, payload_type=payload_type))
    return meter.streams(now_us)[0]


def steady(count: int, start_us: int = 0, first: int = 100, timestamp: int = 0, step: int = PCMU_STEP) -> list[Arrival]:
    """So many packets of 20 ms, each in time."""
    return [(start_us + 20 * MS * i, first + i, timestamp + step * i) for i in range(count)]


def stalled(arrivals: Sequence[Arrival], since_us: int, until_us: int) -> list[Arrival]:
    """The same over TCP that stood still: what was sent in the meantime comes at its end, in order."""
    return [(until_us if since_us <= at < until_us else at, number, stamp) for at, number, stamp in arrivals]


# Sequence numbers: RFC 3550 section A.1


def test_nothing_has_no_streams(meter: TwinMeter) -> None:
    assert meter.streams(0) == []


def test_a_perfect_stream(meter: TwinMeter) -> None:
    stream = hear(meter, steady(250))
    assert stream == RtpStream(
        direction=Direction.UPLINK,
        ssrc=1,
        payload_type=PCMU,
        clock_hz=8_000,
        packets=250,
        duplicates=0,
        reordered=0,
        restarts=0,
        expected=250,
        late=0,
        missing_runs=0,
        jitter_us=0,
        stalls=0,
        longest_pause_us=20 * MS,
        idle_us=0,
        pauses=[(32 * MS, 249)],
    )
    assert stream.lost == 0


def test_a_stream_joined_in_the_middle_lost_nothing(meter: TwinMeter) -> None:
    stream = hear(meter, steady(1, first=40_000, timestamp=123_456))
    assert (stream.packets, stream.expected, stream.lost, stream.missing_runs) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("missing", "runs"),
    [({5}, 1), ({5, 6, 7}, 1), ({5, 7}, 2), ({1, 2, 50, 98}, 3), (set(range(1, 99)), 1)],
)
def test_gaps_are_lost(meter: TwinMeter, missing: set[int], runs: int) -> None:
    stream = hear(meter, [arrival for i, arrival in enumerate(steady(100)) if i not in missing])
    assert (stream.expected, stream.lost, stream.missing_runs) == (100, len(missing), runs)
    assert (stream.duplicates, stream.reordered, stream.restarts, stream.late, stream.jitter_us) == (0, 0, 0, 0, 0)


def test_the_sequence_number_wraps(meter: TwinMeter) -> None:
    """65535 is followed by 0; here 65535 itself and 1 are lost."""
    arrivals = [arrival for arrival in steady(20, first=65_530) if arrival[1] not in {65_535, 65_537}]
    stream = hear(meter, arrivals)
    assert (stream.packets, stream.expected, stream.lost, stream.missing_runs) == (18, 20, 2, 2)
    assert stream.restarts == 0


def test_it_wraps_more_than_once(meter: TwinMeter) -> None:
    stream = hear(meter, steady(140_000, first=1))
    assert (stream.packets, stream.expected, stream.lost, stream.restarts) == (140_000, 140_000, 0, 0)


def test_a_reordered_packet_fills_its_gap(meter: TwinMeter) -> None:
    arrivals = steady(10)
    at, number, timestamp = arrivals.pop(4)
    stream = hear(meter, sorted([*arrivals, (at + 25 * MS, number, timestamp)]))
    assert (stream.packets, stream.expected, stream.lost) == (10, 10, 0)
    assert (stream.reordered, stream.duplicates, stream.late) == (1, 0, 0)


def test_a_packet_from_before_the_first_adds_itself(meter: TwinMeter) -> None:
    """101, 100, 99, 103: only 102 is lost, and nobody knows whether 98 was ever sent."""
    stream = hear(meter, [(0, 101, 480), (1, 100, 320), (2, 99, 160), (40 * MS, 103, 800)])
    assert (stream.packets, stream.reordered, stream.expected, stream.lost) == (4, 2, 5, 1)


@pytest.mark.parametrize("behind", [0, 1, 7, 63])
def test_duplicates(meter: TwinMeter, behind: int) -> None:
    arrivals = steady(100)
    _, number, timestamp = arrivals[-1 - behind]
    stream = hear(meter, [*arrivals, (arrivals[-1][0], number, timestamp)])
    assert (stream.packets, stream.duplicates, stream.reordered) == (101, 1, 0)
    assert (stream.expected, stream.lost) == (100, 0)
    assert (stream.late, stream.jitter_us) == (0, 0)


def test_a_duplicate_does_not_hide_a_loss(meter: TwinMeter) -> None:
    arrivals = [arrival for i, arrival in enumerate(steady(100)) if i != 40]
    stream = hear(meter, sorted([*arrivals, arrivals[20], arrivals[60], arrivals[60]]))
    assert (stream.packets, stream.duplicates, stream.expected, stream.lost) == (102, 3, 100, 1)


def test_a_packet_64_behind_fills_no_gap(meter: TwinMeter) -> None:
    arrivals = steady(100)
    _, number, timestamp = arrivals.pop(35)
    stream = hear(meter, [*arrivals, (2 * S, number, timestamp)])
    assert (stream.duplicates, stream.reordered, stream.lost) == (1, 0, 1)


def test_a_restart_needs_two_in_a_row(meter: TwinMeter) -> None:
    """One packet far off changes nothing; two are a new beginning, and both count."""
    old = steady(50)
    stray = [(1 * S, 30_000, 77)]
    new = steady(50, start_us=2 * S, first=50_000, timestamp=900_000)
    before = hear(meter, [*old, *stray, *steady(1, 1 * S + 1, first=150, timestamp=8_000)])
    assert (before.packets, before.expected, before.lost, before.restarts) == (51, 51, 0, 0)
    after = hear(meter, new)
    assert (after.packets, after.expected, after.lost, after.restarts) == (101, 101, 0, 1)
    assert (after.late, after.missing_runs, meter.strays) == (0, 0, 2)


def test_a_packet_in_between_keeps_a_restart_from_happening(meter: TwinMeter) -> None:
    """Two sources with one SSRC: the first one heard is the stream."""
    one, other = steady(50), steady(50, start_us=10 * MS, first=40_000, timestamp=5_000)
    stream = hear(meter, sorted([*one, *other]))
    assert (stream.packets, stream.expected, stream.restarts, meter.strays) == (50, 50, 0, 50)


def test_a_long_outage_is_lost(meter: TwinMeter) -> None:
    """59 s of it: 2,950 packets, fewer than MAX_DROPOUT."""
    outage = steady(3_100)
    stream = hear(meter, outage[:50] + outage[3_000:])
    assert (stream.packets, stream.expected, stream.lost, stream.missing_runs) == (150, 3_100, 2_950, 1)
    assert (stream.stalls, stream.longest_pause_us) == (1, 59 * S + 20 * MS)


@pytest.mark.parametrize(("ahead", "lost"), [(2_999, 2_998), (3_000, 0)])
def test_beyond_max_dropout_it_is_a_jump(meter: TwinMeter, ahead: int, lost: int) -> None:
    stream = hear(meter, [(0, 0, 0), (60 * S, ahead, 480_000)])
    assert (stream.lost, meter.strays) == (lost, 0 if lost else 1)


@pytest.mark.parametrize(("ahead", "pause_us", "lost"), [(99, 0, 98), (100, 99_999, 0), (100, 100 * MS, 99)])
def test_a_millisecond_a_packet(meter: TwinMeter, ahead: int, pause_us: int, lost: int) -> None:
    stream = hear(meter, [(0, 0, 0), (pause_us, ahead, PCMU_STEP)])
    assert (stream.lost, meter.strays) == (lost, 0 if lost else 1)


def test_a_jump_that_no_time_explains_is_no_loss(meter: TwinMeter) -> None:
    """A sender that skips 2,000 numbers within 20 ms has not lost 2,000 packets."""
    old = steady(50)
    new = steady(50, start_us=1 * S, first=2_149, timestamp=8_000)
    stream = hear(meter, [*old, *new])
    assert (stream.packets, stream.expected, stream.lost, stream.restarts) == (100, 100, 0, 1)


def test_the_timestamp_explains_a_gap_too(meter: TwinMeter) -> None:
    """What was lost in the middle of what came at once, after a stall."""
    arrivals = steady(500)
    burst = stalled(arrivals, 100 * 20 * MS, 400 * 20 * MS)
    stream = hear(meter, burst[:150] + burst[350:])
    assert (stream.expected, stream.lost, stream.restarts) == (500, 200, 0)


@pytest.mark.parametrize("stride", [100, 2_999, 3_000, 4_096, 32_768, 65_400])
def test_jumps_all_the_way_are_no_loss(meter: TwinMeter, stride: int) -> None:
    stream = hear(meter, [(20 * MS * i, stride * i, PCMU_STEP * i) for i in range(1_000)])
    assert (stream.lost, stream.missing_runs, stream.restarts) == (0, 0, 0)
    assert stream.packets + meter.strays == 1_000
    assert meter.strays >= 500


def test_random_sequence_numbers_are_no_loss(meter: TwinMeter) -> None:
    source = random.Random(4)
    stream = hear(meter, [(20 * MS * i, source.randrange(65_536), source.randrange(2**32)) for i in range(5_000)])
    assert stream.lost == 0
    # What by chance comes close behind the highest, or is it.
    assert stream.packets < 20


# Jitter: RFC 3550 section A.8


def test_jitter_by_hand(meter: TwinMeter) -> None:
    """PCMU, 8 units a millisecond. Transits 0, 80, 0, 16; the differences 80, 80, 16, in sixteenths:

    80; 80 + 80 - (88 >> 4) = 155; 155 + 16 - (163 >> 4) = 161. That is 161 / 16 units of 125 us: 1,257.8 us.
    """
    stream = hear(meter, [(0, 1, 0), (30 * MS, 2, 160), (40 * MS, 3, 320), (62 * MS, 4, 480)])
    assert stream.jitter_us == 161 * 125 // 16 == 1_257


def test_jitter_settles_at_the_mean_difference(meter: TwinMeter) -> None:
    """Every other packet 10 ms late: all differences are 10 ms."""
    arrivals = [(at + 10 * MS * (i % 2), number, stamp) for i, (at, number, stamp) in enumerate(steady(500))]
    assert hear(meter, arrivals).jitter_us == pytest.approx(10 * MS, rel=0.01)


def test_the_timestamp_wraps_without_a_trace(meter: TwinMeter) -> None:
    stream = hear(meter, steady(100, timestamp=2**32 - 50 * PCMU_STEP + 1))
    assert (stream.jitter_us, stream.late) == (0, 0)


def test_packets_of_one_timestamp_have_no_jitter(meter: TwinMeter) -> None:
    """A frame of video in five packets, sent over 16 ms."""
    arrivals = [(40 * MS * i + 4 * MS * j, 5 * i + j, 3_600 * i) for i in range(100) for j in range(5)]
    stream = hear(meter, arrivals, payload_type=34)
    assert (stream.clock_hz, stream.jitter_us, stream.late) == (90_000, 0, 0)


# Late


def test_a_stall_makes_late(meter: TwinMeter) -> None:
    """400 ms: of the 20 packets that come at its end, those sent 60 ms before it or less are in time."""
    stream = hear(meter, stalled(steady(500), 4 * S, 4 * S + 400 * MS))
    assert (stream.packets, stream.lost) == (500, 0)
    # Late by 400, 380, ... 80 ms.
    assert (stream.late, stream.missing_runs) == (17, 1)
    assert (stream.stalls, stream.longest_pause_us) == (1, 420 * MS)


@pytest.mark.parametrize("stall_s", [1, 3, 10, 30])
def test_what_was_fast_is_not_forgotten_in_a_stall(meter: TwinMeter, stall_s: int) -> None:
    stream = hear(meter, stalled(steady(5_000), 40 * S, (40 + stall_s) * S))
    assert (stream.late, stream.missing_runs) == (stall_s * 50 - 3, 1)


def test_late_and_lost_side_by_side_are_one_run(meter: TwinMeter) -> None:
    arrivals = stalled(steady(500), 4 * S, 4 * S + 400 * MS)
    # Lost in the midst of the late ones, and right behind a late one; and one on its own.
    stream = hear(meter, [arrival for i, arrival in enumerate(arrivals) if i not in {205, 217, 300}])
    assert (stream.late, stream.lost, stream.missing_runs) == (16, 3, 2)


def test_a_reordered_packet_can_be_late(meter: TwinMeter) -> None:
    arrivals = steady(50)
    at, number, timestamp = arrivals.pop(20)
    stream = hear(meter, sorted([*arrivals, (at + 61 * MS, number, timestamp)]))
    assert (stream.reordered, stream.late, stream.lost, stream.missing_runs) == (1, 1, 0, 1)


def test_the_deadline_itself_is_in_time(meter: TwinMeter) -> None:
    arrivals = steady(50)
    assert hear(meter, [*arrivals, (1 * S + 60 * MS, 150, 50 * PCMU_STEP)]).late == 0
    assert hear(meter, [(1 * S + 82 * MS, 151, 51 * PCMU_STEP)]).late == 1


@pytest.mark.parametrize("drift", [1_000_500, 999_500])
def test_clocks_drift(meter: TwinMeter, drift: int) -> None:
    """500 ppm, ten times what a cheap crystal does, for ten minutes: 300 ms in the end, and never late."""
    stream = hear(meter, [(at * drift // S, number, stamp) for at, number, stamp in steady(30_000)])
    assert (stream.late, stream.stalls) == (0, 0)


def test_another_route_is_late_for_a_second(meter: TwinMeter) -> None:
    """From then on it is the way things are, as for a receiver that adapts."""
    slower = [(at + 100 * MS * (at >= 10 * S), number, stamp) for at, number, stamp in steady(2_000)]
    stream = hear(meter, slower)
    assert (stream.late, stream.missing_runs) == (50, 1)


def test_a_faster_route_is_not_late(meter: TwinMeter) -> None:
    faster = [(at - 15 * MS * (at >= 10 * S), number, stamp) for at, number, stamp in steady(2_000)]
    assert hear(meter, faster).late == 0


def test_a_sender_that_was_on_hold(meter: TwinMeter) -> None:
    """Its timestamps stood still for a minute, or for less: a second of doubt at most."""
    held = steady(500) + steady(500, start_us=70 * S, first=600, timestamp=500 * PCMU_STEP)
    assert hear(meter, held).late == 0
    again = steady(500, start_us=85 * S, first=1_100, timestamp=1_000 * PCMU_STEP)
    assert hear(meter, again).late == 50


@pytest.mark.parametrize("leap", [-1_000_000, -20 * 8_000, -200, 5 * 8_000, 1_000_000, 2**31 - 1])
def test_a_leap_of_the_timestamp_is_not_late(meter: TwinMeter, leap: int) -> None:
    leapt = steady(200) + steady(200, start_us=4 * S, first=300, timestamp=200 * PCMU_STEP + leap)
    stream = hear(meter, leapt)
    assert (stream.late, stream.missing_runs, stream.lost, stream.jitter_us) == (0, 0, 0, 0)


def test_one_wild_timestamp_is_not_late(meter: TwinMeter) -> None:
    arrivals = steady(200)
    arrivals[100] = (arrivals[100][0], arrivals[100][1], 500_000_000)
    assert hear(meter, arrivals).late == 0


def test_timestamps_that_only_go_back(meter: TwinMeter) -> None:
    stream = hear(meter, [(20 * MS * i, i, -PCMU_STEP * i) for i in range(500)])
    assert (stream.late, stream.lost, stream.jitter_us) == (0, 0, 0)


# Pauses


def test_pauses_by_hand(meter: TwinMeter) -> None:
    """0.5, 1, 20, 200 and 201 ms, and 5 s; the timestamps tell of 20 ms each time."""
    pauses_us = [500, 1 * MS, 20 * MS, 200 * MS, 201 * MS, 5 * S]
    arrivals = [(sum(pauses_us[:i]), i, PCMU_STEP * i) for i in range(len(pauses_us) + 1)]
    stream = hear(meter, arrivals)
    assert stream.pauses == [(1 * MS, 1), (2 * MS, 1), (32 * MS, 1), (256 * MS, 2), (2_048 * MS, 1)]
    assert (stream.stalls, stream.longest_pause_us) == (2, 5 * S)


def test_a_pause_of_speech_is_no_stall(meter: TwinMeter) -> None:
    """The sender suppresses silence: sequence numbers go on, and timestamps with the time."""
    silent = steady(100) + steady(100, start_us=7 * S, first=200, timestamp=7 * 8_000)
    stream = hear(meter, silent)
    assert (stream.stalls, stream.longest_pause_us, stream.late, stream.jitter_us) == (0, 20 * MS, 0, 0)
    assert stream.pauses == [(32 * MS, 198), (2_048 * MS, 1)]


def test_a_pause_with_losses_is_a_stall(meter: TwinMeter) -> None:
    arrivals = steady(200)
    assert hear(meter, arrivals[:100] + arrivals[150:]).stalls == 1


def test_idle_counts_from_the_last_packet(meter: TwinMeter) -> None:
    hear(meter, steady(10))
    assert meter.streams(10 * S)[0].idle_us == 10 * S - 180 * MS


# Clocks


@pytest.mark.parametrize("clock_hz", [8_000, 16_000, 24_000, 32_000, 44_100, 48_000, 90_000])
def test_a_clock_is_guessed(meter: TwinMeter, clock_hz: int) -> None:
    arrivals = steady(110, step=clock_hz // 50)
    jittered = [(at + 5 * MS * (i % 3), number, stamp) for i, (at, number, stamp) in enumerate(arrivals)]
    known = [hear(meter, jittered[i : i + 1], OPUS).clock_hz for i in range(110)]
    assert known[:100] == [0] * 100
    assert known[105:] == [clock_hz] * 5


def test_without_a_clock_there_is_neither_jitter_nor_lateness(meter: TwinMeter) -> None:
    stream = hear(meter, stalled(steady(90, step=OPUS_STEP), 400 * MS, 900 * MS), OPUS)
    assert (stream.clock_hz, stream.late, stream.jitter_us, stream.stalls) == (0, 0, 0, 0)
    # Nobody can tell yet whether the sender was silent.
    assert (stream.longest_pause_us, sum(count for _, count in stream.pauses)) == (20 * MS, 89)


@pytest.mark.parametrize("stall_ms", [333, 500, 875])
def test_a_stall_does_not_mislead_the_guess(meter: TwinMeter, stall_ms: int) -> None:
    arrivals = stalled(steady(400, step=OPUS_STEP), 980 * MS, (980 + stall_ms) * MS)
    assert {hear(meter, [arrival], OPUS).clock_hz for arrival in arrivals} == {0, 48_000}


def test_timestamps_of_no_known_clock(meter: TwinMeter) -> None:
    assert hear(meter, steady(1_000, step=1_234), OPUS).clock_hz == 0


def test_nearest_clock_leaves_44100_and_48000_apart() -> None:
    assert [nearest_clock(hz) for hz in (42_336, 45_864, 45_865, 46_079, 46_080, 49_920)] == [
        44_100,
        44_100,
        0,
        0,
        48_000,
        48_000,
    ]
    assert nearest_clock(0) == 0


def test_a_configured_clock() -> None:
    stream = hear(Meter(DEADLINE_US, {OPUS: 48_000}, Direction.DOWNLINK), steady(2, step=OPUS_STEP), OPUS)
    assert (stream.clock_hz, stream.direction) == (48_000, Direction.DOWNLINK)


def test_digits_do_not_disturb_the_voice(meter: TwinMeter) -> None:
    """RFC 4733: sequence numbers go on, the timestamp stands still while the key is held; the clock is not named."""
    voice = steady(300)
    hear(meter, voice[:200])
    hear(meter, [(at, number, 200 * PCMU_STEP) for at, number, _ in voice[200:220]], DTMF)
    stream = hear(meter, voice[220:])
    assert (stream.packets, stream.late, stream.lost, stream.jitter_us) == (300, 0, 0, 0)
    assert (stream.payload_type, stream.clock_hz) == (PCMU, 8_000)


def test_another_codec_has_another_clock(meter: TwinMeter) -> None:
    """From PCMU to Opus, whose clock is to be guessed, and back."""
    hear(meter, steady(100))
    stream = hear(meter, steady(150, start_us=2 * S, first=200, timestamp=16_000, step=OPUS_STEP), OPUS)
    assert (stream.payload_type, stream.clock_hz, stream.late) == (OPUS, 48_000, 0)
    stream = hear(meter, steady(100, start_us=5 * S, first=350, timestamp=500_000))
    assert (stream.payload_type, stream.clock_hz, stream.late, stream.jitter_us) == (PCMU, 8_000, 0, 0)


def test_comfort_noise_has_the_clock_of_the_voice(meter: TwinMeter) -> None:
    hear(meter, steady(150, step=OPUS_STEP), OPUS)
    hear(meter, steady(1, start_us=3 * S, first=250, timestamp=150 * OPUS_STEP), payload_type=13)
    stream = hear(meter, steady(50, start_us=3_020 * MS, first=251, timestamp=151 * OPUS_STEP, step=OPUS_STEP), OPUS)
    assert (stream.payload_type, stream.clock_hz, stream.late) == (OPUS, 48_000, 0)


@pytest.mark.parametrize("clocks", [{128: 8_000}, {-1: 8_000}, {96: 0}, {96: -1}, {96: 192_001}])
def test_a_clock_that_cannot_be(clocks: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="payload type"):
        Meter(DEADLINE_US, clocks, Direction.UPLINK)


def test_the_clock_table() -> None:
    table = clock_table({111: 48_000, 0: 16_000})
    assert len(table) == 128
    assert [table[payload_type] for payload_type in (0, 3, 8, 9, 10, 26, 34, 96, 111)] == [
        16_000,
        8_000,
        8_000,
        8_000,
        44_100,
        90_000,
        90_000,
        0,
        48_000,
    ]


def test_pause_buckets() -> None:
    assert [pause_bucket(us) for us in (0, 999, 1_000, 1_999, 2_000, 1_023_999, 1_024_000, 10**12)] == [
        0,
        0,
        1,
        1,
        2,
        10,
        11,
        11,
    ]


# Many streams


def test_streams_do_not_mix(meter: TwinMeter) -> None:
    for i in range(100):
        for ssrc in range(16):
            if i % (ssrc + 2) != 1:
                meter.on_packet(20 * MS * i, rtp(i, PCMU_STEP * i, ssrc=ssrc))
    streams = meter.streams(2 * S)
    assert [stream.ssrc for stream in streams] == list(range(16))
    # The last packet of a stream may be among the lost: then it was never expected.
    assert [stream.lost for stream in streams] == [
        sum(1 for i in range(100) if i % (ssrc + 2) == 1) - (99 % (ssrc + 2) == 1) for ssrc in range(16)
    ]


def test_the_longest_silent_gives_way(meter: TwinMeter) -> None:
    for ssrc in range(16):
        for i in range(2):
            meter.on_packet(ssrc * S + i, rtp(i, 160 * i, ssrc=ssrc))
    meter.on_packet(16 * S, rtp(2, 320, ssrc=0))
    meter.on_packet(16 * S, rtp(0, 0, ssrc=99))
    assert {stream.ssrc for stream in meter.streams(16 * S)} == {0, 99, *range(2, 16)}


@pytest.mark.parametrize(("silent_us", "gone"), [(5 * S - 1, 15), (5 * S, 0)])
def test_what_was_heard_of_late_stays(meter: TwinMeter, silent_us: int, gone: int) -> None:
    """Fifteen calls, and then a single packet; the first call is the longest silent."""
    for ssrc in range(15):
        for i in range(2):
            meter.on_packet(ssrc, rtp(i, 0, ssrc=ssrc))
    meter.on_packet(1 * S, rtp(0, 0, ssrc=15))
    meter.on_packet(silent_us, rtp(0, 0, ssrc=99))
    assert {stream.ssrc for stream in meter.streams(silent_us)} == {99, *range(16)} - {gone}


def test_a_thousand_ssrcs_do_not_drive_out_a_call(meter: TwinMeter) -> None:
    for i in range(1_000):
        meter.on_packet(20 * MS * i, rtp(i, PCMU_STEP * i, ssrc=7))
        for j in range(20 if i else 0):
            meter.on_packet(20 * MS * i + 10, rtp(31 * j, 77 * i, ssrc=1_000 + 20 * i + j))
    streams = meter.streams(20 * S)
    assert len(streams) == 16
    call = next(stream for stream in streams if stream.ssrc == 7)
    assert (call.packets, call.expected, call.late, call.jitter_us) == (1_000, 1_000, 0, 0)
    assert all(stream.packets == stream.expected == 1 for stream in streams if stream.ssrc != 7)


def test_new_streams_find_a_place_beside_old_ones(meter: TwinMeter) -> None:
    """Two that begin together must not drive each other out when sixteen silent ones have a place."""
    for ssrc in range(16):
        for i in range(2):
            meter.on_packet(i, rtp(i, 0, ssrc=ssrc))
    for i in range(50):
        meter.on_packet(60 * S + 20 * MS * i, rtp(i, PCMU_STEP * i, ssrc=100))
        meter.on_packet(60 * S + 20 * MS * i, rtp(i, PCMU_STEP * i, ssrc=101))
    packets = {stream.ssrc: stream.packets for stream in meter.streams(61 * S)}
    assert packets[100] == packets[101] == 50


def test_memory_is_fixed() -> None:
    """A flow has two meters."""
    assert _leaves.STREAM_BYTES <= 192
    assert _leaves.METER_BYTES <= 3_200


# What is no RTP

GOOD = rtp(1, 1)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x80",
        GOOD[:11],
        bytes(12),
        b"\x40" + GOOD[1:],
        b"\xc0" + GOOD[1:],
        b"\x81" + GOOD[1:12],
        b"\x8f" + GOOD[1:12] + bytes(59),
        b"\x90" + GOOD[1:12],
        b"\x90" + GOOD[1:12] + b"\xbe\xde\0\1\0\0\0",
        b"\x90" + GOOD[1:12] + b"\xbe\xde\xff\xff" + bytes(100),
        b"\x80\xc8",
        b"\x80\xc8\0\1\0\0\0",
        b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12),
    ],
)
def test_malformed_packets_are_counted(meter: TwinMeter, packet: bytes) -> None:
    meter.on_packet(0, packet)
    assert (meter.malformed, meter.rtcp, meter.streams(0)) == (1, 0, [])


@pytest.mark.parametrize(
    "packet",
    [
        GOOD[:12],
        b"\xa0" + GOOD[1:],
        b"\x8f" + GOOD[1:12] + bytes(60),
        b"\x90" + GOOD[1:12] + b"\xbe\xde\0\1\0\0\0\0",
    ],
)
def test_whole_packets_of_every_form(meter: TwinMeter, packet: bytes) -> None:
    meter.on_packet(0, packet)
    assert (meter.malformed, [stream.packets for stream in meter.streams(0)]) == (0, [1])


@pytest.mark.parametrize("packet_type", [192, 200, 201, 207, 223])
def test_rtcp_is_counted_only(meter: TwinMeter, packet_type: int) -> None:
    meter.on_packet(0, bytes([0x81, packet_type]) + bytes(50))
    assert (meter.rtcp, meter.malformed, meter.streams(0)) == (1, 0, [])


def test_a_clock_that_goes_back(meter: TwinMeter) -> None:
    stream = hear(meter, [(1 * S, 1, 0), (0, 2, 160)])
    assert (stream.packets, stream.longest_pause_us, stream.idle_us) == (2, 0, 0)
    assert meter.streams(3 * S)[0].idle_us == 2 * S
