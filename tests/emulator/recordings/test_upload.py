"""Uploads: metadata and media in any order and in any number of parts, and everything that is refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from relay.emulator.recordings import intake, models, places, recordings
from relay.emulator.recordings.disk import Disk
from relay.emulator.store import tables
from tests.support.benches.apis import Answer, Apis, open_apis
from tests.support.media_files import MediaFile, m4a, ogg_opus
from tests.support.waiting import eventually

MEDIA = MediaFile(ogg_opus(5000))
STREAM = "application/offset+octet-stream"


class User:
    """Someone who uploads one recording."""

    def __init__(self, apis: Apis, token: str, recording_id: str | None = None) -> None:
        self.apis, self.token = apis, token
        self.id = recording_id or str(uuid.uuid4())

    @property
    def path(self) -> str:
        return f"/recordings/v1/{self.id}"

    async def send(self, method: str, path: str, body: bytes = b"", /, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.apis.send(method, path, body, {"Authorization": f"Bearer {self.token}", **named})

    async def put(self, metadata: object) -> Answer:
        return await self.send(
            "PUT", f"{self.path}/metadata", json.dumps(metadata).encode(), Content_Type="application/json"
        )

    async def patch(self, part: bytes, offset: int, length: int | None = None, **headers: str) -> Answer:
        told = {} if length is None else {"Upload_Length": str(length)}
        named = {"Content_Type": STREAM, "Upload_Offset": str(offset), **told, **headers}
        return await self.send("PATCH", f"{self.path}/media", part, **named)

    async def offset(self) -> int:
        answer = await self.send("HEAD", f"{self.path}/media")
        assert answer.status == 200
        return int(answer.headers["Upload-Offset"])

    async def one(self) -> dict[str, Any]:
        answer = await self.send("GET", self.path)
        assert answer.status == 200
        return dict(answer.json)

    async def download(self, **headers: str) -> Answer:
        return await self.send("GET", f"{self.path}/media", **headers)

    async def upload(self, media: MediaFile = MEDIA) -> None:
        assert (await self.put(media.metadata())).status == 200
        done = await self.patch(media.content, 0)
        assert (done.status, done.headers["Recording-State"]) == (204, "complete")


async def user(apis: Apis, name: str = "anna", recording_id: str | None = None) -> User:
    return User(apis, await apis.token(name), recording_id)


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


# Any order, any parts


async def test_metadata_first(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        told = await anna.put(MEDIA.metadata())
        assert (told.status, told.json["state"], told.json["received_bytes"]) == (200, "waiting_for_media", 0)
        done = await anna.patch(MEDIA.content, 0)
        assert (done.status, done.headers["Upload-Offset"]) == (204, "5000")
        assert (await anna.one())["state"] == "complete"
        assert (await anna.download()).body == MEDIA.content


async def test_media_first(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        told = await anna.patch(MEDIA.content, 0, 5000)
        assert (told.status, told.headers["Recording-State"]) == (204, "waiting_for_metadata")
        assert error(await anna.download()) == (409, "not_complete")
        done = await anna.put(MEDIA.metadata())
        assert (done.status, done.json["state"]) == (200, "complete")
        assert (await anna.download()).body == MEDIA.content
        assert (await anna.put(MEDIA.metadata())).status == 200


@pytest.mark.parametrize("when", [0, 1, 2, 3])
async def test_media_in_parts_and_metadata_between_them(tmp_path: Path, when: int) -> None:
    media = MediaFile(m4a(size=300_000), "audio/mp4")
    size = len(media.content)
    edges = [0, 1, 200_000, size]
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            if number == when:
                assert (await anna.put(media.metadata())).status == 200
            assert await anna.patch(media.content[begin:end], begin, size) is not None
            assert await anna.offset() == end
        if when == 3:
            assert (await anna.put(media.metadata())).json["state"] == "complete"
        answer = await anna.download()
        assert (answer.body, answer.headers["Content-Type"]) == (media.content, "audio/mp4")


async def test_a_part_can_be_downloaded(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.upload()
        part = await anna.download(Range="bytes=100-199")
        assert (part.status, part.body) == (206, MEDIA.content[100:200])
        assert part.headers["Content-Range"] == "bytes 100-199/5000"
        assert (await anna.download(Range="bytes=9000-")).status == 416


async def test_large_media_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = MediaFile(ogg_opus(8 << 20))
    batches = []
    write = Disk.write

    def writing(file: BinaryIO, parts: Iterable[bytes]) -> None:
        batches.append(sum(map(len, parts)))
        write(file, parts)

    monkeypatch.setattr(Disk, "write", staticmethod(writing))
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.upload(media)
        assert (await anna.download()).body == media.content
    # The last part that is read may go beyond a batch by as much as aiohttp reads ahead.
    assert max(batches) < intake.BATCH_BYTES + (768 << 10)


# Broken off, slow, taken over


async def begin_patch(apis: Apis, anna: User, part: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the head of a PATCH, and a part of its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", apis.port)
    writer.write(
        f"PATCH {anna.path}/media HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {anna.token}\r\n"
        f"Content-Type: {STREAM}\r\nUpload-Offset: 0\r\nUpload-Length: 5000\r\nContent-Length: 5000\r\n\r\n".encode()
    )
    writer.write(part)
    await writer.drain()
    return reader, writer


async def received(apis: Apis, anna: User) -> int:
    async with apis.store.reading() as session:
        row = await session.get(tables.Recording, anna.id)
        return -1 if row is None else row.received_bytes


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_what_came_before_a_connection_broke_is_kept(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        _, writer = await begin_patch(apis, anna, MEDIA.content[:2000])
        path = tmp_path / "atlas" / anna.id
        await eventually(path.exists)
        await close(writer)
        # The reader of a cut connection may have got less than was sent.
        kept = await anna.offset()
        assert 0 <= kept <= 2000
        assert (await anna.patch(MEDIA.content[kept:], kept)).status == 204
        assert (await anna.put(MEDIA.metadata())).json["state"] == "complete"


async def test_a_stalled_upload_ends_by_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "GRACE_S", 0.2)
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        reader, writer = await begin_patch(apis, anna, MEDIA.content[:700])
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"Upload-Offset: 700\r\n" in answer
        await close(writer)
        assert await anna.offset() == 700


async def test_a_newer_request_takes_over(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        reader, writer = await begin_patch(apis, anna, MEDIA.content[:700])
        await eventually((tmp_path / "atlas" / anna.id).exists)
        kept = await anna.offset()
        assert (await reader.read(12)).endswith(b" 409")
        await close(writer)
        assert (await anna.patch(MEDIA.content[kept:], kept)).status == 204
        assert await anna.offset() == 5000


async def test_nobody_else_breaks_off_an_upload(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        others = [await user(apis, name, anna.id) for name in ("ben", "hana")]
        reader, writer = await begin_patch(apis, anna, MEDIA.content[:700])
        await eventually((tmp_path / "atlas" / anna.id).exists)
        for other in others:
            assert (await other.send("HEAD", f"{other.path}/media")).status == 404
            assert error(await other.send("DELETE", other.path)) == (404, "not_found")
            assert error(await other.put(MEDIA.metadata())) == (404, "not_found")
            assert error(await other.patch(b"x", 0, 5000)) == (404, "not_found")
        writer.write(MEDIA.content[700:])
        assert (await reader.read(12)).endswith(b" 204")
        await close(writer)


async def test_uploads_at_once_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_apis(tmp_path) as apis:
        first, second, ben = await user(apis), await user(apis), await user(apis, "ben")
        _, writer = await begin_patch(apis, first, b"OggS")
        await eventually((tmp_path / "atlas" / first.id).exists)
        monkeypatch.setattr(places, "MAX_UPLOADS_OF_USER", 1)
        assert error(await second.patch(b"OggS", 0, 5000)) == (429, "too_many_uploads")
        assert (await ben.patch(b"OggS", 0, 5000)).status == 204
        monkeypatch.setattr(places, "MAX_UPLOADS", 1)
        assert error(await ben.patch(b"OggS", 4, 5000)) == (503, "busy")
        await close(writer)
        await first.offset()
        assert (await second.patch(b"OggS", 0, 5000)).status == 204


# Refused


async def test_media_that_is_not_what_metadata_says(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        for change, name, right in (
            ({"sha256": "0" * 64}, "sha256", MEDIA.metadata()["sha256"]),
            ({"media_type": "audio/mp4"}, "media_type", "audio/ogg"),
        ):
            # Metadata last: nothing is changed, and right metadata will do.
            late = await user(apis)
            await late.patch(MEDIA.content, 0, 5000)
            refused = await late.put(MEDIA.metadata(**change))
            assert (error(refused), refused.json["error"]["where"]) == ((422, "other_content"), f"body.{name}")
            assert refused.json["error"]["expected"].startswith(f"{right}, or other media")
            assert (await late.one())["state"] == "waiting_for_metadata"
            assert (await late.put(MEDIA.metadata())).json["state"] == "complete"
            # Metadata first: the media is thrown away, and can be sent again.
            early = await user(apis)
            await early.put(MEDIA.metadata(**change))
            thrown = await early.patch(MEDIA.content, 0)
            assert (error(thrown), thrown.headers["Upload-Offset"]) == ((422, "other_content"), "0")
            assert (thrown.json["error"]["where"], right in thrown.json["error"]["message"]) == ("body", True)
            assert f"the {name} {change[name]}" in thrown.json["error"]["expected"]
            assert await early.offset() == 0
            assert (await early.put(MEDIA.metadata())).status == 200
            assert (await early.patch(MEDIA.content, 0)).status == 204
            assert (await early.download()).body == MEDIA.content


async def test_media_of_no_known_format(tmp_path: Path) -> None:
    wave = MediaFile(b"RIFF" + bytes(500))
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.put(wave.metadata())
        refused = await anna.patch(wave.content, 0)
        assert "neither Ogg/Opus nor M4A" in refused.json["error"]["message"]
        late = await user(apis)
        await late.patch(wave.content, 0, len(wave.content))
        assert (await late.put(wave.metadata())).json["error"]["expected"].startswith("other media")


async def test_offsets_and_lengths_must_agree(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        assert error(await anna.patch(b"x", 0)) == (400, "no_length")
        assert error(await anna.patch(b"x", 1, 5000)) == (409, "wrong_offset")
        assert (await anna.send("HEAD", f"{anna.path}/media")).status == 404
        assert (await anna.patch(MEDIA.content[:10], 0, 5000)).status == 204
        gap = await anna.patch(b"x", 11)
        assert (error(gap), gap.headers["Upload-Offset"]) == ((409, "wrong_offset"), "10")
        assert error(await anna.patch(b"x", 10, 6000)) == (409, "other_length")
        assert error(await anna.put(MEDIA.metadata(media_bytes=6000))) == (409, "other_length")
        long = await anna.patch(MEDIA.content, 10)
        assert (error(long), long.headers["Upload-Offset"]) == ((413, "too_large"), "10")
        assert (await anna.patch(MEDIA.content[10:], 10)).status == 204


@pytest.mark.parametrize(
    ("headers", "status", "where"),
    [
        ({"Upload_Offset": "-1"}, 400, "Upload-Offset"),
        ({"Upload_Offset": "1" * 20}, 400, "Upload-Offset"),
        ({"Upload_Offset": "x"}, 400, "Upload-Offset"),
        ({"Upload_Length": "1.5"}, 400, "Upload-Length"),
        ({"Upload_Length": "0"}, 413, "Upload-Length"),
        ({"Upload_Length": str(models.MAX_MEDIA_BYTES + 1)}, 413, "Upload-Length"),
        ({"Content_Type": "audio/ogg"}, 415, "Content-Type"),
        ({"Tus_Resumable": "0.2.2"}, 412, "Tus-Resumable"),
    ],
)
async def test_wrong_headers_are_named(tmp_path: Path, headers: dict[str, str], status: int, where: str) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        answer = await anna.patch(b"x", 0, 5000, **headers)
        assert (answer.status, answer.json["error"]["where"]) == (status, where)
        assert answer.json["error"]["expected"]
        assert await received(apis, anna) == -1


async def test_a_length_beyond_the_bound_is_told_the_bound(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        for length in (1 << 40, models.MAX_MEDIA_BYTES + 1):
            refused = await anna.patch(b"x", 0, length)
            assert f"from 1 to {models.MAX_MEDIA_BYTES}" in refused.json["error"]["expected"]
        assert f"from 1 to {models.MAX_MEDIA_BYTES}" in (await anna.patch(b"x", 0)).json["error"]["expected"]


async def test_wrong_metadata_is_named(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        for change, status, where in (
            ({"media_bytes": 0}, 422, "body.media_bytes"),
            ({"media_bytes": models.MAX_MEDIA_BYTES + 1}, 422, "body.media_bytes"),
            ({"sha256": "A" * 64}, 422, "body.sha256"),
            ({"media_type": "audio/wav"}, 422, "body.media_type"),
            ({"started_at": "now"}, 422, "body.started_at"),
            ({"more": 1}, 422, "body.more"),
            ({"ended_at": "2026-11-27T08:00:00Z"}, 400, "body.ended_at"),
        ):
            answer = await anna.put(MEDIA.metadata(**change))
            assert (answer.status, answer.json["error"]["where"]) == (status, where)
        for wrong in ("x", str(uuid.uuid4()).upper(), "..%2F..%2Fetc"):
            assert (await User(apis, anna.token, wrong).put(MEDIA.metadata())).status == 422


async def test_a_whole_recording_is_not_changed(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.upload()
        assert error(await anna.patch(b"x", 5000)) == (409, "complete")
        assert error(await anna.put(MEDIA.metadata(participants=[]))) == (409, "complete")
        assert error(await anna.send("DELETE", anna.path)) == (409, "complete")
        assert (await anna.download()).body == MEDIA.content


async def test_an_unfinished_recording_can_be_discarded(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.patch(MEDIA.content[:10], 0, 5000)
        assert (await anna.send("DELETE", anna.path)).status == 204
        assert (await anna.send("DELETE", anna.path)).status == 404
        assert not (tmp_path / "atlas" / anna.id).exists()
        await anna.upload()


async def test_bounds_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_apis(tmp_path) as apis:
        first, second = await user(apis), await user(apis)
        await first.put(MEDIA.metadata())
        monkeypatch.setattr(recordings, "MAX_UNFINISHED_OF_USER", 1)
        assert error(await second.put(MEDIA.metadata())) == (429, "too_many_unfinished")
        assert error(await second.patch(b"x", 0, 5000)) == (429, "too_many_unfinished")
        assert (await first.patch(MEDIA.content, 0)).status == 204
        monkeypatch.setattr(recordings, "MAX_FOLDER_BYTES", 9999)
        assert (await second.put(MEDIA.metadata())).status == 200
        assert error(await second.patch(MEDIA.content, 0)) == (507, "folder_full")


async def test_what_one_user_announces_takes_nothing_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "MAX_BYTES_OF_USER", 12_000)
    monkeypatch.setattr(recordings, "MAX_FOLDER_BYTES", 9999)
    async with open_apis(tmp_path) as apis:
        greedy = [await user(apis) for _ in range(3)]
        assert [(await one.put(MEDIA.metadata())).status for one in greedy] == [200, 200, 507]
        assert error(await greedy[2].patch(MEDIA.content, 0, 5000)) == (507, "too_much_of_user")
        # New metadata cannot announce what the first could not.
        larger = MEDIA.metadata() | {"media_bytes": 9000}
        assert error(await greedy[1].put(larger)) == (507, "too_much_of_user")
        await (await user(apis, "ben")).upload()


async def test_what_uploads_have_still_to_send_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_FOLDER_BYTES", 9999)
    async with open_apis(tmp_path) as apis:
        anna, ben = await user(apis), await user(apis, "ben")
        _, writer = await begin_patch(apis, anna, MEDIA.content[:700])
        await eventually((tmp_path / "atlas" / anna.id).exists)
        assert error(await ben.patch(MEDIA.content, 0, 5000)) == (507, "folder_full")
        await close(writer)
        await anna.offset()
        assert (await ben.patch(MEDIA.content, 0, 5000)).status == 204


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EIO, 500)])
@pytest.mark.parametrize("step", ["write", "finish", "open_at"])
async def test_a_disk_that_fails_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, status: int
) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.patch(MEDIA.content[:10], 0, 5000)

        def fails(*_: object, **__: object) -> None:
            raise OSError(number, "it failed")

        if step == "finish":
            finish = Disk.finish

            def fails(file: BinaryIO, size: int) -> None:  # type: ignore[misc]
                finish(file, size)
                raise OSError(number, "it failed")

        with monkeypatch.context() as patch:
            patch.setattr(Disk, step, staticmethod(fails))
            refused = await anna.patch(MEDIA.content[10:], 10)
        assert (refused.status, refused.headers["Upload-Offset"]) == (status, "10")
        assert await anna.offset() == 10
        assert (await anna.patch(MEDIA.content[10:], 10)).status == 204
        assert (await anna.put(MEDIA.metadata())).json["state"] == "complete"


async def test_media_that_is_gone_from_the_disk_is_asked_for_again(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.patch(MEDIA.content[:10], 0, 5000)
        (tmp_path / "atlas" / anna.id).write_bytes(MEDIA.content[:4])
        lost = await anna.patch(MEDIA.content[10:], 10)
        assert (error(lost), lost.headers["Upload-Offset"]) == ((409, "lost"), "4")
        assert (await anna.patch(MEDIA.content[4:], 4)).status == 204


# Who sees what


async def test_users_see_their_own_and_administrators_the_firms(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna, ben = await user(apis), await user(apis, "ben")
        await anna.upload()
        await ben.upload()
        admin, fay = await user(apis, "atlas-admin", anna.id), await user(apis, "fay", anna.id)

        async def listed(who: User, query: str = "") -> set[str]:
            answer = await who.send("GET", f"/recordings/v1{query}")
            assert answer.status == 200
            return {each["recording_id"] for each in answer.json["recordings"]}

        assert await listed(anna) == {anna.id}
        assert await listed(admin) == {anna.id, ben.id}
        assert await listed(fay) == set()
        assert (await admin.download()).body == MEDIA.content
        for stranger in (fay, User(apis, ben.token, anna.id)):
            assert (await stranger.download()).status == 404
            assert (await stranger.put(MEDIA.metadata())).status == 404
            assert (await stranger.patch(b"x", 0, 10)).status == 404
            assert (await stranger.send("DELETE", anna.path)).status == 404
        assert (await User(apis, "wrong", anna.id).download()).status == 401


async def test_lists_come_in_pages_and_are_filtered(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        everyone = [User(apis, anna.token) for _ in range(5)]
        for each in everyone[:3]:
            await each.upload()
        await everyone[3].put(MEDIA.metadata(call_id=None))
        await everyone[4].patch(b"x", 0, 10)
        found: list[str] = []
        token = ""
        while True:
            page = (await anna.send("GET", f"/recordings/v1?page_size=2{token}")).json
            found += [each["recording_id"] for each in page["recordings"]]
            if page["next_page_token"] is None:
                break
            token = f"&page_token={page['next_page_token']}"
        assert found == [each.id for each in reversed(everyone)]

        async def count(query: str) -> int:
            return len((await anna.send("GET", f"/recordings/v1?{query}")).json["recordings"])

        states = ("complete", "waiting_for_media", "waiting_for_metadata")
        assert [await count(f"state={state}") for state in states] == [3, 1, 1]
        assert await count(f"call_id={MEDIA.metadata()['call_id']}") == 3
        for wrong in ("page_size=0", "page_size=+1", "state=lost", "page_token=x", "other=1"):
            assert (await anna.send("GET", f"/recordings/v1?{wrong}")).status == 422


# By themselves


async def test_old_unfinished_recordings_expire(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        whole, part = await user(apis), await user(apis)
        await whole.upload()
        await part.patch(MEDIA.content[:10], 0, 5000)
        assert await apis.recordings.sweep() == 0
        async with apis.store.writing() as session:
            for each in (whole, part):
                row = await session.get_one(tables.Recording, each.id)
                row.created_at -= recordings.UNFINISHED_LIFETIME_S + 1
        assert await apis.recordings.sweep() == 1
        assert not (tmp_path / "atlas" / part.id).exists()
        assert (await part.send("GET", part.path)).status == 404
        assert (await whole.download()).body == MEDIA.content


@pytest.mark.parametrize(("content", "state"), [(MEDIA.content, "complete"), (bytes(5000), "waiting_for_media")])
async def test_what_was_received_whole_before_a_kill_is_checked_at_the_start(
    tmp_path: Path, content: bytes, state: str
) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.put(MEDIA.metadata())
        (tmp_path / "atlas").mkdir()
        (tmp_path / "atlas" / anna.id).write_bytes(content)
        async with apis.store.writing() as session:
            (await session.get_one(tables.Recording, anna.id)).received_bytes = 5000
        await apis.recordings.finish_received()
        assert (await anna.one())["state"] == state
        assert await anna.offset() == (5000 if state == "complete" else 0)


async def test_completion_is_in_the_audit(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        anna = await user(apis)
        await anna.upload()
        entries = (await apis.post("/audit/v1/entries", {"action": "recording.complete"})).json["entries"]
        assert [(each["actor"], each["object"]) for each in entries] == [("anna", anna.id)]


async def test_a_stop_ends_uploads_and_keeps_what_they_have_received(tmp_path: Path) -> None:
    database = str(tmp_path / "e.db")
    async with open_apis(tmp_path, database=database) as apis:
        anna = await user(apis)
        reader, writer = await begin_patch(apis, anna, MEDIA.content[:700])
        path = tmp_path / "atlas" / anna.id
        await eventually(path.exists)
    await close(writer)
    assert b" 204 " not in await reader.read()
    async with open_apis(tmp_path, database=database) as apis:
        again = await user(apis, recording_id=anna.id)
        kept = await again.offset()
        assert kept in {0, 700}
        assert path.stat().st_size == kept
        assert (await again.patch(MEDIA.content[kept:], kept)).status == 204
