"""``relay demo --wan`` as a program: with a path where there can be one, and without; what it prints and leaves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import wave
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from relay.demo.wan.netns import refusal
from relay.demo.wan.real import why_not
from relay.demo.wan.way import RELAY, TLS, UDP
from tests.support.benches.commands import run_here
from tests.support.benches.serving import kill
from tests.support.processes import children_of, exists
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]
RELAY_COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "relay", "demo", "--wan"]
# setpriv's words for "root, but not over the network". Who is not root needs none.
WITHOUT = ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-sys_admin,-net_admin"]
NOT_ROOT = [] if refusal() else WITHOUT
PACKETS = 435


async def start(*command: str | Path, **environment: str) -> Process:
    env = {**os.environ, "COLUMNS": "100", **environment}
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=ROOT, env=env)


async def run(*command: str | Path, **environment: str) -> tuple[int | None, str, str]:
    process = await start(*command, **environment)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def lengths(folder: Path) -> dict[str, int]:
    """The samples in each file."""
    found = {}
    for path in folder.iterdir():
        with wave.open(str(path)) as reader:
            found[path.name] = reader.getnframes()
    return found


FILES = dict.fromkeys(("1-udp.wav", "2-tls.wav", "3-relay.wav"), PACKETS * 160)


async def test_without_root_the_path_is_simulated_and_it_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    status, out, err = await run(*NOT_ROOT, *RELAY_COMMAND, "--output", folder)
    assert status == 0, err
    assert "Saying a sentence over a simulated path of 40 ms each way, 3 % loss, three ways, for 8.7 s.\n" in err
    assert "One sentence over a simulated path: 40 ms each way, 3 % loss" in out
    assert "\nThe path was simulated, because network namespaces and TUN devices are not permitted here: " in out
    assert all(f" {way} " in out for way in (UDP, TLS, RELAY))
    listen = out.partition("Listen to what came through:\n")[2]
    assert [Path(line.strip()) for line in listen.splitlines()] == [folder / name for name in FILES]
    assert lengths(folder) == FILES


@pytest.mark.skipif(refusal() is not None, reason=refusal() or "")
async def test_without_coturn_the_path_is_simulated_and_it_says_so(tmp_path: Path) -> None:
    for program in ("nsenter", "setpriv"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    folder = tmp_path / "sound"
    status, out, err = await run(*RELAY_COMMAND, "--json", "-o", folder, PATH=str(tmp_path))
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["simulated"] == "turnserver is not installed (Debian's package coturn has it)"
    assert [(way["way"], way["trader"]["sent"]) for way in report["ways"]] == [(w, PACKETS) for w in (UDP, TLS, RELAY)]
    assert [way["file"] for way in report["ways"]] == [str(folder / name) for name in FILES]
    assert lengths(folder) == FILES


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
async def test_with_root_and_coturn_the_path_is_real(tmp_path: Path) -> None:
    status, out, err = await run(*RELAY_COMMAND, "--json", "-o", tmp_path)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["simulated"] is None
    assert report["authentic"] is True
    for way in report["ways"]:
        for side in ("trader", "other"):
            heard = way[side]
            assert heard["sent"] == heard["received"] + heard["lost"] == PACKETS
    assert lengths(tmp_path) == FILES


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
async def test_ctrl_c_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    process = await start(*RELAY_COMMAND, "--seconds", "3600", "-o", tmp_path)
    try:
        await eventually(lambda: list(children_of(process.pid).values()).count("turnserver") == 3)
        await eventually(lambda: len(children_of(process.pid)) == 4, "the relay is the fourth")
        inside = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    finally:
        await kill(process)
    assert process.returncode not in {0, None}
    assert b"Traceback" not in err
    assert [number for number in inside if exists(number)] == []
    assert lengths(tmp_path) == {}


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for arguments, words in (
        (["--wan", "--stay"], "--stay: not with --wan, which has nothing for a browser"),
        (["--output", str(tmp_path)], "--output: needs --wan"),
        (["--wan", "--output", str(tmp_path / "file")], f"{tmp_path / 'file'}: File exists"),
    ):
        assert run_here("demo", *arguments) == (2, "", f"relay: {words}\n")


def test_help_tells_of_it() -> None:
    status, out, _ = run_here("demo", "--help")
    assert status == 0
    assert all(word in out for word in ("--wan", "--output", "relay-demo-wan"))
