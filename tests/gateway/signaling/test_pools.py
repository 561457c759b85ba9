"""Which upstreams may serve a request, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling.pools import Pool, Pools

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
