"""``relay upgrade`` where there is nothing to upgrade: the signal would end any other process, so none is sent."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from relay.console import upgrade as module
from relay.console.upgrade import upgrade
from relay.errors import OperatorError, UpstreamError
from relay.local_datagrams import send, upgrade_answer
from tests.support.benches.commands import run_here


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("none", "--pid none: No such file or directory"),
        ("0", "--pid 0: expected a process id, or a file that has one"),
        ("9999999999", "--pid 9999999999: expected a process id, or a file that has one"),
        # Not our own number: each process that collects tests would have another one.
        ("1", "--pid: process 1 is not a relay that can hand over"),
    ],
)
def test_no_such_relay(target: str, said: str) -> None:
    assert run_here("upgrade", "--pid", target) == (2, "", f"relay: {said}\n")


def test_a_file_that_names_a_process(tmp_path: Path) -> None:
    path = tmp_path / "relay.pid"
    for text, said in (("x", "expected a process id"), (f"{os.getpid()}\n", "is not a relay that can hand over")):
        path.write_text(text)
        status, _, stderr = run_here("upgrade", "--pid", path)
        assert (status, said in stderr) == (2, True)


def test_none_and_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_can_hand_over", lambda _: False)
    with pytest.raises(OperatorError, match=r"^no relay runs here"):
        upgrade(None)
    monkeypatch.setattr(module, "_can_hand_over", lambda pid: pid in {1, os.getpid()})
    with pytest.raises(OperatorError, match=rf"^several relays run here: name one with --pid: 1, {os.getpid()}$"):
        upgrade(None)


@pytest.fixture
def as_if_this_were_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_can_hand_over", lambda _: True)
    monkeypatch.setattr(module, "LOOK_S", 0.01)


@pytest.mark.usefixtures("as_if_this_were_one")
def test_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("done 4711", "failed it is broken"):

        def answer(pid: int, number: int, text: str = text) -> None:
            assert number == signal.SIGUSR2
            send(upgrade_answer(pid), text)

        monkeypatch.setattr(os, "kill", answer)
        if text.startswith("done"):
            assert upgrade(str(os.getpid())) == 4711
        else:
            with pytest.raises(UpstreamError, match=r"^the relay goes on as before: it is broken$"):
                upgrade(str(os.getpid()))


@pytest.mark.usefixtures("as_if_this_were_one")
def test_an_answer_of_another_process_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone on the machine can send to the name. The kernel says who has."""
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(os, "kill", lambda pid, _: send(upgrade_answer(pid), "done 1"))
    with pytest.raises(UpstreamError, match=r"^process 1 does not answer within 0\.2 s"):
        upgrade("1")


@pytest.mark.usefixtures("as_if_this_were_one")
def test_a_relay_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda _, __: None)
    with pytest.raises(UpstreamError, match=r"^process 2147483647 has ended without an answer$"):
        upgrade("2147483647")


@pytest.mark.usefixtures("as_if_this_were_one")
def test_one_upgrade_at_a_time() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(f"\0{upgrade_answer(os.getpid())[1:]}")
        with pytest.raises(UpstreamError, match=rf"^another relay upgrade waits for process {os.getpid()}$"):
            upgrade(str(os.getpid()))
