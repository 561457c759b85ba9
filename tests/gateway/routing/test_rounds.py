"""The loop of the watches: it goes on whatever a round raises, and ends when it is cancelled."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from relay.gateway.routing.rounds import go_round, spread


async def test_a_round_that_fails_is_logged_and_the_next_one_comes() -> None:
    begun: list[float] = []
    paused: list[float] = []

    async def work(began: float) -> None:
        begun.append(began)
        if len(begun) == 2:
            raise RuntimeError("a mistake of ours")

    async def pause(began: float) -> None:
        paused.append(began)
        if len(paused) == 3:
            raise asyncio.CancelledError

    with capture_logs() as lines, pytest.raises(asyncio.CancelledError):
        await go_round(work, pause, failure="probe failed", upstream="stun1")
    assert len(begun) == 3
    # A pause counts from the beginning of its round, not from its end.
    assert paused == begun
    assert [(line["event"], line["upstream"]) for line in lines] == [("probe failed", "stun1")]


async def test_what_pauses_may_fail_the_loop() -> None:
    """Only the work is expected to raise. A mistake in the pause would otherwise be a loop without one."""

    async def work(_: float) -> None:
        pass

    async def pause(_: float) -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        await go_round(work, pause, failure="probe failed", upstream="stun1")


def test_intervals_are_spread_by_their_share() -> None:
    spreads = [spread(10.0, 0.1) for _ in range(1000)]
    assert 9.0 <= min(spreads) < 9.5
    assert 10.5 < max(spreads) <= 11.0
    assert spread(10.0, 0.0) == 10.0
