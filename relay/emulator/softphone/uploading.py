"""Uploads a recording to the recorder (jrec): metadata and media apart, and media in parts that can be resumed.

A part that fails is not sent again blindly: the recorder is asked how much it has, and the upload goes on from there.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from relay.emulator.softphone.errors import SoftphoneError, Unreachable, UploadFailed
from relay.emulator.softphone.recorder import Recording
from relay.emulator.softphone.rest import AnswerError, Rest

# A part takes one request. A minute of voice is 180 KB, so most recordings are one part.
PART_BYTES = 256 * 1024
# A recorder that restarts is back within this many tries, with pauses that double from the first.
MAX_ATTEMPTS = 8
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
# Answers that another try may change: too slow, too many at once, another request has the recording, faults.
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
_COMPLETE = "complete"


async def upload(rest: Rest, recording: Recording, *, part_bytes: int = PART_BYTES) -> Recording:
    """Upload it whole. Returns it. Raises UploadFailed."""
    path = f"/recordings/v1/{recording.recording_id}"
    pause_s, attempts = FIRST_PAUSE_S, 0
    offset: int | None = 0
    described = False
    while True:
        try:
            if not described:
                await rest.request("PUT", f"{path}/metadata", json=_metadata(recording))
                described = True
            if offset is None:
                offset = await _offset(rest, path, len(recording.media))
            while offset < len(recording.media):
                offset = await _send(rest, path, recording.media, offset, part_bytes)
                attempts = 0
            return recording
        except (AnswerError, Unreachable) as error:
            attempts += 1
            final = isinstance(error, AnswerError) and error.status not in _AGAIN
            if final or attempts >= MAX_ATTEMPTS:
                raise UploadFailed(
                    f"recording {recording.recording_id} of call {recording.call_id}: {error}"
                ) from error
            offset = None if described else 0
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


def _metadata(recording: Recording) -> dict[str, object]:
    ended_at = recording.started_at + timedelta(seconds=recording.duration_s)
    return {
        "call_id": recording.call_id,
        "line": recording.line,
        "started_at": recording.started_at.isoformat(),
        "ended_at": ended_at.isoformat(),
        "participants": list(recording.participants),
        "media_type": recording.media_type,
        "media_bytes": len(recording.media),
        "sha256": recording.sha256,
    }


async def _offset(rest: Rest, path: str, total: int) -> int:
    """How much the recorder has."""
    try:
        headers = await rest.head(f"{path}/media")
    except AnswerError as error:
        if error.status == 404:
            return 0
        raise
    if headers.get("Recording-State") == _COMPLETE:
        return total
    return _number(headers.get("Upload-Offset", ""), total)


async def _send(rest: Rest, path: str, media: bytes, offset: int, part_bytes: int) -> int:
    """Send the next part. Returns the new offset."""
    headers = {
        "Content-Type": "application/offset+octet-stream",
        "Upload-Offset": str(offset),
        "Upload-Length": str(len(media)),
        "Tus-Resumable": "1.0.0",
    }
    part = media[offset : offset + part_bytes]
    await rest.request("PATCH", f"{path}/media", headers=headers, data=part)
    return offset + len(part)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= most):
        raise SoftphoneError(f"Upload-Offset {text[:20]!r}: expected a number up to {most}")
    return int(text)
