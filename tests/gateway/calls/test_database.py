"""The file of ended calls: what is found, what goes, and which files are left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import OperatorError
from relay.gateway.calls import database
from relay.gateway.calls.database import ForeignFile, Search, StoredCall

HOUR = 3600.0
# Some afternoon.
NOON = 1_795_000_000.0


def stored(
    number: int, *, user: str = "a.keller", host: str = "10.1.2.3", at: float = NOON, lasted: float = 60.0
) -> StoredCall:
    name = f"run-{number}"
    told = {"id": name, "text": "ü\u2028\ud800<script>"}
    return StoredCall(
        name, at, at + lasted, user, host, {"id": name, "number": number}, told, b"\x01\x02\x03\x04" * number
    )


@contextlib.contextmanager
def opened(path: Path, *calls: StoredCall) -> Iterator[sqlite3.Connection]:
    connection = database.open_file(path)
    try:
        database.add(connection, calls)
        yield connection
    finally:
        connection.close()


def found(path: Path, **wanted: Any) -> list[int]:
    with database.reading(path, 5.0) as connection:
        return [row["number"] for row in database.find(connection, Search(**wanted))]


def test_a_call_comes_out_as_it_went_in(tmp_path: Path) -> None:
    path = tmp_path / "calls?#%.sqlite3"
    one = stored(7)
    with opened(path, one), database.reading(path, 5.0) as reader:
        assert database.get(reader, "run-7") == one
        assert database.get(reader, "run-8") is None
        assert database.find(reader, Search()) == [one.listed]


def test_it_is_still_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    with opened(path, stored(1)):
        pass
    with opened(path, stored(2)):
        assert found(path) == [2, 1]


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with opened(tmp_path / "calls.sqlite3", stored(1)):
        for path in tmp_path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0, path


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, [4, 3, 2, 1]),
        ({"user": "KELLER"}, [2, 1]),
        ({"user": "müller"}, [3]),
        ({"user": "MÜLLER"}, [3]),
        ({"user": "%"}, []),
        ({"user": "_"}, []),
        ({"host": "10.1.2.3"}, [4, 2, 1]),
        ({"host": "10.1.2"}, []),
        ({"host": "2001:db8::1"}, [3]),
        # A call matches if it ran then: from the first moment to the last.
        ({"since": NOON, "until": NOON}, [1]),
        ({"since": NOON + 60, "until": NOON + 60}, [1]),
        ({"since": NOON + 60.5, "until": NOON + HOUR - 1}, []),
        ({"since": NOON + HOUR + 30, "until": NOON + HOUR + 31}, [2]),
        ({"since": NOON + 60.5}, [4, 3, 2]),
        ({"until": NOON + HOUR}, [2, 1]),
        ({"user": "keller", "host": "10.1.2.3", "since": NOON + HOUR}, [2]),
        ({"limit": 3}, [4, 3, 2]),
        ({"limit": 3, "before": "run-2"}, [1]),
        ({"before": "run-1"}, []),
        ({"before": "run-9"}, []),
    ],
)
def test_a_search(tmp_path: Path, wanted: dict[str, Any], numbers: list[int]) -> None:
    path = tmp_path / "calls.sqlite3"
    calls = [
        stored(1),
        stored(2, user="A.Keller", at=NOON + HOUR),
        stored(3, user="Jörg Müller", host="2001:db8::1", at=NOON + 2 * HOUR),
        stored(4, user="\ud800", at=NOON + 3 * HOUR),
    ]
    with opened(path, *calls):
        assert found(path, **wanted) == numbers


def test_pages_have_every_call_once(tmp_path: Path) -> None:
    """Also where several ended at the same moment."""
    path = tmp_path / "calls.sqlite3"
    with opened(path, *(stored(number, at=NOON + number // 5) for number in range(23))):
        pages: list[int] = []
        while page := found(path, limit=4, before=f"run-{pages[-1]}" if pages else ""):
            pages += page
        assert pages == list(reversed(range(23)))


def test_a_search_reads_only_the_index(tmp_path: Path) -> None:
    """A row is large, and rows are many."""
    path = tmp_path / "calls.sqlite3"
    with opened(path, stored(1)) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT number FROM calls WHERE instr(user, 'a') > 0 AND host = 'b' AND ended_at >= 1"
            " AND started_at <= 2 ORDER BY ended_at DESC, number DESC LIMIT 3"
        ).fetchall()
    assert [row[3] for row in plan] == ["SEARCH calls USING COVERING INDEX calls_by_time (ended_at>?)"]


def test_what_is_old_goes_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PRUNED_AT_ONCE", 2)
    path = tmp_path / "calls.sqlite3"
    with opened(path, *(stored(number, at=NOON + number * HOUR) for number in range(5))) as connection:
        oldest = NOON + 3 * HOUR
        assert [database.prune(connection, oldest=oldest, max_bytes=1 << 40) for _ in range(3)] == [True, True, False]
        assert found(path) == [4, 3]


def test_a_file_that_is_too_large_loses_its_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PRUNED_AT_ONCE", 10)
    path = tmp_path / "calls.sqlite3"
    calls = [stored(number, at=NOON + number * HOUR) for number in range(100)]
    with opened(path, *map(_larger, calls)) as connection:
        while database.prune(connection, oldest=0.0, max_bytes=600_000):
            pass
        left = found(path)
        assert 40 <= len(left) <= 60
        assert left == list(reversed(range(100)))[: len(left)]


def _larger(call: StoredCall) -> StoredCall:
    return dataclasses.replace(call, windows=os.urandom(10_000))


def test_a_search_has_a_deadline(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    with (
        opened(path, *(stored(number) for number in range(300))),
        database.reading(path, 0.0) as reader,
        pytest.raises(sqlite3.OperationalError, match="interrupted"),
    ):
        reader.execute("SELECT count(*) FROM calls a, calls b, calls c").fetchall()


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    with opened(path, stored(1)), database.reading(path, 5.0) as reader:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM calls")
        assert found(path) == [1]
    with pytest.raises(sqlite3.OperationalError), database.reading(tmp_path / "none.sqlite3", 1.0):
        pass
    assert not (tmp_path / "none.sqlite3").exists()


def another_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trades (price)")
    connection.commit()
    connection.close()


def of_a_newer_version(path: Path) -> None:
    with opened(path, stored(1)) as connection:
        connection.execute(f"PRAGMA user_version = {database.VERSION + 1}")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (another_database, "a database of something else; expected a file of calls"),
        (of_a_newer_version, "made by a newer version of the relay; expected version 1, found 2"),
        (lambda path: path.write_text("[listen]\n"), "expected a file of calls, or a name that does not exist yet"),
    ],
    ids=["another", "newer", "text"],
)
def test_a_foreign_file_is_left_alone(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "calls.sqlite3"
    make(path)
    before = path.read_bytes()
    with pytest.raises(OperatorError) as refused:
        database.check_file(path)
    assert str(refused.value) == f"{path}: {said} (quality.calls)"
    with pytest.raises((ForeignFile, sqlite3.DatabaseError)):
        database.open_file(path)
    assert path.read_bytes() == before


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    database.check_file(path)
    assert list(tmp_path.iterdir()) == []
    path.touch()
    database.check_file(path)
    with opened(path, stored(1)):
        pass
    before = path.read_bytes()
    database.check_file(path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as refused:
        database.check_file(tmp_path / "none" / "calls.sqlite3")
    assert (
        str(refused.value) == f"cannot write {tmp_path}/none/calls.sqlite3 (quality.calls): no such file or directory"
    )
    with pytest.raises(OperatorError, match="is a directory"):
        database.check_file(tmp_path)
