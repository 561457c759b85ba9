"""Uploads to a recorder that fails as it is told: what it has is not sent again, and what it refuses is told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from relay.emulator.http.errors import ApiError
from relay.emulator.softphone import uploading
from relay.emulator.softphone.errors import UploadFailed
from relay.emulator.softphone.recorder import Recorder, Recording
from relay.emulator.softphone.rest import Rest, open_http
from relay.emulator.softphone.uploading import upload


class FakeRecorder:
    """Keeps what it is sent. ``failures`` are the statuses of the next answers to media, and how much it keeps then."""

    def __init__(self) -> None:
        self.metadata: dict[str, object] = {}
        self.media = b""
        self.total = 0
        self.parts: list[tuple[int, int]] = []
        self.failures: list[tuple[int, int]] = []
        self.refused_metadata = 0

    @property
    def is_complete(self) -> bool:
        return bool(self.metadata) and len(self.media) == self.total > 0

    async def put_metadata(self, request: web.Request) -> web.Response:
        if self.refused_metadata:
            return ApiError(self.refused_metadata, "refused", "No.", expected="something else").response()
        self.metadata = await request.json()
        return web.json_response({})

    async def head(self, request: web.Request) -> web.Response:
        if not self.total:
            raise web.HTTPNotFound
        state = "complete" if self.is_complete else "waiting_for_media"
        return web.Response(headers={"Upload-Offset": str(len(self.media)), "Recording-State": state})

    async def patch(self, request: web.Request) -> web.Response:
        offset, part = int(request.headers["Upload-Offset"]), await request.read()
        self.total = int(request.headers["Upload-Length"])
        if offset != len(self.media):
            return ApiError(409, "wrong_offset", "Another offset.", expected=str(len(self.media))).response()
        self.parts.append((offset, len(part)))
        if self.failures:
            status, kept = self.failures.pop(0)
            self.media += part[:kept]
            if not status:
                assert request.transport is not None
                request.transport.abort()
            return ApiError(status or 500, "failed", "The disk is full." if status == 507 else "Later.").response()
        self.media += part
        return web.Response(status=204)


@contextlib.asynccontextmanager
async def recorder(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeRecorder, Rest]]:
    monkeypatch.setattr(uploading, "FIRST_PAUSE_S", 0.001)
    fake, app = FakeRecorder(), web.Application()
    app.router.add_put("/recordings/v1/{id}/metadata", fake.put_metadata)
    app.router.add_route("HEAD", "/recordings/v1/{id}/media", fake.head)
    app.router.add_patch("/recordings/v1/{id}/media", fake.patch)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    http = open_http(None, None)
    try:
        yield fake, Rest(f"http://127.0.0.1:{runner.addresses[0][1]}", http)
    finally:
        await http.close()
        await runner.cleanup()


def recording() -> Recording:
    made = Recorder()
    for number in range(100):
        made.tick(said=number % 2 == 0, heard=True)
    return made.finish("11111111-2222-3333-4444-555555555555", "anna", "sPK-10000001-100001", ("anna", "ben"))


async def test_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = recording()
    async with recorder(monkeypatch) as (fake, rest):
        assert await upload(rest, sent, part_bytes=1000) is sent
    assert fake.media == sent.media
    assert [size for _, size in fake.parts[:-1]] == [1000] * (len(sent.media) // 1000)
    assert (fake.metadata["sha256"], fake.metadata["media_bytes"]) == (sent.sha256, len(sent.media))
    assert fake.metadata["participants"] == ["anna", "ben"]


@pytest.mark.parametrize("status", [0, 408, 429, 500, 503])
async def test_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    sent = recording()
    async with recorder(monkeypatch) as (fake, rest):
        fake.failures = [(status, 700), (status, 0)]
        await upload(rest, sent, part_bytes=1000)
    assert fake.media == sent.media
    assert [offset for offset, _ in fake.parts[:3]] == [0, 700, 700]


async def test_what_was_whole_although_the_answer_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = recording()
    async with recorder(monkeypatch) as (fake, rest):
        fake.failures = [(500, len(sent.media))]
        await upload(rest, sent)
    assert fake.parts == [(0, len(sent.media))]


@pytest.mark.parametrize(("status", "said"), [(507, "The disk is full"), (413, "Later"), (403, "Later")])
async def test_what_no_other_try_would_change(monkeypatch: pytest.MonkeyPatch, status: int, said: str) -> None:
    async with recorder(monkeypatch) as (fake, rest):
        fake.failures = [(status, 0)] * 2
        with pytest.raises(UploadFailed, match=said):
            await upload(rest, recording())
        assert len(fake.parts) == 1


async def test_metadata_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recorder(monkeypatch) as (fake, rest):
        fake.refused_metadata = 422
        with pytest.raises(UploadFailed, match=r"422: No\. Expected: something else"):
            await upload(rest, recording())
        assert fake.parts == []


async def test_it_gives_up_after_so_many_tries_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recorder(monkeypatch) as (fake, rest):
        fake.failures = [(500, 0)] * 100
        with pytest.raises(UploadFailed, match="500"):
            await upload(rest, recording())
        assert len(fake.parts) == uploading.MAX_ATTEMPTS
