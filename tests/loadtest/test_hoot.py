"""The benchmark of a hoot, on a small one: both SFUs deliver all copies, and a copy that is missing is seen."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from loadtest.bench import bench, hoot, servers
from relay.emulator.sfu import GroupKey

OPTIONS = argparse.Namespace(talkers=2, subscribers=10, seconds=0.4, warmup=0.1, pps=50, rounds=1)
COPIES = 2 * 20 * 10


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("gcc or make is not installed")
    servers.build()


@pytest.mark.parametrize("mode", hoot.MODES)
def test_all_copies_arrive(mode: str, tmp_path: Path) -> None:
    run = hoot.run_once(OPTIONS, mode, tmp_path, bench.Cores.choose())
    counted = {name: run[name] for name in ("due", "received", "lost", "duplicate", "corrupt", "unsent")}
    assert counted == {"due": COPIES, "received": COPIES, "lost": 0, "duplicate": 0, "corrupt": 0, "unsent": 0}
    assert (run["sfu"]["forwarded"], run["sfu"]["copies"]) == (50, 500)
    assert run["cpu_us_per_copy"] > 0
    summary = hoot.summarize([run, {**run, "mode": "forward"}, {**run, "mode": "encrypt"}])
    assert summary[mode]["due"] == 2 * COPIES


def test_copies_that_nobody_makes_are_lost(tmp_path: Path) -> None:
    packets = tmp_path / "packets"
    hoot.write_packets(packets, GroupKey.new(1), 1, 10)
    with socket.socket(type=socket.SOCK_DGRAM) as sfu, socket.socket(type=socket.SOCK_DGRAM) as end:
        sfu.bind(("127.0.0.1", 0))
        end.bind(("127.0.0.1", 0))
        port, descriptor = sfu.getsockname()[1], end.fileno()
        command: list[str | Path] = [
            servers.BUILD / "hoot",
            f"--server=127.0.0.1:{port}",
            f"--talkers={descriptor}",
            f"--listeners={descriptor}",
            f"--file={packets}",
            f"--bytes={hoot.PACKET_BYTES}",
            *("--packets=10", "--first=0", "--pps=100"),
            f"--server-pid={os.getpid()}",
        ]
        done = subprocess.run(command, pass_fds=[descriptor], capture_output=True, text=True, check=True)
    assert '"due": 10, "received": 0, "lost": 10' in done.stdout
    assert '"delay_us": null' in done.stdout


def test_options_are_checked() -> None:
    done = subprocess.run([servers.BUILD / "hoot", "--bytes=10"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: hoot")
