"""All sessions: which connection is which, the tokens they come back with, and the sockets that wait for that.

A client whose connection was cut finds its allocation again for ten seconds: the plane leaves the flow's socket
(``AllocationOrphaned``), it is parked here, and a new connection goes on with it. A token is 128 random bits, good
once; only its hash is kept, so looking it up tells nothing by the time it takes.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import secrets
import socket
import time
from dataclasses import replace

from relay.addresses import Address
from relay.gateway.entitlement.verdicts import Entitlement, Verdict, user_of
from relay.gateway.lines import Lines
from relay.gateway.routing.flows import Avoided, FailoverOutcome, FlowRefused, Flows, ResumeOutcome, Wanted
from relay.gateway.routing.health import HealthMonitor, credentials_for
from relay.gateway.routing.release import AllocationReleaser
from relay.gateway.routing.upstreams import Upstreams, UpstreamState
from relay.gateway.sessions.parking import Holder, Kind, Parking, source_of
from relay.gateway.sessions.session import RESUME_WITHIN_S, Allocation, Session, State
from relay.plane.api import (
    AllocationOrphaned,
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    HttpOpened,
    Plane,
    StunReceived,
    TextReceived,
    Upstream,
    UpstreamLost,
)
from relay.turn.credentials import prepared
from relay.wire import media_v1
from relay.wire.stun import ErrorCode, is_stun

TOKEN_BYTES = 16
# A socket that waited has 10 s of voice in it, which nobody wants to hear: 100 lines are 50,000 packets.
MAX_STALE_DATAGRAMS = 65_536
# For each kind of line: a floor that comes back has its lines, and who fails on purpose does not fill the log.
LINES_PER_S = 50
# Clients that end with these have been cut, whatever it was.
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
    ) -> None:
        self.lines = Lines(LINES_PER_S)
        # Whether a session without credentials gets those of its upstream.
        self.own_credentials = False
        self._plane = plane
        self._flows = flows
        self._upstreams = upstreams
        self._health = health
        self._releaser = releaser
        self._entitlement = entitlement
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[ConnectionId, Session] = {}
        self._tokens: dict[bytes, Session] = {}
        self._token_of: dict[Session, bytes] = {}
        # Of sessions whose upstream has still to grant what they may have.
        self._admitted: dict[Session, Verdict] = {}
        self._parking = Parking(self._on_given_up)
        # Left in this batch of events by connections whose Closed comes next.
        self._left: dict[ConnectionId, socket.socket] = {}
        self._stopped = False

    def __len__(self) -> int:
        return len(self._sessions)

    def configure(self, *, own_credentials: bool, per_source: int, per_user: int) -> None:
        """Take these from now on. The bounds are for new sessions; 0 is no bound."""
        self.own_credentials = own_credentials
        self._parking.bounds = {Kind.SOURCE: per_source, Kind.USER: per_user}

    def __contains__(self, connection: ConnectionId) -> bool:
        return connection in self._sessions

    # Events

    def open(self, opened: HttpOpened) -> None:
        """A connection has been upgraded to a session."""
        self._sessions[opened.connection] = Session(self, opened)

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
        """Take the socket that a session leaves; False if it is none of ours."""
        if orphan.connection not in self._sessions:
            return False
        self._left[orphan.connection] = socket.socket(fileno=orphan.fd)
        return True

    def on_closed(self, closed: Closed) -> None:
        """A connection has ended; if it was a session, see what becomes of what it leaves."""
        session = self._sessions.pop(closed.connection, None)
        left = self._left.pop(closed.connection, None)
        if session is None:
            return
        session.stop()
        self._admitted.pop(session, None)
        token, allocation = self._forget_token(session), session.allocation
        if left is not None and session.state is not State.OPEN:
            # At most half an allocation, on the way to another upstream.
            self._give_back(allocation, left)
            left = None
        goes_on = left is not None or session.state is State.MOVING
        cut = closed.reason in _CUT and closed.detail not in _SAID_GOODBYE
        if session.successor is not None:
            self._succeed(session, session.successor, left)
        elif cut and token is not None and allocation is not None and goes_on:
            self._park(token, allocation, left)
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

    # Tokens and what waits under them

    def new_token(self, session: Session) -> str:
        """A token for the session's next return; the one before is worth nothing any more."""
        self._forget_token(session)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._tokens[_hash(token)] = session
        self._token_of[session] = _hash(token)
        return token

    def _forget_token(self, session: Session) -> bytes | None:
        token = self._token_of.pop(session, None)
        if token is not None:
            self._tokens.pop(token, None)
        return token

    def resume(self, session: Session, token: str) -> bool:
        """Give the session what the token stands for, now or when the connection that has it has ended."""
        key = _hash(token)
        if (parked := self._parking.take(key)) is not None:
            self._count_parked()
            self._give(session, parked.allocation, parked.socket)
            return True
        before = self._tokens.get(key)
        if before is None:
            self._flows.tally.resumptions[ResumeOutcome.UNKNOWN] += 1
            return False
        # A proxy has cut the connection, and nobody has told us.
        self._forget_token(before)
        before.successor = session
        self._plane.close(before.opened.connection, CloseReason.RESUMED)
        return True

    def _give(self, session: Session, allocation: Allocation, left: socket.socket | None) -> None:
        if left is not None:
            stun = _drain(left)
            connection = session.opened.connection
            wanted = self._wanted(session, target=allocation.upstream)
            try:
                allocation.upstream = self._flows.begin(
                    wanted, lambda upstream: self._plane.move(connection, upstream, left.detach())
                )
            except FlowRefused:  # draining
                self._release(allocation, left)
                session.on_nothing_left()
                return
            for message in stun:
                allocation.turn.receive(self.now(), message)
        self._flows.tally.resumptions[ResumeOutcome.RESUMED] += 1
        session.take(allocation, has_socket=left is not None)

    def _park(self, token: bytes, allocation: Allocation, left: socket.socket | None) -> None:
        if self._stopped:
            self._release(allocation, left)
            return
        self._parking.park(token, allocation, left, RESUME_WITHIN_S)
        self._count_parked()

    def _count_parked(self) -> None:
        self._flows.tally.parked = len(self._parking)

    def _on_given_up(self, allocation: Allocation, left: socket.socket | None) -> None:
        self._flows.tally.resumptions[ResumeOutcome.EXPIRED] += 1
        self._count_parked()
        self._release(allocation, left)

    def _release(self, allocation: Allocation | None, left: socket.socket | None) -> None:
        """Let the upstream have its allocation back, if there is one, and the user his place; closes the socket."""
        if allocation is not None:
            self._entitlement.release(allocation.seat)
            self._parking.release(allocation.seat)
        if left is not None:
            self._give_back(allocation, left)

    def _give_back(self, allocation: Allocation | None, left: socket.socket) -> None:
        """Let the upstream have its allocation back, if there is one; closes the socket."""
        if allocation is None or allocation.turn.relayed_address is None:
            left.close()
            return
        turn = allocation.turn
        self._releaser.release_own(left, turn.username, turn.password, allocation.upstream.name)

    def stop(self) -> None:
        """Nobody comes back any more."""
        self._stopped = True
        self._parking.stop()
        for left in self._left.values():
            left.close()
        self._left.clear()

    # What sessions have done for them

    def now(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    def tell(self, session: Session, message: media_v1.RelayMessage) -> None:
        """Send the client a message."""
        self._plane.tell(session.opened.connection, media_v1.build_control(message))

    def request(self, session: Session, message: bytes) -> None:
        """Send the upstream a STUN message."""
        self._plane.request(session.opened.connection, message)

    def place(self, session: Session, region: str | None, avoid: Avoided) -> Upstream:
        """Have the plane go on at a fresh socket of another upstream. Raises FlowRefused."""
        wanted = self._wanted(session, region=region, avoid=avoid)
        return self._flows.begin(wanted, lambda upstream: self._plane.move(session.opened.connection, upstream))

    def follow(self, session: Session, upstream: Upstream, alternate: Address) -> Upstream:
        """Have the plane go on at the address that an upstream names instead of its own. Raises FlowRefused."""
        if not self._flows.policy.permits(alternate.host):
            detail = f"{upstream.name}: it leads to {alternate}, which may not be relayed to (media.allowed_networks)"
            raise FlowRefused(CloseReason.NO_UPSTREAM, detail)
        wanted = self._wanted(session, target=replace(upstream, address=alternate))
        return self._flows.begin(wanted, lambda upstream: self._plane.move(session.opened.connection, upstream))

    def _wanted(
        self,
        session: Session,
        *,
        region: str | None = None,
        target: Upstream | None = None,
        avoid: Avoided = frozenset(),
    ) -> Wanted:
        opened = session.opened
        return Wanted(opened.connection, opened.server_name, Carrier.SESSION, region, target, avoid)

    def ask(self, session: Session, allocation: Allocation) -> None:
        """Ask who decides about users, once for a session and region: a call that runs is not judged anew.

        A session without credentials of its own has no name: only * fits it.
        """
        region = self._upstreams.region_of(allocation.upstream.name)
        self._admitted.pop(session, None)
        source = source_of(session.opened.client.host)
        if not self._parking.has_room(allocation.seat, source):
            session.on_verdict(allocation, self._too_many(source))
            return
        if not self._entitlement.asks_for_users or allocation.seat.region == region:
            allocation.seat.region = region
            session.on_verdict(allocation, None)
            return
        then = functools.partial(self._on_verdict, session, allocation)
        self._entitlement.ask(allocation.asked.username, region, session.opened.client.host, then)

    def _on_verdict(self, session: Session, allocation: Allocation, verdict: Verdict) -> None:
        if self._sessions.get(session.opened.connection) is not session or session.allocation is not allocation:
            return  # it has ended, or gone on, meanwhile
        verdict = self._entitlement.look_for_room(allocation.seat, verdict)
        if verdict.admitted:
            self._admitted[session] = verdict
        session.on_verdict(allocation, verdict.error)

    def granted(self, session: Session, allocation: Allocation) -> ErrorCode | None:
        """Give a call that the upstream has granted its place; why there is none, if others took it meanwhile."""
        verdict = self._admitted.pop(session, None)
        # Only now is it known that the user is who they say: a stranger makes nobody's session give way.
        holders = [source_of(session.opened.client.host)]
        if user := user_of(prepared(allocation.asked.username)):
            holders.append(Holder(Kind.USER, user))
        for holder in holders:
            if not self._parking.has_room(allocation.seat, holder):
                return self._too_many(holder)
        for holder in holders:
            self._parking.hold(allocation.seat, holder)
        if verdict is None:
            return None  # a call that has its place, or nobody is asked
        verdict = self._entitlement.grant(allocation.seat, verdict)
        if verdict.admitted:
            allocation.seat.region = verdict.region
        return verdict.error

    def _too_many(self, holder: Holder) -> ErrorCode:
        """What a session is told whose source or user has too many."""
        bound = self._parking.bounds[holder.kind]
        text = f"too many sessions of one {holder.kind}: expected at most {bound} (limits.sessions_per_{holder.kind})"
        return ErrorCode(486, text)

    def credentials(self, upstream: Upstream) -> tuple[str, str]:
        """The relay's own for an upstream; empty if there are none."""
        state = self._upstreams.get(upstream.name)
        return ("", "") if state is None else credentials_for(state.settings, "", time.time())

    def suspect(self, upstream: Upstream) -> None:
        """Have the upstream probed."""
        if (state := self._upstreams.get(upstream.name)) is not None:
            self._health.suspect(state)

    def count(self, outcome: FailoverOutcome) -> None:
        """Count what became of a failover."""
        self._flows.tally.failovers[outcome] += 1

    def close(self, session: Session, reason: CloseReason) -> None:
        """End the connection."""
        self._plane.close(session.opened.connection, reason)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _drain(left: socket.socket) -> list[bytes]:
    """Read what a socket has received while nobody was there: its STUN messages, of which there are few."""
    left.setblocking(False)
    stun: list[bytes] = []
    for _ in range(MAX_STALE_DATAGRAMS):
        try:
            datagram = left.recv(65_535)
        except BlockingIOError:
            break
        except OSError:
            continue  # ICMP: the plane will see for itself
        if is_stun(datagram) and len(stun) < 64:
            stun.append(datagram)
    return stun
