"""Whole relays that share a real Redis: what counts over all of them, and what happens when Redis is not there."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.client.session import Session, SessionError, open_session
from relay.client.turn import TurnConnection
from relay.config import Config
from relay.errors import UpstreamError
from relay.gateway.checking.reach import reach
from relay.gateway.cluster import cluster as cluster_module
from relay.gateway.cluster.client import Failure
from relay.gateway.cluster.store import Store
from relay.gateway.entitlement.verdicts import VerdictOutcome
from relay.gateway.sessions import sessions as relay_sessions
from tests.support.benches.gateway import Relay, relay_with_hosts, running_relay
from tests.support.benches.serving import kill, serving
from tests.support.peers.balancer import open_balancer
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.own_clients import opened_session
from tests.support.peers.raw_http import RecordingUpstream, ask, recording_upstream
from tests.support.peers.redis_server import RedisServer, needs_redis, redis_server, start_redis
from tests.support.waiting import EVENTUALLY_S, POLL_S, becomes, eventually

pytestmark = needs_redis

# One call at once for the user of all tests.
ONE_CALL = {"policy": "static", "users": [{"user": "trader", "calls": 1}]}
TOO_MANY = "486 Allocation Quota Reached: too many calls at once"
AWAY = "shared state is away: limits count for this relay alone"
WORKS = "shared state works: limits count for all relays"


@contextlib.asynccontextmanager
async def sharing(
    folder: Path, redis: RedisServer, name: str, plane: str = "compiled", *, patient: bool = True, **cluster: Any
) -> AsyncIterator[Relay]:
    """A relay with a TURN host. If it is ``patient``, a machine that is busy makes no difference."""
    (folder / name).mkdir()
    settings = {"redis": redis.url, "name": name, "timeout_s": 1.0, "lease_s": 15.0, **cluster}
    async with relay_with_hosts(folder / name, plane, 1, cluster=settings, entitlement=ONE_CALL) as (relay, _):
        if patient:
            store_of(relay)._timeout_s = EVENTUALLY_S
            await eventually(lambda: store_of(relay).up)
        yield relay


def store_of(relay: Relay) -> Store:
    store = relay.gateway.cluster.store
    assert store is not None
    return store


async def call(relay: Relay) -> TurnConnection:
    """A call over TURN. Raises UpstreamError if it is refused."""
    turn = await relay.open_turn("trader", "secret")
    try:
        await turn.allocate()
    except UpstreamError:
        await turn.close()
        raise
    return turn


async def is_refused(relay: Relay) -> None:
    with pytest.raises(UpstreamError, match="486"):
        await call(relay)


def calls_of(relay: Relay) -> int:
    return relay.gateway.entitlement.calls


async def get(relay: Relay, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"http://{relay.admin}{path}") as response:
        return await (response.json() if path.startswith("/api") else response.text())


# Calls at once


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_one_call_at_once_over_two_relays_and_all_carriers(tmp_path: Path, plane: str) -> None:
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "one", plane) as one,
        sharing(tmp_path, redis, "two", plane) as two,
    ):
        turn = await call(one)
        await is_refused(two)
        with pytest.raises(SessionError, match=TOO_MANY):
            await opened_session(two, Inbox())
        # The upstream was not even asked.
        assert two.gateway.entitlement.counts[VerdictOutcome.TOO_MANY_CALLS] == 2
        await turn.close()
        session = await becomes_possible(two)
        await is_refused(one)
        await session.close()
        await eventually(lambda: not calls_of(two))


async def becomes_possible(relay: Relay) -> Session:
    """A session, as soon as the relay hears that the other one's call has ended."""
    while True:
        with contextlib.suppress(SessionError):
            return await opened_session(relay, Inbox())
        await asyncio.sleep(POLL_S)


