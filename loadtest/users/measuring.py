"""One event to Locust, whose latencies are whole milliseconds, and one to our own histograms of microseconds.

Events are about what people notice: a set-up, a second of a stream, a stall. There is never one for a packet: an event
costs 4 us or more.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from gevent import GreenletExit
from locust.env import Environment
from pydantic import ValidationError

from loadtest.engine.windows import Histogram
from loadtest.figures.interval import Interval
from loadtest.figures.timings import count_cause
from relay.config.reading import explain

# How an error is marked that was counted.
_COUNTED = "_loadtest_counted"


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
        error.__dict__[_COUNTED] = True
        self._interval.timing(name).note_failure(cause_of(error))
        _fire(environment, kind, name, seconds, error)

    def raised(self, error: BaseException, words: str) -> None:
        """Code of a user has raised this, and nobody has caught it. What was counted already is not counted twice."""
        if not is_counted(error):
            count_cause(self._interval.raised, words)

    def waited(self, words: str, seconds: float) -> None:
        """A user was stopped who had waited for something this long. ``words`` is what has not come."""
        self._interval.waits.setdefault(words, Histogram()).record(seconds)

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """A block in which a user waits for the target. If the user is stopped meanwhile, it has waited in vain."""
        begun = time.perf_counter()
        try:
            yield
        except GreenletExit:
            self.waited(f"no answer to {name}", time.perf_counter() - begun)
            raise

    def scored(self, mos: float) -> None:
        """A stream ended, or a second of it, with this MOS."""
        self._interval.scores[round(mos * 100)] += 1

    @contextmanager
    def timed(self, environment: Environment, kind: str, name: str) -> Iterator[None]:
        """Measure a block. An error is counted, and goes on."""
        begun = time.perf_counter()
        try:
            with self.waiting(name):
                yield
        except Exception as error:
            self.failed(environment, kind, name, time.perf_counter() - begun, error)
            raise
        self.done(environment, kind, name, time.perf_counter() - begun)


# One for the process, as Locust's own statistics are.
MEASURES = Measures()


def is_counted(error: BaseException) -> bool:
    """Whether this error, or one that it was raised from, was counted as a failure."""
    cause: BaseException | None = error
    while cause is not None and _COUNTED not in cause.__dict__:
        cause = cause.__cause__
    return cause is not None


def cause_of(error: BaseException) -> str:
    """An error in a few words, without what differs from one to the next."""
    if isinstance(error, ValidationError):
        return "; ".join(explain(error))
    text = getattr(error, "cause_text", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]


def words_of(user: object, error: BaseException, trace: TracebackType | None, files: set[Path]) -> str:
    """An error that nobody has caught: whose it is, the last line of these files that it has passed, and what it is."""
    places = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(trace)]
    own = [(path, line) for path, line in places if path.resolve() in files]
    where = "".join(f" ({path.name}:{line})" for path, line in (own or places)[-1:])
    kind, cause = type(error).__name__, cause_of(error)
    return f"{type(user).__name__}{where}: {kind}" + ("" if cause == kind else f": {cause}")


def _fire(environment: Environment, kind: str, name: str, seconds: float, error: Exception | None) -> None:
    fields: dict[str, Any] = {"request_type": kind, "name": name, "response_time": seconds * 1000, "response_length": 0}
    environment.events.request.fire(**fields, exception=error, context={})
