"""``relay emulate`` as a process: what it writes and prints, its clean end, and its end by SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import signal
import socket
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select

from relay import catalog, config
from relay.addresses import parse_address
from relay.emulator.store import Store, tables
from relay.errors import OperatorError
from relay.floor.commands import hop_port
from relay.gateway.app import check
from tests.support.benches.serving import kill, start
from tests.support.network.ports import reserved_address

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


async def test_the_relay_comes_along(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as running:
        options = [(name, str(running.enter_context(reserved_address()))) for name in RELAY_OPTIONS]
        emulated = await running.enter_async_context(emulating(tmp_path, "--with-relay", *itertools.chain(*options)))
        found = re.search(r"http://(127\.0\.0\.1:\d+)/", emulated.printed.partition("dashboard")[2])
        assert found is not None
        async with aiohttp.ClientSession() as session, session.get(f"http://{found[1]}/readyz") as answer:
            assert answer.status == 200
        status, errors = await emulated.stop()
    assert status == 0
    assert "Traceback" not in errors
    # All were up before the table was printed.
    assert "upstream up" not in errors.replace("signaling upstream up", "")


async def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    async with emulating(tmp_path / "one") as first:
        second = await start("emulate", "--folder", tmp_path / "two", *PORTS, "--http", first.http)
        _, errors = await second.communicate()
        assert second.returncode == 2
        told = f"relay: emulator on {first.http}: Address already in use; choose another with --http"
        assert errors.decode().splitlines()[-1] == told
    assert not (tmp_path / "two" / "emulator.db").exists()


async def failed(folder: Path, *options: str) -> str:
    """The last line of a start that fails with status 2."""
    process = await start("emulate", "--folder", folder, *PORTS, *options)
    _, errors = await process.communicate()
    assert process.returncode == 2
    return errors.decode().splitlines()[-1]


async def firms(folder: Path) -> list[str]:
    """The firms in a folder's database."""
    store = await Store.open(str(folder / "emulator.db"))
    async with store.reading() as session:
        found = list(await session.scalars(select(tables.Firm.firm_id)))
    await store.close()
    return found


@pytest.mark.parametrize("option", ["--turn-port", "--udp-hop-port"])
async def test_a_taken_port_of_turn_names_its_option_and_leaves_no_users(tmp_path: Path, option: str) -> None:
    with reserved_address("127.0.1.1") as address, socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(address)
        told = await failed(tmp_path, option, str(address.port))
    assert f"on {address}: Address already in use; choose another with {option}" in told
    assert await firms(tmp_path) == []


@pytest.mark.parametrize("option", ["--bad-web-proxy", "--relay-tls", "--relay-web-proxy", "--relay-admin"])
async def test_a_taken_address_names_its_option_and_leaves_no_users(tmp_path: Path, option: str) -> None:
    with contextlib.ExitStack() as taken:
        options = {name: str(taken.enter_context(reserved_address())) for name in (*RELAY_OPTIONS, "--bad-web-proxy")}
        holder = taken.enter_context(socket.create_server(parse_address(options[option])))
        told = await failed(tmp_path, "--with-relay", *itertools.chain(*options.items()))
        address = "{}:{}".format(*holder.getsockname())
    assert told.startswith("relay: ")
    assert f"on {address}: " in told
    assert "already in use" in told
    assert told.endswith(f"choose another with {option}")
    assert not (tmp_path / "emulator.db").exists() or await firms(tmp_path) == []


def test_the_port_of_lines_with_faults_follows_the_turn_port() -> None:
    assert hop_port(3478, None) == 3479
    assert hop_port(13478, None) == 13479
    assert hop_port(0, None) == 0
    assert hop_port(13478, 4000) == 4000
    with pytest.raises(OperatorError, match="--turn-port 65535: there is no port above it; give --udp-hop-port"):
        hop_port(65535, None)
    with pytest.raises(OperatorError, match="--udp-hop-port 4000: the TURN hosts have this port"):
        hop_port(4000, 4000)


