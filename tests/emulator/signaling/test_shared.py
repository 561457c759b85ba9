"""The shared state, in memory and in Redis: both keep the same promises."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from relay.emulator.lines import LineKind
from relay.emulator.signaling.inputs import Deadline, Input, Join, Leave, Ring
from relay.emulator.signaling.machines import decide
from relay.emulator.signaling.messages import ErrorCode, PresenceStatus
from relay.emulator.signaling.shared import MemoryShared, Session, Shared
from relay.emulator.signaling.shared_redis import RedisShared, open_redis
from relay.emulator.signaling.state import Decision, Line, LineSpec, Refusal
from relay.errors import OperatorError, UpstreamError
from tests.support.emulated_lines import line
from tests.support.peers.redis_server import needs_redis, redis_server, start_redis

Open = Callable[[Path], AbstractAsyncContextManager[Shared]]
HOOT = line(LineKind.HOOT, *(f"a{number}" for number in range(40)))
DIAL = line(LineKind.DIAL_TONE, "a1")


@contextlib.asynccontextmanager
async def in_memory(_: Path) -> AsyncIterator[Shared]:
    yield MemoryShared()


@contextlib.asynccontextmanager
async def in_redis(folder: Path) -> AsyncIterator[Shared]:
    async with redis_server(folder) as server:
        shared = RedisShared(open_redis(server.url), "one")
        try:
            yield shared
        finally:
            await shared.close()


@contextlib.asynccontextmanager
async def two_in_redis(folder: Path) -> AsyncIterator[tuple[RedisShared, RedisShared]]:
    async with redis_server(folder) as server:
        both = RedisShared(open_redis(server.url), "one"), RedisShared(open_redis(server.url), "two")
        try:
            yield both
        finally:
            for shared in both:
                await shared.close()


BOTH = pytest.mark.parametrize("opened", [in_memory, pytest.param(in_redis, marks=needs_redis)])


async def tell(shared: Shared, spec: LineSpec, told: Input, now: float = 100.0) -> Decision:
    return await shared.change_line(spec, lambda before: decide(spec, before, told, now))


def call_id() -> str:
    return str(uuid.uuid4())


@BOTH
async def test_many_at_once_change_a_line_one_after_the_other(opened: Open, tmp_path: Path) -> None:
    async with opened(tmp_path) as shared:
        joins = [tell(shared, HOOT, Join(f"a{number}", call_id())) for number in range(40)]
        decisions = await asyncio.gather(*joins)
        assert sorted(decision.line.seq for decision in decisions) == list(range(1, 41))
        now = (await shared.read_lines([HOOT.number, DIAL.number]))[HOOT.number]
        assert len(now.parties) == 40
        assert (await shared.read_lines([DIAL.number])) == {DIAL.number: Line()}
        assert await shared.read_lines([]) == {}


@BOTH
async def test_what_is_refused_changes_nothing(opened: Open, tmp_path: Path) -> None:
    async with opened(tmp_path) as shared:
        with pytest.raises(Refusal) as refusal:
            await tell(shared, HOOT, Leave("a1"))
        assert refusal.value.info.code is ErrorCode.WRONG_STATE
        assert await shared.live_lines() == []


@BOTH
async def test_deadlines_calls_guests_and_records(opened: Open, tmp_path: Path) -> None:
    async with opened(tmp_path) as shared:
        assert await shared.next_due() is None
        called = call_id()
        await tell(shared, DIAL, Ring("a1", called, number="2001", callee="b1", disturbable=frozenset({"b1"})))
        assert await shared.next_due() == 130.0
        assert (await shared.due_lines(129.9), await shared.due_lines(130.0)) == ([], [DIAL.number])
        assert await shared.live_lines() == await shared.guest_lines("b1") == [DIAL.number]
        assert await shared.guest_lines("a1") == []
        assert await shared.line_of_call(called) == DIAL.number
        ended = (await tell(shared, DIAL, Deadline(), 130.0)).ended
        assert ended is not None
        assert await shared.next_due() is None
        assert await shared.live_lines() == await shared.guest_lines("b1") == []
        assert await shared.line_of_call(called) is None
        assert await shared.unwritten_records(131.0) == []
        assert await shared.unwritten_records(136.0) == [ended]
        await shared.record_written(called)
        assert await shared.unwritten_records(136.0) == []


@BOTH
async def test_a_session_from_its_beginning_to_its_end(opened: Open, tmp_path: Path) -> None:
    async with opened(tmp_path) as shared:
        first = Session("a1", "c1", "one")
        assert await shared.open_session(first) is None
        await shared.set_presence("a1", PresenceStatus.BUSY)
        await shared.set_presence("a2", PresenceStatus.BUSY)
        assert set(await shared.sessions(["a1", "a2"])) == {"a1"}
        assert await shared.sessions([]) == {}
        # A second login replaces the first, and has its presence.
        former = await shared.open_session(Session("a1", "c2", "two"))
        assert former is not None
        assert (former.connection, former.presence) == ("c1", PresenceStatus.BUSY)
        # The first connection is not the user's any longer.
        assert not await shared.vanish("a1", "c1", 200.0)
        assert (await shared.sessions(["a1"]))["a1"].is_connected
        assert await shared.vanish("a1", "c2", 200.0)
        # Who has to go by then is not given more time.
        assert await shared.vanish("a1", "c2", 300.0)
        assert await shared.next_due() == 200.0
        assert await shared.due_sessions(199.9) == []
        assert await shared.due_sessions(math.inf) == await shared.due_sessions(200.0)
        [vanished] = await shared.due_sessions(200.0)
        assert vanished == Session("a1", "c2", "two", PresenceStatus.BUSY, 200.0)
        # Whoever comes back in time keeps the session.
        await shared.open_session(Session("a1", "c3", "one"))
        assert not await shared.end_session(vanished)
        assert await shared.due_sessions(1000.0) == []
        current = (await shared.sessions(["a1"]))["a1"]
        assert await shared.end_session(current)
        assert await shared.sessions(["a1"]) == {}


@needs_redis
async def test_two_processes_change_one_line(tmp_path: Path) -> None:
    async with two_in_redis(tmp_path) as both:
        joins = [tell(both[number % 2], HOOT, Join(f"a{number}", call_id())) for number in range(40)]
        decisions = await asyncio.gather(*joins)
        assert sorted(decision.line.seq for decision in decisions) == list(range(1, 41))
        calls = {decision.line.call and decision.line.call.call_id for decision in decisions}
        assert len(calls) == 1
        leaves = [tell(both[number % 2], HOOT, Leave(f"a{number}"), 101.0) for number in range(40)]
        ended = [decision.ended for decision in await asyncio.gather(*leaves) if decision.ended is not None]
        assert len(ended) == 1
        assert len(ended[0].participants) == 40


@needs_redis
async def test_a_process_that_is_silent_is_buried(tmp_path: Path) -> None:
    async with two_in_redis(tmp_path) as (one, two):
        assert not await one.beat(100.0)
        assert await one.beat(101.0)
        assert not await two.beat(101.0)
        await one.open_session(Session("a1", "c1", "one"))
        await one.open_session(Session("a2", "c2", "one"))
        # a2 has moved to the other process.
        await two.open_session(Session("a2", "c3", "two"))
        await two.beat(105.9)
        assert await two.bury_dead(105.9, 15.0) == 0
        await two.beat(106.0)
        assert await two.bury_dead(106.0, 15.0) == 1
        assert [session.user_id for session in await two.due_sessions(121.0)] == ["a1"]
        assert (await two.sessions(["a2"]))["a2"].is_connected
        # It was only slow: it hears of it, and takes its users back.
        assert not await one.beat(107.0)
        await one.open_session(Session("a1", "c1", "one"))
        assert await two.due_sessions(121.0) == []
        assert await one.beat(108.0)


@needs_redis
async def test_a_process_that_ends_says_so(tmp_path: Path) -> None:
    async with two_in_redis(tmp_path) as (one, two):
        await one.beat(100.0)
        await one.open_session(Session("a1", "c1", "one"))
        await one.leave(115.0)
        [vanished] = await two.due_sessions(115.0)
        assert vanished.user_id == "a1"
        assert await two.bury_dead(1000.0, 15.0) == 0


@needs_redis
async def test_redis_that_is_gone_is_an_upstream_error(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        shared = RedisShared(open_redis(server.url), "one")
        await tell(shared, HOOT, Join("a1", call_id()))
        await server.kill()
        for asked in (shared.read_lines(["x"]), shared.next_due(), shared.beat(1.0), tell(shared, HOOT, Leave("a1"))):
            with pytest.raises(UpstreamError, match="Redis"):
                await asked
        await shared.close()


@pytest.mark.parametrize("url", ["localhost:6379", "http://127.0.0.1", "redis://127.0.0.1:port"])
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(OperatorError, match=r"^--redis: "):
        open_redis(url)


@needs_redis
async def test_a_restart_costs_no_answer_once_redis_is_back(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        shared = RedisShared(open_redis(server.url), "one")
        try:
            # Ten at once: that many connections, and the restart closes them all.
            await asyncio.gather(*(shared.live_lines() for _ in range(10)))
            await server.kill()
            again = await start_redis(tmp_path, server.port)
            try:
                assert (await tell(shared, HOOT, Join("a1", call_id()))).changed
                answers = await asyncio.gather(*(shared.live_lines() for _ in range(10)))
                assert answers == [[HOOT.number]] * 10
            finally:
                await again.end()
        finally:
            await shared.close()
