"""Lines that clients cause are few, and say what they stand for."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from relay.gateway.lines import Lines
from relay.rate_limit import MAX_SOURCES


async def test_some_of_each_kind_and_then_how_many_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now, raising=False)
    lines = Lines(2)
    with capture_logs() as logged:
        for number in range(500):
            lines.info("upgrade refused", "bad_request", number=number)
        lines.info("upgrade refused", "forbidden")
        lines.info("session opened")
        now += 1
        lines.info("upgrade refused", "bad_request", number=500)
        lines.info("upgrade refused", "bad_request", number=501)
    assert logged == [
        {"event": "upgrade refused", "log_level": "info", "number": 0},
        {"event": "upgrade refused", "log_level": "info", "number": 1},
        {"event": "upgrade refused", "log_level": "info"},
        {"event": "session opened", "log_level": "info"},
        {"event": "upgrade refused", "log_level": "info", "number": 500, "left_out": 498},
        {"event": "upgrade refused", "log_level": "info", "number": 501},
    ]


async def test_what_is_counted_is_bounded() -> None:
    lines = Lines(1e-9)
    with capture_logs():
        for number in range(2 * MAX_SOURCES):
            for _ in range(2):
                lines.info("refused", str(number))
    assert len(lines._left_out) == MAX_SOURCES
