"""A record and the profile's thresholds to a result. Pure.

Judged are the seconds from the end of the warm-up to the end of the shape. Delays of void seconds are left out, because
then the generator was late, not the target. What was lost counts always: a late generator loses nothing.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, field

from loadtest.engine.windows import Histogram
from loadtest.figures.interval import Interval
from loadtest.figures.quality import score
from loadtest.figures.record import Record, RelayFigures, sum_of
from loadtest.figures.timings import Timing
from loadtest.plan.profile import Profile
from loadtest.plan.target import carrier_name
from loadtest.plan.work import Work
from loadtest.verdict.result import (
    Check,
    Generator,
    Packets,
    Percentiles,
    RelayResult,
    Result,
    Second,
    TargetResult,
    TimingResult,
)

SETUP = "set-up"
VOID = "void windows"
# What streams were heard as, not what users did.
SOUNDS = {"stream-second", "stall"}
# Steps of the distribution of MOS.
STEPS = (1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.3)
MAX_REASONS = 50
MAX_CAUSES = 5
# Whoever had waited this long had reason to complain. Many have just begun when a test ends.
LONG_WAIT_S = 2.0
# The first quarter of a test is for what fills up once, such as pools and ports that rest. From there to the end memory
# is compared, as the median of an eighth each: a single look may meet what is freed a moment later.
EIGHTHS = 8
# One mistake in a locustfile has one line. Whoever has more reads the log.
MAX_USER_ERRORS = 10


@dataclass
class Circumstances:
    """What is not in the record: how it ended, and on what machine."""

    interrupted: bool = False
    troubles: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class _Figures:
    """What was measured, in the parts that judgement is about."""

    profile: Profile
    intervals: list[Interval]
    looks: list[RelayFigures] = field(default_factory=list)
    begin: int = 0
    judged: list[Interval] = field(default_factory=list)
    # Of what is judged, and of that without void seconds.
    total: Interval = field(default_factory=lambda: Interval(0))
    clean: Interval = field(default_factory=lambda: Interval(0))
    # What failed counts from the start: a user who is not let in at all never comes to the judged part.
    everything: Interval = field(default_factory=lambda: Interval(0))

    def __post_init__(self) -> None:
        self.begin = self.intervals[0].second if self.intervals else 0
        first, end = self.profile.judged_from_s, self.profile.shape.seconds
        self.judged = [one for one in self.intervals if first <= one.second - self.begin < end]
        self.total = sum_of(self.judged)
        self.clean = sum_of(one for one in self.judged if not one.void)
        self.everything = sum_of(self.intervals)

    @property
    def attempts(self) -> dict[str, Timing]:
        """What users tried. How streams sounded has thresholds of its own."""
        return {name: timing for name, timing in self.everything.timings.items() if name not in SOUNDS}

    @property
    def raised(self) -> int:
        """How often the code of users has raised what nobody caught. Each was something that a user tried."""
        return self.everything.raised.total()

    @property
    def tried(self) -> int:
        return sum(timing.count for timing in self.attempts.values()) + self.raised

    @property
    def failed(self) -> int:
        return errors_of(self.everything)

    @property
    def packets(self) -> Packets:
        return _packets(self.total)

    @property
    def memory_growth_percent(self) -> float | None:
        within = {one.second for one in self.judged}
        looks = [one.resident_bytes for one in self.looks if one.second in within and one.resident_bytes]
        if not (eighth := len(looks) // EIGHTHS):
            return None
        before, after = (statistics.median(part) for part in (looks[eighth : 2 * eighth], looks[-eighth:]))
        return 100 * (after - before) / before

    @property
    def mos(self) -> float | None:
        return _mos(self.total, self.profile)

    @property
    def added_ms(self) -> float | None:
        least_us, p99_us = min(self.clean.delay, default=None), self.clean.delay.percentile(99)
        return None if least_us is None or p99_us is None else (p99_us - least_us) / 1000


def judge(work: Work, record: Record, circumstances: Circumstances) -> Result:
    """The result."""
    profile, found = work.profile, _Figures(work.profile, record.in_order, record.relay)
    checks, incidents = _checks(found), [one.text for one in record.incidents]
    reasons = _reasons(checks, found, record, circumstances)
    intervals = found.intervals
    return Result(
        passed=not reasons and all(check.passed for check in checks),
        interrupted=circumstances.interrupted,
        reasons=reasons[:MAX_REASONS],
        started_at=float(found.begin),
        seconds=float(intervals[-1].second - found.begin) if intervals else 0.0,
        judged_from_s=profile.judged_from_s,
        judged_seconds=len(found.judged),
        profile=work.profile_name,
        description=profile.description,
        users=profile.users,
        target=target_of(work),
        checks=checks,
        packets=found.packets,
        delay=percentiles(found.clean.delay),
        added_delay_p99_ms=found.added_ms,
        jitter=percentiles(found.clean.jitter),
        mos=found.mos,
        mos_of_stream_seconds=_distribution(found.everything),
        timings={name: _timing(timing) for name, timing in sorted(found.everything.timings.items())},
        generator=_generator(found.total, found.judged),
        relay=_relay(found),
        waits={words: percentiles(waited) for words, waited in sorted(found.everything.waits.items())},
        user_errors=dict(found.everything.raised.most_common(MAX_USER_ERRORS)),
        incidents=incidents,
        environment=circumstances.environment,
        intervals=_seconds(found, record.relay),
    )


def errors_of(interval: Interval) -> int:
    """How often users failed. How streams sounded has thresholds of its own."""
    failed = sum(timing.failed for name, timing in interval.timings.items() if name not in SOUNDS)
    return failed + interval.raised.total()


def target_of(work: Work) -> TargetResult:
    """Whom the load goes to."""
    return TargetResult(name=work.target_name, server=str(work.target.server), carrier=carrier_name(work.target))


def percentiles(found: Histogram) -> Percentiles:
    """Of a histogram in microseconds."""

    def at(percent: float) -> float | None:
        value = found.percentile(percent)
        return None if value is None else value / 1000

    return Percentiles(
        count=found.total(),
        p50_ms=at(50),
        p90_ms=at(90),
        p95_ms=at(95),
        p99_ms=at(99),
        p999_ms=at(99.9),
        max_ms=at(100),
    )


def _packets(total: Interval) -> Packets:
    found: dict[str, float | None] = {
        name: total.counters[name] for name in Packets.model_fields if name in total.counters
    }
    sent, lost, late = (total.counters[name] for name in ("sent", "lost", "late"))
    found |= {"loss_percent": _percent(lost, sent), "missing_percent": _percent(min(sent, lost + late), sent)}
    return Packets.model_validate(found)


def _mos(interval: Interval, profile: Profile) -> float | None:
    counters = interval.counters
    missing = counters["lost"] + counters["late"]
    return score(counters["sent"], missing, counters["runs"], profile.media.playout_ms)


def _checks(found: _Figures) -> list[Check]:
    limits, packets, mos = found.profile.thresholds, found.packets, found.mos
    setup = found.everything.timings.get(SETUP, Timing())
    tried, failed = found.tried, found.failed
    void_percent = _percent(found.total.void_windows, found.total.windows)
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("loss", limits.loss_percent, packets.loss_percent, "%"),
        ("missing", limits.missing_percent, packets.missing_percent, "%"),
        ("added delay p99", limits.added_delay_p99_ms, found.added_ms, "ms"),
        ("set-up p95", limits.setup_p95_ms, setup.milliseconds(95), "ms"),
        ("errors", limits.errors_percent, _percent(failed, tried), "%"),
        ("memory growth", limits.memory_growth_percent, found.memory_growth_percent, "%"),
        (VOID, limits.void_percent, void_percent, "%"),
    ]
    checks = [
        Check(
            name=name,
            limit=limit,
            comparison="at most",
            measured=measured,
            unit=unit,
            passed=measured is not None and measured <= limit,
        )
        for name, limit, measured, unit in rows
        if limit is not None
    ]
    if limits.mos is not None:
        passed = mos is not None and mos >= limits.mos
        checks.append(Check(name="MOS", limit=limits.mos, comparison="at least", measured=mos, unit="", passed=passed))
    return checks


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _reasons(checks: list[Check], found: _Figures, record: Record, circumstances: Circumstances) -> list[str]:
    """Why it has failed. Checks that have failed say so themselves: here is what they do not tell."""
    profile, packets = found.profile, found.packets
    reasons = list(circumstances.troubles)
    if any(check.name == VOID and not check.passed and check.measured is not None for check in checks):
        reasons.append("The generator was too late to judge the target: give it more cores, or less to do.")
    reasons += [one.text for one in record.incidents]
    if circumstances.interrupted:
        reasons.append("The test was interrupted.")
    if record.broken_lines:
        reasons.append(f"{record.broken_lines} lines of the record could not be read.")
    reasons += _failures(found) + _user_errors(found)
    for name in ("corrupt", "misrouted"):
        if count := getattr(packets, name):
            reasons.append(f"{count} packets were {name}; expected none, ever")
    if not packets.sent and profile.media.up + profile.media.down and profile.kind in {"media", "call", "churn"}:
        reasons.append("No packet was sent in the judged part of the test.")
    if reasons or found.failed == found.tried or not all(check.passed for check in checks):
        reasons += _waits(found)
    return reasons


def _waits(found: _Figures) -> list[str]:
    """What has not come by the end, for users who had waited long; for all of them if nothing has ever been done."""
    least_us = 0 if found.failed == found.tried else LONG_WAIT_S * 1e6
    reasons = []
    for words, waited in sorted(found.everything.waits.items()):
        count, longest = sum(waited[edge] for edge in waited if edge >= least_us), waited.percentile(100)
        if count and longest is not None:
            reasons.append(f"{words} within {longest / 1e6:.1f} s; {count} users still waited when they were stopped")
    return reasons


def _failures(found: _Figures) -> list[str]:
    """What failed, if the thresholds have not allowed for it, with the causes: the most frequent first."""
    limit = found.profile.thresholds.errors_percent
    if limit is None or 100 * found.failed <= limit * found.tried:
        return []
    causes = [
        (count, name, cause) for name, timing in found.attempts.items() for cause, count in timing.failures.items()
    ]
    return [f"{name} failed {count} times: {cause}" for count, name, cause in sorted(causes, reverse=True)[:MAX_CAUSES]]


def _user_errors(found: _Figures) -> list[str]:
    """What the code of users has raised. The threshold of errors may allow for some, not for a test of nothing else."""
    limit = found.profile.thresholds.errors_percent
    allowed = limit is not None and 100 * found.failed <= limit * found.tried and found.raised < found.tried
    if allowed:
        return []
    raised = found.everything.raised.most_common(MAX_CAUSES)
    return [f"Code of users raised {count} times: {words}" for words, count in raised]


def _distribution(everything: Interval) -> dict[str, int]:
    found = dict.fromkeys((f"{step:g}" for step in STEPS), 0)
    for hundredths, count in everything.scores.items():
        step = max((step for step in STEPS if step * 100 <= hundredths), default=STEPS[0])
        found[f"{step:g}"] += count
    return found


def _timing(timing: Timing) -> TimingResult:
    return TimingResult(
        count=timing.count, failed=timing.failed, took=percentiles(timing.took), failures=dict(timing.failures)
    )


def _generator(total: Interval, judged: list[Interval]) -> Generator:
    seconds = max(1, len(judged))
    return Generator(
        windows=total.windows,
        void_windows=total.void_windows,
        void_percent=_percent(total.void_windows, total.windows) or 0.0,
        lateness=percentiles(total.lateness),
        engine_cores=total.engine_cpu_s / seconds,
        process_cores=total.process_cpu_s / seconds,
    )


def _relay(found: _Figures) -> RelayResult | None:
    looks, judged, total = found.looks, found.judged, found.total
    if not looks:
        return None
    within = {one.second for one in judged}
    known = [(look.second, look.cpu_s) for look in looks if look.cpu_s is not None and look.second in within]
    cores = None
    if len(known) >= 2 and known[-1][0] > known[0][0]:
        cores = (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])
    # Each packet comes in once and goes out once, whichever way it goes.
    moved = 2 * total.counters["received"]
    per_packet = cores * len(judged) * 1e6 / moved if cores is not None and moved else None
    drops = {
        reason: round(looks[-1].drops[reason] - looks[0].drops.get(reason, 0.0)) for reason in sorted(looks[-1].drops)
    }
    return RelayResult(
        cores=cores,
        microseconds_per_packet=per_packet,
        drops=drops,
        resident_bytes=looks[-1].resident_bytes,
        memory_growth_percent=found.memory_growth_percent,
    )


def _seconds(found: _Figures, looks: list[RelayFigures]) -> list[Second]:
    cores = _cores_by_second(looks)
    return [_second(one, found.begin, found.profile, cores.get(one.second)) for one in found.intervals]


def _cores_by_second(looks: list[RelayFigures]) -> dict[int, float]:
    found: dict[int, float] = {}
    for before, after in itertools.pairwise(looks):
        if before.cpu_s is not None and after.cpu_s is not None and after.second > before.second:
            each = (after.cpu_s - before.cpu_s) / (after.second - before.second)
            found |= dict.fromkeys(range(before.second + 1, after.second + 1), each)
    return found


def _second(one: Interval, begin: int, profile: Profile, relay_cores: float | None) -> Second:
    delay, jitter, lateness = percentiles(one.delay), percentiles(one.jitter), percentiles(one.lateness)
    return Second(
        second=float(one.second - begin),
        users=one.users,
        streams=one.streams,
        sent=one.counters["sent"],
        received=one.counters["received"],
        lost=one.counters["lost"],
        late=one.counters["late"],
        errors=errors_of(one),
        delay_p50_ms=delay.p50_ms,
        delay_p99_ms=delay.p99_ms,
        delay_p999_ms=delay.p999_ms,
        jitter_p95_ms=jitter.p95_ms,
        mos=_mos(one, profile),
        lateness_p99_ms=lateness.p99_ms,
        generator_cores=one.process_cpu_s,
        relay_cores=relay_cores,
        void=one.void,
    )
