"""The state machines of lines: for each kind a table of what each input does in each state. No I/O, no clock.

``decide(spec, line, input, now)`` returns a ``Decision``, or raises ``Refusal`` for what is not possible now. An input
that changes nothing, such as the news that someone has gone who was not there, leaves ``seq`` as it is.

How each kind behaves, in the vendor's words (documented), and what we made of it (invented)
--------------------------------------------------------------------------------------------
ringdown    rings at the other end; the first who answers is connected. Nobody in 30 s: ``timeout``
shoutdown   directional: someone may talk to you while you do not transmit. It is open at once, the caller talks, and
            each direction is switched with ``line.talk``
hoot        up to 800 subscribers; all may talk, at most 12 at once
intercom    connects at once, two-way
dial_tone   dials a number. A user's extension rings for that user, who need not have the line. The emulator answers
            other numbers after a second, except for those that end in 404, 408 or 486, as SIP has them: not found,
            nobody answers, busy
broadcast   one talks, everyone who is logged in listens
"""

from __future__ import annotations

from relay.emulator.lines import LineKind
from relay.emulator.signaling.inputs import (
    EVENTS,
    Answer,
    Deadline,
    Gone,
    Input,
    Join,
    Leave,
    Release,
    Removed,
    Ring,
    Silenced,
    Talk,
)
from relay.emulator.signaling.messages import EndReason, ErrorCode, LineStatus
from relay.emulator.signaling.state import Decision, Line, LineSpec, Refusal, end_call
from relay.emulator.signaling.transitions import (
    Handler,
    answer,
    connect,
    dial,
    dialled,
    hang_up,
    join,
    leave_hoot,
    ring_timeout,
    ringdown_pick_up,
    ringdown_ring,
    silence,
    stop_ringing,
    take_floor,
    talk,
    talk_on_broadcast,
)


def decide(spec: LineSpec, line: Line, told: Input, now: float) -> Decision:
    """What an input does to a line. Raises Refusal."""
    if isinstance(told, Removed):
        after, ended = (line, None) if line.call is None else end_call(spec, line, now, EndReason.REMOVED)
        return Decision(line, after, ended)
    if not isinstance(told, Deadline) and not is_for(spec, line, told.user_id):
        if isinstance(told, Gone | Silenced):
            return Decision(line, line)
        raise no_such_line(spec.number)
    inputs = TABLES[spec.kind][line.status]
    handler = inputs.get(type(told))
    if handler is None:
        if isinstance(told, Gone | Silenced | Deadline):
            return Decision(line, line)
        possible = ", ".join(EVENTS[kind] for kind in inputs if kind in EVENTS)
        raise Refusal(
            ErrorCode.WRONG_STATE,
            f"{EVENTS[type(told)]} is not possible on a {spec.kind} line that is {line.status}.",
            f"one of: {possible}",
        )
    after, ended = handler(spec, line, told, now)
    return Decision(line, after, ended)


def is_for(spec: LineSpec, line: Line, user_id: str) -> bool:
    """Whether a user has the line, or was called by its dial tone."""
    return user_id in spec.firm_of or user_id in line.parties


def no_such_line(number: str) -> Refusal:
    """The same for a line that does not exist and one that is not yours."""
    return Refusal(ErrorCode.UNKNOWN_LINE, f"You have no line {number}.", "one of your lines")


# The tables. What is not in them is refused, or ignored if nobody asked for it (Gone, Silenced, Deadline).

_OPEN_SHOUTDOWN: dict[type[Input], Handler] = {Talk: talk, Release: hang_up, Gone: hang_up, Silenced: silence}
_OPEN_HOOT: dict[type[Input], Handler] = {
    Join: join,
    Talk: take_floor,
    Leave: leave_hoot,
    Release: leave_hoot,
    Gone: leave_hoot,
    Silenced: silence,
}
_OPEN_BROADCAST: dict[type[Input], Handler] = {
    Join: join,
    Talk: talk_on_broadcast,
    Leave: hang_up,
    Release: hang_up,
    Gone: hang_up,
    Silenced: silence,
}
_TWO_PARTIES: dict[type[Input], Handler] = {Release: hang_up, Gone: hang_up}

TABLES: dict[LineKind, dict[LineStatus, dict[type[Input], Handler]]] = {
    LineKind.RINGDOWN: {
        LineStatus.IDLE: {Ring: ringdown_ring},
        LineStatus.RINGING: {
            Answer: answer,
            Ring: ringdown_pick_up,
            Release: stop_ringing,
            Gone: stop_ringing,
            Deadline: ring_timeout,
        },
        LineStatus.CONNECTED: _TWO_PARTIES,
    },
    LineKind.SHOUTDOWN: {
        LineStatus.IDLE: {Ring: connect},
        LineStatus.TALKING: _OPEN_SHOUTDOWN,
        LineStatus.CONNECTED: _OPEN_SHOUTDOWN,
    },
    LineKind.HOOT: {
        LineStatus.IDLE: {Join: join},
        LineStatus.CONNECTED: _OPEN_HOOT,
        LineStatus.TALKING: _OPEN_HOOT,
    },
    LineKind.INTERCOM: {
        LineStatus.IDLE: {Ring: connect},
        LineStatus.CONNECTED: _TWO_PARTIES,
    },
    LineKind.DIAL_TONE: {
        LineStatus.IDLE: {Ring: dial},
        LineStatus.RINGING: {
            Answer: answer,
            Release: stop_ringing,
            Gone: stop_ringing,
            Deadline: dialled,
        },
        LineStatus.CONNECTED: _TWO_PARTIES,
    },
    LineKind.BROADCAST: {
        LineStatus.IDLE: {Ring: connect},
        LineStatus.TALKING: _OPEN_BROADCAST,
        LineStatus.CONNECTED: _OPEN_BROADCAST,
    },
}
