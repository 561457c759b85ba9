"""The servers that signaling goes on to, and which of them may serve a request: by host, path, health and load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import structlog
from yarl import URL

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.routing.upstreams import Health, RiseAndFall
from relay.name_patterns import ANY, patterns_of

log = structlog.get_logger()


class SignalingUpstream:
    """One server: where it is, what is known of it, and what it has answered."""

    def __init__(self, url: str, health: HealthSettings) -> None:
        self.url = url
        self.origin = URL(url)
        self.judged = RiseAndFall(health)
        # Both are in progress. A request that became a WebSocket counts as a request, too.
        self.requests = self.websockets = 0
        # By status class (2xx and so on). A request without an answer is "failed".
        self.answers: Counter[str] = Counter()
        self.upgrades = 0

    @property
    def health(self) -> Health:
        """What the probes, and the connections that could not be made, say."""
        return self.judged.health

    def on_success(self) -> None:
        """A connection was made."""
        if self.judged.on_success():
            log.info("signaling upstream up", upstream=self.url)

    def on_failure(self, cause: str, *, certain: bool) -> None:
        """A connection could not be made. ``certain``: it was refused."""
        if self.judged.on_failure(certain=certain):
            log.warning("signaling upstream down", upstream=self.url, cause=cause)


class Pool(NamedTuple):
    """The servers of one route; host and path name it."""

    host: str
    path: str
    upstreams: tuple[SignalingUpstream, ...]

    def key_of(self, sid: str) -> tuple[str, str, str]:
        """A key for a socket.io session of these servers: other routes may have sessions with the same id."""
        return self.host, self.path, sid

    def order(self, turn: int) -> list[SignalingUpstream]:
        """All of them, the best first: not known to be down, then the least loaded, then in turn."""
        start = turn % len(self.upstreams)
        turned = self.upstreams[start:] + self.upstreams[:start]
        return sorted(turned, key=lambda one: (one.health is Health.DOWN, one.requests))


class Pools:
    """All routes. An exact host goes before a wildcard, a longer wildcard before a shorter; then the longest path."""

    def __init__(self) -> None:
        self._pools: dict[str, list[Pool]] = {}
        self._upstreams: dict[str, SignalingUpstream] = {}

    def __iter__(self) -> Iterator[SignalingUpstream]:
        return iter(self._upstreams.values())

    def configure(self, settings: SignalingSettings, health: HealthSettings) -> None:
        """Take new routes; a server whose URL is as before keeps what is known of it."""
        before, self._upstreams = self._upstreams, {}
        self._pools = {}
        routes = [(route.host, route.path, route.upstreams) for route in settings.routes]
        if settings.upstreams:
            routes.append((ANY, "", settings.upstreams))
        for host, path, urls in routes:
            states = []
            for url in dict.fromkeys(urls):
                state = self._upstreams.get(url) or before.get(url) or SignalingUpstream(url, health)
                state.judged.settings = health
                self._upstreams[url] = state
                states.append(state)
            self._pools.setdefault(host, []).append(Pool(host, path, tuple(states)))
        for pools in self._pools.values():
            pools.sort(key=lambda pool: len(pool.path), reverse=True)

    def match(self, host: str, path: str) -> Pool | None:
        """The pool for a host (lower case, without port) and a decoded path; None if it has none."""
        for pattern in (*patterns_of(host), ANY):
            for pool in self._pools.get(pattern, ()):
                if _lies_below(path, pool.path):
                    return pool
        return None


def _lies_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix if prefix.endswith("/") or not prefix else prefix + "/")
