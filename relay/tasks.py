"""Background tasks: each is kept until it ends, its exceptions are logged, and all are awaited at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

_T = TypeVar("_T")


class Tasks:
    """The running tasks of one owner."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def running(self) -> list[asyncio.Task[None]]:
        """Those that have not ended."""
        return list(self._running)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine in the background."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError:
            # A task keeps this exception, and so all that its coroutine had, until somebody has asked for it. CPython's
            # garbage collector does not see it there.
            return
        if error is not None:
            log.error("task failed", task=task.get_name(), exc_info=error)

    async def finish(self) -> None:
        """Wait until all have ended by themselves. Each must have a deadline of its own."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def cancel(self) -> None:
        """Cancel all, and wait until they have ended."""
        for task in self._running:
            task.cancel()
        await self.finish()


async def in_daemon_thread(work: Callable[[], _T], name: str) -> _T:
    """Run work that may hang, such as reading a file, in a thread that does not keep the process alive.

    The loop's own threads would: it waits for them at its end. Returns and raises what ``work`` does. If this is
    cancelled, the thread goes on alone.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def finish(settle: Callable[[], None]) -> None:
        if not done.done():
            settle()

    def run() -> None:
        try:
            settle = functools.partial(done.set_result, work())
        except Exception as error:
            settle = functools.partial(done.set_exception, error)
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, settle)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
