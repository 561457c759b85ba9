"""A load test from a profile to a verdict and its files. The judge is outside Locust: if Locust dies, it says so.

record.jsonl   what was measured, as it came
locust.log     what Locust has written
result.json    the result, whose schema is ``loadtest/verdict/result.schema.json``
junit.xml      for a build server
intervals.csv  each second
report.html    for people
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from loadtest.plan.profile import Profile
from loadtest.plan.target import Target, carrier_name
from loadtest.plan.work import Work
from loadtest.running.faults import Faults
from loadtest.running.folders import claimed
from loadtest.running.last_words import why_it_ended
from loadtest.running.processes import LOCUSTFILE, Locust, Mode
from loadtest.running.progress import Progress
from loadtest.verdict.environment import environment
from loadtest.verdict.judging import Circumstances, judge
from loadtest.verdict.junit import junit
from loadtest.verdict.page import page
from loadtest.verdict.result import Result
from loadtest.verdict.table import table
from relay import writing
from relay.errors import OperatorError

# Locust starts, workers connect, the last streams are heard out: on a busy machine all of it takes a while.
GRACE_S = 120.0
WORKER_LOOKS_S = 60.0


class ReportLost(OperatorError):
    """The test was judged, but not all of its files could be written: ``result`` is all that there is of it."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    profile_name: str
    profile: Profile
    target_name: str
    mode: Mode
    folder: Path
    locustfile: Path = LOCUSTFILE


class Interrupted:
    """Ctrl-C and SIGTERM end the test early. The report is written all the same. A second one waits for no user."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        """How often the user has said that the test is to end."""
        return self.count

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


def run(wish: Wish, target: Target, console: Console, interrupted: Callable[[], int]) -> Result:
    """Run a test, judge it, and write its files. ``interrupted`` is how often the user has said that it is to end.

    Raises OperatorError if it cannot begin, and ReportLost if files cannot be written at the end.
    """
    record = wish.folder / "record.jsonl"
    work = Work(
        profile_name=wish.profile_name,
        target_name=wish.target_name,
        profile=wish.profile,
        target=target,
        record=str(record),
    )
    circumstances = Circumstances(environment=environment())
    with claimed(wish.folder) as claim:
        watch = _Watch(
            wish,
            Progress(record, wish.profile, console),
            Faults(wish.profile, target),
            circumstances,
            interrupted,
        )
        _generate(work, watch, claim)
        result = judge(work, watch.progress.finish(), circumstances)
        write(result, wish.folder)
    return result


def _generate(work: Work, watch: _Watch, claim: int) -> None:
    """Let Locust run, and watch it until it has ended. Raises OperatorError."""
    wish = watch.wish
    try:
        Path(work.record).write_bytes(b"")
        with (
            (wish.folder / "locust.log").open("wb") as log,
            watch.faults,
            Locust(work, wish.mode, log, wish.locustfile, shared=(claim,)) as locust,
        ):
            watch.watch(locust)
    except OSError as error:
        raise OperatorError(f"{error.filename or wish.folder}: {error.strerror}") from None


@dataclass
class _Watch:
    """Watches Locust until it has ended, and notes how."""

    wish: Wish
    progress: Progress
    faults: Faults
    circumstances: Circumstances
    interrupted: Callable[[], int]

    def watch(self, locust: Locust) -> None:
        status = locust.wait(self.wish.profile.shape.seconds + GRACE_S, self._look)
        if status is None:
            status = self._stop(locust)
        # 1: some requests have failed, which is for the thresholds to judge. Interrupted is interrupted.
        self.progress.look()
        began = bool(self.progress.record.intervals)
        if status not in {0, 1 if began else 0, None} and not self.circumstances.interrupted:
            self.circumstances.troubles.append(why_it_ended(status, self.wish.folder))

    def _stop(self, locust: Locust) -> int | None:
        self.circumstances.interrupted = bool(self.interrupted())
        if not self.circumstances.interrupted:
            self.circumstances.troubles.append("Locust did not end in time, and was stopped.")
        status = locust.stop(lambda: _in_a_hurry(self.interrupted))
        if status is None:
            self.circumstances.troubles.append("Locust did not stop, and was killed.")
        return status

    def _look(self) -> bool:
        self.progress.look()
        if self.progress.second is not None:
            self.faults.look(self.progress.second)
        return bool(self.interrupted())


def _in_a_hurry(interrupted: Callable[[], int]) -> bool:
    return interrupted() > 1


def write(result: Result, folder: Path) -> None:
    """Write the files of a result, those that can be written. Raises ReportLost for the others."""
    texts = {
        "result.json": result.text(),
        "junit.xml": junit(result),
        "intervals.csv": table(result),
        "report.html": page(result),
    }
    lost: list[str] = []
    for name, text in texts.items():
        try:
            writing.replace(folder / name, text.encode())
        except OperatorError as error:
            lost.append(str(error))
    if lost:
        raise ReportLost("; ".join(lost), result)


def headline(wish: Wish, target: Target) -> str:
    """What is about to happen, in a line."""
    profile = wish.profile
    carrier = "" if wish.target_name == str(target.server) else f" ({target.server})"
    return (
        f"{wish.profile_name}: {profile.users} users, {profile.packets_per_s:,.0f} packets/s, "
        f"{profile.shape.seconds:.0f} s, to {wish.target_name}{carrier} over {carrier_name(target)}"
    )


def work_for_master(work: Work, mode: Mode, interrupted: Callable[[], int]) -> int:
    """Be a worker until the master lets go: an exit status. Raises OperatorError."""
    with Locust(work, mode, None) as locust:
        while (status := locust.wait(WORKER_LOOKS_S, lambda: bool(interrupted()))) is None:
            if interrupted():
                status = locust.stop(lambda: _in_a_hurry(interrupted))
                break
    return 0 if status in {0, 1} else 1
