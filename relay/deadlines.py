"""``asyncio.timeout`` as Python 3.11.4 has it, on each 3.11.

Before, a deadline that came while its task was being cancelled raised CancelledError instead of TimeoutError
(python/cpython issue 102780). What ends processes and connections in good order was then broken off half-way, which
Debian 12's Python 3.11.2 does.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """Cancels the block at a time of the loop's clock, and raises TimeoutError then. None: never."""

    def __init__(self, when: float | None) -> None:
        self._timeout = asyncio.Timeout(when)
        self._task: asyncio.Task[object] | None = None
        self._cancelled_before = 0

    def reschedule(self, when: float | None) -> None:
        """Move it."""
        self._timeout.reschedule(when)

    def when(self) -> float | None:
        """The time of the loop's clock, or None."""
        return self._timeout.when()

    def expired(self) -> bool:
        """True if it has come."""
        return self._timeout.expired()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._task = asyncio.current_task()
        self._cancelled_before = 0 if self._task is None else self._task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, traceback)
        if not self._timeout.expired() or not isinstance(error, asyncio.CancelledError) or self._task is None:
            return
        # Somebody else may have cancelled the task as well.
        if self._task.cancelling() <= self._cancelled_before:
            raise TimeoutError from error


def timeout(delay_s: float | None) -> Deadline:
    """For ``async with``: TimeoutError after ``delay_s`` seconds. None: never."""
    return Deadline(None if delay_s is None else asyncio.get_running_loop().time() + delay_s)


def timeout_at(when: float | None) -> Deadline:
    """For ``async with``: TimeoutError at a time of the loop's clock. None: never."""
    return Deadline(when)
