"""The result for people: one HTML file without scripts and without the network."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape

from loadtest.verdict.charts import Line, chart
from loadtest.verdict.result import Check, Percentiles, Result

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1360px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: .2em; } h2 { font-size: 1.15em; margin-top: 2em; }
.verdict { font-size: 1.2em; font-weight: 600; } .passed { color: var(--good); } .failed { color: var(--bad); }
table { border-collapse: collapse; } td, th { padding: .25em .9em .25em 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 1.2em; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: currentColor; } .grid { stroke: var(--line); } .void { fill: #f5a62333; }
.legend { float: right; font-weight: 400; } .legend span { margin-left: 1em; }
.legend i { display: inline-block; width: 1em; height: .25em; margin-right: .35em; vertical-align: middle; }
.hint { color: #777; max-width: 75ch; }
"""
# What a manager asks first, in plain words.
WORDS = {
    "loss": "Packets that never came.",
    "missing": "Packets that were not there when they had to be played: lost, or too late.",
    "added delay p99": "What 99 of 100 packets stay below, on top of the fastest packet of the test.",
    "set-up p95": "What 95 of 100 users wait at most until they can talk.",
    "errors": "What users tried, and did not work.",
    "memory growth": "How much more memory the relay had at the end than after a quarter of the test.",
    "MOS": "How a call sounds, from 1 (bad) to 4.5 (as good as a telephone gets).",
    "void windows": "Seconds in which the load tester itself was too slow to judge.",
}


def page(result: Result, refresh_s: int | None = None) -> str:
    """The HTML. ``refresh_s``: of a test that goes on; 0 if nobody is to load it again."""
    title = f"{result.profile} on {result.target.name}"
    body = [
        f"<h1>Load test: {escape(title)}</h1>",
        f"<p>{escape(result.description)}</p>",
        _verdict(result) if refresh_s is None else "<p>The test goes on.</p>",
        *section("What had to hold", _checks(result.checks)),
        *section("Packets", _packets(result)),
        *section("What users did", _timings(result)),
        *section("What users still waited for at the end", _waits(result)),
        *section("What the code of users raised", _user_errors(result)),
        f'<h2>Over time</h2><div class="charts">{"".join(charts(result))}</div>',
        *section("Quality of streams, second by second", _streams(result)),
        *section("The load tester itself", _generator(result)),
        *section("Relay", _relay(result)),
        *section("Environment", rows([(name, value) for name, value in result.environment.items()])),
    ]
    return document(f"Load test: {title}", "\n".join(body), refresh_s)


