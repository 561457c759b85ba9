"""One clock for all voice of a process: each 20 ms it lets every speaker send, by absolute deadlines.

A late tick does not make the next ones late. One task serves thousands of streams, which a task for each could not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from relay.emulator.softphone.voice import PACKETS_PER_SECOND
from relay.rate_limit import RateLimit
from relay.tasks import Tasks

log = structlog.get_logger()

TICK_S = 1 / PACKETS_PER_SECOND
# After a pause of the machine, ticks older than this are not made up for: a burst would only be dropped.
MAX_BEHIND_S = 0.5

OnTick = Callable[[], None]


class Pacer:
    """Calls each ``on_tick`` every 20 ms, while there is one. ``skipped`` counts ticks that were not made up for."""

    def __init__(self) -> None:
        self._on_ticks: dict[OnTick, None] = {}
        self._tasks = Tasks()
        self._failures = RateLimit(1.0)
        self._running: asyncio.Task[None] | None = None
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._on_ticks)

    def add(self, on_tick: OnTick) -> None:
        """Begin to call it."""
        self._on_ticks[on_tick] = None
        if self._running is None or self._running.done():
            self._running = self._tasks.start(self._run(), "pacer")

    def discard(self, on_tick: OnTick) -> None:
        """No longer call it."""
        self._on_ticks.pop(on_tick, None)

    async def close(self) -> None:
        """Stop for good."""
        self._on_ticks.clear()
        await self._tasks.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._on_ticks:
            for on_tick in list(self._on_ticks):
                self._tick(loop.time(), on_tick)
            due += TICK_S
            if (behind := loop.time() - due) > MAX_BEHIND_S:
                missed = int(behind / TICK_S)
                self.skipped += missed
                due += missed * TICK_S
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _tick(self, now: float, on_tick: OnTick) -> None:
        """One speaker that fails must not silence the others."""
        try:
            on_tick()
        except Exception as error:
            if self._failures.allows(now, "tick"):
                log.error("speaker failed", exc_info=error)
