"""A part that does not end does not keep the emulator from ending, and the log names it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.emulator import stopping
from relay.emulator.stopping import Stopping
from tests.support.benches.cloud import running_cloud
from tests.support.waiting import becomes

# Longer than any part needs.
DEADLINE_S = 60.0


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_part_that_hangs_is_cancelled_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PART_S", 0.05)
    stopped, cancelled = Stopping(), asyncio.Event()

    async def hang() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    with capture_logs() as logs:
        await stopped.part("uploads", hang, lambda: 3)
    assert cancelled.is_set()
    (line,) = logs
    assert (line["event"], line["part"], line["left"]) == ("a part does not stop: it is left", "uploads", 3)


async def test_a_part_that_ignores_its_cancellation_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PART_S", "LAST_S"):
        monkeypatch.setattr(stopping, name, 0.05)
    let_go = asyncio.Event()

    async def ignore() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        raise ValueError("too late")

    with capture_logs() as logs:
        await Stopping().part("stubborn", ignore)
        let_go.set()
        await becomes(lambda: len(logs), 2)
    assert logs[1]["error"] == "ValueError('too late')"


async def test_the_whole_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PART_S", 3600.0)
    monkeypatch.setattr(stopping, "WHOLE_S", 0.05)
    monkeypatch.setattr(stopping, "LAST_S", 0.05)
    stopped, ended = Stopping(), asyncio.Event()

    async def end() -> None:
        ended.set()

    with capture_logs() as logs:
        for number in range(3):
            await stopped.part(str(number), forever)
        await stopped.part("the last", end)
    assert [line["part"] for line in logs] == ["0", "1", "2"]
    assert ended.is_set()


async def test_what_a_part_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Stopping().part("broken", fail)


async def test_a_cloud_ends_although_a_part_of_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def close(self, *_: object) -> None:
            """Never goes."""

    stop_part = stopping.Stopping.part

    async def part(whole: stopping.Stopping, name: str, *arguments: Any) -> None:
        # On a busy machine, parts that do stop may need their time.
        monkeypatch.setattr(stopping, "PART_S", 0.2 if name == "CTI" else DEADLINE_S)
        await stop_part(whole, name, *arguments)

    monkeypatch.setattr(stopping, "WHOLE_S", DEADLINE_S)
    monkeypatch.setattr(stopping.Stopping, "part", part)
    with capture_logs() as logs:
        async with running_cloud(tmp_path) as client:
            connections: Any = client.cloud.cti._connections
            connections.add(Stuck())
            address = client.cloud.http
        assert [(line["part"], line["left"]) for line in logs if "part" in line] == [("CTI", 1)]
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(*address)
    # The folder is free again.
    async with running_cloud(tmp_path):
        pass
