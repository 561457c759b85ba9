"""One event to Locust, whose latencies are whole milliseconds, and one to our own histograms of microseconds.

Events are about what people notice: a set-up, a second of a stream, a stall. There is never one for a packet: an event
costs 4 us or more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from locust.env import Environment

from loadtest.figures.interval import Interval


class Measures:
    """What this process has measured since it was last taken. Users are greenlets of one thread: there is no lock."""

    def __init__(self) -> None:
        self._interval = Interval(int(time.time()))

    def take(self) -> Interval:
        """What there is, and begin anew."""
        taken, self._interval = self._interval, Interval(int(time.time()))
        return taken

    def done(self, environment: Environment, kind: str, name: str, seconds: float) -> None:
        """Something was done, in this time."""
        self._interval.timing(name).note(seconds)
        _fire(environment, kind, name, seconds, None)

    def failed(self, environment: Environment, kind: str, name: str, seconds: float, error: Exception) -> None:
        """Something failed."""
        self._interval.timing(name).note_failure(cause_of(error))
        _fire(environment, kind, name, seconds, error)

    def scored(self, mos: float) -> None:
        """A stream ended, or a second of it, with this MOS."""
        self._interval.scores[round(mos * 100)] += 1

    @contextmanager
    def timed(self, environment: Environment, kind: str, name: str) -> Iterator[None]:
        """Measure a block. An error is counted, and goes on."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.failed(environment, kind, name, time.perf_counter() - begun, error)
            raise
        self.done(environment, kind, name, time.perf_counter() - begun)


# One for the process, as Locust's own statistics are.
MEASURES = Measures()


def cause_of(error: Exception) -> str:
    """An error in a few words, without what differs from one to the next."""
    text = getattr(error, "cause_text", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _fire(environment: Environment, kind: str, name: str, seconds: float, error: Exception | None) -> None:
    fields: dict[str, Any] = {"request_type": kind, "name": name, "response_time": seconds * 1000, "response_length": 0}
    environment.events.request.fire(**fields, exception=error, context={})
