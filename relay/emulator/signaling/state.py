"""What a line is: who may use it, and what goes on on it now. Values without I/O and clock; ``machines`` changes them.

Times are seconds since 1970, because several processes, and the records of calls, share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from relay.emulator.lines import MAX_SUBSCRIBERS, LineKind
from relay.emulator.signaling.messages import (
    MAX_LISTED_PARTICIPANTS,
    EndReason,
    ErrorCode,
    ErrorInfo,
    LineStatus,
    PartyRole,
)

# On these lines many listen to few. Everyone in a call of the other kinds is listed in ``line.state``.
CROWDED = frozenset({LineKind.HOOT, LineKind.BROADCAST})
# More members than subscribers: those that are not on the hoot also hear of its state. Twice as many as the documented
# subscribers are more than any firm in the fixtures has.
MAX_HOOT_MEMBERS = 2 * MAX_SUBSCRIBERS


@dataclass(frozen=True, slots=True)
class Member:
    """A user who has a line. Someone who may not talk listens only."""

    user_id: str
    name: str
    firm_id: str
    firm: str
    may_talk: bool = True


@dataclass(frozen=True)
class LineSpec:
    """A line as the directory has it. Raises ValueError for more members than its kind can have."""

    number: str
    kind: LineKind
    label: str
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        limit = {LineKind.HOOT: MAX_HOOT_MEMBERS, LineKind.BROADCAST: MAX_SUBSCRIBERS}.get(
            self.kind, MAX_LISTED_PARTICIPANTS
        )
        if len(self.members) > limit:
            raise ValueError(f"line {self.number}: {len(self.members)} members; a {self.kind} has at most {limit}")

    @cached_property
    def firm_of(self) -> dict[str, str]:
        """The firm of each member."""
        return {member.user_id: member.firm_id for member in self.members}

    @cached_property
    def listeners_only(self) -> frozenset[str]:
        """The members who may not talk."""
        return frozenset(member.user_id for member in self.members if not member.may_talk)

    @cached_property
    def is_between_firms(self) -> bool:
        """Whether its sides are firms. Otherwise each member is a side."""
        return len(set(self.firm_of.values())) > 1

    def side_of(self, user_id: str) -> str:
        """The side of the line on which a member is. Someone who has lost the line is a side of their own."""
        return self.firm_of.get(user_id, user_id) if self.is_between_firms else user_id

    def far_side(self, user_id: str) -> tuple[str, ...]:
        """The members at the other end, seen from one of them."""
        own = self.side_of(user_id)
        return tuple(member.user_id for member in self.members if self.side_of(member.user_id) != own)


@dataclass(frozen=True, slots=True)
class Party:
    """Someone in a call now."""

    role: PartyRole
    talking: bool = False


@dataclass(frozen=True, slots=True)
class Stay:
    """How long someone was in a call: first in, last out. It rang for those who were never in."""

    role: PartyRole
    joined_at: float | None
    left_at: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """What a call's record is made of."""

    call_id: str
    region: str
    started_at: float
    answered_at: float | None = None
    number: str | None = None
    stays: Mapping[str, Stay] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """What goes on on a line. ``seq`` grows by one with each transition, ``deadline`` is the next one of its own."""

    status: LineStatus = LineStatus.IDLE
    seq: int = 0
    since: float = 0.0
    parties: Mapping[str, Party] = field(default_factory=dict)
    call: Call | None = None
    deadline: float | None = None
    reason: EndReason | None = None

    @property
    def talkers(self) -> tuple[str, ...]:
        """Those who talk, in the order in which they joined."""
        return tuple(user_id for user_id, party in self.parties.items() if party.talking)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call that has ended."""

    call_id: str
    line: str
    kind: LineKind
    label: str
    region: str
    number: str | None
    participants: tuple[tuple[str, Stay], ...]
    started_at: float
    answered_at: float | None
    ended_at: float
    end_reason: EndReason


class Refusal(Exception):
    """A message that changes nothing: what is wrong, and what was expected."""

    def __init__(self, code: ErrorCode, message: str, expected: str = "") -> None:
        super().__init__(message)
        self.info = ErrorInfo(code=code, message=message, expected=expected)


@dataclass(frozen=True, slots=True)
class Decision:
    """What an input has led to. ``ended`` is the record of the call that it ended."""

    before: Line
    line: Line
    ended: CallRecord | None = None

    @property
    def changed(self) -> bool:
        """Whether there was a transition."""
        return self.line.seq != self.before.seq

    @property
    def floor_changed(self) -> bool:
        """Whether others talk now than before."""
        return set(self.line.talkers) != set(self.before.talkers)

    @property
    def only_listeners_changed(self) -> bool:
        """Whether a line looks the same to all, except for how many listen."""
        same = self.line.status is self.before.status and not self.floor_changed
        return same and len(self.line.parties) > MAX_LISTED_PARTICIPANTS < len(self.before.parties)


# On the wire


def timestamp(seconds: float) -> str:
    """A time as JSON has it (RFC 3339, milliseconds, UTC)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def build_line_state(spec: LineSpec, line: Line) -> dict[str, Any]:
    """The fields of ``messages.LineState``. A test compares: checking each would cost more than all the rest."""
    listed = line.parties
    if len(listed) > MAX_LISTED_PARTICIPANTS:
        listed = {user_id: party for user_id, party in listed.items() if party.talking}
    return {
        "line": spec.number,
        "kind": spec.kind,
        "label": spec.label,
        "state": line.status,
        "seq": line.seq,
        "call_id": line.call and line.call.call_id,
        "participants": [
            {"user_id": user_id, "role": party.role, "talking": party.talking} for user_id, party in listed.items()
        ],
        "subscribers": len(line.parties),
        "number": line.call and line.call.number,
        "reason": line.reason,
        "since": timestamp(line.since) if line.since else None,
    }


