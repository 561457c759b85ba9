"""The demo as it runs: real calls, both ways, over each path, and nothing left of it."""

from __future__ import annotations

import asyncio

import pytest

from relay.demo import calls, run
from relay.demo.report import json_of
from relay.demo.run import PATHS, run_demo
from relay.demo.softphone import Softphone
from relay.emulator.turn.hosts import TurnHosts
from relay.errors import UpstreamError
from relay.turn.credentials import StaticCredentials


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


async def test_call_over_a_path_that_refuses() -> None:
    async with TurnHosts(run.REGIONS, StaticCredentials({})) as hosts:
        path = calls.udp_path(hosts["use1-stun1"].address, calls.Account("trader", "secret"))
        with pytest.raises(UpstreamError, match="401"):
            await calls.place_call(path, 1, lambda: None)


async def test_failing_path_ends_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # The certificate does not have this name; the direct call would take an hour.
    monkeypatch.setattr(run, "SERVER_NAME", "elsewhere.test")
    with pytest.raises(UpstreamError):
        await run_demo(3600, lambda: None)


async def test_media_that_is_lost_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STRAGGLERS_S", 0.05)
    monkeypatch.setattr(Softphone, "hear", lambda *_: None)
    rows = await run_demo(0.1, lambda: None)
    assert [(row.complete, row.playout.lost) for row in rows] == [(False, 5)] * 2 * PATHS
