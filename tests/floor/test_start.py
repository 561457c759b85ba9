"""How ``relay emulate`` starts, or does not: what it writes and prints, and what it says of a mistake."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import tomllib
from pathlib import Path

import pytest
from sqlalchemy import select

from relay import catalog, config
from relay.addresses import parse_address
from relay.emulator.store import Store, tables
from relay.errors import OperatorError
from relay.floor.commands import hop_port
from relay.gateway.checking.files import check
from tests.support.benches.emulating import emulating_here, refusal
from tests.support.network.ports import reserved_address

RELAY_OPTIONS = ("--relay-tls", "--relay-web-proxy", "--relay-admin")


async def test_the_written_configuration_is_one_that_the_relay_takes(tmp_path: Path) -> None:
    async with emulating_here(tmp_path) as emulated:
        tree = tomllib.loads((tmp_path / "relay.toml").read_text())
        hosts = json.loads((tmp_path / "emulator.json").read_text())["turn_hosts"]
        assert {upstream["address"] for upstream in tree["upstreams"]} == set(hosts.values())
        assert tree["signaling"]["upstreams"] == [f"http://{emulated.http}"]
        check(config.load(tmp_path / "relay.toml"))


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
        told = await refusal(tmp_path, option, str(address.port))
    assert f"on {address}: Address already in use; choose another with {option}" in told
    assert await firms(tmp_path) == []


@pytest.mark.parametrize("option", ["--bad-web-proxy", "--relay-tls", "--relay-web-proxy", "--relay-admin"])
async def test_a_taken_address_names_its_option_and_leaves_no_users(tmp_path: Path, option: str) -> None:
    with contextlib.ExitStack() as taken:
        options = {name: str(taken.enter_context(reserved_address())) for name in (*RELAY_OPTIONS, "--bad-web-proxy")}
        holder = taken.enter_context(socket.create_server(parse_address(options[option])))
        told = await refusal(tmp_path, "--with-relay", *itertools.chain(*options.items()))
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
    by = f"in use by another emulator (process {os.getpid()}); choose another with"
    async with emulating_here(one, "--no-turn"):
        before = {
            path.name: path.read_bytes() for path in one.iterdir() if path.name.startswith(("em", "relay", "tls"))
        }
        assert await refusal(one) == f"relay: {one}: {by} --folder"
        after = {name: (one / name).read_bytes() for name in before}
        assert after == before
    database = tmp_path / "shared.db"
    async with emulating_here(one, "--no-turn", "--store", str(database)):
        assert await refusal(two, "--store", str(database)) == f"relay: {database}: {by} --store"
    # The database of a folder is in use, too, and a link is another name for it.
    link = tmp_path / "link.db"
    link.symlink_to(one / "emulator.db")
    async with emulating_here(one, "--no-turn"):
        for name in (one / "emulator.db", link):
            assert await refusal(two, "--store", str(name)) == f"relay: {name}: {by} --store"


async def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert await refusal(file) == f"relay: {file}: not a folder; choose another with --folder"


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
    async with emulating_here(tmp_path, "--no-turn", "--fixtures", str(others)) as emulated:
        assert re.search(r"zoe +word-of-zoe +delta", emulated.printed)
        assert refused not in emulated.printed
    others.write_text(
        OTHERS.replace("word-of-zoe", "another-word") + OTHERS.replace("delta", "nu").replace("zoe", "yan")
    )
    async with emulating_here(tmp_path, "--no-turn", "--fixtures", str(others)) as emulated:
        assert re.search(r"zoe +\(not known\) +delta", emulated.printed)
        assert "yan" not in emulated.printed
        assert f"{refused} To begin anew, stop this and delete {tmp_path / 'emulator.db'}." in emulated.printed


async def test_exposed_is_said_with_addresses_for_others(tmp_path: Path) -> None:
    async with emulating_here(tmp_path, "--no-turn") as emulated:
        assert "--expose" not in emulated.printed
    async with emulating_here(tmp_path, "--no-turn", "--expose", "--http", "0.0.0.0:0") as emulated:
        assert f"Warning: --expose. Others reach this cloud on {emulated.http}" in emulated.printed
        assert f"http://{socket.gethostname()}:{parse_address(emulated.http).port}/" in emulated.printed


async def test_no_name_is_broken_in_80_columns(tmp_path: Path) -> None:
    async with emulating_here(tmp_path) as emulated:
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
    async with emulating_here(tmp_path, "--no-turn"):
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
        (("--store", "/nowhere/x.db"), "relay: /nowhere/x.db: No such file or directory; choose another with --store"),
        (("--redis", "localhost"), "relay: --redis: Redis URL must specify one of the following schemes"),
        (("--redis", "redis://127.0.0.1:1"), "relay: --redis: Error 111 connecting to 127.0.0.1:1"),
        (("--host-on", "a.example"), "relay: --host-on a.example: not a host of the catalog"),
    ],
)
async def test_a_mistake_is_one_line(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    said = await refusal(tmp_path, *options)
    assert said.startswith(told)
    assert "\n" not in said


async def test_addresses_are_printed_as_they_were_bound(tmp_path: Path) -> None:
    async with emulating_here(tmp_path, "--no-turn") as emulated:
        assert parse_address(emulated.http).port
        assert parse_address(emulated.tls).port


async def test_turn_hosts_are_printed_with_what_they_speak(tmp_path: Path) -> None:
    async with emulating_here(tmp_path) as emulated:
        pass
    assert re.search(r"TURN use1 +127\.0\.1\.1:\d+ … 127\.0\.1\.9:\d+ \(UDP, TCP\)", emulated.printed)
    assert re.search(r"TURN over TLS +the same addresses, port \d+", emulated.printed)
