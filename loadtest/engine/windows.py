"""What the engine has counted in a window of time, as Python has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# In the order of ``windows.pxd``.
COUNTERS = (
    "sent",
    "unsent",
    "received",
    "lost",
    "expired",
    "late",
    "duplicate",
    "reordered",
    "corrupt",
    "misrouted",
    "foreign",
    "stalls",
    "untold",
)
# A generator that is this late says nothing about a server: a tenth of what a listener notices.
MAX_LATENESS_P99_US = 5000


class Histogram(Counter[int]):
    """How many values there were, by the greatest of their bucket, in microseconds. They add up, as counters do."""

    def percentile(self, percent: float) -> int | None:
        """The value that so many percent do not exceed; None if there is none at all."""
        wanted, seen = self.total() * percent / 100, 0
        for edge in sorted(self):
            seen += self[edge]
            if seen >= wanted:
                return edge
        return None


@dataclass(frozen=True)
class Window:
    """A window of time. ``lateness`` is the engine's own, ``delay`` that of packets, ``jitter`` as in RFC 3550."""

    seconds: float
    cpu_seconds: float
    counters: Mapping[str, int]
    delay: Histogram = field(repr=False)
    lateness: Histogram = field(repr=False)
    jitter: Histogram = field(repr=False)

    @property
    def valid(self) -> bool:
        """False if the engine was too late to judge anybody."""
        return (self.lateness.percentile(99) or 0) <= MAX_LATENESS_P99_US
