"""Ctrl-C is obeyed at once, however far a test has come: while its demo starts, or its workers are awaited."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from loadtest.plan.target import Target
from loadtest.verdict.result import load
from tests.loadtest.running.driver import RELAY, options_of, processes_with
from tests.support.network.ports import reserved_address
from tests.support.waiting import becomes, eventually

# The demo's cloud has two users for each, and logs all of them in: it takes seconds until it is ready.
CROWD = 'description = "a crowd"\nusers = 900\nkind = "signaling"\n'


SLOW = """
import time
from locust import task
from loadtest import MediaUser

class Slow(MediaUser):
    def on_stop(self):
        print("LEAVING", flush=True)
        time.sleep(60)

    @task
    def stay(self):
        time.sleep(600)
"""


def started(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RELAY, "loadtest", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


async def told_by_an_interrupted_start(folder: Path, number: signal.Signals, *arguments: str) -> tuple[int, str, str]:
    """The exit status and the words of a command that gets a signal while its demo starts. Nothing of it is left."""
    temporary = folder / "tmp"
    temporary.mkdir()
    process = started(*arguments, TMPDIR=str(temporary))
    try:
        await eventually(lambda: list(temporary.glob("relay-loadtest-*")))
        process.send_signal(number)
        printed, told = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    await becomes(lambda: processes_with(f"TMPDIR={temporary}"), [])
    assert list(temporary.glob("*")) == []
    return process.returncode, printed, told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_test_whose_demo_starts(tmp_path: Path, number: signal.Signals) -> None:
    profile, results = tmp_path / "crowd.toml", tmp_path / "results"
    profile.write_text(CROWD)
    status, _, told = await told_by_an_interrupted_start(tmp_path, number, "run", str(profile), "-o", str(results))
    assert (status, told) == (1, "relay: interrupted before the test had begun: nothing was measured\n")
    assert not results.exists()


async def test_a_search_whose_demo_starts(tmp_path: Path) -> None:
    results = tmp_path / "results"
    arguments = ["capacity", "-o", str(results)]
    status, printed, told = await told_by_an_interrupted_start(tmp_path, signal.SIGINT, *arguments)
    assert (status, told) == (1, "")
    assert "nothing is known: the search was interrupted before a try had ended." in printed
    written = json.loads((results / "capacity.json").read_text())
    assert (written["interrupted"], written["targets"]) == (True, [])


async def test_a_master_that_waits_for_workers(relay: Target, tmp_path: Path) -> None:
    """The one that has come is let go."""
    folder = tmp_path / "results"
    with reserved_address() as address:
        arguments = ["run", "desk", *options_of(relay), "--master-port", str(address.port)]
        more = [["--master", "--expect-workers", "2", "-o", str(folder)], ["--worker"]]
        master, worker = (started(*arguments, *one) for one in more)
        try:
            log = folder / "locust.log"
            await eventually(lambda: log.exists() and "1 workers connected" in log.read_text())
            master.send_signal(signal.SIGINT)
            assert master.wait(100) == 1
            assert worker.wait(50) in {0, 1}
        finally:
            for process in (master, worker):
                process.kill()
                process.communicate()
    result = load(folder / "result.json")
    assert result.interrupted
    assert result.intervals == []


async def test_who_says_it_twice_does_not_wait_for_users(relay: Target, tmp_path: Path) -> None:
    """A user that takes a minute to leave."""
    folder, locustfile = tmp_path / "results", tmp_path / "slow.py"
    locustfile.write_text(SLOW)
    arguments = ["run", "desk", "--users", "1", "-o", str(folder), "--locustfile", str(locustfile)]
    process = started(*arguments, *options_of(relay))
    try:
        log = folder / "locust.log"
        await eventually(lambda: log.exists() and "All users spawned" in log.read_text())
        process.send_signal(signal.SIGINT)
        await eventually(lambda: "LEAVING" in log.read_text())
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "Locust did not stop, and was killed." in told
    assert load(folder / "result.json").interrupted
