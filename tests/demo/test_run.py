"""The demo as it runs: real calls, both ways, over each path, and nothing left of it."""

from __future__ import annotations

import asyncio

import pytest

from relay.demo import calls, run
from relay.demo.report import json_of
from relay.demo.run import PATHS, demo_floor, run_demo
from relay.emulator.signaling.invariants import check
from relay.emulator.softphone import LoginRefused, MediaFailed, Pacer, UdpTurn
from relay.emulator.softphone.voice import Listener
from tests.support.waiting import eventually


async def test_short_demo_is_complete() -> None:
    ticks = 0

    def on_tick() -> None:
        nonlocal ticks
        ticks += 1

    rows = await run_demo(0.3, on_tick)
    assert [(row.path.split()[0], row.playout.sent, row.playout.received) for row in rows] == [
        (path, 15, 15) for path in ("UDP", "TURN/TLS", "WebSocket", "session", "CONNECT-UDP") for _ in range(2)
    ]
    assert len({(row.path, row.direction) for row in rows}) == 2 * PATHS
    assert json_of(rows)["complete"] is True
    assert ticks == PATHS * 15


async def test_two_demos_at_once_do_not_meet() -> None:
    both = await asyncio.gather(run_demo(0.1, lambda: None), run_demo(0.1, lambda: None))
    assert all(row.complete for rows in both for row in rows)


async def test_the_calls_are_real_calls_and_nothing_is_left() -> None:
    async with demo_floor() as floor:
        await run.place_calls(floor, 0.1, lambda: None)
        entries = floor.cloud.signaling.hub.event_log.entries
        assert check(entries, finished=True) == []
        states = [entry["state"] for entry in entries if entry["entry"] == "transition"]
        assert sorted(states) == ["connected"] * PATHS + ["idle"] * PATHS + ["ringing"] * PATHS
        await eventually(lambda: not floor.gateway.plane.snapshot().flows)


async def test_call_of_a_user_who_cannot_log_in() -> None:
    async with demo_floor() as floor:
        pair = calls.Pair("demo-1a", "demo-1b", floor.pairs[0].line, "wrong")
        with pytest.raises(LoginRefused, match="401"):
            await calls.place_call(floor.url, pair, UdpTurn(), 1, on_tick=lambda: None, pacer=Pacer())


async def test_failing_path_ends_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # The certificate does not have this name; the direct call would take an hour.
    monkeypatch.setattr(run, "SERVER_NAME", "elsewhere.test")
    with pytest.raises(MediaFailed, match="elsewhere"):
        await run_demo(3600, lambda: None)


async def test_media_that_is_lost_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STRAGGLERS_S", 0.05)
    monkeypatch.setattr(Listener, "hear", lambda *_: None)
    rows = await run_demo(0.1, lambda: None)
    assert [(row.complete, row.playout.lost) for row in rows] == [(False, 5)] * 2 * PATHS
