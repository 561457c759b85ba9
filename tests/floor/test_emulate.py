"""``relay emulate`` as a process: that it answers, its exit status, its clean end, and its end by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import ssl
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import select

from relay import catalog
from relay.emulator.store import Store, tables
from tests.support.benches.emulating import PORTS, EmulatingProcess, emulating
from tests.support.benches.serving import PLAIN_PYTHON, start
from tests.support.network.ports import reserved_address

USERS = ("anna", "ben", "chen", "dora", "emil", "fay", "gus", "hana", "ivan", "june")
RELAY_OPTIONS = ("--relay-tls", "--relay-web-proxy", "--relay-admin")


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


async def all_services_are_behind_the_web_proxy(folder: Path, proxy: str) -> None:
    """A client that goes through the relay's web proxy reaches the emulator under the vendor's names."""
    trust = ssl.create_default_context(cafile=folder / "ca.pem")
    roles = {"portal": "/portal/login", "signaling": "/socket.io/?EIO=4&transport=polling"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        for host in catalog.load().hosts:
            if host.service is not catalog.Service.MEDIA:
                url = f"https://{host.name}{roles.get(host.service, '/')}"
                async with session.get(url, proxy=f"http://{proxy}") as answer:
                    assert answer.status == 200, url


async def test_the_relay_comes_along(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as running:
        options = [(name, str(running.enter_context(reserved_address()))) for name in RELAY_OPTIONS]
        emulated = await running.enter_async_context(emulating(tmp_path, "--with-relay", *itertools.chain(*options)))
        found = re.search(r"http://(127\.0\.0\.1:\d+)/", emulated.printed.partition("dashboard")[2])
        assert found is not None
        async with aiohttp.ClientSession() as session, session.get(f"http://{found[1]}/readyz") as answer:
            assert answer.status == 200
        await all_services_are_behind_the_web_proxy(tmp_path, dict(options)["--relay-web-proxy"])
        status, errors = await emulated.stop()
    assert status == 0
    assert "Traceback" not in errors
    # All were up before the table was printed.
    assert "upstream up" not in errors.replace("signaling upstream up", "")


async def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    async with emulating(tmp_path / "one", python=PLAIN_PYTHON) as first:
        second = await start("emulate", "--folder", tmp_path / "two", *PORTS, "--http", first.http)
        _, errors = await second.communicate()
        assert second.returncode == 2
        told = f"relay: emulator on {first.http}: Address already in use; choose another with --http"
        assert errors.decode().splitlines()[-1] == told
    assert not (tmp_path / "two" / "emulator.db").exists()


async def logins_until_killed(emulated: EmulatingProcess, number: int, acknowledged: set[str]) -> None:
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
        async with emulating(tmp_path, "--no-turn", python=PLAIN_PYTHON) as emulated:
            await logins_until_killed(emulated, 5 * series + number, acknowledged)
        store = await Store.open(str(tmp_path / "emulator.db"))
        async with store.reading() as session:
            wanted = select(tables.AuditEntry.details).where(tables.AuditEntry.action == "login")
            written = {details["client_version"] for details in await session.scalars(wanted)}
        await store.close()
        assert acknowledged <= written
    assert len(acknowledged) >= 5