def document(title: str, body: str, refresh_s: int | None = None) -> str:
    """A whole page. ``refresh_s``: how often a browser is to load it again."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{refresh}<title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def section(title: str, content: str) -> list[str]:
    """A heading and what it is about; nothing if there is nothing."""
    return [f"<h2>{escape(title)}</h2>", content] if content else []


def rows(pairs: Sequence[tuple[str, object]]) -> str:
    """A table of names and values; empty if there are none."""
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in pairs)
    return f"<table>{lines}</table>" if lines else ""


def charts(result: Result) -> list[str]:
    """The charts of a result."""
    found = result.intervals
    seconds, void = [one.second for one in found], [one.void for one in found]

    def draw(title: str, unit: str, *lines: tuple[str, str]) -> str:
        drawn = [Line(label, [getattr(one, name) for one in found]) for label, name in lines]
        return chart(title, unit, seconds, drawn, void)

    return [
        draw("Delay", "ms", ("p50", "delay_p50_ms"), ("p99", "delay_p99_ms"), ("p99.9", "delay_p999_ms")),
        draw("Lost and late packets", "a second", ("lost", "lost"), ("late", "late"), ("errors of users", "errors")),
        draw("MOS", "", ("MOS", "mos")),
        draw("Jitter", "ms", ("p95", "jitter_p95_ms")),
        draw("Packets", "a second", ("sent", "sent"), ("received", "received")),
        draw("Users and streams", "", ("users", "users"), ("streams", "streams")),
        draw("Lateness of the load tester", "ms", ("p99", "lateness_p99_ms")),
        draw("CPU", "cores", ("load tester", "generator_cores"), ("relay", "relay_cores")),
    ]


def _verdict(result: Result) -> str:
    word = "passed" if result.passed else "failed"
    begun = datetime.datetime.fromtimestamp(result.started_at, datetime.UTC)
    facts = (
        f"{begun:%Y-%m-%d %H:%M:%S} UTC, {result.seconds:.0f} s, {result.users} users over {result.target.carrier} to "
        f"{result.target.server}. Judged: {result.judged_seconds} s, from second {result.judged_from_s:.0f} on."
    )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in result.reasons)
    return (
        f'<p class="verdict {word}">The test has {word}.</p>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}<p>{escape(facts)}</p>"
    )


def _checks(checks: Sequence[Check]) -> str:
    lines = [
        f'<tr><td class="{"passed" if check.passed else "failed"}">{"✓" if check.passed else "✗"}</td>'
        f'<th>{escape(check.name)}</th><td class="number">{number(check.measured, check.unit)}</td>'
        f"<td>{check.comparison} {check.limit:g} {escape(check.unit)}</td>"
        f'<td class="hint">{escape(WORDS.get(check.name, ""))}</td></tr>'
        for check in checks
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def number(value: float | None, unit: str = "") -> str:
    """A figure for people."""
    if value is None:
        return "not measured"
    return escape(f"{value:,.4g} {unit}".strip())


PACKETS = ("sent", "unsent", "received", "lost", "late", "duplicate", "reordered", "corrupt", "misrouted", "stalls")


def _packets(result: Result) -> str:
    counts = [(name, f"{getattr(result.packets, name):,}") for name in PACKETS]
    return rows([*counts, ("delay", _line(result.delay)), ("jitter", _line(result.jitter))])


def _line(found: Percentiles) -> str:
    if not found.count:
        return "not measured"
    fields = (("p50", found.p50_ms), ("p90", found.p90_ms), ("p99", found.p99_ms), ("p99.9", found.p999_ms))
    return ", ".join(f"{name} {number(value)}" for name, value in (*fields, ("most", found.max_ms))) + " ms"


def _timings(result: Result) -> str:
    pairs = []
    for name, timing in result.timings.items():
        failures = "; ".join(f"{cause}: {count}" for cause, count in timing.failures.items())
        text = f"{timing.count} times, {timing.failed} failed. {_line(timing.took)}"
        pairs.append((name, f"{text}. {failures}" if failures else text))
    return rows(pairs)


def _waits(result: Result) -> str:
    return rows([(words, f"{waited.count} times. {_line(waited)}") for words, waited in result.waits.items()])


def _user_errors(result: Result) -> str:
    return rows([(words, f"{count} times") for words, count in result.user_errors.items()])


def _streams(result: Result) -> str:
    if not any(result.mos_of_stream_seconds.values()):
        return ""
    pairs = [(f"MOS {step} or more", f"{count:,} seconds") for step, count in result.mos_of_stream_seconds.items()]
    return (
        rows(pairs)
        + '<p class="hint">Each second of each stream is counted once, in the highest row that it reaches.</p>'
    )


def _generator(result: Result) -> str:
    own = result.generator
    return rows(
        [
            ("windows", f"{own.windows}, of which {own.void_windows} were void ({own.void_percent:.1f} %)"),
            ("lateness", _line(own.lateness)),
            ("packet engine", f"{own.engine_cores:.2f} cores"),
            ("processes, engine included", f"{own.process_cores:.2f} cores"),
        ]
    )


def _mebibytes(size: float | None) -> float | None:
    return None if size is None else size / (1 << 20)


def _relay(result: Result) -> str:
    if result.relay is None:
        return ""
    drops = ", ".join(f"{reason}: {count}" for reason, count in result.relay.drops.items() if count)
    return rows(
        [
            ("CPU", number(result.relay.cores, "cores")),
            ("CPU for each packet in or out", number(result.relay.microseconds_per_packet, "us")),
            ("drops", drops or "none"),
            ("memory", number(_mebibytes(result.relay.resident_bytes), "MiB")),
            ("memory growth", number(result.relay.memory_growth_percent, "%")),
        ]
    )
