"""One second of a test: what the packet engine has counted, how users fared, and how the generator was."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loadtest.engine.windows import MAX_LATENESS_P99_US, Histogram
from loadtest.figures.timings import Timing, count_cause, histogram, pairs


@dataclass
class Interval:
    """Figures of one second, of one process or of all.

    ``second`` is a Unix time. ``void_windows`` are those in which a generator was too late to judge anybody, of
    ``windows``. ``scores`` counts MOS of streams, in hundredths. ``raised`` counts what the code of users has raised
    and nobody has caught. ``waits`` has by their words what users waited for when they were stopped, and how long.
    """

    second: int
    windows: int = 0
    void_windows: int = 0
    users: int = 0
    streams: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    delay: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    jitter: Histogram = field(default_factory=Histogram)
    engine_cpu_s: float = 0.0
    process_cpu_s: float = 0.0
    timings: dict[str, Timing] = field(default_factory=dict)
    scores: Counter[int] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)
    waits: dict[str, Histogram] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        """Whether any generator was too late in this second."""
        return self.void_windows > 0

    def timing(self, name: str) -> Timing:
        """How one thing went."""
        return self.timings.setdefault(name, Timing())

    def judge_window(self) -> None:
        """Count this process's own window, and whether it is void."""
        self.windows = 1
        self.void_windows = int((self.lateness.percentile(99) or 0) > MAX_LATENESS_P99_US)

    def add(self, other: Interval) -> None:
        """Add what another process has seen in this second, or what was seen in another one."""
        self.windows += other.windows
        self.void_windows += other.void_windows
        self.users += other.users
        self.streams += other.streams
        self.engine_cpu_s += other.engine_cpu_s
        self.process_cpu_s += other.process_cpu_s
        for mine, theirs in (
            (self.counters, other.counters),
            (self.delay, other.delay),
            (self.lateness, other.lateness),
            (self.jitter, other.jitter),
            (self.scores, other.scores),
        ):
            mine.update(theirs)  # type: ignore[arg-type]
        for name, timing in other.timings.items():
            self.timing(name).add(timing)
        for cause, count in other.raised.items():
            count_cause(self.raised, cause, count)
        for words, waited in other.waits.items():
            self.waits.setdefault(words, Histogram()).update(waited)

    def plain(self) -> dict[str, Any]:
        """For JSON, and for Locust's messages."""
        return {
            "second": self.second,
            "windows": self.windows,
            "void_windows": self.void_windows,
            "users": self.users,
            "streams": self.streams,
            "counters": {name: count for name, count in self.counters.items() if count},
            "delay": pairs(self.delay),
            "lateness": pairs(self.lateness),
            "jitter": pairs(self.jitter),
            "engine_cpu_s": self.engine_cpu_s,
            "process_cpu_s": self.process_cpu_s,
            "timings": {name: timing.plain() for name, timing in self.timings.items()},
            "scores": [[score, count] for score, count in sorted(self.scores.items())],
            "raised": dict(self.raised),
            "waits": {words: pairs(waited) for words, waited in self.waits.items()},
        }

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Interval:
        """What ``plain`` made. Raises KeyError, TypeError or ValueError."""
        return cls(
            second=int(plain["second"]),
            windows=int(plain["windows"]),
            void_windows=int(plain["void_windows"]),
            users=int(plain["users"]),
            streams=int(plain["streams"]),
            counters=Counter(plain["counters"]),
            delay=histogram(plain["delay"]),
            lateness=histogram(plain["lateness"]),
            jitter=histogram(plain["jitter"]),
            engine_cpu_s=float(plain["engine_cpu_s"]),
            process_cpu_s=float(plain["process_cpu_s"]),
            timings={name: Timing.read(timing) for name, timing in plain["timings"].items()},
            scores=Counter({int(score): int(count) for score, count in plain["scores"]}),
            raised=Counter({str(cause): int(count) for cause, count in plain["raised"].items()}),
            waits={str(words): histogram(waited) for words, waited in plain["waits"].items()},
        )
