"""What goes wrong: each has a reason in the report, the test has failed, and nothing hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.plan.target import Target
from loadtest.plan.work import FOLDER
from loadtest.running.demo import demo_target
from loadtest.running.faults import Faults
from relay.demo.authority import Authority
from relay.errors import OperatorError, RelayError
from tests.loadtest.running.driver import (
    processes_with,
    relay_of_its_own,
    run_small,
    run_told,
    small,
    wait_for_intervals,
)
from tests.support.network.ports import reserved_address
from tests.support.processes import children_of

NO_ROOM = "No space left on device"


def test_a_target_that_refuses(tmp_path: Path) -> None:
    told = run_told(tmp_path, Target.model_validate({"server": "127.0.0.1:9"}))
    told.require_everywhere("connecting: no connection (Connection refused)")
    told.require_everywhere("No packet was sent in the judged part of the test.")
    assert set(told.result.timings["set-up"].failures) == {"connecting: no connection (Connection refused)"}


@pytest.mark.parametrize(
    ("carrier", "words"), [("tls", "no TLS handshake ended within "), ("udp", "no answer to Allocate within ")]
)
def test_a_target_that_never_answers(tmp_path: Path, carrier: str, words: str) -> None:
    """TCP connects, and datagrams arrive; but the test ends before anybody gives up."""
    kind = socket.SOCK_DGRAM if carrier == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as silent:
        silent.bind(("127.0.0.1", 0))
        if carrier != "udp":
            silent.listen(100)
        port = silent.getsockname()[1]
        target = Target.model_validate({"server": f"127.0.0.1:{port}", "peer": "127.0.0.1:0", "secret": "north"})
        told = run_told(tmp_path, target, hold_s=4, options=["--carrier", carrier])
    told.require_everywhere(words)
    told.require_everywhere("; 2 users still waited when they were stopped")
    assert "set-up" not in told.result.timings
    assert sum(waited.count for waited in told.result.waits.values()) == 2


def test_who_gives_up_says_what_did_not_come() -> None:
    """In a process of its own, for users need Locust, which changes Python."""
    program = """
from loadtest.engine.engine import Cause, Ended, Phase
from loadtest.users.lines import LineFailed
print(LineFailed(Ended(1, Phase.TLS, Cause.TIMEOUT, 0, "not ready in time"), 15))
print(LineFailed(Ended(1, Phase.ALLOCATE, Cause.TIMEOUT, 0, "no answer to a request")))
print(LineFailed(Ended(1, Phase.ALLOCATE, Cause.TIMEOUT, 0, "no answer with the MESSAGE-INTEGRITY"), 15))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [
        "tls: no TLS handshake ended within 15 s",
        "allocate: no answer to Allocate",
        "allocate: no answer in time (no answer with the MESSAGE-INTEGRITY)",
    ]


def test_a_certificate_that_does_not_verify(relay: Target, tmp_path: Path) -> None:
    other = str(Authority(tmp_path).ca_certificate)
    told = run_told(tmp_path, relay.model_copy(update={"authorities": other}))
    told.require_everywhere("tls: the certificate does not verify")
    (cause,) = told.result.timings["set-up"].failures
    assert cause.startswith("tls: the certificate does not verify")


def test_a_relay_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    with relay_of_its_own() as (target, process):

        def kill() -> None:
            wait_for_intervals(tmp_path / "results" / "record.jsonl", 3)
            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        told = run_told(tmp_path, target, hold_s=10)
        killer.join()
    told.require_everywhere("call failed 2 times: ready: ")
    # And they have tried to come back.
    told.require_everywhere("connecting: no connection (Connection refused)")
    result = told.result
    assert result.packets.received > 0
    assert result.timings["call"].failed == 2
    assert result.timings["set-up"].failed >= 1
    assert result.intervals[-1].second >= 8


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount it")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(relay: Target, full_disk: Path) -> None:
    """Load without a record is of no use: the test ends long before its hour, and the terminal says why."""
    told = run_told(full_disk, relay, hold_s=3600)
    assert told.status == 2
    words = f"Locust ended with status 3: the record cannot be written; 0 bytes are free in {told.folder}"
    assert words in told.terminal
    assert "The test has failed." in told.terminal
    assert not processes_with(str(told.folder))
    # A file is whole, or it is not there, and is named.
    present = {one.name for one in told.folder.iterdir()} - {"record.jsonl", "locust.log"}
    lost = {"result.json", "junit.xml", "intervals.csv", "report.html"} - present
    assert "report.html" in lost
    assert all(f"{told.folder / name}: {NO_ROOM}" in told.terminal for name in lost)
    assert len(present) + len(lost) == 4


