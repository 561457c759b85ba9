"""Whole load tests, with Locust and the packet engine, against a relay on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from loadtest.plan.target import Target
from loadtest.verdict.result import load
from tests.loadtest.running.driver import (
    LENIENT,
    RELAY,
    distributed,
    options_of,
    processes_with,
    require_in_files,
    run_small,
    small,
    wait_for_intervals,
)
from tests.support.processes import children_of

README = Path(__file__).parents[3] / "loadtest" / "README.md"
FILES = {"record.jsonl", "locust.log", "result.json", "junit.xml", "intervals.csv", "report.html"}
# They log out at the end. The relay then refuses the users 6 to 11, whom no other test has.
KINDS = """
import gevent
from locust import constant, task
from loadtest import CallUser, RecordingUser, SignalingUser, StormUser

class Own:
    wait_time = constant(0.5)
    fixed_count = 1

    def on_start(self):
        self.number = self.own_number

class Signals(Own, SignalingUser):
    transports = ("polling", "websocket")
    own_number = 3

    @task
    def call(self):
        with self.line():
            gevent.sleep(0.5)

class Calls(Own, CallUser):
    own_number = 4

    @task
    def call_colleague(self):
        with self.answered_call() as call:
            call.talk(1)

class Storms(Own, StormUser):
    own_number = 10

    @task
    def blip(self):
        self.come()
        self.go()

class Records(Own, RecordingUser):
    own_number = 11

    @task
    def record_some(self):
        self.record(2)
"""


def program_of_the_readme() -> str:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return next(block for block in blocks if "MediaUser" in block)


def test_the_locustfile_of_the_readme(relay: Target, tmp_path: Path) -> None:
    """Through the command line, with the profile ``desk`` made small."""
    program = program_of_the_readme()
    assert len([line for line in program.splitlines() if line]) <= 10
    path, folder = tmp_path / "mine.py", tmp_path / "results"
    path.write_text(program)
    command = [*RELAY, "loadtest", "run", "desk", "--users", "2", "--seconds", "6", "-o", str(folder)]
    ran = subprocess.run(
        [*command, "--locustfile", str(path), *options_of(relay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    result = load(folder / "result.json")
    assert ran.returncode == (0 if result.passed else 1), ran.stderr
    assert {one.name for one in folder.iterdir()} == FILES
    # Only what the machine does beside the test may have failed it.
    assert {check.name for check in result.checks if not check.passed} <= {
        "void windows",
        "added delay p99",
        "MOS",
        "missing",
        "loss",
    }
    assert result.timings["set-up"].failed == 0
    assert result.timings["Allocate"].took.count == result.timings["set-up"].count >= 2
    assert result.packets.received > 0
    assert (result.packets.lost, result.packets.corrupt, result.packets.misrouted) == (0, 0, 0)
    # One event for each second of each stream, and a MOS.
    assert result.timings["stream-second"].count == sum(result.mos_of_stream_seconds.values()) > 0
    assert result.delay.p50_ms is not None or result.generator.void_windows
    assert result.relay is None
    assert result.target.server == str(relay.server)
    assert result.environment["locust"]
    assert "The test has" in ran.stderr
    assert relay.secret.get_secret_value() not in ran.stderr + (folder / "locust.log").read_text()


def test_each_kind_of_user(relay: Target, tmp_path: Path) -> None:
    locustfile = tmp_path / "kinds.py"
    locustfile.write_text(KINDS)
    profile = small(users=4, shape={"ramp_s": 0, "hold_s": 9}, warm_up_s=0, media={"up": 0, "down": 1})
    folder = tmp_path / "results"
    folder.mkdir()
    result = run_small(folder, relay, profile, locustfile=locustfile)
    names = {"sign-in", "ring", "answer", "release", "call set-up", "set-up", "come back", "upload", "fetch"}
    failures = {name: timing.failures for name, timing in result.timings.items() if timing.failed}
    assert failures == {}, (folder / "locust.log").read_text()
    assert names <= {name for name, timing in result.timings.items() if timing.took.count}
    assert result.packets.received > 0


def test_calls_that_come_and_go_and_the_memory_of_the_relay(relay: Target, tmp_path: Path) -> None:
    """The demo's relay tells of its memory, every two seconds: twenty are enough to compare."""
    changes: dict[str, Any] = {
        "kind": "churn",
        "call_s": 1,
        "pause_between_calls_s": 0.1,
        "warm_up_s": 0,
        "shape": {"ramp_s": 0, "hold_s": 20},
        "thresholds": LENIENT | {"memory_growth_percent": 1000},
    }
    folder = tmp_path / "results"
    folder.mkdir()
    result = run_small(folder, relay, small(**changes))
    assert result.relay is not None
    assert result.relay.resident_bytes
    assert [check.passed for check in result.checks if check.name == "memory growth"] == [True]
    assert result.timings["set-up"].failed == 0
    # Each user has had more than one call.
    assert result.timings["set-up"].count > result.users
    assert (result.packets.lost, result.packets.misrouted) == (0, 0)
    assert result.packets.received > 0


def test_a_master_and_two_workers(relay: Target, tmp_path: Path) -> None:
    """What the workers have measured comes together at the master."""
    with distributed(relay, tmp_path, users=4, seconds=8) as (master, workers):
        assert master.wait(100) in {0, 1}
        assert [worker.wait(30) for worker in workers] == [0, 0]
    result = load(tmp_path / "results" / "result.json")
    assert result.incidents == []
    assert result.timings["set-up"].failed == 0
    assert max(second.users for second in result.intervals) == 4
    assert result.packets.received > 0
    assert (result.packets.lost, result.packets.misrouted) == (0, 0)
    # Two windows a second.
    assert result.generator.windows > result.judged_seconds


def test_a_worker_that_dies_is_an_incident(relay: Target, tmp_path: Path) -> None:
    with distributed(relay, tmp_path, users=2, seconds=14) as (master, workers):
        wait_for_intervals(tmp_path / "results" / "record.jsonl", 2)
        # The command, and Locust in the group of its own.
        (child,) = children_of(workers[0].pid)
        os.kill(child, signal.SIGKILL)
        assert workers[0].wait(30) == 1
        assert master.wait(100) == 1
    result = load(tmp_path / "results" / "result.json")
    assert len(result.incidents) == 1
    assert re.fullmatch(r"worker \S+ is gone: it has sent no heartbeat", result.incidents[0])
    require_in_files(tmp_path / "results", result.incidents[0])
    # The other one went on.
    assert result.intervals[-1].second >= 9


def test_ctrl_c_writes_the_report(relay: Target, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    command = [*RELAY, "loadtest", "run", "desk", "--users", "2", "--seconds", "300", "-o", str(folder)]
    with subprocess.Popen([*command, *options_of(relay)], stderr=subprocess.PIPE, text=True) as process:
        wait_for_intervals(folder / "record.jsonl", 2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=100)
    assert process.returncode == 1, told
    assert "The test was interrupted." in told
    assert {one.name for one in folder.iterdir()} == FILES
    result = load(folder / "result.json")
    assert result.interrupted
    assert len(result.intervals) >= 2
    # Locust's processes have ended with it: nobody has the record open.
    assert not processes_with(str(folder))
