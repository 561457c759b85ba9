"""The hub: takes what clients say, has the machines decide, stores it, and tells everyone concerned.

Life of a message: ``handle`` → its model → the machine's decision, stored by ``Shared`` → ``line.state`` to the members
→ the record of an ended call, durable → the acknowledgement. It knows neither socket.io nor a database: a
``Delivery`` carries messages, a ``Directory`` knows the firms, and ``Announcer`` knows whom to tell what.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import ValidationError

from relay import deadlines
from relay.emulator.lines import LineKind
from relay.emulator.signaling import inputs, messages
from relay.emulator.signaling.announcer import Announcer, Delivery, line_room, user_room
from relay.emulator.signaling.directory import Account, Directory, OnCallEnded
from relay.emulator.signaling.event_log import EventLog
from relay.emulator.signaling.machines import decide, no_such_line
from relay.emulator.signaling.messages import (
    MAX_LISTED_PARTICIPANTS,
    MEDIA_SERVER,
    ErrorCode,
    Event,
    LineState,
    PresenceStatus,
    SessionEnd,
    SessionEnded,
    SessionReplaced,
    Welcome,
)
from relay.emulator.signaling.parsing import parse, refused
from relay.emulator.signaling.shared import Session, Shared
from relay.emulator.signaling.state import CallRecord, Decision, Line, LineSpec, Refusal, build_line_state
from relay.errors import UpstreamError

log = structlog.get_logger()

# How long a vanished client's calls wait for it: a client that was restarted is back in 5 to 10 s, and whoever it
# talked to should not hear silence much longer.
GRACE_S = 15.0
# Our own side may be slow: a database that waits for its disk. A client gives up after 20 s or so.
HANDLE_TIMEOUT_S = 10.0
# What hubs say to each other: lines, or who has them, have changed; logins have ended.
LINES, LOGINS = "lines", "logins"
NO_SFU = "There is no SFU: hoots have no voice while several processes share their state (--redis)."
OnMedia = Callable[[str, str, "messages.SendDescription | messages.SendCandidate"], Awaitable[None]]


@dataclass(slots=True)
class Connection:
    """A client that has logged in here."""

    account: Account
    specs: dict[str, LineSpec] = field(default_factory=dict)


class Hub:
    """See the module. ``grace_s`` is how long a vanished client's calls wait, ``clock`` gives Unix time."""

    def __init__(
        self,
        directory: Directory,
        shared: Shared,
        delivery: Delivery,
        on_call_ended: OnCallEnded,
        *,
        process: str = "",
        event_log: EventLog | None = None,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.shared = shared
        self.event_log = event_log or EventLog()
        self.grace_s = grace_s
        self.process = process or uuid.uuid4().hex
        self.clock = clock
        # Set when a deadline may be nearer than before.
        self.sooner = asyncio.Event()
        self.announcer = Announcer(directory, shared, delivery, self.sooner)
        self.connections: dict[str, Connection] = {}
        # Connections whose loss could not be stored: user to connection and end of the grace. At most one a user.
        self.unsaid: dict[str, tuple[str, float]] = {}
        self._delivery = delivery
        self._on_call_ended = on_call_ended
        self._media_server: OnMedia | None = None
        # Users who came, and whose presence was not yet told. One connection may replace another before that.
        self._untold: set[str] = set()

    # What other parts of the emulator may do

    def serve_media(self, on_media: OnMedia) -> None:
        """Take what clients send ``to`` the media server: called with user, line number and message."""
        self._media_server = on_media

    async def act(self, user_id: str, region: str, message: Event) -> LineState:
        """Do for a user what a ``line.`` message asks for. Raises Refusal and UpstreamError."""
        spec, decision = await self._on_line(user_id, region, message)
        return LineState.model_validate_json(json.dumps(build_line_state(spec, decision.line)))

    async def live_lines(self) -> list[tuple[LineSpec, Line]]:
        """The lines on which a call goes on. Raises UpstreamError."""
        lines = await self.shared.read_lines(await self.shared.live_lines())
        specs = {number: await self.directory.line(number) for number in lines}
        return [(spec, line) for number, line in lines.items() if (spec := specs[number]) is not None]

    async def send_media(
        self, to: str, message: messages.MediaDescription | messages.MediaCandidate | messages.Fault
    ) -> None:
        """Send a description or a candidate of the media server to a user, or why it cannot serve them."""
        await self._delivery.emit(message.event, message.model_dump(mode="json", by_alias=True), [user_room(to)])

    async def lines_changed(self) -> None:
        """Lines or their members were changed: let clients know, here and in other processes."""
        await self.reload()
        await self._delivery.tell_others(LINES)

    async def logins_ended(self) -> None:
        """Logins were ended: have their clients leave, here and in other processes."""
        await self.end_logged_out()
        await self._delivery.tell_others(LOGINS)

    # Connections

    async def connect(self, connection: str, auth: object) -> None:
        """Log a client in. Raises Refusal."""
        try:
            token = messages.ConnectAuth.model_validate(auth).token
        except ValidationError:
            raise Refusal(
                ErrorCode.NOT_LOGGED_IN, "The connection has no token.", 'auth: {"token": "..."}, from a login'
            ) from None
        try:
            async with deadlines.timeout(HANDLE_TIMEOUT_S):
                account = await self.directory.user_of_token(token)
                if account is None:
                    raise Refusal(ErrorCode.NOT_LOGGED_IN, "The token is unknown, or has ended.", "a new login")
                session = Session(account.user_id, connection, self.process, login=account.login)
                former = await self.shared.open_session(session)
        except Refusal:
            raise
        except Exception as error:
            raise self._unavailable(error, "connect") from error
        self.connections[connection] = Connection(account)
        if former is None:
            self._untold.add(account.user_id)
        self.unsaid.pop(account.user_id, None)
        self.event_log.session(account.user_id, "opened", self.clock())
        if former is not None and former.connection != connection and former.is_connected:
            self.event_log.session(account.user_id, "replaced", self.clock())
            await self.replace_connection(former.connection)

    async def replace_connection(self, connection: str) -> None:
        """Tell a connection, here or elsewhere, that its user has another one now, and end it."""
        await self._delivery.emit(SessionReplaced.event, {}, [connection])
        await self._delivery.drop(connection)

    async def end_logged_out(self) -> None:
        """End the sessions whose login has ended: by a logout, by time, or because its user was disabled.

        Nobody can come back with such a login, so there is no grace: not for the connections here, and not for clients
        that have vanished, wherever they were.
        """
        async with deadlines.timeout(HANDLE_TIMEOUT_S):
            held = {connection: known.account for connection, known in self.connections.items() if known.account.login}
            lost = [session for session in await self.shared.due_sessions(math.inf) if session.login]
            logins = {account.login for account in held.values()} | {session.login for session in lost}
            still_open = await self.directory.still_open(logins)
            ended = {connection: account for connection, account in held.items() if account.login not in still_open}
            disabled = await self.directory.disabled({account.user_id for account in ended.values()})
        for connection, account in ended.items():
            if connection in self.connections:
                over = SessionEnd.EXPIRED if account.ends_at <= self.clock() else SessionEnd.ENDED
                await self._end(connection, SessionEnd.DISABLED if account.user_id in disabled else over)
        for session in lost:
            if session.login not in still_open:
                await self.shared.vanish(session.user_id, session.connection, self.clock())
                self.sooner.set()

    async def _end(self, connection: str, reason: SessionEnd) -> None:
        """Have a client here leave at once and for good, and tell it why."""
        await self._delivery.emit(SessionEnded.event, {"reason": reason}, [connection])
        await self.disconnect(connection, for_good=True)
        await self._delivery.drop(connection)

    async def admit(self, connection: str) -> None:
        """Tell a client that has logged in everything, and others that it is there.

        It may be gone at any moment: another connection of the same user replaces it.
        """
        if (known := self.connections.get(connection)) is None:
            return
        try:
            async with deadlines.timeout(HANDLE_TIMEOUT_S):
                if not await self._welcome_in(connection, known):
                    return
                if known.account.user_id in self._untold:
                    self._untold.discard(known.account.user_id)
                    user_id, specs = known.account.user_id, known.specs.values()
                    await self.announcer.tell_presence(user_id, specs, PresenceStatus.AVAILABLE)
        except Exception as error:
            refusal = self._unavailable(error, "welcome")
            fault = messages.Fault(code=refusal.info.code, message=refusal.info.message)
            await self._delivery.emit(fault.event, fault.model_dump(mode="json"), [connection])
            await self._delivery.drop(connection)

    async def disconnect(self, connection: str, *, for_good: bool) -> None:
        """A connection is lost. ``for_good``: the client has said so, and will not come back."""
        known = self.connections.pop(connection, None)
        if known is None:
            return
        user_id, now = known.account.user_id, self.clock()
        until = now if for_good else now + self.grace_s
        try:
            vanished = await self.shared.vanish(user_id, connection, until)
        except UpstreamError:
            self.unsaid[user_id] = (connection, until)
            return
        if vanished:
            self.event_log.session(user_id, "vanished", now)
            self.sooner.set()

    async def reload(self) -> None:
        """Read all lines again: new rooms and a new welcome for all, and calls end for those who lost their line."""
        self.directory.forget()
        former = {number: spec for known in self.connections.values() for number, spec in known.specs.items()}
        for number, line in (await self.shared.read_lines(await self.shared.live_lines())).items():
            spec = await self.directory.line(number)
            if spec is None and (spec := former.get(number)) is not None:
                await self.apply(spec, inputs.Removed(), "removed")
            elif spec is not None:
                await self._enforce(spec, line)
        for connection, known in list(self.connections.items()):
            await self._welcome_in(connection, known)

    async def _enforce(self, spec: LineSpec, line: Line) -> None:
        """Have those leave a call who have lost its line, and those stop talking who may only listen now."""
        if spec.kind is not LineKind.DIAL_TONE:
            for user_id in line.parties.keys() - spec.firm_of.keys():
                await self.apply(spec, inputs.Gone(user_id), "gone")
        for user_id in spec.listeners_only.intersection(line.talkers):
            await self.apply(spec, inputs.Silenced(user_id), "silenced")

    async def _welcome_in(self, connection: str, known: Connection) -> bool:
        """Put a connection into its rooms, and tell it everything. False if it is gone meanwhile."""
        known.specs = {spec.number: spec for spec in await self.directory.lines_of(known.account.user_id)}
        if connection not in self.connections:
            return False
        rooms = [user_room(known.account.user_id), *(line_room(number) for number in known.specs)]
        await self._delivery.enter(connection, rooms)
        welcome = await self.announcer.welcome(known.account, known.specs)
        if connection not in self.connections:
            return False
        await self._delivery.emit(Welcome.event, welcome, [connection])
        return True

    # Messages

    async def handle(self, connection: str, event: str, payload: object) -> dict[str, Any]:
        """The acknowledgement of a client's message."""
        try:
            async with deadlines.timeout(HANDLE_TIMEOUT_S):
                return {"ok": True, **await self._handle(connection, parse(event, payload))}
        except Refusal as refusal:
            return refused(refusal)
        except Exception as error:
            return refused(self._unavailable(error, event))

    def _unavailable(self, error: Exception, what: str) -> Refusal:
        """What a client is told of our own failure; the log has the rest."""
        if isinstance(error, UpstreamError | TimeoutError):
            log.warning("signaling failed", what=what, error=str(error) or type(error).__name__)
            return Refusal(ErrorCode.UNAVAILABLE, "The emulator cannot do this now.", "a later try")
        incident = secrets.token_hex(4)
        log.error("signaling failed", what=what, incident=incident, exc_info=error)
        return Refusal(ErrorCode.UNAVAILABLE, f"A fault of the emulator's own; its log has incident {incident}.")

    async def _handle(self, connection: str, message: Event) -> dict[str, Any]:
        known = self.connections.get(connection)
        if known is None:
            raise Refusal(ErrorCode.NOT_LOGGED_IN, "This connection has no session.", "a new connection")
        if isinstance(message, messages.StateGet):
            return await self.announcer.welcome(known.account, known.specs)
        if isinstance(message, messages.PresenceSet):
            await self.shared.set_presence(known.account.user_id, message.state)
            await self.announcer.tell_presence(known.account.user_id, known.specs.values(), message.state)
            return {}
        if isinstance(message, messages.SendDescription | messages.SendCandidate):
            await self._on_media(known.account.user_id, message)
            return {}
        spec, decision = await self._on_line(known.account.user_id, known.account.region, message)
        if connection not in self.connections:
            await self._leave_behind(spec, known.account.user_id)
        return {"line_state": build_line_state(spec, decision.line)}

    async def _on_line(self, user_id: str, region: str, message: Event) -> tuple[LineSpec, Decision]:
        number: str = message.line  # type: ignore[attr-defined]
        spec = await self.directory.line(number)
        if spec is None:
            raise no_such_line(number)
        told = await self._input(spec, user_id, region, message)
        decision = await self.apply(spec, told, message.event)
        now = await self.directory.line(number)
        if now is not None and now is not spec:
            # The line may have changed meanwhile: what was allowed before may not be now.
            await self._enforce(now, decision.line)
        return spec, decision

    async def _leave_behind(self, spec: LineSpec, user_id: str) -> None:
        """A client was ended while its message was handled: what it began must not outlive its session."""
        session = (await self.shared.sessions([user_id])).get(user_id)
        until = session.vanished_until if session is not None else 0.0
        if until is not None and until <= self.clock():
            await self.apply(spec, inputs.Gone(user_id), "gone")

    async def _input(self, spec: LineSpec, user_id: str, region: str, message: Event) -> inputs.Input:
        match message:
            case messages.LineRing():
                return await self._ring(spec, user_id, region, message.number)
            case messages.LineJoin():
                return inputs.Join(user_id, str(uuid.uuid4()), region)
            case messages.LineAnswer():
                return inputs.Answer(user_id)
            case messages.LineRelease():
                return inputs.Release(user_id)
            case messages.LineTalk():
                return inputs.Talk(user_id, message.on)
            case messages.LineLeave():
                return inputs.Leave(user_id)
        raise Refusal(ErrorCode.UNKNOWN_EVENT, f"{message.event} is not about a line.", "a line. message")

    async def _ring(self, spec: LineSpec, user_id: str, region: str, number: str | None) -> inputs.Ring:
        callee = None
        if spec.kind is LineKind.DIAL_TONE and number is not None:
            callee = await self.directory.user_of_extension(number)
        concerned = {*spec.firm_of, *((callee,) if callee else ())}
        sessions = await self.shared.sessions(concerned)
        undisturbed = {one.user_id for one in sessions.values() if one.presence is PresenceStatus.DO_NOT_DISTURB}
        connected = {one.user_id for one in sessions.values() if one.is_connected}
        # A broadcast is for everyone.
        reachable = connected if spec.kind is LineKind.BROADCAST else connected - undisturbed
        return inputs.Ring(
            user_id,
            str(uuid.uuid4()),
            region,
            number,
            reachable=frozenset(reachable - {user_id}),
            disturbable=frozenset(concerned - undisturbed),
            callee=callee,
        )

    async def apply(self, spec: LineSpec, told: inputs.Input, event: str) -> Decision:
        """Decide, store, tell, and have the record of an ended call written. Raises Refusal and UpstreamError."""
        now = self.clock()
        decision = await self.shared.change_line(spec, lambda line: decide(spec, line, told, now))
        if not decision.changed:
            return decision
        user_id = None if isinstance(told, inputs.Deadline | inputs.Removed) else told.user_id
        self.event_log.transition(spec, decision, event, user_id, now)
        await self.announcer.publish(spec, decision)
        if decision.line.deadline is not None:
            self.sooner.set()
        if decision.ended is not None:
            await self.write_record(decision.ended)
        return decision

    async def write_record(self, record: CallRecord) -> None:
        """Have a record made durable. Raises UpstreamError; housekeeping tries again."""
        try:
            await self._on_call_ended(record)
        except Exception as error:
            log.error("the record of a call was not written", call_id=record.call_id, exc_info=error)
            raise UpstreamError(f"the record of call {record.call_id} was not written: {error}") from error
        await self.shared.record_written(record.call_id)

    # Media

    async def _on_media(self, user_id: str, message: messages.SendDescription | messages.SendCandidate) -> None:
        number = await self.shared.line_of_call(message.call_id)
        line = (await self.shared.read_lines([number]))[number] if number is not None else Line()
        if number is None or line.call is None or line.call.call_id != message.call_id or user_id not in line.parties:
            raise Refusal(ErrorCode.NOT_IN_CALL, "You are not in this call.", "the call_id of a call that goes on")
        if message.to == MEDIA_SERVER:
            if self._media_server is None:
                raise Refusal(ErrorCode.UNAVAILABLE, NO_SFU, "an emulator of one process, without --redis")
            await self._media_server(user_id, number, message)
            return
        if message.to not in line.parties or message.to == user_id:
            expected = ", ".join(other for other in list(line.parties)[:MAX_LISTED_PARTICIPANTS] if other != user_id)
            raise Refusal(ErrorCode.NOT_IN_CALL, f"{message.to} is not in this call.", f"one of: {expected}")
        session = (await self.shared.sessions([message.to])).get(message.to)
        if session is None or not session.is_connected:
            raise Refusal(ErrorCode.NOBODY_THERE, f"{message.to} is not connected now.", "someone who is connected")
        payload = message.model_dump(mode="json", exclude={"to"})
        await self._delivery.emit(message.event, {**payload, "from": user_id}, [user_room(message.to)])
