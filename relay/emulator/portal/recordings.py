"""Recordings: a firm's for its administrators, and each user's own. They are played in the page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from aiohttp import web
from sqlalchemy import ColumnElement, select

from relay.emulator.portal import firms
from relay.emulator.portal.listing import Paging, count_of, on_page, page_in
from relay.emulator.portal.neighbours import RecordedMedia
from relay.emulator.portal.pages import PRIVATE, ROOT, PageError, not_found
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.tables import Call, Recording

RECORDINGS = f"{ROOT}recordings"
# What the recording upload takes, and browsers play. Anything else is only offered as a file.
_PLAYABLE = {"audio/ogg": "ogg", "audio/mp4": "m4a", "audio/x-m4a": "m4a"}


class Recordings:
    """The pages below ``/portal/recordings``."""

    def __init__(self, parts: Parts, media: RecordedMedia) -> None:
        self._store = parts.store
        self._media = media

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", RECORDINGS, visits.reading(self._list)
        yield "GET", f"{RECORDINGS}/{{recording}}/media", visits.reading(self._play)

    async def _list(self, visit: Visit) -> web.StreamResponse:
        filters = {name: visit.query(name) for name in ("user", "line", "from", "to")}
        page, errors = page_in(visit.query("page")), dict[str, str]()
        wanted = [*_visible(visit), *_filtered(filters, errors)]
        found = select(Recording, Call).outerjoin(Call, Call.call_id == Recording.call_id).where(*wanted)
        async with self._store.reading() as session:
            total = await count_of(session, found)
            newest = found.order_by(Recording.created_at.desc(), Recording.recording_id)
            rows = (await session.execute(on_page(newest, page))).all()
            names = await firms.names_of(session, visit.who.firm_id)
        context = {"rows": rows, "names": names, "filters": filters, "errors": errors, "is_whole": is_whole}
        paging = Paging(RECORDINGS, filters, page, total)
        return visit.render("recordings.html", {**context, "paging": paging}, status=422 if errors else 200)

    async def _play(self, visit: Visit) -> web.StreamResponse:
        recording_id = visit.path("recording")
        if not firms.is_name(recording_id):
            raise not_found()
        async with self._store.reading() as session:
            wanted = select(Recording).where(Recording.recording_id == recording_id, *_visible(visit))
            recording = (await session.scalars(wanted)).first()
        if recording is None:
            raise not_found()
        path = self._media.media_path(recording)
        if not is_whole(recording) or not await asyncio.to_thread(path.is_file):
            raise PageError(404, "Not there yet", "The media of this recording has not arrived, or not all of it.")
        suffix = _PLAYABLE.get(recording.media_type or "")
        place = "inline" if suffix else "attachment"
        headers = {
            **PRIVATE,
            "Content-Type": recording.media_type if suffix and recording.media_type else "application/octet-stream",
            "Content-Disposition": f'{place}; filename="{recording.recording_id}.{suffix or "bin"}"',
        }
        # It answers ranges: browsers ask for them before they let anyone seek.
        return web.FileResponse(path, headers=headers)


def is_whole(recording: Recording) -> bool:
    """True if its media and its metadata have arrived."""
    return recording.completed_at is not None


def _visible(visit: Visit) -> list[ColumnElement[bool]]:
    """What who asks may hear."""
    wanted = [Recording.firm_id == visit.who.firm_id]
    if not visit.is_admin:
        wanted.append(Recording.user_id == visit.who.user_id)
    return wanted


def _filtered(filters: dict[str, str], errors: dict[str, str]) -> list[ColumnElement[bool]]:
    """What was asked for. Days are days of UTC, and both count."""
    wanted: list[ColumnElement[bool]] = []
    if filters["user"]:
        wanted.append(Recording.user_id == filters["user"])
    if filters["line"]:
        wanted.append(Call.line == filters["line"])
    if (first := _day(filters, "from", errors)) is not None:
        wanted.append(Recording.created_at >= _start_of(first))
    if (last := _day(filters, "to", errors)) is not None:
        wanted.append(Recording.created_at < _start_of(last) + timedelta(days=1).total_seconds())
    return wanted


def _day(filters: dict[str, str], name: str, errors: dict[str, str]) -> date | None:
    if not filters[name]:
        return None
    try:
        return date.fromisoformat(filters[name])
    except ValueError:
        errors[name] = f"“{filters[name][:40]}” is not a day. Expected a day such as 2026-11-27."
        return None


def _start_of(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
