"""Capacity: what a try says, and tries of two carriers that take turns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.engine.plans import Carrier
from loadtest.plan.search import Outcome, Search
from loadtest.plan.target import Target
from loadtest.running.capacity import Contestant, Rounds, outcome_of, write
from loadtest.running.processes import Mode
from loadtest.verdict.result import Result

RESULT = Path(__file__).parents[1] / "verdict" / "result.json"


def result(**changes: object) -> Result:
    return Result.model_validate(json.loads(RESULT.read_text()) | changes)


@pytest.mark.parametrize(
    ("part", "changes", "outcome"),
    [
        ("packets", {}, Outcome.HELD),
        ("packets", {"lost": 1}, Outcome.BROKE),
        ("packets", {"unsent": 1}, Outcome.BROKE),
        ("packets", {"sent": 0}, Outcome.BROKE),
        ("delay", {"p99_ms": 20.5}, Outcome.BROKE),
        ("delay", {"p99_ms": 20.0}, Outcome.HELD),
        ("delay", {"p99_ms": None}, Outcome.VOID),
        ("generator", {"void_percent": 50.0}, Outcome.VOID),
    ],
)
def test_what_a_try_says(part: str, changes: dict[str, float | None], outcome: Outcome) -> None:
    whole = result()
    assert outcome_of(whole.model_copy(update={part: getattr(whole, part).model_copy(update=changes)})) is outcome


def test_a_late_generator_hides_no_loss() -> None:
    whole = result()
    void = whole.generator.model_copy(update={"void_percent": 100.0})
    lost = whole.packets.model_copy(update={"lost": 3})
    assert outcome_of(whole.model_copy(update={"generator": void, "packets": lost})) is Outcome.BROKE


def test_users_who_are_refused_break_it_and_stalls_do_not() -> None:
    for name, outcome in (("set-up", Outcome.BROKE), ("stall", Outcome.HELD)):
        whole = result()
        failed = whole.timings["set-up"].model_copy(update={"failed": 1})
        assert outcome_of(whole.model_copy(update={"timings": {name: failed}})) is outcome


def test_two_carriers_take_turns(relay: Target, tmp_path: Path) -> None:
    contestants = [
        Contestant("relay", relay.model_copy(update={"carrier": carrier}), Search(4, 4, repeats=1))
        for carrier in (Carrier.TLS, Carrier.WEBSOCKET)
    ]
    told = io.StringIO()
    Rounds(tmp_path, 3, Mode()).search(contestants, Console(file=told, width=200), lambda: False)
    # What has broken is tried again, so there are two tries each at most.
    folders = sorted(one.name for one in tmp_path.iterdir())
    assert folders[:2] == ["001-relay-tls-4", "002-relay-websocket-4"]
    assert len(folders) == sum(one.search.tries[4].total() for one in contestants) == len(told.getvalue().splitlines())
    written = json.loads(write(contestants, tmp_path).read_text())
    assert [one["carrier"] for one in written["targets"]] == ["tls", "websocket"]
    for one, found in zip(contestants, written["targets"], strict=True):
        assert found["knee_calls"] == (4 if one.search.limit == "search" else 0)
    for folder in folders:
        packets = json.loads((tmp_path / folder / "result.json").read_text())["packets"]
        assert packets["received"] > 0
        assert packets["misrouted"] == packets["corrupt"] == 0
