"""The playout of one received stream, computed afterwards: what a listener heard of it, and its score.

Over TCP packets are not lost, but late. A receiver plays each packet a fixed time after it was sent. If the packet is
not there by then, the listener hears silence, no matter whether it was lost or came a second later. So both count as
missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from relay.quality import emodel

# How long the receiver's jitter buffer waits beyond the fastest packet. 40, 60 and 100 ms are usual. A shorter buffer
# loses more packets to jitter, a longer one is heard as delay.
DEFAULT_DEADLINE_MS = 60.0


@dataclass(frozen=True, slots=True)
class Playout:
    """What became of one stream. A figure that cannot be known is None, never a good one.

    ``sent`` = ``received`` + ``lost``, and ``late`` packets are among the received. The delays are one-way, through the
    network, of all packets that came, including late ones. Both are None if nothing came. ``missing_percent``, ``r``
    and ``mos`` are None if nothing was sent. ``burst_ratio`` is BurstR of G.107, at least 1.
    """

    sent: int
    received: int
    late: int
    lost: int
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    missing_percent: float | None
    burst_ratio: float
    r: float | None
    mos: float | None
    codec: emodel.Codec

    @property
    def missing(self) -> int:
        """Packets that were not there to be played: late or lost."""
        return self.late + self.lost


def play(
    delays_ms: Sequence[float | None],
    codec: emodel.Codec = emodel.G711_CONCEALED,
    deadline_ms: float = DEFAULT_DEADLINE_MS,
) -> Playout:
    """Play a stream.

    ``delays_ms`` has for each packet sent, in the order of sending, its one-way delay, or None if it never came. Both
    ends must have read one clock. A packet is late if its delay is more than ``deadline_ms`` above the least delay.
    Raises ValueError for a delay or deadline that is negative or not finite.
    """
    arrived_ms = sorted(delay for delay in delays_ms if delay is not None)
    _require_durations([deadline_ms, *arrived_ms])
    # If nothing came, there is no least delay, and nothing is late.
    least_ms = arrived_ms[0] if arrived_ms else 0.0
    absent = [delay is None or delay > least_ms + deadline_ms for delay in delays_ms]
    sent, received = len(delays_ms), len(arrived_ms)
    missing_percent = 100 * sum(absent) / sent if sent else None
    bursts = burst_ratio(absent)
    # The jitter buffer delays each packet so that all are played after the same time.
    r = scored_r(codec, emodel.mouth_to_ear_ms(least_ms, deadline_ms), missing_percent, bursts)
    return Playout(
        sent=sent,
        received=received,
        late=sum(absent) - (sent - received),
        lost=sent - received,
        delay_p50_ms=nearest_rank(arrived_ms, 50),
        delay_p99_ms=nearest_rank(arrived_ms, 99),
        missing_percent=missing_percent,
        burst_ratio=bursts,
        r=r,
        mos=None if r is None else emodel.mos(r),
        codec=codec,
    )


def nearest_rank(ascending: Sequence[float], percent: int) -> float | None:
    """The smallest value that ``percent`` (1 to 100) of the values do not exceed, or None if there are none."""
    if not ascending:
        return None
    rank = -(-percent * len(ascending) // 100)
    return ascending[rank - 1]


def burst_ratio(absent: Sequence[bool]) -> float:
    """BurstR of G.107 section 7.5: the mean length of runs of missing packets, divided by that of random losses.

    Random losses at the same rate p have runs of 1 / (1 - p) packets on average. A ratio below 1 means that losses are
    more even than by chance, and counts as 1. So does a stream without losses, and one where all is lost.
    """
    runs = sum(1 for is_absent, _ in groupby(absent) if is_absent)
    if not runs:
        return 1.0
    missing = sum(absent)
    mean_run = missing / runs
    present_share = (len(absent) - missing) / len(absent)
    return max(1.0, mean_run * present_share)


def scored_r(codec: emodel.Codec, mouth_to_ear_ms: float, missing_percent: float | None, bursts: float) -> float | None:
    """R of a stream, or None if nothing was sent (``missing_percent`` is None). ValueError as in ``emodel``."""
    if missing_percent is None:
        return None
    if missing_percent == 100:
        # The formula would give R 17 to a silent line with concealment. It is not meant for lines without voice.
        return 0.0
    return emodel.r_factor(codec, mouth_to_ear_ms, missing_percent, bursts)


def _require_durations(values_ms: Sequence[float]) -> None:
    for value_ms in values_ms:
        if not 0 <= value_ms < math.inf:
            raise ValueError(f"{value_ms} ms, expected a delay or deadline of 0 or more; None stands for a lost packet")
