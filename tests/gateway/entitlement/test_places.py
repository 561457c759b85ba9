"""Calls at once: counted by user, given up by connections that have nothing, and never more than there are."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.entitlement.places import LOOK_INTERVAL_S, PROVISIONAL_S, Places


class Holders:
    """What the data plane knows of connections, and who was told to go."""

    def __init__(self) -> None:
        self.allocated: set[Hashable] = set()
        self.gone: list[Hashable] = []
        self.looks = 0
        self.places = Places(self.look, self.gone.append)

    def look(self) -> set[Hashable]:
        self.looks += 1
        return self.allocated

    def take(self, now: float, holder: Hashable, user: str = "ann", most: int | None = 1) -> bool:
        return self.places.take(now, holder, user, most, provisional=True)


def test_as_many_as_allowed() -> None:
    holders = Holders()
    assert [holders.take(0, holder, most=2) for holder in (1, 2, 3)] == [True, True, False]
    assert holders.take(0, 4, "bob", most=2)
    holders.places.release(1)
    assert holders.take(0, 3, most=2)
    assert (holders.places.count("ann"), holders.places.count("bob"), len(holders.places)) == (2, 1, 3)


def test_without_a_bound_calls_are_counted_all_the_same() -> None:
    holders = Holders()
    assert all(holders.take(0, holder, most=None) for holder in range(9))
    assert not holders.take(0, 9, most=9)


def test_a_holder_has_one_place() -> None:
    holders = Holders()
    assert holders.take(0, 1)
    assert holders.take(0, 1)
    assert holders.take(0, 1, "bob")  # another name on the same connection
    assert (holders.places.count("ann"), holders.places.count("bob")) == (0, 1)
    assert not holders.take(0, 2, "bob")


def test_who_is_refused_keeps_what_he_has() -> None:
    holders = Holders()
    assert holders.take(0, 1, "ann")
    assert holders.take(0, 2, "bob")
    assert not holders.take(0, 2, "ann")
    assert holders.places.count("bob") == 1


def test_release_may_be_repeated_and_leaves_nothing() -> None:
    holders = Holders()
    holders.take(0, 1)
    for _ in range(2):
        holders.places.release(1)
    assert (len(holders.places), holders.places._holders) == (0, {})


def test_a_place_without_an_allocation_is_given_up_after_a_while() -> None:
    holders = Holders()
    assert holders.take(0, 1)
    assert not holders.take(PROVISIONAL_S - 0.1, 2)
    assert holders.looks == 0
    assert holders.take(PROVISIONAL_S, 2)
    assert (holders.gone, holders.places.count("ann")) == ([1], 1)


def test_a_place_with_an_allocation_is_kept() -> None:
    holders = Holders()
    assert holders.take(0, 1)
    holders.allocated = {1}
    assert not holders.take(1000, 2)
    assert holders.gone == []


def test_a_place_that_is_not_provisional_is_kept() -> None:
    holders = Holders()
    assert holders.places.take(0, "session", "ann", 1, provisional=False)
    assert not holders.take(1000, 2)
    assert (holders.gone, holders.looks) == ([], 0)


def test_no_more_are_given_up_than_needed() -> None:
    holders = Holders()
    for holder in range(4):
        assert holders.take(holder, holder, most=4)
    holders.allocated = {1}
    assert holders.take(100, 4, most=4)
    assert holders.gone == [0]
    # The bound was lowered meanwhile: two must go, and two are there.
    assert holders.take(100 + LOOK_INTERVAL_S, 5, most=3)
    assert holders.gone == [0, 2, 3]


def test_none_is_given_up_where_that_would_not_do() -> None:
    holders = Holders()
    for holder in range(3):
        assert holders.take(0, holder, most=3)
    holders.allocated = {0, 1}
    assert not holders.take(100, 3, most=1)
    assert holders.gone == []


def test_who_asks_often_does_not_make_us_look_often() -> None:
    holders = Holders()
    assert holders.take(0, 1)
    holders.allocated = {1}
    assert not any(holders.take(20 + number / 100, 2) for number in range(100))
    assert holders.looks == 1
    assert not holders.take(20 + LOOK_INTERVAL_S, 2)
    assert holders.looks == 2


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "release", "allocate"]),
        st.integers(0, 7),
        st.sampled_from(["ann", "bob"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 3))
def test_never_more_than_allowed_and_nothing_is_forgotten(steps: list[tuple[str, int, str, int]], most: int) -> None:
    holders = Holders()
    now, model = 0.0, dict[Hashable, str]()
    for step, holder, user, wait in steps:
        now += wait
        if step == "take":
            if holders.take(now, holder, user, most):
                model[holder] = user
            for gone in holders.gone:
                assert gone not in holders.allocated
                model.pop(gone, None)
            holders.gone.clear()
        elif step == "release":
            holders.places.release(holder)
            model.pop(holder, None)
            holders.allocated.discard(holder)
        else:
            holders.allocated.add(holder)
        for name in ("ann", "bob"):
            assert holders.places.count(name) == list(model.values()).count(name) <= most
    assert len(holders.places) == len(model)


@pytest.mark.parametrize("most", [1, 5])
def test_memory_is_that_of_the_holders(most: int) -> None:
    holders = Holders()
    for number in range(1000):
        holders.take(number, number, f"user{number}", most)
        holders.places.release(number)
    assert (len(holders.places), len(holders.places._holders)) == (0, 0)
