"""A configuration that is watched: changes of the file, and of volumes as Kubernetes mounts them, are reloads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.gateway import config_watch as module
from relay.gateway.file_state import state_of
from relay.tasks import Tasks
from tests.support.benches.gateway import settings_tree, write_config
from tests.support.benches.serving import UNWATCHED, Served, kill, start
from tests.support.peers.tls_client import TlsClient
from tests.support.volumes import Volume
from tests.support.waiting import POLL_S, becomes, eventually

NO_UPSTREAM = Address("127.0.0.1", 9)


class Looks:
    """How often the watch has looked at the file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.001)
        monkeypatch.setattr(module, "state_of", self._look)

    def _look(self, path: Path) -> object:
        self.count += 1
        return state_of(path)

    async def more(self, times: int = 4) -> None:
        """Wait until it has looked this often from now on."""
        end = self.count + times
        await eventually(lambda: self.count >= end)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


@contextlib.asynccontextmanager
async def watched(path: Path, *, was_there: bool = True) -> AsyncIterator[Callable[[], int]]:
    """Watches while the block runs. Gives the number of changes that were told."""
    told: list[str] = []
    tasks = Tasks()
    taken = state_of(path) if was_there else None
    tasks.start(module.watch(path, taken, lambda: told.append("changed")), "watch")
    try:
        yield lambda: len(told)
    finally:
        await tasks.cancel()


async def test_each_change_of_a_volume_is_told_once(tmp_path: Path, looks: Looks) -> None:
    volume = Volume(tmp_path / "mounted", {"relay.toml": "a = 1", "secrets/probe": "hunter2"})
    with capture_logs() as lines:
        async with watched(volume / "relay.toml") as told:
            await looks.more()
            assert told() == 0
            volume.change({"relay.toml": "a = 2"})
            await becomes(told, 1)
            # The configuration is the same, and what it names is not.
            volume.change({"secrets/probe": "hunter3"})
            await becomes(told, 2)
            await looks.more()
            assert told() == 2
    assert [line["event"] for line in lines] == ["configuration has changed"] * 2


async def test_what_changed_before_the_first_look(tmp_path: Path, looks: Looks) -> None:
    path = tmp_path / "relay.toml"
    path.write_text("a = 1")
    async with watched(path, was_there=False) as told:
        await becomes(told, 1)
        await looks.more()
        assert told() == 1


async def test_a_file_that_is_gone_is_no_change(tmp_path: Path, looks: Looks) -> None:
    path, away = tmp_path / "relay.toml", tmp_path / "away"
    path.write_text("a = 1")
    async with watched(path) as told:
        path.rename(away)
        await looks.more()
        away.rename(path)
        await looks.more()
        assert told() == 0
        path.write_text("a = 20")
        await becomes(told, 1)


async def test_a_file_that_is_being_written(tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another one at each look, and then stays."""
    states = iter([(1,), (2,), (3,), (4,), (4,), (4,)])

    def look(_: Path) -> tuple[int, ...]:
        looks.count += 1
        return next(states, (4,))

    path = tmp_path / "relay.toml"
    path.touch()
    monkeypatch.setattr(module, "state_of", look)
    async with watched(path) as told:
        await becomes(told, 1)
        assert looks.count >= 5
        await looks.more()
        assert told() == 1


@contextlib.asynccontextmanager
async def relay_of(volume: Volume, authority: Authority) -> AsyncIterator[Served]:
    process = await start("serve", "--watch", "--config", volume / "relay.toml")
    served = Served(process, volume / "relay.toml", {}, authority.client_context())
    try:
        await served.ready()
        yield served
    finally:
        await kill(process)


async def limit_of(served: Served) -> str:
    """The limit of connections that the relay goes by."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{served.admin}/metrics") as response:
        text = await response.text()
    return text.partition('relay_limit{limit="connections"} ')[2].partition("\n")[0]


async def serial_of(served: Served) -> str:
    """The serial number of the certificate that clients get."""
    client = await TlsClient.open(served.tls, served.trust)
    shown = client.tls.getpeercert()
    client.abort()
    assert shown is not None
    return str(shown["serialNumber"])


async def test_a_relay_whose_volume_changes(tmp_path: Path) -> None:
    """Limits, and the certificate in the same volume; a configuration with a mistake changes nothing."""
    authority = Authority(tmp_path)
    tree = settings_tree(authority, NO_UPSTREAM, log={"format": "json"}, limits={"connections": 1000, **UNWATCHED})
    tree["certificates"] = [{"certificate": "tls/tls.crt", "private_key": "tls/tls.key"}]

    def files(connections: int) -> dict[str, bytes]:
        issued = authority.issue("relay.test")
        write_config(tmp_path / "whole", {**tree, "limits": {"connections": connections, **UNWATCHED}})
        return {
            "relay.toml": (tmp_path / "whole").read_bytes(),
            "tls/tls.crt": issued.chain.read_bytes(),
            "tls/tls.key": issued.private_key.read_bytes(),
        }

    volume = Volume(tmp_path / "mounted", files(1000))
    async with relay_of(volume, authority) as served:
        before = await serial_of(served)
        assert await limit_of(served) == "1000.0"
        volume.change(files(2000))
        await served.logged("configuration has changed")
        while await limit_of(served) != "2000.0":  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        while await serial_of(served) == before:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        volume.change({"relay.toml": b"lissten"})
        line = await served.logged("configuration not reloaded: the old one stays")
        assert line["cause"].startswith(f"{volume / 'relay.toml'}: not valid TOML: ")
        assert await limit_of(served) == "2000.0"
        served.send_signal(signal.SIGTERM)
        assert await served.process.wait() == 0
