"""Verdicts, and the forms of a report: JSON and back, a terminal, one HTML file, and what differs between two."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import re

import pytest
from rich.console import Console

from relay.doctor.difference import compare
from relay.doctor.page import page
from relay.doctor.plan import Skipped
from relay.doctor.report import (
    Actor,
    Area,
    Finding,
    Item,
    Report,
    Status,
    Verdict,
    Voice,
    from_json,
    to_json,
    verdict_of,
)
from relay.doctor.rules import Rule
from relay.doctor.sparkline import parts_of, sparkline, svg
from relay.doctor.table import render
from relay.errors import OperatorError

UDP, API = (Area.VOICE_UDP,), (Area.API,)
EVIL = "<script>alert(1)</script>[red]\x1b[2J"
FINDING = Finding(
    "UDP-STUN",
    Status.FAILED,
    UDP,
    f"region use1: {EVIL}",
    Actor.FIREWALL,
    "Let UDP 3478 out.",
    (Rule("nftables", "nft -f", "udp dport 3478 accept\n"),),
)
VOICE = Voice("UDP to a host", 4, 25.0, 20.0, 30.0, 10.0, 3.2, (20.0, None, 20.0, 30.0))


def item(status: Status, *, decides: bool = True, subject: str = "host", areas: tuple[Area, ...] = UDP) -> Item:
    return Item("UDP-STUN", subject, areas, status, EVIL, decides)


def report_of(*items: Item) -> Report:
    skipped = (Skipped("DNS", "the emulator has no names there"),)
    proxy = {"c9rest.xhoot.com": "PROXY proxy:3128"}
    return Report("a test", "relay", "2026-11", 1.8e9, 1.5, items, (FINDING,), (VOICE,), skipped, proxy)


@pytest.mark.parametrize(
    ("items", "verdict"),
    [
        ([], Verdict.NOT_TESTED),
        ([item(Status.NOT_TESTED)], Verdict.NOT_TESTED),
        ([item(Status.OK, decides=False)], Verdict.NOT_TESTED),
        ([item(Status.OK)], Verdict.READY),
        ([item(Status.OK), item(Status.NOT_TESTED)], Verdict.INCOMPLETE),
        ([item(Status.OK), item(Status.NOT_TESTED, decides=False)], Verdict.READY),
        ([item(Status.OK), item(Status.WARNING)], Verdict.READY_WITH_WARNINGS),
        ([item(Status.OK), item(Status.FAILED, decides=False)], Verdict.READY_WITH_WARNINGS),
        ([item(Status.OK), item(Status.NOT_TESTED), item(Status.FAILED)], Verdict.NOT_READY),
    ],
)
def test_an_area_is_ready_only_if_all_that_decides_was_tested(items: list[Item], verdict: Verdict) -> None:
    assert verdict_of(items) is verdict
    assert report_of(*items).verdicts[Area.VOICE_UDP] is verdict
    assert report_of(*items).verdicts[Area.PORTAL] is Verdict.NOT_TESTED
    assert report_of(*items).worst is verdict


def test_what_was_not_tested_is_listed_with_the_reason() -> None:
    report = report_of(item(Status.OK), item(Status.NOT_TESTED, subject="another"))
    assert report.untested == [*report.skipped, Skipped("UDP-STUN another", EVIL)]


def test_json_comes_back_as_it_was() -> None:
    report = report_of(item(Status.OK), item(Status.FAILED, areas=API))
    tree = json.loads(to_json(report))
    assert tree["verdicts"]["voice over UDP"] == "ready"
    assert tree["worst"] == "not ready"
    assert tree["findings"][0]["rules"][0]["product"] == "nftables"
    assert from_json(to_json(report), "a.json") == report


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "items": [{"x": 1}]}'],
)
def test_what_is_not_a_report_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match=r"^a\.json: "):
        from_json(text, "a.json")


def test_two_reports_differ_by_verdicts_and_items() -> None:
    before = report_of(item(Status.FAILED), item(Status.OK, subject="api", areas=API))
    after = report_of(item(Status.OK), item(Status.WARNING, subject="api", areas=API))
    assert [(str(one), one.worse) for one in compare(before, after)] == [
        ("+ voice over UDP: not ready -> ready", False),
        ("- APIs: ready -> ready, with warnings", True),
        ("+ UDP-STUN host: failed -> ok", False),
        ("- UDP-STUN api: ok -> warning", True),
    ]
    assert compare(before, before) == []
    changed = [dataclasses.replace(one, detail="other words") for one in before.items]
    assert compare(before, report_of(*changed)) == []


def test_what_is_no_longer_tested_is_worse_than_good() -> None:
    before = report_of(item(Status.OK))
    assert [one.worse for one in compare(before, report_of())] == [True, True]


def test_the_terminal_shows_verdict_change_and_rule_and_obeys_nobody() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=False)
    console.print(render(report_of(item(Status.FAILED), item(Status.NOT_TESTED, subject="x"))))
    text = screen.getvalue()
    assert re.search(r"voice over UDP\s+not ready\s+UDP-STUN", text)
    assert "firewall: Let UDP 3478 out." in text
    assert "udp dport 3478 accept" in text
    assert "[red]" in text
    assert "DNS: the emulator has no names there" in text
    assert "\x1b" not in text
    screen.truncate(0)
    console.print(render(report_of(item(Status.FAILED)), with_rules=False))
    assert "udp dport" not in screen.getvalue()


class _Page(html.parser.HTMLParser):
    """The tags of a page, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "action", "style"}]


def test_the_page_is_one_file_without_scripts_and_without_the_network() -> None:
    text = page(report_of(item(Status.FAILED), item(Status.OK, subject="api", areas=API)))
    found = _Page()
    found.feed(text)
    assert "script" not in found.tags
    assert found.loads == []
    assert "url(" not in text
    assert "&lt;script&gt;alert(1)" in text
    for words in ("not ready", "Let UDP 3478 out.", "udp dport 3478 accept", "What was not tested", "PROXY proxy:3128"):
        assert words in text


def test_a_page_without_findings_has_no_empty_sections() -> None:
    report = dataclasses.replace(report_of(item(Status.OK)), findings=(), voice=(), skipped=(), proxy={})
    headings = re.findall(r"<h2>(.*?)</h2>", page(report))
    assert headings == ["Everything that was tested"]


def test_a_sparkline_has_a_bar_for_each_part_and_marks_losses() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0] * 80) == "▁" * 40
    assert sparkline([0.0, 40.0, None]) == "▁█x"
    assert sparkline([1000.0, 500.0, 0.0]) == "█▅▁"
    assert parts_of([10.0, None, 30.0, 20.0], parts=2) == [(10.0, True), (30.0, False)]
    assert svg([0.0, None]).count("<rect") == 2
    assert svg([0.0, None]).count('class="lost"') == 1
