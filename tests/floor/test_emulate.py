"""``relay emulate`` as a process: what it writes and prints, its clean end, and its end by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import signal
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select

from relay import config
from relay.addresses import parse_address
from relay.emulator.store import Store, tables
from relay.gateway.app import check
from tests.support.benches.serving import kill, start
from tests.support.network.ports import reserved_address
from tests.support.waiting import EVENTUALLY_S, POLL_S

USERS = ("anna", "ben", "chen", "dora", "emil", "fay", "gus", "hana", "ivan", "june")
PORTS = ("--http", "127.0.0.1:0", "--tls", "127.0.0.1:0", "--turn-port", "0", "--bad-web-proxy", "127.0.0.1:0")
RELAY_OPTIONS = ("--relay-tls", "--relay-web-proxy", "--relay-admin")


class Emulated:
    """A running ``relay emulate``. ``printed`` is what came before its ready line."""

    def __init__(self, process: asyncio.subprocess.Process, printed: str, ready: str) -> None:
        self.process = process
        self.printed = printed
        found = re.match(r"ready http=(\S+) tls=(\S+) folder=(.*)", ready)
        assert found is not None, ready
        self.http, self.tls, self.folder = found[1], found[2], Path(found[3])

    async def login(self, user: str, version: str = "", password: str = "trader") -> Any:
        """One login on a connection of its own."""
        wanted = {"user": user, "password": password, "client_version": version}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{self.http}/rest/v1/login", json=wanted) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def stop(self) -> tuple[int, str]:
        """Ask it to end. Returns its exit status and what it still said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@contextlib.asynccontextmanager
async def emulating(folder: Path, *options: str) -> AsyncIterator[Emulated]:
    process = await start("emulate", "--folder", folder, *PORTS, *options)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        lines = []
        async for line in process.stdout:
            if line.startswith(b"ready "):
                break
            lines.append(line.decode())
        else:
            raise AssertionError((await process.stderr.read()).decode())
        yield Emulated(process, "".join(lines), line.decode().strip())
    finally:
        await kill(process)


async def test_one_command_gives_a_cloud_its_files_and_a_clean_end(tmp_path: Path) -> None:
    folder = tmp_path / "cloud"
    async with emulating(folder) as emulated:
        settings = (await emulated.login("anna"))["settings"]
        assert settings["media"]["hosts"]
        facts = json.loads((folder / "emulator.json").read_text())
        assert facts["http"] == f"http://{emulated.http}"
        host, _, port = facts["bad_web_proxy"].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()
        async with aiohttp.ClientSession() as session:
            for url in facts["urls"].values():
                async with session.get(url.replace("localhost", "127.0.0.1")) as answer:
                    assert answer.status == 200, url
        for text in ("anna", "trader", facts["urls"]["softphone"], str(folder), "use1-stun1.xhoot.com"):
            assert text in emulated.printed
        status, errors = await emulated.stop()
    assert status == 0
    assert "Traceback" not in errors
    names = {path.name for path in folder.iterdir()}
    assert names >= {"ca.pem", "hosts", "proxy.pac", "emulator.env", "emulator.json", "relay.toml", "browser.sh"}
    assert (folder / "relay.toml").stat().st_mode & 0o077 == 0


async def test_the_written_configuration_is_one_that_the_relay_takes(tmp_path: Path) -> None:
    async with emulating(tmp_path) as emulated:
        tree = tomllib.loads((tmp_path / "relay.toml").read_text())
        hosts = json.loads((tmp_path / "emulator.json").read_text())["turn_hosts"]
        assert {upstream["address"] for upstream in tree["upstreams"]} == set(hosts.values())
        assert tree["signaling"]["upstreams"] == [f"http://{emulated.http}"]
        check(config.load(tmp_path / "relay.toml"))


async def relay_is_ready(url: str) -> None:
    """Wait until the relay has heard of an upstream: it asks them once it runs."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(EVENTUALLY_S):
        status = 0
        while status != 200:
            async with session.get(url) as answer:
                status = answer.status
            await asyncio.sleep(POLL_S)


async def test_the_relay_comes_along(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as running:
        options = [(name, str(running.enter_context(reserved_address()))) for name in RELAY_OPTIONS]
        emulated = await running.enter_async_context(emulating(tmp_path, "--with-relay", *itertools.chain(*options)))
        found = re.search(r"http://(127\.0\.0\.1:\d+)/", emulated.printed.partition("dashboard")[2])
        assert found is not None
        await relay_is_ready(f"http://{found[1]}/readyz")
        status, errors = await emulated.stop()
    assert status == 0
    assert "Traceback" not in errors


async def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    async with emulating(tmp_path / "one") as first:
        second = await start("emulate", "--folder", tmp_path / "two", *PORTS, "--http", first.http)
        _, errors = await second.communicate()
        assert second.returncode == 2
        assert errors.decode().splitlines()[-1] == f"relay: emulator on {first.http}: Address already in use"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--http", "0.0.0.0:8080"), "relay: --http 0.0.0.0:8080: not a loopback address"),
        (("--http", "localhost"), "relay: --http 'localhost': expected host:port"),
        (("--bad-web-proxy", "0.0.0.0:3130"), "relay: --bad-web-proxy 0.0.0.0:3130: not a loopback address"),
        (("--fixtures", "/nowhere.toml"), "relay: /nowhere.toml: No such file or directory"),
        (("--store", "mysql://x/y"), "relay: store mysql://…: expected :memory:"),
        (("--host-on", "a.example"), "relay: --host-on a.example: not a host of the catalog"),
    ],
)
async def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    process = await start("emulate", "--folder", tmp_path, *PORTS, *options)
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode().splitlines()[-1].startswith(told)


async def logins_until_killed(emulated: Emulated, number: int, acknowledged: set[str]) -> None:
    """Logins of everyone at once; in the middle of them the process is killed."""
    before = random.Random(number).randint(1, 8)
    done = asyncio.Event()
    mine = 0

    async def log_in(user: str) -> None:
        nonlocal mine
        for turn in range(100):
            version = f"{number}-{user}-{turn}"
            try:
                await emulated.login(user, version)
            except aiohttp.ClientError:
                return
            acknowledged.add(version)
            mine += 1
            if mine >= before:
                done.set()

    async with asyncio.TaskGroup() as users:
        for user in USERS:
            users.create_task(log_in(user))
        await done.wait()
        emulated.process.kill()
        await emulated.process.wait()


@pytest.mark.parametrize("series", range(4))
async def test_nothing_acknowledged_is_lost_when_it_is_killed(tmp_path: Path, series: int) -> None:
    """Five times in each of four series. A login is acknowledged after its entry in the audit has been written."""
    acknowledged: set[str] = set()
    for number in range(5):
        async with emulating(tmp_path, "--no-turn") as emulated:
            await logins_until_killed(emulated, 5 * series + number, acknowledged)
        store = await Store.open(str(tmp_path / "emulator.db"))
        async with store.reading() as session:
            wanted = select(tables.AuditEntry.details).where(tables.AuditEntry.action == "login")
            written = {details["client_version"] for details in await session.scalars(wanted)}
        await store.close()
        assert acknowledged <= written
    assert len(acknowledged) >= 5


async def test_addresses_are_printed_as_they_were_bound(tmp_path: Path) -> None:
    async with emulating(tmp_path, "--no-turn") as emulated:
        assert parse_address(emulated.http).port
        assert parse_address(emulated.tls).port
