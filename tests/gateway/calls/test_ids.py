"""Ids of calls: there and back, unique, and forgiving to those who read them aloud."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.calls import ids as module
from relay.gateway.calls.ids import CallIds, normal
from relay.plane.api import ConnectionId


def compiled(worker: int, generation: int, index: int) -> ConnectionId:
    """As the compiled plane numbers connections."""
    return ConnectionId(worker << 56 | generation << 32 | index)


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        (ConnectionId(0), "test-0"),
        (ConnectionId(77), "test-2d"),
        (compiled(0, 5, 12), "test-c-5"),
        (compiled(1, 5, 12), "test-c-5-1"),
        (compiled(3, 0, 0), "test-0-0-3"),
        (ConnectionId(2**64 - 1), "test-3zzzzzz-fzzzz-7z"),
    ],
)
def test_short_for_what_is_small(connection: ConnectionId, expected: str) -> None:
    ids = CallIds("test")
    assert ids.id_of(connection) == expected
    assert ids.connection_of(expected) == connection


@given(st.integers(0, 2**64 - 1))
def test_there_and_back(number: int) -> None:
    ids = CallIds()
    told = ids.id_of(ConnectionId(number))
    assert ids.connection_of(told) == number
    assert re.fullmatch(r"[0-9a-hjkmnp-tv-z]{9}(-[0-9a-hjkmnp-tv-z]+){1,3}", told)
    assert len(told) <= 27


@given(st.text(max_size=40) | st.from_regex(r"test-[0-9a-z-]{0,24}", fullmatch=True))
def test_whatever_is_given_is_an_id_or_none(text: str) -> None:
    found = CallIds("test").connection_of(text)
    assert found is None or CallIds("test").id_of(found) == normal(text)


@pytest.mark.parametrize("heard", [" 07PWK1M0X-C-1 ", "o7pwklmOx-c-I", "07pwkImox-c-l"])
def test_what_was_heard_is_understood(heard: str) -> None:
    assert CallIds("07pwk1m0x").connection_of(heard) == compiled(0, 1, 12)


@pytest.mark.parametrize(
    "wrong", ["", "test", "test-", "test--1", "test-01", "test-1-0", "test-1-1-1-1", "best-1", "1", "test-é"]
)
def test_what_is_no_id(wrong: str) -> None:
    assert CallIds("test").connection_of(wrong) is None


def test_the_largest_parts_and_no_larger() -> None:
    ids = CallIds("test")
    assert ids.connection_of("test-4000000") is None  # 2^32
    assert ids.connection_of("test-0-g0000") is None  # 2^24
    assert ids.connection_of("test-0-0-80") is None  # 2^8


def test_each_run_has_its_own() -> None:
    prefixes = {CallIds().prefix for _ in range(1000)}
    assert len(prefixes) == 1000
    assert {len(prefix) for prefix in prefixes} == {9}


def test_runs_sort_by_the_hour() -> None:
    hours = [module._new_prefix(module._EPOCH_S + 3600 * hour) for hour in (0, 1, 31, 32, 33_000, 1_000_000)]
    assert hours == sorted(hours)
    # A clock that was never set does no harm.
    assert module._new_prefix(0.0).startswith("0000")
