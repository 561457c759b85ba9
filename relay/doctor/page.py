"""The report as one HTML file, without scripts and without the network: to be mailed, to a vendor for example."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from html import escape

from relay import __version__
from relay.doctor.report import Finding, Report, Status, Verdict
from relay.doctor.sparkline import svg
from relay.doctor.table import because, figure

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; --warn: #d29922; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1em; margin-bottom: 0; }
table { border-collapse: collapse; } tr { border-bottom: 1px solid var(--line); }
td, th { padding: .25em 1.2em .25em 0; text-align: left; vertical-align: top; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); } .dim { opacity: .7; }
pre { background: #8882; padding: .6em; overflow-x: auto; } svg { fill: var(--good); } svg .lost { fill: var(--bad); }
.scroll { overflow-x: auto; }
"""
CLASSES = {
    Verdict.READY: "good",
    Verdict.READY_WITH_WARNINGS: "warn",
    Verdict.INCOMPLETE: "warn",
    Verdict.NOT_READY: "bad",
    Verdict.NOT_TESTED: "dim",
}
_STATUS = {Status.OK: "good", Status.WARNING: "warn", Status.FAILED: "bad", Status.NOT_TESTED: "dim"}


def page(report: Report) -> str:
    """The file's text. Everything that a peer has said is escaped."""
    begun = datetime.datetime.fromtimestamp(report.started_at, datetime.UTC)
    facts = (
        f"{report.target}. Catalog as of {report.catalog}. {begun:%Y-%m-%d %H:%M} UTC, {report.took_s:.0f} s. "
        f"cloud9-relay {__version__}."
    )
    body = [
        "<h1>Is this network ready for Cloud9 voice?</h1>",
        f'<p class="{CLASSES[report.worst]}"><strong>{escape(report.worst)}</strong></p><p>{escape(facts)}</p>',
        _table(("area", "verdict", "because"), _areas(report)),
        *_section("What is to be changed, and by whom", "".join(map(_finding, report.findings))),
        *_section("Voice", _voice(report)),
        *_section("What was not tested", _untested(report)),
        *_section("Web proxy", _proxy(report)),
        "<h2>Everything that was tested</h2>",
        _table(("check", "what", "result", "detail"), _items(report)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Cloud9 network report: {escape(report.worst)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", content] if content else []


def _table(columns: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _areas(report: Report) -> Iterable[str]:
    for area, verdict in report.verdicts.items():
        told = f'<span class="{CLASSES[verdict]}">{escape(verdict)}</span>'
        yield _row(escape(area), told, escape(because(report, area)))


def _finding(finding: Finding) -> str:
    kind = _STATUS[finding.status]
    rules = "".join(
        f"<p>{escape(rule.product)} ({escape(rule.where)}):</p><pre>{escape(rule.text)}</pre>" for rule in finding.rules
    )
    return (
        f'<h3 class="{kind}">{escape(finding.code)}</h3><p class="dim">{escape(", ".join(finding.areas))}</p>'
        f"<p>{escape(finding.problem)}</p>"
        f"<p><strong>{escape(finding.actor)}:</strong> {escape(finding.change)}</p>{rules}"
    )


def _voice(report: Report) -> str:
    columns = ("path", "MOS", "lost %", "p50 ms", "p99 ms", "jitter ms", "delay over time")
    rows = [
        _row(
            escape(one.path),
            figure(one.mos, 2),
            *(figure(value, 1) for value in (one.lost_percent, one.delay_p50_ms, one.delay_p99_ms, one.jitter_ms)),
            svg(one.delays_ms),
        )
        for one in report.voice
    ]
    return _table(columns, rows) if rows else ""


def _untested(report: Report) -> str:
    told = "".join(f"<li>{escape(one.what)}: {escape(one.why)}</li>" for one in report.untested)
    return f"<ul>{told}</ul>" if told else ""


def _proxy(report: Report) -> str:
    rows = [_row(escape(site), escape(answer)) for site, answer in report.proxy.items()]
    return _table(("host", "answer"), rows) if rows else ""


def _items(report: Report) -> Iterable[str]:
    for item in report.items:
        told = f'<span class="{_STATUS[item.status]}">{escape(item.status)}</span>'
        yield _row(escape(item.check), escape(item.subject), told, escape(item.detail))
