"""One session (sub-protocol ``media.v1``): the relay's side of docs/media.v1.md, all its transitions.

The relay holds the TURN allocation for a client that knows no TURN. ``TurnClient`` decides what is sent to the
upstream, the plane sends it again until it is answered and says when the upstream is gone; what then is decided here::

    NEW ──open──▶ OPENING ──▶ OPEN ◀──▶ MOVING        CLOSING: the client has said that the call is over
     └───resume──▶ RETURNING ──▲──────────▲
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from relay.addresses import Address
from relay.gateway.lines import Lines
from relay.gateway.routing.flows import Avoided, FailoverOutcome, FlowRefused
from relay.plane.api import CloseReason, HttpOpened, Upstream
from relay.timer import DeadlineTimer
from relay.turn.client import (
    AllocationCreated,
    AllocationRefreshed,
    ChannelBound,
    Event,
    RequestFailed,
    TurnClient,
)
from relay.wire import media_v1
from relay.wire.channeldata import FIRST_CHANNEL
from relay.wire.media_v1 import Bind, Bound, Close, Failed, MediaV1Error, Moved, Open, Opened, Resume, Resumed
from relay.wire.stun import ErrorCode, Method

# A client speaks at once; and two upstreams that do not answer take eight seconds.
OPEN_TIMEOUT_S = 10.0
# Whoever tries tokens that stand for nothing has this long, and may not begin anew with each.
NEW_TIMEOUT_S = 30.0
# The connection that is come back from ends within a turn of the plane's loop.
RETURN_TIMEOUT_S = 5.0
# A client that has said "close" hears the answer and closes the WebSocket.
CLOSE_TIMEOUT_S = 2.0
# A client that was cut has this long to come back: two attempts of a slow proxy. Then the other side has hung up.
RESUME_WITHIN_S = 10.0
# The lines of a trader's desk, and twice that. Each channel is renewed every four minutes.
MAX_CHANNELS = 64
# Upstreams that are tried before a client hears that there is none.
MAX_ATTEMPTS = 4
# A call whose upstreams are all gone waits this long for one to come back, or to be found at a new address. The plane
# waits for five seconds (``attach_timeout_s``).
WAIT_S = 4.0
# Source ports where the upstream still holds another client's allocation, as after a restart, are no attempts: in ten
# seconds this many can be tried, which is enough where nine in ten ports of a narrow range are stale.
MAX_STALE_PORTS = 256
# An upstream that has forgotten the allocation, or never knew it (RFC 8656 section 7.4: 437).
ALLOCATION_MISMATCH = 437
# RFC 8656 sections 7.2 and 12.2: no address of this family, and a peer of a family that the allocation has not.
FAMILY_NOT_SUPPORTED = 440
PEER_FAMILY_MISMATCH = 443
# An upstream that names another address to go to (RFC 8489 section 10); further ones on the way are a loop, or worse.
TRY_ALTERNATE = 300
MAX_HOPS = 3


class State(Enum):
    """Where a session is."""

    NEW = "new"
    RETURNING = "returning"
    OPENING = "opening"
    OPEN = "open"
    MOVING = "moving"
    CLOSING = "closing"


@dataclass(eq=False)
class Seat:
    """Holds a user's place among their calls at once, wherever the session goes; ``region`` they were admitted to."""

    region: str | None = None


@dataclass
class Allocation:
    """What outlives a connection that is cut: who has asked for what, and the channels. The socket is apart."""

    asked: Open
    turn: TurnClient
    upstream: Upstream
    channels: dict[Address, int] = field(default_factory=dict)
    seat: Seat = field(default_factory=Seat)


