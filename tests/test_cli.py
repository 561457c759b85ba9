"""The program as a process: what it prints, what signals do to it, and how it ends. Warnings are errors in it too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import struct
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.text import Text
from typer.main import get_command

from relay import __version__
from relay.addresses import Address
from relay.cli import app
from relay.demo.authority import Authority
from relay.errors import UpstreamError
from tests.support.benches.commands import run_here
from tests.support.benches.gateway import settings_tree, write_config
from tests.support.benches.serving import PATIENT, UNWATCHED, Served, kill, of_the_relay, open_host, serving, start
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair
from tests.support.pcapng import Packet, read_capture
from tests.support.peers.connect import refused

NO_UPSTREAM = Address("127.0.0.1", 9)


async def run(*arguments: str | Path) -> tuple[int | None, str, str]:
    """Exit status, stdout and stderr."""
    process = await start(*arguments)
    try:
        stdout, stderr = await process.communicate()
    finally:
        await kill(process)
    return process.returncode, stdout.decode(), reported(stderr)


def reported(stderr: bytes) -> str:
    """Standard error without what asyncio says in debug mode of a machine that is slow."""
    return re.sub(r"^(\S+ \[warning +\] )?Executing <.*\n", "", stderr.decode(), flags=re.MULTILINE)


async def test_top_shows_a_running_relay(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address) as served:
        turn = await served.open_turn()
        status, stdout, stderr = await run("top", "--url", f"http://{served.admin}", "--once")
        await turn.close()
    assert (status, stderr) == (0, "")
    assert "flows 1" in stdout


async def test_top_without_a_relay() -> None:
    status, stdout, stderr = await run("top", "--url", "http://127.0.0.1:9", "--once")
    assert (status, stdout) == (2, "")
    [line] = stderr.splitlines()
    assert line.startswith("relay: http://127.0.0.1:9/api/summary cannot be read")


async def one_call(relay: Served) -> dict[str, Any]:
    """Place a call, end it, and wait until ``relay calls`` finds it."""
    await (await relay.open_turn()).close()
    async with asyncio.timeout(60):
        while not (found := await run("calls", "--url", f"http://{relay.admin}", "--json"))[1]:
            assert found[0] == 0
    status, stdout, stderr = found
    assert (status, stderr) == (0, "")
    return dict(json.loads(stdout.splitlines()[0]))


async def test_a_call_is_found_after_the_relay_was_killed(tmp_path: Path) -> None:
    async with open_host() as host:
        async with serving(tmp_path, host.address) as first:
            call = await one_call(first)
            # SIGKILL: nothing is written any more.
        async with serving(tmp_path, host.address) as second:
            url = ("--url", f"http://{second.admin}")
            now = datetime.now().astimezone().isoformat()
            for options, there in (
                (("--user", "TRADE", "--from", "2020-01-01", "--to", now), True),
                (("--address", "127.0.0.1", "--at", call["started_at"]), True),
                (("--address", "127.0.0.2"), False),
                (("--at", "2020-01-01"), False),
            ):
                status, stdout, stderr = await run("calls", *options, *url)
                assert (status, stderr) == (0, "")
                assert (call["id"] in stdout) is there
            status, stdout, stderr = await run("explain", call["id"], *url)
            assert (status, stderr) == (0, "")
            assert stdout.splitlines()[0].startswith(f"Call {call['id']}, times in UTC")
            assert stdout.splitlines()[-1] == "The client closed it in the usual way."
            # A call of this run has another id.
            assert (await one_call(second))["id"] != call["id"]
            status, stdout, stderr = await run("explain", "none", *url)
            assert (status, stdout) == (2, "")
            assert stderr.endswith("/api/calls/none answers 404: no such call\n")


async def test_a_relay_without_a_place_for_calls_serves_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "calls.sqlite3").mkdir()
    async with open_host() as host, serving(tmp_path, host.address) as relay:
        assert (await relay.logged("ended calls are not kept"))["cause"] == "Is a directory"
        await (await relay.open_turn()).close()
        status, _, stderr = await run("calls", "--url", f"http://{relay.admin}")
        assert (status, "cannot be read" in stderr) == (2, True)
        relay.send_signal(signal.SIGTERM)
        assert await relay.ended() == 0
    assert [line["event"] for line in relay.log].count("ended calls are not kept") == 1


@pytest.mark.parametrize("options", [(), ("--flow", "a-1", "--user", "mei")])
def test_capture_needs_a_call_or_a_user(tmp_path: Path, options: tuple[str, ...]) -> None:
    status, stdout, stderr = run_here("capture", "-o", tmp_path / "flow.pcapng", *options)
    assert (status, stdout, stderr) == (2, "", "relay: expected either --flow or --user\n")


async def test_capture_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    async with open_host() as host, serving(tmp_path, host.address, capture={"allowed": True}) as served:
        turn = await served.open_turn()
        url = ("--url", f"http://{served.admin}")
        status, stdout, stderr = await run("capture", "--user", "TRADER", "--seconds", "0.2", "-o", path, *url)
        assert (status, stderr) == (0, "")
        assert stdout.endswith("(the time has passed)\n")
        another = await served.open_turn()
        status, stdout, stderr = await run("capture", "--user", "trader", "-o", tmp_path / "other", *url)
        assert (status, stdout) == (2, "")
        assert stderr.startswith("relay: --user trader: has 2 calls now: choose one with --flow (")
        await another.close()
        await turn.close()


async def test_capture_until_the_flow_ends(tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    async with open_host() as host, serving(tmp_path, host.address, capture={"allowed": True}) as served:
        turn = await served.open_turn()
        process = await start(*await capture_arguments(served, path))
        try:
            await served.logged("capture started")
            # Packets until one has come after the plane's beginning.
            while not held(path):
                await turn.binding()
            await turn.close()
            stdout, stderr = await process.communicate()
        finally:
            await kill(process)
    assert (process.returncode, reported(stderr)) == (0, "")
    packets = len(read_capture(path.read_bytes()).packets)
    assert packets
    said = f"{path}: {packets} packets, {path.stat().st_size} bytes, 0 missed (the flow has ended)\n"
    assert stdout.decode() == said


async def test_ctrl_c_keeps_what_was_captured(tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    async with open_host() as host, serving(tmp_path, host.address, capture={"allowed": True}) as served:
        turn = await served.open_turn()
        process = await start(*await capture_arguments(served, path))
        try:
            await served.logged("capture started")
            while not held(path):
                await turn.binding()
            process.send_signal(signal.SIGINT)
            stdout, stderr = await process.communicate()
            ended = await served.logged("capture ended")
        finally:
            await kill(process)
            await turn.close()
    assert (process.returncode, reported(stderr)) == (0, "")
    assert stdout.decode().endswith("0 missed (it was stopped here)\n")
    assert ended["reason"] == "the requester has gone, or does not read"
    assert read_capture(path.read_bytes()).packets


async def test_capture_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    async with open_host() as host, serving(tmp_path, host.address) as served:
        turn = await served.open_turn()
        arguments = await capture_arguments(served, path)
        status, stdout, stderr = await run(*arguments)
        await turn.close()
    assert (status, stdout) == (2, "")
    assert stderr == (
        f"relay: http://{served.admin}/api/flows/{arguments[2]}/capture answers 403: "
        "captures are not allowed: set capture.allowed = true in the relay's configuration\n"
    )
    assert not [name for name in os.listdir(tmp_path) if "flow" in name]


async def capture_arguments(served: Served, path: Path) -> list[str]:
    """Of ``relay capture`` for the one flow."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{served.admin}/api/flows") as response:
        [flow] = (await response.json())["flows"]
    return [
        "capture",
        "--flow",
        flow["id"],
        "--seconds",
        "60",
        "-o",
        str(path),
        "--url",
        f"http://{served.admin}",
    ]


