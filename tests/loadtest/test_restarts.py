"""The bench of restarts, for the servers that the relay is compared with: one that is reloaded, and one that is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from loadtest.bench import replaced

CALLS = 3


def run(server: str, *options: str) -> dict[str, Any]:
    if reason := replaced.missing(server):
        pytest.skip(reason)
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("gcc or make is not installed")
    command = [sys.executable, "-m", "loadtest.bench.restarts", f"--server={server}", f"--calls={CALLS}", *options]
    done = subprocess.run(
        [*command, "--storm=5", "--upgrades=1", "--pause=0"], capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(found["upgrade_s"]) == 1
    return found


def test_a_reload_of_haproxy_keeps_its_calls() -> None:
    """How many logins fail meanwhile is what the bench is for."""
    found = run("haproxy", "--seconds=6")
    assert (found["run"]["ready"], found["run"]["disconnected"], found["run"]["lost"]) == (CALLS, 0, 0)


def test_a_restart_of_coturn_cuts_them_off() -> None:
    found = run("coturn", "--seconds=3")
    assert (found["run"]["ready"], found["run"]["disconnected"]) == (CALLS, CALLS)
    assert found["faults"]["lost"] > 0
