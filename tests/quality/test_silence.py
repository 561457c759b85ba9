"""The meter on senders that suppress silence: what they say of their clock, and that silence is not a stall."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from relay.quality.meter import COMFORT_NOISE, Meter, clock_table
from relay.quality.stream import Direction, RtpStream
from relay.quality.window import stream_window
from relay.wire.rtp import RtpHeader, build_packet
from tests.fuzz import _leaves

OPUS = 111
OTHER = 103
OTHER_NOISE = 105
DIGITS = 126
G711 = 0
DEADLINE_US = 60_000
MS = 1_000
S = 1_000_000
FRAME_US = 20 * MS
NOISE_US = 400 * MS
CALL_US = 40 * S
# (when in us, sequence number, payload type, timestamp, marker)
Sent = tuple[int, int, int, int, bool]
TwinMeter = Meter | _leaves.Meter


@pytest.fixture(params=["obvious", "compiled"])
def meter(request: pytest.FixtureRequest) -> TwinMeter:
    if request.param == "obvious":
        return Meter(DEADLINE_US, {}, Direction.DOWNLINK)
    return _leaves.Meter(DEADLINE_US, clock_table({}), Direction.DOWNLINK)


def call(clock_hz: int, voice: int, turn_us: tuple[int, int], noise: int | None = None) -> list[Sent]:
    """Talk and silence in turn; in silence nothing, or comfort noise of that type, each 400 ms.

    Timestamps run on through silence.
    """
    return list(_call(clock_hz, voice, turn_us, noise))


def _call(clock_hz: int, voice: int, turn_us: tuple[int, int], noise: int | None) -> Iterator[Sent]:
    number = 65_000
    for start_us in range(0, CALL_US, sum(turn_us)):
        talk = range(start_us, start_us + turn_us[0], FRAME_US)
        updates = range(talk[-1] + NOISE_US, start_us + sum(turn_us), NOISE_US) if noise is not None else ()
        for at_us in (*talk, *updates):
            kind = voice if at_us in talk or noise is None else noise
            timestamp = (2**32 - clock_hz + at_us * clock_hz // S) % 2**32
            yield at_us, number % 65_536, kind, timestamp, at_us == start_us
            number += 1


def lossy(sent: Sequence[Sent], percent: float) -> tuple[list[Sent], int]:
    """What comes of it, with jitter of 15 ms at most, and how many are lost; the first and the last one are not."""
    source = random.Random(percent)
    kept = [one for one in sent[1:-1] if source.random() * 100 >= percent]
    came = [(one[0] + source.randrange(15 * MS), *one[1:]) for one in (sent[0], *kept, sent[-1])]
    return came, len(sent) - len(came)


def hear(meter: TwinMeter, came: Sequence[Sent]) -> RtpStream:
    for at_us, number, payload_type, timestamp, marker in came:
        packet = bytearray(build_packet(RtpHeader(payload_type, number, timestamp, 7), b"voice"))
        packet[1] |= marker << 7
        meter.on_packet(at_us, bytes(packet))
    return meter.streams(came[-1][0])[0]


SENDERS = {
    "Opus with updates of its noise": call(48_000, OPUS, (1_200 * MS, 1_600 * MS), OPUS),
    "Opus that is silent": call(48_000, OPUS, (1_200 * MS, 1_600 * MS)),
    "Opus in short words": call(48_000, OPUS, (300 * MS, 900 * MS), OPUS),
    "Opus in short words and silent": call(48_000, OPUS, (600 * MS, 700 * MS)),
    "Opus that pauses for long": call(48_000, OPUS, (800 * MS, 7 * S)),
    "8 kHz": call(8_000, OTHER, (1_200 * MS, 1_600 * MS)),
    "16 kHz": call(16_000, OTHER, (1_200 * MS, 1_600 * MS)),
    "8 kHz with noise of type 13": call(8_000, OTHER, (1_200 * MS, 1_600 * MS), COMFORT_NOISE),
    "16 kHz with noise of type 13": call(16_000, OTHER, (1_200 * MS, 1_600 * MS), COMFORT_NOISE),
    "16 kHz with noise of a type of its own": call(16_000, OTHER, (1_200 * MS, 1_600 * MS), OTHER_NOISE),
    "G.711 that is silent": call(8_000, G711, (1_200 * MS, 1_600 * MS)),
    "G.711 with noise": call(8_000, G711, (1_200 * MS, 1_600 * MS), COMFORT_NOISE),
}
CLOCKS = {name: 48_000 if "Opus" in name else 16_000 if "16" in name else 8_000 for name in SENDERS}


@pytest.mark.parametrize("percent", [0, 5.8, 15])
@pytest.mark.parametrize("name", SENDERS)
def test_silence_is_scored_and_is_not_a_stall(meter: TwinMeter, name: str, percent: float) -> None:
    came, lost = lossy(SENDERS[name], percent)
    stream = hear(meter, came)
    assert stream.clock_hz == CLOCKS[name]
    assert (stream.stalls, stream.late, stream.restarts) == (0, 0, 0)
    assert (stream.packets, stream.expected, stream.lost) == (len(came), len(SENDERS[name]), lost)
    assert stream_window(None, stream).mos is not None
    # Each pause is in the histogram all the same.
    assert sum(count for _, count in stream.pauses) == len(came) - 1


@pytest.mark.parametrize("name", SENDERS)
def test_the_clock_is_known_soon(meter: TwinMeter, name: str) -> None:
    """After two spans, each of a second and a silence at most."""
    sent = SENDERS[name]
    voice_us = [at_us for at_us, _, payload_type, _, _ in sent if payload_type == sent[0][2]]
    silence_us = max(later_us - earlier_us for earlier_us, later_us in pairwise(voice_us))
    soon = [one for one in sent if one[0] <= 2 * (S + silence_us)]
    assert hear(meter, soon).clock_hz == CLOCKS[name]


def test_noise_with_a_type_of_its_own_never_unsettles_the_voice(meter: TwinMeter) -> None:
    clocks = {hear(meter, [one]).clock_hz for one in SENDERS["16 kHz with noise of a type of its own"]}
    assert clocks == {0, 16_000}


def test_voice_is_judged_while_noise_with_a_type_of_its_own_goes_on(meter: TwinMeter) -> None:
    """Five words in, the type of the noise is known too; then every fiftieth packet of voice is late."""
    sent = SENDERS["16 kHz with noise of a type of its own"]
    voice = [i for i, one in enumerate(sent) if one[2] == OTHER and sent[i - 1][2] == OTHER and one[0] > 14 * S]
    late = set(voice[25::50])
    came = [(one[0] + 100 * MS * (i in late), *one[1:]) for i, one in enumerate(sent)]
    assert hear(meter, sorted(came)).late == len(late)


def test_digits_do_not_disturb_the_guess(meter: TwinMeter) -> None:
    """RFC 4733: a key that is held for 200 ms, after half a second and once more; its timestamp stands still."""
    sent = [(one[0], one[1], OPUS, one[3], one[4]) for one in call(48_000, OPUS, (3 * S, 1 * S))]
    held = [*range(25, 35), *range(70, 80)]
    pressed = {i: sent[i - i % 5][3] for i in held}
    came = [(*one[:2], DIGITS, pressed[i], one[4]) if i in pressed else one for i, one in enumerate(sent[:120])]
    assert hear(meter, came).clock_hz == 48_000


def test_another_codec_takes_over_the_guess(meter: TwinMeter) -> None:
    """After half a second of a codec whose clock nobody knows yet; the other is known 2.5 s later."""
    sent = call(16_000, OTHER, (10 * S, 1 * S))
    came = [(*one[:2], OPUS if i < 25 else OTHER, *one[3:]) for i, one in enumerate(sent[:156])]
    stream = hear(meter, came)
    assert (stream.payload_type, stream.clock_hz) == (OTHER, 16_000)


def test_a_stall_once_the_clock_is_known(meter: TwinMeter) -> None:
    """Among silences, which are not stalls. What TCP held back comes at once."""
    sent = call(48_000, OPUS, (1_200 * MS, 1_600 * MS), OPUS)
    talk_us = 5 * 2_800 * MS
    came = [(max(one[0], talk_us + 800 * MS) if talk_us + 400 * MS <= one[0] else one[0], *one[1:]) for one in sent]
    stream = hear(meter, came)
    assert (stream.stalls, stream.longest_pause_us, stream.lost) == (1, 420 * MS, 0)


def test_an_outage_is_a_stall_and_a_lost_beginning_is_not(meter: TwinMeter) -> None:
    """Three packets lost after a pause of 1.6 s leave it a silence; half a second of voice lost is more than one."""
    sent = call(48_000, OPUS, (2_400 * MS, 1_600 * MS))
    words = [i for i, one in enumerate(sent) if one[4]]
    beginning = {words[3], words[3] + 1, words[3] + 2}
    came = [one for i, one in enumerate(sent) if i not in beginning]
    assert hear(meter, came).stalls == 0
    outage = range(20, 45)
    after = call(48_000, OPUS, (2_400 * MS, 1_600 * MS))[:100]
    last = sent[-1]
    later = [
        (last[0] + FRAME_US + one[0], (last[1] + 1 + i) % 65_536, OPUS, (last[3] + 960 * (1 + i)) % 2**32, False)
        for i, one in enumerate(after)
        if i not in outage
    ]
    assert hear(meter, later).stalls == 1


@pytest.mark.parametrize("stall_ms", [260, 333, 500, 600, 875, 1_000])
@pytest.mark.parametrize("every_ms", [1_100, 1_500, 2_000, 2_700])
def test_stalls_again_and_again_do_not_mislead_the_guess(meter: TwinMeter, stall_ms: int, every_ms: int) -> None:
    came = [
        (one[0] + max(0, stall_ms * MS - one[0] % (every_ms * MS)), *one[1:])
        for one in call(48_000, OPUS, (CALL_US, 1 * S))
    ]
    assert {hear(meter, [one]).clock_hz for one in came} <= {0, 48_000}


@pytest.mark.parametrize("talk_ms", [500, 1_000, 1_200, 3_000])
@pytest.mark.parametrize("pause_ms", [500, 1_000, 2_000, 5_000])
def test_timestamps_that_stand_still_do_not_mislead_the_guess(meter: TwinMeter, talk_ms: int, pause_ms: int) -> None:
    turn_us = talk_ms * MS + pause_ms * MS
    sent = call(48_000, OPUS, (talk_ms * MS, pause_ms * MS))
    stood = [(*one[:3], (one[3] - one[0] // turn_us * pause_ms * 48) % 2**32, one[4]) for one in sent]
    clocks = {hear(meter, [one]).clock_hz for one in stood}
    assert clocks == ({0, 48_000} if talk_ms == 3_000 else {0})
