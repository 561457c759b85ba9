"""The health monitor with probes that follow each other at once, and a record of what it found out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from relay.addresses import Address
from relay.config import HealthSettings, MediaSettings, UpstreamServer
from relay.gateway.routing.health import HealthMonitor
from relay.gateway.routing.lookups import Lookup
from relay.gateway.routing.upstreams import Health, Upstreams, UpstreamState
from tests.support.ssrf_table import FakeDns

# So long that only a test that waits for a timeout sees one.
PATIENT_S = 60.0
AT_ONCE_S = 0.001


def settings(**keys: Any) -> HealthSettings:
    """Probes without a pause between them, unless told otherwise."""
    return HealthSettings.model_validate({"interval_s": AT_ONCE_S, "timeout_s": PATIENT_S, "jitter": 0, **keys})


class Watched:
    """A monitor and its upstreams; ``history`` has the name and the health after each probe, in order."""

    def __init__(self, *servers: UpstreamServer, lookup: Lookup | None = None) -> None:
        self.upstreams = Upstreams()
        self.upstreams.configure(servers, settings())
        self.monitor = HealthMonitor(self.upstreams, self._on_probe, lookup or FakeDns({"localhost": [["127.0.0.1"]]}))
        self.history: list[tuple[str, Health]] = []
        self._probed = asyncio.Event()

    @property
    def only(self) -> UpstreamState:
        [state] = self.upstreams
        return state

    def _on_probe(self, state: UpstreamState) -> None:
        self.history.append((state.name, state.health))
        self._probed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a probe after which the condition holds."""
        while not condition():
            self._probed.clear()
            await self._probed.wait()

    async def probes(self, count: int) -> list[Health]:
        """Wait for this many probes; the healths after each of them."""
        await self.until(lambda: len(self.history) >= count)
        return [known for _, known in self.history[:count]]


@contextlib.asynccontextmanager
async def watching(*servers: UpstreamServer, media: MediaSettings | None = None, **keys: Any) -> AsyncIterator[Watched]:
    watched = Watched(*servers)
    watched.upstreams.configure(servers, settings(**keys))
    watched.monitor.configure(settings(**keys), media or MediaSettings())
    try:
        yield watched
    finally:
        await watched.monitor.stop()


def server(address: Address, name: str = "stun1", **keys: str) -> UpstreamServer:
    return UpstreamServer.model_validate({"name": name, "address": str(address), **keys})
