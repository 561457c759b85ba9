"""The store of ended calls: what a bad disk costs, that nothing waits for it, and that it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.config import QualitySettings
from relay.errors import OperatorError
from relay.gateway.calls import database, writing
from relay.gateway.calls import store as module
from relay.gateway.calls.database import Search, StoredCall
from relay.gateway.calls.store import CallStore, CallsUnavailable, Kept
from tests.support.waiting import becomes, eventually

DEADLINE_S = 60
NOON = 1_795_000_000.0
# Kept for as long as these tests know.
FOR_EVER = 1e10


def stored(number: int) -> StoredCall:
    name = f"run-{number}"
    return StoredCall(name, NOON, NOON + number, "a.keller", "10.1.2.3", {"number": number}, {"id": name}, b"")


def write(store: CallStore, *numbers: int) -> None:
    for number in numbers:
        store.write(lambda number=number: stored(number))  # type: ignore[misc]


async def found(store: CallStore) -> list[int]:
    return [row["number"] for row in await store.find(Search(limit=10_000))]


@contextlib.asynccontextmanager
async def running(path: Path, seconds: float = FOR_EVER, max_bytes: int = 1 << 40) -> AsyncIterator[CallStore]:
    store = CallStore(Kept(path, seconds, max_bytes))
    store.start()
    try:
        yield store
    finally:
        await store.stop()


def events(lines: Any) -> list[str]:
    return [line["event"] for line in lines]


async def test_calls_are_kept_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    async with running(path) as store:
        write(store, 1, 2)
    assert (store.written, store.lost, store.trouble) == (2, 0, "")
    async with running(path) as store:
        await eventually(path.exists)
        assert await found(store) == [2, 1]
        assert await store.get("run-1") == stored(1)
        assert await store.get("run-9") is None


async def test_the_file_is_there_from_the_start_on(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    async with running(path) as store:
        await eventually(lambda: is_a_file_of_calls(path))
        assert await found(store) == []


def is_a_file_of_calls(path: Path) -> bool:
    with contextlib.suppress(sqlite3.Error, OperatorError), database.reading(path, 1.0):
        return True
    return False


async def test_without_a_file_nothing_is_kept() -> None:
    store = CallStore()
    store.start()
    write(store, 1)
    store.leave_out()
    with pytest.raises(CallsUnavailable, match=r"calls are not kept: see quality\.calls"):
        await store.find(Search())
    assert await store.get("run-1") is None
    await store.stop()
    assert (store.written, store.lost) == (0, 0)


async def test_the_thread_builds_what_is_written(tmp_path: Path) -> None:
    """The loop has calls to serve. And one that cannot be built takes no other with it."""
    threads: list[str] = []

    def build() -> StoredCall:
        threads.append(threading.current_thread().name)
        return stored(1)

    def fails() -> StoredCall:
        raise KeyError("a mistake")

    path = tmp_path / "calls.sqlite3"
    with capture_logs() as lines:
        async with running(path) as store:
            store.write(fails)
            store.write(build)
    assert (store.written, store.lost, threads) == (1, 1, ["call store"])
    assert events(lines) == ["ended call not kept"]


async def test_a_full_disk_is_counted_told_once_and_over_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite is told that the file may have no more pages: then it says what it says of a full disk."""
    path, full, opening = tmp_path / "calls.sqlite3", True, database.open_file

    def opened(path: Path) -> sqlite3.Connection:
        connection = opening(path)
        if full:
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    def large() -> StoredCall:
        return StoredCall("run-1", NOON, NOON, "", "", {"number": 1}, {"text": os.urandom(20_000).hex()}, b"")

    monkeypatch.setattr("relay.gateway.calls.database.open_file", opened)
    with capture_logs() as lines:
        async with running(path) as store:
            for count in range(1, 4):
                store.write(large)
                await eventually(lambda count=count: store.lost == count)  # type: ignore[misc]
            await becomes(lambda: store.trouble, "database or disk is full")
            full = False
            write(store, 2)
            await eventually(lambda: store.written == 1)
            await becomes(lambda: store.trouble, "")
            assert await found(store) == [2]
    assert events(lines) == ["ended calls are not kept", "ended calls are kept again"]
    assert (lines[0]["cause"], lines[0]["path"]) == ("database or disk is full", str(path))
    assert lines[1]["lost"] == 3


async def test_a_folder_that_is_not_there_is_told_once_and_may_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEND_EVERY_S", 0.01)
    path = tmp_path / "later" / "calls.sqlite3"
    with capture_logs() as lines:
        async with running(path) as store:
            await becomes(lambda: store.trouble, "No such file or directory")
            write(store, 1)
            await eventually(lambda: store.lost == 1)
            with pytest.raises(CallsUnavailable, match=r"cannot be read: unable to open database file"):
                await store.find(Search())
            path.parent.mkdir()
            await eventually(path.exists)
            write(store, 2)
            await eventually(lambda: store.written == 1)
    assert events(lines) == ["ended calls are not kept", "ended calls are kept again"]


