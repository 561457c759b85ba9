"""Background tasks: held while they run, awaited at the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from relay.tasks import Tasks, in_daemon_thread
from tests.support.waiting import eventually


async def test_finish_waits_for_all() -> None:
    tasks, go_on, done = Tasks(), asyncio.Event(), []

    async def work(number: int) -> None:
        await go_on.wait()
        done.append(number)

    for number in range(3):
        tasks.start(work(number), "work")
    assert len(tasks) == 3
    go_on.set()
    await tasks.finish()
    assert done == [0, 1, 2]


async def test_cancel_waits_until_all_have_ended() -> None:
    tasks, ended = Tasks(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    started = [tasks.start(work(), "work") for _ in range(3)]
    await asyncio.sleep(0)
    await tasks.cancel()
    assert ended == [True] * 3
    assert all(task.cancelled() for task in started)


async def test_nothing_to_wait_for() -> None:
    tasks = Tasks()
    await tasks.finish()
    await tasks.cancel()


async def test_what_a_daemon_thread_returns_and_raises() -> None:
    assert await in_daemon_thread(lambda: 7, "seven") == 7
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0, "none")


async def test_a_daemon_thread_that_nobody_waits_for() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait()
        ended.set()

    waiting = asyncio.ensure_future(in_daemon_thread(work, "slow"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await eventually(ended.is_set)


async def test_what_a_cancelled_task_had_is_let_go() -> None:
    """A task keeps the exception by which it ended, and CPython's garbage collector does not see it there."""

    class Kept:
        pass

    async def wait(begun: asyncio.Event, kept: Kept) -> None:
        async with asyncio.timeout(60):  # it knows the task
            begun.set()
            await asyncio.Event().wait()
        assert kept

    tasks, begun, kept = Tasks(), asyncio.Event(), Kept()
    left = weakref.ref(kept)
    tasks.start(wait(begun, kept), "waits")
    del kept
    await begun.wait()
    await tasks.cancel()
    gc.collect()
    assert left() is None
