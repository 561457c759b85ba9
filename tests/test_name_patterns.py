"""Patterns of names: both meanings of ``*.``, and which of them each of their users has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from relay import name_patterns
from relay.addresses import Address
from relay.catalog import Catalog
from relay.config import HealthSettings, Route, SignalingSettings
from relay.gateway.admin.hosts import check_host
from relay.gateway.admin.refusals import AdminRefusals
from relay.gateway.routing.routes import Routes
from relay.gateway.signaling.pools import Pools
from relay.gateway.web_proxy.destinations import Destinations, Way

PATTERN = "*.a.test"
NOWHERE = Catalog(as_of="2026-11", domains=(), hosts=(), networks=(), ports=())
# A name, and whether the pattern matches it where a * is one label, and where it is one label or more.
NAMES = [
    ("b.a.test", True, True),
    ("c.b.a.test", False, True),
    ("a.b.a.test", False, True),
    ("a.test", False, False),
    ("xa.test", False, False),
    ("test", False, False),
    ("b.a.test.evil.example", False, False),
    ("b.xa.test", False, False),
    ("b.a.testing", False, False),
]

# Each takes a name, and says whether the pattern matches it.


def is_routed(name: str) -> bool:
    return Routes([Route(server_name=PATTERN, region="use1")]).match(name) is not None


def is_signaling(name: str) -> bool:
    pools = Pools()
    routes = [{"host": PATTERN, "upstreams": ["http://192.0.2.7"]}]
    pools.configure(SignalingSettings.model_validate({"routes": routes}), HealthSettings())
    return pools.match(name, "/") is not None


def is_a_destination(name: str) -> bool:
    return Destinations(NOWHERE, allowed=[Address(PATTERN, 443)]).way(Address(name, 443), "192.0.2.1") is Way.TUNNEL


def is_certified(name: str) -> bool:
    return Destinations(NOWHERE, certified={PATTERN}).way(Address(name, 443), "192.0.2.1") is Way.ADOPT


def is_the_vendors(name: str) -> bool:
    return Catalog(as_of="2026-11", domains=(PATTERN,), hosts=(), networks=(), ports=()).covers(name)


async def is_an_admin_host(name: str, pattern: str = PATTERN) -> bool:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response()

    middleware: Any = check_host({pattern}, AdminRefusals())
    answered = await middleware(make_mocked_request("GET", "/", headers={"Host": name}), answer)
    return bool(answered.status == 200)


@pytest.mark.parametrize(("name", "one", "more"), NAMES)
@pytest.mark.parametrize("matches", [is_certified, is_the_vendors])
def test_one_label(matches: Callable[[str], bool], name: str, one: bool, more: bool) -> None:
    assert matches(name) is one
    assert (name_patterns.one_label_wildcard(name) == PATTERN) is one


@pytest.mark.parametrize(("name", "one", "more"), NAMES)
@pytest.mark.parametrize("matches", [is_routed, is_signaling, is_a_destination])
def test_one_label_or_more(matches: Callable[[str], bool], name: str, one: bool, more: bool) -> None:
    assert matches(name) is more
    assert name_patterns.matches(name, PATTERN) is more
    assert (PATTERN in name_patterns.patterns_of(name)) is more


@pytest.mark.parametrize(("name", "one", "more"), NAMES)
async def test_one_label_or_more_of_admin_hosts(name: str, one: bool, more: bool) -> None:
    assert await is_an_admin_host(name) is more
    assert await is_an_admin_host(name, "*")


def test_a_pattern_without_wildcard_is_a_name() -> None:
    assert name_patterns.matches("a.test", "a.test")
    assert not name_patterns.matches("b.a.test", "a.test")
    assert not name_patterns.matches("a.test", "*")  # that is for the callers who have it


def test_the_most_specific_pattern_comes_first() -> None:
    assert list(name_patterns.patterns_of("c.b.a")) == ["c.b.a", "*.b.a", "*.a"]
    assert list(name_patterns.patterns_of("a")) == ["a"]
    assert list(name_patterns.patterns_of("")) == [""]


labels = st.lists(st.sampled_from(["a", "b", "test"]), min_size=1, max_size=4).map(".".join)


@given(labels, labels, st.booleans())
def test_looking_up_and_matching_agree(name: str, suffix: str, wild: bool) -> None:
    pattern = "*." + suffix if wild else suffix
    assert (pattern in name_patterns.patterns_of(name)) is name_patterns.matches(name, pattern)
