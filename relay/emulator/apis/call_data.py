"""The Call Data API: transcriptions of calls, as a ZIP with one JSON file for each call.

The request, the ZIP and ``Next-Page-Token`` are observed. What is in a file is invented: the emulator hears nothing, so
it makes up a text, and says so in the file.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import zipfile
from typing import Annotated, ClassVar, Literal

from aiohttp import web
from pydantic import Field
from sqlalchemy import Select, and_, or_, select

from relay.emulator.apis.models import ApiModel, ApiRequest, Time, time_of
from relay.emulator.apis.security import Keys, Signed
from relay.emulator.fixtures import REGIONS
from relay.emulator.http.endpoints import Call, Endpoint
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import Site
from relay.emulator.lines import LineKind
from relay.emulator.marks import Mark
from relay.emulator.names import Api, HostRole
from relay.emulator.store import Store, tables
from relay.emulator.store.store import audit

# A page of calls between two people is 50 KB of ZIP.
PAGE_CALLS = 100
NEXT_PAGE = "Next-Page-Token"
ZIP = "application/zip"
# A hoot of 800 would make a file of 100 KB. All participants are listed, but only this many of them "speak".
MAX_SPEAKERS = 12

Region = Literal["use1", "euc1", "apse1", "apse2"]
assert Region.__args__ == REGIONS  # type: ignore[attr-defined]


class TranscriptionsRequest(ApiRequest):
    """Calls that ended from ``beginDate`` and before ``endDate``, in the order in which they ended."""

    mark: ClassVar[Mark] = Mark.OBSERVED
    begin_date: Annotated[Time, Field(examples=["2026-11-27T00:00:00Z"])]
    end_date: Annotated[Time, Field(examples=["2026-11-28T00:00:00Z"])]
    region: Region | None = None
    next_page_token: Annotated[
        str | None,
        Field(
            description=f"the header {NEXT_PAGE} of the answer before",
            pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?_[!-~]{1,36}$",
        ),
    ] = None


class Speaker(ApiModel):
    """Someone who took part in a call."""

    user_id: str
    firm_id: str
    role: str
    joined_at: Time
    left_at: Time


class Segment(ApiModel):
    """What someone is made to have said."""

    user_id: str
    begin_offset_ms: int
    end_offset_ms: int
    text: str


class Transcription(ApiModel):
    """One file of the ZIP. ``synthetic`` is always true: nobody said this."""

    call_id: str
    connection_number: str
    kind: LineKind
    region: str
    begin_date: Time
    answer_date: Time | None
    end_date: Time
    reason: str
    participants: list[Speaker]
    synthetic: Literal[True] = True
    note: str = "Synthetic text, made up by the emulator. It does not listen to calls."
    segments: list[Segment]


class CallData:
    """The endpoint."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._security = Signed(keys, Api.CALL_DATA)

    def register(self, site: Site) -> None:
        """Serve it."""
        site.add(
            Endpoint(
                HostRole.CALL_DATA,
                "POST",
                "/v2/calls/transcriptions",
                Mark.OBSERVED,
                "Transcriptions of calls, as a ZIP with one JSON file for each",
                self._transcriptions,
                body=TranscriptionsRequest,
                content_types=(ZIP,),
                security=self._security,
                errors={
                    400: "The body is not JSON, or endDate is not after beginDate.",
                    401: "The signature is wrong; the answer names the field that differs.",
                    403: "The caller's address is not on the key's list, or the key is not for this API.",
                },
                headers={NEXT_PAGE: "What to send as nextPageToken. The last page has none."},
            )
        )

    async def _transcriptions(self, call: Call) -> web.Response:
        asked: TranscriptionsRequest = call.body
        if asked.end_date <= asked.begin_date:
            message = "endDate is not after beginDate."
            raise ApiError(400, "empty_range", message, where="body.endDate", expected="a time after beginDate")
        firm = call.caller.firm
        async with self._store.reading() as session:
            found = (await session.scalars(_calls_of(firm, asked))).all()
            shown = found[:PAGE_CALLS]
            people = tables.CallParticipant
            took_part = await session.scalars(
                select(people)
                .where(people.call_id.in_([row.call_id for row in shown]))
                .order_by(people.joined_at, people.user_id)
            )
        by_call: dict[str, list[tables.CallParticipant]] = {row.call_id: [] for row in shown}
        for each in took_part:
            by_call[each.call_id].append(each)
        async with self._store.writing() as session:
            audit(session, firm, f"key:{call.caller.key}", "call_data.download", "transcriptions", calls=len(shown))
        packed = await asyncio.to_thread(_packed, [_transcription(row, by_call[row.call_id]) for row in shown])
        more = len(found) > len(shown)
        headers = {"Content-Disposition": 'attachment; filename="transcriptions.zip"'}
        return web.Response(
            body=packed, content_type=ZIP, headers=headers | ({NEXT_PAGE: _token(shown[-1])} if more else {})
        )


