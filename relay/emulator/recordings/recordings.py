"""All recordings: what there is, what each lacks, and when it is whole.

A recording is whole when its metadata and all of its media have come, and the media is what the metadata says: this
long, with this checksum, in this format. What has not become whole within a day is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from aiohttp.streams import StreamReader
from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.http.errors import ApiError, unauthorized
from relay.emulator.names import UserRole
from relay.emulator.recordings import models
from relay.emulator.recordings.disk import Content, Disk
from relay.emulator.recordings.intake import take_in
from relay.emulator.recordings.locks import locked
from relay.emulator.recordings.places import Place, Places
from relay.emulator.recordings.rules import (
    at_offset,
    changed_meanwhile,
    check_agrees,
    is_complete,
    metadata_of,
    no_such,
    total_bytes,
    wrong_media,
    wrong_metadata,
)
from relay.emulator.store import Store, tables
from relay.emulator.store.store import audit
from relay.tasks import Tasks, in_daemon_thread

log = structlog.get_logger()

# A client that lost its line in the evening goes on in the morning. What takes longer never comes.
UNFINISHED_LIFETIME_S = 24 * 3600.0
SWEEP_INTERVAL_S = 600.0
# Of one user. A client uploads one after the other, and keeps some of a day without a network.
MAX_UNFINISHED_OF_USER = 500
# Of all media on disk, and what goes on coming: what a laptop can spare. An hour of Opus is 14 MB.
MAX_FOLDER_BYTES = 20 << 30
# Of one user, whole or announced: some 140 hours. What is only announced takes nothing from others.
MAX_BYTES_OF_USER = 2 << 30

_Result = TypeVar("_Result")
_R = tables.Recording


class Owner(Protocol):
    """Who has logged in."""

    @property
    def user_id(self) -> str:
        """The user's name."""

    @property
    def firm_id(self) -> str:
        """Their firm's."""

    @property
    def role(self) -> str:
        """A ``UserRole``."""


# Whether somebody is still logged in, in a transaction that is to write for them. Each security has its own owners.
StillIn = Callable[[AsyncSession, Any], Awaitable[bool]]


async def _always(session: AsyncSession, owner: Owner) -> bool:
    return True


