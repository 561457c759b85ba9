"""Pauses of accepting: newcomers wait in the kernel's queue, and calls go on. Each is counted, and some are logged."""

from __future__ import annotations

from collections import Counter

from relay.gateway import descriptors
from relay.gateway.lines import Lines
from relay.plane.api import AcceptPaused, PauseCause

# For each cause. Pauses come ten times a second, and one line says it all.
LINES_PER_S = 0.1


class Pauses:
    """``counts`` has how many there were, by cause. While ``memory_is_short``, listeners of control pause as well."""

    def __init__(self) -> None:
        self.counts: Counter[PauseCause] = Counter()
        self.memory_is_short = False
        self._lines = Lines(LINES_PER_S)

    def note(self, paused: AcceptPaused, listener: str = "tls") -> None:
        """Count a pause of a listener, and log it."""
        self.counts[paused.cause] += 1
        cause, told = paused.cause.value, {"listener": listener, "detail": paused.detail}
        if paused.cause is PauseCause.DESCRIPTORS:
            told |= {"limit": str(descriptors.limit()), "kept_for_operators": str(descriptors.reserved())}
        self._lines.warning("clients wait to be accepted", cause, cause=cause, **told)
