"""A load test as a test runs it: small, short, and against a relay that other tests use, too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.plan.profile import Profile, parse
from loadtest.plan.target import Target
from loadtest.running.processes import LOCUSTFILE, Mode
from loadtest.running.supervise import Wish, run
from loadtest.verdict.result import Result
from tests.support.network.ports import reserved_address

# The machine may do other things: neither delays nor a late generator are judged.
ALONE = Mode()
LENIENT = {"loss_percent": 1, "errors_percent": 0, "void_percent": 100}


def small(**changes: Any) -> Profile:
    """Two users for five seconds."""
    tree = {
        "description": "small",
        "users": 2,
        "warm_up_s": 1,
        "shape": {"ramp_s": 1, "hold_s": 4},
        "media": {"up": 1, "down": 1},
        "thresholds": LENIENT,
    }
    return parse(tree | changes, "test")


def run_small(
    folder: Path,
    target: Target,
    profile: Profile | None = None,
    *,
    mode: Mode = ALONE,
    locustfile: Path = LOCUSTFILE,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """Run it, and take its result."""
    wish = Wish("small", profile or small(), "relay", mode, folder, locustfile)
    return run(wish, target, Console(file=io.StringIO()), interrupted)


def options_of(target: Target) -> list[str]:
    """A target as options of the command line."""
    given = {
        "target": target.server,
        "server-name": target.server_name,
        "ca": target.authorities,
        "secret": target.secret.get_secret_value(),
        "peer": target.peer,
        "target-users": target.users,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@contextmanager
def relay_of_its_own() -> Iterator[tuple[Target, subprocess.Popen[str]]]:
    """A relay that a test may kill."""
    command = [sys.executable, "-m", "loadtest.demo_target", "--users", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Target.model_validate(json.loads(process.stdout.readline())), process
        finally:
            process.kill()


RELAY = Path(sys.executable).with_name("relay")
# A process that has not begun by then never will.
PATIENCE_S = 60.0


@contextmanager
def distributed(
    target: Target, folder: Path, *, users: int, seconds: int
) -> Iterator[tuple[subprocess.Popen[str], list[subprocess.Popen[str]]]]:
    """A master and two workers of the profile ``desk``. They are ended with the block."""
    command = [str(RELAY), "loadtest", "run", "desk", "--users", str(users), "--seconds", str(seconds)]
    more = [["--worker"], ["--worker"], ["--master", "--expect-workers", "2", "-o", str(folder / "results")]]
    with reserved_address() as address:
        command += [*options_of(target), "--master-port", str(address.port)]
        processes = [subprocess.Popen([*command, *one], text=True, stderr=subprocess.DEVNULL) for one in more]
        try:
            yield processes[2], processes[:2]
        finally:
            for process in processes:
                if process.poll() is None:
                    # SIGTERM: it ends Locust, too, which has a group of its own.
                    process.terminate()
            for process in processes:
                process.wait(100)


def wait_for_intervals(record: Path, count: int) -> None:
    """Wait until a test has got so far."""
    deadline = time.monotonic() + PATIENCE_S
    while not record.exists() or record.read_text().count('"kind": "interval"') < count:
        assert time.monotonic() < deadline, "the test has not begun"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """The children of a process."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processes_with(word: str) -> list[int]:
    """The processes that were told this, on the command line or in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in told and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found
