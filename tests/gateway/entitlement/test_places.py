"""Calls at once: counted by user, free again when their allocation has ended, and never more than allowed."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.entitlement.places import Places


class Holders:
    """What the data plane knows of connections."""

    def __init__(self) -> None:
        self.ended: set[Hashable] = set()
        self.looks = 0
        self.places = Places(self.look)

    def look(self, holder: Hashable) -> bool:
        self.looks += 1
        return holder not in self.ended

    def take(self, holder: Hashable, user: str = "ann", max_calls: int | None = 1) -> bool:
        return self.places.take(holder, user, max_calls)


def test_as_many_as_allowed() -> None:
    holders = Holders()
    assert [holders.take(holder, max_calls=2) for holder in (1, 2, 3)] == [True, True, False]
    assert holders.take(4, "bob", max_calls=2)
    holders.places.release(1)
    assert holders.take(3, max_calls=2)
    assert (holders.places.count("ann"), holders.places.count("bob"), len(holders.places)) == (2, 1, 3)


def test_without_a_bound_calls_are_counted_all_the_same() -> None:
    holders = Holders()
    assert all(holders.take(holder, max_calls=None) for holder in range(9))
    assert not holders.take(9, max_calls=9)


def test_to_look_for_room_takes_no_place() -> None:
    holders = Holders()
    for holder in range(9):
        assert holders.places.has_room(holder, "ann", 1)
    assert holders.take(1)
    assert holders.places.has_room(1, "ann", 1)  # its own
    assert not holders.places.has_room(2, "ann", 1)
    assert (len(holders.places), holders.places.count("ann")) == (1, 1)


def test_a_holder_has_one_place() -> None:
    holders = Holders()
    assert holders.take(1)
    assert holders.take(1)
    assert holders.take(1, "bob")  # another call on the same connection
    assert (holders.places.count("ann"), holders.places.count("bob")) == (0, 1)
    assert not holders.take(2, "bob")


def test_a_holder_that_is_refused_keeps_what_it_has() -> None:
    holders = Holders()
    assert holders.take(1, "ann")
    assert holders.take(2, "bob")
    assert not holders.take(2, "ann")
    assert holders.places.count("bob") == 1


def test_release_may_be_repeated_and_leaves_nothing() -> None:
    holders = Holders()
    holders.take(1)
    for _ in range(2):
        holders.places.release(1)
    assert (len(holders.places), holders.places._holders) == (0, {})


def test_a_place_whose_allocation_has_ended_is_free() -> None:
    holders = Holders()
    assert holders.take(1)
    assert not holders.take(2)
    holders.ended = {1}
    assert holders.take(2)
    assert holders.places.count("ann") == 1


def test_nobody_looks_at_calls_while_there_is_room() -> None:
    holders = Holders()
    assert [holders.take(holder, max_calls=3) for holder in range(3)] == [True] * 3
    assert holders.looks == 0
    assert not holders.take(3, max_calls=3)
    assert holders.looks == 3


def test_one_user_who_asks_often_keeps_nobody_else_from_a_place_that_is_free() -> None:
    holders = Holders()
    assert holders.take(1, "ann")
    assert holders.take(2, "bob")
    holders.ended = {2}
    assert not any(holders.take(3, "ann") for _ in range(100))
    assert holders.take(4, "bob")


def test_a_bound_that_was_lowered() -> None:
    holders = Holders()
    assert [holders.take(holder, max_calls=3) for holder in range(3)] == [True] * 3
    holders.ended = {0}
    assert not holders.take(3, max_calls=1)
    holders.ended = {0, 1, 2}
    assert holders.take(3, max_calls=1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "release", "end"]),
        st.integers(0, 7),
        st.sampled_from(["ann", "bob"]),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 3))
def test_never_more_than_allowed_and_no_call_loses_its_place(steps: list[tuple[str, int, str]], max_calls: int) -> None:
    holders = Holders()
    calls = dict[Hashable, str]()
    for step, holder, user in steps:
        if step == "take":
            others = [one for one, name in calls.items() if name == user and one != holder]
            assert holders.take(holder, user, max_calls) is (len(others) < max_calls)
            if len(others) < max_calls:
                calls[holder] = user
                holders.ended.discard(holder)
        elif step == "release":
            holders.places.release(holder)
            calls.pop(holder, None)
        else:
            holders.ended.add(holder)
            calls.pop(holder, None)
        for name in ("ann", "bob"):
            assert list(calls.values()).count(name) <= min(max_calls, holders.places.count(name))
    assert len(holders.places) >= len(calls)


@pytest.mark.parametrize("max_calls", [1, 5])
def test_memory_is_that_of_the_holders(max_calls: int) -> None:
    holders = Holders()
    for number in range(1000):
        holders.take(number, f"user{number}", max_calls)
        holders.places.release(number)
    assert (len(holders.places), len(holders.places._holders)) == (0, 0)
