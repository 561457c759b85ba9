"""A tab more in Locust's own web page, with the quality of voice, and a page with charts, at ``/voice``.

Locust's page is a program that cannot be given charts of ours. It shows tables that are described to it, and whose rows
come with its own statistics. The charts are those of the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable

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
_COLUMNS = {"figure": "Figure", "now": f"Last {LAST_SECONDS} s", "all": "Whole test"}


def show_voice(web_ui: WebUI, work: Work, record: Callable[[], Record | None]) -> None:
    """Add both to Locust's page. ``record`` is what was measured so far."""
    app = web_ui.app
    assert app is not None
    web_ui.template_args["extended_tabs"] = [{"title": TITLE, "key": KEY}]
    structure = [{"key": key, "title": title} for key, title in _COLUMNS.items()]
    web_ui.template_args["extended_tables"] = [{"key": KEY, "structure": structure}]

    @app.after_request
    def add_rows(answer: Response) -> Response:
        if request.path == "/stats/requests" and answer.is_json:
            stats = [{"key": KEY, "data": rows(record(), work.profile.media.playout_ms)}]
            answer.set_data(json.dumps({**answer.get_json(), "extended_stats": stats}))
        return answer

    @app.route(f"/{KEY}")
    def voice() -> str:
        found = record()
        if found is None:
            return document(TITLE, "<p>The test has not begun.</p>", REFRESH_S)
        return page(judge(work, found, Circumstances()), refresh_s=REFRESH_S)


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
