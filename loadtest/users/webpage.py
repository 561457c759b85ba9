"""A tab more in Locust's own web page, with the quality of voice, and a page with charts, at ``/voice``.

Locust's page is a program that cannot be given charts of ours. It shows tables that are described to it, and whose rows
come with its own statistics. The charts are those of the report. Locust's own HTML report has them at its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape

from flask import Response, request
from locust.web import WebUI

from loadtest.engine.windows import Histogram
from loadtest.figures.interval import Interval
from loadtest.figures.quality import score
from loadtest.figures.record import Record, sum_of
from loadtest.plan.work import Work
from loadtest.verdict.judging import Circumstances, judge
from loadtest.verdict.page import document, page

KEY = "voice"
TITLE = "Voice"
# How much of the past the tab sums up. The page has all of it.
LAST_SECONDS = 10
REFRESH_S = 3
# High enough for all charts, two in a row.
FRAME_STYLE = "width:100%;height:3200px;border:0"
_COLUMNS = {"figure": "Figure", "now": f"Last {LAST_SECONDS} s", "all": "Whole test"}


def show_voice(web_ui: WebUI, work: Work, record: Callable[[], Record | None]) -> None:
    """Add both to Locust's page. ``record`` is what was measured so far."""
    app = web_ui.app
    assert app is not None
    web_ui.template_args["extended_tabs"] = [{"title": TITLE, "key": KEY}]
    structure = [{"key": key, "title": title} for key, title in _COLUMNS.items()]
    web_ui.template_args["extended_tables"] = [{"key": KEY, "structure": structure}]

    def voice_now(refresh_s: int = REFRESH_S) -> str:
        found = record()
        if found is None:
            return document(TITLE, "<p>The test has not begun.</p>", refresh_s)
        return page(judge(work, found, Circumstances()), refresh_s=refresh_s)

    @app.after_request
    def add_voice(answer: Response) -> Response:
        if request.path == "/stats/requests" and answer.is_json:
            stats = [{"key": KEY, "data": rows(record(), work.profile.media.playout_ms)}]
            answer.set_data(json.dumps({**answer.get_json(), "extended_stats": stats}))
        elif request.path == "/stats/report" and answer.mimetype == "text/html":
            answer.set_data(with_frame(answer.get_data(as_text=True), voice_now(refresh_s=0)))
        return answer

    app.add_url_rule(f"/{KEY}", KEY, voice_now)


def with_frame(report: str, inner: str) -> str:
    """Locust's HTML report with a page of ours at its end, in a frame: one file, in which each keeps its own style."""
    frame = f'<iframe title="{TITLE}" style="{FRAME_STYLE}" srcdoc="{escape(inner)}"></iframe>'
    before, end, after = report.rpartition("</body>")
    return f"{before}{frame}{end}{after}" if end else report


def rows(record: Record | None, playout_ms: float) -> list[dict[str, str]]:
    """The rows of the tab."""
    if record is None or not record.intervals:
        return []
    intervals = record.in_order
    now, whole = (_figures(sum_of(part), playout_ms) for part in (intervals[-LAST_SECONDS:], intervals))
    relay = record.relay[-1] if record.relay else None
    found = [{"figure": name, "now": now[name], "all": whole[name]} for name in whole]
    if relay is not None and relay.cpu_s is not None:
        found.append({"figure": "relay: CPU seconds", "now": "", "all": f"{relay.cpu_s:.1f}"})
        found.append({"figure": "relay: drops", "now": "", "all": f"{sum(relay.drops.values()):.0f}"})
    return found


def _figures(interval: Interval, playout_ms: float) -> dict[str, str]:
    counts = interval.counters
    mos = score(counts["sent"], counts["lost"] + counts["late"], counts["runs"], playout_ms)
    scores = sorted(interval.scores.elements())
    worst = f"{scores[len(scores) // 20] / 100:.2f}" if scores else "-"
    return {
        "sent": str(counts["sent"]),
        "lost": str(counts["lost"]),
        "late": str(counts["late"]),
        "stalls": str(counts["stalls"]),
        "MOS": "-" if mos is None else f"{mos:.2f}",
        "MOS that 95 % of stream-seconds reach": worst,
        "delay p50": _ms(interval.delay, 50),
        "delay p99": _ms(interval.delay, 99),
        "delay p99.9": _ms(interval.delay, 99.9),
        "jitter p95": _ms(interval.jitter, 95),
        "lateness of the generator p99": _ms(interval.lateness, 99),
        "void windows": f"{interval.void_windows} of {interval.windows}",
    }


def _ms(found: Histogram, percent: float) -> str:
    value = found.percentile(percent)
    return "-" if value is None else f"{value / 1000:.2f} ms"
