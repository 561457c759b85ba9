"""Who guesses passwords waits longer and longer; everyone else does not."""

from __future__ import annotations

import pytest

from relay.emulator.login.throttle import (
    FREE_FAILURES,
    FREE_FAILURES_OF_ADDRESS,
    LONGEST_WAIT_S,
    MAX_KEPT,
    MEMORY_S,
    Throttle,
)


def fail(throttle: Throttle, now: float, times: int, name: str = "anna", address: str = "10.0.0.1") -> None:
    for _ in range(times):
        throttle.failed(now, name, address)


def test_some_mistakes_are_free() -> None:
    throttle = Throttle()
    fail(throttle, 0.0, FREE_FAILURES - 1)
    assert throttle.wait(0.0, "anna", "10.0.0.1") == 0.0


def test_the_wait_doubles_up_to_a_bound() -> None:
    throttle, waits, now = Throttle(), [], 0.0
    fail(throttle, now, FREE_FAILURES - 1)
    for _ in range(12):
        fail(throttle, now, 1)
        waits.append(throttle.wait(now, "anna", "10.0.0.1"))
        now += waits[-1]
        assert throttle.wait(now, "anna", "10.0.0.1") == 0.0
    assert waits == [1, 2, 4, 8, 16, 32, *[LONGEST_WAIT_S] * 6]


def test_a_success_frees_the_name() -> None:
    throttle = Throttle()
    fail(throttle, 0.0, FREE_FAILURES - 1)
    throttle.failed(0.0, "anna", "10.0.0.1")
    throttle.succeeded("anna")
    assert throttle.wait(0.0, "anna", "10.0.0.1") == 0.0
    fail(throttle, 0.0, FREE_FAILURES - 1)
    assert throttle.wait(0.0, "anna", "10.0.0.1") == 0.0


def test_upper_case_is_not_another_name() -> None:
    throttle = Throttle()
    fail(throttle, 0.0, FREE_FAILURES, name="Anna")
    assert throttle.wait(0.0, "aNNA", "10.9.9.9") > 0


def test_an_address_that_tries_many_names_has_no_free_failures() -> None:
    throttle = Throttle()
    for number in range(FREE_FAILURES_OF_ADDRESS):
        throttle.failed(0.0, f"user{number}", "10.0.0.1")
    assert throttle.wait(0.0, "user0", "10.0.0.1") > 0
    assert throttle.wait(0.0, "user0", "10.0.0.2") == 0.0


def test_who_has_not_failed_never_waits_for_a_neighbour() -> None:
    throttle = Throttle()
    fail(throttle, 0.0, 1000)
    assert throttle.wait(0.0, "anna", "10.0.0.1") > 0
    assert throttle.wait(0.0, "hana", "10.0.0.1") == 0.0


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machines_own_addresses_do_not_count(address: str) -> None:
    throttle = Throttle()
    fail(throttle, 0.0, 1000, address=address)
    fail(throttle, 0.0, 1, name="hana", address=address)
    assert throttle.wait(0.0, "anna", address) > 0
    assert throttle.wait(0.0, "hana", address) == 0.0


def test_old_failures_are_forgotten() -> None:
    throttle = Throttle()
    fail(throttle, 0.0, 20)
    assert throttle.wait(MEMORY_S + 1, "anna", "10.0.0.1") == 0.0


def test_memory_is_bounded() -> None:
    throttle = Throttle()
    for number in range(MAX_KEPT):
        throttle.failed(0.0, f"user{number}", f"address{number}")
    assert len(throttle._by_key) == MAX_KEPT
