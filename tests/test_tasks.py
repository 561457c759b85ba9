"""Background tasks: held while they run, awaited at the end."""

from __future__ import annotations

import asyncio

from relay.tasks import Tasks


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