class Recordings:
    """The service. Methods raise ApiError for what a client did wrong.

    An upload takes its time, so ``still_in`` is asked again before anything is written. With ``shared`` other processes
    have the same folder.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        still_in: StillIn = _always,
        shared: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._still_in = still_in
        self._shared = shared
        self._clock = clock
        self._disk = Disk(folder)
        self._places = Places()
        self._uploads = Tasks()
        self._sweeper = Tasks()

    async def start(self) -> None:
        """Finish what a killed process had received whole, remove what is too old, and go on doing so."""
        await self.finish_received()
        await self.sweep()
        self._sweeper.start(self._sweep_forever(), "recordings sweep")

    @property
    def running(self) -> int:
        """How many uploads go on."""
        return len(self._uploads)

    async def stop(self) -> None:
        """End all uploads. What they have received is kept."""
        await self._sweeper.cancel()
        self._places.stop()
        await self._uploads.finish()

    # What clients send

    async def put_metadata(self, owner: Owner, recording_id: str, metadata: models.Metadata) -> tables.Recording:
        """Keep a recording's metadata. If the media is there already, the recording is whole or this is refused."""
        return await self._to_the_end(self._put_metadata(owner, recording_id, metadata))

    async def _put_metadata(self, owner: Owner, recording_id: str, metadata: models.Metadata) -> tables.Recording:
        if metadata.ended_at < metadata.started_at:
            message = "ended_at is before started_at."
            raise ApiError(400, "empty_range", message, where="body.ended_at", expected="a time after started_at")
        async with self._change(owner, recording_id):
            row = await self._own(owner, recording_id)
            if row is not None and row.completed_at is not None:
                if metadata_of(row) == metadata:
                    return row
                raise is_complete()
            if row is not None:
                check_agrees(row, metadata)
            else:
                row = await self._create(owner, recording_id, metadata.media_bytes)
            whole = row.received_bytes == metadata.media_bytes
            if whole and (fault := wrong_metadata(metadata, await self._content(row))):
                raise fault
            return await self._save(row, owner, metadata=metadata, completed=whole)

    async def append(
        self, owner: Owner, recording_id: str, content: StreamReader, *, offset: int, length: int | None
    ) -> tables.Recording:
        """Write a part of the media. Returns the recording as it is now; ApiError tells the offset, too."""
        self._places.check_room(owner.user_id)
        return await self._to_the_end(self._append(owner, recording_id, content, offset, length))

    async def _append(
        self, owner: Owner, recording_id: str, content: StreamReader, offset: int, length: int | None
    ) -> tables.Recording:
        async with self._change(owner, recording_id, counted=True) as place:
            row = await self._own(owner, recording_id)
            if row is not None and row.completed_at is not None:
                raise is_complete()
            total = total_bytes(row, length)
            received = 0 if row is None else row.received_bytes
            if offset != received:
                message = f"The media has {received} bytes, not {offset}."
                raise at_offset(
                    ApiError(409, "wrong_offset", message, where="Upload-Offset", expected=str(received)), received
                )
            # Before the look: others who begin meanwhile must see it. What they promise does not count here: if there
            # is room for one of two, they would keep each other out.
            place.promised_bytes = total - offset
            promised_bytes = self._places.promised_bytes
            async with self._store.reading() as session:
                await _check_folder(session, promised_bytes)
            row = row or await self._create(owner, recording_id, total)
            return await self._take(row, owner, place, content, total)

    async def _take(
        self, row: tables.Recording, owner: Owner, place: Place, content: StreamReader, total: int
    ) -> tables.Recording:
        path = self.media_path(row)
        taken = await take_in(content, place, self._disk, path, offset=row.received_bytes, total=total)
        row = await self._save(row, owner, received_bytes=taken.size, media_bytes=total)
        if taken.refused is not None:
            raise at_offset(taken.refused, taken.size)
        return await self._finish(row) if row.details is not None and taken.size == total else row

    async def _finish(self, row: tables.Recording) -> tables.Recording:
        """The media is all there, and so is the metadata: the recording is whole, or its media is thrown away."""
        metadata = metadata_of(row)
        assert metadata is not None
        if fault := wrong_media(metadata, await self._content(row)):
            await self._throw_media_away(row)
            raise at_offset(fault, 0)
        return await self._save(row, None, completed=True)

    async def discard(self, owner: Owner, recording_id: str) -> None:
        """Remove a recording that is not whole, to begin anew."""
        await self._to_the_end(self._discard(owner, recording_id))

    async def _discard(self, owner: Owner, recording_id: str) -> None:
        async with self._change(owner, recording_id):
            row = await self._own(owner, recording_id)
            if row is None:
                raise no_such(recording_id)
            if row.completed_at is not None:
                raise is_complete()
            async with self._store.reading() as session:
                await self._check_login(session, owner)
            await self._remove(row)

    # What clients ask

    async def settled(self, owner: Owner, recording_id: str) -> tables.Recording:
        """A recording of the owner's, when nothing is being written to it: an upload that goes on is stopped."""
        return await self._to_the_end(self._settled(owner, recording_id))

    async def _settled(self, owner: Owner, recording_id: str) -> tables.Recording:
        async with self._change(owner, recording_id):
            if (row := await self._own(owner, recording_id)) is None:
                raise no_such(recording_id)
            return row

    async def find(self, owner: Owner, recording_id: str) -> tables.Recording:
        """A recording that the owner may see: their own, or any of the firm for its administrators."""
        async with self._store.reading() as session:
            row = await session.get(_R, recording_id)
        seen = row is not None and row.firm_id == owner.firm_id
        if row is None or not seen or (owner.role != UserRole.ADMIN and row.user_id != owner.user_id):
            raise no_such(recording_id)
        return row

    async def page(self, owner: Owner, asked: models.ListQuery) -> tuple[list[tables.Recording], str | None]:
        """A page of what the owner may see, the newest first, and the token of the next page."""
        query = select(_R).where(_R.firm_id == owner.firm_id)
        if owner.role != UserRole.ADMIN:
            query = query.where(_R.user_id == owner.user_id)
        if asked.call_id is not None:
            query = query.where(_R.call_id == asked.call_id)
        if asked.state is not None:
            query = query.where(_IN_STATE[asked.state])
        if asked.page_token is not None:
            created, _, last = asked.page_token.partition("_")
            at = float(created)
            query = query.where(or_(_R.created_at < at, and_(_R.created_at == at, _R.recording_id > last)))
        query = query.order_by(_R.created_at.desc(), _R.recording_id).limit(asked.page_size + 1)
        async with self._store.reading() as session:
            found = (await session.scalars(query)).all()
        shown = list(found[: asked.page_size])
        more = len(found) > len(shown)
        return shown, f"{shown[-1].created_at!r}_{shown[-1].recording_id}" if more else None

    def media_path(self, row: tables.Recording) -> Path:
        """Where the media of a recording is."""
        return self._disk.path(row.firm_id, row.recording_id)

    # The database and the disk

    @contextlib.asynccontextmanager
    async def _change(self, owner: Owner, recording_id: str, *, counted: bool = False) -> AsyncIterator[Place]:
        """Have a recording for oneself. First whether it is theirs: nobody else may break off an upload.

        Whoever has the place looks again: a recording may have begun meanwhile.
        """
        await self._own(owner, recording_id)
        async with self._hold(owner.firm_id, recording_id, owner.user_id, counted=counted) as place:
            yield place

    @contextlib.asynccontextmanager
    async def _hold(
        self, firm_id: str, recording_id: str, user_id: str | None = None, *, counted: bool = False
    ) -> AsyncIterator[Place]:
        """Have a recording for oneself, in this process and in others that have the same folder."""
        async with self._places.take(recording_id, user_id, counted=counted) as place:
            path = self._disk.path(firm_id, recording_id)
            async with locked(path) if self._shared else contextlib.nullcontext():
                yield place

    async def _check_login(self, session: AsyncSession, owner: Owner) -> None:
        if not await self._still_in(session, owner):
            raise unauthorized("The login has ended meanwhile.", expected="the request again, after a new login")

    async def _row(self, recording_id: str) -> tables.Recording | None:
        async with self._store.reading() as session:
            return await session.get(_R, recording_id)

    async def _own(self, owner: Owner, recording_id: str) -> tables.Recording | None:
        """Nobody but its owner changes a recording. Raises ApiError 404 for one of somebody else's."""
        row = await self._row(recording_id)
        if row is not None and row.user_id != owner.user_id:
            raise no_such(recording_id)
        return row

    async def _create(self, owner: Owner, recording_id: str, media_bytes: int) -> tables.Recording:
        row = tables.Recording(
            recording_id=recording_id,
            user_id=owner.user_id,
            firm_id=owner.firm_id,
            media_bytes=media_bytes,
            received_bytes=0,
            created_at=self._clock(),
        )
        try:
            async with self._store.writing() as session:
                await self._check_login(session, owner)
                await _take_turn(session, owner)
                await _check_bounds(session, owner, media_bytes)
                session.add(row)
        except IntegrityError:
            raise changed_meanwhile() from None
        return row

    async def _save(
        self,
        row: tables.Recording,
        owner: Owner | None,
        *,
        metadata: models.Metadata | None = None,
        completed: bool = False,
        **values: Any,
    ) -> tables.Recording:
        """Change a recording that is as in ``row``. Raises ApiError 409 if another process has changed it.

        ``owner`` has to be logged in, and their bounds are looked at. Without one it is a step of our own.
        """
        if metadata is not None:
            values |= {
                "details": metadata.model_dump(mode="json"),
                "call_id": metadata.call_id,
                "media_type": str(metadata.media_type),
                "media_bytes": metadata.media_bytes,
                "sha256": metadata.sha256,
            }
        if completed:
            values["completed_at"] = self._clock()
        async with self._store.writing() as session:
            if owner is not None:
                await self._check_login(session, owner)
                await _take_turn(session, owner)
            stored = await session.scalar(select(_R).where(_R.recording_id == row.recording_id).with_for_update())
            if stored is None or _state(stored) != _state(row):
                raise changed_meanwhile()
            if owner is not None and metadata is not None:
                await _check_user(session, owner, metadata.media_bytes - (stored.media_bytes or 0))
            for name, value in values.items():
                setattr(stored, name, value)
            if completed:
                audit(session, stored.firm_id, stored.user_id, "recording.complete", stored.recording_id)
        return stored

    async def _content(self, row: tables.Recording) -> Content:
        path = self.media_path(row)
        try:
            return await in_daemon_thread(lambda: self._disk.content(path), "recording checksum")
        except OSError as error:
            log.error("recording not read", recording=row.recording_id, error=str(error))
            raise ApiError(500, "disk_failed", "The media cannot be read.", expected="the request again") from None

    async def _throw_media_away(self, row: tables.Recording) -> None:
        path = self.media_path(row)
        await in_daemon_thread(lambda: self._disk.remove(path), "recording remove")
        await self._save(row, None, received_bytes=0)

    async def _remove(self, row: tables.Recording) -> None:
        """First the file: what is left after a crash is a row, which the next sweep finds."""
        path = self.media_path(row)
        await in_daemon_thread(lambda: self._disk.remove(path), "recording remove")
        async with self._store.writing() as session:
            await session.execute(delete(_R).where(_R.recording_id == row.recording_id))

    # By themselves

    async def finish_received(self) -> None:
        """Check recordings that have all of their media and are not whole: a process was killed in between."""
        wanted = select(_R).where(
            _R.completed_at.is_(None), _R.sha256.is_not(None), _R.received_bytes == _R.media_bytes
        )
        async with self._store.reading() as session:
            found = (await session.scalars(wanted)).all()
        for each in found:
            try:
                async with self._hold(each.firm_id, each.recording_id):
                    row = await self._row(each.recording_id)
                    # Another process may have been faster.
                    if row is not None and _state(row) == _state(each):
                        await self._finish(row)
            except ApiError as error:
                log.warning("recording not whole", recording=each.recording_id, error=str(error))

    async def sweep(self) -> int:
        """Remove recordings that were begun too long ago and never became whole. Returns how many."""
        old = self._clock() - UNFINISHED_LIFETIME_S
        wanted = select(_R.firm_id, _R.recording_id).where(_R.completed_at.is_(None), _R.created_at < old)
        async with self._store.reading() as session:
            found = (await session.execute(wanted)).all()
        for firm_id, recording_id in found:
            async with self._hold(firm_id, recording_id):
                row = await self._row(recording_id)
                if row is not None and row.completed_at is None:
                    await self._remove(row)
                    log.info("recording expired", recording=recording_id, user=row.user_id)
        return len(found)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self.sweep()
            except Exception:
                log.exception("recordings not swept")

    async def _to_the_end(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do work that must not be cut in the middle, even if the request's task is cancelled."""
        done: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await work
            except Exception as error:
                if done.cancelled():
                    log.warning("upload failed after its client had gone", error=repr(error))
                else:
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(result)

        self._uploads.start(run(), "recording request")
        return await done


_IN_STATE = {
    models.RecordingState.COMPLETE: _R.completed_at.is_not(None),
    models.RecordingState.WAITING_FOR_METADATA: and_(_R.completed_at.is_(None), _R.sha256.is_(None)),
    models.RecordingState.WAITING_FOR_MEDIA: and_(_R.completed_at.is_(None), _R.sha256.is_not(None)),
}


def _state(row: tables.Recording) -> tuple[object, ...]:
    """What a change of a recording is about."""
    return row.received_bytes, row.media_bytes, row.sha256, row.completed_at


async def _take_turn(session: AsyncSession, owner: Owner) -> None:
    """Let changes of a user's recordings take turns: each must see the bytes of the others. SQLite has one writer."""
    users = tables.User
    await session.execute(select(users.user_id).where(users.user_id == owner.user_id).with_for_update(key_share=True))


async def _check_bounds(session: AsyncSession, owner: Owner, media_bytes: int) -> None:
    mine = select(func.count()).where(_R.user_id == owner.user_id, _R.completed_at.is_(None))
    if (await session.scalar(mine) or 0) >= MAX_UNFINISHED_OF_USER:
        message = "You have too many recordings that are not whole."
        expected = f"at most {MAX_UNFINISHED_OF_USER}: finish some, or delete them"
        raise ApiError(429, "too_many_unfinished", message, expected=expected)
    await _check_user(session, owner, media_bytes)


async def _check_user(session: AsyncSession, owner: Owner, more: int) -> None:
    mine = await session.scalar(select(func.sum(_R.media_bytes)).where(_R.user_id == owner.user_id)) or 0
    if more > 0 and mine + more > MAX_BYTES_OF_USER:
        expected = f"at most {MAX_BYTES_OF_USER >> 30} GiB, whole or announced"
        raise ApiError(507, "too_much_of_user", "The emulator keeps no more recordings of yours.", expected=expected)


async def _check_folder(session: AsyncSession, promised: int) -> None:
    kept = await session.scalar(select(func.sum(_R.received_bytes))) or 0
    if kept + promised > MAX_FOLDER_BYTES:
        expected = f"at most {MAX_FOLDER_BYTES >> 30} GiB in all"
        raise ApiError(507, "folder_full", "The emulator keeps no more recordings.", expected=expected)
