"""The addresses of upstreams that are given by name: only those that may be connected to, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from relay.addresses import Address, IpNetwork, RelayPolicy
from relay.gateway.routing.lookups import Lookup
from relay.gateway.routing.resolve import Resolver

# A name is not looked up for each connection; health checks come less often than this.
RESOLVED_FOR_S = 10.0


class Addresses:
    """Remembers what names resolve to. Connections are made to these addresses and never to the name."""

    def __init__(self, lookup: Lookup) -> None:
        self._resolver = Resolver(RelayPolicy(), lookup)
        self._known: dict[Address, tuple[Sequence[Address], float]] = {}

    def configure(self, allowed: Iterable[IpNetwork]) -> None:
        """From now on names may also resolve into these special networks. All names are looked up again."""
        self._resolver.policy = RelayPolicy(allowed)
        self._known.clear()

    async def find(self, wanted: Address) -> Sequence[Address]:
        """The addresses of a server. A literal address is the operator's own word. Raises ResolveError."""
        if wanted.is_literal:
            return [wanted]
        now = asyncio.get_running_loop().time()
        known, until = self._known.get(wanted, ((), 0.0))
        if now < until:
            return known
        # Each name has lookups of its own: one that hangs leaves room for the others.
        found = await self._resolver.resolve(*wanted, source=wanted.host)
        self._known[wanted] = found, now + RESOLVED_FOR_S
        return found
