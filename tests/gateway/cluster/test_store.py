"""Deadlines, and one line of the log for each change: with questions that do what the test says."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from relay.gateway.cluster.client import Client, Failure, StoreError
from relay.gateway.cluster.store import MAX_QUESTIONS, Store
from tests.support.waiting import EVENTUALLY_S

AWAY = "shared state is away: limits count for this relay alone"
WORKS = "shared state works: limits count for all relays"


def store_of(timeout_s: float = EVENTUALLY_S) -> Store:
    return Store(cast("Client", None), timeout_s, "192.0.2.1:6379")


async def answer() -> int:
    return 7


async def fail() -> int:
    raise StoreError(Failure.FULL, "no memory left")


async def hang() -> int:
    await asyncio.Event().wait()
    return 0


async def test_a_line_for_each_change() -> None:
    store = store_of()
    with capture_logs() as lines:
        assert await store.ask(answer) == 7
        assert not store.up  # only the cluster's own task knows that all is there
        store.on_working()
        for _ in range(3):
            with pytest.raises(StoreError, match="no memory left"):
                await store.ask(fail)
        assert (store.up, store.cause) == (False, "no memory left")
        for _ in range(3):
            store.on_working()
        assert (store.up, store.cause) == (True, "")
    told = [(line["event"], line.get("cause")) for line in lines]
    assert told == [(WORKS, None), (AWAY, "no memory left"), (WORKS, None)]
    assert (store.answers, store.failures[Failure.FULL], store.failures[Failure.TIMEOUT]) == (1, 3, 0)


async def test_one_that_never_worked_is_told_once() -> None:
    store = store_of()
    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.ask(fail)
    assert [line["event"] for line in lines] == [AWAY]


async def test_no_question_waits_for_longer_than_its_deadline() -> None:
    store = store_of(0.05)
    store.on_working()
    # More than are asked at once: those that wait for their turn have the same deadline.
    questions: Any = [store.ask(hang) for _ in range(2 * MAX_QUESTIONS)]
    failed = await asyncio.gather(*questions, return_exceptions=True)
    assert {str(one) for one in failed} == {"no answer within 0.05 s"}
    assert store.failures[Failure.TIMEOUT] == 2 * MAX_QUESTIONS
    assert not store.up


async def test_many_questions_take_turns() -> None:
    store, running, most = store_of(), 0, 0

    async def question() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 1

    assert sum(await asyncio.gather(*(store.ask(question) for _ in range(100)))) == 100
    assert most == MAX_QUESTIONS


async def test_whoever_asks_may_be_cancelled() -> None:
    store = store_of()
    store.on_working()
    asking = asyncio.ensure_future(store.ask(hang))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert store.up
