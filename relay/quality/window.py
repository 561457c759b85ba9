"""What a few seconds of a stream sounded like: two readings of the meter to loss, lateness, R factor and MOS.

A relay is in the middle, and this is what it does not know, and does instead:

Delay       It sees no one-way delay. What is known is added up: the network as the caller knows it (half of TCP's
            round trip to the client, say), the playout deadline and the packetisation. The rest of the way counts as 0,
            so the score is an upper bound where that is long.
Codec       SRTP hides it. Payload types 0 and 8 are G.711, and any other is taken for Opus, whose values are
            provisional; see ``emodel``.
Silence     A stream of which nothing comes may be silent, held, or cut off: it alone does not tell. So such a window is
            None, not 1; ``RtpStream.idle_us`` says for how long. When the stream goes on, its sequence numbers tell,
            and all that was lost or late counts in the window in which it does.
Lateness    Over TCP nothing is lost, it is late. While the clock of a stream is not known, neither is that: no score.
Few packets Fewer than 10 are no speech, and have no score: a stray packet is neither a good call nor a bad one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.quality import emodel
from relay.quality.playout import DEFAULT_DEADLINE_MS, scored_r
from relay.quality.stream import RtpStream

# 0.2 s of voice.
MIN_EXPECTED = 10
# RFC 3551: PCMU and PCMA.
_G711_PAYLOAD_TYPES = frozenset({0, 8})


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """One stream between two readings. ``expected`` = ``received`` + ``lost``; the late ones are among the received.

    ``received`` leaves duplicates out. ``missing_percent`` is None if nothing was expected; ``r`` and ``mos`` are None
    also where too little is known for a score. ``jitter_ms`` is as of the window's end; 0 while the clock is not known.
    """

    expected: int
    received: int
    lost: int
    late: int
    missing_percent: float | None
    burst_ratio: float
    jitter_ms: float
    r: float | None
    mos: float | None
    codec: emodel.Codec


@dataclass(frozen=True, slots=True)
class CallScore:
    """The windows of a call that have a score; without one, both are None."""

    mos_min: float | None
    mos_mean: float | None


def codec_of(payload_type: int) -> emodel.Codec:
    """The codec that a payload type is taken for; ``provisional`` where that is a guess."""
    return emodel.G711_CONCEALED if payload_type in _G711_PAYLOAD_TYPES else emodel.OPUS


def stream_window(
    earlier: RtpStream | None,
    later: RtpStream,
    deadline_ms: float = DEFAULT_DEADLINE_MS,
    network_ms: float = 0.0,
    packetisation_ms: float = emodel.PACKETISATION_MS,
) -> StreamWindow:
    """What came between two readings, or up to the first. ``deadline_ms`` is the one that the meter counted with.

    Where the meter forgot the stream in between and met it again, only what is known since counts. Raises ValueError
    for readings of two streams, and for delays that add up to less than 0 or to no number.
    """
    if earlier is not None and (earlier.ssrc, earlier.direction) != (later.ssrc, later.direction):
        raise ValueError(f"readings of two streams: {earlier.direction} {earlier.ssrc}, {later.direction} {later.ssrc}")
    before = earlier if earlier is not None and _continues(earlier, later) else None
    received = _unique(later) - (_unique(before) if before else 0)
    # What a reordered packet filled had counted as lost in the window before.
    lost = max(0, later.expected - (before.expected if before else 0) - received)
    late = min(received, later.late - (before.late if before else 0))
    runs = later.missing_runs - (before.missing_runs if before else 0)
    codec = codec_of(later.payload_type)
    expected, missing = received + lost, lost + late
    missing_percent = 100 * missing / expected if expected else None
    bursts = _burst_ratio(expected, missing, runs)
    mouth_to_ear_ms = emodel.mouth_to_ear_ms(network_ms, deadline_ms, packetisation_ms)
    is_known = expected >= MIN_EXPECTED and later.clock_hz > 0
    r = scored_r(codec, mouth_to_ear_ms, missing_percent if is_known else None, bursts)
    return StreamWindow(
        expected=expected,
        received=received,
        lost=lost,
        late=late,
        missing_percent=missing_percent,
        burst_ratio=bursts,
        jitter_ms=later.jitter_us / 1_000,
        r=r,
        mos=None if r is None else emodel.mos(r),
        codec=codec,
    )


def call_score(windows: Sequence[StreamWindow]) -> CallScore:
    """The worst window, and the mean of all that have a score, each counting alike: their length is the same."""
    scores = [window.mos for window in windows if window.mos is not None]
    if not scores:
        return CallScore(None, None)
    return CallScore(min(scores), sum(scores) / len(scores))


def _unique(stream: RtpStream) -> int:
    return stream.packets - stream.duplicates


def _continues(earlier: RtpStream, later: RtpStream) -> bool:
    """Whether no figure went back: one does if the meter gave the stream's place to another in between."""
    return (
        later.packets >= earlier.packets
        and later.duplicates >= earlier.duplicates
        and _unique(later) >= _unique(earlier)
        and later.expected >= earlier.expected
        and later.late >= earlier.late
        and later.missing_runs >= earlier.missing_runs
    )


def _burst_ratio(expected: int, missing: int, runs: int) -> float:
    """BurstR of G.107 section 7.5, as in ``playout.burst_ratio``; a run that began in the window before is one here."""
    if not missing:
        return 1.0
    return max(1.0, missing / max(1, runs) * (expected - missing) / expected)
