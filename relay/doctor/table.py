"""The report for a terminal: a verdict for each area, what is to be changed and by whom, what was not tested."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from relay.doctor.report import Area, Finding, Report, Status, Verdict
from relay.doctor.sparkline import sparkline

STYLES = {
    Verdict.READY: "green",
    Verdict.READY_WITH_WARNINGS: "yellow",
    Verdict.INCOMPLETE: "yellow",
    Verdict.NOT_READY: "bold red",
    Verdict.NOT_TESTED: "dim",
}
# What was not tested is listed up to here; JSON and HTML have all.
MAX_UNTESTED = 12


def plain(text: str, style: str = "") -> Text:
    """What a peer may have said, without what could control the terminal."""
    return Text("".join(one if one.isprintable() else "?" for one in text), style=style)


def render(report: Report, *, with_rules: bool = True) -> Group:
    """All of it. What peers have said is text, never markup."""
    parts: list[RenderableType] = [
        plain(f"{report.target}, catalog as of {report.catalog}, {report.took_s:.0f} s"),
        _areas(report),
    ]
    if report.voice:
        parts.append(_voice(report))
    for number, finding in enumerate(report.findings, 1):
        parts += _finding(number, finding, with_rules)
    parts += _untested(report)
    return Group(*parts)


def _areas(report: Report) -> Table:
    table = _table("area", "verdict", "because")
    for area, verdict in report.verdicts.items():
        table.add_row(area, Text(verdict, style=STYLES[verdict]), plain(because(report, area)))
    return table


def because(report: Report, area: Area) -> str:
    """The codes of what is wrong with an area, or of what was not tested of it."""
    items = [item for item in report.items if area in item.areas and item.decides]
    for status in (Status.FAILED, Status.NOT_TESTED, Status.WARNING):
        codes = dict.fromkeys(item.check for item in items if item.status is status)
        if codes:
            word = "not tested: " if status is Status.NOT_TESTED else ""
            return word + ", ".join(codes)
    tested = len([item for item in items if item.status is Status.OK])
    return f"{tested} things tested" if tested else ""


def _voice(report: Report) -> Table:
    table = _table("path", "MOS", "lost %", "p50 ms", "p99 ms", "jitter ms", "delay over time")
    for one in report.voice:
        figures = (one.lost_percent, one.delay_p50_ms, one.delay_p99_ms, one.jitter_ms)
        told = [figure(one.mos, 2), *(figure(value, 1) for value in figures)]
        table.add_row(plain(one.path), *told, sparkline(one.delays_ms))
    return table


def figure(value: float | None, digits: int) -> str:
    """A figure for people."""
    return "-" if value is None else f"{value:.{digits}f}"


def _finding(number: int, finding: Finding, with_rules: bool) -> Iterator[RenderableType]:
    style = "bold red" if finding.status is Status.FAILED else "yellow"
    yield Text.assemble((f"{number}. {finding.code}", style), f"  {', '.join(finding.areas)}")
    yield Padding(plain(finding.problem), (0, 0, 0, 3))
    yield Padding(Text.assemble((f"{finding.actor}: ", "bold"), plain(finding.change)), (0, 0, 0, 3))
    for rule in finding.rules if with_rules else ():
        yield Padding(Text(f"{rule.product} ({rule.where}):", style="dim"), (0, 0, 0, 3))
        yield Padding(Text(rule.text.rstrip("\n")), (0, 0, 0, 6))
    yield Text("")


def _untested(report: Report) -> Iterator[RenderableType]:
    untested = report.untested
    if not untested:
        return
    yield Text("Not tested:", style="bold")
    for one in untested[:MAX_UNTESTED]:
        yield Padding(plain(f"{one.what}: {one.why}"), (0, 0, 0, 3))
    if len(untested) > MAX_UNTESTED:
        yield Padding(Text(f"and {len(untested) - MAX_UNTESTED} more: --json and --html have them"), (0, 0, 0, 3))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name.endswith(("ms", "%", "MOS")) else "left")
    return table