def test_a_disk_that_is_full_from_the_beginning(relay: Target, full_disk: Path) -> None:
    with pytest.raises(OSError, match=NO_ROOM):
        (full_disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(OperatorError, match=rf"{full_disk}\S*: {NO_ROOM}"):
        run_small(full_disk, relay, small(shape={"ramp_s": 0, "hold_s": 3600}))


def test_a_record_that_cannot_be_written(relay: Target, tmp_path: Path) -> None:
    """There is room for the report, and it says that there was none for the record."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "record.jsonl").symlink_to("/dev/full")
    told = run_told(tmp_path, relay, hold_s=3600)
    told.require_everywhere(f"the record cannot be written: {NO_ROOM}")
    assert any(reason.startswith("Locust ended with status 3") for reason in told.result.reasons)


def test_a_worker_of_this_machine_that_dies(relay: Target, tmp_path: Path) -> None:
    """With ``--processes`` Locust forks its workers. The test goes on without one, to its end."""
    folder = tmp_path / "results"

    def kill() -> None:
        wait_for_intervals(folder / "record.jsonl", 3)
        # Locust, and its workers, which have the same environment.
        locusts = set(processes_with(f"{FOLDER}={folder}"))
        (worker, *_) = (child for one in locusts for child in children_of(one) if child in locusts)
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with reserved_address() as address:
        options = ["--processes", "2", "--master-port", str(address.port)]
        told = run_told(tmp_path, relay, hold_s=16, options=options)
    killer.join()
    told.require_everywhere("is gone: it has sent no heartbeat")
    assert len(told.result.incidents) == 1
    assert told.result.intervals[-1].second >= 12


def test_a_locustfile_that_is_broken(relay: Target, tmp_path: Path) -> None:
    locustfile = tmp_path / "broken.py"
    locustfile.write_text("import nothing_of_this_name\n")
    result = run_small(tmp_path, relay, locustfile=locustfile)
    assert not result.passed
    assert any("No module named 'nothing_of_this_name'" in reason for reason in result.reasons)


RAISING = """
import gevent
from locust import constant, task
from loadtest import MediaUser, SignalingUser

class Broken(MediaUser):
    wait_time = constant(1)

    @task
    def talk(self):
        raise ValueError("nobody at home")

class Locked(SignalingUser):
    wait_time = constant(1)

    @task
    def ring(self):
        with self.line():
            pass

class Late(MediaUser):
    @task
    def stay(self):
        raise gevent.Timeout(9)
"""


def test_what_the_code_of_users_raises_is_told(relay: Target, tmp_path: Path) -> None:
    """Locust catches it, and goes on. The second kind lacks the password of the cloud; the third ends at once."""
    locustfile = tmp_path / "raising.py"
    locustfile.write_text(RAISING)
    options = ["--users", "3", "--locustfile", str(locustfile), "--cloud", "http://127.0.0.1:9"]
    told = run_told(tmp_path, relay, hold_s=4, options=options)
    told.require_everywhere("Broken (raising.py:11): ValueError: nobody at home")
    told.require_everywhere("Locked (raising.py:18): SoftphoneError: the target has no cloud_password; expected")
    told.require_everywhere("Late (raising.py:24): Timeout: 9 seconds")
    first, second, third = told.result.user_errors.values()
    assert first >= second >= 2
    assert third == 1
    assert {check.name: check.measured for check in told.result.checks}["errors"] == 100


TALKING = """
from locust import constant, task
from loadtest import MediaUser

class Trader(MediaUser):
    wait_time = constant(1)

    @task
    def talk(self):
        with self.call() as call:
            call.talk(60)
"""


def test_a_call_of_ones_own_user_that_is_cut_is_counted_once(tmp_path: Path) -> None:
    locustfile = tmp_path / "talking.py"
    locustfile.write_text(TALKING)
    with relay_of_its_own() as (target, process):

        def kill() -> None:
            wait_for_intervals(tmp_path / "results" / "record.jsonl", 3)
            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        told = run_told(tmp_path, target, hold_s=10, options=["--locustfile", str(locustfile)])
        killer.join()
    told.require_everywhere("call failed 2 times: ready: ")
    assert told.result.timings["call"].failed == 2
    assert told.result.timings["set-up"].failed >= 1
    # All of it was counted where it happened.
    assert told.result.user_errors == {}


def test_faults_need_a_cloud_that_has_them(relay: Target) -> None:
    profile = small(faults=[{"hop": "web_proxy", "kind": "stall"}])
    with pytest.raises(OperatorError, match="the target names no cloud"):
        Faults(profile, Target.model_validate({"server": "127.0.0.1:9"}))
    elsewhere = relay.model_copy(update={"control": f"{relay.control}/elsewhere"})
    with Faults(profile, elsewhere) as faults, pytest.raises(OperatorError, match="stall: 404"):
        faults.look(0)


def test_a_demo_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RelayError, match="the demo's relay did not start"), demo_target(2):
        pass


def test_a_demo_without_room_for_its_files(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for one page: enough to choose the folder, and not for the files of the cloud."""
    ballast = full_disk / "ballast"
    with pytest.raises(OSError, match=NO_ROOM):
        ballast.write_bytes(bytes(1 << 20))
    os.truncate(ballast, ballast.stat().st_size - os.sysconf("SC_PAGESIZE"))
    monkeypatch.setenv("TMPDIR", str(full_disk))
    with (
        pytest.raises(OperatorError, match=rf"the demo's relay did not start: {full_disk}\S*: {NO_ROOM}$"),
        demo_target(2),
    ):
        pass
    assert list(full_disk.iterdir()) == [ballast]