async def test_the_folder_and_the_database_of_a_running_one_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    async with emulating(one, "--no-turn") as first:
        before = {
            path.name: path.read_bytes() for path in one.iterdir() if path.name.startswith(("em", "relay", "tls"))
        }
        by = f"in use by another emulator (process {first.process.pid}); choose another with"
        assert await failed(one) == f"relay: {one}: {by} --folder"
        after = {name: (one / name).read_bytes() for name in before}
        assert after == before
    database = tmp_path / "shared.db"
    async with emulating(one, "--no-turn", "--store", str(database)) as first:
        by = f"in use by another emulator (process {first.process.pid}); choose another with"
        assert await failed(two, "--store", str(database)) == f"relay: {database}: {by} --store"


async def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert await failed(file) == f"relay: {file}: not a folder; choose another with --folder"


OTHERS = """
[[firms]]
id = "delta"
name = "Delta"
[[users]]
id = "zoe"
firm = "delta"
name = "Zoe"
email = "zoe@delta.example"
password = "word-of-zoe"
"""


async def test_the_users_that_are_printed_are_those_of_the_database(tmp_path: Path) -> None:
    others = tmp_path / "others.toml"
    others.write_text(OTHERS)
    refused = "The database has users already: the fixtures are not used."
    async with emulating(tmp_path, "--no-turn", "--fixtures", str(others)) as emulated:
        assert re.search(r"zoe +word-of-zoe +delta", emulated.printed)
        assert refused not in emulated.printed
        assert (await emulated.stop())[0] == 0
    others.write_text(
        OTHERS.replace("word-of-zoe", "another-word") + OTHERS.replace("delta", "nu").replace("zoe", "yan")
    )
    async with emulating(tmp_path, "--no-turn", "--fixtures", str(others)) as emulated:
        assert re.search(r"zoe +\(not known\) +delta", emulated.printed)
        assert "yan" not in emulated.printed
        assert f"{refused} To begin anew, stop this and delete {tmp_path / 'emulator.db'}." in emulated.printed
        assert (await emulated.stop())[0] == 0


async def test_exposed_is_said_with_addresses_for_others(tmp_path: Path) -> None:
    async with emulating(tmp_path, "--no-turn") as emulated:
        assert "--expose" not in emulated.printed
    async with emulating(tmp_path, "--no-turn", "--expose", "--http", "0.0.0.0:0") as emulated:
        assert f"Warning: --expose. Others reach this cloud on {emulated.http}" in emulated.printed
        assert f"http://{socket.gethostname()}:{parse_address(emulated.http).port}/" in emulated.printed


async def test_no_name_is_broken_in_80_columns(tmp_path: Path) -> None:
    async with emulating(tmp_path) as emulated:
        names = set(re.findall(r"[a-z0-9.-]+\.com\b", emulated.printed))
    known = {host.name for host in catalog.load().hosts}
    assert len(names) > 10
    assert names <= known
    assert "xhoot.com (6 hosts)" in emulated.printed


async def arguments_of_the_browser(folder: Path, user: str, *given: str) -> list[str]:
    """What the folder's ``browser.sh`` starts Chromium with, as this user."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, does in (("chromium", 'printf "%s\\n" "$@"'), ("id", f"echo {user}")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    process = await asyncio.create_subprocess_exec(
        folder / "browser.sh", *given, stdout=asyncio.subprocess.PIPE, env=environment
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode().splitlines()


async def test_the_browser_keeps_its_url_and_has_no_sandbox_only_as_root(tmp_path: Path) -> None:
    async with emulating(tmp_path, "--no-turn"):
        pass
    page = json.loads((tmp_path / "emulator.json").read_text())["urls"]["softphone"]
    proxy = "--proxy-server=127.0.0.1:3129"
    alone = await arguments_of_the_browser(tmp_path, "1000")
    assert alone[-1] == page
    assert "--no-sandbox" not in alone
    assert await arguments_of_the_browser(tmp_path, "1000", proxy) == [*alone[:-1], proxy, page]
    other = "http://localhost:1/a page"
    assert await arguments_of_the_browser(tmp_path, "1000", proxy, other) == [*alone[:-1], proxy, other]
    assert await arguments_of_the_browser(tmp_path, "0", proxy) == [*alone[:-1], "--no-sandbox", proxy, page]


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
