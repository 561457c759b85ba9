"""The soaks of the Makefile: each is long enough for all that expires to be renewed, and none may lose a packet."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from loadtest.commands import app
from loadtest.engine.plans import REBIND_S
from loadtest.plan import profile as profiles

PROJECT = Path(__file__).parents[2]
# RFC 8656 sections 7.2, 9 and 12.
PERMISSION_S, CHANNEL_S, ALLOCATION_S = 300, 600, 600


def options_of(target: str) -> dict[str, Any]:
    """The load test that ``make`` would run for a target, as the command line understands it."""
    told = subprocess.run(
        ["make", "--dry-run", target], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (command,) = [shlex.split(line) for line in told if "relay loadtest run" in line]
    words = command[command.index("run") + 1 :]
    commands = get_command(app).commands  # type: ignore[attr-defined]
    parameters: dict[str, Any] = commands["run"].make_context("run", words).params
    return parameters


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "seconds"), [("nightly-soak", 720), ("soak", 3600)])
def test_a_soak_outlives_what_expires(target: str, seconds: float) -> None:
    options = options_of(target)
    soak = profiles.load(options["profile"]).changed(users=options["users"], seconds=options["seconds"])
    assert (options["target"], soak.users, soak.shape.seconds) == ("demo", 100, seconds)
    assert soak.shape.seconds - soak.judged_from_s > max(PERMISSION_S, CHANNEL_S, ALLOCATION_S)
    # What is renewed in time is seen to be renewed: the engine does it before permissions end.
    assert REBIND_S < PERMISSION_S
    assert soak.media.up
    assert soak.media.down
    assert (soak.thresholds.loss_percent, soak.thresholds.errors_percent) == (0, 0)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "seconds"), [("nightly-churn", 1800), ("churn", 180)])
def test_300_calls_come_and_go_and_memory_does_not_grow(target: str, seconds: float) -> None:
    options = options_of(target)
    churn = profiles.load(options["profile"]).changed(users=options["users"], seconds=options["seconds"])
    assert (options["target"], churn.users, churn.shape.seconds) == ("demo", 300, seconds)
    assert churn.thresholds.memory_growth_percent == 2
    # Each call is replaced by others before the test ends.
    assert churn.shape.hold_s > 2 * churn.call_s


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_night_is_also_for_the_fuzz_search() -> None:
    told = subprocess.run(["make", "--dry-run", "nightly"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "-m tests.fuzz 600" in told.stdout
    assert {"run soak", "run churn"} <= set(re.findall(r"run \w+", told.stdout))
