"""The signaling reverse proxy: socket.io and REST to the configured upstreams, by host and path.

It begins and ends the requests, and has what they share (``Shared``): the settings of now, the upstreams, what is known
of sessions and clients. The life of one request is in ``exchange``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.cluster.sessions import SharedSessions
from relay.gateway.lines import Lines
from relay.gateway.routing.lookups import Lookup
from relay.gateway.signaling.addresses import Addresses
from relay.gateway.signaling.affinity import Affinity
from relay.gateway.signaling.connections import Connections, open_trust
from relay.gateway.signaling.exchange import Exchange, Shared
from relay.gateway.signaling.health import SignalingHealth
from relay.gateway.signaling.http_rules import CONNECTION, BadRequest, Forwarding, check
from relay.gateway.signaling.polling_only import PollingOnly
from relay.gateway.signaling.pools import Pools
from relay.gateway.signaling.refusals import RefusalReason, Refusals

# Lines a second, for each kind: clients that are pinned to polling, and requests that are refused.
LINES_PER_S = 5


class SignalingProxy:
    """``configure`` it, ``start`` it, let it answer requests, and ``stop`` it. It may be configured again meanwhile.

    ``refusals``, ``watchdog_hits`` and ``pools`` are there to be counted.
    """

    def __init__(self, lookup: Lookup, shared: SharedSessions | None = None) -> None:
        """``lookup`` resolves the names of upstreams. ``shared`` are the sessions of other relays."""
        lines = Lines(LINES_PER_S)
        self.pools = Pools()
        self.affinity = Affinity(shared)
        self.polling_only = PollingOnly()
        self._addresses = Addresses(lookup)
        self._connections = Connections(self._addresses)
        self._refusals = Refusals(lines)
        self._shared = Shared(
            self.pools, self.affinity, self.polling_only, self._connections, self._refusals, lines, SignalingSettings()
        )
        self._health: SignalingHealth | None = None
        self._stopped = False
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def settings(self) -> SignalingSettings:
        """As they are now."""
        return self._shared.settings

    @property
    def configured(self) -> bool:
        """True if requests that are not the relay's own go on."""
        return self.settings.configured

    @property
    def memory_is_short(self) -> bool:
        """Whether new sessions of socket.io are refused."""
        return self._shared.memory_is_short

    @memory_is_short.setter
    def memory_is_short(self, short: bool) -> None:
        self._shared.memory_is_short = short

    @property
    def websockets(self) -> int:
        """Spliced connections."""
        return sum(upstream.websockets for upstream in self.pools)

    @property
    def refusals(self) -> Counter[RefusalReason]:
        """How many requests the relay has answered by itself."""
        return self._refusals.counts

    @property
    def watchdog_hits(self) -> int:
        """How many upgrades were answered, and then nothing came through them."""
        return self.polling_only.swallowed

    # Life

    def configure(self, settings: SignalingSettings, health: HealthSettings) -> None:
        """Take new settings; what is in progress goes on with the old. Raises OperatorError, then nothing changes."""
        # Where there are no upstreams any longer, what is in progress may still need the old one.
        trust = open_trust(settings) if settings.configured else self._shared.trust
        self._shared.settings, self._shared.trust = settings, trust
        self._shared.forwarding = Forwarding(settings.trusted_networks)
        self._addresses.configure(settings.allowed_networks)
        self.affinity.max_sessions, self.affinity.idle_s = settings.max_sessions, settings.session_idle_s
        self.polling_only.max_entries = settings.max_sessions
        self.pools.configure(settings, health)
        self._watch()

    def _watch(self) -> None:
        if self._health is not None and self._shared.trust is not None:
            self._health.configure(self.settings, self._shared.trust)

    async def start(self) -> None:
        """Be ready for requests."""
        self._health = SignalingHealth(self._connections, self.pools)
        self._watch()

    async def stop(self) -> None:
        """End all requests and WebSockets, and take no new ones."""
        self._stopped = True
        if self._health is not None:
            await self._health.stop()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self._connections.close()

    # Requests

    async def on_request(self, request: web.Request) -> web.StreamResponse:
        """Answer a request: with what an upstream says, or with why there is no answer."""
        if self._stopped:  # its connection is still open
            return self._refusals.refuse(RefusalReason.UNREACHABLE, 503, "the relay is about to stop")
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            accepted = check(
                request,
                max_header_bytes=self.settings.max_header_bytes,
                max_body_bytes=self.settings.max_body_bytes,
            )
            return await Exchange(self._shared, request, accepted).run()
        except BadRequest as refused:
            return self.refuse_bad(refused, request.remote or "", request.get(CONNECTION))
        finally:
            self._running.discard(task)

    def refuse_bad(self, refused: BadRequest, client: str, connection: str | None = None) -> web.Response:
        """The page for a request that is not forwarded, also for one that could not even be read."""
        return self._refusals.refuse_bad(refused, client, connection)
