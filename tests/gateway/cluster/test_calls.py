"""What a relay tells of its users' calls, in whatever order Redis hears it: the test keeps a made-up Redis waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import cast

from relay.config import EntitlementSettings
from relay.gateway.cluster.calls import SharedCalls
from relay.gateway.cluster.client import Client, Failure, StoreError
from relay.gateway.cluster.store import Store
from relay.gateway.entitlement.verdicts import Entitlement, Verdict, VerdictOutcome
from tests.support.waiting import EVENTUALLY_S, eventually


class HeldRedis:
    """Does what it is asked when the test says so, and in its order. ``elsewhere`` are the calls of other relays."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.elsewhere = 0
        self.fails = False
        self.holds = False
        self.waiting: list[asyncio.Event] = []

    async def _turn(self) -> None:
        if self.holds:
            turn = asyncio.Event()
            self.waiting.append(turn)
            await turn.wait()
        if self.fails:
            raise StoreError(Failure.UNREACHABLE, "gone")

    async def let(self, *order: int) -> None:
        """Let those that wait do what they want, in this order."""
        waiting, self.waiting = self.waiting, []
        for number in order:
            waiting[number].set()
            for _ in range(5):
                await asyncio.sleep(0)

    def hashed(self, *parts: str) -> str:
        return parts[-1]

    async def claim(self, user: str, count: int, max_calls: int, lease_s: float) -> int:
        await self._turn()
        if lease_s and self.elsewhere + count <= max_calls:
            self.counts[user] = count
        return self.elsewhere

    async def write_counts(self, counts: Mapping[str, int], lease_s: float) -> None:
        await self._turn()
        self.counts.update(counts)

    async def rewrite(self, record: bytes, counts: Mapping[str, int], lease_s: float) -> None:
        await self._turn()
        self.counts = dict(counts)


class Bench:
    """A relay whose ``places`` the test sets."""

    def __init__(self) -> None:
        self.redis = HeldRedis()
        self.places = Counter[str]()
        self.woken = 0
        store = Store(cast("Client", self.redis), EVENTUALLY_S, "")
        store.on_working()
        self.calls = SharedCalls(store, 6.0, self.wake)

    def wake(self) -> None:
        self.woken += 1

    async def claim(self, max_calls: int = 9) -> bool:
        """Take a place, as the relay does; it goes again if the others leave no room."""
        self.places["ann"] += 1
        if await self.calls.claim("ann", self.places.__getitem__, max_calls):
            return True
        self.release()
        return False

    def release(self) -> None:
        self.places["ann"] -= 1
        self.calls.note("ann", self.places["ann"])

    async def settle(self) -> None:
        """Write until nothing is left, as the cluster's task does when it is woken."""
        self.redis.holds = False
        for _ in range(5):
            await self.calls.write_changed()
        assert not self.calls._changed


async def test_claims_and_releases() -> None:
    bench = Bench()
    assert await bench.claim()
    assert await bench.claim()
    assert bench.redis.counts == {"ann": 2}
    assert bench.woken == 0  # nothing is left to be written
    bench.release()
    assert bench.woken == 1
    await bench.settle()
    assert bench.redis.counts == {"ann": 1}
    bench.redis.elsewhere = 8
    assert not await bench.calls.has_room("ann", 2, 9)
    assert await bench.calls.has_room("ann", 1, 9)
    assert not await bench.claim(9)
    await bench.settle()
    assert bench.redis.counts == {"ann": 1}
    bench.release()
    await bench.settle()
    assert bench.redis.counts == {"ann": 0}
    assert len(bench.calls) == 0


async def test_users_without_a_bound_are_not_told_of() -> None:
    bench = Bench()
    bench.calls.note("ann", 3)
    await bench.settle()
    assert (bench.redis.counts, bench.woken) == ({}, 0)


async def test_claims_that_overtake_each_other() -> None:
    for order in ((0, 1), (1, 0)):
        bench = Bench()
        bench.redis.holds = True
        claims = [asyncio.ensure_future(bench.claim()) for _ in range(2)]
        await asyncio.sleep(0)
        await bench.redis.let(*order)
        assert await asyncio.gather(*claims) == [True, True]
        await bench.settle()
        assert bench.redis.counts == {"ann": 2}


