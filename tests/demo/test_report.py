"""The demo's table and JSON: every count under its name, and complete only if everything arrived as it was sent."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from relay.demo.calls import Heard
from relay.demo.report import Row, json_of, rows_of, table_of


def stream(delays_ms: list[float | None], *, wrong: int = 0) -> Heard:
    return Heard("a path", "", delays_ms, wrong)


def rows(*streams: Heard) -> list[Row]:
    return rows_of([replace(one, direction=f"way {number}") for number, one in enumerate(streams)])


def shown(row: Row) -> dict[str, str]:
    """What the table says of a direction, by the heads of its columns."""
    return {str(column.header): str(next(iter(column.cells))) for column in table_of([row]).columns}


def test_counts_and_figures() -> None:
    # One lost, one 61.5 ms behind the fastest: more than a jitter buffer of 60 ms waits.
    [row] = rows(stream([1.0, 2.0, None, 62.5], wrong=1))
    [figures] = json_of([row])["streams"]
    counts = {"sent": 4, "received": 3, "late": 1, "lost": 1, "wrong": 1}
    assert {name: figures[name] for name in counts} == counts
    assert figures["delay_p50_ms"] == pytest.approx(2.0)
    assert figures["delay_p99_ms"] == pytest.approx(62.5)
    assert 1 <= figures["mos"] < 4
    assert shown(row) == {
        "path": "a path",
        "way": "way 0",
        **{name: str(count) for name, count in counts.items()},
        "p50 ms": "2.00",
        "p99 ms": "62.50",
        "MOS": f"{figures['mos']:.2f}",
    }


def test_table_fits_a_terminal_of_80_columns() -> None:
    heard = [Heard(path, "A→B", [1.0] * 100, 0) for path in ("UDP direct", "TURN/TLS relay")]
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(table_of(rows_of(heard)))
    text = console.export_text()
    assert "…" not in text
    assert all(word in text for word in ("received", "p99 ms", "MOS", "TURN/TLS relay"))


def test_perfect_call() -> None:
    [row] = rows(stream([1.0] * 50))
    assert row.complete
    report = json_of([row])
    assert report["complete"] is True
    assert report["streams"][0]["mos"] > 4.3
    assert report["streams"][0]["codec"] == "G.711 with concealment"


@pytest.mark.parametrize(
    "heard",
    [stream([1.0, None]), stream([1.0], wrong=1), stream([None]), stream([])],
    ids=["lost", "wrong", "none", "nothing sent"],
)
def test_incomplete(heard: Heard) -> None:
    assert [row.complete for row in rows(heard)] == [False]
    # One bad stream is enough.
    assert json_of(rows(stream([1.0]), heard))["complete"] is False


def test_late_is_complete() -> None:
    assert [row.complete for row in rows(stream([1.0, 500.0]))] == [True]


def test_figures_that_nothing_supports_are_not_invented() -> None:
    [nothing_came, nothing_sent] = rows(stream([None, None]), stream([]))
    assert (shown(nothing_came)["p50 ms"], shown(nothing_came)["p99 ms"]) == ("-", "-")
    assert (shown(nothing_sent)["sent"], shown(nothing_sent)["MOS"]) == ("0", "-")
    [figures] = json.loads(json.dumps(json_of([nothing_sent])))["streams"]
    assert (figures["delay_p50_ms"], figures["mos"]) == (None, None)
