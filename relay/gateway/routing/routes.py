"""Chooses the upstream of a new flow: server name to region, then the healthiest, then the least loaded."""

from __future__ import annotations

from collections.abc import Iterable

from relay.config import Route
from relay.gateway.routing.upstreams import Health, UpstreamState
from relay.name_patterns import patterns_of

# Round-trip times this close count as equal: nobody hears 10 ms, but everybody hears an overloaded server.
RTT_TIE_S = 0.010


class Routes:
    """The configured routes. An exact name goes before a wildcard, and a longer wildcard before a shorter one.

    A wildcard is one label or more: ``*.xhoot.com`` matches stun1.use1.prod1.xhoot.com too.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[str, Route] = {}
        for route in routes:
            self._routes.setdefault(route.server_name, route)

    def match(self, server_name: str) -> Route | None:
        """The route for a name, or None if it may go anywhere."""
        found = (self._routes.get(pattern) for pattern in patterns_of(server_name.lower().rstrip(".")))
        return next((route for route in found if route is not None), None)

    def region(self, server_name: str) -> str | None:
        """The region for a name, or None for any."""
        route = self.match(server_name)
        return None if route is None else route.region


def choose(upstreams: Iterable[UpstreamState], region: str | None) -> UpstreamState | None:
    """The best upstream of a region (of all, if None) that is not known to be down; None if there is none."""
    candidates = [
        state for state in upstreams if region in {None, state.settings.region} and state.health is not Health.DOWN
    ]
    up = [state for state in candidates if state.health is Health.UP]
    # Before the first probes are back nothing is known to be up, and an unknown one is worth a try.
    candidates = up or candidates
    if not candidates:
        return None
    nearest = min(_rtt(state) for state in candidates)
    tied = [state for state in candidates if _rtt(state) <= nearest + RTT_TIE_S]
    return min(tied, key=lambda state: (state.flows, _rtt(state)))


def _rtt(state: UpstreamState) -> float:
    return 0.0 if state.rtt_s is None else state.rtt_s
