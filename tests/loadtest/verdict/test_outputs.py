"""What is written of a result: JSON with its schema, JUnit, CSV, HTML; and the comparison of two."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema_rs
import pytest
from rich.console import Console

from loadtest.commands import tell
from loadtest.verdict.charts import Line, chart
from loadtest.verdict.compare import compare, differences, verdict_change, warnings
from loadtest.verdict.junit import junit
from loadtest.verdict.page import page
from loadtest.verdict.result import SCHEMA, Check, Result, load, schema
from loadtest.verdict.table import table
from relay.errors import OperatorError

EVIL = "<script>alert('&')</script>"


def result(**changes: object) -> Result:
    tree = json.loads((Path(__file__).parent / "result.json").read_text())
    return Result.model_validate(tree | changes)


def failing() -> Result:
    check = Check(name="loss", limit=0, comparison="at most", measured=1.5, unit="%", passed=False)
    return result(passed=False, checks=[check], reasons=[f"worker {EVIL} is gone"])


def test_the_published_schema_is_that_of_the_model() -> None:
    assert json.loads(SCHEMA.read_text()) == schema()


def test_a_result_conforms_to_the_published_schema() -> None:
    jsonschema_rs.validate(json.loads(SCHEMA.read_text()), json.loads(result().text()))


def test_a_result_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(failing().text())
    assert load(path) == failing()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a result with format"),
        ('{"format": "other/1"}', "expected a result with format"),
        ('{"format": "relay-loadtest-result/1"}', "passed: required, but missing"),
    ],
)
def test_a_file_that_is_no_result(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(OperatorError, match=words):
        load(path)
    with pytest.raises(OperatorError, match="No such file"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mos", "NaN", "mos: nan: expected a finite number"),
        ("mos", "Infinity", "mos: inf: expected a finite number"),
        ("mos", "-1e999", "mos: -inf: expected a finite number"),
        ("mos", '"4.4"', "mos: '4.4': expected a valid number"),
        ("users", "2.0", "users: 2.0: expected a valid integer"),
        ("users", "true", "users: true: expected a valid integer"),
        ("passed", "1", "passed: 1: expected a valid boolean"),
        ("checks", "{}", "checks: expected a valid array"),
        ("colour", '"red"', "colour: unknown key"),
    ],
)
def test_a_result_with_a_figure_that_is_none_is_refused(tmp_path: Path, field: str, value: str, words: str) -> None:
    tree = json.loads(result().text())
    tree[field] = "HERE"
    path = tmp_path / "result.json"
    path.write_text(json.dumps(tree).replace('"HERE"', value))
    with pytest.raises(OperatorError) as raised:
        load(path)
    assert str(raised.value) == f"{path}: {words}"


def test_junit_has_a_case_for_each_threshold() -> None:
    suite = ElementTree.fromstring(junit(failing()))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    loss, whole = suite.findall("testcase")
    assert loss.get("name") == "loss"
    assert loss[0].text == "1.5 %; expected at most 0 %"
    assert whole[0].text == f"worker {EVIL} is gone"
    assert ElementTree.fromstring(junit(result())).get("failures") == "0"


def test_what_a_check_tells_is_told_once() -> None:
    console = Console(file=io.StringIO(), width=200)
    tell(failing(), console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (told, page(failing()), junit(failing())):
        assert text.count("1.5 %") == (2 if "<failure" in text else 1), text
    assert "worker <script>" in told


def test_the_table_has_a_line_for_each_second() -> None:
    found = result()
    rows = list(csv.DictReader(io.StringIO(table(found))))
    assert len(rows) == len(found.intervals) > 0
    assert [int(row["sent"]) for row in rows] == [one.sent for one in found.intervals]
    assert rows[0]["delay_p50_ms"] == ("" if found.intervals[0].delay_p50_ms is None else rows[0]["delay_p50_ms"])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    html = page(failing())
    tags = Tags()
    tags.feed(html)
    assert "script" not in {tag for tag, _ in tags.found}
    assert not [attributes for _, attributes in tags.found if {"src", "href", "onclick"} & attributes.keys()]
    assert not re.search(r"url\(|@import|https?://(?!127)", html)
    assert "The test has failed." in html
    assert "worker &lt;script&gt;" in html


def test_what_users_raise_is_on_the_page() -> None:
    assert "What the code of users raised" not in page(result())
    html = page(result(user_errors={f"Trader: {EVIL}": 3}))
    assert "<h2>What the code of users raised</h2>" in html
    assert "Trader: &lt;script&gt;" in html
    assert "3 times" in html


def test_the_page_of_a_test_that_goes_on_gives_no_verdict() -> None:
    html = page(failing(), refresh_s=3)
    assert "The test goes on." in html
    assert "has failed" not in html
    assert 'http-equiv="refresh" content="3"' in html


def test_a_chart_has_gaps_where_nothing_was_measured() -> None:
    svg = chart("Delay", "ms", [0, 1, 2, 3], [Line("p50", [1, None, 2, 4])], [False, True, False, False])
    path = re.search(r'<path d="([^"]+)"', svg)
    assert path is not None
    assert re.findall("[ML]", path[1]) == ["M", "M", "L"]
    assert svg.count('class="void"') == 1


def test_a_long_test_has_the_worst_of_each_point() -> None:
    values: list[float | None] = [0.0] * 36_000
    values[17_001] = 50.0
    svg = chart("Delay", "ms", list(range(36_000)), [Line("p99", values)])
    assert len(svg) < 30_000
    # The top of the scale is that of the peak.
    assert ">50</text>" in svg


@pytest.mark.parametrize("seconds", [[], [0.0]])
def test_a_chart_of_nothing(seconds: list[float]) -> None:
    assert "<svg" in chart("Delay", "", seconds, [Line("p50", [None] * len(seconds))])


def test_the_same_is_the_same() -> None:
    assert {row.change for row in compare(result(), result())} <= {"same", "unknown"}
    assert differences(result(), result()) == []


def test_what_is_better_and_what_is_worse() -> None:
    first = result()
    delay = first.delay.model_copy(update={"p99_ms": (first.delay.p99_ms or 0) * 3 + 5})
    packets = first.packets.model_copy(update={"loss_percent": 0.5})
    second = first.model_copy(update={"delay": delay, "packets": packets, "mos": 3.0, "users": 99})
    changes = {row.name: row.change for row in compare(first, second)}
    assert (changes["loss"], changes["delay p99"], changes["MOS"], changes["delay p50"]) == (*["worse"] * 3, "same")
    back = {row.name: row.change for row in compare(second, first)}
    assert (back["loss"], back["delay p99"], back["MOS"]) == ("better", "better", "better")
    assert differences(first, second) == [f"users: {first.users} and 99"]


def test_what_users_did_in_one_test_only_is_shown() -> None:
    first = result()
    changes = {row.name: row for row in compare(first, first.model_copy(update={"timings": {}}))}
    row = changes["set-up failed"]
    assert (row.first, row.second, row.change) == (0, None, "unknown")


def test_a_test_that_has_failed_is_worse_than_one_that_has_passed() -> None:
    good, bad = result(), failing()
    assert [verdict_change(*pair) for pair in ((good, bad), (bad, good), (bad, bad))] == ["worse", "better", "same"]
    assert warnings(good) == []
    assert warnings(bad) == ["has failed: loss: 1.5 %; expected at most 0 % (and for 1 more reasons)"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interrupted": True}, "was interrupted"),
        ({"judged_seconds": 0}, "has no second that was judged"),
        ({"generator": {"windows": 7, "void_windows": 7}}, "is void: the load tester was late all the time"),
    ],
)
def test_what_a_result_cannot_say_is_told(changes: dict[str, object], words: str) -> None:
    whole = result()
    if "generator" in changes:
        changes = {"generator": whole.generator.model_copy(update=changes["generator"])}  # type: ignore[arg-type]
    assert warnings(whole.model_copy(update=changes)) == [words]


def test_what_was_not_measured_is_not_compared() -> None:
    second = result(mos=None)
    assert {row.name: row.change for row in compare(result(), second)}["MOS"] == "unknown"
