"""What must be done without anybody asking: deadlines, sessions that end, unwritten records, dead processes.

Everything here may be done by several processes at once, or twice: nothing is wrong then.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from relay import deadlines
from relay.emulator.signaling import inputs
from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.messages import PresenceStatus
from relay.emulator.signaling.shared import Session
from relay.errors import UpstreamError
from relay.tasks import Tasks

log = structlog.get_logger()

# What other processes have left is found this soon, and a process says this often that it lives.
TICK_S = 1.0
# A user who has logged out hears nothing after this time. It is one query for all connections.
LOGINS_INTERVAL_S = 5.0
# A deadline that cannot be met must not keep the process busy.
MIN_WAIT_S = 0.01
# One round reads and writes some hundred keys at most. A database that hangs holds up the rounds, not the clients.
ROUND_TIMEOUT_S = 30.0


class Housekeeping:
    """Runs rounds until it is stopped: at each deadline, and each second."""

    def __init__(self, hub: Hub, *, tick_s: float = TICK_S) -> None:
        self._hub = hub
        self._tick_s = tick_s
        self._tasks = Tasks()
        self._failing = ""
        self._stopping = False
        self._next_beat = 0.0

    def start(self) -> None:
        """Begin."""
        self._tasks.start(self._run(), "signaling housekeeping")
        self._tasks.start(self._watch_logins(), "signaling logins")

    async def stop(self) -> None:
        """End, in the middle of whatever it does."""
        # A cancellation in the middle of a request to Redis may be lost. Then this ends the loop.
        self._stopping = True
        self._hub.sooner.set()
        await self._tasks.cancel()

    async def _run(self) -> None:
        while not self._stopping:
            self._hub.sooner.clear()
            failing = ""
            try:
                async with deadlines.timeout(ROUND_TIMEOUT_S):
                    await self._round()
            except (UpstreamError, TimeoutError) as error:
                failing = str(error) or "it took too long"
            except Exception as error:
                log.exception("signaling housekeeping failed")
                failing = repr(error)
            if bool(failing) != bool(self._failing):
                log.warning("signaling housekeeping", state="fails" if failing else "works again", error=failing)
            self._failing = failing
            await self._wait(failing=bool(failing))

    async def _watch_logins(self) -> None:
        """Apart from the rounds: a slow database must not hold up deadlines of lines."""
        while not self._stopping:
            await asyncio.sleep(LOGINS_INTERVAL_S)
            try:
                await self._hub.end_logged_out()
            except Exception as error:
                log.warning("signaling could not ask which logins have ended", error=repr(error))

    async def _wait(self, *, failing: bool) -> None:
        """Until something is due or has become so, or a second has passed."""
        delay = self._tick_s
        if failing:
            # Whatever is due would only fail again.
            await asyncio.sleep(delay)
            return
        with contextlib.suppress(UpstreamError):
            if (due := await self._hub.shared.next_due()) is not None:
                delay = min(delay, max(due - self._hub.clock(), MIN_WAIT_S))
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(delay):
                await self._hub.sooner.wait()

    async def _round(self) -> None:
        hub, now = self._hub, self._hub.clock()
        await hub.announcer.tell_crowds()
        await self._say_unsaid()
        for number in await hub.shared.due_lines(now):
            if (spec := await hub.directory.line(number)) is not None:
                await hub.apply(spec, inputs.Deadline(), "deadline")
        for session in await hub.shared.due_sessions(now):
            await self._end(session)
        if now >= self._next_beat:
            self._next_beat = now + self._tick_s
            await self._beat(now)

    async def _beat(self, now: float) -> None:
        hub = self._hub
        if not await hub.shared.beat(now):
            # Others took this process for dead, and have let its sessions vanish.
            await self._return_from_the_dead()
        if buried := await hub.shared.bury_dead(now, hub.grace_s):
            log.warning("a signaling process is dead; its users may come back here", users=buried)
        for record in await hub.shared.unwritten_records(now):
            await hub.write_record(record)

    async def _return_from_the_dead(self) -> None:
        hub = self._hub
        for connection, known in list(hub.connections.items()):
            user_id = known.account.user_id
            session = Session(user_id, connection, hub.process, login=known.account.login)
            current = (await hub.shared.sessions([user_id])).get(user_id)
            if current is None or current.connection == connection:
                await hub.shared.open_session(session)
            else:
                # The user has logged in elsewhere meanwhile.
                await hub.replace_connection(connection)
        if hub.connections:
            # If Redis has forgotten everything, what clients know of lines is of another time.
            await hub.reload()

    async def _say_unsaid(self) -> None:
        unsaid = self._hub.unsaid
        for user_id, (connection, until) in list(unsaid.items()):
            await self._hub.shared.vanish(user_id, connection, until)
            unsaid.pop(user_id, None)

    async def _end(self, session: Session) -> None:
        """End a session whose grace is over: first its calls, so that a kill in between leaves it to be ended again."""
        hub, user_id = self._hub, session.user_id
        specs = {spec.number: spec for spec in await hub.directory.lines_of(user_id)}
        own = list(specs.values())
        for number in await hub.shared.guest_lines(user_id):
            if (spec := await hub.directory.line(number)) is not None:
                specs[number] = spec
        for number, line in (await hub.shared.read_lines(specs)).items():
            if user_id in line.parties:
                await hub.apply(specs[number], inputs.Gone(user_id), "gone")
        if await hub.shared.end_session(session):
            hub.event_log.session(user_id, "ended", hub.clock())
            await hub.announcer.tell_presence(user_id, own, PresenceStatus.OFFLINE)
