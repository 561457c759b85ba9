"""How long packets waited: a histogram of powers of two, small enough for each flow to have one."""

from __future__ import annotations

from relay.plane.api import Latency

# The first bucket ends here. No packet waits on purpose for less.
FIRST_END_US = 128
# The last bucket ends at 2^24 us, 17 s, and takes everything longer: TCP gives up a client after 30 s.
BUCKETS = 18


class Delays:
    """Counts delays in microseconds."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._sum_us = 0

    def record(self, delay_us: int) -> None:
        """Count one packet; a clock that went back counts as no delay."""
        delay_us = max(delay_us, 0)
        self._counts[min((delay_us // FIRST_END_US).bit_length(), BUCKETS - 1)] += 1
        self._sum_us += delay_us

    def add(self, other: Delays) -> None:
        """Add another's packets to these."""
        self._counts = [one + more for one, more in zip(self._counts, other._counts, strict=True)]
        self._sum_us += other._sum_us

    def latency(self) -> Latency:
        """The histogram as it is now."""
        filled = tuple((FIRST_END_US << bucket, count) for bucket, count in enumerate(self._counts) if count)
        return Latency(filled, self._sum_us)
