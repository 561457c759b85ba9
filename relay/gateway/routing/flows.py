"""Where flows go: chooses the upstream of each, starts it there, counts it, and knows when the last has ended.

All carriers pass through ``Flows.begin``: TURN from its first bytes, the others from their upgrade, sessions each time
they move.

``Tally`` counts what becomes of the carriers besides: requests to leave HTTP, which ``http/upgrades`` answers, and the
returns and moves of sessions. It is here because routing is below all that count and ``admin`` reads one tally.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from relay.addresses import Address, RelayPolicy
from relay.errors import UpstreamError
from relay.gateway.routing.routes import Routes, choose
from relay.gateway.routing.unallocated import Unallocated
from relay.gateway.routing.upstreams import Upstreams, UpstreamState
from relay.plane.api import Carrier, CloseReason, ConnectionId, Upstream

Start = Callable[[Upstream], None]
# Addresses of upstreams, each with its upstream's name. The name alone may have moved to a new address meanwhile, or
# have another one.
Avoided = frozenset[tuple[str, Address]]


OnBegun = Callable[["Wanted", UpstreamState | None], None]


def _nobody_asks(_: Wanted, __: UpstreamState | None) -> None:
    """Does nothing."""


class FlowRefused(UpstreamError):
    """A flow cannot begin; ``reason`` is what its connection would be closed for."""

    def __init__(self, reason: CloseReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Wanted:
    """A flow that is to begin, or to go on elsewhere."""

    connection: ConnectionId
    server_name: str
    carrier: Carrier
    # What the client itself asks for, within its route.
    region: str | None = None
    # Where it must go: CONNECT-UDP names its target, a session comes back to its allocation.
    target: Upstream | None = None
    # Where it must not go: where an upstream has just been lost.
    avoid: Avoided = frozenset()
    # The IP address of its client, for the decision about its user.
    client: str = ""


class UpgradeOutcome(StrEnum):
    """What became of a request to leave HTTP."""

    ACCEPTED = "accepted"
    BAD_REQUEST = "bad_request"
    FORBIDDEN = "forbidden"  # the origin, or the target
    UNRESOLVED = "unresolved"  # the target's name
    UNREACHABLE = "unreachable"  # the target
    NO_UPSTREAM = "no_upstream"
    TOO_MANY = "too_many"  # from one source: sessions in this second, or flows without an allocation
    NO_MEMORY = "no_memory"
    DRAINING = "draining"


class ResumeOutcome(StrEnum):
    """What became of a session's token."""

    RESUMED = "resumed"
    UNKNOWN = "unknown"  # wrong, used or late
    EXPIRED = "expired"  # no client came with it


class FailoverOutcome(StrEnum):
    """What became of a session that lost its upstream."""

    MOVED = "moved"
    NO_UPSTREAM = "no_upstream"


@dataclass
class Tally:
    """What happened to carriers since the start: counted by ``http`` and ``sessions``, read by ``admin``."""

    upgrades: Counter[tuple[Carrier, UpgradeOutcome]] = field(default_factory=Counter)
    resumptions: Counter[ResumeOutcome] = field(default_factory=Counter)
    failovers: Counter[FailoverOutcome] = field(default_factory=Counter)
    # Sessions whose client may still come back.
    parked: int = 0


