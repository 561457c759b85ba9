"""What is kept of calls, on its way to a disk: a bounded queue, and a thread of its own that empties it."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import queue
import threading
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

# A thousand calls may end at once, while the disk is busy. A record takes a kilobyte while it waits; a long call
# that is kept for searches takes some 25 KB.
WAITING = 1000
# Items that are written together.
WRITTEN_AT_ONCE = 200
# At the end the thread has this long for the items that still wait.
FLUSH_TIMEOUT_S = 2.0

_Item = TypeVar("_Item")


class Writer(abc.ABC, Generic[_Item]):
    """Writes items in a thread of its own. ``written`` and ``lost`` count them.

    A disk that is full or hangs may cost items, but never holds up a call. A subclass says how they are written.
    """

    def __init__(self, name: str, tend_every_s: float | None = None) -> None:
        """``name`` is the thread's. Without items, ``keep`` is called every ``tend_every_s`` seconds, or not at all."""
        self.written = 0
        self.lost = 0
        self._name = name
        self._tend_every_s = tend_every_s
        self._waiting: queue.Queue[_Item | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    @abc.abstractmethod
    def active(self) -> bool:
        """False if nothing is to be written. Then items are passed over, and not counted."""

    @abc.abstractmethod
    def keep(self, items: list[_Item]) -> int:
        """Write items, in the thread, and return how many are written. The others are lost: tell the operator why.

        The first call has no items, so that the file is there early.
        """

    def close(self) -> None:
        """Let go of the file. The thread calls this when it ends."""

    def start(self) -> None:
        """Start the thread, if there is anything for it to do."""
        if self.active and self._thread is None and not self._stopping:
            # A daemon thread: a disk that hangs for ever does not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def write(self, item: _Item) -> None:
        """Have an item written. This returns at once. If too many wait, the item is lost."""
        self.start()
        if not self.active:
            return
        try:
            if self._stopping:
                raise queue.Full
            self._waiting.put_nowait(item)
        except queue.Full:
            self.lost += 1

    def leave_out(self) -> None:
        """Count an item as lost that is not to be written."""
        if self.active:
            self.lost += 1

    @property
    def idle(self) -> bool:
        """True if no item waits, and the thread is not to end."""
        return self._waiting.empty() and not self._stopping

    def wake(self) -> None:
        """Have ``keep`` called now. If the queue is full, the thread is awake."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    async def stop(self) -> None:
        """Write what waits, if that does not take long. After this nothing is written."""
        self._stopping = True
        if self._thread is None:
            return
        self.wake()
        await asyncio.to_thread(self._thread.join, FLUSH_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("not written in time", what=self._name, waiting=self._waiting.qsize())

    # In the thread

    def _run(self) -> None:
        try:
            items: list[_Item] = []
            while True:
                written = self._try(items)
                # The loop adds to ``lost`` as well, without a lock. Both are rare, and one lost count does no harm.
                self.written += written
                self.lost += len(items) - written
                if self._stopping and self._waiting.empty():
                    break
                items = self._take()
        finally:
            self.close()

    def _try(self, items: list[_Item]) -> int:
        try:
            return self.keep(items)
        except Exception:
            # A mistake of ours. What comes later is written.
            log.exception("not written", what=self._name)
            return 0

    def _take(self) -> list[_Item]:
        taken: list[_Item | None] = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._waiting.get(timeout=self._tend_every_s))
            while len(taken) < WRITTEN_AT_ONCE:
                taken.append(self._waiting.get_nowait())
        return [item for item in taken if item is not None]
