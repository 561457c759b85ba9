"""The load tester through a path that knows what it did: the report says the same, within a tenth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest.bench import bad_path
from loadtest.plan.target import Target
from loadtest.verdict.result import Result
from relay.errors import RelayError
from relay.quality import emodel
from tests.support.network.known_path import Passage, Voice, Way

RESULT = Path(__file__).parents[1] / "verdict" / "result.json"
MS = 0.001


@pytest.mark.parametrize("part", bad_path.PARTS)
def test_the_report_says_what_the_path_did(relay: Target, part: str) -> None:
    options = bad_path.parse_options(["--users", "4", "--seconds", "11"])
    found = bad_path.measure_calmly(part, relay, options)
    assert all(row["injected"] > 0 for row in found["rows"]), found
    assert found["agrees"], found


def voice(delays_ms: Sequence[float | None], begin_s: float = 50.0) -> Voice:
    """A stream whose packets were due every 20 ms, and left with these delays; the clock of its RTP began with it."""
    due = [begin_s + 0.02 * number for number in range(len(delays_ms))]
    return Voice(
        [
            Passage(160 * number, at, None if delay is None else at + delay * MS)
            for number, (at, delay) in enumerate(zip(due, delays_ms, strict=True))
        ]
    )


def test_what_a_path_knows() -> None:
    ledger = {
        # Its clock and its way are its own: only what comes on top of the fastest packet counts.
        (Way.UP, 1): voice([7.0] * 10 + [None, None] + [7.0] * 8),
        (Way.DOWN, 2): voice([3.0] * 10 + [223, 203, 183, 163, 143, 123, 104, 83, 63, 43] + [3.0] * 20, 50.3),
    }
    truth = bad_path.truth_of(ledger, 0, 100, 100)
    assert (truth.played.sent, truth.played.lost, truth.played.late, truth.stalls) == (60, 2, 7, 1)
    # Two runs, of 2 and of 7.
    ratio = 9 / 2 * 51 / 60
    assert truth.played.burst_ratio == pytest.approx(ratio)
    r = emodel.r_factor(emodel.G711_CONCEALED, 120, 100 * 9 / 60, ratio)
    assert truth.played.mos == pytest.approx(emodel.mos(r))
    # Of the first ten packets nothing was lost.
    assert bad_path.truth_of(ledger, 0, 50.19, 100).played.missing == 0


def reported(**changes: int) -> Result:
    whole = Result.model_validate_json(RESULT.read_bytes())
    return whole.model_copy(update={"packets": whole.packets.model_copy(update=changes)})


def test_a_report_that_is_wrong_is_seen() -> None:
    truth = bad_path.truth_of({(Way.UP, 1): voice([5.0] * 900 + [None] * 100)}, 0, 1000, 100)
    lost = {count: bad_path.rows_of("loss", truth, reported(lost=count))[0] for count in (89, 91, 109, 111)}
    assert [row.agrees for row in lost.values()] == [False, True, True, False]
    stalls = bad_path.rows_of("stalls", truth, reported(stalls=1, late=0))
    assert {row.figure: row.agrees for row in stalls if row.figure in {"late", "stalls"}} == {
        "late": True,
        "stalls": False,
    }


def test_the_command(monkeypatch: pytest.MonkeyPatch, relay: Target, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit status is the answer."""
    row = {"figure": "lost", "injected": 10.0, "reported": 20.0, "agrees": False}
    found = {"part": "loss", "rows": [row], "agrees": False, "packets": 10, "lateness_max_ms": 1.0}
    asked: list[float] = []

    def measure(*given: object) -> dict[str, object]:
        asked.append(float(str(found["lateness_max_ms"])))
        return {**found, "agrees": len(asked) > 2, "lateness_max_ms": 99.0 if len(asked) == 1 else 1.0}

    monkeypatch.setattr(bad_path, "measure", measure)
    monkeypatch.setattr(bad_path, "demo_target", lambda _: _Given(relay))
    # A run in which the load tester was late is repeated; one that says something wrong is not.
    assert bad_path.main(["--parts", "loss"]) == 1
    assert len(asked) == 2
    printed = capsys.readouterr().out
    assert "| loss | lost | 10 | 20 | NO |" in printed
    assert json.loads(printed.splitlines()[-1])["runs"][0]["part"] == "loss"
    assert bad_path.main(["--parts", "loss"]) == 0
    monkeypatch.setattr(bad_path, "measure", _fail)
    assert bad_path.main(["--parts", "stalls"]) == 2
    assert "bad_path: no way" in capsys.readouterr().err


class _Given:
    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> Target:
        return self._target

    def __exit__(self, *_: object) -> None:
        pass


def _fail(*_: object) -> dict[str, object]:
    raise RelayError("no way")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--parts", "loss,fog"], "loss,fog: expected some of loss, stalls"), (["--seconds", "5"], "expected 8 or more")],
)
def test_options_are_checked(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bad_path.parse_options(arguments)
    assert words in capsys.readouterr().err
