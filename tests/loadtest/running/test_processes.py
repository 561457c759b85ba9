"""Locust's command line, and the port on which its processes meet."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from loadtest.plan.target import Target
from loadtest.running import processes
from loadtest.running.last_words import why_it_ended
from loadtest.running.processes import FreePort, Mode
from relay.errors import OperatorError
from tests.loadtest.running.driver import run_small


def test_masters_and_workers_of_several_machines_have_the_port_of_locust() -> None:
    assert Mode(master=True).arguments()[5:7] == ["--master-bind-port", "5557"]
    assert Mode(worker=True).arguments()[-2:] == ["--master-port", "5557"]
    assert Mode(worker=True, master_port=6000).arguments()[-2:] == ["--master-port", "6000"]
    # Whoever names a port has it.
    named = Mode(processes=2, master_port=6000)
    assert not named.wants_port
    assert named.arguments().count("6000") == 2


def test_two_tests_of_one_machine_never_have_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that somebody has bound."""
    with socket.socket() as other:
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", processes.PORTS.start))
        monkeypatch.setattr(processes, "PORTS", range(processes.PORTS.start, processes.PORTS.start + 3))
        monkeypatch.setattr(processes, "MAX_PORTS_TRIED", 3)
        taken: list[FreePort] = []
        with pytest.raises(OperatorError, match="no free port from 30000 to 30002 for workers; expected --master-port"):
            taken.extend(FreePort() for _ in range(3))
        assert len({one.port for one in taken}) == len(taken)
        assert processes.PORTS.start not in {one.port for one in taken}
        for one in taken:
            one.close()
        if taken:
            again = FreePort()
            again.close()


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            "[2026-11-28 10:00:00,123] host/ERROR/locust.main: No User class found!\n",
            "the locustfile has no users; expected a class that is not abstract",
        ),
        (
            "[2026-11-28 10:00:00,123] host/ERROR/locust.main: Gave up waiting for workers to connect\n",
            "not all workers have come in time; expected as many as --expect-workers says",
        ),
        (
            "Traceback\nlocust.exception.RPCError: Socket bind failure: Address already in use "
            "(addr='tcp://127.0.0.1:5557')\n",
            "127.0.0.1:5557 is in use; expected a free port for --master-port",
        ),
        ("[2026-11-28 10:00:00,123] host/INFO/x: 1\n[2026-11-28 10:00:00,124] host/ERROR/a.b: no: no\n", "no: no"),
        ("", "it wrote nothing"),
    ],
)
def test_why_locust_ended_is_told_in_our_words(tmp_path: Path, log: str, words: str) -> None:
    (tmp_path / "locust.log").write_text(log)
    assert why_it_ended(1, tmp_path) == f"Locust ended with status 1: {words}"


def test_a_log_that_is_gone(tmp_path: Path) -> None:
    assert why_it_ended(2, tmp_path) == "Locust ended with status 2: its log cannot be read"


def test_a_test_whose_workers_find_the_port_of_locust_taken(relay: Target, tmp_path: Path) -> None:
    with socket.socket() as other:
        # If it cannot be bound, somebody else has it already.
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", 5557))
            other.listen()
        result = run_small(tmp_path, relay, mode=Mode(processes=2))
    assert result.passed, result.why
    assert result.generator.windows > result.judged_seconds