def _calls_of(firm: str, asked: TranscriptionsRequest) -> Select[tables.Call]:
    calls, people = tables.Call, tables.CallParticipant
    query = select(calls).where(
        calls.ended_at >= asked.begin_date.timestamp(),
        calls.ended_at < asked.end_date.timestamp(),
        calls.call_id.in_(select(people.call_id).where(people.firm_id == firm)),
    )
    if asked.region is not None:
        query = query.where(calls.region == asked.region)
    if asked.next_page_token is not None:
        end, _, call_id = asked.next_page_token.partition("_")
        ended_at = float(end)
        query = query.where(or_(calls.ended_at > ended_at, and_(calls.ended_at == ended_at, calls.call_id > call_id)))
    return query.order_by(calls.ended_at, calls.call_id).limit(PAGE_CALLS + 1)


def _token(last: tables.Call) -> str:
    # As Python writes it, a float is read again as the same one.
    return f"{last.ended_at!r}_{last.call_id}"


def _packed(transcriptions: list[Transcription]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for each in transcriptions:
            # The time of the call, not of the download: the same call always makes the same file.
            end = each.end_date.astimezone(datetime.UTC).timetuple()
            name = zipfile.ZipInfo(f"{each.call_id}.json", (max(end[0], 1980), *end[1:6]))
            name.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(name, each.model_dump_json(by_alias=True, indent=2))
    return buffer.getvalue()


def _transcription(row: tables.Call, people: list[tables.CallParticipant]) -> Transcription:
    return Transcription(
        call_id=row.call_id,
        connection_number=row.line,
        kind=LineKind(row.kind),
        region=row.region,
        begin_date=time_of(row.started_at),
        answer_date=None if row.answered_at is None else time_of(row.answered_at),
        end_date=time_of(row.ended_at),
        reason=row.reason,
        participants=[
            Speaker(
                user_id=each.user_id,
                firm_id=each.firm_id,
                role=each.role,
                joined_at=time_of(each.joined_at),
                left_at=time_of(each.left_at),
            )
            for each in people
        ],
        segments=_segments(row, people),
    )


def _segments(row: tables.Call, people: list[tables.CallParticipant]) -> list[Segment]:
    """Everyone gets an equal part of the time from the answer to the end. An unanswered call has no text."""
    if row.answered_at is None or not people:
        return []
    speakers = people[:MAX_SPEAKERS]
    begin, whole = round((row.answered_at - row.started_at) * 1000), round((row.ended_at - row.answered_at) * 1000)
    edges = [begin + whole * number // len(speakers) for number in range(len(speakers) + 1)]
    return [
        Segment(
            user_id=each.user_id,
            begin_offset_ms=edges[number],
            end_offset_ms=edges[number + 1],
            text=f"[synthetic] {each.user_id} speaks on {row.line}.",
        )
        for number, each in enumerate(speakers)
    ]