async def test_of_two_claims_at_once_one_gets_the_last_place() -> None:
    bench = Bench()
    bench.redis.elsewhere = 1
    bench.redis.holds = True
    claims = [asyncio.ensure_future(bench.claim(2)) for _ in range(2)]
    await asyncio.sleep(0)
    bench.redis.holds = False
    await bench.redis.let(0, 1)
    assert sorted(await asyncio.gather(*claims)) == [False, True]
    await bench.settle()
    assert bench.redis.counts == {"ann": 1}


async def test_a_call_that_ends_while_it_is_claimed() -> None:
    bench = Bench()
    bench.redis.holds = True
    claim = asyncio.ensure_future(bench.claim())
    await asyncio.sleep(0)
    bench.release()
    await bench.redis.let(0)
    await claim
    await bench.settle()
    assert bench.redis.counts == {"ann": 0}
    assert len(bench.calls) == 0


async def test_a_claim_while_all_is_written_anew() -> None:
    """Whichever Redis hears first, and whichever answer comes first."""
    for order in ((0, 1), (1, 0)):
        bench = Bench()
        assert await bench.claim()
        bench.redis.holds = True
        writing = asyncio.ensure_future(bench.calls.write_all(b""))
        await asyncio.sleep(0)
        claim = asyncio.ensure_future(bench.claim())
        await asyncio.sleep(0)
        await bench.redis.let(*order)
        await asyncio.gather(writing, claim)
        await bench.settle()
        assert bench.redis.counts == {"ann": 2}


async def test_a_release_while_it_is_written() -> None:
    for order in ((0, 1), (1, 0)):
        bench = Bench()
        for _ in range(3):
            assert await bench.claim()
        bench.release()
        bench.redis.holds = True
        writing = asyncio.ensure_future(bench.calls.write_changed())
        await asyncio.sleep(0)
        bench.release()
        claim = asyncio.ensure_future(bench.claim())
        await asyncio.sleep(0)
        await bench.redis.let(*order)
        await asyncio.gather(writing, claim)
        bench.release()
        await bench.settle()
        assert bench.redis.counts == {"ann": 1}


async def test_while_redis_is_away_the_call_is_let_in_and_written_later() -> None:
    bench = Bench()
    bench.redis.fails = True
    bench.redis.elsewhere = 9
    assert await bench.calls.has_room("ann", 1, 9)
    assert await bench.claim(9)
    assert not bench.calls.up
    # Nobody is asked now, but what happens is remembered.
    bench.calls.note("bob", 2, bounded=True)
    bench.redis.fails = False
    await bench.calls.write_all(b"")
    assert bench.redis.counts == {"ann": 1, "bob": 2}
    await bench.settle()


async def test_a_call_that_ends_while_others_are_asked_gets_no_verdict_and_leaves_no_place() -> None:
    bench, told = Bench(), list[Verdict]()
    settings = EntitlementSettings.model_validate({"policy": "static", "users": [{"user": "ann", "calls": 1}]})
    entitlement = Entitlement(settings, lambda _: True, bench.calls)
    verdict = await entitlement.decide("ann", "use1", "192.0.2.1")
    bench.redis.holds = True
    entitlement.ask_for_grant(1, verdict, told.append)
    await eventually(lambda: bench.redis.waiting)
    # Its place is taken, as far as this relay goes.
    entitlement.ask_for_grant(2, verdict, told.append)
    assert [one.outcome for one in told] == [VerdictOutcome.TOO_MANY_CALLS]
    entitlement.release(1)
    await bench.redis.let(0)
    await bench.settle()
    assert (len(told), entitlement.calls, bench.redis.counts) == (1, 0, {"ann": 0})
    # And one that the others leave no room for.
    bench.redis.elsewhere = 1
    for ask in (entitlement.ask_for_room, entitlement.ask_for_grant):
        told.clear()
        ask(3, verdict, told.append)
        await eventually(lambda: told)
        assert ([one.outcome for one in told], entitlement.calls) == ([VerdictOutcome.TOO_MANY_CALLS], 0)
    assert entitlement.counts[VerdictOutcome.ADMITTED] == 0
    await entitlement.stop()
