"""How the parts of a cloud end: each has a deadline, and so has the whole. What does not end by then is left and named.

The process is about to end, so that costs nothing. To wait on would make a supervisor kill it, and nobody would know
for what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

# A client that does not read has 5 s to hear why it is closed.
PART_S = 6.0
# Supervisors kill after 10 s (containers) to 90 s (systemd).
WHOLE_S = 9.0
# A part whose turn comes after that, and one that is cancelled.
LAST_S = 0.2


class Stopping:
    """One end. The time of the whole runs from the first part on."""

    def __init__(self) -> None:
        self._end: float | None = None

    async def part(
        self, name: str, stop: Callable[[], Coroutine[Any, Any, None]], left: Callable[[], int] | None = None
    ) -> None:
        """Stop a part, or leave it. ``left`` counts what it would leave. What ``stop`` raises is raised."""
        now = asyncio.get_running_loop().time()
        if self._end is None:
            self._end = now + WHOLE_S
        task = asyncio.ensure_future(stop())
        timeout_s = max(LAST_S, min(PART_S, self._end - now))
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if done:
            task.result()
            return
        counted = {} if left is None else {"left": left()}
        log.warning("a part does not stop: it is left", part=name, waited_s=round(timeout_s, 1), **counted)
        task.add_done_callback(_note)
        task.cancel()
        await asyncio.wait({task}, timeout=LAST_S)


def _note(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("a part that was left has failed", error=repr(error))
