"""A load test as a test runs it: small, short, and against a relay that other tests use, too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console

from loadtest.plan.profile import Profile, parse
from loadtest.plan.target import Target
from loadtest.running.processes import LOCUSTFILE, Mode
from loadtest.running.supervise import Wish, run
from loadtest.verdict.result import Result, load
from tests.support.network.ports import reserved_address

# The machine may do other things: neither delays nor a late generator are judged.
ALONE = Mode()
LENIENT = {"loss_percent": 1, "errors_percent": 0, "void_percent": 100}


BRIEF = """
description = "small"
users = 2
warm_up_s = 0
[shape]
ramp_s = 0
hold_s = HOLD_S
[media]
up = 1
down = 1
[thresholds]
loss_percent = 1
errors_percent = 0
void_percent = 100
"""


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
    return [part for name, value in given.items() if value for part in (f"--{name}", str(value))]


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


# Of this tree, whatever the environment has installed.
RELAY = (sys.executable, "-m", "relay")
# A process that has not begun by then never will.
PATIENCE_S = 60.0
# A test of some seconds, the start of Locust, and all that a busy machine adds. What takes longer hangs.
ENDS_WITHIN_S = 100.0


@dataclass(frozen=True)
class Told:
    """What the command ``relay loadtest run`` leaves: its exit status, its words, and its files."""

    status: int
    terminal: str
    folder: Path

    @property
    def result(self) -> Result:
        """``result.json``."""
        return load(self.folder / "result.json")

    def require_everywhere(self, words: str) -> None:
        """It has failed for this reason, and says so on the terminal, to programs, to build servers and to people."""
        assert self.status == 1, self.terminal
        assert words in self.terminal
        require_in_files(self.folder, words)


def require_in_files(folder: Path, words: str) -> None:
    """Each file of a report says that the test has failed, for this reason. Nobody has them open any more."""
    result = load(folder / "result.json")
    assert not result.passed
    assert any(words in reason for reason in result.reasons), result.reasons
    page = unescape((folder / "report.html").read_text())
    assert "The test has failed." in page
    assert words in page
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    failures = [failure.text or "" for failure in suite.iter("failure")]
    assert int(suite.get("failures", 0)) == len(failures) > 0
    assert any(words in text for text in failures), failures
    assert not processes_with(str(folder))


def run_told(folder: Path, target: Target, *, hold_s: float = 3, options: Sequence[str] = ()) -> Told:
    """Two users for some seconds, through the command line."""
    profile, into = folder / "brief.toml", folder / "results"
    profile.write_text(BRIEF.replace("HOLD_S", str(hold_s)))
    command = [*RELAY, "loadtest", "run", str(profile), "-o", str(into), *options_of(target), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENDS_WITHIN_S)
    return Told(done.returncode, done.stderr, into)


@contextmanager
def distributed(
    target: Target, folder: Path, *, users: int, seconds: int
) -> Iterator[tuple[subprocess.Popen[str], list[subprocess.Popen[str]]]]:
    """A master and two workers of the profile ``desk``. They are ended with the block."""
    command = [*RELAY, "loadtest", "run", "desk", "--users", str(users), "--seconds", str(seconds)]
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
