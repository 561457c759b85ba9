"""Takes sessions to upstreams: the flow begins there, with the credentials that its client or the relay has."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from relay.addresses import Address
from relay.gateway.routing.flows import Avoided, FailoverOutcome, FlowRefused, Flows, Wanted
from relay.gateway.routing.health import HealthMonitor, credentials_for
from relay.gateway.routing.upstreams import Upstreams
from relay.plane.api import Carrier, CloseReason, HttpOpened, Plane, Upstream


class Placing:
    """Where sessions go. ``own_credentials`` lets those without credentials use the relay's."""

    def __init__(self, plane: Plane, flows: Flows, upstreams: Upstreams, health: HealthMonitor) -> None:
        self.own_credentials = False
        self._plane = plane
        self._flows = flows
        self._upstreams = upstreams
        self._health = health

    def place(self, opened: HttpOpened, region: str | None, avoid: Avoided) -> Upstream:
        """Have the plane go on at a fresh socket of another upstream. Raises FlowRefused."""
        wanted = Wanted(opened.connection, opened.server_name, Carrier.SESSION, region, avoid=avoid)
        return self._flows.begin(wanted, lambda upstream: self._plane.move(opened.connection, upstream))

    def follow(self, opened: HttpOpened, upstream: Upstream, alternate: Address) -> Upstream:
        """Have the plane go on at the address that an upstream names instead of its own. Raises FlowRefused."""
        if not self._flows.policy.permits(alternate.host):
            detail = f"{upstream.name}: it leads to {alternate}, which may not be relayed to (media.allowed_networks)"
            raise FlowRefused(CloseReason.NO_UPSTREAM, detail)
        target = replace(upstream, address=alternate)
        wanted = Wanted(opened.connection, opened.server_name, Carrier.SESSION, target=target)
        return self._flows.begin(wanted, lambda upstream: self._plane.move(opened.connection, upstream))

    def come_back(self, opened: HttpOpened, upstream: Upstream, left: socket.socket) -> Upstream:
        """Have the plane go on at the socket that another connection has left.

        The plane owns the socket then. Raises FlowRefused, and then the caller owns it still.
        """
        wanted = Wanted(opened.connection, opened.server_name, Carrier.SESSION, target=upstream)
        connection = opened.connection
        return self._flows.begin(wanted, lambda upstream: self._plane.move(connection, upstream, left.detach()))

    def credentials(self, upstream: Upstream) -> tuple[str, str]:
        """The relay's own name and password for an upstream; empty if it has none."""
        state = self._upstreams.get(upstream.name)
        return ("", "") if state is None else credentials_for(state.settings, "", time.time())

    def region_of(self, upstream: Upstream) -> str:
        """The region of an upstream."""
        return self._upstreams.region_of(upstream.name)

    def suspect(self, upstream: Upstream) -> None:
        """The upstream seems to be gone: have it probed."""
        if (state := self._upstreams.get(upstream.name)) is not None:
            self._health.suspect(state)

    def count(self, outcome: FailoverOutcome) -> None:
        """Count what became of a failover."""
        self._flows.tally.failovers[outcome] += 1
