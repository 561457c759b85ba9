"""The commands that need no Locust: sink, compare, profiles, and mistakes on the command line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.commands import app
from loadtest.plan import profile as profiles
from loadtest.running import targets
from loadtest.verdict.result import Packets, Percentiles, Result
from relay.errors import OperatorError
from tests.loadtest.running.driver import RELAY

RESULT = Path(__file__).parents[1] / "verdict" / "result.json"


def ran(*arguments: str | Path) -> tuple[int, str]:
    """The exit status and the output. What the operator must act on is raised, for the program to print."""
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def test_a_sink_sends_back_what_comes() -> None:
    command = [*RELAY, "loadtest", "sink", "--listen", "127.0.0.1:0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk,
    ):
        assert process.stderr is not None
        host, _, port = process.stderr.readline().split()[-1].rpartition(":")
        desk.settimeout(30)
        desk.connect((host, int(port)))
        for number in range(3):
            packet = bytes([0x80, number]) + bytes(40)
            desk.send(packet)
            assert desk.recv(100) == packet
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=30)
        assert (process.returncode, told) == (0, "3 packets were sent back\n")


def test_a_sink_whose_port_is_taken() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OperatorError, match=f"sink: {address}: .*in use"):
            ran("sink", "--listen", address)
    with pytest.raises(OperatorError, match="sink: 'nowhere': expected"):
        ran("sink", "--listen", "nowhere")
    with pytest.raises(OperatorError, match=r"192\.0\.2\.1:1: expected the hosts that may send to it"):
        ran("sink", "--listen", "192.0.2.1:1")
    # What comes from there would be load on the way back.
    for sender in ("52.58.127.241", "::ffff:52.58.127.241"):
        with pytest.raises(OperatorError, match=r"sink: --from 52\.58\.127\.241: belongs to the vendor"):
            ran("sink", "--listen", "192.0.2.1:1", "--from", sender)


def test_two_results_are_compared(tmp_path: Path) -> None:
    worse = Result.model_validate_json(RESULT.read_bytes()).model_copy(update={"mos": 2.0})
    other = tmp_path / "other.json"
    other.write_text(worse.text())
    status, told = ran("compare", RESULT, other)
    assert status == 1
    assert "worse" in told
    assert ran("compare", other, RESULT)[0] == 0
    assert ran("compare", RESULT, RESULT)[0] == 0
    other.write_text(json.dumps({"format": "something/2"}))
    with pytest.raises(OperatorError, match="expected a result with format"):
        ran("compare", RESULT, other)
    other.write_text('{"format":' + "[" * 100_000)
    with pytest.raises(OperatorError, match=rf"{other}: lists and objects are nested too deeply; expected a result"):
        ran("compare", RESULT, other)


def written(path: Path, **changes: object) -> Path:
    """The result of the tests with these changes, in a file."""
    path.write_text(Result.model_validate_json(RESULT.read_bytes()).model_copy(update=changes).text())
    return path


def test_a_result_that_failed_is_worse_and_says_why(tmp_path: Path) -> None:
    """Though all figures are the same. The name of its folder is not markup."""
    (tmp_path / "[").mkdir()
    failed = written(tmp_path / "[" / "b]failed.json", passed=False, interrupted=True, reasons=["worker w is gone"])
    status, told = ran("compare", RESULT, failed)
    assert status == 1
    assert f"{failed}: has failed: worker w is gone" in told
    assert f"{failed}: was interrupted" in told
    status, told = ran("compare", failed, RESULT)
    assert status == 0
    assert f"{failed}: has failed: worker w is gone" in told
    assert "better" in told


def test_results_that_have_nothing_in_common_cannot_be_compared(tmp_path: Path) -> None:
    bare: dict[str, object] = {"delay": Percentiles(count=0), "jitter": Percentiles(count=0), "packets": Packets()}
    bare |= {"mos": None, "added_delay_p99_ms": None, "timings": {}, "relay": None, "judged_seconds": 0}
    empty = written(tmp_path / "empty.json", **bare)
    for pair in ((RESULT, empty), (empty, RESULT), (empty, empty)):
        with pytest.raises(OperatorError, match="no figure was measured in both: there is nothing to compare"):
            ran("compare", *pair)


def test_profiles_are_listed() -> None:
    status, told = ran("profiles")
    assert status == 0
    assert [line.split()[0] for line in told.splitlines()] == profiles.names()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("desk", "--master", "--worker"), "--master and --worker: expected one of them"),
        (("desk", "--worker"), "--target demo: is started for this process alone"),
        (("desk", "--target", "10.0.0.5:443"), "not on this machine"),
        (("desk", "--target", "c9rest.xhoot.com:443"), "belongs to the vendor"),
        (("desk", "--target", "127.0.0.1:1", "-o", "/dev/full"), "/dev/full: .*expected a folder for the report"),
        (("desk", "--locustfile", "/nowhere.py"), "--locustfile /nowhere.py: expected a file"),
        (("nonesuch",), "profile nonesuch: "),
        (("desk", "--seconds", "inf"), "--seconds: inf; expected more than 0, and at most 604800"),
        (("desk", "--carrier", "pigeon"), "--target demo: carrier: expected one of tls"),
        (("desk", "--far", "127.0.0.1:1"), "--target demo: has its own cloud and relay, so --far would say nothing"),
        (
            ("desk", "--target", "127.0.0.1:1", "--ca", "/nowhere.pem"),
            "/nowhere.pem: No such file or directory; expected",
        ),
        (
            ("desk", "--target", "127.0.0.1:1", "--carrier", "connect-udp"),
            "carrier connect-udp: asks for a TURN server",
        ),
        (("desk", "--target", "127.0.0.1:1", "--peer", "127.0.0.1:0", "--sink", "127.0.0.1:1"), "--peer and --sink: "),
        (("desk", "--target", "127.0.0.1:1", "--peer", "192.0.2.1:0"), "peer 192.0.2.1: .*expected an address of this"),
        (("desk", "--target", "127.0.0.1:1", "--sink", "192.0.2.1:1"), "sink 192.0.2.1: not on this machine"),
        (("floor-quiet", "--target", "127.0.0.1:1", "--metrics", "http://192.0.2.1"), "metrics 192.0.2.1: not on this"),
        (("bad-proxy", "--target", "127.0.0.1:1"), "the profile has faults, but the target names no cloud"),
        (("desk", "--web", "nonsense"), "--web 'nonsense': expected host:port"),
        (("desk", "--web", "0.0.0.0:8089"), "--web 0.0.0.0:8089: the page starts and stops load, and has no password"),
        (
            ("desk", "--target", "127.0.0.1:1", "--worker", "--web", "127.0.0.1:8089"),
            "--web and --worker: expected one",
        ),
        (("desk", "--target", "127.0.0.1"), "--target 127.0.0.1: server: '127.0.0.1': expected"),
    ],
)
def test_a_mistake_starts_nothing(
    arguments: tuple[str, ...], words: str, nothing_starts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OperatorError, match=words):
        ran("run", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("the demo was started")

    monkeypatch.setattr(targets, "demo_target", start)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--carrier", "tls", "--carrier", "pigeon"), "--target demo: carrier: expected one of tls"),
        (("--target", "demo", "--target", "127.0.0.1:1"), "--target 127.0.0.1:1: expected a name of a-z"),
        (("--target", "demo", "--target", "a=10.0.0.5:443"), "--target 10.0.0.5:443: server 10.0.0.5: not on this"),
        (("--far", "127.0.0.1:1"), "--target demo: has its own cloud and relay"),
        (("--target", "a=127.0.0.1:1", "--carrier", "connect-udp"), "carrier connect-udp: asks for a TURN server"),
    ],
)
def test_a_mistake_measures_nothing(
    arguments: tuple[str, ...], words: str, nothing_starts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OperatorError, match=words):
        ran("capacity", *arguments)
    assert not list(tmp_path.iterdir())
