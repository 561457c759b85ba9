"""All sessions: which connection is which, and what becomes of what a session leaves.

A client whose connection was cut finds its allocation again for ten seconds: the plane leaves the flow's socket
(``AllocationOrphaned``), it is parked here under the hash of a token, and a new connection goes on with it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from relay.gateway.calls.ids import CallIds
from relay.gateway.cluster.returns import SharedReturns
from relay.gateway.entitlement.verdicts import Entitlement
from relay.gateway.lines import Lines
from relay.gateway.routing.flows import FlowRefused, Flows, ResumeOutcome
from relay.gateway.routing.health import HealthMonitor
from relay.gateway.routing.release import AllocationReleaser
from relay.gateway.routing.upstreams import Upstreams, UpstreamState
from relay.gateway.sessions.admitting import SessionAdmission
from relay.gateway.sessions.allocation import SessionAllocation
from relay.gateway.sessions.client_side import RESUME_WITHIN_S, ClientSide
from relay.gateway.sessions.parking import AccountKind, Parking
from relay.gateway.sessions.placing import Placing
from relay.gateway.sessions.returning import Handovers, Tokens, drain, key_of
from relay.gateway.sessions.session import Session, State
from relay.plane.api import (
    AllocationOrphaned,
    Closed,
    CloseReason,
    ConnectionId,
    HttpOpened,
    Plane,
    StunReceived,
    TextReceived,
    UpstreamLost,
)

# For each kind of line. Enough log lines for a trading floor that reconnects, and a client that fails on purpose cannot
# fill the log.
LINES_PER_S = 50
# A client whose connection ends with one of these was cut, for whatever reason.
_CUT = frozenset({CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_LOST, CloseReason.TLS_BROKEN, CloseReason.SLOW_CLIENT})
# The detail of a client that closed the WebSocket itself: then the call is over.
_SAID_GOODBYE = frozenset({"websocket close", "websocket close 1000"})


class Sessions:
    """Owns the sockets that sessions leave. ``stop`` it after the plane."""

    def __init__(
        self,
        plane: Plane,
        flows: Flows,
        upstreams: Upstreams,
        health: HealthMonitor,
        releaser: AllocationReleaser,
        *,
        entitlement: Entitlement,
        is_exempt: Callable[[str], bool],
        ids: CallIds,
        shared: SharedReturns | None = None,
    ) -> None:
        """For the hosts that are exempt, the bound on one source does not count. ``shared`` is what others hear."""
        self.lines = Lines(LINES_PER_S)
        self._ids = ids
        self._plane = plane
        self._tally = flows.tally
        self._releaser = releaser
        self._parking = Parking(self._on_given_up)
        self._placing = Placing(plane, flows, upstreams, health)
        self._admission = SessionAdmission(entitlement, self._parking, is_exempt)
        self._tokens = Tokens()
        self._sessions: dict[ConnectionId, Session] = {}
        # Sockets that connections have left in this batch of events; their Closed comes next.
        self._left: dict[ConnectionId, socket.socket] = {}
        self._handovers = Handovers()
        self._stopped = False
        self._shared = shared
        if shared is not None:
            shared.watch(lambda: bool(self._sessions) or bool(len(self._parking)), self._on_returned_elsewhere)

    def __len__(self) -> int:
        return len(self._sessions)

    def configure(self, *, own_credentials: bool, per_source: int, per_user: int) -> None:
        """Take these from now on. The bounds are for new sessions; 0 means no bound.

        With ``own_credentials`` a session without credentials gets those that the relay has for its upstream.
        """
        self._placing.own_credentials = own_credentials
        self._parking.bounds = {AccountKind.SOURCE: per_source, AccountKind.USER: per_user}

    def __contains__(self, connection: ConnectionId) -> bool:
        return connection in self._sessions

    # Events

    def open(self, opened: HttpOpened) -> None:
        """A connection has been upgraded to a session."""
        client = ClientSide(opened, self._plane, self._tokens, self.lines, self._ids)
        self._sessions[opened.connection] = Session(client, self._placing, self._admission, self._resume)

    def on_text(self, event: TextReceived) -> None:
        """The client has sent a control message."""
        if (session := self._sessions.get(event.connection)) is not None:
            session.on_text(event.text)

    def on_stun(self, event: StunReceived) -> None:
        """The upstream has sent a STUN message."""
        if (session := self._sessions.get(event.connection)) is not None:
            session.on_stun(event.message)

    def on_upstream_lost(self, event: UpstreamLost) -> None:
        """The upstream of a session is gone."""
        if (session := self._sessions.get(event.connection)) is not None:
            session.on_upstream_lost(event.reason, event.detail)

    def on_upstream_down(self, connection: ConnectionId) -> None:
        """Probes say that a session's upstream is down."""
        if (session := self._sessions.get(connection)) is not None:
            session.on_upstream_down()

    def on_upstream_up(self, state: UpstreamState) -> None:
        """An upstream has just answered a probe: calls that wait for one go on there."""
        for session in list(self._sessions.values()):
            if session.waits and state.address is not None:
                session.on_upstream_up(state.name, state.address)

    def on_orphan(self, orphan: AllocationOrphaned) -> bool:
        """Take the socket that a session leaves. Returns False if it is not one of a session."""
        if orphan.connection not in self._sessions:
            return False
        self._left[orphan.connection] = socket.socket(fileno=orphan.fd)
        return True

    def on_closed(self, closed: Closed) -> None:
        """A connection has ended; if it was a session, see what becomes of what it leaves."""
        session = self._sessions.pop(closed.connection, None)
        left, handed = self._left.pop(closed.connection, None), self._handovers.take(closed.connection)
        if left is None:
            left = handed
        elif handed is not None:
            handed.close()
        if session is None:
            return
        session.stop()
        key, allocation = self._tokens.forget(closed.connection), session.allocation
        if left is not None and session.state is not State.OPEN:
            # At most half an allocation, on the way to another upstream.
            self._give_back(allocation, left)
            left = None
        goes_on = left is not None or session.state is State.MOVING
        cut = closed.reason in _CUT and closed.detail not in _SAID_GOODBYE
        if session.successor is not None:
            self._succeed(session, session.successor, left)
        elif cut and key is not None and allocation is not None and goes_on:
            self._park(key, allocation, left)
        else:
            self._release(allocation, left)

    def _succeed(self, session: Session, successor: Session, left: socket.socket | None) -> None:
        allocation = session.allocation
        waits = self._sessions.get(successor.opened.connection) is successor and successor.state is State.RETURNING
        if allocation is None or not waits:
            self._release(allocation, left)
            if waits:
                successor.on_nothing_left()
            return
        self._give(successor, allocation, left)

    # What waits for a token

    def _resume(self, session: Session, token: str) -> bool:
        """Give the session what the token is good for, now or when the connection that has it has ended."""
        key = key_of(token)
        if (parked := self._parking.take(key)) is not None:
            self._count_parked()
            self._give(session, parked.allocation, parked.socket)
            return True
        before = self._tokens.connection_of(key)
        if before is None:
            self._tally.resumptions[ResumeOutcome.UNKNOWN] += 1
            if self._shared is not None:
                self._shared.say(key)
            return False
        # A proxy has cut the connection, and nobody has told us.
        self._tokens.forget(before)
        self._sessions[before].successor = session
        self._plane.close(before, CloseReason.RESUMED)
        return True

    def _on_returned_elsewhere(self, key: bytes) -> None:
        """A client has shown this key's token to another relay: it does not come back here."""
        self._parking.expire(key)
        if (before := self._tokens.connection_of(key)) is not None:
            self._tokens.forget(before)
            self._plane.close(before, CloseReason.RESUMED)

    def _give(self, session: Session, allocation: SessionAllocation, left: socket.socket | None) -> None:
        if left is not None:
            stun = drain(left)
            self._handovers.keep(session.opened.connection, left)
            try:
                allocation.upstream = self._placing.come_back(session.opened, allocation.upstream, left)
            except FlowRefused:  # draining
                self._handovers.forget(session.opened.connection)
                self._release(allocation, left)
                session.on_nothing_left()
                return
            now = asyncio.get_running_loop().time()
            for message in stun:
                allocation.turn.receive(now, message)
        self._tally.resumptions[ResumeOutcome.RESUMED] += 1
        session.take(allocation, has_socket=left is not None)

    def _park(self, key: bytes, allocation: SessionAllocation, left: socket.socket | None) -> None:
        if self._stopped:
            self._release(allocation, left)
            return
        self._parking.park(key, allocation, left, RESUME_WITHIN_S)
        self._count_parked()

    def _count_parked(self) -> None:
        self._tally.parked = len(self._parking)

    def _on_given_up(self, allocation: SessionAllocation, left: socket.socket | None) -> None:
        self._tally.resumptions[ResumeOutcome.EXPIRED] += 1
        self._count_parked()
        self._release(allocation, left)

    def _release(self, allocation: SessionAllocation | None, left: socket.socket | None) -> None:
        """Let the upstream have its allocation back, if there is one, and the user their place; closes the socket."""
        if allocation is not None:
            self._admission.release(allocation)
        if left is not None:
            self._give_back(allocation, left)

    def _give_back(self, allocation: SessionAllocation | None, left: socket.socket) -> None:
        """Let the upstream have its allocation back, if there may be one; closes the socket."""
        if allocation is None or not allocation.turn.may_have_allocation:
            left.close()
            return
        turn = allocation.turn
        self._releaser.release_own(left, turn.username, turn.password, allocation.upstream.name)

    def stop(self) -> None:
        """Nobody may come back from now on."""
        self._stopped = True
        self._parking.stop()
        self._handovers.stop()
        for left in self._left.values():
            left.close()
        self._left.clear()
