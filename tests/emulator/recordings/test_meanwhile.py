"""What changes while an upload is under way: its login, the same recording at another process, the user's bytes."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader

from relay.emulator import fixtures
from relay.emulator.http.errors import ApiError
from relay.emulator.recordings import locks, models, recordings
from relay.emulator.recordings.recordings import Recordings
from relay.emulator.store import Store, tables
from relay.emulator.store.seeding import seed
from tests.support.benches.cloud import running_cloud
from tests.support.media_files import MediaFile, ogg_opus
from tests.support.waiting import eventually

MEDIA = MediaFile(ogg_opus(5000))
STREAM = "application/offset+octet-stream"


@dataclass(frozen=True)
class Anna:
    user_id: str = "anna"
    firm_id: str = "atlas"
    role: str = "user"


ANNA = Anna()


def metadata(**changes: Any) -> models.Metadata:
    return models.Metadata.model_validate(MEDIA.metadata(**changes))


def stream(*parts: bytes, ends: bool = False) -> StreamReader:
    """A body that goes on, unless it ``ends``."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    reader = StreamReader(protocol, 1 << 16, loop=loop)
    for part in parts:
        reader.feed_data(part)
    if ends:
        reader.feed_eof()
    return reader


def break_off(reader: StreamReader) -> None:
    reader.set_exception(ConnectionResetError("gone"))


async def code_of(work: Any) -> str:
    """How a request ends: the code of its error, or nothing."""
    try:
        await work
    except ApiError as refused:
        return refused.detail.code
    return ""


@dataclass
class Cloud:
    """Two processes with one database, here with one folder as well, there with two."""

    store: Store
    first: Recordings
    second: Recordings

    async def row(self, recording_id: str) -> tables.Recording:
        async with self.store.reading() as session:
            return await session.get_one(tables.Recording, recording_id)


@contextlib.asynccontextmanager
async def two_processes(folder: Path, *, shared: bool = True) -> AsyncIterator[Cloud]:
    store = await Store.open(":memory:")
    try:
        await seed(store, fixtures.bundled())
        folders = (folder, folder) if shared else (folder / "first", folder / "second")
        first, second = (Recordings(store, each, shared=shared) for each in folders)
        yield Cloud(store, first, second)
        await first.stop()
        await second.stop()
    finally:
        await store.close()


async def test_two_processes_do_not_write_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TAKE_OVER_S", 0.0)
    one = str(uuid.uuid4())
    async with two_processes(tmp_path) as cloud, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        await cloud.first.put_metadata(ANNA, one, metadata())
        body = stream(b"x" * 3000)
        older = tasks.create_task(code_of(cloud.first.append(ANNA, one, body, offset=0, length=None)))
        await eventually((tmp_path / "atlas" / one).exists)
        whole = stream(MEDIA.content, ends=True)
        assert await code_of(cloud.second.append(ANNA, one, whole, offset=0, length=None)) == "in_use"
        assert await code_of(cloud.second.discard(ANNA, one)) == "in_use"
        break_off(body)
        assert await older == "broken_off"
        assert (await cloud.second.settled(ANNA, one)).received_bytes == 3000
        await cloud.second.discard(ANNA, one)
        await cloud.second.put_metadata(ANNA, one, metadata())
        whole = stream(MEDIA.content, ends=True)
        assert (await cloud.second.append(ANNA, one, whole, offset=0, length=None)).completed_at is not None
        assert [each.name for each in (tmp_path / "atlas").iterdir()] == [one]
        assert (tmp_path / "atlas" / one).read_bytes() == MEDIA.content


async def test_a_recording_that_is_whole_stays_so_whatever_an_older_upload_does(tmp_path: Path) -> None:
    one = str(uuid.uuid4())
    async with two_processes(tmp_path, shared=False) as cloud, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        await cloud.first.put_metadata(ANNA, one, metadata())
        body = stream(b"x" * 3000)
        older = tasks.create_task(code_of(cloud.first.append(ANNA, one, body, offset=0, length=None)))
        await eventually((tmp_path / "first" / "atlas" / one).exists)
        whole = stream(MEDIA.content, ends=True)
        assert (await cloud.second.append(ANNA, one, whole, offset=0, length=None)).completed_at is not None
        break_off(body)
        assert await older == "changed"
        row = await cloud.row(one)
        assert (row.received_bytes, row.completed_at is not None) == (5000, True)


