"""Capacity: what a try says, targets and carriers that take turns, and whose the knee is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.bench.servers import KINDS
from loadtest.engine.plans import Carrier
from loadtest.plan.search import Outcome, Search
from loadtest.plan.target import Target
from loadtest.running.capacity import (
    NOTHING_KNOWN,
    WORDS,
    Contestant,
    Rounds,
    outcome_of,
    profile_of,
    told,
    write,
)
from loadtest.running.processes import Mode
from loadtest.verdict.result import Result
from relay.errors import OperatorError
from tests.loadtest.running.driver import RELAY, options_of, processes_with, wait_for_intervals
from tests.support.processes import children_of, exists

RESULT = Path(__file__).parents[1] / "verdict" / "result.json"
# That it has.
STREAMS = 4


def result(**changes: object) -> Result:
    return Result.model_validate(json.loads(RESULT.read_text()) | changes)


@pytest.mark.parametrize(
    ("part", "changes", "outcome"),
    [
        ("packets", {}, Outcome.HELD),
        ("packets", {"lost": 1}, Outcome.BROKE),
        ("packets", {"unsent": 1}, Outcome.BROKE),
        ("packets", {"sent": 0, "received": 0}, Outcome.BROKE),
        ("delay", {"p99_ms": 20.5}, Outcome.BROKE),
        ("delay", {"p99_ms": 20.0}, Outcome.HELD),
        ("delay", {"p99_ms": None}, Outcome.VOID),
        ("generator", {"void_percent": 50.0}, Outcome.VOID),
    ],
)
def test_what_a_try_says(part: str, changes: dict[str, float | None], outcome: Outcome) -> None:
    whole = result()
    assert (
        outcome_of(whole.model_copy(update={part: getattr(whole, part).model_copy(update=changes)}), STREAMS) is outcome
    )


def test_a_late_generator_takes_the_blame_and_nothing_has_held() -> None:
    """It sends in bunches, which a target may have no room for."""
    whole = result()
    void = whole.generator.model_copy(update={"void_percent": 100.0})
    lost = whole.packets.model_copy(update={"lost": 3})
    assert outcome_of(whole.model_copy(update={"generator": void, "packets": lost}), STREAMS) is Outcome.VOID
    nothing = whole.model_copy(update={"judged_seconds": 0, "intervals": []})
    assert outcome_of(nothing, STREAMS) is Outcome.VOID


@pytest.mark.parametrize(("p95_ms", "outcome"), [(50.0, Outcome.VOID), (2001.0, Outcome.BROKE), (None, Outcome.BROKE)])
def test_streams_that_were_not_there_have_not_held(p95_ms: float | None, outcome: Outcome) -> None:
    """A target that answers at once has not kept them waiting."""
    whole = result()
    setup = whole.timings["set-up"]
    took = setup.took.model_copy(update={"p95_ms": p95_ms})
    waited = whole.model_copy(update={"timings": {"set-up": setup.model_copy(update={"took": took})}})
    assert outcome_of(waited, STREAMS) is Outcome.HELD
    assert outcome_of(waited, STREAMS + 1) is outcome


@pytest.mark.parametrize("calls", [1, 100, 1000, 10_000])
def test_what_is_judged_begins_when_all_calls_are_there(calls: int) -> None:
    profile = profile_of(calls, 5)
    assert profile.judged_from_s == profile.shape.ramp_s + 2
    assert profile.shape.seconds - profile.judged_from_s == 5
    assert profile.shape.rate_at(calls) <= 100


def test_a_name_that_is_no_name_of_a_folder() -> None:
    target = Target.model_validate({"server": "127.0.0.1:1"})
    with pytest.raises(OperatorError, match=r"--target \.\./x: expected a name of a-z"):
        Contestant("../x", target, Search(1, 1))


def test_users_who_are_refused_break_it_and_stalls_do_not() -> None:
    for name, outcome in (("set-up", Outcome.BROKE), ("stall", Outcome.HELD)):
        whole = result()
        failed = whole.timings["set-up"].model_copy(update={"failed": 1})
        timings = whole.timings | {name: failed}
        assert outcome_of(whole.model_copy(update={"timings": timings}), STREAMS) is outcome


def test_two_carriers_take_turns(relay: Target, tmp_path: Path) -> None:
    contestants = [
        Contestant("relay", relay.model_copy(update={"carrier": carrier}), Search(4, 4, repeats=1))
        for carrier in (Carrier.TLS, Carrier.WEBSOCKET)
    ]
    lines = io.StringIO()
    Rounds(tmp_path, 3, Mode()).search(contestants, Console(file=lines, width=200), lambda: False)
    # What has broken is tried again. If the machine is too busy to judge four calls, fewer are tried.
    folders = sorted(one.name for one in tmp_path.iterdir())
    assert folders[:2] == ["001-relay-tls-4", "002-relay-websocket-4"]
    tries = sum(outcomes.total() for one in contestants for outcomes in one.search.tries.values())
    assert len(folders) == tries == len(lines.getvalue().splitlines())
    written = json.loads(write(contestants, tmp_path).read_text())
    assert [one["carrier"] for one in written["targets"]] == ["tls", "websocket"]
    for one, found in zip(contestants, written["targets"], strict=True):
        assert (found["knee_calls"] == 4) == (one.search.limit == "search")
    for folder in folders:
        packets = json.loads((tmp_path / folder / "result.json").read_text())["packets"]
        assert packets["received"] > 0
        assert packets["misrouted"] == packets["corrupt"] == 0


def interrupted_after(*outcomes: Outcome) -> dict[str, Any]:
    """What is told of a search that has got so far."""
    search = Search(50, 2000)
    for outcome in outcomes:
        calls = search.next()
        assert calls is not None
        search.note(calls, outcome)
    return Contestant("relay", Target.model_validate({"server": "127.0.0.1:1"}), search).plain(interrupted=True)


def test_a_search_that_was_interrupted_claims_nothing() -> None:
    found = interrupted_after()
    assert (found["knee_calls"], found["limit"], found["tries"]) == (None, "interrupted", {})
    assert told(found) == "relay over tls: nothing is known: the search was interrupted before a try had ended."
    found = interrupted_after(Outcome.HELD, Outcome.HELD, Outcome.BROKE)
    assert (found["knee_calls"], found["limit"]) == (100, "interrupted")
    words = "The search was interrupted, so the limit is not known."
    assert told(found) == f"relay over tls: 100 calls so far. {words}"


def test_a_search_that_had_ended_is_known_all_the_same() -> None:
    """Another one was interrupted."""
    contestant = Contestant("relay", Target.model_validate({"server": "127.0.0.1:1"}), Search(2, 2, repeats=1))
    contestant.search.note(2, Outcome.HELD)
    assert contestant.plain(interrupted=True)["limit"] == "search"


def test_ctrl_c_before_a_try_has_ended(relay: Target, tmp_path: Path) -> None:
    options = options_of(relay)
    options[options.index("--target") + 1] = f"relay={relay.server}"
    command = [*RELAY, "loadtest", "capacity", "-o", str(tmp_path), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_intervals(tmp_path / "001-relay-tls-50" / "record.jsonl", 1)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert f"over tls: {NOTHING_KNOWN}" in printed
    written = json.loads((tmp_path / "capacity.json").read_text())
    assert written["interrupted"] is True
    assert [(one["knee_calls"], one["limit"]) for one in written["targets"]] == [(None, "interrupted")]


# Side by side, and whose the knee is


# What a shell that is not interactive does to what it starts in the background.
BACKGROUND = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")


@contextlib.contextmanager
def held(rows: str, number: signal.Signals = signal.SIGINT, opening: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Servers that the benchmark starts, and the command with which it says to measure their capacity."""
    command = [*opening, sys.executable, "-m", "loadtest.bench.sidebyside", "--hold", "--rows", rows]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()
            children = children_of(process.pid)
            assert len(children) > len(rows.split(","))
            process.send_signal(number)
            assert process.wait(60) == 0
            assert not any(exists(child) for child in children)
        finally:
            process.kill()


