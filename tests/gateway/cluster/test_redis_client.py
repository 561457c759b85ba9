"""The questions to a real Redis: what counts, what ends by itself, and how each failure is called."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from relay.config import ClusterSettings
from relay.demo.authority import Authority
from relay.gateway.cluster.client import Failure, Renewed, StoreError
from relay.gateway.cluster.records import MAX_RECORD_BYTES, RelayRecord
from relay.gateway.cluster.redis_client import RedisClient
from tests.support.peers.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis

LEASE_S = 15.0
RECORD = RelayRecord("a", "relay1", "192.0.2.1:443", "0.1.0", False).dump()


@contextlib.asynccontextmanager
async def client_of(server: RedisServer, identity: str = "a", **settings: Any) -> AsyncIterator[RedisClient]:
    client = RedisClient(ClusterSettings(**{"redis": server.url, **settings}), identity)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def two_relays(folder: Path) -> AsyncIterator[tuple[RedisServer, RedisClient, RedisClient]]:
    async with redis_server(folder) as redis, client_of(redis) as one, client_of(redis, "b") as two:
        for client in (one, two):
            await client.rewrite(RECORD, {}, LEASE_S)
        yield redis, one, two


@contextlib.asynccontextmanager
async def looking(redis: RedisServer, **more: Any) -> AsyncIterator[Any]:
    """The library's own client: what is in Redis. It has no types for some commands."""
    async with Redis.from_url(redis.url, **more) as client:
        yield client


async def test_calls_count_over_all_relays(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (_, one, two):
        ann, bob = one.hashed("user", "ann"), one.hashed("user", "bob")
        assert await one.claim(ann, 2, 3, LEASE_S) == 0
        assert await two.claim(ann, 1, 3, LEASE_S) == 2
        assert await two.claim(bob, 1, 1, LEASE_S) == 0
        # Too many, so it is not written, and what was there stays.
        assert await two.claim(ann, 2, 3, LEASE_S) == 2
        assert await one.claim(ann, 2, 3, 0) == 1
        # To look changes nothing.
        assert await one.claim(ann, 1, 3, 0) == 1
        assert await two.claim(ann, 1, 3, 0) == 2
        await one.write_counts({ann: 0, bob: 0}, LEASE_S)
        assert await two.claim(ann, 3, 3, LEASE_S) == 0
        await two.rewrite(RECORD, {bob: 7}, LEASE_S)
        assert [await one.claim(user, 1, 1, 0) for user in (ann, bob)] == [0, 7]


async def test_calls_at_the_same_moment_at_many_relays(tmp_path: Path) -> None:
    """As many are let in as there is room for, and no more: each sees the others."""
    async with redis_server(tmp_path) as redis, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(redis, f"relay{number}")) for number in range(12)]
        await asyncio.gather(*(client.rewrite(RECORD, {}, LEASE_S) for client in clients))
        elsewhere = await asyncio.gather(*(client.claim("ann", 1, 5, LEASE_S) for client in clients))
        assert sorted(elsewhere) == [0, 1, 2, 3, 4, *[5] * 7]


