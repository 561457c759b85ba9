"""What a firm sees of signaling, and what may be done in it for its users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy import select

from relay import deadlines
from relay.emulator.apis.cti.messages import FarEndType, InitiateCall, Rejected, RejectionCode, ReleaseCall
from relay.emulator.http.fields import first_wrong
from relay.emulator.lines import LineKind
from relay.emulator.signaling.hub import HANDLE_TIMEOUT_S, Hub
from relay.emulator.signaling.messages import ErrorCode, Event, LineRelease, LineRing, PresenceStatus
from relay.emulator.signaling.state import Line, LineSpec, Refusal
from relay.emulator.store import Store, tables
from relay.errors import UpstreamError

# On which kinds of lines one user calls another, the first choice first.
_BETWEEN_USERS = (LineKind.RINGDOWN, LineKind.INTERCOM, LineKind.SHOUTDOWN)
_CODES = {
    ErrorCode.BAD_MESSAGE: RejectionCode.BAD_MESSAGE,
    ErrorCode.UNKNOWN_LINE: RejectionCode.UNKNOWN,
    ErrorCode.RATE_LIMITED: RejectionCode.TOO_MANY,
    ErrorCode.UNAVAILABLE: RejectionCode.UNAVAILABLE,
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the firm."""

    user_id: str
    name: str
    region: str


class Floor:
    """The store knows who is in a firm; the hub knows what goes on."""

    def __init__(self, hub: Hub, store: Store) -> None:
        self._hub = hub
        self._store = store

    async def people(self, firm: str) -> dict[str, Person]:
        """The users of a firm."""
        users = tables.User
        async with self._store.reading() as session:
            rows = (await session.scalars(select(users).where(users.firm_id == firm).order_by(users.user_id))).all()
        return {row.user_id: Person(row.user_id, row.name, row.region) for row in rows}

    async def presence(self, user_ids: Iterable[str]) -> dict[str, PresenceStatus]:
        """The presence of each of these users who is logged in. Raises Rejected."""
        sessions = await _in_time(self._hub.shared.sessions([*user_ids]))
        return {user_id: session.presence for user_id, session in sessions.items()}

    async def lines(self, firm: str) -> list[tuple[LineSpec, Line]]:
        """All lines that users of the firm have, or on which they are in a call. Raises Rejected."""
        return await _in_time(self._lines(firm))

    async def _lines(self, firm: str) -> list[tuple[LineSpec, Line]]:
        members, users = tables.LineMember, tables.User
        query = select(members.number).join(users, users.user_id == members.user_id).where(users.firm_id == firm)
        async with self._store.reading() as session:
            numbers = (await session.scalars(query.distinct().order_by(members.number))).all()
        specs = {number: await self._hub.directory.line(number) for number in numbers}
        states = await self._hub.shared.read_lines(specs)
        own = {number: (spec, states[number]) for number, spec in specs.items() if spec is not None}
        # Dial tone of other firms, with which ours talk.
        live = {spec.number: (spec, line) for spec, line in await self._hub.live_lines()}
        return [*{**live, **own}.values()]

    async def initiate(self, person: Person, asked: InitiateCall) -> str | None:
        """Place a call. Returns its id. Raises Rejected."""
        if person.user_id not in await self.presence([person.user_id]):
            reason = f"the user {person.user_id} is not logged in"
            raise Rejected(RejectionCode.WRONG_STATE, reason, where="userId", expected="a user who is logged in")
        number, dialled = await _in_time(self._way(person, asked))
        return await self._act(person, LineRing, line=number, number=dialled)

    async def release(self, person: Person, asked: ReleaseCall) -> None:
        """End a call. Raises Rejected."""
        live = await _in_time(self._hub.live_lines())
        calls = {
            spec.number: line.call.call_id
            for spec, line in live
            if line.call is not None
            and person.user_id in line.parties
            and asked.call_id in {None, line.call.call_id}
            and asked.near_end_number in {None, spec.number}
        }
        if not calls:
            reason = f"the user {person.user_id} has no such call"
            raise Rejected(RejectionCode.WRONG_STATE, reason, where="userId", expected="a user in a call")
        if len(calls) > 1:
            reason = f"the user {person.user_id} has {len(calls)} calls"
            raise Rejected(RejectionCode.WRONG_STATE, reason, where="callId", expected=", ".join(calls.values()))
        await self._act(person, LineRelease, line=next(iter(calls)))

    async def _way(self, person: Person, asked: InitiateCall) -> tuple[str, str | None]:
        """The line to ring, and the number to dial on it."""
        if asked.far_end_type == FarEndType.CONNECTION:
            return asked.far_end_number, None
        own = await self._hub.directory.lines_of(person.user_id)
        if asked.far_end_type == FarEndType.USER:
            return self._line_to(person, asked, own), None
        dial_tones = [spec.number for spec in own if spec.kind is LineKind.DIAL_TONE]
        if asked.near_end_number is not None:
            return asked.near_end_number, asked.far_end_number
        if not dial_tones:
            reason = f"the user {person.user_id} has no dial tone"
            raise Rejected(RejectionCode.UNKNOWN, reason, where="farEndType", expected="a user with a dial-tone line")
        return dial_tones[0], asked.far_end_number

    def _line_to(self, person: Person, asked: InitiateCall, own: Iterable[LineSpec]) -> str:
        shared = [
            spec
            for spec in own
            if spec.kind in _BETWEEN_USERS
            and asked.far_end_number in spec.far_side(person.user_id)
            and asked.near_end_number in {None, spec.number}
        ]
        if not shared:
            reason = f"no line leads from {person.user_id} to {asked.far_end_number}"
            expected = "a user who shares a ringdown, intercom or shoutdown line"
            raise Rejected(RejectionCode.UNKNOWN, reason, where="farEndNumber", expected=expected)
        # A line with few others rings few others.
        return min(shared, key=lambda spec: (len(spec.members), _BETWEEN_USERS.index(spec.kind))).number

    async def _act(self, person: Person, message: type[Event], **fields: str | None) -> str | None:
        try:
            made = message.model_validate(fields)
        except ValidationError as invalid:
            wrong = first_wrong(invalid, message)
            where = {"line": "nearEndNumber or farEndNumber", "number": "farEndNumber"}.get(wrong.where, "")
            raise Rejected(RejectionCode.BAD_MESSAGE, wrong.message, where=where, expected=wrong.expected) from None
        state = await _in_time(self._hub.act(person.user_id, person.region, made))
        return state.call_id

    def observe(
        self,
        on_line: Callable[[LineSpec, Line], None],
        on_presence: Callable[[str, PresenceStatus], None],
    ) -> None:
        """Be told of every change of all firms."""
        self._hub.announcer.observe(on_line)
        self._hub.announcer.observe_presence(on_presence)


async def _in_time(work: Awaitable[_T]) -> _T:
    """What signaling answers, by a deadline. Raises Rejected."""
    try:
        async with deadlines.timeout(HANDLE_TIMEOUT_S):
            return await work
    except Refusal as refusal:
        info = refusal.info
        code = _CODES.get(info.code, RejectionCode.WRONG_STATE)
        raise Rejected(code, f"{info.code}: {info.message}", expected=info.expected) from None
    except (UpstreamError, TimeoutError):
        reason = "signaling does not answer"
        raise Rejected(RejectionCode.UNAVAILABLE, reason, expected="the same message later") from None