@pytest.mark.parametrize("content", [b"not a database, and longer than the head of one" * 50, None])
async def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "calls.sqlite3"
    if content is None:
        with contextlib.closing(sqlite3.connect(path)) as another:
            another.execute("CREATE TABLE trades (price)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    async with running(path) as store:
        write(store, 1)
        await eventually(lambda: store.lost == 1)
        assert store.trouble
        with pytest.raises(CallsUnavailable, match="cannot be read"):
            await store.find(Search())
        # The operator moves it away.
        path.rename(tmp_path / "aside")
        write(store, 2)
        await eventually(lambda: store.written == 1)
        assert await found(store) == [2]
    assert (tmp_path / "aside").read_bytes() == before


async def test_a_broken_file_costs_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite3"
    async with running(path) as store:
        write(store, *range(500))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    async with running(path) as store:
        write(store, 501)
        await eventually(lambda: store.lost == 1)
        with pytest.raises(CallsUnavailable, match="cannot be read: database disk image is malformed"):
            await store.find(Search())


async def test_a_file_that_is_moved_away_is_made_anew(tmp_path: Path) -> None:
    path, aside = tmp_path / "calls.sqlite3", tmp_path / "aside.sqlite3"
    async with running(path) as store:
        write(store, 1)
        await eventually(lambda: store.written == 1)
        path.rename(aside)
        write(store, 2)
        await eventually(lambda: store.written == 2)
        assert await found(store) == [2]


async def test_another_process_that_holds_the_file_costs_calls_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    path = tmp_path / "calls.sqlite3"
    async with running(path) as store:
        write(store, 1)
        await eventually(lambda: store.written == 1)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            write(store, 2)
            await becomes(lambda: store.trouble, "database is locked")
            # Readers do not wait for it.
            assert await found(store) == [1]
        write(store, 3)
        await becomes(lambda: store.trouble, "")
        assert await found(store) == [3, 1]
    assert (store.written, store.lost) == (2, 1)


async def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FLUSH_TIMEOUT_S", 0.01)
    works, opening = threading.Event(), database.open_file

    def hangs(path: Path) -> sqlite3.Connection:
        assert works.wait(DEADLINE_S)
        return opening(path)

    monkeypatch.setattr("relay.gateway.calls.database.open_file", hangs)
    store = CallStore(Kept(tmp_path / "calls.sqlite3", FOR_EVER))
    store.start()
    count = writing.WAITING + 50
    write(store, *range(count))
    assert store.lost == 50
    with capture_logs() as lines:
        await store.stop()
    assert events(lines) == ["not written in time"]
    write(store, count)
    assert store.lost == 51
    works.set()
    await eventually(lambda: store.written == writing.WAITING)
    await eventually(lambda: not any(thread.name == "call store" for thread in threading.enumerate()))


async def test_a_disk_that_does_not_answer_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.01)
    works = threading.Event()

    def hangs(*_: Any) -> None:
        assert works.wait(DEADLINE_S)

    async with running(tmp_path / "calls.sqlite3") as store:
        write(store, 1)
        await eventually(lambda: store.written == 1)
        with monkeypatch.context() as hanging:
            hanging.setattr("relay.gateway.calls.database.find", hangs)
            searches = [store.find(Search()) for _ in range(module.MAX_READERS)]
            told = await asyncio.gather(*searches, return_exceptions=True)
            assert all("was not read within 0.02 s: does the disk hang?" in str(one) for one in told)
            # Their threads hang still, and there are no more of them.
            with pytest.raises(CallsUnavailable, match="too many searches at once"):
                await store.find(Search())
            works.set()
        monkeypatch.setattr(module, "READ_TIMEOUT_S", DEADLINE_S)
        await eventually(lambda: not any(thread.name == "call search" for thread in threading.enumerate()))
        assert await found(store) == [1]


async def test_a_search_that_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path / "calls.sqlite3") as store:
        write(store, 1)
        await eventually(lambda: store.written == 1)

        def interrupted(*_: Any) -> None:
            raise sqlite3.OperationalError("interrupted")

        monkeypatch.setattr("relay.gateway.calls.database.find", interrupted)
        with pytest.raises(CallsUnavailable, match="takes too long: ask for a shorter time"):
            await store.find(Search())


async def test_old_calls_go_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEND_EVERY_S", 0.01)
    now = NOON + 100
    monkeypatch.setattr("relay.gateway.calls.store.time.time", lambda: now)
    async with running(tmp_path / "calls.sqlite3", seconds=100) as store:
        write(store, 1, 2, 50)
        await eventually(lambda: store.written == 3)
        assert await found(store) == [50, 2, 1]
        now += 3
        await eventually(lambda: left(tmp_path / "calls.sqlite3") == 1)
        assert await found(store) == [50]


def left(path: Path) -> int:
    with database.reading(path, DEADLINE_S) as connection:
        return len(database.find(connection, Search()))


async def test_a_reload_takes_another_file_or_none(tmp_path: Path) -> None:
    first, second = tmp_path / "first.sqlite3", tmp_path / "second.sqlite3"
    store = CallStore()
    store.start()
    write(store, 1)
    store.configure(Kept(first, FOR_EVER))
    write(store, 2)
    await eventually(lambda: store.written == 1)
    store.configure(Kept(second, FOR_EVER))
    await eventually(second.exists)
    write(store, 3)
    await eventually(lambda: store.written == 2)
    assert await found(store) == [3]
    store.configure(Kept(None))
    write(store, 4)
    await store.stop()
    assert (store.written, store.lost) == (2, 0)


def test_where_calls_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    named = QualitySettings(calls=Path("/srv/calls.db"), calls_kept_days=2, calls_max_bytes=1 << 20)
    assert Kept.of(named, tmp_path) == Kept(Path("/srv/calls.db"), 2 * 86_400, 1 << 20)
    assert Kept.of(QualitySettings(), tmp_path) == Kept(tmp_path / "calls.sqlite3", 30 * 86_400, 1 << 30)
    assert Kept.of(QualitySettings(), None).path is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/cloud9-relay:/var/lib/other")
    assert Kept.of(QualitySettings(), tmp_path).path == Path("/var/lib/cloud9-relay/calls.sqlite3")
    assert Kept.of(named, tmp_path).path == Path("/srv/calls.db")
    assert Kept.of(QualitySettings(calls_kept_days=0), tmp_path).path is None
