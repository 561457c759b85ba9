"""When memory is short: looks at the readings once a second, and tells those who then begin nothing new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from relay.gateway.memory.readings import MemoryFiles, Usage

log = structlog.get_logger()

# Within a second handshakes take 50 MB at most: 1,000 of them, with 43 KiB each. That is less than a tenth of any limit
# under which a relay of this size could work.
LOOK_EVERY_S = 1.0
# Memory is short from here on. The last tenth is for what runs: queues of clients that become slow, and the handover to
# another process.
SHORT_SHARE = 0.9
# It is enough again below this. The memory of 1,000 calls lies in between, so that it does not go to and fro.
ENOUGH_SHARE = 0.8
# In percent of the last ten seconds. When all waited for memory for one second, calls were heard to stutter.
SHORT_STALLED_PERCENT = 10.0
# The kernel's mean over ten seconds is this low some 25 s after the last stall.
ENOUGH_STALLED_PERCENT = 1.0


class Shedding(Protocol):
    """What begins nothing new while memory is short."""

    memory_is_short: bool


class MemoryWatch:
    """``run`` it. ``short`` and ``fullest`` are as of the last look."""

    def __init__(
        self, hold: Callable[[bool], None], shedding: Iterable[Shedding] = (), files: MemoryFiles | None = None
    ) -> None:
        """``hold`` lets newcomers of the plane wait, or no longer. ``shedding`` are told by their attribute."""
        self.short = False
        # The usage that is nearest to its limit; None without any limit.
        self.fullest: Usage | None = None
        self._hold = hold
        self._shedding = tuple(shedding)
        self._files = files or MemoryFiles()
        self._max_bytes = 0
        self._watches = True
        self._events = self._files.out_of_memory_events()
        self._signals: list[str] | None = None
        self._short_since = 0.0

    def configure(self, max_bytes: int, *, watches: bool = True) -> None:
        """The process may have this much; 0 for no bound. Unless it ``watches``, memory counts as enough."""
        self._max_bytes, self._watches = max_bytes, watches

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            try:
                self.look()
            except Exception:
                # A mistake of ours must not end the look-out.
                log.exception("memory not read")
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Look once."""
        if not self._watches:
            if self.short:
                self._change(False, None, failed=False)
            return
        usages, stalled, failed = self._usages(), self._files.stalled_percent(), self._has_failed()
        self.fullest = max(usages, key=lambda usage: usage.share, default=None)
        share = 0.0 if self.fullest is None else self.fullest.share
        self._tell_signals(usages, stalled)
        if self.short:
            short = failed or share >= ENOUGH_SHARE or (stalled or 0.0) >= ENOUGH_STALLED_PERCENT
        else:
            short = failed or share >= SHORT_SHARE or (stalled or 0.0) >= SHORT_STALLED_PERCENT
        if short is not self.short:
            self._change(short, stalled, failed=failed)

    def _usages(self) -> list[Usage]:
        usages, resident = self._files.cgroup_usages(), self._files.resident_bytes()
        if self._max_bytes and resident is not None:
            usages.append(Usage("process", resident, self._max_bytes))
        return usages

    def _has_failed(self) -> bool:
        """Whether our control group has found no memory since the last look."""
        before, self._events = self._events, self._files.out_of_memory_events()
        return before is not None and self._events is not None and self._events > before

    def _change(self, short: bool, stalled: float | None, *, failed: bool) -> None:
        self.short = short
        for one in self._shedding:
            one.memory_is_short = short
        self._hold(short)
        fullest, now = self.fullest, asyncio.get_running_loop().time()
        told: dict[str, object] = {"stalled_percent": stalled, "out_of_memory": failed or None}
        if fullest is not None:
            told |= {"of": fullest.of_whom, "used_bytes": fullest.used_bytes, "limit_bytes": fullest.limit_bytes}
        told = {key: value for key, value in told.items() if value is not None}
        if short:
            self._short_since = now
            log.warning("memory is short: newcomers wait, and calls go on", **told)
        else:
            log.info("memory is enough again", seconds=round(now - self._short_since, 1), **told)

    def _tell_signals(self, usages: Sequence[Usage], stalled: float | None) -> None:
        """Log by what memory is judged, at the first look and when that changes."""
        signals = sorted({usage.of_whom for usage in usages} | ({"stalls"} if stalled is not None else set()))
        if signals == self._signals:
            return
        self._signals = signals
        if signals:
            log.debug("memory is watched", by=", ".join(signals))
        else:
            advice = "expected a limit of cgroup v2, /proc/pressure/memory, or limits.memory_bytes"
            log.warning("memory is not watched", cause=advice)
