"""What the service manager is told, over a real socket; and that the watchdog starves when a thread hangs."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.gateway import notify
from relay.gateway.notify import ServiceManager
from tests.support.benches.gateway import running_relay, write_config
from tests.support.benches.serving import serving
from tests.support.peers.service_manager import service_manager
from tests.support.waiting import eventually

NO_UPSTREAM = Address("127.0.0.1", 9)


@pytest.fixture(params=["path", "abstract"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@cloud9-relay-tests/{secrets.token_hex(8)}"


async def test_it_is_told(name: str) -> None:
    async with service_manager(name) as manager:
        told = ServiceManager({"NOTIFY_SOCKET": name})
        assert told.listens
        told.tell("READY=1", "STATUS=Serving")
        assert await manager.hears("READY") == ["READY=1", "STATUS=Serving"]


async def test_nobody_is_told_where_nobody_listens(tmp_path: Path) -> None:
    with capture_logs() as logged:
        ServiceManager({}).tell("READY=1")
        told = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
        told.tell("READY=1")
        told.tell("STOPPING=1")
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("the service manager cannot be told", "warning")
    ]


async def test_a_full_queue_holds_up_nothing(tmp_path: Path) -> None:
    async with service_manager(tmp_path / "notify") as manager:
        told = ServiceManager({"NOTIFY_SOCKET": manager.name})
        for _ in range(10_000):
            told.tell("WATCHDOG=1")
        assert set(manager.rest()) == {"WATCHDOG=1"}


async def test_the_watchdog_is_fed_while_all_threads_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "STANDSTILL_S", 0.0)
    turns = [0, 0]

    def busy() -> list[int]:
        turns[0] += 1
        turns[1] += not hangs
        return list(turns)

    hangs = False
    environment = {"WATCHDOG_USEC": "2000", "WATCHDOG_PID": str(os.getpid())}
    async with service_manager(tmp_path / "notify") as manager:
        told = ServiceManager({"NOTIFY_SOCKET": manager.name, **environment})
        with capture_logs() as logged:
            feeding = asyncio.create_task(told.watch(busy))
            for _ in range(3):
                await manager.hears("WATCHDOG=1")
            hangs = True
            await eventually(lambda: logged)
            manager.rest()
            before = turns[0]
            await eventually(lambda: turns[0] > before + 3)
            assert manager.rest() == []
            hangs = False
            await manager.hears("WATCHDOG=1")
            feeding.cancel()
            await asyncio.wait([feeding])
    assert [line["threads"] for line in logged] == [[1]]


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "2000", "WATCHDOG_PID": "1"}],
)
async def test_no_watchdog_of_ours(environment: dict[str, str]) -> None:
    await ServiceManager(environment).watch(lambda: [1])


@pytest.mark.parametrize("plane", ["compiled", "reference"])
async def test_threads_of_a_plane_go_round(tmp_path: Path, plane: str) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, listen={"plane": plane, "workers": 2}) as relay:
        begin = relay.gateway.plane.turns()
        assert len(begin) == (2 if plane == "compiled" else 1)

        def gone_round() -> bool:
            return all(now != before for now, before in zip(relay.gateway.plane.turns(), begin, strict=True))

        await eventually(gone_round)


async def test_the_life_of_a_service(tmp_path: Path) -> None:
    async with service_manager(tmp_path / "notify") as manager:
        environment = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000"}
        limits = {"lame_duck_s": 0.25, "drain_timeout_s": 100}
        async with serving(tmp_path, NO_UPSTREAM, environment, limits=limits) as relay:
            assert await manager.hears("READY=1") == ["READY=1", f"STATUS=Serving on {relay.tls}"]
            await manager.hears("WATCHDOG=1")

            relay.send_signal(signal.SIGHUP)
            assert (await manager.hears("RELOADING=1"))[1].startswith("MONOTONIC_USEC=")
            assert await manager.hears("READY=1") == ["READY=1", "STATUS=Serving"]
            write_config(relay.path, {**relay.tree, "lissten": {}})
            relay.send_signal(signal.SIGHUP)
            await manager.hears("RELOADING=1")
            [_, status] = await manager.hears("READY=1")
            assert status == f"STATUS=Serving; configuration not reloaded: {relay.path}: lissten: unknown key"

            relay.send_signal(signal.SIGTERM)
            # Lame duck, drain, what is left, and the end.
            assert "EXTEND_TIMEOUT_USEC=110250000" in await manager.hears("STOPPING=1")
            # It is alive until the end.
            await manager.hears("WATCHDOG=1")
            assert await relay.process.wait() == 0
