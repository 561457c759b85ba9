"""The side-by-side benchmark: packets pass each server on each carrier, and what cannot be measured says why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import bench, servers, sidebyside
from loadtest.bench.servers import KINDS
from loadtest.bench.sidebyside import Row, SideBySide, parse_options
from relay.plane.certificates import Certificate

SHORT = ["--counts=3", "--rounds=1", "--seconds=0.5", "--warmup=0.1"]
SENT = 3 * 25


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if not (shutil.which("gcc") and shutil.which("make")):
        pytest.skip("gcc or make is not installed")


def measured(*arguments: str) -> SideBySide:
    options = bench.with_defaults(parse_options([*SHORT, *arguments]))
    with bench.open_bench(options, SideBySide) as found:
        found.measure()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_packets_pass_each_server_on_each_carrier(name: str) -> None:
    if reason := KINDS[name].missing():
        pytest.skip(reason)
    carriers = KINDS[name].carriers
    found = measured("--idle=0", "--rows", ",".join(f"{name}/{carrier}" for carrier in carriers))
    assert [(run["server"], run["carrier"]) for run in found.runs] == [(name, carrier) for carrier in carriers]
    for run in found.runs:
        assert (run["failed"], run["disconnected"]) == (0, 0), run["first_error"]
        assert run["due"] == run["received"] == SENT
        assert not any(run[kind] for kind in bench.WRONG)
        assert (run["tls"] == "") == (run["carrier"] == "udp")
    for line in sidebyside.summarize(found):
        # On a busy machine the generator may have been late, and then nothing is said of delays.
        if line["valid_runs"]:
            assert line["loss"] == 0
            assert 0 < line["rtt_p50_ms"] <= line["rtt_p99_ms"]
            assert line["cpu_us_per_packet"] > 0
            assert line["server_cores"] > 0


@pytest.mark.skipif(bool(KINDS["coturn"].missing()), reason="coturn is not installed")
def test_memory_is_measured_on_a_fresh_server() -> None:
    found = measured("--idle=40", "--rows=coturn/tls,coturn/udp")
    assert [(run["section"], run["carrier"]) for run in found.runs[2:]] == [("idle", "tls"), ("idle", "udp")]
    for run in found.runs[2:]:
        assert (run["ready"], run["failed"]) == (60, 0)
    for line in sidebyside.summarize(found):
        assert line["rss_kb_per_call"] > 1
        assert f"{line['rss_kb_per_call']:.1f}" in sidebyside.table([line])


def test_a_server_that_is_not_installed_says_so_in_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "GO_SOURCES", Path("/nowhere"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "go" else None)
    monkeypatch.setattr(servers, "build", lambda *_: None)
    assert KINDS["pion"].missing() == "golang-github-pion-turn.v2-dev is not installed"
    assert KINDS["coturn"].missing() == "coturn is not installed"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert KINDS["pion"].missing() == "golang-go is not installed"
    found = made_up("--rows=pion/udp,coturn/udp")
    assert found.rows == []
    lines = sidebyside.summarize(found)
    assert [line["missing"] for line in lines] == ["golang-go is not installed", "coturn is not installed"]
    assert "| udp | pion | 3 | not measured: golang-go is not installed |" in sidebyside.table(lines)


def test_a_program_that_does_not_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> None:
        raise servers.BenchError("main.go:12: syntax error\nmake: *** [pion] Error 2\n")

    monkeypatch.setattr(servers, "GO_SOURCES", Path("/"))
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(servers, "build", fail)
    assert KINDS["pion"].missing() == "it does not build: main.go:12: syntax error"


# Reading the runs


def made_up(*arguments: str, runs: list[dict[str, Any]] | None = None) -> SideBySide:
    options = bench.with_defaults(parse_options([*SHORT, *arguments]))
    certificate = Certificate(Path("chain"), Path("key"))
    found = SideBySide(options, Path(), certificate, bench.Cores(0, 1), 1, 1)
    found.runs = runs or []
    return found


def run(server: str, carrier: str, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys([*bench.WRONG, "failed", "disconnected", "dirty_padding"], 0)
    plain |= {"section": "voice", "server": server, "carrier": carrier, "calls": 3, "valid": True, "loss": 0.0}
    plain |= {"cpu_us_per_packet": 10.0, "server_cores": 0.4, "foreign_cores": 0.0, "stolen_cores": 0.0}
    plain |= {"upstream_drops": 0, "rtt_us": {"p50": 200, "p99": 900, "p999": 1500}, "late_us": {"p99": 300}}
    return plain | changes


@pytest.mark.skipif(bool(KINDS["coturn"].missing()), reason="coturn is not installed")
def test_a_row_is_compared_with_coturn_on_its_side_of_tls() -> None:
    runs = [
        run("relay", "websocket"),
        run("coturn", "tls", cpu_us_per_packet=20.0),
        run("coturn", "udp", cpu_us_per_packet=5.0),
        run("emulator", "udp", cpu_us_per_packet=4.0),
        run("emulator", "tls", cpu_us_per_packet=None, late_us=None, rtt_us=None, valid=False),
    ]
    rows = "--rows=" + ",".join(f"{one['server']}/{one['carrier']}" for one in runs)
    lines = sidebyside.summarize(made_up(rows, "--idle=0", runs=runs))
    assert {(line["server"], line["carrier"]): line["of_coturn"] for line in lines} == {
        ("coturn", "tls"): 1.0,
        ("emulator", "tls"): None,
        ("relay", "websocket"): 0.5,
        ("coturn", "udp"): 1.0,
        ("emulator", "udp"): 0.8,
    }
    told = sidebyside.table(lines).splitlines()
    assert told[2].startswith("| tls | coturn | 3 | 20.0 | 1.00 | 0.40 | 0.20 / 0.90 | 0 | - | 1/1 |")
    # Of runs that do not count there are no figures.
    assert told[3].startswith("| tls | emulator | 3 | - | - | - | - / - | - | - | 0/1 |")


def test_what_went_wrong_is_in_the_table() -> None:
    runs = [run("relay", "tls", corrupt=2, failed=1, loss=0.25)]
    lines = sidebyside.summarize(made_up("--rows=relay/tls", runs=runs))
    assert "| 25.0000%, 2 wrong, 1 broken |" in sidebyside.table(lines)


def test_the_command_beside_a_row_measures_that_row() -> None:
    options = parse_options(["--counts=20,200", "--seconds=3", "--realtime", "--idle=0"])
    command = sidebyside.command_of(Row("pion", "udp"), 200, options)
    assert command == (
        "python -m loadtest.bench.sidebyside --rows pion/udp --counts 200 --seconds 3 --idle 0 --realtime"
    )
    again = parse_options(command.split()[3:])
    assert (again.rows, again.counts) == ([Row("pion", "udp")], [200])
    assert (again.seconds, again.idle, again.realtime) == (3, 0, True)


def test_what_python_forwards_has_few_calls_unless_it_is_asked_for() -> None:
    options = parse_options(["--counts=20,200"])
    counted = {str(row): sidebyside.counts_of(row, options) for row in options.rows}
    assert counted["reference/tls"] == counted["emulator/tls"] == [20]
    assert counted["relay/session"] == counted["emulator/udp"] == counted["pion/tls"] == [20, 200]
    assert "emulator-slow/udp" not in counted
    asked = parse_options(["--rows=reference/tls", "--counts=20,200"])
    assert sidebyside.counts_of(Row("reference", "tls"), asked) == [20, 200]


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("asterisk/udp", "relay/udp", "coturn"):
        with pytest.raises(SystemExit):
            parse_options(["--rows", text])
        assert f"{text!r}: expected some of relay/tls,relay/websocket," in capsys.readouterr().err