def held(path: Path) -> list[Packet]:
    """The packets that are in the file already, which has another name while it grows."""
    parts = list(path.parent.glob(f".{path.name}.*.part"))
    # Blocks are written whole, but the file may be looked at in between.
    with contextlib.suppress(AssertionError, struct.error):
        return [packet for part in parts for packet in read_capture(part.read_bytes()).packets]
    return []


# Signals


async def test_sigterm_ends_an_idle_relay(tmp_path: Path) -> None:
    async with serving(tmp_path, NO_UPSTREAM, limits=PATIENT) as relay:
        async with aiohttp.ClientSession() as session, session.get(f"http://{relay.admin}/healthz") as response:
            assert response.status == 200
        assert not relay.has_ended
        relay.send_signal(signal.SIGTERM)
        # Nothing runs that it would have to wait for, and it could wait for an hour.
        draining = await relay.logged("draining")
        assert (draining["flows"], draining["timeout_s"]) == (0, PATIENT["drain_timeout_s"])
        assert "stopped" not in [line["event"] for line in relay.log]
        assert await relay.ended() == 0
        assert [line["event"] for line in relay.log].count("stopped") == 1
        for address in (relay.tls, relay.admin):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)


async def test_sigterm_lets_running_calls_end(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address, limits=PATIENT) as relay:
        turn = await relay.open_turn()
        relay.send_signal(signal.SIGTERM)
        assert (await relay.logged("draining"))["flows"] == 1
        assert await turn.refresh(900) == 900
        with pytest.raises(UpstreamError):
            await relay.open_turn()
        await turn.close()
        assert await relay.ended() == 0


