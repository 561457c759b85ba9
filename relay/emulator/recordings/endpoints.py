"""The recording upload over HTTP. As in the core protocol of tus 1.0.0, HEAD asks for the offset and PATCH goes on.

Unlike in tus, the client makes up the recording's id, so nothing has to be created first, and the first PATCH says with
``Upload-Length`` how long the whole will be, unless metadata has said so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from relay.emulator.apis.models import time_of
from relay.emulator.http.endpoints import Call, Endpoint, Handler, Security
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import Site
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole
from relay.emulator.recordings import models
from relay.emulator.recordings.formats import MediaType
from relay.emulator.recordings.intake import MAX_REQUEST_S
from relay.emulator.recordings.recordings import Recordings
from relay.emulator.recordings.rules import metadata_of, state_of
from relay.emulator.store import tables

BASE = "/recordings/v1"
MEDIA = BASE + "/{recording_id}/media"
TUS_VERSION = "1.0.0"
OFFSET_STREAM = "application/offset+octet-stream"
# Lengths have at most nine digits, so more are a mistake.
MAX_DIGITS = 12
# How long it may take to read the largest recording from a slow disk, for its checksum.
CHECK_TIMEOUT_S = 120.0
_RECORDING = {404: "You have no such recording."}


class RecordingUpload:
    """The endpoints. ``security`` returns an ``Owner``."""

    def __init__(self, recordings: Recordings, security: Security) -> None:
        self._recordings = recordings
        self._security = security

    def register(self, site: Site) -> None:
        """Serve them."""
        site.add(
            self._endpoint("GET", BASE, "Recordings, the newest first", self._list, answer=models.RecordingList),
            self._endpoint("GET", BASE + "/{recording_id}", "One recording", self._one, answer=models.Recording),
            self._endpoint(
                "DELETE", BASE + "/{recording_id}", "Remove one that is not whole", self._delete, status=204
            ),
            Endpoint(
                HostRole.RECORDING,
                "PUT",
                BASE + "/{recording_id}/metadata",
                Mark.INVENTED,
                "Metadata, before or after the media",
                self._metadata,
                body=models.Metadata,
                path_model=models.RecordingPath,
                answer=models.Recording,
                security=self._security,
                timeout_s=CHECK_TIMEOUT_S,
                errors={**_BOUNDS, 409: "The recording is whole, or its media has another length."},
                description="That metadata and media come apart, in any order, is documented; this form is not.",
            ),
        )
        self._register_media(site)

    def _register_media(self, site: Site) -> None:
        upload = {
            **_BOUNDS,
            400: "A header is missing or wrong, or the request broke off.",
            408: "The body came too slowly. Upload-Offset says where to go on.",
            409: "The offset or the length differs, or the recording is whole. Upload-Offset says where to go on.",
            412: f"Tus-Resumable is not {TUS_VERSION}.",
            422: "The media is not what its metadata says. It was thrown away: begin again.",
            500: "The disk failed, or another fault of ours.",
        }
        offset = {"Upload-Offset": "How many bytes of the media are on disk."}
        site.add(
            self._endpoint("HEAD", MEDIA, "How much of the media is on disk", self._head, headers=offset),
            Endpoint(
                HostRole.RECORDING,
                "PATCH",
                MEDIA,
                Mark.INVENTED,
                "Send media, from Upload-Offset on",
                self._patch,
                path_model=models.RecordingPath,
                status=204,
                security=self._security,
                reads_body=False,
                timeout_s=MAX_REQUEST_S + CHECK_TIMEOUT_S,
                body_types=(OFFSET_STREAM,),
                errors=upload,
                headers=offset,
                reads_headers=_UPLOAD_HEADERS,
            ),
            self._endpoint("GET", MEDIA, "The media of a whole recording", self._download, types=tuple(MediaType)),
        )

    def _endpoint(
        self,
        method: str,
        path: str,
        summary: str,
        handler: Handler,
        *,
        answer: type[BaseModel] | None = None,
        status: int = 200,
        types: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """An endpoint without a body."""
        single = "{" in path
        return Endpoint(
            HostRole.RECORDING,
            method,
            path,
            Mark.INVENTED,
            summary,
            handler,
            answer=answer,
            status=status,
            content_types=types,
            path_model=models.RecordingPath if single else None,
            query=None if single else models.ListQuery,
            security=self._security,
            errors={**_RECORDING, 409: "The recording is whole, or is not whole, or is in use."} if single else {},
            headers=headers or {},
        )

    async def _list(self, call: Call) -> models.RecordingList:
        rows, token = await self._recordings.page(call.caller, call.query)
        return models.RecordingList(recordings=[view_of(row) for row in rows], next_page_token=token)

    async def _one(self, call: Call) -> models.Recording:
        return view_of(await self._recordings.find(call.caller, call.path.recording_id))

    async def _delete(self, call: Call) -> web.Response:
        await self._recordings.discard(call.caller, call.path.recording_id)
        return web.Response(status=204)

    async def _metadata(self, call: Call) -> models.Recording:
        return view_of(await self._recordings.put_metadata(call.caller, call.path.recording_id, call.body))

    async def _head(self, call: Call) -> web.Response:
        row = await self._recordings.settled(call.caller, call.path.recording_id)
        headers = {**_progress(row), "Cache-Control": "no-store"}
        if row.media_bytes is not None:
            headers["Upload-Length"] = str(row.media_bytes)
        return web.Response(headers=headers)

    async def _patch(self, call: Call) -> web.Response:
        request = call.request
        if (version := request.headers.get("Tus-Resumable", TUS_VERSION)) != TUS_VERSION:
            message = f"Tus-Resumable is {version[:20]!r}."
            raise ApiError(412, "other_version", message, where="Tus-Resumable", expected=TUS_VERSION)
        if request.content_type != OFFSET_STREAM:
            message = f"The body has the type {request.content_type[:100]!r}."
            raise ApiError(415, "wrong_type", message, where="Content-Type", expected=OFFSET_STREAM)
        offset, length = _number(request, "Upload-Offset", least=0), _number(request, "Upload-Length", least=1)
        if offset is None:
            message = "The header Upload-Offset is missing."
            raise ApiError(400, "no_offset", message, where="Upload-Offset", expected="0, or what HEAD says")
        row = await self._recordings.append(
            call.caller, call.path.recording_id, request.content, offset=offset, length=length
        )
        return web.Response(status=204, headers=_progress(row))

    async def _download(self, call: Call) -> web.StreamResponse:
        return media_response(self._recordings, await self._recordings.find(call.caller, call.path.recording_id))


_BYTES: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": models.MAX_MEDIA_BYTES}
_UPLOAD_HEADERS: dict[str, dict[str, Any]] = {
    "Upload-Offset": {
        "required": True,
        "schema": _BYTES,
        "description": "Where this part begins: what HEAD says, or 0",
    },
    "Upload-Length": {"schema": _BYTES | {"minimum": 1}, "description": "Of the whole media, unless metadata has come"},
    "Tus-Resumable": {"schema": {"const": TUS_VERSION}},
}
_BOUNDS = {
    429: "You have too many recordings that are not whole, or upload too many at once.",
    503: "Too many uploads at once: Retry-After says how long to wait.",
    507: "There is no space for more.",
}


def media_response(recordings: Recordings, row: tables.Recording) -> web.FileResponse:
    """The media of a whole recording, also in parts (Range). Raises ApiError 409 if it is not whole."""
    if row.completed_at is None or row.media_type is None:
        message = "The recording is not whole yet."
        raise ApiError(409, "not_complete", message, where="path", expected="a recording with the state complete")
    headers = {
        "Content-Type": row.media_type,
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    return web.FileResponse(recordings.media_path(row), headers=headers)


def view_of(row: tables.Recording) -> models.Recording:
    """A recording as clients see it."""
    return models.Recording(
        recording_id=row.recording_id,
        state=state_of(row),
        user_id=row.user_id,
        received_bytes=row.received_bytes,
        media_bytes=row.media_bytes,
        media_type=None if row.media_type is None else MediaType(row.media_type),
        sha256=row.sha256,
        metadata=metadata_of(row),
        created_at=time_of(row.created_at),
        completed_at=None if row.completed_at is None else time_of(row.completed_at),
    )


def _progress(row: tables.Recording) -> dict[str, str]:
    return {
        "Tus-Resumable": TUS_VERSION,
        "Upload-Offset": str(row.received_bytes),
        "Recording-State": str(state_of(row)),
    }


def _number(request: web.Request, header: str, *, least: int) -> int | None:
    value = request.headers.get(header)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
        message = f"The header {header} is {value[:20]!r}."
        expected = f"a number of bytes, from {least} to {models.MAX_MEDIA_BYTES}"
        raise ApiError(400, "wrong_header", message, where=header, expected=expected)
    return int(value)
