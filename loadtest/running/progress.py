"""What is told while a test runs: one line a second, of what the record has got."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import IO

from rich.console import Console

from loadtest.figures.interval import Interval
from loadtest.figures.record import Record
from loadtest.plan.profile import Profile
from loadtest.verdict.judging import errors_of

# Where nobody watches a terminal, a line now and then says that it goes on.
QUIET_EVERY_S = 10
# Of the record, at a time.
MAX_READ_BYTES = 4 * 1024 * 1024


class Progress:
    """Follows the record. The record that it has read is the whole one at the end."""

    def __init__(self, path: Path, profile: Profile, console: Console) -> None:
        self.record = Record()
        self._path = path
        self._profile = profile
        self._console = console
        self._file: IO[str] | None = None
        self._half = ""
        self._told = 0

    def look(self) -> None:
        """Read what is new, and tell."""
        self._read(MAX_READ_BYTES)
        seconds = sorted(self.record.intervals)
        # The last second is not whole yet: other workers report later.
        if len(seconds) > 1 and seconds[-2] > self._told:
            second = seconds[-2]
            if self._console.is_terminal or second - self._told >= QUIET_EVERY_S:
                self._told = second
                self._console.print(
                    self._line(second - seconds[0], self.record.intervals[second]), highlight=False, soft_wrap=True
                )

    @property
    def second(self) -> float | None:
        """How long the test has gone on; None before it has begun."""
        return time.time() - min(self.record.intervals) if self.record.intervals else None

    def finish(self) -> Record:
        """Read the rest."""
        while self._read(MAX_READ_BYTES):
            pass
        if self._half:
            self.record.broken_lines += 1
        if self._file is not None:
            self._file.close()
        return self.record

    def _read(self, limit: int) -> bool:
        if self._file is None and self._path.is_file():
            with contextlib.suppress(FileNotFoundError):
                self._file = self._path.open(encoding="utf-8", errors="replace")
        text = self._file.read(limit) if self._file is not None else ""
        *whole, self._half = (self._half + text).split("\n")
        for line in whole:
            self.record.take(line)
        return bool(text)

    def _line(self, second: int, one: Interval) -> str:
        counts, p99 = one.counters, one.delay.percentile(99)
        errors = errors_of(one)
        delay = "-" if p99 is None else f"{p99 / 1000:.2f} ms"
        return (
            f"{second:5} / {self._profile.shape.seconds:.0f} s  {one.users} users  {one.streams} streams  "
            f"{counts['sent']} sent  {counts['lost']} lost  {counts['late']} late  p99 {delay}  {errors} errors"
            f"{'  void: the generator is late' if one.void else ''}"
        )
