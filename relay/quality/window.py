"""How one stream sounded between two readings of its figures: what was missing, R factor and MOS."""

from __future__ import annotations

from dataclasses import dataclass

from relay.quality import emodel
from relay.quality.playout import DEFAULT_DEADLINE_MS
from relay.quality.stream import RtpStream


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """What came of one stream in a window. A figure that nothing supports is None, never a good one.

    The late packets are among the received; ``missing_percent`` counts the late and the lost.
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


def judge(
    earlier: RtpStream | None,
    later: RtpStream,
    codec: emodel.Codec = emodel.G711_CONCEALED,
    deadline_ms: float = DEFAULT_DEADLINE_MS,
) -> StreamWindow:
    """Score what a stream did between two readings, or since its first packet if there is no earlier one.

    Of the delay only the jitter buffer is known, ``deadline_ms``: the way through the network is not seen.
    """
    expected = later.expected - (earlier.expected if earlier else 0)
    lost = max(0, later.lost - (earlier.lost if earlier else 0))
    late = later.late - (earlier.late if earlier else 0)
    runs = later.missing_runs - (earlier.missing_runs if earlier else 0)
    lost, received = min(lost, max(expected, 0)), max(0, expected - lost)
    missing = min(expected, lost + late)
    if expected <= 0:
        return StreamWindow(0, 0, 0, 0, None, 1.0, later.jitter_us / 1000, None, None)
    percent = 100 * missing / expected
    burst_ratio = max(1.0, missing / runs * (1 - missing / expected)) if runs > 0 else 1.0
    delay_ms = emodel.mouth_to_ear_ms(0.0, deadline_ms)
    r = 0.0 if missing == expected else emodel.r_factor(codec, delay_ms, percent, burst_ratio)
    return StreamWindow(
        expected, received, lost, late, percent, burst_ratio, later.jitter_us / 1000, r, emodel.mos(r)
    )
