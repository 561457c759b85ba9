"""Two results, side by side: what is better, what is worse, and what cannot be compared.

A test that has failed is worse than one that has passed, whatever its figures are.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.verdict.result import Percentiles, Result, TimingResult

# What two tests of the same thing differ by anyway, on a machine that does other things, too.
SAME_WITHIN_PERCENT = 10.0
# What users of a test never did.
NEVER = TimingResult(count=0, failed=0, took=Percentiles(count=0), failures={})
# Less than this is noise, whatever its share.
NOISE = {"%": 0.01, "ms": 0.1, "": 0.02, "us": 0.05, "cores": 0.02}


@dataclass(frozen=True)
class Row:
    """One figure of both. ``change`` is better, worse, same, or unknown."""

    name: str
    unit: str
    first: float | None
    second: float | None
    change: str


def compare(first: Result, second: Result) -> list[Row]:
    """The figures that say something about a target."""
    rows = [
        _row("loss", "%", first.packets.loss_percent, second.packets.loss_percent),
        _row("missing", "%", first.packets.missing_percent, second.packets.missing_percent),
        *_rows("delay", first.delay, second.delay),
        _row("added delay p99", "ms", first.added_delay_p99_ms, second.added_delay_p99_ms),
        _row("jitter p95", "ms", first.jitter.p95_ms, second.jitter.p95_ms),
        _row("MOS", "", first.mos, second.mos, more_is_better=True),
    ]
    for name in sorted(first.timings.keys() | second.timings.keys()):
        pair = [result.timings.get(name, NEVER) for result in (first, second)]
        rows.append(_row(f"{name} p95", "ms", *(one.took.p95_ms for one in pair)))
        rows.append(_row(f"{name} failed", "%", *(_share(one.failed, one.count) for one in pair)))
    if first.relay is not None and second.relay is not None:
        per = (first.relay.microseconds_per_packet, second.relay.microseconds_per_packet)
        rows.append(_row("relay CPU per packet", "us", *per))
    return rows


def verdict_change(first: Result, second: Result) -> str:
    """What the verdicts alone say of the second: better, worse, or same."""
    if first.passed == second.passed:
        return "same"
    return "better" if second.passed else "worse"


def warnings(result: Result) -> list[str]:
    """Why figures of a result say less than they seem to: it has failed, was interrupted, or was not judged."""
    found = []
    if not result.passed:
        first, *others = result.why or ["no reason is told"]
        found.append(f"has failed: {first}" + (f" (and for {len(others)} more reasons)" if others else ""))
    if result.interrupted:
        found.append("was interrupted")
    own = result.generator
    if not result.judged_seconds:
        found.append("has no second that was judged")
    elif own.windows and own.void_windows == own.windows:
        found.append("is void: the load tester was late all the time")
    return found


def differences(first: Result, second: Result) -> list[str]:
    """What was not the same in the two tests, so that figures may differ for that reason."""
    found = [
        f"{what}: {one} and {other}"
        for what, one, other in (
            ("profile", first.profile, second.profile),
            ("users", first.users, second.users),
            ("carrier", first.target.carrier, second.target.carrier),
            ("judged seconds", first.judged_seconds, second.judged_seconds),
            *((name, first.environment.get(name), second.environment.get(name)) for name in ("cpu", "cores", "kernel")),
        )
        if one != other
    ]
    for name, result in (("first", first), ("second", second)):
        if result.generator.void_windows:
            found.append(f"the {name} has {result.generator.void_windows} void windows")
    return found


def _rows(name: str, first: Percentiles, second: Percentiles) -> list[Row]:
    fields = (("p50", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p999_ms"))
    return [_row(f"{name} {label}", "ms", getattr(first, field), getattr(second, field)) for label, field in fields]


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _row(name: str, unit: str, first: float | None, second: float | None, *, more_is_better: bool = False) -> Row:
    if first is None or second is None:
        return Row(name, unit, first, second, "unknown")
    difference = second - first
    if abs(difference) <= max(NOISE[unit], SAME_WITHIN_PERCENT / 100 * abs(first)):
        return Row(name, unit, first, second, "same")
    return Row(name, unit, first, second, "better" if (difference > 0) is more_is_better else "worse")