async def test_who_begins_a_recording_at_two_processes_is_told_so(tmp_path: Path) -> None:
    async with two_processes(tmp_path, shared=False) as cloud:
        one = str(uuid.uuid4())
        both = (cloud.first, cloud.second)
        codes = await asyncio.gather(*(code_of(each.put_metadata(ANNA, one, metadata())) for each in both))
        assert sorted(codes) == ["", "changed"]


async def test_announcements_at_once_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_BYTES_OF_USER", 6000)
    async with two_processes(tmp_path) as cloud:
        several = [str(uuid.uuid4()) for _ in range(3)]
        for one in several:
            await cloud.first.put_metadata(ANNA, one, metadata(media_bytes=1))
        codes = await asyncio.gather(*(code_of(cloud.first.put_metadata(ANNA, one, metadata())) for one in several))
        assert sorted(codes) == ["", "too_much_of_user", "too_much_of_user"]


async def test_uploads_that_begin_at_once_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_FOLDER_BYTES", 9999)
    check_folder, both_look = recordings._check_folder, asyncio.Barrier(2)

    async def look_together(*given: Any) -> None:
        await both_look.wait()
        await check_folder(*given)

    monkeypatch.setattr(recordings, "_check_folder", look_together)
    async with two_processes(tmp_path) as cloud, asyncio.timeout(10):
        bodies = [stream(ends=True) for _ in range(2)]
        codes = await asyncio.gather(
            *(code_of(cloud.first.append(ANNA, str(uuid.uuid4()), each, offset=0, length=5000)) for each in bodies)
        )
        assert sorted(codes) == ["", "folder_full"]


@pytest.mark.parametrize("request_", ["append", "put_metadata", "discard"])
async def test_nothing_is_written_for_a_login_that_has_ended(tmp_path: Path, request_: str) -> None:
    asked = 0

    async def ended(session: object, owner: object) -> bool:
        nonlocal asked
        asked += 1
        return False

    one = str(uuid.uuid4())
    async with two_processes(tmp_path) as cloud:
        await cloud.first.put_metadata(ANNA, one, metadata())
        late = Recordings(cloud.store, tmp_path, still_in=ended)
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "append": lambda: late.append(ANNA, one, stream(MEDIA.content, ends=True), offset=0, length=None),
            "put_metadata": lambda: late.put_metadata(ANNA, one, metadata(line="another")),
            "discard": lambda: late.discard(ANNA, one),
        }
        assert await code_of(work[request_]()) == "unauthorized"
        assert asked == 1
        row = await cloud.row(one)
        assert (row.received_bytes, row.details) == (0, metadata().model_dump(mode="json"))
        if request_ != "discard":
            assert await code_of(late.put_metadata(ANNA, str(uuid.uuid4()), metadata())) == "unauthorized"


async def test_an_upload_does_not_outlive_its_login(tmp_path: Path) -> None:
    go_on, one = asyncio.Event(), str(uuid.uuid4())

    async def body() -> AsyncIterator[bytes]:
        yield MEDIA.content[:3000]
        await go_on.wait()
        yield MEDIA.content[3000:]

    async with running_cloud(tmp_path) as client, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        token = (await client.login())["token"]
        headers = {"Upload-Offset": "0", "Upload-Length": "5000", "Content-Type": STREAM}
        path = f"/recordings/v1/{one}/media"
        upload = tasks.create_task(client.ask("PATCH", path, token=token, headers=headers, data=body()))
        await eventually((tmp_path / "recordings" / "atlas" / one).exists)
        assert (await client.ask("POST", "/rest/v1/logout", token=token))[0] == 200
        go_on.set()
        assert (await upload)[0] == 401
        async with client.cloud.store.reading() as session:
            assert (await session.get_one(tables.Recording, one)).received_bytes == 0