async def test_sigterm_makes_a_lame_duck_first(tmp_path: Path) -> None:
    """While health checks are told 503, newcomers are served. Then the port closes."""
    limits = {"lame_duck_s": 3600, "drain_timeout_s": 3600}
    async with open_host() as host, serving(tmp_path, host.address, limits=limits) as relay:
        await relay.becomes_ready()
        relay.send_signal(signal.SIGTERM)
        assert (await relay.logged("lame duck"))["seconds"] == 3600
        assert await relay.readyz() == 503
        async with await relay.open_turn() as turn:
            assert await turn.refresh(900) == 900
        relay.send_signal(signal.SIGTERM)
        assert await relay.ended() == 0
        assert "draining" not in [line["event"] for line in relay.log]


async def test_what_a_drain_leaves_is_closed_one_by_one(tmp_path: Path) -> None:
    limits = {"lame_duck_s": 0.2, "drain_timeout_s": 0.2}
    async with open_host() as host, serving(tmp_path, host.address, limits=limits) as relay:
        calls = [await relay.open_turn() for _ in range(3)]
        relay.send_signal(signal.SIGTERM)
        assert (await relay.logged("draining"))["flows"] == 3
        assert (await relay.logged("closing what is left"))["connections"] == 3
        assert await relay.ended() == 0
        reasons = [line["reason"] for line in relay.log if line["event"] == "connection closed"]
        assert reasons == ["draining"] * 3
        for call in calls:
            await call.close()


async def test_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address, limits=PATIENT) as relay:
        turn = await relay.open_turn()
        relay.send_signal(signal.SIGTERM)
        await relay.logged("draining")
        relay.send_signal(signal.SIGTERM)
        assert await relay.ended() == 0
        with pytest.raises(UpstreamError):
            await turn.closed
        await turn.close()


async def test_sigint_stops_at_once(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address, limits=PATIENT) as relay:
        turn = await relay.open_turn()
        relay.send_signal(signal.SIGINT)
        assert await relay.ended() == 0
        assert "draining" not in [line["event"] for line in relay.log]
        await turn.close()


