"""One timer for the ``next_deadline()`` of a state machine, on any asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """Calls ``on_deadline(now)`` once when the deadline that was set last has come, never with an earlier ``now``."""

    def __init__(self, on_deadline: Callable[[float], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_deadline = on_deadline
        self._deadline: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, deadline: float | None) -> None:
        """Wait for this time of the loop's clock, in seconds, instead of the one before; None waits for nothing."""
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
        # uvloop rounds to milliseconds and may be early by half of one: a state machine would find nothing due.
        self._on_deadline(max(deadline, self._loop.time()))