class Owner(Protocol):
    """What a session has done for it; ``relay.gateway.sessions.sessions`` does it."""

    @property
    def lines(self) -> Lines:
        """Where sessions log."""
        ...

    def now(self) -> float:
        """The loop's clock."""
        ...

    def tell(self, session: Session, message: media_v1.RelayMessage) -> None:
        """Send the client a message."""
        ...

    def request(self, session: Session, message: bytes) -> None:
        """Send the upstream a STUN message."""
        ...

    def place(self, session: Session, region: str | None, avoid: Avoided) -> Upstream:
        """Have the plane go on at a fresh socket of another upstream. Raises FlowRefused."""
        ...

    def follow(self, session: Session, upstream: Upstream, alternate: Address) -> Upstream:
        """Have the plane go on at the address that an upstream names instead of its own. Raises FlowRefused."""
        ...

    def ask(self, session: Session, allocation: Allocation) -> None:
        """Have it decided whether the user may have an allocation at this upstream (``on_verdict``), now or later."""
        ...

    def granted(self, session: Session, allocation: Allocation) -> ErrorCode | None:
        """The upstream has granted it: give the call its place. Returns why there is none, None if there is one."""
        ...

    @property
    def own_credentials(self) -> bool:
        """Whether sessions may use the relay's credentials."""
        ...

    def credentials(self, upstream: Upstream) -> tuple[str, str]:
        """The relay's own for an upstream; empty if there are none."""
        ...

    def suspect(self, upstream: Upstream) -> None:
        """The upstream seems to be gone: probe it."""
        ...

    def new_token(self, session: Session) -> str:
        """A token for the session's next return; the one before is worth nothing any more."""
        ...

    def resume(self, session: Session, token: str) -> bool:
        """Find what the token stands for, and have it given to the session (``take``); False if there is nothing."""
        ...

    def count(self, outcome: FailoverOutcome) -> None:
        """Count what became of a failover."""
        ...

    def close(self, session: Session, reason: CloseReason) -> None:
        """End the connection."""
        ...


