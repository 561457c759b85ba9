"""A token bucket for each source address, in bounded memory; sans-I/O."""

from __future__ import annotations

from collections import OrderedDict

# Beyond this many sources, the one that asked longest ago is forgotten. 2,048 entries take 0.4 MB: whoever invents
# sources gets no more of ours.
MAX_SOURCES = 2048
# Of a grant: sums of seconds are not exact, and a source within its rate is never refused.
ROUNDING = 1e-6


class RateLimit:
    """At most ``per_second`` grants a second for each source, and at most as many at once. 0 grants everything.

    ``per_second`` may be less than one. Then there is one grant at once.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._burst = max(per_second, 1.0)
        # When the bucket of each source will be full again. One number says as much as its tokens and their time.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def allows(self, now: float, source: str) -> bool:
        """Take one grant for the source, if there is one."""
        if not self.per_second:
            return True
        full_at = max(self._full_at.pop(source, now), now)
        granted = self._burst - (full_at - now) * self.per_second >= 1 - ROUNDING
        self._full_at[source] = full_at + granted / self.per_second
        if len(self._full_at) > MAX_SOURCES:
            self._full_at.popitem(last=False)
        return granted

    def give_back(self, source: str) -> None:
        """Give back a grant that was not needed."""
        if source in self._full_at:
            self._full_at[source] -= 1 / self.per_second
