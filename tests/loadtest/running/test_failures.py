"""What goes wrong: each has a reason in the report, the test has failed, and nothing hangs."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.plan.target import Target
from loadtest.running.demo import demo_target
from loadtest.running.faults import Faults
from relay.demo.authority import Authority
from relay.errors import OperatorError, RelayError
from tests.loadtest.running.driver import relay_of_its_own, run_small, small, wait_for_intervals

# A profile in which nobody comes through.
BRIEF = {"shape": {"ramp_s": 0, "hold_s": 3}, "warm_up_s": 0}


def test_a_target_that_refuses(tmp_path: Path) -> None:
    result = run_small(tmp_path, Target.model_validate({"server": "127.0.0.1:9"}), small(**BRIEF))
    assert not result.passed
    assert set(result.timings["set-up"].failures) == {"connecting: no connection (Connection refused)"}
    assert any("connecting: no connection (Connection refused)" in reason for reason in result.reasons)
    assert "No packet was sent in the judged part of the test." in result.reasons


def test_a_certificate_that_does_not_verify(relay: Target, tmp_path: Path) -> None:
    other = str(Authority(tmp_path).ca_certificate)
    result = run_small(tmp_path, relay.model_copy(update={"authorities": other}), small(**BRIEF))
    assert not result.passed
    (cause,) = result.timings["set-up"].failures
    assert cause.startswith("tls: the certificate does not verify")


def test_a_relay_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    with relay_of_its_own() as (target, process):
        record = tmp_path / "record.jsonl"

        def kill() -> None:
            wait_for_intervals(record, 3)
            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        result = run_small(tmp_path, target, small(shape={"ramp_s": 1, "hold_s": 9}))
        killer.join()
    assert not result.passed
    assert result.packets.received > 0
    assert result.timings["call"].failed == 2
    # And they have tried to come back.
    assert result.timings["set-up"].failed >= 1
    assert result.intervals[-1].second >= 8


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount it")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(relay: Target, full_disk: Path) -> None:
    """Load without a record is of no use: the test ends, and says why."""
    with pytest.raises(OperatorError, match=rf"{full_disk}/\S+: No space left on device"):
        run_small(full_disk, relay, small(shape={"ramp_s": 0, "hold_s": 60}))


def test_a_record_that_cannot_be_written(relay: Target, tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").symlink_to("/dev/full")
    result = run_small(tmp_path, relay, small(shape={"ramp_s": 0, "hold_s": 60}))
    assert not result.passed
    words = "the record cannot be written: No space left on device"
    assert any(words in reason and reason.startswith("Locust ended with status 3") for reason in result.reasons)


def test_a_locustfile_that_is_broken(relay: Target, tmp_path: Path) -> None:
    locustfile = tmp_path / "broken.py"
    locustfile.write_text("import nothing_of_this_name\n")
    result = run_small(tmp_path, relay, locustfile=locustfile)
    assert not result.passed
    assert any("No module named 'nothing_of_this_name'" in reason for reason in result.reasons)


def test_faults_need_a_cloud_that_has_them(relay: Target) -> None:
    profile = small(faults=[{"hop": "web_proxy", "kind": "earthquake"}])
    with pytest.raises(OperatorError, match="the target names no cloud"):
        Faults(profile, Target.model_validate({"server": "127.0.0.1:9"}))
    with Faults(profile, relay) as faults, pytest.raises(OperatorError, match="earthquake"):
        faults.look(0)


def test_a_demo_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RelayError, match="the demo's relay did not start"), demo_target(2):
        pass
