"""One session (sub-protocol ``media.v1``): the relay's side of docs/media.v1.md, with all its transitions.

The relay holds the TURN allocation for a client that does not speak TURN. ``TurnClient`` decides what the upstream is
sent. The plane sends it again until it is answered, and says when the upstream is gone. What happens then is decided
here::

    NEW ──open──▶ OPENING ──▶ OPEN ◀──▶ MOVING        CLOSING: the client has said that the call is over
     └───resume──▶ RETURNING ──▲──────────▲

``client_side`` tells the client, ``search`` knows which upstreams were tried, ``channels`` who waits for which channel,
and ``failures`` what the upstream's errors mean.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from typing import assert_never

from relay.addresses import Address
from relay.gateway.routing.flows import FailoverOutcome, FlowRefused
from relay.gateway.sessions import failures
from relay.gateway.sessions.admitting import SessionAdmission
from relay.gateway.sessions.allocation import Seat, SessionAllocation
from relay.gateway.sessions.channels import Channels
from relay.gateway.sessions.client_side import ClientSide
from relay.gateway.sessions.failures import AllocateFailure, allocate_failure, refusal_of
from relay.gateway.sessions.placing import Placing
from relay.gateway.sessions.search import UpstreamSearch
from relay.plane.api import CloseReason
from relay.timer import DeadlineTimer
from relay.turn.client import TurnClient
from relay.turn.events import AllocationCreated, ChannelBound, Event, RequestFailed
from relay.wire import media_v1
from relay.wire.media_v1 import Bind, Bound, Close, MediaV1Error, Open, Resume
from relay.wire.stun import ErrorCode, Method

# A client speaks at once, and two upstreams that do not answer take eight seconds.
OPEN_TIMEOUT_S = 10.0
# A client that tries tokens that are not good has this long in all. It does not begin anew with each of them.
NEW_TIMEOUT_S = 30.0
# When a client comes back, its old connection ends within a turn of the plane's loop.
RETURN_TIMEOUT_S = 5.0
# A client that has said "close" hears the answer and closes the WebSocket.
CLOSE_TIMEOUT_S = 2.0
# A call whose upstreams are all gone waits this long for one to come back, or to be found at a new address. The plane
# waits for five seconds (``control_timeout_s``).
WAIT_S = 4.0


class State(Enum):
    """Where a session is."""

    NEW = "new"
    RETURNING = "returning"
    OPENING = "opening"
    OPEN = "open"
    MOVING = "moving"
    CLOSING = "closing"


class Session:
    """One connection that speaks ``media.v1``."""

    def __init__(
        self, client: ClientSide, placing: Placing, admission: SessionAdmission, resume: Callable[[Session, str], bool]
    ) -> None:
        """``resume`` gives the session what a token is good for (``take``), now or later. Returns False for nothing."""
        self.opened = client.opened
        self.state = State.NEW
        self.allocation: SessionAllocation | None = None
        # It has come back on another connection, which waits for what this one leaves.
        self.successor: Session | None = None
        self._client = client
        self._placing = placing
        self._admission = admission
        self._resume = resume
        self._search = UpstreamSearch()
        self._channels = Channels()
        self._now = asyncio.get_running_loop().time
        self._timer = DeadlineTimer(self._on_deadline)
        # When the state ends. The allocation has deadlines of its own.
        self._expires: float | None = self._now() + OPEN_TIMEOUT_S
        self._new_until = self._now() + NEW_TIMEOUT_S
        # The client has come back, and is told so when the call goes on.
        self._returned = False
        self._has_ended = False
        self._arm()

    # What the client says

    def on_text(self, text: str) -> None:
        """Take a message of the client."""
        try:
            message = media_v1.parse_client_message(text)
        except MediaV1Error as error:
            self._client.fail(400, str(error), identity=error.id)
            return
        match message:
            case Open():
                self._on_open(message)
            case Resume():
                self._on_resume(message)
            case Bind():
                self._on_bind(message)
            case Close():
                self._on_close(message)
            case unknown:
                assert_never(unknown)

    def _on_open(self, message: Open) -> None:
        if self.state is not State.NEW:
            self._client.fail(409, "open: there is an allocation already, or one is under way", identity=message.id)
            return
        if not message.username and not self._placing.own_credentials:
            self._client.fail(401, "open: expected username and password", identity=message.id)
            return
        self._client.request_id = message.id
        self._enter(State.OPENING, OPEN_TIMEOUT_S)
        self._search.begin()
        self._allocate(message, {}, seat=Seat())

    def _on_resume(self, message: Resume) -> None:
        if self.state is not State.NEW:
            self._client.fail(409, "resume: expected as the first message", identity=message.id)
            return
        self._client.request_id = message.id
        self._enter(State.RETURNING, RETURN_TIMEOUT_S)
        if not self._resume(self, message.token):
            self.on_nothing_left()

    def _on_bind(self, message: Bind) -> None:
        allocation = self.allocation
        if allocation is None or self.state not in {State.OPEN, State.MOVING}:
            self._client.fail(409, "bind: expected after opened or resumed", message.peer, message.id)
            return
        if (answer := self._channels.answer(allocation.channels, message)) is not None:
            self._client.tell(answer)
            return
        number = self._channels.ask(allocation.channels, message)
        # While the session moves, nothing is bound: the next allocation will get all channels.
        if number is not None and self.state is State.OPEN:
            allocation.turn.bind_channel(self._now(), message.peer, number)
            self._flush()

    def _on_close(self, message: Close) -> None:
        if self.state is not State.CLOSING:
            self._enter(State.CLOSING, CLOSE_TIMEOUT_S)
            self._client.tell(media_v1.Closed(message.id))

    # The upstream

    def _allocate(self, asked: Open, channels: dict[Address, int], *, seat: Seat) -> None:
        """Go to an upstream where it has not been in vain, and ask for an allocation there."""
        place = functools.partial(self._placing.place, self.opened)
        try:
            upstream = self._search.next(place, asked.region, seat.region)
        except FlowRefused as refused:
            self._on_refused(refused)
            return
        own = (asked.username, asked.password) if asked.username else self._placing.credentials(upstream)
        turn = TurnClient(*own, reliable=True)
        self.allocation = SessionAllocation(asked, turn, upstream, channels, seat)
        self._ask_whether_admitted(self.allocation)

    def _ask_whether_admitted(self, allocation: SessionAllocation) -> None:
        self._admission.ask(
            self.opened.client.host,
            self._placing.region_of(allocation.upstream),
            allocation,
            functools.partial(self._awaits, allocation),
            functools.partial(self._on_verdict, allocation),
            connection=self._client.id,
        )

    def _awaits(self, allocation: SessionAllocation) -> bool:
        return not self._has_ended and self.allocation is allocation

    def _on_refused(self, refused: FlowRefused) -> None:
        """A call that runs waits for an upstream to come back; a client that begins one is told at once."""
        search = self._search
        if search.lacks_family:
            self._give_up(failures.FAMILY_NOT_SUPPORTED, search.no_family, CloseReason.NOT_ENTITLED)
            return
        waits = self.state is State.MOVING and search.may_wait
        if not waits or refused.reason is not CloseReason.NO_UPSTREAM:
            self._give_up(503, str(refused), refused.reason)
            return
        if search.refused is None:
            until = self._now() + WAIT_S
            self._expires = until if self._expires is None else min(self._expires, until)
        search.wait(refused)
        self._arm()

    @property
    def waits(self) -> bool:
        """True while its call waits for an upstream to come back."""
        return self._search.refused is not None and self.state is State.MOVING

    def on_upstream_up(self, name: str, address: Address) -> None:
        """An upstream has just answered a probe: a call that waits tries it, also where it was lost."""
        if self.waits:
            self._search.is_back((name, address))
            self._go_elsewhere()

    def _on_verdict(self, allocation: SessionAllocation, refusal: ErrorCode | None) -> None:
        """The user may have this allocation, or is refused."""
        if self.allocation is not allocation or self.state not in {State.OPENING, State.MOVING}:
            return
        if refusal is not None:
            self._give_up(refusal.code, refusal.reason, CloseReason.NOT_ENTITLED)
            return
        allocation.turn.allocate(self._now(), family=allocation.asked.family)
        self._flush()

    def _leave_here(self) -> None:
        """Go to another upstream, and do not come back to this address before one has been found."""
        assert self.allocation is not None
        self._search.avoid(self.allocation.place)
        self._go_elsewhere()

    def _go_elsewhere(self) -> None:
        """Leave the upstream for another one, with the same channels."""
        allocation = self.allocation
        assert allocation is not None
        if self.state is State.OPEN:
            self._search.begin()
            self._enter(State.MOVING, OPEN_TIMEOUT_S)
        self._channels.rebinding.clear()
        self._allocate(allocation.asked, allocation.channels, seat=allocation.seat)

    def _follow(self, alternate: Address) -> None:
        """Go on at the address that the upstream names instead of its own, with the same credentials."""
        allocation = self.allocation
        assert allocation is not None
        try:
            self._search.hop(allocation.upstream, alternate)
            upstream = self._placing.follow(self.opened, allocation.upstream, alternate)
        except FlowRefused as refused:
            self._client.log("session not sent on", upstream=allocation.upstream.name, cause=str(refused))
            self._leave_here()
            return
        self._client.log("session sent on", upstream=upstream.name, alternate=str(alternate))
        turn = TurnClient(allocation.turn.username, allocation.turn.password, reliable=True)
        self.allocation = replace(allocation, turn=turn, upstream=upstream)
        self._ask_whether_admitted(self.allocation)

    def on_upstream_lost(self, reason: CloseReason, detail: str) -> None:
        """The plane has found the upstream gone."""
        if self.allocation is not None and self.state in {State.OPENING, State.OPEN, State.MOVING}:
            upstream, cause = self.allocation.upstream, detail or reason.value
            self._client.log("session lost its upstream", upstream=upstream.name, cause=cause)
            self._placing.suspect(upstream)
            self._leave_here()

    def on_upstream_down(self) -> None:
        """Probes say that the upstream is down, and nothing has come from it for a while."""
        if self.state is State.OPEN and self.allocation is not None:
            name = self.allocation.upstream.name
            self._client.log("session leaves its upstream", upstream=name, cause="probes find it down")
            self._leave_here()

    def on_stun(self, message: bytes) -> None:
        """Take a message of the upstream."""
        if self.allocation is not None:
            self._dispatch(self.allocation.turn.receive(self._now(), message))

    def _dispatch(self, events: Iterable[Event]) -> None:
        before = self.allocation
        for event in events:
            match event:
                case AllocationCreated():
                    self._on_allocated(event)
                case ChannelBound():
                    self._on_bound(event)
                case RequestFailed():
                    self._on_failed(event)
                case _:
                    pass  # renewals
            if self.allocation is not before:
                return  # the other events are of an upstream that has been left
        self._flush()

    def _on_allocated(self, created: AllocationCreated) -> None:
        allocation = self.allocation
        assert allocation is not None
        if self.state in {State.OPENING, State.MOVING}:
            self._admission.grant(
                self.opened.client.host,
                allocation,
                functools.partial(self._awaits, allocation),
                functools.partial(self._on_granted, allocation, created),
            )

    def _on_granted(self, allocation: SessionAllocation, created: AllocationCreated, refusal: ErrorCode | None) -> None:
        """The user has their place for this call, or is refused: the last step of an allocation."""
        if self.state not in {State.OPENING, State.MOVING}:
            return
        if refusal is not None:
            self._give_up(refusal.code, refusal.reason, CloseReason.NOT_ENTITLED)
            return
        self._client.carry_for(self._admission.user_named(allocation))
        if self.state is State.OPENING:
            self._search.found()
            self._enter(State.OPEN, None)
            self._client.tell_opened(allocation, created)
        else:
            self._channels.rebinding = set(allocation.channels)
            for peer, number in allocation.channels.items():
                allocation.turn.bind_channel(self._now(), peer, number)
            self._finish_move()
            self._flush()

    def _on_bound(self, bound: ChannelBound) -> None:
        for identity in self._channels.settle(bound.peer) or ():
            self._client.tell(Bound(bound.peer, bound.channel_number, identity))
        self._finish_move()

    def _finish_move(self) -> None:
        allocation = self.allocation
        if self.state is not State.MOVING or self._channels.rebinding or allocation is None:
            return
        relayed, name = allocation.turn.relayed_address, allocation.upstream.name
        if relayed is None:
            return
        self._search.found()
        self._enter(State.OPEN, None)
        self._placing.count(FailoverOutcome.MOVED)
        self._client.log(
            "session moved", upstream=name, **allocation.relayed_addresses, channels=len(allocation.channels)
        )
        if self._returned:
            self._returned = False
            self._client.tell_resumed(allocation, relayed)
        else:
            self._client.tell_moved(allocation, relayed)

    def _on_failed(self, failed: RequestFailed) -> None:
        if failed.method == Method.ALLOCATE:
            self._on_allocate_failed(failed)
        elif failed.code == failures.ALLOCATION_MISMATCH:
            # The upstream has started anew: it is there, and has forgotten us. It may be tried again.
            self._lose_allocation(failed, try_again=True)
        elif failed.method == Method.REFRESH:
            self._lose_allocation(failed)
        elif failed.method == Method.CHANNEL_BIND:
            for peer in failed.peers:
                self._on_bind_failed(failed, peer)
            self._finish_move()

    def _lose_allocation(self, failed: RequestFailed, *, try_again: bool = False) -> None:
        if self.state in {State.OPEN, State.MOVING}:
            assert self.allocation is not None
            cause = f"{failed.method.name}: {failed.code} {failed.reason}"
            self._client.log("session lost its allocation", upstream=self.allocation.upstream.name, cause=cause)
            if not try_again:
                self._leave_here()
                return
            self._search.avoid_all()
            self._go_elsewhere()

    def _on_allocate_failed(self, failed: RequestFailed) -> None:
        if self.allocation is None or self.state not in {State.OPENING, State.MOVING}:
            return
        match allocate_failure(failed):
            case AllocateFailure.STALE_PORT:
                self._search.on_stale_port()
                self._go_elsewhere()
            case AllocateFailure.SENT_ON:
                assert failed.alternate is not None
                self._follow(failed.alternate)
            case AllocateFailure.NO_FAMILY:
                self._search.on_no_family(self.allocation.place, refusal_of(failed))
                self._go_elsewhere()
            case AllocateFailure.REFUSED:
                self._give_up(failed.code, refusal_of(failed), CloseReason.NOT_ENTITLED)
            case AllocateFailure.NO_ANSWER:
                self._leave_here()

    def _on_bind_failed(self, failed: RequestFailed, peer: Address) -> None:
        assert self.allocation is not None
        self.allocation.channels.pop(peer, None)
        waiting = self._channels.settle(peer)
        for identity in (None,) if waiting is None else waiting:
            self._client.fail(failed.code or 504, f"bind: {refusal_of(failed)}", peer, identity)

    # Coming back

    def take(self, allocation: SessionAllocation, *, has_socket: bool) -> None:
        """Go on with what another connection has left. Without its socket, that is at an upstream chosen anew."""
        if self.state is not State.RETURNING:
            return
        self.allocation = allocation
        relayed = allocation.turn.relayed_address
        if not has_socket or relayed is None:
            self._returned = True
            self._search.begin()
            self._enter(State.MOVING, OPEN_TIMEOUT_S)
            self._go_elsewhere()
            return
        self._enter(State.OPEN, None)
        self._client.carry_for(self._admission.user_named(allocation))
        # A channel that was asked for, and maybe a renewal.
        allocation.turn.start_again(self._now())
        self._channels.wait_for(peer for peer in allocation.channels if not allocation.turn.is_bound(peer))
        self._client.tell_resumed(allocation, relayed)
        self._flush()

    def on_nothing_left(self) -> None:
        """Nothing waits for this token. The client may open a new allocation instead."""
        if self.state is State.RETURNING:
            self._enter(State.NEW, min(OPEN_TIMEOUT_S, self._new_until - self._now()))
            reason = "resume: no such token; a token is good once, and only for some seconds"
            self._client.fail(404, reason, identity=self._client.take_request_id())

    # Time and the end

    def _enter(self, state: State, within_s: float | None) -> None:
        self.state = state
        self._expires = None if within_s is None else self._now() + within_s
        self._arm()

    def _arm(self) -> None:
        turn = None if self.allocation is None or self.state is State.CLOSING else self.allocation.turn.next_deadline()
        self._timer.set(min((when for when in (self._expires, turn) if when is not None), default=None))

    def _flush(self) -> None:
        if self.allocation is not None:
            for message in self.allocation.turn.take_messages():
                self._client.request(message)
        self._arm()

    def _on_deadline(self, now: float) -> None:
        if self._expires is not None and now >= self._expires:
            self._expires = None
            self._on_expired()
        elif self.allocation is not None:
            self._dispatch(self.allocation.turn.on_deadline(now))

    def _on_expired(self) -> None:
        match self.state:
            case State.NEW:
                self._client.fail(408, f"expected open or resume within {OPEN_TIMEOUT_S:g} s")
                self._client.close(CloseReason.FIRST_BYTES_TIMEOUT)
            case State.RETURNING:
                self.on_nothing_left()
            case State.CLOSING:
                self._client.close(CloseReason.CLIENT_CLOSED)
            case _ if (refused := self._search.refused) is not None:
                self._give_up(503, str(refused), refused.reason)
            case _:
                self._give_up(504, f"no upstream has answered within {OPEN_TIMEOUT_S:g} s", CloseReason.NO_UPSTREAM)

    def _give_up(self, code: int, reason: str, close: CloseReason) -> None:
        if self.state is State.MOVING:
            self._placing.count(FailoverOutcome.NO_UPSTREAM)
        self._client.log("session failed", code=code, cause=reason)
        self._client.fail(code, reason, identity=self._client.request_id)
        self._enter(State.CLOSING, None)
        self._client.close(close)

    def stop(self) -> None:
        """The connection has ended: nothing is waited for."""
        self._has_ended = True
        self._timer.cancel()
