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
    "runs",
    "reflected",
    "forged",
    "dirty_padding",
    "untold",
)
# A generator that is this late says nothing about a server: a tenth of what a listener notices.
MAX_LATENESS_P99_US = 5000


# As windows.pxd has it: exact below 128 us, and then each power of two in 128 equal parts.
PART_BITS = 7
MAX_US = (1 << 32) - 1
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}


def bucket_edge(us: int) -> int:
    """The greatest value in the bucket of this one: a percentile never flatters."""
    us = min(max(us, 0), MAX_US)
    octave = max(0, us.bit_length() - 1 - PART_BITS)
    return ((us >> octave) + 1 << octave) - 1


class Histogram(Counter[int]):
    """How many values there were, by the greatest of their bucket, in microseconds. They add up, as counters do."""

    def record(self, seconds: float) -> None:
        """One value more."""
        self[bucket_edge(int(seconds * 1e6))] += 1

    def percentiles(self) -> dict[str, int] | None:
        """Those that are usual; None without measurements, so that nobody takes them for good ones."""
        found = {name: self.percentile(percent) for name, percent in PERCENTILES.items()}
        return {name: us for name, us in found.items() if us is not None} or None

    def percentile(self, percent: float) -> int | None:
        """The value that this many percent do not exceed; None if there is none at all."""
        wanted, seen = self.total() * percent / 100, 0
        for edge in sorted(self):
            seen += self[edge]
            if seen >= wanted:
                return edge
        return None


@dataclass(frozen=True)
class StreamTotals:
    """What has been counted of a stream since it began. ``runs`` are packets in a row that were lost or late."""

    sent: int
    unsent: int
    received: int
    lost: int
    late: int
    duplicate: int
    reordered: int
    runs: int
    delay_sum_s: float
    max_delay_s: float
    jitter_s: float

    @property
    def mean_delay_s(self) -> float:
        """Of the packets that were received."""
        return self.delay_sum_s / self.received if self.received else 0.0


def stream_totals(values: tuple[int, ...]) -> StreamTotals:
    """In the order of ``Totals`` of ``engine.pxd``, and then the jitter."""
    sent, unsent, received, lost, late, duplicate, reordered, runs = values[:8]
    delay_sum_s, max_delay_s, jitter_s = (us / 1e6 for us in values[8:])
    counts = sent, unsent, received, lost, late, duplicate, reordered, runs
    return StreamTotals(*counts, delay_sum_s, max_delay_s, jitter_s)


@dataclass(frozen=True)
class Window:
    """A window of time. ``lateness`` is the engine's own, ``delay`` that of packets, ``jitter`` as in RFC 3550.

    ``streams`` has the totals of streams that go on, by their number, if they were asked for.
    """

    seconds: float
    cpu_seconds: float
    counters: Mapping[str, int]
    delay: Histogram = field(repr=False)
    lateness: Histogram = field(repr=False)
    jitter: Histogram = field(repr=False)
    streams: Mapping[int, StreamTotals] = field(repr=False, default_factory=dict)

    @property
    def valid(self) -> bool:
        """False if the engine was too late to judge anybody."""
        return (self.lateness.percentile(99) or 0) <= MAX_LATENESS_P99_US