@pytest.mark.skipif(bool(KINDS["coturn"].missing()), reason="coturn is not installed")
def test_a_relay_and_coturn_side_by_side(tmp_path: Path) -> None:
    with held("relay/tls,coturn/tls") as command:
        assert command[:5] == ["taskset", "-c", command[2], "relay", "loadtest"]
        small = ["--from", "2", "--to", "2", "--repeats", "1", "--seconds", "3"]
        ran = subprocess.run(
            [*command[:3], *RELAY, *command[4:], *small, "--output", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert ran.returncode == 0, ran.stderr
    folders = sorted(one.name for one in tmp_path.iterdir() if one.is_dir())
    assert folders[:2] == ["001-relay-tls-2", "002-coturn-tls-2"]
    written = json.loads((tmp_path / "capacity.json").read_text())
    assert [(one["name"], one["delay"]) for one in written["targets"]] == [
        ("relay", "there and back"),
        ("coturn", "there and back"),
    ]
    for name, found in zip(("relay", "coturn"), written["targets"], strict=True):
        # On a busy machine two calls may break; then one is tried.
        assert found["knee_calls"] in ({2} if found["limit"] == "search" else {0, 1})
        assert f"{name} over tls: {found['knee_calls']} calls. {WORDS[found['limit']]}" in ran.stdout
    for folder in folders:
        whole = Result.model_validate_json((tmp_path / folder / "result.json").read_bytes())
        # The sink sends the one stream of a call back. One that comes late may not have begun.
        assert 1 <= max(one.streams for one in whole.intervals) <= int(folder.rpartition("-")[2])
        assert whole.packets.received > 0
        assert whole.packets.misrouted == whole.packets.corrupt == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_servers_that_a_script_holds_end_with_a_signal(number: signal.Signals) -> None:
    with held("relay/tls", number, BACKGROUND) as command:
        assert "--target" in command


def test_a_knee_of_the_generator_says_so(relay: Target, tmp_path: Path) -> None:
    """It is stopped for a tenth of a second again and again, so its packets leave late. The relay is well."""

    def hold_up() -> bool:
        for process_id in processes_with(str(tmp_path)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(process_id, signal.SIGCONT)
        return False

    contestant = Contestant("relay", relay, Search(1, 1, repeats=1))
    Rounds(tmp_path, 3, Mode()).search([contestant], Console(file=io.StringIO()), hold_up)
    found: dict[str, Any] = json.loads(write([contestant], tmp_path).read_text())["targets"][0]
    assert (found["knee_calls"], found["limit"]) == (0, "generator")
    assert found["tries"] == {"1": {"void": 2}}
