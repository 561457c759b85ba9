"""Asks signaling upstreams now and then whether they take connections, or answer."""

from __future__ import annotations

import asyncio
import random
import ssl

import structlog

from relay.config import SignalingSettings
from relay.gateway.signaling.connections import ConnectFailed, Connections, Lost
from relay.gateway.signaling.pools import Pools, SignalingUpstream
from relay.tasks import Tasks
from relay.wire.http1 import AnswerError, build_head

log = structlog.get_logger()

# Probes are spread by this share of the interval, so that relays do not beat in time.
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
        self._running = [
            self._tasks.start(self._watch(upstream, settings, trust), f"signaling health {upstream.url}")
            for upstream in self._pools
        ]

    async def stop(self) -> None:
        """Ask nobody any more."""
        await self._tasks.cancel()

    async def _watch(self, upstream: SignalingUpstream, settings: SignalingSettings, trust: ssl.SSLContext) -> None:
        while True:
            try:
                async with asyncio.timeout(settings.connect_timeout_s):
                    await self._probe(upstream, settings, trust)
            except ConnectFailed as failed:
                upstream.on_failure(failed.cause, certain=failed.certain)
            except TimeoutError:
                upstream.on_failure("no answer in time", certain=False)
            except (Lost, AnswerError) as error:
                upstream.on_failure(str(error), certain=False)
            except Exception:  # a watch that has ended would leave its upstream as it was for ever
                log.exception("signaling probe failed", upstream=upstream.url)
            else:
                upstream.on_success()
            await asyncio.sleep(settings.health_interval_s * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311

    async def _probe(self, upstream: SignalingUpstream, settings: SignalingSettings, trust: ssl.SSLContext) -> None:
        origin = upstream.origin
        connection = await self._connections.open(origin, trust, settings.connect_timeout_s)
        try:
            if settings.health_path:
                first = f"GET {settings.health_path} HTTP/1.1".encode()
                host = (origin.host_port_subcomponent or "").encode()
                connection.write(build_head(first, [(b"Host", host), (b"Connection", b"close")]))
                head = await connection.read_head()
                while head.status < 200:
                    head = await connection.read_head()
                if head.status >= 500:
                    raise AnswerError(f"status {head.status}")
        finally:
            connection.close()