async def test_calls_that_are_granted_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were let through to their upstreams, as nobody had a call then."""
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "one") as one,
        sharing(tmp_path, redis, "two") as two,
    ):
        for relay in (one, two):
            shared = relay.gateway.cluster.calls
            assert shared is not None

            async def has_room(*_: object) -> bool:
                return True

            monkeypatch.setattr(shared, "has_room", has_room)
        turn = await call(one)
        await is_refused(two)
        with pytest.raises(SessionError, match=TOO_MANY):
            await opened_session(two, Inbox())
        await eventually(lambda: not two.connections)
        assert (calls_of(one), calls_of(two)) == (1, 0)
        await turn.close()


async def test_a_place_is_free_elsewhere_when_its_allocation_has_ended(tmp_path: Path) -> None:
    """Its connection goes on: alone, the relay would not look before somebody wants the place there."""
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "one") as one,
        sharing(tmp_path, redis, "two") as two,
        await call(one) as turn,
    ):
        await turn.refresh(0)
        async with await becomes_possible(two):
            assert one.connections


async def test_a_killed_relay_keeps_nobody_out_for_longer_than_its_lease(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "two") as two,
        Redis.from_url(redis.url) as look,
    ):
        (tmp_path / "one").mkdir()
        upstream = next(iter(two.gateway.upstreams)).address
        assert upstream is not None
        cluster = {"redis": redis.url, "name": "one", "timeout_s": 1.0, "lease_s": 15.0}
        async with serving(tmp_path / "one", upstream, cluster=cluster, entitlement=ONE_CALL) as one:
            await one.becomes_ready()
            turn = await one.open_turn()
            # At once; or a moment later, if the machine is so busy that Redis seemed to be away.
            while not (keys := [key async for key in look.scan_iter("cloud9-relay:1:calls:*")]):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            [key] = keys
            await is_refused(two)
            await kill(one.process)
            assert await look.pttl(key) <= 15_000
            # Redis counts down by itself. The test need not wait for that.
            await look.pexpire(key, 1)
            async with await becomes_possible(two):
                assert not await look.exists(key)
            await turn.close()


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_session_that_comes_back_to_another_relay_leaves_its_place_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    """The first relay lives. It has noticed that the connection was cut, and waits for the client; or it has not."""
    monkeypatch.setattr(relay_sessions, "RESUME_WITHIN_S", 600.0)
    inbox = Inbox()
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "one") as one,
        sharing(tmp_path, redis, "two") as two,
        open_balancer(one.tls) as balancer,
        open_echo() as peer,
    ):
        trust = ssl.create_default_context()
        for relay in (one, two):
            trust.load_verify_locations(relay.config_file.parent / "ca.pem")
        async with await open_session(
            f"wss://{balancer.address}/media",
            username="trader",
            password="secret",
            ssl_context=trust,
            server_hostname="relay.test",
            on_data=inbox.put,
        ) as session:
            await session.bind(peer)
            # It tries until the machine has done all this.
            session._resume_within_s = EVENTUALLY_S
            balancer.behind = [two.tls]
            balancer.cut(also_behind=noticed)
            await eventually(lambda: session.reopenings)
            session.send(peer, b"voice")
            assert await inbox.get() == (peer, b"voice")
            await eventually(lambda: not calls_of(one) and not one.gateway.flows.tally.parked and not one.connections)
            assert calls_of(two) == 1
    assert session.closed.result() is None


# Redis


async def test_without_redis_each_relay_counts_alone_and_together_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "RETRY_S", 0.05)
    inbox = Inbox()
    with capture_logs() as lines:
        async with (
            redis_server(tmp_path) as redis,
            sharing(tmp_path, redis, "one") as one,
            sharing(tmp_path, redis, "two") as two,
            open_echo() as peer,
            await opened_session(one, inbox) as session,
        ):
            await session.bind(peer)
            await redis.kill()
            # A call that wants a place finds it out, or the next renewal does.
            turn = await call(two)
            session.send(peer, b"voice")
            assert await inbox.get() == (peer, b"voice")
            await is_refused(one)  # by its own count
            for relay in (one, two):
                await eventually(lambda relay=relay: not store_of(relay).up)  # type: ignore[misc]
                assert "relay_cluster_up 0.0\n" in await get(relay, "/metrics")
                assert store_of(relay).failures[Failure.UNREACHABLE]
                assert (await get(relay, "/api/cluster"))["trouble"]
            again = await start_redis(tmp_path, redis.port)
            try:
                for relay in (one, two):
                    await eventually(lambda relay=relay: store_of(relay).up)  # type: ignore[misc]
                    assert "relay_cluster_up 1.0\n" in await get(relay, "/metrics")
                # There are two calls, and none of them has ended. Either keeps the other relay from a third one.
                await turn.close()
                await eventually(lambda: not calls_of(two))
                await is_refused(two)
            finally:
                await again.end()
    told = [line["event"] for line in lines if line["event"] in {AWAY, WORKS}]
    # Each once; at the end it is gone again.
    assert told[:2] + sorted(told[2:4]) + sorted(told[4:6]) == [WORKS, WORKS, AWAY, AWAY, WORKS, WORKS]


async def test_a_redis_that_hangs_costs_a_call_its_deadline_and_no_more(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "one", patient=False, timeout_s=0.1) as one,
    ):
        await eventually(lambda: store_of(one).up)
        redis.pause()
        try:
            turn = await call(one)
            await eventually(lambda: not store_of(one).up)
            assert store_of(one).failures[Failure.TIMEOUT]
            assert store_of(one).cause == "no answer within 0.1 s"
        finally:
            redis.resume()
        store_of(one)._timeout_s = EVENTUALLY_S
        await eventually(lambda: store_of(one).up)
        await is_refused(one)
        await turn.close()


async def test_a_full_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "RETRY_S", 0.05)
    async with (
        redis_server(tmp_path) as redis,
        sharing(tmp_path, redis, "one") as one,
        sharing(tmp_path, redis, "two") as two,
        Redis.from_url(redis.url) as look,
    ):
        with capture_logs() as lines:
            await look.config_set("maxmemory", 1)
            calls = [await call(one), await call(two)]
            await eventually(lambda: store_of(one).failures[Failure.FULL] > 3)
            await look.config_set("maxmemory", 0)
            for relay in (one, two):
                await eventually(lambda relay=relay: store_of(relay).up)  # type: ignore[misc]
            for turn in calls:
                await turn.close()
        told = [line["event"] for line in lines if line["event"] in {AWAY, WORKS}]
        assert sorted(told[:2]) + sorted(told[2:]) == [AWAY, AWAY, WORKS, WORKS]


async def test_a_wrong_password(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path, "--requirepass", "hunter2") as redis,
        sharing(tmp_path, redis, "one", patient=False, password="wrong-one") as one,
    ):
        turn = await call(one)
        await eventually(lambda: store_of(one).failures[Failure.REFUSED])
        assert not store_of(one).up
        for text in (str(await get(one, "/api/cluster")), await get(one, "/metrics"), store_of(one).cause):
            assert "wrong-one" not in text
        await turn.close()


# Who is up


async def test_relays_know_each_other_and_who_drains(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis, sharing(tmp_path, redis, "two", lease_s=1.0) as two:
        async with sharing(tmp_path, redis, "one", lease_s=1.0) as one:
            await eventually(lambda: len(two.gateway.cluster.relays) == 2)
            found = await get(two, "/api/cluster")
            assert (found["configured"], found["up"], found["id"]) == (True, True, two.gateway.ids.prefix)
            await eventually(lambda: two.gateway.cluster.relays[0].address == str(one.tls))
            assert [relay.name for relay in two.gateway.cluster.relays] == ["one", "two"]
            assert 'relay_cluster_relays{state="serving"} 2.0\n' in await get(two, "/metrics")
            one.gateway.departure.begun = True
            await eventually(lambda: two.gateway.cluster.relays[0].draining)
            assert 'relay_cluster_relays{state="draining"} 1.0\n' in await get(two, "/metrics")
        # It has left.
        await becomes(lambda: [relay.name for relay in two.gateway.cluster.relays], ["two"])


async def test_a_relay_alone_says_so(tmp_path: Path) -> None:
    async with running_relay(tmp_path, Address("127.0.0.1", 9)) as relay:
        assert await get(relay, "/api/cluster") == {
            "configured": False,
            "up": False,
            "trouble": "",
            "id": None,
            "relays": [],
        }
        assert "relay_cluster" not in await get(relay, "/metrics")


# Sessions of socket.io

POLL = b"GET /socket.io/?EIO=4&transport=polling%s HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n"


def answering(name: str) -> Any:
    """A server of signaling that opens sessions, and answers polls."""
    opened = 0

    def answer(received: bytes) -> bytes:
        nonlocal opened
        if b"\r\n\r\n" not in received:
            return b""
        body = b"2probe"
        if b"sid=" not in received:
            opened += 1
            body = b'0{"sid":"%b-%d","upgrades":[],"pingInterval":25000,"pingTimeout":20000}' % (name.encode(), opened)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)

    return answer


async def test_a_session_of_socketio_stays_with_its_server_whichever_relay_is_asked(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path) as redis,
        recording_upstream(answering("left")) as left,
        recording_upstream(answering("right")) as right,
        contextlib.AsyncExitStack() as stack,
    ):
        relays = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            relay = await stack.enter_async_context(
                running_relay(
                    tmp_path / name,
                    Address("127.0.0.1", 9),
                    signaling={"upstreams": [left.url, right.url]},
                    cluster={"redis": redis.url, "timeout_s": 1.0},
                )
            )
            store_of(relay)._timeout_s = EVENTUALLY_S
            await eventually(lambda relay=relay: store_of(relay).up)  # type: ignore[misc]
            relays.append(relay)
        holders = {b"left": left, b"right": right}
        seen = set[bytes]()
        for number in range(12):
            first, second = relays if number % 2 else relays[::-1]
            opened = await ask(first, POLL % b"")
            sid = opened.partition(b'"sid":"')[2].partition(b'"')[0]
            holder = sid.partition(b"-")[0]
            seen.add(holder)
            assert b"2probe" in await ask(second, POLL % (b"&sid=" + sid))
            assert asked_for(holders[holder], sid)
            assert not asked_for(holders[b"left" if holder == b"right" else b"right"], sid)
        assert seen == {b"left", b"right"}


def asked_for(upstream: RecordingUpstream, sid: bytes) -> bool:
    return b"&sid=%b " % sid in upstream.received


# Before the start


@pytest.mark.parametrize(("password", "trouble"), [("hunter2", ""), ("wrong-one", "invalid username-password pair")])
async def test_check_config_asks_redis(tmp_path: Path, password: str, trouble: str) -> None:
    async with redis_server(tmp_path, "--requirepass", "hunter2") as redis:
        settings = Config.model_validate(
            {
                "certificates": [{"certificate": "cert.pem", "private_key": "key.pem"}],
                "upstreams": [{"name": "a", "address": "127.0.0.1:3478", "probe": "none"}],
                "cluster": {"redis": redis.url, "password": password},
            }
        )
        # A machine that is busy makes no difference.
        patient = settings.cluster.model_copy(update={"timeout_s": EVENTUALLY_S})
        settings = settings.model_copy(update={"cluster": patient})
        [_, found] = await reach(settings)
        assert (found.server, found.address) == ("cluster", f"127.0.0.1:{redis.port}")
        assert trouble in found.trouble
        assert (found.took_s is None) == bool(trouble)
