"""A test as it was written while it ran: a line of JSON for each interval, incident, and look at the relay.

A test that ends badly has a record up to there. Lines that are not whole are counted, and said.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loadtest.figures.interval import Interval


@dataclass(frozen=True)
class Incident:
    """What went wrong beside requests: a worker that is gone, a file that could not be written."""

    second: int
    text: str


@dataclass(frozen=True)
class RelayFigures:
    """A look at the relay's metrics: CPU seconds and drops since it was started, and the memory that it has now."""

    second: int
    cpu_s: float | None
    drops: dict[str, float]
    resident_bytes: float | None = None


@dataclass
class Record:
    """All of a test. ``intervals`` are by second, of all processes together."""

    intervals: dict[int, Interval] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    relay: list[RelayFigures] = field(default_factory=list)
    broken_lines: int = 0

    def add(self, interval: Interval) -> None:
        """Add what a process has seen in a second."""
        self.intervals.setdefault(interval.second, Interval(interval.second)).add(interval)

    def take(self, line: str) -> None:
        """A line as ``line_of_…`` made it."""
        try:
            self._take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.broken_lines += 1

    def _take(self, found: dict[str, Any]) -> None:
        match found["kind"]:
            case "interval":
                self.add(Interval.read(found))
            case "incident":
                self.incidents.append(Incident(int(found["second"]), str(found["text"])))
            case "relay":
                # Records of earlier versions do not tell of memory.
                look = int(found["second"]), found["cpu_s"], dict(found["drops"]), found.get("resident_bytes")
                self.relay.append(RelayFigures(*look))
            case _:
                self.broken_lines += 1

    @property
    def in_order(self) -> list[Interval]:
        """The intervals, by time."""
        return [self.intervals[second] for second in sorted(self.intervals)]


def read(lines: Iterable[str]) -> Record:
    """A whole record."""
    record = Record()
    for line in lines:
        record.take(line)
    return record


def sum_of(intervals: Iterable[Interval]) -> Interval:
    """All of them as one."""
    total = Interval(0)
    for one in intervals:
        total.add(one)
    return total


def line_of_interval(interval: Interval) -> str:
    """A line for the record."""
    return json.dumps({"kind": "interval", **interval.plain()})


def line_of_incident(incident: Incident) -> str:
    """A line for the record."""
    return json.dumps({"kind": "incident", "second": incident.second, "text": incident.text})


def line_of_relay(figures: RelayFigures) -> str:
    """A line for the record."""
    return json.dumps({"kind": "relay", **dataclasses.asdict(figures)})
