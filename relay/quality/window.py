"""How a few seconds of a stream sounded: loss, lateness, R factor and MOS from two readings of the meter.

A relay is in the middle. This is what it does not know, and what it does instead:

Delay       It does not see the one-way delay. It adds up what is known: the network delay that the caller gives (half
            of TCP's round trip to the client, for example), the playout deadline and the packetisation. The rest of the
            way counts as 0. If that is long, the score is too good.
Codec       SRTP hides it. Payload types 0 and 8 are G.711. Any other is assumed to be Opus, whose values are
            provisional; see ``emodel``.
Silence     If nothing comes, a stream may be silent, on hold, or cut off: the stream alone does not say which. So such
            a window is None, not 1, and ``RtpStream.idle_us`` says how long it lasts. When the stream goes on, its
            sequence numbers say what was lost or late, and this counts in the window in which it goes on.
Lateness    Over TCP packets are not lost, but late. Without the clock of a stream, lateness is not known, so there is
            no score.
Few packets Fewer than 10 packets are not speech, and have no score: a stray packet is neither a good call nor a bad
one.
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
    """One stream between two readings. ``expected`` = ``received`` + ``lost``; late packets are among the received.

    ``received`` leaves out duplicates. ``missing_percent`` is None if nothing was expected. ``r`` and ``mos`` are None,
    too, if not enough is known for a score. ``jitter_ms`` is the value at the window's end, 0 while the clock is not
    known.
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
    """The windows of a call that have a score. If none has, both are None."""

    mos_min: float | None
    mos_mean: float | None


def codec_of(payload_type: int) -> emodel.Codec:
    """The codec that a payload type is assumed to be, ``provisional`` if this is a guess."""
    return emodel.G711_CONCEALED if payload_type in _G711_PAYLOAD_TYPES else emodel.OPUS


def stream_window(
    earlier: RtpStream | None,
    later: RtpStream,
    deadline_ms: float = DEFAULT_DEADLINE_MS,
    network_ms: float = 0.0,
    packetisation_ms: float = emodel.PACKETISATION_MS,
) -> StreamWindow:
    """What came between two readings, or up to the first. ``deadline_ms`` must be the meter's.

    If the meter forgot the stream in between and met it again, only what is known since then counts. Raises ValueError
    for readings of two streams, and for delays whose sum is negative or not a number.
    """
    if earlier is not None and (earlier.ssrc, earlier.direction) != (later.ssrc, later.direction):
        raise ValueError(f"readings of two streams: {earlier.direction} {earlier.ssrc}, {later.direction} {later.ssrc}")
    before = earlier if earlier is not None and _continues(earlier, later) else None
    received = _unique(later) - (_unique(before) if before else 0)
    # A gap that a reordered packet fills only now was counted as lost in the window before.
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
    """The worst window, and the mean of all that have a score. All count alike, because they are equally long."""
    scores = [window.mos for window in windows if window.mos is not None]
    if not scores:
        return CallScore(None, None)
    return CallScore(min(scores), sum(scores) / len(scores))


def _unique(stream: RtpStream) -> int:
    return stream.packets - stream.duplicates


def _continues(earlier: RtpStream, later: RtpStream) -> bool:
    """Whether no figure went back. One does if the meter gave the stream's place to another in between."""
    return (
        later.packets >= earlier.packets
        and later.duplicates >= earlier.duplicates
        and _unique(later) >= _unique(earlier)
        and later.expected >= earlier.expected
        and later.late >= earlier.late
        and later.missing_runs >= earlier.missing_runs
    )


def _burst_ratio(expected: int, missing: int, runs: int) -> float:
    """BurstR of G.107 section 7.5, as in ``playout.burst_ratio``. A run from the window before counts here, too."""
    if not missing:
        return 1.0
    return max(1.0, missing / max(1, runs) * (expected - missing) / expected)
