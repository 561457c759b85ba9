"""A token bucket for each source address, in bounded memory; sans-I/O."""

from __future__ import annotations

from collections import OrderedDict

# Beyond this many sources, the one that asked longest ago is forgotten. 4096 entries take about half a megabyte.
MAX_SOURCES = 4096


class RateLimit:
    """At most ``per_second`` grants a second for each source, and at most as many at once. 0 grants everything.

    ``per_second`` may be less than one. Then there is one grant at once.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._burst = max(per_second, 1.0)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, now: float, source: str) -> bool:
        """Take one grant for the source, if there is one."""
        if not self.per_second:
            return True
        tokens, since = self._buckets.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self.per_second)
        granted = tokens >= 1
        self._buckets[source] = (tokens - granted, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return granted

    def give_back(self, source: str) -> None:
        """Give back a grant that was not needed."""
        if source in self._buckets:
            tokens, since = self._buckets[source]
            self._buckets[source] = (min(self._burst, tokens + 1), since)
