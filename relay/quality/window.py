"""How one stream sounded between two readings of its figures: what was missing, R factor and MOS.

The codec is a guess from the payload type. Of the way through the network only what the caller knows counts. While the
clock of a stream is not known nobody can say what was late, so there is no score; and none of a handful of packets.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.quality import emodel
from relay.quality.playout import DEFAULT_DEADLINE_MS
from relay.quality.stream import RtpStream

# 0.2 s of voice.
LEAST_EXPECTED = 10
# RFC 3551: PCMU and PCMA.
_G711_PAYLOAD_TYPES = frozenset({0, 8})


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """One stream between two readings. ``expected`` = ``received`` + ``lost``; the late ones are among the received.

    ``missing_percent`` is None if nothing was expected; ``r`` and ``mos`` are None also where too little is known.
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


def codec_of(payload_type: int) -> emodel.Codec:
    """The codec that a payload type is taken for; ``provisional`` where that is a guess."""
    return emodel.G711_CONCEALED if payload_type in _G711_PAYLOAD_TYPES else emodel.OPUS


def stream_window(
    earlier: RtpStream | None,
    later: RtpStream,
    deadline_ms: float = DEFAULT_DEADLINE_MS,
    network_ms: float = 0.0,
) -> StreamWindow:
    """What came between two readings of one stream, or up to the first."""
    if earlier is not None and (earlier.packets > later.packets or earlier.expected > later.expected):
        earlier = None  # it made room for others, and came back
    received = _unique(later) - (_unique(earlier) if earlier else 0)
    lost = max(0, later.expected - (earlier.expected if earlier else 0) - received)
    late = min(received, later.late - (earlier.late if earlier else 0))
    runs = later.missing_runs - (earlier.missing_runs if earlier else 0)
    expected, missing = received + lost, lost + late
    percent = 100 * missing / expected if expected else None
    bursts = max(1.0, missing / max(1, runs) * (expected - missing) / expected) if missing else 1.0
    codec, r = codec_of(later.payload_type), None
    if percent is not None and expected >= LEAST_EXPECTED and later.clock_hz > 0:
        delay_ms = emodel.mouth_to_ear_ms(network_ms, deadline_ms)
        r = 0.0 if missing == expected else emodel.r_factor(codec, delay_ms, percent, bursts)
    score = None if r is None else emodel.mos(r)
    jitter_ms = later.jitter_us / 1000
    return StreamWindow(expected, received, lost, late, percent, bursts, jitter_ms, r, score, codec)


def _unique(stream: RtpStream) -> int:
    return stream.packets - stream.duplicates
