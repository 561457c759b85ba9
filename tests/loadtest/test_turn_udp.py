"""The benchmark of TURN over UDP: it runs, its packets come back, and it knows who pays."""

from __future__ import annotations

import shutil

import pytest

from loadtest.bench import bench, turn_udp

pytestmark = pytest.mark.skipif(shutil.which("turnserver") is None, reason="coturn is not installed")


def test_a_short_run_measures_both_servers() -> None:
    arguments = ["--counts", "5", "--rounds", "1", "--seconds", "0.5", "--warmup", "0.1", "--idle", "10"]
    options = turn_udp.parse_options(arguments)
    with bench.open_bench(bench.with_defaults(options), turn_udp.UdpBench) as measured:
        measured.measure()
    assert [(run["server"], run["section"]) for run in measured.runs] == [
        ("native", "voice"),
        ("coturn", "voice"),
        ("native", "idle"),
        ("coturn", "idle"),
    ]
    for run in measured.runs:
        assert (run["failed"], run["disconnected"]) == (0, 0), run["first_error"]
    for run in measured.runs[:2]:
        assert run["due"] == run["received"] + run["lost"] == 125
        assert run["corrupt"] == run["misrouted"] == run["duplicate"] == 0
    summary = turn_udp.summarize(measured.runs)
    assert summary["voice"]["5"]["packets_per_s"] == 500
    assert "idle: coturn" in turn_udp.table(summary)


def test_an_unknown_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        turn_udp.parse_options(["--servers", "native,pion"])
    assert "--servers pion: expected some of native, slow, coturn" in capsys.readouterr().err
