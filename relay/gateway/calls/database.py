"""The file in which calls are kept after their end: SQLite, one row for each call. No thread and no loop here.

A row has what the API tells of the call as compressed JSON, and its windows. The columns that are searched stand in one
index in the order of time, so a search reads little besides what it finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.errors import OperatorError

Json = dict[str, Any]

# Says that a file is ours: "C9ca" in ASCII.
APPLICATION_ID = 0x43396361
# Of the tables below. A file of a newer version is left alone.
VERSION = 1
# Another process, such as a backup, may hold the file for a moment.
BUSY_S = 2.0
# Rows that are deleted in one go. It takes some milliseconds, and then calls that wait are written first.
PRUNED_AT_ONCE = 500
# The log of changes ("-wal") is cut to this length once its changes are in the file. A quiet relay needs 4 MB.
MAX_WAL_BYTES = 16 * 1024 * 1024
# How often a search looks at the clock: a fraction of a millisecond.
_STEPS_BETWEEN_LOOKS = 10_000
# What JSON and windows become: about a third, at 50 MB/s.
_COMPRESSION = 1

_TABLES = (
    """CREATE TABLE IF NOT EXISTS calls (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        ended_at REAL NOT NULL,
        started_at REAL NOT NULL,
        user TEXT NOT NULL,
        host TEXT NOT NULL,
        listed TEXT NOT NULL,
        told BLOB NOT NULL,
        windows BLOB NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS calls_by_time ON calls (ended_at, number, started_at, user, host)",
)


class ForeignFile(OperatorError):
    """The file is there, and is not one that this relay may write to."""


@dataclass(frozen=True, slots=True)
class StoredCall:
    """One call that has ended. ``listed`` is its row in lists, ``told`` all that is known of it without the windows."""

    id: str
    started_at: float
    ended_at: float
    username: str
    # The IP address of its client.
    host: str
    listed: Json = field(repr=False)
    told: Json = field(repr=False)
    # As ``Windows.pack`` makes them.
    windows: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Search:
    """Which calls are wanted, the last that ended first. What is empty or None matches every call.

    A call matches ``since`` and ``until`` (Unix seconds, both included) if it ran at some time between them. ``user``
    is a part of the name; upper and lower case are the same. ``before`` is the id of the last call of the page before.
    """

    user: str = ""
    host: str = ""
    since: float | None = None
    until: float | None = None
    limit: int = 100
    before: str = ""


def check_file(path: Path) -> None:
    """Look whether calls can be kept in this file, and leave nothing behind. Raises OperatorError."""
    try:
        _check_head(path)
        # SQLite has files of its own next to it.
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
        if path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise OperatorError(f"cannot write {path} (quality.calls): {(error.strerror or str(error)).lower()}") from None
    except ForeignFile as error:
        raise OperatorError(f"{error} (quality.calls)") from None


def _check_head(path: Path) -> None:
    """Read the head of a file without SQLite, which would make locks (its section 1.3, The Database Header)."""
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(100)
    except FileNotFoundError:
        return
    if not head:
        return
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise ForeignFile(f"{path}: expected a file of calls, or a name that does not exist yet")
    _check_version(path, int.from_bytes(head[68:72]), int.from_bytes(head[60:64]))


