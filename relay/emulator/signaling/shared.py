"""The state that all signaling processes share: lines and sessions. Here for one process, in memory.

``shared_redis`` is the same for several processes. Both promise that ``change_line`` is atomic, and that what it has
decided (line, deadline, record of an ended call) is stored together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from relay.emulator.signaling.messages import LineStatus, PresenceStatus
from relay.emulator.signaling.state import CallRecord, Decision, Line, LineSpec

Decide = Callable[[Line], Decision]


@dataclass(frozen=True, slots=True)
class Session:
    """A user who is logged in, on one connection of one process.

    ``vanished_until``: the connection is lost, and at this time the session ends. Until then the user may come back.
    ``login`` is ``Account.login``.
    """

    user_id: str
    connection: str
    process: str
    presence: PresenceStatus = PresenceStatus.AVAILABLE
    vanished_until: float | None = None
    login: str = ""

    @property
    def is_connected(self) -> bool:
        """Whether the user can be reached now."""
        return self.vanished_until is None


class Shared(Protocol):
    """What both have. All may raise UpstreamError."""

    async def read_lines(self, numbers: Iterable[str]) -> dict[str, Line]:
        """What goes on on these lines."""

    async def change_line(self, spec: LineSpec, decide: Decide) -> Decision:
        """Have a line decided on, and store it. ``decide`` may run several times, and what it raises passes."""

    async def due_lines(self, now: float) -> list[str]:
        """The lines whose deadline has come."""

    async def live_lines(self) -> list[str]:
        """The lines on which a call goes on."""

    async def guest_lines(self, user_id: str) -> list[str]:
        """The lines of others on which a user is in a call: dial tone."""

    async def line_of_call(self, call_id: str) -> str | None:
        """The line of a call that goes on."""

    async def open_session(self, session: Session) -> Session | None:
        """Begin a session in the place of the user's former one, which is returned. It keeps the former's presence."""

    async def sessions(self, user_ids: Iterable[str]) -> dict[str, Session]:
        """The sessions of those of these users who have one."""

    async def set_presence(self, user_id: str, presence: PresenceStatus) -> None:
        """Note the presence of a user who has a session."""

    async def vanish(self, user_id: str, connection: str, until: float) -> bool:
        """Note that a connection is lost. False if it is not the user's any longer. The earliest ``until`` counts."""

    async def end_session(self, session: Session) -> bool:
        """End a session that is still as it was. False if the user has come back."""

    async def due_sessions(self, now: float) -> list[Session]:
        """The vanished sessions whose time is up."""

    async def next_due(self) -> float | None:
        """When the next line or session is due."""

    async def unwritten_records(self, now: float) -> list[CallRecord]:
        """The records of ended calls that have not been written for a while."""

    async def record_written(self, call_id: str) -> None:
        """A record is durable elsewhere."""

    async def beat(self, now: float) -> bool:
        """Say that this process lives. False if others took it for dead meanwhile, or this is the first time."""

    async def bury_dead(self, now: float, grace_s: float) -> int:
        """Let the sessions of dead processes vanish. Returns how many did."""

    async def leave(self, until: float) -> None:
        """This process ends. Its users may come back elsewhere until then."""

    async def close(self) -> None:
        """Free what is open."""


# A record that is older than this is written again: the process that was about to write it has failed, or is dead.
RECORD_PATIENCE_S = 5.0