async def test_sighup_reloads(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address) as relay:
        turn = await relay.open_turn()
        write_config(relay.path, {**relay.tree, "routes": [{"server_name": "a.test", "region": "default"}]})
        relay.send_signal(signal.SIGHUP)
        assert (await relay.logged("configuration reloaded"))["routes"] == 1

        write_config(relay.path, {**relay.tree, "upstreams": [], "lissten": {}})
        relay.send_signal(signal.SIGHUP)
        refused = "configuration not reloaded: the old one stays"
        causes = [(await relay.logged(refused))["cause"] for _ in range(2)]
        assert causes == [f"{relay.path}: upstreams: expected at least one", f"{relay.path}: lissten: unknown key"]
        # What Python's own readers stumble over, and what nobody has foreseen; each time the next signal is heard.
        for text in ("x = " + 5000 * "[", "x = " + 5000 * "9"):
            relay.path.write_text(text)
            relay.send_signal(signal.SIGHUP)
            assert "not valid TOML" in (await relay.logged(refused))["cause"]
        write_config(relay.path, relay.tree)
        relay.send_signal(signal.SIGHUP)
        assert (await relay.logged("configuration reloaded"))["routes"] == 0
        relay.log.clear()

        assert await turn.refresh(900) == 900
        async with await relay.open_turn():
            assert host.allocations == 2
        await turn.close()
        relay.send_signal(signal.SIGTERM)
        assert await relay.ended() == 0


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (SigCgt of proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


async def test_sighup_before_it_is_ready(tmp_path: Path) -> None:
    """It does not end the process, and the file is read again once there is something that can be reloaded.

    The file is a pipe at first: the relay waits in the middle of its start for what the test writes.
    """
    path, pipe = tmp_path / "written.toml", tmp_path / "relay.toml"
    write_config(path, settings_tree(Authority(tmp_path), NO_UPSTREAM, limits=UNWATCHED))
    os.mkfifo(pipe)
    process = await start("serve", "--config", pipe)
    try:
        while not catches(process.pid, signal.SIGHUP):
            assert process.returncode is None
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        with await asyncio.to_thread(pipe.open, "w") as writing:
            text = path.read_text()
            path.replace(pipe)  # for whoever opens it again
            writing.write(text)
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready ")
        assert process.stderr is not None
        while b"configuration reloaded" not in await process.stderr.readline():
            assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        await kill(process)


async def test_web_proxies_are_told_too(tmp_path: Path) -> None:
    listen = {"web_proxy": ["127.0.0.1:0", "[::1]:0"]}
    async with serving(tmp_path, NO_UPSTREAM, listen=listen) as relay:
        for proxy in relay.web_proxies:
            assert (await refused(proxy, "www.example.com:443")).status == 403
        assert [proxy.is_ipv6 for proxy in relay.web_proxies] == [False, True]
        relay.send_signal(signal.SIGTERM)
        assert await relay.ended() == 0


async def test_log_as_text(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    write_config(path, settings_tree(Authority(tmp_path), NO_UPSTREAM, limits=UNWATCHED))
    process = await start("serve", "--config", path)
    try:
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready ")
        process.send_signal(signal.SIGTERM)
        _, stderr = await process.communicate()
    finally:
        await kill(process)
    lines = of_the_relay(stderr.decode())
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(info|warning) +\] \S", line) for line in lines), lines
    assert "stopped" in lines[-1]


# What the operator must act on: one line, status 2


def line_of(result: tuple[int | None, str, str]) -> str:
    status, stdout, stderr = result
    assert (status, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith("relay: ")
    return stderr.removeprefix("relay: ").removesuffix("\n")


async def test_mistakes_in_the_file(tmp_path: Path) -> None:
    authority, path = Authority(tmp_path), tmp_path / "relay.toml"
    tree = settings_tree(authority, NO_UPSTREAM)
    write_config(path, {**tree, "lissten": {}})

    stranger = authority.issue("stranger.test")
    bad = tmp_path / "bad.toml"
    files = {**tree["certificates"][0], "private_key": str(stranger.private_key)}
    write_config(bad, {**tree, "certificates": [files]})
    gone = tmp_path / "gone.toml"

    unknown_key, bad_certificate, missing, checked = await asyncio.gather(
        run("serve", "--config", path),
        run("serve", "--config", bad),
        run("serve", "--config", gone),
        run("check-config", bad),
    )
    assert line_of(unknown_key) == f"{path}: lissten: unknown key"
    assert line_of(bad_certificate).startswith(
        f"certificates.0: private key {stranger.private_key}: expected the unencrypted PEM key of"
    )
    assert line_of(missing) == f"{gone}: No such file or directory"
    assert line_of(checked) == line_of(bad_certificate)


async def test_check_config_warns_of_certificates(tmp_path: Path) -> None:
    path, old = tmp_path / "relay.toml", files_in(tmp_path, "old")
    write_pair(old, signed(authority(), "old.test", end=NOW - DAY))
    tree = settings_tree(Authority(tmp_path), {"address": str(NO_UPSTREAM), "region": "use1"})
    tree["certificates"].append({"certificate": str(old.chain), "private_key": str(old.private_key)})
    tree["limits"] = {"connections": 100}
    write_config(path, {**tree, "routes": [{"server_name": "elsewhere.test", "region": "use1"}]})
    status, stdout, stderr = await run("check-config", path)
    assert (status, stdout) == (0, f"{path}: ok (1 upstream, 1 route, 2 warnings)\n")
    assert stderr.splitlines() == [
        f"relay: warning: certificates.1: {old.chain}: has expired, on {NOW - DAY:%Y-%m-%d %H:%M} UTC",
        "relay: warning: routes.0.server_name: 'elsewhere.test': no certificate has such a name: clients that ask for"
        " it refuse the relay",
    ]


@pytest.mark.parametrize("section", ["tls", "admin"])
async def test_port_in_use(tmp_path: Path, section: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = str(Address(*taken.getsockname()))
        listen: dict[str, Any] = {"tls": [in_use]} if section == "tls" else {"admin": in_use}
        path = tmp_path / "relay.toml"
        write_config(path, settings_tree(Authority(tmp_path), NO_UPSTREAM, listen=listen))
        line = line_of(await run("serve", "--config", path))
        # A client that connects reaches the one that was there first.
        taken.setblocking(False)
        with pytest.raises(BlockingIOError):
            taken.accept()
    assert line.startswith(f"cannot listen on {in_use}")
    assert line.endswith(": address already in use")


async def test_mistakes_on_the_command_line() -> None:
    results = await asyncio.gather(run("serve"), run("serv"), run("demo", "--seconds", "0"))
    assert [status for status, _, _ in results] == [2, 2, 2]
    assert all("Traceback" not in stderr for _, _, stderr in results)


# The other commands


async def test_check_config(tmp_path: Path) -> None:
    path, wrong = tmp_path / "relay.toml", tmp_path / "wrong.toml"
    tree = settings_tree(Authority(tmp_path), NO_UPSTREAM, limits={"connections": 100})
    write_config(path, tree)
    write_config(wrong, {**tree, "upstreams": [{"name": "a", "address": "::1:3478"}], "health": {"fall": 0}})
    good, bad = await asyncio.gather(run("check-config", path), run("check-config", wrong))
    assert good == (0, f"{path}: ok (1 upstream, 0 routes)\n", "")
    assert bad == (
        2,
        "",
        f"relay: {wrong}: upstreams.0.address: '::1:3478': an IPv6 address needs brackets, for example [::1]:443\n"
        f"relay: {wrong}: health.fall: 0: expected greater than or equal to 1\n",
    )


async def test_check_config_warns_of_too_few_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    write_config(path, settings_tree(Authority(tmp_path), NO_UPSTREAM, limits={"connections": 10_000_000}))
    status, stdout, stderr = await run("check-config", path)
    assert (status, stdout) == (0, f"{path}: ok (1 upstream, 0 routes, 1 warning)\n")
    assert stderr.startswith(
        "relay: warning: limits: at most 40000128 file descriptors are needed, and this process may"
    )


def test_check_config_reads_the_list_of_users(tmp_path: Path) -> None:
    path, users = tmp_path / "relay.toml", tmp_path / "users.toml"
    entitlement = {"policy": "file", "file": "users.toml"}
    write_config(path, {**settings_tree(Authority(tmp_path), NO_UPSTREAM), "entitlement": entitlement})
    users.write_text("[[users]]\nuser = 'ann'\ncalls = 0\n[[users]]\nname = 'bob'\n")
    assert run_here("check-config", path) == (
        2,
        "",
        f"relay: {users}: users.0.calls: 0: expected greater than or equal to 1\n"
        f"relay: {users}: users.1.user: required, but missing\n"
        f"relay: {users}: users.1.name: unknown key\n",
    )
    users.write_text("[[users]]\nuser = 'ann'\n")
    assert run_here("check-config", path)[0] == 0


def test_check_config_reads_the_authorities_of_signaling(tmp_path: Path) -> None:
    path, tree = tmp_path / "relay.toml", settings_tree(Authority(tmp_path), NO_UPSTREAM)
    write_config(path, {**tree, "signaling": {"upstreams": ["https://192.0.2.7"], "ca_file": "missing.pem"}})
    status, _, said = run_here("check-config", path)
    assert (status, said) == (2, f"relay: signaling.ca_file: {tmp_path / 'missing.pem'}: No such file or directory\n")
    (tmp_path / "missing.pem").write_text("no PEM")
    status, _, said = run_here("check-config", path)
    assert (status, "[Errno" in said) == (2, False)
    assert said.startswith(f"relay: signaling.ca_file: {tmp_path / 'missing.pem'}: ")


@pytest.mark.parametrize("key", ["records", "calls"])
async def test_check_config_says_of_files_what_the_start_says(tmp_path: Path, key: str) -> None:
    path, tree = tmp_path / "relay.toml", settings_tree(Authority(tmp_path), NO_UPSTREAM)
    write_config(path, {**tree, "quality": {key: "none/calls"}})
    checked, started = await asyncio.gather(run("check-config", path), run("serve", "--config", path))
    assert line_of(checked) == line_of(started)
    assert line_of(checked).endswith(f"none/calls (quality.{key}): no such file or directory")


async def test_check_config_finds_two_listeners_at_one_address(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    listen = {"tls": ["127.0.0.1:14443"], "web_proxy": ["0.0.0.0:14443"]}
    write_config(path, settings_tree(Authority(tmp_path), NO_UPSTREAM, listen=listen))
    checked, started = await asyncio.gather(run("check-config", path), run("serve", "--config", path))
    expected = "0.0.0.0:14443: expected another address or port: listen.tls.0 has 127.0.0.1:14443"
    assert line_of(checked) == line_of(started) == f"{path}: listen.web_proxy.0: {expected}"


def test_check_config_finds_addresses_of_other_machines(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    listen = {"tls": ["192.0.2.7:443"]}
    write_config(path, settings_tree(Authority(tmp_path), NO_UPSTREAM, listen=listen))
    line = "relay: listen.tls.0: 192.0.2.7: this machine does not have this address\n"
    assert run_here("check-config", path) == (2, "", line)
    assert run_here("check-config", "--skip-addresses", path)[0] == 0


async def test_what_is_open_is_told_by_the_check_and_in_the_log(tmp_path: Path) -> None:
    async with serving(tmp_path, NO_UPSTREAM, balancers={"networks": ["0.0.0.0/0"]}) as relay:
        cause = (await relay.logged("configuration needs attention"))["cause"]
        assert cause.startswith("balancers.networks.0: 0.0.0.0/0: every machine in it can claim to be any client")
        status, stdout, stderr = await run("check-config", relay.path)
        write_config(relay.path, relay.tree)
        relay.send_signal(signal.SIGHUP)
        assert (await relay.logged("configuration needs attention"))["cause"] == cause
    assert (status, stderr) == (0, f"relay: warning: {cause}\n")
    assert stdout.endswith("(1 upstream, 0 routes, 1 warning)\n")


async def test_check_config_asks_the_servers(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    tree = settings_tree(Authority(tmp_path), NO_UPSTREAM)
    async with open_host() as host:
        there = {**tree, "upstreams": [{"name": "there", "address": str(host.address)}]}
        write_config(path, there)
        status, stdout, stderr = await run("check-config", "--resolve", path)
        assert (status, stderr) == (0, "")
        ok, *table = stdout.splitlines()
        assert ok == f"{path}: ok (1 upstream, 0 routes)"
        assert any(re.search(rf"there +{host.address} +a Binding +[\d.]+ +ok", line) for line in table)
        write_config(path, {**there, "upstreams": [*there["upstreams"], *tree["upstreams"]]})
        status, stdout, stderr = await run("check-config", "--resolve", path)
    assert (status, stderr) == (1, "")
    assert stdout.splitlines()[0] == f"{path}: ok (2 upstreams, 0 routes)"
    assert re.search(rf"stun1 +{NO_UPSTREAM} ", stdout)


async def test_an_operator_with_the_token(tmp_path: Path) -> None:
    """Over TLS, at an address that other machines reach; then on a unix socket, where no token is needed."""
    status, stdout, stderr = run_here("admin-token")
    assert (status, stderr) == (0, "")
    _, _, token, _, _, _, *lines = stdout.splitlines()
    admin = tomllib.loads("\n".join(lines))["admin"]
    (tmp_path / "token").write_text(f"{token}\n")
    async with serving(tmp_path, NO_UPSTREAM, listen={"admin": "0.0.0.0:0"}, admin=admin) as relay:
        url: list[str | Path] = ["--url", f"https://127.0.0.1:{relay.admin.port}", "--ca", tmp_path / "ca.pem"]
        known, unknown = await asyncio.gather(
            run("top", "--once", *url, "--token-file", tmp_path / "token"), run("top", "--once", *url)
        )
    assert (known[0], known[2]) == (0, "")
    assert "flows 0" in known[1]
    assert "answers 401: the token is missing or wrong: set RELAY_ADMIN_TOKEN" in line_of(unknown)
    async with serving(tmp_path, NO_UPSTREAM, listen={"admin": "unix:admin.sock"}, admin=admin) as relay:
        assert relay.admin_text == f"unix:{tmp_path}/admin.sock"
        known = await run("top", "--once", "--url", relay.admin_text)
    assert (known[0], known[2]) == (0, "")
    assert "flows 0" in known[1]


def described(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def test_a_relay_that_serves_has_given_up_what_it_does_not_need(tmp_path: Path) -> None:
    async with serving(tmp_path, NO_UPSTREAM) as relay:
        limits, status = described(relay.pid, "limits"), described(relay.pid, "status")
    [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4] in {"0", "1"}
    assert "NoNewPrivs:\t1\n" in status


async def test_version_and_help() -> None:
    version, help_text = await asyncio.gather(run("--version"), run("--help"))
    assert version == (0, f"cloud9-relay {__version__}\n", "")
    assert help_text[0] == 0
    assert all(command in help_text[1] for command in ("serve", "demo", "check-config"))


def commands_of(command: Any, name: str) -> dict[str, Any]:
    """A command and all below it, by their names."""
    found = {name: command}
    for part, below in getattr(command, "commands", {}).items():
        found |= commands_of(below, f"{name} {part}")
    return found


def test_no_word_of_a_help_text_is_taken_for_markup() -> None:
    """Typer takes [targets] for a style, and shows nothing of it; and :cd: for a picture."""
    commands = commands_of(get_command(app), "relay")
    assert {"relay serve", "relay loadtest run", "relay ca issue"} <= commands.keys()
    for name, command in commands.items():
        texts = [command.help, *(getattr(one, "help", None) for one in command.params)]
        for text in filter(None, texts):
            assert Text.from_markup(text).plain == text.replace("\\[", "["), name


async def test_demo_as_json_and_as_a_table() -> None:
    status, stdout, stderr = await run("demo", "--seconds", "1", "--json")
    assert (status, stderr) == (0, "")
    report = json.loads(stdout)
    assert report["complete"] is True
    assert [(stream["sent"], stream["received"]) for stream in report["streams"]] == [(50, 50)] * 10
    status, stdout, stderr = await run("demo", "--seconds", "0.2")
    assert status == 0
    assert "TURN/TLS" in stdout
    # There is no terminal: plain lines say what goes on.
    assert stderr.splitlines() == [
        "Starting the vendor's cloud and a relay on this machine.",
        "Placing 5 calls of 0.2 s, directly and through the relay.",
        "25 % of the calls are over.",
        "50 % of the calls are over.",
        "75 % of the calls are over.",
    ]