def _check_version(path: Path, application_id: int, version: int) -> None:
    if application_id != APPLICATION_ID:
        raise ForeignFile(f"{path}: a database of something else; expected a file of calls")
    if version > VERSION:
        raise ForeignFile(f"{path}: made by a newer version of the relay; expected version {VERSION}, found {version}")


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file to write to it, and make it if it is not there. Raises OSError, sqlite3.Error and ForeignFile."""
    # Only the operator may read who has called whom. SQLite gives its other files the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        _set_up(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    is_new = _is_empty(connection)
    if not is_new:
        _check_version(path, _value(connection, "PRAGMA application_id"), _value(connection, "PRAGMA user_version"))
    # Readers and the writer do not wait for each other. After a power failure the last calls may be missing; the file
    # is whole.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
    if is_new:
        with _transaction(connection):
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return _value(connection, "SELECT count(*) FROM sqlite_master") == 0


def _value(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # If the disk is full, SQLite may have rolled it back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def add(connection: sqlite3.Connection, calls: Sequence[StoredCall]) -> None:
    """Add calls, all of them or none. Raises sqlite3.Error."""
    with _transaction(connection):
        connection.executemany(
            "INSERT OR REPLACE INTO calls (id, ended_at, started_at, user, host, listed, told, windows)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            map(_row_of, calls),
        )


def _row_of(call: StoredCall) -> tuple[object, ...]:
    told = zlib.compress(_dump(call.told).encode(), _COMPRESSION)
    windows = zlib.compress(call.windows, _COMPRESSION)
    # A client chooses the name. SQLite refuses what is not UTF-8.
    user = call.username.casefold().encode(errors="replace").decode()
    times, names = (call.ended_at, call.started_at), (user, call.host)
    return (call.id, *times, *names, _dump(call.listed), told, windows)


def _dump(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


def prune(connection: sqlite3.Connection, *, oldest: float, max_bytes: int) -> bool:
    """Delete some of the calls that ended before ``oldest`` (Unix time), or the oldest ones if the file is too large.

    Returns False once there is nothing to delete. Raises sqlite3.Error.
    """
    chosen = "SELECT number FROM calls WHERE ended_at < ? ORDER BY ended_at, number LIMIT ?"
    limit = float("inf") if _used_bytes(connection) > max_bytes else oldest
    with _transaction(connection):
        found = connection.execute(f"DELETE FROM calls WHERE number IN ({chosen})", (limit, PRUNED_AT_ONCE))  # noqa: S608
        return found.rowcount > 0


def _used_bytes(connection: sqlite3.Connection) -> int:
    """The file without the room that deleted calls have left, which is used again."""
    pages = _value(connection, "PRAGMA page_count") - _value(connection, "PRAGMA freelist_count")
    return pages * _value(connection, "PRAGMA page_size")


# Reading


@contextlib.contextmanager
def reading(path: Path, timeout_s: float) -> Iterator[sqlite3.Connection]:
    """Open the file to read from it. What takes longer raises sqlite3.OperationalError. Raises sqlite3.Error."""
    # Not mode=ro: a reader that comes first after a crash has to put the file in order.
    address = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
    try:
        until = time.monotonic() + timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS_BETWEEN_LOOKS)
        connection.execute("PRAGMA query_only = ON")
        if _is_empty(connection):
            raise ForeignFile("nothing has been kept in it yet")
        _check_version(path, _value(connection, "PRAGMA application_id"), _value(connection, "PRAGMA user_version"))
        yield connection
    finally:
        connection.close()


def find(connection: sqlite3.Connection, search: Search) -> list[Json]:
    """The calls that match, as rows of lists. Raises sqlite3.Error."""
    conditions: dict[str, object] = {
        "instr(user, ?) > 0": search.user.casefold() or None,
        "host = ?": search.host or None,
        "ended_at >= ?": search.since,
        "started_at <= ?": search.until,
        "(ended_at, number) < (SELECT ended_at, number FROM calls WHERE id = ?)": search.before or None,
    }
    given = {condition: value for condition, value in conditions.items() if value is not None}
    where = f" WHERE {' AND '.join(given)}" if given else ""
    order = " ORDER BY ended_at DESC, number DESC LIMIT ?"
    found = connection.execute(f"SELECT listed FROM calls{where}{order}", (*given.values(), search.limit))  # noqa: S608
    return [json.loads(listed) for (listed,) in found]


def get(connection: sqlite3.Connection, wanted: str) -> StoredCall | None:
    """One call, or None. Raises sqlite3.Error."""
    columns = "id, started_at, ended_at, user, host, listed, told, windows"
    row = connection.execute(f"SELECT {columns} FROM calls WHERE id = ?", (wanted,)).fetchone()  # noqa: S608
    if row is None:
        return None
    id_, started_at, ended_at, user, host, listed, told, windows = row
    unpacked = json.loads(listed), json.loads(zlib.decompress(told)), zlib.decompress(windows)
    return StoredCall(id_, started_at, ended_at, user, host, *unpacked)
