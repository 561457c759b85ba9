"""Calls that have ended, kept for a configured time: what answers "my call at 10:32 was bad" a week later.

A disk that is full, slow or gone may cost some of what is kept, which is counted, but never a call. Searches have
threads of their own, with a deadline; they are few at a time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from relay import deadlines
from relay.config import QualitySettings
from relay.errors import OperatorError, RelayError
from relay.gateway.calls import database
from relay.gateway.calls.database import Json, Search, StoredCall
from relay.gateway.calls.writing import Writer
from relay.tasks import in_daemon_thread

log = structlog.get_logger()

FILE_NAME = "calls.sqlite3"
# How often old calls are deleted, and a file that could not be used is tried again.
TEND_EVERY_S = 60.0
# A search over a million calls takes a fraction of a second. After this the operator is told to ask for less.
READ_TIMEOUT_S = 5.0
# Searches at once. A disk that hangs keeps the threads of those that have been given up.
MAX_READERS = 4

DAY_S = 86_400.0
# What goes wrong with a file, or a disk: sqlite3, the file system, and what is in the file.
_TROUBLES = (sqlite3.Error, OSError, OperatorError, zlib.error, ValueError)

_Result = TypeVar("_Result")


class CallsUnavailable(RelayError):
    """Calls are not kept, or cannot be read now; the text says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where calls are kept, for how long, and how large the file may be. ``path`` is None if they are not kept."""

    path: Path | None = None
    seconds: float = 30 * DAY_S
    max_bytes: int = 1024**3

    @classmethod
    def of(cls, settings: QualitySettings, folder: Path | None) -> Kept:
        """What the configuration says. If it names no file: one in the service's folder for its state, or ``folder``.

        systemd names the first in the environment (StateDirectory= in systemd.exec(5)). The second is the folder of
        the configuration.
        """
        state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        default = Path(state) if state else folder
        path = settings.calls or (None if default is None else default / FILE_NAME)
        return cls(
            path if settings.calls_kept_days else None, settings.calls_kept_days * DAY_S, settings.calls_max_bytes
        )


class CallStore(Writer[Callable[[], StoredCall]]):
    """Keeps calls. Each is given as a function that builds it, and that the thread calls: the loop has calls to serve.

    ``trouble`` says why calls are not written now, or is empty.
    """

    def __init__(self, kept: Kept = Kept()) -> None:
        super().__init__("call store", TEND_EVERY_S)
        self.trouble = ""
        self._kept = kept
        # Only the thread uses the file.
        self._file = _File()
        self._readers = threading.BoundedSemaphore(MAX_READERS)

    @property
    def active(self) -> bool:
        """True if calls are kept."""
        return self._kept.path is not None

    def configure(self, kept: Kept) -> None:
        """Use these from now on."""
        self._kept = kept
        self.start()
        self.wake()

    # Reading

    async def find(self, search: Search) -> list[Json]:
        """The calls that match, as rows of lists, the last that ended first. Raises CallsUnavailable."""
        if self._kept.path is None:
            raise CallsUnavailable("calls are not kept: see quality.calls in the relay's configuration")
        return await self._read(self._kept.path, lambda connection: database.find(connection, search))

    async def get(self, wanted: str) -> StoredCall | None:
        """One call; None if it is not kept. Raises CallsUnavailable."""
        if self._kept.path is None:
            return None
        return await self._read(self._kept.path, lambda connection: database.get(connection, wanted))

    async def _read(self, path: Path, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        if not self._readers.acquire(blocking=False):
            raise CallsUnavailable("too many searches at once: try again")
        try:
            async with deadlines.timeout(2 * READ_TIMEOUT_S):
                return await in_daemon_thread(functools.partial(self._read_here, path, work), "call search")
        except TimeoutError:
            raise CallsUnavailable(
                f"{path} was not read within {2 * READ_TIMEOUT_S:g} s: does the disk hang?"
            ) from None
        except sqlite3.OperationalError as error:
            if str(error) != "interrupted":
                raise CallsUnavailable(f"{path} cannot be read: {error}") from None
            raise CallsUnavailable("the search takes too long: ask for a shorter time, or for one user") from None
        except _TROUBLES as error:
            raise CallsUnavailable(f"{path} cannot be read: {error}") from None

    def _read_here(self, path: Path, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        # Given back when the thread ends, not when nobody waits for it any longer.
        try:
            with database.reading(path, READ_TIMEOUT_S) as connection:
                return work(connection)
        finally:
            self._readers.release()

    # In the thread

    def keep(self, items: list[Callable[[], StoredCall]]) -> int:
        """Write calls to the file, and delete old ones. Both may fail; that is told once."""
        kept = self._kept
        if kept.path is None:
            self._file.close()
            return 0
        calls, trouble, written = self._build(items), "", 0
        try:
            self._file.write(kept.path, calls)
            written = len(calls)
            while self._file.tend(kept) and self.idle:
                pass
        except _TROUBLES as error:
            self._file.close()
            trouble = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        self._report(kept.path, trouble, written)
        return written

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _build(self, items: list[Callable[[], StoredCall]]) -> list[StoredCall]:
        built = []
        for build in items:
            try:
                built.append(build())
            except Exception:
                # A mistake of ours. The other calls are kept.
                log.exception("ended call not kept")
        return built

    def _report(self, path: Path, trouble: str, done: int) -> None:
        """One line when trouble begins, and one when it is over: a full disk takes nothing, until it takes a call."""
        if trouble and not self.trouble:
            log.warning("ended calls are not kept", path=str(path), cause=trouble)
        elif self.trouble and not trouble and done:
            log.warning("ended calls are kept again", path=str(path), lost=self.lost)
        if trouble or done:
            self.trouble = trouble


class _File:
    """The thread's own hold on the file. It is let go after each failure, and taken again for the next calls."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        # The file that is open: its path, device and number.
        self._opened: tuple[Path, int, int] | None = None
        self._tend_at = 0.0

    def write(self, path: Path, calls: list[StoredCall]) -> None:
        """Add calls to the file, and make it if it is not there. Raises sqlite3.Error, OSError and OperatorError."""
        connection = self._open(path)
        if calls:
            database.add(connection, calls)

    def _open(self, path: Path) -> sqlite3.Connection:
        # Somebody may have moved it away, to keep it or to get rid of it.
        if self._connection is not None and self._opened == _identity(path):
            return self._connection
        self.close()
        self._connection = database.open_file(path)
        self._opened = _identity(path)
        return self._connection

    def tend(self, kept: Kept) -> bool:
        """Delete some old calls if it is time to look. Returns True if there may be more."""
        if self._connection is None or time.monotonic() < self._tend_at:
            return False
        if database.prune(self._connection, oldest=time.time() - kept.seconds, max_bytes=kept.max_bytes):
            return True
        self._tend_at = time.monotonic() + TEND_EVERY_S
        return False

    def close(self) -> None:
        """Let go of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Its disk may be gone.
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _identity(path: Path) -> tuple[Path, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return path, found.st_dev, found.st_ino
