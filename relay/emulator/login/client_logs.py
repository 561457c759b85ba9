"""Logs that clients upload: text, one file each. Their size and number are bounded, for each user and in all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog
from sqlalchemy import delete, select

from relay import writing
from relay.emulator.http.errors import ApiError
from relay.emulator.store import Store, tables
from relay.rate_limit import RateLimit

# A day of a chatty client, compressed.
MAX_UPLOAD_BYTES = 1024 * 1024
# What that may become when it is unpacked: logs shrink to a tenth. More is a bomb.
MAX_LOG_BYTES = 16 * 1024 * 1024
# The oldest logs of a user make room for new ones.
MAX_LOGS_PER_USER = 20
# Logs of all these days, unpacked.
MAX_BYTES_PER_USER = 64 * 1024 * 1024
# Of all users. A laptop can spare a gigabyte, and a test of a large floor has hundreds of users who log little.
MAX_TOTAL_BYTES = 1024 * 1024 * 1024
# At most 1 MiB each. One takes a tenth of a second, so the last of them waits for some seconds.
MAX_WAITING = 50
# A client has one log at a time. Others must not lose their place to a user with many.
MAX_WAITING_OF_USER = 5
# A warning that the folder is full in this time.
WARNINGS_PER_S = 0.02
TYPES = ("text/plain", "application/gzip")

log = structlog.get_logger()


class ClientLogs:
    """Keeps logs in a folder, and their names in the database."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        # Each takes all of a core and twice the memory of its text for a moment.
        self._one = asyncio.Lock()
        self._waiting: Counter[str] = Counter()
        # What the files have in all; None if nobody has looked yet.
        self._total_bytes: int | None = None
        self._warnings = RateLimit(WARNINGS_PER_S)

    async def keep(self, user_id: str, content_type: str, read: Callable[[], Awaitable[bytes]]) -> tables.ClientLog:
        """Keep a log, which ``read`` reads. It is on disk when this returns. Raises ApiError."""
        self._check_waiting(user_id)
        self._waiting[user_id] += 1
        try:
            raw = await read()
            async with self._one:
                return await self._keep(user_id, await asyncio.to_thread(_text_of, content_type, raw))
        finally:
            self._waiting[user_id] -= 1
            self._waiting += Counter()

    def _check_waiting(self, user_id: str) -> None:
        headers = {"Retry-After": "5"}
        if self._waiting[user_id] >= MAX_WAITING_OF_USER:
            expected = f"at most {MAX_WAITING_OF_USER} at once"
            raise ApiError(429, "too_many", "You upload too many logs at once.", expected=expected, headers=headers)
        if self._waiting.total() >= MAX_WAITING:
            message = "Too many logs at once."
            raise ApiError(503, "busy", message, expected="another attempt in 5 s", headers=headers)

    async def _keep(self, user_id: str, text: bytes) -> tables.ClientLog:
        kept = tables.ClientLog(
            log_id=str(uuid.uuid4()), user_id=user_id, received_at=time.time(), size_bytes=len(text)
        )
        old = await self._pushed_out(kept)
        await asyncio.to_thread(self._write, kept.log_id, text, sum(each.size_bytes for each in old))
        try:
            await self._register(kept, old)
        except BaseException:
            await asyncio.to_thread(self._remove, kept.log_id)
            raise
        for each in old:
            await asyncio.to_thread(self._remove, each.log_id)
        return kept

    async def _pushed_out(self, new: tables.ClientLog) -> list[tables.ClientLog]:
        """The user's logs that must go for the new one."""
        logs = tables.ClientLog
        async with self._store.reading() as session:
            newest = select(logs).where(logs.user_id == new.user_id).order_by(logs.received_at.desc())
            known = (await session.scalars(newest)).all()
        sizes = itertools.accumulate((each.size_bytes for each in known), initial=new.size_bytes)
        next(sizes)
        stay = sum(size <= MAX_BYTES_PER_USER for size in itertools.islice(sizes, MAX_LOGS_PER_USER - 1))
        return list(known[stay:])

    async def _register(self, new: tables.ClientLog, old: Sequence[tables.ClientLog]) -> None:
        logs = tables.ClientLog
        async with self._store.writing() as session:
            if old:
                await session.execute(delete(logs).where(logs.log_id.in_([each.log_id for each in old])))
            session.add(new)

    def _path(self, log_id: str) -> Path:
        return self._folder / f"{log_id}.log"

    # In a thread, one at a time

    def _write(self, log_id: str, text: bytes, makes_room: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        most = MAX_TOTAL_BYTES + makes_room - len(text)
        if self._total_bytes is None or self._total_bytes > most:
            # Someone may have removed files.
            self._total_bytes = sum(each.stat().st_size for each in os.scandir(self._folder))
        if self._total_bytes > most:
            raise self._full()
        writing.write_new(self._path(log_id), text, mode=0o600)
        self._total_bytes += len(text)

    def _full(self) -> ApiError:
        if self._warnings.allows(time.monotonic(), ""):
            log.warning("the folder of client logs is full", folder=str(self._folder), most_bytes=MAX_TOTAL_BYTES)
        message = f"The emulator has {MAX_TOTAL_BYTES >> 20} MiB of client logs, and keeps no more."
        expected = f"files removed from the folder {self._folder.name}, which is in the emulator's folder"
        return ApiError(507, "logs_full", message, expected=expected)

    def _remove(self, log_id: str) -> None:
        # It may be gone already.
        with contextlib.suppress(FileNotFoundError):
            size = self._path(log_id).stat().st_size
            self._path(log_id).unlink()
            self._total_bytes = None if self._total_bytes is None else self._total_bytes - size


def _text_of(content_type: str, raw: bytes) -> bytes:
    text = _unpacked(raw) if content_type == "application/gzip" else raw
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"The log is not UTF-8: byte {error.start} is wrong."
        raise ApiError(400, "not_text", message, where="body", expected="text in UTF-8") from None
    return text


def _unpacked(raw: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(raw, MAX_LOG_BYTES)
    except zlib.error as error:
        raise ApiError(400, "not_gzip", f"The body is not gzip: {error}.", where="body", expected="gzip") from None
    if unpacker.unconsumed_tail:
        message = "The log is too large when it is unpacked."
        raise ApiError(413, "too_large", message, where="body", expected=f"at most {MAX_LOG_BYTES} bytes")
    if not unpacker.eof:
        raise ApiError(400, "not_gzip", "The gzip body ends too early.", where="body", expected="all of it")
    return text
