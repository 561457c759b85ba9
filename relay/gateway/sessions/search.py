"""The search of one session for an upstream: how often it has tried, and where it need not try again.

It has no clock and asks nobody: the session says what came of each attempt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from relay.addresses import Address
from relay.gateway.routing.flows import Avoided, FlowRefused
from relay.plane.alternates import MAX_HOPS
from relay.plane.api import CloseReason, Upstream

# Upstreams that are tried before a client hears that there is none.
MAX_ATTEMPTS = 4
# After a restart, an upstream may still hold allocations of earlier clients on our source ports (437). Such a port does
# not count as an attempt. In ten seconds this many can be tried, which is enough if nine in ten ports are taken.
MAX_STALE_PORTS = 256

# Starts the flow in a region, at none of the addresses to avoid. Raises FlowRefused.
Place = Callable[[str | None, Avoided], Upstream]


class UpstreamSearch:
    """``begin`` it when the session needs an upstream, and call ``found`` when one has granted an allocation."""

    def __init__(self) -> None:
        # Why the session waits for an upstream, if it does.
        self.refused: FlowRefused | None = None
        # The last refusal for lack of the family, and who refused.
        self.no_family = ""
        self._without_family: Avoided = frozenset()
        # Where it has been in vain, the last one last.
        self._avoid: tuple[tuple[str, Address], ...] = ()
        self._attempts = 0
        self._stale_ports = 0
        # How often an upstream has sent it on, since it was last placed.
        self._hops = 0

    def begin(self) -> None:
        """A search begins, with all attempts."""
        self._attempts = 0
        self._stale_ports = 0
        self._without_family = frozenset()

    def found(self) -> None:
        """An upstream serves."""
        self._attempts = 0
        self._avoid = ()

    def next(self, place: Place, region: str | None, admitted_to: str | None) -> Upstream:
        """Go to an upstream. Raises FlowRefused.

        ``region`` is what the client asked for, ``admitted_to`` where its user has a seat.
        """
        self._attempts += 1
        self._hops = 0
        if self._attempts > MAX_ATTEMPTS:
            tried = f"{MAX_ATTEMPTS} upstreams have been tried, and none serves"
            raise FlowRefused(CloseReason.NO_UPSTREAM, tried)
        upstream = self._place(place, region, admitted_to)
        self.refused = None
        return upstream

    def _place(self, place: Place, region: str | None, admitted_to: str | None) -> Upstream:
        if region is None and admitted_to and self._attempts == 1:
            # A call stays in its region if it can: its user may not be entitled to others.
            with contextlib.suppress(FlowRefused):
                return place(admitted_to, self._without_family.union(self._avoid))
        with contextlib.suppress(FlowRefused):
            return place(region, self._without_family.union(self._avoid))
        # All have been in vain. Those before the last may be back.
        return place(region, self._without_family.union(self._avoid[-1:]))

    # What came of an attempt

    def avoid_all(self) -> None:
        """Forget where the session has been in vain: any upstream may serve it."""
        self._avoid = ()

    def avoid(self, here: tuple[str, Address]) -> None:
        """This one is gone, or refuses: do not come back before the search has ended."""
        self._avoid = (*self._avoid, here)

    def is_back(self, there: tuple[str, Address]) -> None:
        """This one answers again."""
        self._avoid = tuple(one for one in self._avoid if one != there)

    def on_stale_port(self) -> None:
        """The source port was an earlier client's: another socket has another port, so this was not an attempt."""
        if self._stale_ports < MAX_STALE_PORTS:
            self._stale_ports += 1
            self._attempts -= 1

    def on_no_family(self, here: tuple[str, Address], said: str) -> None:
        """This one has no address of the family that was asked for. Another one of the region may have it."""
        self.no_family = said
        self._without_family |= {here}

    @property
    def lacks_family(self) -> bool:
        """True if an upstream would have served, with an address of another family."""
        return bool(self._without_family)

    @property
    def may_wait(self) -> bool:
        """True if there are attempts left, so that waiting for an upstream helps."""
        return self._attempts <= MAX_ATTEMPTS

    def wait(self, refused: FlowRefused) -> None:
        """Nothing can be tried now, which was not an attempt."""
        self._attempts -= 1
        self.refused = refused

    def hop(self, upstream: Upstream, alternate: Address) -> None:
        """An upstream names another address. Raises FlowRefused if that leads nowhere."""
        if self._hops >= MAX_HOPS or (upstream.name, alternate) in self._avoid:
            raise FlowRefused(CloseReason.NO_UPSTREAM, f"{upstream.name}: it leads nowhere")
        self._hops += 1