class Session:
    """One connection that speaks ``media.v1``."""

    def __init__(self, owner: Owner, opened: HttpOpened) -> None:
        self.opened = opened
        self.state = State.NEW
        self.allocation: Allocation | None = None
        # It has come back on another connection, which waits for what this one leaves.
        self.successor: Session | None = None
        self._owner = owner
        self._timer = DeadlineTimer(self._on_deadline)
        # Of the state, beside those of the allocation.
        self._expires: float | None = owner.now() + OPEN_TIMEOUT_S
        self._new_until = owner.now() + NEW_TIMEOUT_S
        self._attempts = 0
        # Where it has been in vain since it was last open, and how often it was sent on since it was last placed.
        self._avoid: tuple[tuple[str, Address], ...] = ()
        self._hops = 0
        # Why it waits for an upstream, if it does.
        self._refused: FlowRefused | None = None
        self._stale_ports = 0
        self._request_id: media_v1.RequestId = None
        # Binds that are not answered yet, each with the ids of those who ask.
        self._asked: dict[Address, list[media_v1.RequestId]] = {}
        # Upstreams without an address of the family that was asked for, and what the last of them said.
        self._without_family: Avoided = frozenset()
        self._no_family = ""
        # Channels that must be bound anew before the move is told.
        self._rebinding: set[Address] = set()
        # It came back, and that is what its client is told in the end.
        self._returned = False
        self._arm()

    # What the client says

    def on_text(self, text: str) -> None:
        """Take a message of the client."""
        try:
            message = media_v1.parse_client_message(text)
        except MediaV1Error as error:
            self._fail(400, str(error), identity=error.id)
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

    def _on_open(self, message: Open) -> None:
        if self.state is not State.NEW:
            self._fail(409, "open: there is an allocation already, or one is under way", identity=message.id)
            return
        if not message.username and not self._owner.own_credentials:
            self._fail(401, "open: expected username and password", identity=message.id)
            return
        self._request_id = message.id
        self._enter(State.OPENING, OPEN_TIMEOUT_S)
        self._attempts = 0
        self._stale_ports = 0
        self._without_family = frozenset()
        self._allocate(message, {}, seat=Seat())

    def _on_resume(self, message: Resume) -> None:
        if self.state is not State.NEW:
            self._fail(409, "resume: expected as the first message", identity=message.id)
            return
        self._request_id = message.id
        self._enter(State.RETURNING, RETURN_TIMEOUT_S)
        if not self._owner.resume(self, message.token):
            self.on_nothing_left()

    def _on_bind(self, message: Bind) -> None:
        allocation = self.allocation
        if allocation is None or self.state not in {State.OPEN, State.MOVING}:
            self._fail(409, "bind: expected after opened or resumed", message.peer, message.id)
            return
        channels = allocation.channels
        known = channels.get(message.peer)
        taken = set(channels.values())
        number = known or message.channel or next(n for n in range(FIRST_CHANNEL, 0x5000) if n not in taken)
        if message.channel not in {None, number}:
            self._fail(409, f"bind: the peer has channel {known:#x} already", message.peer, message.id)
        elif known is None and number in taken:
            self._fail(409, f"bind: channel {number:#x} is another peer's", message.peer, message.id)
        elif known is None and len(channels) >= MAX_CHANNELS:
            self._fail(429, f"bind: expected at most {MAX_CHANNELS} channels", message.peer, message.id)
        elif known is not None and message.peer not in self._asked and message.peer not in self._rebinding:
            self._owner.tell(self, Bound(message.peer, number, message.id))
        else:
            self._ask(allocation, message.peer, number, message.id)

    def _ask(self, allocation: Allocation, peer: Address, number: int, identity: media_v1.RequestId) -> None:
        waiting = self._asked.setdefault(peer, [])
        # A peer is asked for once; who asks a thousand times is answered for the first few.
        if len(waiting) < MAX_CHANNELS:
            waiting.append(identity)
        if peer in allocation.channels:
            return
        allocation.channels[peer] = number
        # While it moves, the allocation that is made will get all channels.
        if self.state is State.OPEN:
            allocation.turn.bind_channel(self._owner.now(), peer, number)
            self._flush()

    def _on_close(self, message: Close) -> None:
        if self.state is not State.CLOSING:
            self._enter(State.CLOSING, CLOSE_TIMEOUT_S)
            self._owner.tell(self, media_v1.Closed(message.id))

    # The upstream

    def _allocate(self, asked: Open, channels: dict[Address, int], *, seat: Seat) -> None:
        """Go to an upstream, none of those where it has been in vain, and ask for an allocation there."""
        self._attempts += 1
        self._hops = 0
        try:
            if self._attempts > MAX_ATTEMPTS:
                raise FlowRefused(CloseReason.NO_UPSTREAM, f"{MAX_ATTEMPTS} upstreams have been tried, and none serves")
            upstream = self._place(asked.region, seat)
        except FlowRefused as refused:
            self._on_refused(refused)
            return
        self._refused = None
        own = (asked.username, asked.password) if asked.username else self._owner.credentials(upstream)
        turn = TurnClient(*own, reliable=True)
        self.allocation = Allocation(asked, turn, upstream, channels, seat)
        self._owner.ask(self, self.allocation)

    def _on_refused(self, refused: FlowRefused) -> None:
        """A call that runs waits for an upstream to come back; a client that begins one is told at once."""
        if self._without_family:
            self._give_up(FAMILY_NOT_SUPPORTED, self._no_family, CloseReason.NOT_ENTITLED)
            return
        waits = self.state is State.MOVING and self._attempts <= MAX_ATTEMPTS
        if not waits or refused.reason is not CloseReason.NO_UPSTREAM:
            self._give_up(503, str(refused), refused.reason)
            return
        self._attempts -= 1
        if self._refused is None:
            until = self._owner.now() + WAIT_S
            self._expires = until if self._expires is None else min(self._expires, until)
        self._refused = refused
        self._arm()

    @property
    def waits(self) -> bool:
        """True while its call waits for an upstream to come back."""
        return self._refused is not None and self.state is State.MOVING

    def on_upstream_up(self, name: str, address: Address) -> None:
        """An upstream has just answered a probe: a call that waits tries it, also where it was lost."""
        if self.waits:
            self._go_elsewhere(tuple(one for one in self._avoid if one != (name, address)))

    def _place(self, region: str | None, seat: Seat) -> Upstream:
        """A call that runs stays in its region if it can: its user may have no right to others. Raises FlowRefused."""
        if region is None and seat.region and self._attempts == 1:
            with contextlib.suppress(FlowRefused):
                return self._owner.place(self, seat.region, self._without_family.union(self._avoid))
        with contextlib.suppress(FlowRefused):
            return self._owner.place(self, region, self._without_family.union(self._avoid))
        # All have been in vain: those before the last may be back.
        return self._owner.place(self, region, self._without_family.union(self._avoid[-1:]))

    def on_verdict(self, allocation: Allocation, refusal: ErrorCode | None) -> None:
        """The user may have this allocation, or is refused it."""
        if self.allocation is not allocation or self.state not in {State.OPENING, State.MOVING}:
            return
        if refusal is not None:
            self._give_up(refusal.code, refusal.reason, CloseReason.NOT_ENTITLED)
            return
        allocation.turn.allocate(self._owner.now(), family=allocation.asked.family)
        self._flush()

    def _leave_here(self) -> None:
        """Go to another upstream, and do not come back to this address before that has succeeded."""
        self._go_elsewhere((*self._avoid, self._here()))

    def _here(self) -> tuple[str, Address]:
        assert self.allocation is not None
        upstream = self.allocation.upstream
        return upstream.name, upstream.address

    def _go_elsewhere(self, avoid: tuple[tuple[str, Address], ...] = ()) -> None:
        """Leave the upstream for another one, with the same channels."""
        allocation = self.allocation
        assert allocation is not None
        self._avoid = avoid
        if self.state is State.OPEN:
            self._attempts = 0
            self._stale_ports = 0
            self._without_family = frozenset()
            self._enter(State.MOVING, OPEN_TIMEOUT_S)
        self._rebinding.clear()
        self._allocate(allocation.asked, allocation.channels, seat=allocation.seat)

    def _follow(self, alternate: Address) -> None:
        """Go on at the address that the upstream names instead of its own, with the same credentials."""
        allocation = self.allocation
        assert allocation is not None
        try:
            if self._hops >= MAX_HOPS or (allocation.upstream.name, alternate) in self._avoid:
                raise FlowRefused(CloseReason.NO_UPSTREAM, f"{allocation.upstream.name}: it leads nowhere")
            upstream = self._owner.follow(self, allocation.upstream, alternate)
        except FlowRefused as refused:
            self._log("session not sent on", upstream=allocation.upstream.name, cause=str(refused))
            self._leave_here()
            return
        self._hops += 1
        self._log("session sent on", upstream=upstream.name, alternate=str(alternate))
        turn = TurnClient(allocation.turn.username, allocation.turn.password, reliable=True)
        self.allocation = replace(allocation, turn=turn, upstream=upstream)
        self._owner.ask(self, self.allocation)

    def on_upstream_lost(self, reason: CloseReason, detail: str) -> None:
        """The plane has found the upstream gone."""
        if self.allocation is not None and self.state in {State.OPENING, State.OPEN, State.MOVING}:
            self._log("session lost its upstream", upstream=self.allocation.upstream.name, cause=detail or reason.value)
            self._owner.suspect(self.allocation.upstream)
            self._leave_here()

    def on_upstream_down(self) -> None:
        """Probes say that the upstream is down, and nothing has come from it for a while."""
        if self.state is State.OPEN and self.allocation is not None:
            name = self.allocation.upstream.name
            self._log("session leaves its upstream", upstream=name, cause="probes find it down")
            self._leave_here()

    def on_stun(self, message: bytes) -> None:
        """Take a message of the upstream."""
        if self.allocation is not None:
            self._dispatch(self.allocation.turn.receive(self._owner.now(), message))

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
                case AllocationRefreshed() | _:
                    pass
            if self.allocation is not before:
                return  # what else there was is of an upstream that has been left
        self._flush()

    def _on_allocated(self, created: AllocationCreated) -> None:
        allocation = self.allocation
        assert allocation is not None
        if self.state in {State.OPENING, State.MOVING} and (refusal := self._owner.granted(self, allocation)):
            self._give_up(refusal.code, refusal.reason, CloseReason.NOT_ENTITLED)
        elif self.state is State.OPENING:
            self._attempts = 0
            self._enter(State.OPEN, None)
            token = self._owner.new_token(self)
            mapped, name, request_id = created.mapped_address, allocation.upstream.name, self._take_request_id()
            told = Opened(created.relayed_address, mapped, name, token, RESUME_WITHIN_S, request_id)
            self._owner.tell(self, replace(told, additional=created.additional_address))
            self._log("session opened", upstream=name, **_addresses(allocation.turn))
        elif self.state is State.MOVING:
            self._rebinding = set(allocation.channels)
            for peer, number in allocation.channels.items():
                allocation.turn.bind_channel(self._owner.now(), peer, number)
            self._finish_move()

    def _on_bound(self, bound: ChannelBound) -> None:
        self._rebinding.discard(bound.peer)
        for identity in self._asked.pop(bound.peer, ()):
            self._owner.tell(self, Bound(bound.peer, bound.channel_number, identity))
        self._finish_move()

    def _finish_move(self) -> None:
        allocation = self.allocation
        if self.state is not State.MOVING or self._rebinding or allocation is None:
            return
        relayed, name = allocation.turn.relayed_address, allocation.upstream.name
        if relayed is None:
            return
        self._attempts = 0
        self._enter(State.OPEN, None)
        self._owner.count(FailoverOutcome.MOVED)
        told = _addresses(allocation.turn)
        self._log("session moved", upstream=name, **told, channels=len(allocation.channels))
        if self._returned:
            self._tell_resumed(allocation, relayed)
        else:
            self._owner.tell(self, Moved(relayed, name, allocation.turn.additional_address))

    def _on_failed(self, failed: RequestFailed) -> None:
        if failed.method == Method.ALLOCATE:
            self._on_allocate_failed(failed)
        elif failed.code == ALLOCATION_MISMATCH:
            # The upstream has started anew: it is there, and has forgotten us.
            self._lose_allocation(failed, self._go_elsewhere)
        elif failed.method == Method.REFRESH:
            self._lose_allocation(failed, self._leave_here)
        elif failed.method == Method.CHANNEL_BIND:
            for peer in failed.peers:
                self._on_bind_failed(failed, peer)
            self._finish_move()

    def _lose_allocation(self, failed: RequestFailed, move: Callable[[], None]) -> None:
        if self.state in {State.OPEN, State.MOVING}:
            assert self.allocation is not None
            cause = f"{failed.method.name}: {failed.code} {failed.reason}"
            self._log("session lost its allocation", upstream=self.allocation.upstream.name, cause=cause)
            move()

    def _on_allocate_failed(self, failed: RequestFailed) -> None:
        if self.state not in {State.OPENING, State.MOVING}:
            return
        if failed.code == ALLOCATION_MISMATCH:
            # The source port is that of a client before us: another socket has another one.
            if self._stale_ports < MAX_STALE_PORTS:
                self._stale_ports += 1
                self._attempts -= 1
            self._go_elsewhere(self._avoid)
        elif failed.code == TRY_ALTERNATE and failed.alternate is not None:
            self._follow(failed.alternate)
        elif failed.code == FAMILY_NOT_SUPPORTED:
            # Another upstream of the region may have it.
            self._no_family = f"the upstream refuses: {_why(failed)}"
            self._without_family |= {self._here()}
            self._go_elsewhere(self._avoid)
        elif 400 <= failed.code < 500:
            self._give_up(failed.code, f"the upstream refuses: {_why(failed)}", CloseReason.NOT_ENTITLED)
        else:
            self._leave_here()

    def _on_bind_failed(self, failed: RequestFailed, peer: Address) -> None:
        assert self.allocation is not None
        self._rebinding.discard(peer)
        self.allocation.channels.pop(peer, None)
        code, reason = failed.code or 504, f"bind: the upstream refuses: {_why(failed)}"
        for identity in self._asked.pop(peer, (None,)):
            self._fail(code, reason, peer, identity)

    # Coming back

    def take(self, allocation: Allocation, *, has_socket: bool) -> None:
        """Go on with what another connection has left; without its socket, at an upstream that is chosen anew."""
        if self.state is not State.RETURNING:
            return
        self.allocation, self._returned = allocation, True
        relayed = allocation.turn.relayed_address
        if not has_socket or relayed is None:
            self._attempts = 0
            self._stale_ports = 0
            self._enter(State.MOVING, OPEN_TIMEOUT_S)
            self._go_elsewhere()
            return
        self._enter(State.OPEN, None)
        # A channel that was asked for, and maybe a renewal.
        allocation.turn.start_again(self._owner.now())
        self._asked = {peer: [] for peer in allocation.channels if not allocation.turn.is_bound(peer)}
        self._tell_resumed(allocation, relayed)
        self._flush()

    def _tell_resumed(self, allocation: Allocation, relayed: Address) -> None:
        self._returned = False
        name, token = allocation.upstream.name, self._owner.new_token(self)
        told = Resumed(relayed, name, token, RESUME_WITHIN_S, self._take_request_id())
        self._owner.tell(self, replace(told, additional=allocation.turn.additional_address))
        log_fields = _addresses(allocation.turn)
        self._log("session resumed", upstream=name, **log_fields, channels=len(allocation.channels))

    def _take_request_id(self) -> media_v1.RequestId:
        """The id of the message that is answered now; what is said later answers nothing."""
        request_id, self._request_id = self._request_id, None
        return request_id

    def on_nothing_left(self) -> None:
        """The token stands for nothing that is still there. The client may open a new allocation instead."""
        if self.state is State.RETURNING:
            self._enter(State.NEW, min(OPEN_TIMEOUT_S, self._new_until - self._owner.now()))
            self._fail(
                404, "resume: no such token; it is good once, and not for long", identity=self._take_request_id()
            )

    # Time and the end

    def _enter(self, state: State, within_s: float | None) -> None:
        self.state = state
        if state is State.OPEN:
            self._avoid = ()
        self._expires = None if within_s is None else self._owner.now() + within_s
        self._arm()

    def _arm(self) -> None:
        turn = None if self.allocation is None or self.state is State.CLOSING else self.allocation.turn.next_deadline()
        self._timer.set(min((when for when in (self._expires, turn) if when is not None), default=None))

    def _flush(self) -> None:
        if self.allocation is not None:
            for message in self.allocation.turn.take_messages():
                self._owner.request(self, message)
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
                self._fail(408, f"expected open or resume within {OPEN_TIMEOUT_S:g} s")
                self._owner.close(self, CloseReason.FIRST_BYTES_TIMEOUT)
            case State.RETURNING:
                self.on_nothing_left()
            case State.CLOSING:
                self._owner.close(self, CloseReason.CLIENT_CLOSED)
            case _ if self._refused is not None:
                self._give_up(503, str(self._refused), self._refused.reason)
            case _:
                self._give_up(504, f"no upstream has answered within {OPEN_TIMEOUT_S:g} s", CloseReason.NO_UPSTREAM)

    def _give_up(self, code: int, reason: str, close: CloseReason) -> None:
        if self.state is State.MOVING:
            self._owner.count(FailoverOutcome.NO_UPSTREAM)
        self._log("session failed", code=code, cause=reason)
        self._fail(code, reason, identity=self._request_id)
        self._enter(State.CLOSING, None)
        self._owner.close(self, close)

    def stop(self) -> None:
        """The connection has ended: nothing is waited for any more."""
        self._timer.cancel()

    def _fail(self, code: int, reason: str, peer: Address | None = None, identity: media_v1.RequestId = None) -> None:
        self._owner.tell(self, Failed(code, reason, peer, identity))

    def _log(self, event: str, **fields: object) -> None:
        # Of failures each code is a kind: a client can cause one after the other.
        self._owner.lines.info(event, f"{event} {fields.get('code', '')}", connection=self.opened.connection, **fields)


def _addresses(turn: TurnClient) -> dict[str, str]:
    """The relayed addresses, for the log."""
    addresses = {"relayed": turn.relayed_address, "additional": turn.additional_address}
    return {key: str(address) for key, address in addresses.items() if address is not None}


def _why(failed: RequestFailed) -> str:
    """The upstream's words; some have none."""
    if failed.code == PEER_FAMILY_MISMATCH:
        return f"{failed.reason or 'Peer Address Family Mismatch'}; open with family ipv6 or both for IPv6 peers"
    if failed.reason:
        return failed.reason
    words = {401: "wrong username or password", 440: "Address Family not Supported", 486: "too many allocations"}
    return words.get(failed.code, "it does not say why")