async def test_what_a_relay_has_ends_with_its_lease(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (redis, one, two), looking(redis) as look:
        await one.claim("ann", 1, 1, LEASE_S)
        assert await one.renew(LEASE_S) == Renewed(record=True, counts=True)
        assert await two.renew(LEASE_S) == Renewed(record=True, counts=False)
        keys = [key async for key in look.scan_iter() if b"relays" not in key]
        assert sorted(keys) == [b"cloud9-relay:1:calls:a", b"cloud9-relay:1:relay:a", b"cloud9-relay:1:relay:b"]
        assert all([0 < await look.pttl(key) <= LEASE_S * 1000 for key in keys])
        assert set(await two.relays()) == {"a", "b"}
        # The relay has died, and its time is over.
        for key in (b"cloud9-relay:1:calls:a", b"cloud9-relay:1:relay:a"):
            await look.pexpire(key, 0)
        assert await two.claim("ann", 1, 1, 0) == 0
        assert set(await two.relays()) == {"b"}
        assert await look.smembers("cloud9-relay:1:relays") == {b"b"}
        # It was only cut off, and comes back.
        assert await one.renew(LEASE_S) == Renewed(record=False, counts=False)
        await one.rewrite(RECORD, {"ann": 1}, LEASE_S)
        assert await two.claim("ann", 1, 1, 0) == 1
        await one.leave()
        assert await two.claim("ann", 1, 1, 0) == 0
        assert set(await two.relays()) == {"b"}


async def test_sessions_end_by_themselves(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (redis, one, two), looking(redis) as look:
        session = one.hashed("session", "*", "/", "sid")
        assert await two.find_session(session) is None
        await one.keep_session(session, one.hashed("url", "http://a.test"), 60.0)
        assert await two.find_session(session) == two.hashed("url", "http://a.test")
        assert 0 < await look.pttl(f"cloud9-relay:1:session:{session}") <= 60_000


async def test_tokens_that_were_shown_elsewhere_are_told_to_all_and_forgotten(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (redis, one, two), looking(redis) as look:
        assert await two.find_returned("") == ([], "")
        await one.say_returned("aa", 60.0)
        await one.say_returned("bb", 60.0)
        tokens, since = await two.find_returned("")
        assert tokens == ["aa", "bb"]
        assert await two.find_returned(since) == ([], since)
        await two.say_returned("cc", 60.0)
        assert (await two.find_returned(since))[0] == ["cc"]
        assert 0 < await look.pttl("cloud9-relay:1:returned") <= 60_000
        for _ in range(3):
            await look.xadd("cloud9-relay:1:returned", {"other": "field"})
        assert (await one.find_returned(since))[0] == ["cc", "", "", ""]


async def test_another_prefix_is_another_cluster(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (redis, one, _), client_of(redis, "c", prefix="other") as other:
        await one.claim("ann", 1, 1, LEASE_S)
        await other.rewrite(RECORD, {}, LEASE_S)
        assert await other.claim("ann", 1, 1, LEASE_S) == 0
        assert set(await other.relays()) == {"c"}


async def test_redis_sees_no_names(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis:
        hashes = set()
        for secret in (None, "s", "s" * 64, "s" * 65, "t" * 65):
            settings = {} if secret is None else {"secret": secret}
            async with client_of(redis, **settings) as client:
                assert client.hashed("user", "ann") == client.hashed("user", "ann")
                # Where one part ends and the next begins counts.
                assert len({client.hashed("a", "bc"), client.hashed("ab", "c"), client.hashed("user", "\ud800")}) == 3
                hashes.add(client.hashed("user", "ann"))
        assert len(hashes) == 5
        assert all(len(one) == 32 for one in hashes)


# Failures


async def failure_of(client: RedisClient) -> tuple[Failure, str]:
    with pytest.raises(StoreError) as raised:
        await client.rewrite(RECORD, {"ann": 1}, LEASE_S)
    with pytest.raises(StoreError) as claimed:
        await client.claim("nobody else", 1, 1, LEASE_S)
    with pytest.raises(StoreError) as probed:
        await client.probe()
    assert claimed.value.failure is probed.value.failure is raised.value.failure
    return raised.value.failure, str(raised.value)


async def test_full(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (redis, one, two), looking(redis) as look:
        await one.probe()
        await one.claim("ann", 1, 1, LEASE_S)
        await look.config_set("maxmemory", 1)
        failure, cause = await failure_of(two)
        assert failure is Failure.FULL
        assert "used memory" in cause
        assert "relay1" not in cause  # it tells no arguments
        # What is there can be kept.
        assert await one.renew(LEASE_S) == Renewed(record=True, counts=True)
        await look.config_set("maxmemory", 0)
        await two.probe()


async def test_passwords(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\nnot this\n")
    async with (
        redis_server(tmp_path, "--requirepass", "hunter2") as redis,
        looking(redis, password="hunter2") as look,
        client_of(redis, password_file=tmp_path / "password") as good,
        client_of(redis, password="wrong-one") as wrong,
        client_of(redis) as without,
    ):
        await good.probe()
        for client in (wrong, without):
            failure, cause = await failure_of(client)
            assert failure is Failure.REFUSED
            assert "wrong-one" not in cause
        for name, rights in (("reader", ["+@read"]), ("relay", ["+@read", "+@write", "+@scripting"])):
            await look.execute_command(
                "ACL", "SETUSER", name, "on", ">secret", "~cloud9-relay:*", *rights, "+@connection", "+@transaction"
            )
        async with client_of(redis, username="reader", password="secret") as reader:
            assert (await failure_of(reader))[0] is Failure.REFUSED
        # As docs/cluster.md says.
        async with client_of(redis, "c", username="relay", password="secret") as relay:
            await relay.probe()
            await relay.rewrite(RECORD, {"ann": 1}, LEASE_S)
            assert set(await relay.relays()) == {"c"}
            await relay.keep_session("s", "v", 1.0)
            await relay.leave()


async def test_tls(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "others")
    async with redis_server(tmp_path, tls=authority.issue("127.0.0.1")) as redis:
        url = redis.url.replace("redis:", "rediss:")
        async with client_of(redis, redis=url, ca_file=authority.ca_certificate) as client:
            await client.probe()
        async with client_of(redis, redis=url, ca_file=other.ca_certificate) as client:
            failure, cause = await failure_of(client)
            assert failure is Failure.UNREACHABLE
            assert "certificate" in cause.lower()
        # Its certificate has another name.
        url = url.replace("127.0.0.1", "localhost")
        async with client_of(redis, redis=url, ca_file=authority.ca_certificate) as client:
            assert (await failure_of(client))[0] is Failure.UNREACHABLE


async def test_gone(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as redis, client_of(redis) as client:
        await client.probe()
        await redis.kill()
        assert (await failure_of(client))[0] is Failure.UNREACHABLE


async def test_what_others_write_is_read_with_care(tmp_path: Path) -> None:
    async with two_relays(tmp_path) as (redis, one, _), looking(redis) as look:
        strange = {
            b"c": b"\xff\xfe",
            b"d": b"[" * 100_000,
            b"e": b'{"name": "' + b"x" * 2 * MAX_RECORD_BYTES,
            b"f": b'{"name": ["relay"], "address": "\\u001b[2J", "version": 1, "draining": "yes"}',
            b"\xff\n": b'{"name": "%s"}' % (b"y" * 500),
        }
        for key, value in strange.items():
            await look.sadd("cloud9-relay:1:relays", key)
            await look.set(b"cloud9-relay:1:relay:" + key, value)
        found = await one.relays()
        assert len(found) == 7
        assert max(map(len, found.values())) <= MAX_RECORD_BYTES
        for record in map(RelayRecord.load, found, found.values()):
            assert all(text.isprintable() and len(text) <= 100 for text in (record.id, record.name, record.address))
            assert not record.draining
        assert RelayRecord.load("a", found["a"]) == RelayRecord("a", "relay1", "192.0.2.1:443", "0.1.0", False)
        # Numbers that are not numbers count nothing, and what is something else altogether is an error.
        await look.hset("cloud9-relay:1:calls:c", "ann", "many")
        assert await one.claim("ann", 1, 1, 0) == 0
        await look.set("cloud9-relay:1:calls:d", "text")
        with pytest.raises(StoreError) as raised:
            await one.claim("ann", 1, 1, 0)
        assert raised.value.failure is Failure.ERROR
