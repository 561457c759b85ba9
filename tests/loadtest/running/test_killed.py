"""``relay loadtest`` is killed: nothing of it goes on, and no secret is left on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loadtest.running.driver import RELAY, processes_with, wait_for_intervals
from tests.support.network.ports import reserved_address
from tests.support.waiting import becomes, eventually

# The demo's cloud has two users for each, and logs all of them in: it takes seconds until it is ready.
CROWD = 'description = "a crowd"\nusers = 400\nkind = "signaling"\n'


@contextlib.contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A load test, whose temporary files are in ``folder``, as are those of all processes that it starts."""
    folder.mkdir()
    process = subprocess.Popen(
        [*RELAY, "loadtest", "run", *map(str, arguments)],
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    with process:
        try:
            yield process
        finally:
            # Only a test that fails has any left.
            for number in processes_with(f"TMPDIR={folder}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


async def kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill it, and wait until all that it has started is gone, with its files."""
    process.kill()
    process.wait()
    await becomes(lambda: processes_with(f"TMPDIR={folder}"), [])
    await becomes(lambda: list(folder.iterdir()), [])


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["alone", "workers"])
async def test_a_test_ends_with_its_command(tmp_path: Path, options: list[str]) -> None:
    results, temporary = tmp_path / "results", tmp_path / "tmp"
    arguments = ["desk", "--users", "2", "--seconds", "300", "-o", str(results), *options]
    with started(temporary, *arguments) as process:
        wait_for_intervals(results / "record.jsonl", 2)
        # The secrets of the target are in memory alone.
        assert {one.name for one in results.iterdir()} == {"record.jsonl", "locust.log"}
        assert len(processes_with(f"TMPDIR={temporary}")) == (5 if options else 3)
        await kill(process, temporary)


async def test_a_demo_that_is_not_ready_ends_with_its_command(tmp_path: Path) -> None:
    profile, temporary = tmp_path / "crowd.toml", tmp_path / "tmp"
    profile.write_text(CROWD)
    with started(temporary, profile, "-o", tmp_path / "results") as process:
        await eventually(lambda: list(temporary.glob("relay-loadtest-*")))
        await kill(process, temporary)


async def test_a_worker_that_waits_for_its_master_ends_with_its_command(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    with reserved_address() as address:
        arguments = ["desk", "--target", "127.0.0.1:9", "--worker", "--master-port", str(address.port)]
        with started(temporary, *arguments) as process:
            assert process.stderr is not None
            while b"Starting Locust" not in (line := process.stderr.readline()):
                assert line
            await kill(process, temporary)