class MemoryShared:
    """For one process. Its methods never wait, so each is atomic."""

    def __init__(self) -> None:
        # Bounded by the lines and users of the directory; an idle line that was never used is not here.
        self._lines: dict[str, Line] = {}
        self._deadlines: dict[str, float] = {}
        self._calls: dict[str, str] = {}
        self._guests: dict[str, set[str]] = {}
        self._sessions: dict[str, Session] = {}
        self._records: dict[str, CallRecord] = {}

    async def read_lines(self, numbers: Iterable[str]) -> dict[str, Line]:
        """See ``Shared``; the other methods too."""
        return {number: self._lines.get(number, Line()) for number in numbers}

    async def change_line(self, spec: LineSpec, decide: Decide) -> Decision:
        """Decide and store."""
        decision = decide(self._lines.get(spec.number, Line()))
        if decision.changed:
            self._store(spec, decision)
        return decision

    def _store(self, spec: LineSpec, decision: Decision) -> None:
        number, line = spec.number, decision.line
        self._lines[number] = line
        if (deadline := line.deadline) is not None:
            self._deadlines[number] = deadline
        else:
            self._deadlines.pop(number, None)
        if line.call is not None:
            self._calls[line.call.call_id] = number
        elif decision.before.call is not None:
            self._calls.pop(decision.before.call.call_id, None)
        came, left = guests_change(spec, decision)
        for user_id in came:
            self._guests.setdefault(user_id, set()).add(number)
        for user_id in left:
            # Someone who has just lost the line was not noted when they came in.
            lines = self._guests.get(user_id, set())
            lines.discard(number)
            if not lines:
                self._guests.pop(user_id, None)
        if decision.ended is not None:
            self._records[decision.ended.call_id] = decision.ended

    async def due_lines(self, now: float) -> list[str]:
        """Numbers whose deadline has come."""
        return [number for number, deadline in self._deadlines.items() if deadline <= now]

    async def live_lines(self) -> list[str]:
        """Numbers of lines with a call."""
        return [number for number, line in self._lines.items() if line.status is not LineStatus.IDLE]

    async def guest_lines(self, user_id: str) -> list[str]:
        """Numbers of the lines of others."""
        return sorted(self._guests.get(user_id, ()))

    async def line_of_call(self, call_id: str) -> str | None:
        """The number of a call's line."""
        return self._calls.get(call_id)

    async def open_session(self, session: Session) -> Session | None:
        """Replace the user's session."""
        former = self._sessions.get(session.user_id)
        self._sessions[session.user_id] = replace(session, presence=former.presence) if former else session
        return former

    async def sessions(self, user_ids: Iterable[str]) -> dict[str, Session]:
        """Those who have one."""
        return {user_id: self._sessions[user_id] for user_id in user_ids if user_id in self._sessions}

    async def set_presence(self, user_id: str, presence: PresenceStatus) -> None:
        """Only with a session."""
        if (session := self._sessions.get(user_id)) is not None:
            self._sessions[user_id] = replace(session, presence=presence)

    async def vanish(self, user_id: str, connection: str, until: float) -> bool:
        """Only if it is still this connection."""
        session = self._sessions.get(user_id)
        if session is None or session.connection != connection:
            return False
        self._sessions[user_id] = vanished(session, until)
        return True

    async def end_session(self, session: Session) -> bool:
        """Only if nothing has changed."""
        if not same_session(self._sessions.get(session.user_id), session):
            return False
        del self._sessions[session.user_id]
        return True

    async def due_sessions(self, now: float) -> list[Session]:
        """Vanished, and the time is up."""
        return [one for one in self._sessions.values() if one.vanished_until is not None and one.vanished_until <= now]

    async def next_due(self) -> float | None:
        """The first deadline of all."""
        vanished = (one.vanished_until for one in self._sessions.values() if one.vanished_until is not None)
        return min((*self._deadlines.values(), *vanished), default=None)

    async def unwritten_records(self, now: float) -> list[CallRecord]:
        """Older than ``RECORD_PATIENCE_S``."""
        return [record for record in self._records.values() if record.ended_at <= now - RECORD_PATIENCE_S]

    async def record_written(self, call_id: str) -> None:
        """Forget a record."""
        self._records.pop(call_id, None)

    async def beat(self, now: float) -> bool:
        """Nobody else is there to take this process for dead."""
        return True

    async def bury_dead(self, now: float, grace_s: float) -> int:
        """There are no other processes."""
        return 0

    async def leave(self, until: float) -> None:
        """Nobody is left."""

    async def close(self) -> None:
        """Nothing is open."""


def guests_change(spec: LineSpec, decision: Decision) -> tuple[set[str], set[str]]:
    """Who came into a call on a line that they do not have, and who left it."""
    before = {user_id for user_id in decision.before.parties if user_id not in spec.firm_of}
    after = {user_id for user_id in decision.line.parties if user_id not in spec.firm_of}
    return after - before, before - after


def vanished(session: Session, until: float) -> Session:
    """A session whose connection is lost. Who has to go at once is not given more time later."""
    return replace(session, vanished_until=min(until, session.vanished_until or until))


def same_session(now: Session | None, known: Session) -> bool:
    """Whether a session is still the one that is known, on the same connection, and vanished or not."""
    return now is not None and (now.connection, now.vanished_until) == (known.connection, known.vanished_until)
