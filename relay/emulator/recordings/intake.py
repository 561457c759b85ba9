"""One request with media: read as it comes, bounded in memory and in time, and written by threads.

Life of a byte: the socket → at most ``BATCH_BYTES`` in memory → the file → fsync → the database → the acknowledgement.
What has come before a connection broke off is kept, so the client goes on from there.
"""

from __future__ import annotations

import asyncio
import errno
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog
from aiohttp import ClientError, web
from aiohttp.streams import StreamReader

from relay.emulator.http.errors import ApiError
from relay.emulator.recordings.disk import Disk
from relay.emulator.recordings.places import Place
from relay.tasks import in_daemon_thread

log = structlog.get_logger()

# Written at once. Larger ones are no faster, and each upload holds one of them while it reads the next.
BATCH_BYTES = 256 << 10
# The first bytes come within this time, and at least this many in each second after it. A phone line is faster.
GRACE_S = 30.0
MIN_BYTES_PER_S = 1024
# No request lasts longer; the client goes on with another one.
MAX_REQUEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Taken:
    """How far a request came: the media's size on disk now, and why it ended early, if it did."""

    size: int
    refused: ApiError | None = None


async def take_in(content: StreamReader, place: Place, disk: Disk, path: Path, *, offset: int, total: int) -> Taken:
    """Append a request's body to a file, from ``offset`` up to ``total``. What is counted as taken is on disk."""
    try:
        file, size = await in_daemon_thread(lambda: disk.open_at(path, offset), "recording open")
    except OSError as error:
        return Taken(offset, _disk_failed(error))
    if file is None:
        message = f"Of the media, {offset - size} bytes are gone from the disk."
        return Taken(size, ApiError(409, "lost", message, where="Upload-Offset", expected=str(size)))
    try:
        taken = await _pump(content, place, disk, file, offset=offset, total=total)
    except BaseException:
        file.close()
        raise
    return await _finish(file, disk, offset, taken)


async def _pump(content: StreamReader, place: Place, disk: Disk, file: BinaryIO, *, offset: int, total: int) -> Taken:
    """Read and write until the body ends, or something is wrong with it."""
    loop = asyncio.get_running_loop()
    begin, size, read = loop.time(), offset, offset
    batch: list[bytes] = []
    refused: ApiError | None = None
    more = True
    while more and refused is None:
        try:
            async with place.reading(min(begin + GRACE_S + (read - offset) / MIN_BYTES_PER_S, begin + MAX_REQUEST_S)):
                part = await content.readany()
        except TimeoutError:
            refused = _superseded() if place.stopped else _too_slow()
            part = b""
        except (ClientError, ConnectionError, web.RequestPayloadError):
            refused, part = _broken_off(), b""
        more = bool(part) or not content.at_eof()
        read += len(part)
        batch.append(part)
        if read > total:
            # Nothing of a request is kept that has more than it should: it may be of another recording.
            return Taken(offset, _too_much(total))
        if read - size >= BATCH_BYTES or not more or refused is not None:
            try:
                await in_daemon_thread(functools.partial(disk.write, file, batch), "recording write")
            except OSError as error:
                return Taken(size, _disk_failed(error))
            size, batch = read, []
    return Taken(size, refused)


async def _finish(file: BinaryIO, disk: Disk, offset: int, taken: Taken) -> Taken:
    try:
        await in_daemon_thread(lambda: disk.finish(file, taken.size), "recording sync")
    except OSError as error:
        # Of what was written since, nobody can say what is on disk.
        return Taken(offset, _disk_failed(error))
    return taken


def _disk_failed(error: OSError) -> ApiError:
    log.error("recording not written", error=str(error))
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return ApiError(507, "disk_full", "The emulator's disk is full.", expected="more space, and the request again")
    return ApiError(500, "disk_failed", f"The emulator's disk failed: {error.strerror}.", expected="the request again")


def _broken_off() -> ApiError:
    return ApiError(400, "broken_off", "The request broke off.", where="body", expected="the rest, in another request")


def _superseded() -> ApiError:
    message = "A newer request has taken over this recording."
    return ApiError(409, "superseded", message, where="path", expected="one upload of a recording at a time")


def _too_slow() -> ApiError:
    message = "The body came too slowly. What has come is kept."
    expected = (
        f"at least {MIN_BYTES_PER_S} bytes a second, for at most {MAX_REQUEST_S:.0f} s; go on with another request"
    )
    return ApiError(408, "too_slow", message, where="body", expected=expected)


def _too_much(total: int) -> ApiError:
    message = "The body goes beyond the end of the media. Nothing of this request is kept."
    return ApiError(413, "too_large", message, where="body", expected=f"{total} bytes in all, as announced")
