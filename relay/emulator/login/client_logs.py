"""Logs that clients upload: text, bounded in size and number, one file each."""

from __future__ import annotations

import asyncio
import time
import uuid
import zlib
from pathlib import Path

from sqlalchemy import delete, select

from relay import writing
from relay.emulator.http.errors import ApiError
from relay.emulator.store import Store, tables

# A day of a chatty client, compressed.
MAX_UPLOAD_BYTES = 1024 * 1024
# What that may become when it is unpacked: logs shrink to a tenth. More is a bomb.
MAX_LOG_BYTES = 16 * 1024 * 1024
# The oldest logs of a user make room for new ones.
MAX_LOGS_PER_USER = 20
# At most 1 MiB each. One takes a tenth of a second, so the last of them waits for some seconds.
MAX_WAITING = 50
TYPES = ("text/plain", "application/gzip")


class ClientLogs:
    """Keeps logs in a folder, and their names in the database."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        # Each takes all of a core and twice the memory of its text for a moment.
        self._one = asyncio.Lock()
        self._waiting = 0

    async def keep(self, user_id: str, content_type: str, raw: bytes) -> tables.ClientLog:
        """Keep a log. It is on disk when this returns. Raises ApiError."""
        if self._waiting >= MAX_WAITING:
            message, headers = "Too many logs at once.", {"Retry-After": "5"}
            raise ApiError(503, "busy", message, expected="another attempt in 5 s", headers=headers)
        self._waiting += 1
        try:
            async with self._one:
                return await self._keep(user_id, content_type, raw)
        finally:
            self._waiting -= 1

    async def _keep(self, user_id: str, content_type: str, raw: bytes) -> tables.ClientLog:
        text = await asyncio.to_thread(_text_of, content_type, raw)
        log = tables.ClientLog(log_id=str(uuid.uuid4()), user_id=user_id, received_at=time.time(), size_bytes=len(text))
        await asyncio.to_thread(self._write, log.log_id, text)
        for old in await self._register(log):
            await asyncio.to_thread(self._path(old).unlink, missing_ok=True)
        return log

    async def _register(self, log: tables.ClientLog) -> list[str]:
        """Note the log. Returns the ids of those that it pushed out."""
        logs = tables.ClientLog
        async with self._store.writing() as session:
            newest = select(logs.log_id).where(logs.user_id == log.user_id).order_by(logs.received_at.desc())
            old = list((await session.scalars(newest.offset(MAX_LOGS_PER_USER - 1))).all())
            if old:
                await session.execute(delete(logs).where(logs.log_id.in_(old)))
            session.add(log)
        return old

    def _path(self, log_id: str) -> Path:
        return self._folder / f"{log_id}.log"

    def _write(self, log_id: str, text: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writing.write_new(self._path(log_id), text, mode=0o600)


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