class Flows:
    """The flows of one gateway. ``draining`` takes no new ones, and neither does ``memory_is_short``."""

    def __init__(
        self, upstreams: Upstreams, on_begun: OnBegun = _nobody_asks, unallocated: Unallocated | None = None
    ) -> None:
        """``on_begun`` is told of each flow and its upstream, just before it starts."""
        self.routes = Routes(())
        # The user name in Allocate is asked about (``admission``). A session asks by itself.
        self.asks_for_users = False
        # Where an upstream may send a flow on to (300 Try Alternate).
        self.policy = RelayPolicy()
        self.draining = False
        self.memory_is_short = False
        self.tally = Tally()
        self._upstreams = upstreams
        self._on_begun = on_begun
        self._unallocated = unallocated
        # None for a flow that goes to no configured upstream.
        self._states: dict[ConnectionId, UpstreamState | None] = {}
        self._addresses: dict[ConnectionId, Address] = {}
        self._none_left = asyncio.Event()
        self._none_left.set()

    def configure(self, routes: Routes, policy: RelayPolicy, *, asks_for_users: bool) -> None:
        """Take these from now on."""
        self.routes = routes
        self.policy = policy
        self.asks_for_users = asks_for_users

    def __len__(self) -> int:
        return len(self._states)

    def connections(self) -> list[ConnectionId]:
        """The connections that are flows now."""
        return list(self._states)

    def state_of(self, connection: ConnectionId) -> UpstreamState | None:
        """The upstream of a flow; None if there is no such flow, or it goes elsewhere."""
        return self._states.get(connection)

    def begin(self, wanted: Wanted, start: Start) -> Upstream:
        """Choose an upstream, have ``start`` attach, upgrade or move the connection to it, and count it there.

        Where the connection has a flow already, that one moves. Raises FlowRefused.
        """
        if self.draining and wanted.connection not in self._states:
            raise FlowRefused(CloseReason.DRAINING, "the relay is about to stop, and accepts no new calls")
        if self.memory_is_short and self._is_new(wanted):
            raise FlowRefused(CloseReason.NO_MEMORY, "the relay is short of memory, and accepts no new calls now")
        route = self.routes.match(wanted.server_name)
        region = wanted.region if route is None else route.region
        if wanted.region not in {None, region}:
            raise FlowRefused(CloseReason.NO_UPSTREAM, f"this name serves only the region {region}")
        age_s = None if route is None or route.max_media_age_ms is None else route.max_media_age_ms / 1000
        state, upstream = self._place(wanted, region)
        self._look_for_room(wanted)
        self._count(wanted.connection, state)
        self._addresses[wanted.connection] = upstream.address
        asks = self.asks_for_users and wanted.carrier is not Carrier.SESSION
        # A session follows a 300 by itself.
        alternates = None if state is None or wanted.carrier is Carrier.SESSION else self.policy
        upstream = replace(upstream, max_media_age_s=age_s, asks_for_users=asks, alternates=alternates)
        self._on_begun(wanted, state)
        start(upstream)
        return upstream

    def _is_new(self, wanted: Wanted) -> bool:
        """Whether this is a new call. A session that comes back to its allocation is one that runs."""
        returns = wanted.carrier is Carrier.SESSION and wanted.target is not None
        return wanted.connection not in self._states and not returns

    def _look_for_room(self, wanted: Wanted) -> None:
        """Count a flow as one without an allocation. Raises FlowRefused if its source has too many."""
        # A session has its allocation made by control, and a bound of its own.
        if wanted.carrier is Carrier.SESSION or self._unallocated is None:
            return
        if not self._unallocated.enter(wanted.connection, wanted.client):
            bound = f"expected at most {self._unallocated.bound} (limits.unallocated_flows_per_source)"
            raise FlowRefused(
                CloseReason.TOO_MANY_FLOWS, f"too many flows of one source without an allocation: {bound}"
            )

    def _place(self, wanted: Wanted, region: str | None) -> tuple[UpstreamState | None, Upstream]:
        if wanted.target is not None:
            # An address is its upstream's even if the name has left it since, or a 300 has led to it.
            return self._upstreams.get(wanted.target.name), wanted.target
        usable = (state for state in self._upstreams if (state.name, state.address) not in wanted.avoid)
        if (state := choose(usable, region)) is not None:
            return state, state.for_plane()
        if (elsewhere := self._other_address(wanted.avoid, region)) is not None:
            return elsewhere
        where = "no upstream" if region is None else f"no upstream of the region {region}"
        raise FlowRefused(CloseReason.NO_UPSTREAM, f"{where} is up")

    def _other_address(self, avoid: Avoided, region: str | None) -> tuple[UpstreamState, Upstream] | None:
        """Another address of an upstream whose own is to be avoided: probes may not know yet that it is dead."""
        for state in sorted(self._upstreams, key=lambda one: one.flows):
            if region not in {None, state.settings.region} or (state.name, state.address) not in avoid:
                continue
            for address in state.others([one for name, one in avoid if name == state.name]):
                if not state.is_down(address):
                    return state, state.for_plane(address)
        return None

    def may_reach(self, server_name: str, state: UpstreamState) -> bool:
        """True if the route of a name leads to the region of this upstream."""
        region = self.routes.region(server_name)
        return region in {None, state.settings.region}

    def _count(self, connection: ConnectionId, state: UpstreamState | None) -> None:
        before = self._states.get(connection)
        if before is not None:
            before.flows -= 1
        if state is not None:
            state.flows += 1
        self._states[connection] = state
        self._none_left.clear()

    def end(self, connection: ConnectionId) -> UpstreamState | None:
        """Forget a flow, if there is one; its upstream, if it went to one."""
        self._addresses.pop(connection, None)
        if self._unallocated is not None:
            self._unallocated.leave(connection)
        state = self._states.pop(connection, None)
        if state is not None:
            state.flows -= 1
        if not self._states:
            self._none_left.set()
        return state

    def has_lost(self, state: UpstreamState) -> bool:
        """True if a flow goes to an address of this upstream that probes have found dead since."""
        return any(
            state.is_down(address)
            for connection, address in self._addresses.items()
            if self._states[connection] is state
        )

    async def wait_ended(self) -> None:
        """Wait until there is no flow."""
        await self._none_left.wait()
