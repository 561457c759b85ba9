"""The token bucket: bursts, refill, and how many sources it remembers."""

from __future__ import annotations

import sys

import pytest

from relay.rate_limit import MAX_SOURCES, RateLimit


def granted(limit: RateLimit, now: float, source: str, attempts: int = 100) -> int:
    return sum(limit.allows(now, source) for _ in range(attempts))


def test_ten_a_second_with_a_burst_of_ten() -> None:
    limit = RateLimit(10)
    assert granted(limit, 0.0, "a") == 10
    assert granted(limit, 0.5, "a") == 5
    assert granted(limit, 0.5, "a") == 0
    assert granted(limit, 1.5, "a") == 10


def test_tokens_are_not_saved_up_beyond_the_burst() -> None:
    limit = RateLimit(10)
    granted(limit, 0.0, "a")
    assert granted(limit, 3600.0, "a") == 10


def test_a_steady_source_within_the_rate_is_never_refused() -> None:
    limit = RateLimit(8)
    assert all(limit.allows(tick / 8, "a") for tick in range(1000))


def test_a_source_that_never_pauses_still_gets_its_rate() -> None:
    limit = RateLimit(8)
    assert sum(limit.allows(tick / 64, "a") for tick in range(64 * 10)) == 8 + 8 * 10 - 1


def test_sources_do_not_share() -> None:
    limit = RateLimit(1)
    assert [limit.allows(0.0, source) for source in "aabb"] == [True, False, True, False]


@pytest.mark.parametrize("per_second", [0.5, 0.1])
def test_less_than_one_a_second_grants_one_at_a_time(per_second: float) -> None:
    limit = RateLimit(per_second)
    assert granted(limit, 0.0, "a") == 1
    assert granted(limit, 0.9 / per_second, "a") == 0
    assert granted(limit, 2.0 / per_second, "a") == 1


def test_zero_grants_everything() -> None:
    assert granted(RateLimit(0), 0.0, "a") == 100


def test_what_is_given_back_can_be_taken_again_and_no_more() -> None:
    limit = RateLimit(2)
    for _ in range(10):
        assert limit.allows(0.0, "a")
        limit.give_back("a")
    limit.give_back("a")
    limit.give_back("nobody")
    assert granted(limit, 0.0, "a") == 2
    assert granted(limit, 0.0, "nobody") == 2


def test_the_source_unheard_for_the_longest_is_forgotten() -> None:
    limit = RateLimit(1)
    for number in range(MAX_SOURCES):
        assert limit.allows(0.0, str(number))
    assert not limit.allows(0.0, "0")  # Heard again: now "1" is the oldest.
    assert limit.allows(0.0, "one more")
    assert not limit.allows(0.0, "0")
    assert not limit.allows(0.0, "2")
    assert limit.allows(0.0, "1")


def test_invented_sources_take_less_than_half_a_megabyte() -> None:
    limit = RateLimit(10)
    for number in range(3 * MAX_SOURCES):
        limit.allows(number / 1000, f"203.0.113.17:{10_000 + number}")
    kept = limit._full_at
    assert len(kept) == MAX_SOURCES
    held = sum(sys.getsizeof(source) + sys.getsizeof(full_at) for source, full_at in kept.items())
    assert sys.getsizeof(kept) + held < 500_000
