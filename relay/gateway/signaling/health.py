"""Asks the servers of signaling now and then whether they live: whether they take connections, or answer a GET."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

from yarl import URL

from relay import deadlines
from relay.config import SignalingSettings
from relay.gateway.routing.rounds import go_round, spread
from relay.gateway.signaling.connections import ConnectFailed, Connections, Lost
from relay.gateway.signaling.pools import Pools, SignalingUpstream
from relay.tasks import Tasks
from relay.wire.http1 import AnswerError, build_head

# The share of the interval by which probes are spread.
JITTER = 0.1


class SignalingHealth:
    """One task for each upstream."""

    def __init__(self, connections: Connections, pools: Pools) -> None:
        self._connections = connections
        self._pools = pools
        self._tasks = Tasks()
        self._running: list[asyncio.Task[None]] = []

    def configure(self, settings: SignalingSettings, trust: ssl.SSLContext) -> None:
        """Ask the upstreams as they are now."""
        for task in self._running:
            task.cancel()
        watches = [_Watch(upstream, settings, trust, self._connections) for upstream in self._pools]
        self._running = [self._tasks.start(one.run(), f"signaling health {one.upstream.url}") for one in watches]

    async def stop(self) -> None:
        """Ask no upstream any longer."""
        await self._tasks.cancel()


@dataclass(frozen=True)
class _Watch:
    """Watches one upstream until ``run`` is cancelled."""

    upstream: SignalingUpstream
    settings: SignalingSettings
    trust: ssl.SSLContext
    connections: Connections

    async def run(self) -> None:
        await go_round(self._round, self._pause, failure="signaling probe failed", upstream=self.upstream.url)

    async def _round(self, _: float) -> None:
        upstream = self.upstream
        try:
            async with deadlines.timeout(self.settings.connect_timeout_s):
                await ask(self.connections, upstream.origin, self.trust, self.settings)
        except ConnectFailed as failed:
            upstream.on_failure(failed.cause, certain=failed.certain)
        except TimeoutError:
            upstream.on_failure("no answer in time", certain=False)
        except (Lost, AnswerError) as error:
            upstream.on_failure(str(error), certain=False)
        else:
            upstream.on_success()

    async def _pause(self, _: float) -> None:
        await asyncio.sleep(spread(self.settings.health_interval_s, JITTER))


async def ask(connections: Connections, origin: URL, trust: ssl.SSLContext, settings: SignalingSettings) -> None:
    """Connect, and send a GET if there is a ``health_path``. The caller sets the deadline for the answer.

    Raises ConnectFailed, Lost or AnswerError if the server does not prove that it lives.
    """
    path = settings.health_path
    connection = await connections.open(origin, trust, settings.connect_timeout_s)
    try:
        if path:
            host = (origin.host_port_subcomponent or "").encode()
            connection.write(build_head(f"GET {path} HTTP/1.1".encode(), [(b"Host", host), (b"Connection", b"close")]))
            head = await connection.read_head()
            while head.status < 200:
                head = await connection.read_head()
            if head.status >= 500:
                raise AnswerError(f"status {head.status}")
    finally:
        connection.close()