# In Redis


def dump_line(line: Line) -> dict[str, Any]:
    """A line as JSON can have it."""
    call = line.call
    return {
        "status": line.status,
        "seq": line.seq,
        "since": line.since,
        "parties": {user_id: [party.role, party.talking] for user_id, party in line.parties.items()},
        "deadline": line.deadline,
        "reason": line.reason,
        "call": call
        and {
            "call_id": call.call_id,
            "region": call.region,
            "started_at": call.started_at,
            "answered_at": call.answered_at,
            "number": call.number,
            "stays": dump_stays(call.stays),
        },
    }


def load_line(data: dict[str, Any]) -> Line:
    """The opposite."""
    call = data["call"]
    return Line(
        status=LineStatus(data["status"]),
        seq=data["seq"],
        since=data["since"],
        parties={user_id: Party(PartyRole(role), talking) for user_id, (role, talking) in data["parties"].items()},
        deadline=data["deadline"],
        reason=data["reason"] and EndReason(data["reason"]),
        call=call and Call(**{**call, "stays": load_stays(call["stays"])}),
    )


def dump_stays(stays: Mapping[str, Stay]) -> dict[str, Any]:
    """Stays as JSON can have them."""
    return {user_id: [stay.role, stay.joined_at, stay.left_at] for user_id, stay in stays.items()}


def load_stays(data: dict[str, Any]) -> dict[str, Stay]:
    """The opposite."""
    return {user_id: Stay(PartyRole(role), joined_at, left_at) for user_id, (role, joined_at, left_at) in data.items()}


def dump_record(record: CallRecord) -> dict[str, Any]:
    """A record as JSON can have it."""
    return {
        "call_id": record.call_id,
        "line": record.line,
        "kind": record.kind,
        "label": record.label,
        "region": record.region,
        "number": record.number,
        "participants": dump_stays(dict(record.participants)),
        "started_at": record.started_at,
        "answered_at": record.answered_at,
        "ended_at": record.ended_at,
        "end_reason": record.end_reason,
    }


def load_record(data: dict[str, Any]) -> CallRecord:
    """The opposite."""
    fields = dict(data)
    fields["kind"] = LineKind(fields["kind"])
    fields["end_reason"] = EndReason(fields["end_reason"])
    fields["participants"] = tuple(load_stays(fields["participants"]).items())
    return CallRecord(**fields)


def end_call(spec: LineSpec, line: Line, now: float, reason: EndReason) -> tuple[Line, CallRecord]:
    """The idle line after a call, and the call's record."""
    call = line.call
    assert call is not None
    stays = {
        user_id: replace(stay, left_at=now) if user_id in line.parties and stay.joined_at is not None else stay
        for user_id, stay in call.stays.items()
    }
    record = CallRecord(
        call_id=call.call_id,
        line=spec.number,
        kind=spec.kind,
        label=spec.label,
        region=call.region,
        number=call.number,
        participants=tuple(stays.items()),
        started_at=call.started_at,
        answered_at=call.answered_at,
        ended_at=now,
        end_reason=reason,
    )
    return Line(seq=line.seq + 1, since=now, reason=reason), record
