"""The search for the knee: the most calls that a target carries. Pure: it says what to try next.

It doubles until something breaks, halves the gap until that is small, and then tries around the knee again and
again. One try says little on a machine that does other things, too: what has broken is tried again at once, and a level
has held if most of its tries have.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

# The gap between what held and what broke, at which the search is over.
GAP_PERCENT = 5.0


class Outcome(StrEnum):
    """What came of a try."""

    HELD = "held"
    BROKE = "broke"
    # The generator was too late to judge anybody.
    VOID = "void"


@dataclass
class Search:
    """From ``first`` calls to at most ``most``; each level around the knee is tried ``repeats`` times."""

    first: int
    most: int
    repeats: int = 3
    tries: dict[int, Counter[Outcome]] = field(default_factory=dict)

    def next(self) -> int | None:
        """How many calls to try now; None when all is known."""
        held, failed = self.knee, self.lowest_failure
        if failed is not None and not self._is_decided(failed):
            return failed
        if failed is None:
            wanted = min(self.most, 2 * held) if held else self.first
            return self._again(held) if wanted == held else wanted
        if not held:
            lower = failed // 2
            return lower if lower and lower not in self.tries else self._again(failed)
        if (failed - held) * 100 > GAP_PERCENT * failed and (held + failed) // 2 not in {held, failed}:
            return (held + failed) // 2
        return self._again(held, failed)

    def note(self, calls: int, outcome: Outcome) -> None:
        """What came of a try."""
        self.tries.setdefault(calls, Counter())[outcome] += 1

    @property
    def knee(self) -> int:
        """The most calls that held, below anything that did not; 0 if none did."""
        failed = self.lowest_failure
        return max((calls for calls in self.tries if self._holds(calls) and (not failed or calls < failed)), default=0)

    @property
    def lowest_failure(self) -> int | None:
        """The fewest calls that did not hold."""
        return min((calls for calls in self.tries if not self._holds(calls)), default=None)

    @property
    def limit(self) -> str:
        """Whose the knee is: the target's, the generator's, or the search's."""
        failed = self.lowest_failure
        if failed is None:
            return "search"
        outcomes = self.tries[failed]
        return "generator" if outcomes[Outcome.VOID] > outcomes[Outcome.BROKE] else "target"

    def _holds(self, calls: int) -> bool:
        outcomes = self.tries[calls]
        return 2 * outcomes[Outcome.HELD] > outcomes.total()

    def _is_decided(self, calls: int) -> bool:
        outcomes = self.tries[calls]
        return outcomes.total() > 1 and 2 * outcomes[Outcome.HELD] != outcomes.total()

    def _again(self, *levels: int) -> int | None:
        """The level of these that was tried the least, if that is not often enough."""
        fewest = min(levels, key=lambda calls: self.tries[calls].total())
        return fewest if self.tries[fewest].total() < self.repeats else None
