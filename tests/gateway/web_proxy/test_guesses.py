"""Who guesses passwords is slowed down, and nobody else; what is remembered is bounded."""

from __future__ import annotations

import pytest

from relay.gateway.web_proxy import guesses as module
from relay.gateway.web_proxy.guesses import (
    FIRST_WAIT_S,
    FORGET_S,
    FREE_OF_NAME,
    FREE_OF_SOURCE,
    MAX_NAMES,
    MAX_SOURCES,
    MAX_WAIT_S,
    MAX_WAITING,
    Guesses,
)

HERE, THERE = "192.0.2.1", "192.0.2.2"


def fail(guesses: Guesses, times: int, source: str = HERE, name: str = "ann", now: float = 0.0) -> None:
    for _ in range(times):
        guesses.fail(now, source, name)


def test_some_wrong_passwords_cost_nothing() -> None:
    guesses = Guesses()
    for _ in range(FREE_OF_NAME):
        assert guesses.begin(0, HERE, "ann") == 0
        assert guesses.fail(0, HERE, "ann") == 0
    assert guesses.begin(0, HERE, "ann") == FIRST_WAIT_S


def test_the_wait_grows_and_ends_somewhere() -> None:
    guesses = Guesses()
    fail(guesses, FREE_OF_NAME)
    waits = []
    for _ in range(8):
        waits.append(guesses.begin(0, HERE, "ann"))
        guesses.end(HERE, "ann")
        fail(guesses, 1)
    assert waits == [0.25, 0.5, 1, 2, 4, 4, 4, 4]
    fail(guesses, 10_000)
    assert guesses.begin(0, HERE, "ann") == MAX_WAIT_S


def test_few_wait_at_a_time() -> None:
    guesses = Guesses()
    fail(guesses, FREE_OF_NAME)
    assert [guesses.begin(0, HERE, "ann") for _ in range(MAX_WAITING + 2)] == [0.25] * MAX_WAITING + [None] * 2
    guesses.end(HERE, "ann")
    assert guesses.begin(0, HERE, "ann") == 0.25


def test_neither_the_same_user_elsewhere_nor_others_here_wait() -> None:
    guesses = Guesses()
    fail(guesses, FREE_OF_SOURCE + 10)
    assert guesses.begin(0, THERE, "ann") == 0
    assert guesses.begin(0, HERE, "bob") == 0


def test_the_right_password_and_time_make_it_good_again() -> None:
    guesses = Guesses()
    fail(guesses, FREE_OF_NAME)
    guesses.succeed(HERE, "ann")
    assert guesses.begin(0, HERE, "ann") == 0
    assert not guesses._sources
    fail(guesses, FREE_OF_NAME)
    assert guesses.begin(FORGET_S + 1, HERE, "ann") == 0
    fail(guesses, 1, now=FORGET_S + 1)
    assert guesses.begin(FORGET_S + 1, HERE, "ann") == 0


def test_who_tries_many_names_is_answered_late() -> None:
    guesses = Guesses()
    waits = [guesses.fail(0, HERE, f"user{number}") for number in range(FREE_OF_SOURCE + 6)]
    assert waits == [0] * FREE_OF_SOURCE + [0.25, 0.5, 1, 2, 4, 4]
    assert guesses.fail(0, THERE, "ann") == 0


@pytest.mark.parametrize("many", ["sources", "names"])
def test_what_is_remembered_is_bounded(many: str) -> None:
    guesses = Guesses()
    for number in range(2 * MAX_SOURCES):
        guesses.fail(0, f"host{number}" if many == "sources" else HERE, f"user{number}")
    assert len(guesses._sources) <= MAX_SOURCES
    assert guesses._names == sum(len(source.names) for source in guesses._sources.values())
    assert all(len(source.names) <= MAX_NAMES for source in guesses._sources.values())
    guesses.end("forgotten", "ann")
    guesses.end(HERE, "forgotten")
    guesses.succeed("forgotten", "ann")


def test_names_in_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES_IN_ALL", 10)
    guesses = Guesses()
    for number in range(100):
        guesses.fail(0, f"host{number % 7}", f"user{number}")
        assert guesses._names == sum(len(source.names) for source in guesses._sources.values()) <= 10


def test_other_names_do_not_make_one_forgotten() -> None:
    """Each of them is answered late: to forget one name takes longer than to wait for it."""
    guesses = Guesses()
    fail(guesses, FREE_OF_NAME)
    waited = sum(guesses.fail(0, HERE, f"user{number}") for number in range(MAX_NAMES - 1))
    assert guesses.begin(0, HERE, "ann") == FIRST_WAIT_S
    # With as many connections at once as one address may have.
    assert waited / 128 > FREE_OF_NAME * MAX_WAIT_S / MAX_WAITING
