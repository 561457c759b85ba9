"""From the state of a line to the status of each user's call on it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from relay.emulator.apis.cti.messages import CallStatus, CallStatusCode, FarEndType
from relay.emulator.apis.models import time_of
from relay.emulator.lines import LineKind
from relay.emulator.signaling.messages import LineStatus, PartyRole
from relay.emulator.signaling.state import Line, LineSpec


def statuses_of(
    spec: LineSpec,
    line: Line,
    users: Collection[str],
    *,
    offline: Collection[str] = (),
    private: Collection[str] = (),
    guests: Iterable[str] = (),
) -> Iterator[CallStatus]:
    """The status of each of these users who has the line, or is or was in a call on it.

    ``private`` are the calls that were begun with privacy. ``guests`` were in a call on the line without having it.
    """
    for user_id in {**spec.firm_of, **dict.fromkeys(line.parties), **dict.fromkeys(guests)}:
        if user_id in users:
            yield _status(spec, line, user_id, is_offline=user_id in offline, private=private)


def _status(spec: LineSpec, line: Line, user_id: str, *, is_offline: bool, private: Collection[str]) -> CallStatus:
    taking_part = user_id in line.parties and line.call is not None
    call_id = line.call.call_id if taking_part and line.call else None
    far_end, far_end_type = _far_end(spec, line, user_id)
    code = _code(line, user_id)
    return CallStatus(
        user_id=user_id,
        call_id=call_id,
        call_status_code=CallStatusCode.OFFLINE if is_offline and code is CallStatusCode.IDLE else code,
        near_end_number=spec.number,
        far_end_number=far_end,
        far_end_type=far_end_type,
        privacy_on=call_id in private,
        reason=str(line.reason) if line.reason and line.status is LineStatus.IDLE else None,
        timestamp=time_of(line.since) if line.since else None,
    )


def _code(line: Line, user_id: str) -> CallStatusCode:
    party = line.parties.get(user_id)
    if party is None or line.status is LineStatus.IDLE:
        return CallStatusCode.IDLE
    if line.status is LineStatus.RINGING:
        is_caller = party.role is PartyRole.CALLER
        return CallStatusCode.RINGING_OUTBOUND if is_caller else CallStatusCode.RINGING_INBOUND
    if line.status is LineStatus.CONNECTED:
        return CallStatusCode.CONNECTED_TWO_WAY
    hears = any(other.talking for name, other in line.parties.items() if name != user_id)
    if party.talking:
        return CallStatusCode.CONNECTED_TWO_WAY if hears else CallStatusCode.CONNECTED_OUTBOUND
    return CallStatusCode.CONNECTED_INBOUND


def _far_end(spec: LineSpec, line: Line, user_id: str) -> tuple[str, FarEndType]:
    """What the user calls, or is called by. On dial tone it is a number, or the user who has dialled."""
    if spec.kind is LineKind.DIAL_TONE and line.call is not None:
        if user_id not in spec.firm_of:
            return next(iter(spec.firm_of), spec.number), FarEndType.USER
        if line.call.number is not None:
            return line.call.number, FarEndType.DIAL_TONE
    return spec.number, FarEndType.CONNECTION
