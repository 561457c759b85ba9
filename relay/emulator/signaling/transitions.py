"""What the inputs do to lines: the handlers that the tables of ``machines`` name. No I/O, no clock.

Each takes what the line is, its state, the input, and the time in Unix seconds. It returns the next state, and the
record of a call that has ended. It raises Refusal for what is not possible now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from relay.emulator.lines import MAX_SUBSCRIBERS, MAX_TALKERS, LineKind
from relay.emulator.signaling.inputs import Answer, Gone, Input, Join, Leave, Release, Ring, Silenced, Talk
from relay.emulator.signaling.messages import EndReason, ErrorCode, LineStatus, PartyRole
from relay.emulator.signaling.state import Call, CallRecord, Line, LineSpec, Party, Refusal, Stay, end_call

# Long enough to walk back to the desk, short enough for a test run by hand.
RING_TIMEOUT_S = 30.0
# So that a developer sees the line ring.
DIAL_ANSWER_S = 1.0
# The last digits of numbers that are not answered: the status codes of SIP (RFC 3261, section 21.4).
UNANSWERED = {"486": EndReason.BUSY, "404": EndReason.UNREACHABLE}
SILENT_NUMBERS = "408"

Outcome = tuple[Line, CallRecord | None]
Handler = Callable[[LineSpec, Line, Input, float], Outcome]


# What handlers have in common


def _step(line: Line, now: float, **changes: object) -> Outcome:
    """The next state of a line on which the call goes on."""
    after = replace(line, seq=line.seq + 1, **changes)  # type: ignore[arg-type]
    return (after if after.status is line.status else replace(after, since=now)), None


def _party(line: Line, user_id: str) -> Party:
    if (party := line.parties.get(user_id)) is None:
        raise Refusal(ErrorCode.NOT_IN_CALL, "You are not in this call.", "a line that you are in")
    return party


def _began(told: Ring | Join, now: float, parties: Mapping[str, Party], *, rung: frozenset[str] = frozenset()) -> Call:
    """The new call of these parties, for some of whom it only rings yet."""
    return Call(
        call_id=told.call_id,
        region=told.region,
        started_at=now,
        answered_at=None if rung else now,
        number=told.number if isinstance(told, Ring) else None,
        stays={user_id: Stay(party.role, None if user_id in rung else now) for user_id, party in parties.items()},
    )


def _without_number(told: Ring) -> None:
    if told.number is not None:
        raise Refusal(ErrorCode.BAD_MESSAGE, "Only dial tone takes a number.", "line.ring without number")


def _may_talk(spec: LineSpec, user_id: str) -> None:
    if user_id in spec.listeners_only:
        raise Refusal(ErrorCode.WRONG_STATE, "You may only listen on this line.", "a member who is a talker")


def _others(spec: LineSpec, told: Ring, candidates: frozenset[str]) -> tuple[str, ...]:
    """The members at the other end who are among the candidates, in the order of the directory."""
    if not (found := tuple(user_id for user_id in spec.far_side(told.user_id) if user_id in candidates)):
        raise Refusal(
            ErrorCode.NOBODY_THERE,
            "Nobody at the other end of this line can be reached.",
            "a member who is logged in, and whose presence is not do_not_disturb",
        )
    return found


def _joined(call: Call | None, user_id: str, role: PartyRole, now: float) -> Call:
    """The call with one more in it. Who comes back has been there since they first came."""
    assert call is not None
    known = call.stays.get(user_id)
    first = known.joined_at if known and known.joined_at is not None else now
    return replace(call, stays={**call.stays, user_id: Stay(role, first)})


def _without(spec: LineSpec, line: Line, user_id: str, now: float, reason: EndReason, *, fewest: int) -> Outcome:
    """The line without one of its parties; it ends with fewer than ``fewest``."""
    parties = {other: party for other, party in line.parties.items() if other != user_id}
    if len(parties) < fewest:
        return end_call(spec, line, now, reason)
    assert line.call is not None
    stays = dict(line.call.stays)
    stays[user_id] = replace(stays[user_id], left_at=now)
    changed = replace(line, parties=parties, call=replace(line.call, stays=stays))
    return _step(changed, now, status=_STATUS_OF[spec.kind](spec, parties))


def _with_talking(spec: LineSpec, line: Line, told: Talk, now: float) -> Outcome:
    party = _party(line, told.user_id)
    if party.talking is told.on:
        return line, None
    if told.on:
        _may_talk(spec, told.user_id)
    parties = {**line.parties, told.user_id: replace(party, talking=told.on)}
    return _step(line, now, parties=parties, status=_STATUS_OF[spec.kind](spec, parties))


def silence(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """A talker may only listen now, and loses the floor."""
    assert isinstance(told, Silenced)
    party = line.parties.get(told.user_id)
    if party is None or not party.talking or told.user_id not in spec.listeners_only:
        return line, None
    role = PartyRole.LISTENER if party.role is PartyRole.TALKER else party.role
    parties = {**line.parties, told.user_id: Party(role)}
    return _step(line, now, parties=parties, status=_STATUS_OF[spec.kind](spec, parties))


# Ringdown


def ringdown_ring(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """It rings at the other end."""
    assert isinstance(told, Ring)
    _without_number(told)
    callees = _others(spec, told, told.disturbable)
    parties = {told.user_id: Party(PartyRole.CALLER), **dict.fromkeys(callees, Party(PartyRole.CALLEE))}
    call = _began(told, now, parties, rung=frozenset(callees))
    return _step(
        line,
        now,
        status=LineStatus.RINGING,
        parties=parties,
        call=call,
        deadline=now + RING_TIMEOUT_S,
        reason=None,
    )


def answer(_: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """The first who answers is connected."""
    assert isinstance(told, Answer | Ring)
    if _party(line, told.user_id).role is PartyRole.CALLER:
        raise Refusal(ErrorCode.WRONG_STATE, "You are calling on this line.", "line.release, or an answer")
    assert line.call is not None
    caller = next(user_id for user_id, party in line.parties.items() if party.role is PartyRole.CALLER)
    call = replace(_joined(line.call, told.user_id, PartyRole.CALLEE, now), answered_at=now)
    parties = {caller: Party(PartyRole.CALLER, talking=True), told.user_id: Party(PartyRole.CALLEE, talking=True)}
    return _step(line, now, status=LineStatus.CONNECTED, parties=parties, call=call, deadline=None)


def ringdown_pick_up(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """To ring a line that rings for you is to answer: both ends may pick up at once."""
    assert isinstance(told, Ring)
    _without_number(told)
    return answer(spec, line, told, now)


def stop_ringing(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """The caller gives up, or someone at the other end declines."""
    assert isinstance(told, Release | Gone)
    gone = isinstance(told, Gone)
    if gone and told.user_id not in line.parties:
        return line, None
    if _party(line, told.user_id).role is PartyRole.CALLER:
        return end_call(spec, line, now, EndReason.GONE if gone else EndReason.RELEASED)
    if gone:
        # It goes on ringing: they may still come back before it stops.
        return line, None
    parties = {user_id: party for user_id, party in line.parties.items() if user_id != told.user_id}
    if len(parties) == 1:
        return end_call(spec, line, now, EndReason.DECLINED)
    return _step(line, now, parties=parties)


def ring_timeout(spec: LineSpec, line: Line, _: Input, now: float) -> Outcome:
    """Nobody has answered in time."""
    if line.deadline is None or now < line.deadline:
        return line, None
    return end_call(spec, line, now, EndReason.TIMEOUT)


# Two and more at once: shoutdown, intercom


def connect(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """A line that is open at once."""
    assert isinstance(told, Ring)
    _without_number(told)
    two_way = spec.kind is LineKind.INTERCOM
    if not two_way:
        _may_talk(spec, told.user_id)
    callee = Party(PartyRole.LISTENER if spec.kind is LineKind.BROADCAST else PartyRole.CALLEE, talking=two_way)
    parties = {
        told.user_id: Party(PartyRole.CALLER, talking=True),
        **dict.fromkeys(_others(spec, told, told.reachable), callee),
    }
    return _step(
        line,
        now,
        status=_STATUS_OF[spec.kind](spec, parties),
        parties=parties,
        call=_began(told, now, parties),
        reason=None,
    )


def talk(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """A direction is switched on or off."""
    assert isinstance(told, Talk)
    return _with_talking(spec, line, told, now)


def hang_up(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """It ends when the caller hangs up, or the last but one."""
    assert isinstance(told, Release | Leave | Gone)
    gone = isinstance(told, Gone)
    if gone and told.user_id not in line.parties:
        return line, None
    reason = EndReason.GONE if gone else EndReason.RELEASED
    if _party(line, told.user_id).role is PartyRole.CALLER:
        return end_call(spec, line, now, reason)
    # A broadcast may go on without listeners: others can join.
    return _without(spec, line, told.user_id, now, reason, fewest=1 if spec.kind is LineKind.BROADCAST else 2)


# Hoot and broadcast


def join(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """One more listens."""
    assert isinstance(told, Join)
    if told.user_id in line.parties:
        return line, None
    if len(line.parties) >= MAX_SUBSCRIBERS:
        raise Refusal(
            ErrorCode.LINE_FULL, f"This line has {MAX_SUBSCRIBERS} subscribers.", "a later try, when one has left"
        )
    parties = {**line.parties, told.user_id: Party(PartyRole.LISTENER)}
    if line.call is None:
        call = _began(told, now, parties)
        return _step(line, now, status=LineStatus.CONNECTED, parties=parties, call=call, reason=None)
    return _step(line, now, parties=parties, call=_joined(line.call, told.user_id, PartyRole.LISTENER, now))


def leave_hoot(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """One fewer; the last who goes ends the call."""
    assert isinstance(told, Leave | Release | Gone)
    gone = isinstance(told, Gone)
    if gone and told.user_id not in line.parties:
        return line, None
    _party(line, told.user_id)
    return _without(spec, line, told.user_id, now, EndReason.GONE if gone else EndReason.LEFT, fewest=1)


def take_floor(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """Talk on a hoot, or stop: the floor has a bounded number of places."""
    assert isinstance(told, Talk)
    party = _party(line, told.user_id)
    if told.on and not party.talking and len(line.talkers) >= MAX_TALKERS:
        raise Refusal(
            ErrorCode.FLOOR_FULL, f"{MAX_TALKERS} others talk already.", "a later try, when one of them has stopped"
        )
    role = PartyRole.TALKER if told.on else PartyRole.LISTENER
    changed = replace(line, parties={**line.parties, told.user_id: replace(party, role=role)})
    after, ended = _with_talking(spec, changed, told, now)
    return (line, None) if after.seq == line.seq else (_with_talker_noted(after, told), ended)


def _with_talker_noted(line: Line, told: Talk) -> Line:
    """The record tells who has talked at all."""
    if not told.on or line.call is None:
        return line
    stay = replace(line.call.stays[told.user_id], role=PartyRole.TALKER)
    return replace(line, call=replace(line.call, stays={**line.call.stays, told.user_id: stay}))


def talk_on_broadcast(spec: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """Only who started a broadcast talks on it."""
    assert isinstance(told, Talk)
    if _party(line, told.user_id).role is not PartyRole.CALLER:
        raise Refusal(ErrorCode.WRONG_STATE, "Only the one who started a broadcast talks on it.", "line.leave")
    return _with_talking(spec, line, told, now)


# Dial tone


def dial(_: LineSpec, line: Line, told: Input, now: float) -> Outcome:
    """Call a number."""
    assert isinstance(told, Ring)
    if told.number is None:
        raise Refusal(ErrorCode.BAD_MESSAGE, "Dial tone needs a number.", "number: digits, * or #, up to 32")
    if told.callee == told.user_id:
        raise Refusal(ErrorCode.BAD_MESSAGE, "This is your own extension.", "the extension of someone else")
    parties = {told.user_id: Party(PartyRole.CALLER)}
    rung = frozenset({told.callee}) if told.callee is not None else frozenset[str]()
    if not rung <= told.disturbable:
        raise Refusal(ErrorCode.NOBODY_THERE, "They do not want to be disturbed.", "someone whom you may disturb")
    parties.update(dict.fromkeys(rung, Party(PartyRole.CALLEE)))
    waits_long = bool(rung) or told.number.endswith(SILENT_NUMBERS)
    return _step(
        line,
        now,
        status=LineStatus.RINGING,
        parties=parties,
        call=replace(_began(told, now, parties, rung=rung), answered_at=None),
        deadline=now + (RING_TIMEOUT_S if waits_long else DIAL_ANSWER_S),
        reason=None,
    )


def dialled(spec: LineSpec, line: Line, _: Input, now: float) -> Outcome:
    """What becomes of a number after it has rung for a while."""
    if line.deadline is None or now < line.deadline:
        return line, None
    assert line.call is not None
    number = line.call.number or ""
    if len(line.parties) > 1 or number.endswith(SILENT_NUMBERS):
        return end_call(spec, line, now, EndReason.TIMEOUT)
    if (reason := UNANSWERED.get(number[-3:])) is not None:
        return end_call(spec, line, now, reason)
    parties = {user_id: replace(party, talking=True) for user_id, party in line.parties.items()}
    call = replace(line.call, answered_at=now)
    return _step(line, now, status=LineStatus.CONNECTED, parties=parties, call=call, deadline=None)


# What the parties make of the state of a line on which a call goes on


def _one_or_both_ways(spec: LineSpec, parties: Mapping[str, Party]) -> LineStatus:
    sides = {spec.side_of(user_id) for user_id, party in parties.items() if party.talking}
    return LineStatus.TALKING if len(sides) == 1 else LineStatus.CONNECTED


def _whether_anyone_talks(_: LineSpec, parties: Mapping[str, Party]) -> LineStatus:
    return LineStatus.TALKING if any(party.talking for party in parties.values()) else LineStatus.CONNECTED


def _connected(_: LineSpec, __: Mapping[str, Party]) -> LineStatus:
    return LineStatus.CONNECTED


_STATUS_OF: dict[LineKind, Callable[[LineSpec, Mapping[str, Party]], LineStatus]] = {
    LineKind.RINGDOWN: _connected,
    LineKind.SHOUTDOWN: _one_or_both_ways,
    LineKind.HOOT: _whether_anyone_talks,
    LineKind.INTERCOM: _connected,
    LineKind.DIAL_TONE: _connected,
    LineKind.BROADCAST: _whether_anyone_talks,
}
