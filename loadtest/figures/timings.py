"""How long things took: histograms of microseconds that add up, and counts of what failed, by cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loadtest.engine.windows import Histogram

# Causes are words of ours. A server's words may be in them, so their number is bounded: the rest is "other".
MAX_CAUSES = 50
MAX_CAUSE_CHARACTERS = 200


@dataclass
class Timing:
    """One thing that users do: how long it took, and how it failed."""

    took: Histogram = field(default_factory=Histogram)
    failures: Counter[str] = field(default_factory=Counter)

    def note(self, seconds: float) -> None:
        """It was done."""
        self.took.record(seconds)

    def note_failure(self, cause: str) -> None:
        """It failed."""
        count_cause(self.failures, cause)

    def add(self, other: Timing) -> None:
        """Add what others have seen."""
        self.took.update(other.took)
        for cause, count in other.failures.items():
            count_cause(self.failures, cause, count)

    @property
    def failed(self) -> int:
        """How often it failed."""
        return self.failures.total()

    @property
    def count(self) -> int:
        """How often it was tried."""
        return self.took.total() + self.failed

    def milliseconds(self, percent: float) -> float | None:
        """A percentile; None if it was never done."""
        found = self.took.percentile(percent)
        return None if found is None else found / 1000

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"took": pairs(self.took), "failures": dict(self.failures)}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Timing:
        """What ``plain`` made."""
        return cls(histogram(plain["took"]), Counter(plain["failures"]))


def count_cause(counts: Counter[str], cause: str, count: int = 1) -> None:
    """Count a cause. Beyond the bound it is "other"."""
    cause = cause[:MAX_CAUSE_CHARACTERS]
    counts[cause if cause in counts or len(counts) < MAX_CAUSES else "other"] += count


def pairs(found: Histogram) -> list[list[int]]:
    """A histogram for JSON, whose keys are texts."""
    return [[edge, found[edge]] for edge in sorted(found)]


def histogram(found: list[list[int]]) -> Histogram:
    """What ``pairs`` made."""
    made = Histogram()
    for edge, count in found:
        made[int(edge)] += int(count)
    return made
