"""Deadlines: as asyncio's, also while the task is being cancelled."""

from __future__ import annotations

import asyncio

import pytest

from relay import deadlines


async def test_a_deadline_that_comes() -> None:
    loop = asyncio.get_running_loop()
    for deadline in (deadlines.timeout(0.001), deadlines.timeout_at(loop.time() + 0.001), deadlines.timeout(0)):
        with pytest.raises(TimeoutError):
            async with deadline:
                await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_that_ends_in_time_or_with_another_error() -> None:
    for deadline in (deadlines.timeout(60), deadlines.timeout(None), deadlines.timeout_at(None)):
        async with deadline:
            await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with deadlines.timeout(60):
            raise KeyError


async def test_a_deadline_that_is_moved() -> None:
    deadline = deadlines.timeout(60)
    asyncio.get_running_loop().call_soon(deadline.reschedule, 0)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.Event().wait()


async def test_a_deadline_while_the_task_is_being_cancelled() -> None:
    """What tidies up may wait for something, give up, and go on."""
    waits, tidied = asyncio.Event(), []

    async def work() -> None:
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            with pytest.raises(TimeoutError):
                async with deadlines.timeout(0.001):
                    await asyncio.Event().wait()
            tidied.append("all")

    task = asyncio.create_task(work())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tidied == ["all"]


async def test_a_cancellation_in_the_same_turn_as_the_deadline() -> None:
    """Whoever cancels is heard."""
    waits = asyncio.Event()

    async def work() -> None:
        async with deadlines.timeout(60) as deadline:
            waits.set()
            deadline.reschedule(0)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_deadlines_within_each_other() -> None:
    with pytest.raises(TimeoutError):
        async with deadlines.timeout(0.001), deadlines.timeout(60):
            await asyncio.Event().wait()
