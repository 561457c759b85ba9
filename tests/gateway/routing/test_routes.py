"""Routes: server name to region; and the choice of an upstream in it."""

from __future__ import annotations

import pytest

from relay.config import HealthSettings, Route, UpstreamServer
from relay.gateway.routing.routes import RTT_TIE_S, Routes, choose
from relay.gateway.routing.upstreams import UpstreamState

UP, DOWN, UNKNOWN = "up", "down", "unknown"
ROUTES = Routes(
    Route(server_name=name, region=region)
    for name, region in [
        ("*.xhoot.com", "any"),
        ("*.prod1.xhoot.com", "prod1"),
        ("stun1.use1.prod1.xhoot.com", "use1"),
        ("relay.test", "euc1"),
    ]
)


@pytest.mark.parametrize(
    ("server_name", "region"),
    [
        ("relay.test", "euc1"),
        # The exact name goes before every wildcard, the longer wildcard before the shorter.
        ("stun1.use1.prod1.xhoot.com", "use1"),
        ("stun2.use1.prod1.xhoot.com", "prod1"),
        ("prod1.xhoot.com", "any"),
        ("www.xhoot.com", "any"),
        # A wildcard stands for one label or more, not for none.
        ("a.b.c.d.xhoot.com", "any"),
        ("xhoot.com", None),
        ("notxhoot.com", None),
        ("relay.test.example.com", None),
        # Case and a final dot do not count; a client may send no name at all.
        ("STUN1.use1.Prod1.xhoot.com.", "use1"),
        ("", None),
        ("*.xhoot.com", "any"),
    ],
)
def test_region_of_a_server_name(server_name: str, region: str | None) -> None:
    assert ROUTES.region(server_name) == region


def test_a_route_says_how_old_media_may_be() -> None:
    routes = Routes([Route(server_name="*.relay.test", region="default", max_media_age_ms=100)])
    route = routes.match("desk.relay.test")
    assert route is not None
    assert route.max_media_age_ms == 100
    assert routes.match("relay.test") is None


def test_no_routes_take_every_name_anywhere() -> None:
    assert Routes([]).region("relay.test") is None


# The choice


def upstream(
    name: str, health: str = UP, *, rtt_ms: float | None = 1.0, flows: int = 0, region: str = "use1"
) -> UpstreamState:
    settings = UpstreamServer.model_validate({"name": name, "region": region, "address": "192.0.2.7:3478"})
    state = UpstreamState(settings, HealthSettings())
    if health == UP:
        state.life.on_success()
    elif health == DOWN:
        state.life.on_failure(certain=True)
    state.rtt_s = None if rtt_ms is None else rtt_ms / 1000
    state.flows = flows
    return state


def chosen(*upstreams: UpstreamState, region: str | None = "use1") -> str | None:
    state = choose(upstreams, region)
    return None if state is None else state.name


def test_nearest_of_those_that_are_up() -> None:
    assert chosen(upstream("far", rtt_ms=80), upstream("near", rtt_ms=5), upstream("dead", DOWN, rtt_ms=1)) == "near"


def test_load_does_not_outweigh_distance() -> None:
    assert chosen(upstream("far", rtt_ms=80), upstream("near", rtt_ms=5, flows=500)) == "near"


def test_equally_near_the_least_loaded() -> None:
    tie_ms = RTT_TIE_S * 1000
    assert chosen(upstream("a", rtt_ms=1, flows=2), upstream("b", rtt_ms=1 + tie_ms, flows=1)) == "b"
    assert chosen(upstream("a", rtt_ms=1, flows=2), upstream("b", rtt_ms=1.1 + tie_ms, flows=1)) == "a"


def test_equally_near_and_loaded_the_nearest() -> None:
    assert chosen(upstream("a", rtt_ms=3, flows=2), upstream("b", rtt_ms=2, flows=2)) == "b"


def test_flows_spread_evenly() -> None:
    pair = [upstream("a"), upstream("b")]
    for _ in range(10):
        state = choose(pair, "use1")
        assert state is not None
        state.flows += 1
    assert [state.flows for state in pair] == [5, 5]


def test_no_fallback_to_another_region() -> None:
    here, there = upstream("here", DOWN), upstream("there", region="euc1")
    assert chosen(here, there) is None
    assert chosen(here, there, region="euc1") == "there"
    assert chosen(here, there, region=None) == "there"
    assert chosen(there, region="usw2") is None


def test_unknown_only_when_none_is_up() -> None:
    new = upstream("new", UNKNOWN, rtt_ms=None)
    assert chosen(new, upstream("up", rtt_ms=300, flows=9)) == "up"
    assert chosen(new, upstream("dead", DOWN)) == "new"


def test_nobody_is_left() -> None:
    assert chosen() is None
    assert chosen(upstream("dead", DOWN)) is None
