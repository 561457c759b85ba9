"""The search finds the knee of targets whose knee is known, also of those that are not always the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from loadtest.plan.search import Outcome, Search

# Doubling to 10,000, halving to a twentieth, what has broken once more, and six tries around the knee.
MAX_TRIES = 50


def search(truth: Callable[[int], Outcome], first: int = 50, most: int = 10_000, repeats: int = 3) -> Search:
    found = Search(first, most, repeats)
    for _ in range(MAX_TRIES):
        calls = found.next()
        if calls is None:
            return found
        assert 1 <= calls <= most
        found.note(calls, truth(calls))
    raise AssertionError(found)


def up_to(knee: int, otherwise: Outcome = Outcome.BROKE) -> Callable[[int], Outcome]:
    return lambda calls: Outcome.HELD if calls <= knee else otherwise


@pytest.mark.parametrize("knee", [1, 3, 49, 50, 51, 777, 1000, 9_999])
def test_a_target_with_a_knee(knee: int) -> None:
    found = search(up_to(knee))
    assert knee * 0.95 - 1 <= found.knee <= knee
    assert found.limit == "target"
    # Both sides of it were tried again.
    assert found.lowest_failure is not None
    assert found.tries[found.knee].total() == found.tries[found.lowest_failure].total() == 3


def test_a_target_that_carries_all() -> None:
    found = search(up_to(20_000))
    assert (found.knee, found.limit) == (10_000, "search")
    assert found.tries[10_000].total() == 3


def test_a_target_that_carries_nothing() -> None:
    found = search(up_to(0))
    assert (found.knee, found.limit) == (0, "target")


def test_a_knee_of_the_generator_says_so() -> None:
    assert search(up_to(300, Outcome.VOID)).limit == "generator"


def sometimes(knee: int, share: float, seed: int) -> Callable[[int], Outcome]:
    """A machine that does other things: now and then a try breaks for no reason of the target's."""
    chance = random.Random(seed)
    return lambda calls: Outcome.HELD if calls <= knee and chance.random() > share else Outcome.BROKE


def test_bad_tries_do_not_decide() -> None:
    knees = sorted(search(sometimes(1000, 0.1, seed)).knee for seed in range(100))
    assert knees[-1] <= 1000
    assert knees[20] >= 900
    # Three searches of the same target agree, mostly.
    assert knees[80] - knees[20] <= 0.1 * knees[50]
