"""Which upstream a request goes to, who holds a session, and which addresses a name may resolve to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling.pools import CheckedResolver, Pool, Pools, Sessions, SignalingUpstream

ONE, TWO, THREE = "http://192.0.2.1:80", "http://192.0.2.2:80", "http://192.0.2.3:80"


def pools_of(**settings: Any) -> Pools:
    pools = Pools()
    pools.configure(SignalingSettings.model_validate(settings), HealthSettings())
    return pools


def pool_of(*urls: str) -> Pool:
    found = pools_of(upstreams=urls).match("a.test", "/")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("host", "path", "url"),
    [
        ("a.test", "/socket.io/", TWO),
        ("a.test", "/socket.io", ONE),
        ("a.test", "/socket.iox", ONE),
        ("b.a.test", "/", THREE),
        ("c.b.a.test", "/socket.io/", THREE),
        ("test", "/", None),
        ("xa.test", "/", None),
        ("", "/", None),
    ],
)
def test_match(host: str, path: str, url: str | None) -> None:
    routes = [
        {"host": "a.test", "upstreams": [ONE]},
        {"host": "a.test", "path": "/socket.io/", "upstreams": [TWO]},
        {"host": "*.a.test", "upstreams": [THREE]},
    ]
    found = pools_of(routes=routes).match(host, path)
    assert (None if found is None else found.upstreams[0].url) == url
    # Whatever no route takes goes to signaling.upstreams, if there are any.
    found = pools_of(routes=routes, upstreams=["http://192.0.2.4"]).match(host, path)
    assert found is not None
    assert found.upstreams[0].url == (url or "http://192.0.2.4")


def test_order_is_healthy_then_least_loaded_then_in_turn() -> None:
    pool = pool_of(ONE, TWO, THREE)
    one, two, three = pool.upstreams
    assert pool.order(0) == [one, two, three]
    assert pool.order(1) == [two, three, one]
    one.requests = 1
    assert pool.order(0) == [two, three, one]
    two.on_failure("refused", certain=True)
    assert pool.order(0) == [three, one, two]


def test_what_is_known_survives_a_reload() -> None:
    pools = pools_of(upstreams=[ONE, TWO])
    one, two = pools
    one.on_success()
    pools.configure(SignalingSettings(upstreams=(ONE, THREE)), HealthSettings())
    kept, new = pools
    assert kept is one
    assert (kept.health, new.health) == (Health.UP, Health.UNKNOWN)
    assert two not in list(pools)


def sessions_of(max_sessions: int = 10, idle_s: float = 60.0) -> Sessions:
    sessions = Sessions()
    sessions.max_sessions, sessions.idle_s = max_sessions, idle_s
    return sessions


def test_session_is_found_until_it_is_idle() -> None:
    pool, sessions = pool_of(ONE, TWO), sessions_of()
    one = pool.upstreams[0]
    sessions.learn(0.0, pool, "sid", one)
    assert sessions.find(59.0, pool, "sid") is one
    # Use counts.
    assert sessions.find(118.0, pool, "sid") is one
    assert sessions.find(179.0, pool, "sid") is None
    assert sessions.find(0.0, pool, "other") is None


def test_session_belongs_to_its_route_and_upstream() -> None:
    pool, sessions = pool_of(ONE, TWO), sessions_of()
    sessions.learn(0.0, pool, "sid", pool.upstreams[0])
    assert sessions.find(0.0, pool._replace(path="/other"), "sid") is None
    assert sessions.find(0.0, pool._replace(upstreams=pool.upstreams[1:]), "sid") is None
    sessions.forget(pool, "sid")
    assert sessions.find(0.0, pool, "sid") is None


def test_table_is_bounded() -> None:
    pool, sessions = pool_of(ONE), sessions_of(max_sessions=3)
    one: SignalingUpstream = pool.upstreams[0]
    for number in range(100):
        sessions.learn(0.0, pool, f"sid{number}", one)
    assert len(sessions) == 3
    assert sessions.find(0.0, pool, "sid99") is one
    assert sessions.find(0.0, pool, "sid0") is None
    # What has expired goes without being asked for.
    sessions.learn(1000.0, pool, "new", one)
    assert len(sessions) == 1


SPECIAL = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "fc00::1",
    "fe80::1",
    "ff02::1",
]


def resolving(*answers: list[str]) -> CheckedResolver:
    """Names resolve to these, one answer after the other."""
    left = list(answers)

    async def lookup(_: str) -> list[str]:
        return left.pop(0)

    return CheckedResolver(lookup)


@pytest.mark.parametrize("host", SPECIAL)
async def test_names_of_special_addresses_are_refused(host: str) -> None:
    resolver = resolving([host], [host, "8.8.8.8"], [host])
    with pytest.raises(OSError, match="allowed_networks"):
        await resolver.resolve("a.test", 80)
    # Only what was checked is connected to.
    assert [found["host"] for found in await resolver.resolve("a.test", 80)] == ["8.8.8.8"]
    resolver.configure([ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")])
    assert [found["host"] for found in await resolver.resolve("a.test", 80)] == [host]


async def test_answer_that_changes_after_the_check_is_not_used() -> None:
    resolver = resolving(["8.8.8.8"], ["127.0.0.1"])
    [found] = await resolver.resolve("a.test", 80)
    # Numbers, which are connected to without another look-up.
    assert (found["host"], found["flags"]) == ("8.8.8.8", socket.AI_NUMERICHOST)
    with pytest.raises(OSError, match="allowed_networks"):
        await resolver.resolve("a.test", 80)


async def test_names_of_one_family() -> None:
    resolver = resolving(["8.8.8.8", "2001:4860:4860::8888"])
    [found] = await resolver.resolve("a.test", 80, socket.AF_INET6)
    assert (found["host"], found["family"]) == ("2001:4860:4860::8888", socket.AF_INET6)


async def test_resolver_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(_: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    resolver = CheckedResolver(lookup)
    monkeypatch.setattr("relay.gateway.signaling.pools.RESOLVE_TIMEOUT_S", 0.05)
    with pytest.raises(OSError, match="no answer from the resolver"):
        await resolver.resolve("a.test", 80)
