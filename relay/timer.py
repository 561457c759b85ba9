"""One timer for the ``next_deadline()`` of a state machine, on any asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """Calls ``on_deadline(now)`` once when the last deadline that was set has come. ``now`` is never before it."""

    def __init__(self, on_deadline: Callable[[float], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_deadline = on_deadline
        self._deadline: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, deadline: float | None) -> None:
        """Wait for this time of the loop's clock, in seconds, and for no other. None: wait for nothing."""
        if deadline == self._deadline:
            return
        self.cancel()
        if deadline is not None:
            self._deadline = deadline
            self._handle = self._loop.call_at(deadline, self._fire, deadline)

    def cancel(self) -> None:
        """Wait for nothing."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._deadline = None

    def _fire(self, deadline: float) -> None:
        self._handle = self._deadline = None
        # uvloop rounds to milliseconds, so it may be half a millisecond early. A state machine would then find nothing
        # due.
        self._on_deadline(max(deadline, self._loop.time()))
