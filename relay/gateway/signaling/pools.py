"""The servers that signaling goes on to: who may serve a request, who is healthy, who holds a session."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from relay.addresses import IpNetwork, RelayPolicy
from relay.config import HealthSettings, SignalingSettings
from relay.errors import OperatorError
from relay.gateway.routing.lookups import RESOLVE_TIMEOUT_S, Lookup
from relay.gateway.routing.upstreams import Health, RiseAndFall
from relay.name_patterns import ANY, patterns_of

log = structlog.get_logger()

# Probes are spread by this share of the interval, so that relays do not beat in time.
JITTER = 0.1


class SignalingUpstream:
    """One server: where it is, what is known of it, and what it has answered."""

    def __init__(self, url: str, health: HealthSettings) -> None:
        self.url = url
        self.origin = URL(url)
        self.judged = RiseAndFall(health)
        # In progress; those that became WebSockets are among the requests.
        self.requests = self.websockets = 0
        # By status class (2xx and so on); what had no answer is "failed".
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
        """A connection could not be made; refused, it is ``certain``."""
        if self.judged.on_failure(certain=certain):
            log.warning("signaling upstream down", upstream=self.url, cause=cause)


class Pool(NamedTuple):
    """The servers of one route; host and path name it."""

    host: str
    path: str
    upstreams: tuple[SignalingUpstream, ...]

    def order(self, turn: int) -> list[SignalingUpstream]:
        """All of them, the best first: not known to be down, then the least loaded, then in turn."""
        start = turn % len(self.upstreams)
        turned = self.upstreams[start:] + self.upstreams[:start]
        return sorted(turned, key=lambda one: (one.health is Health.DOWN, one.requests))


class Pools:
    """All routes: an exact host goes before a wildcard, a longer wildcard before a shorter; then the longest path."""

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


class Sessions:
    """Which upstream holds a socket.io session; bounded, with expiry.

    The oldest are forgotten first when the table is full. ``now`` is in seconds of any clock that goes forward.
    """

    def __init__(self) -> None:
        self.max_sessions = 1
        self.idle_s = 1.0
        self._held: OrderedDict[tuple[str, str, str], tuple[SignalingUpstream, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def learn(self, now: float, pool: Pool, sid: str, upstream: SignalingUpstream) -> None:
        """An upstream has opened a session, or has been asked for it."""
        key = (pool.host, pool.path, sid)
        self._held[key] = (upstream, now + self.idle_s)
        self._held.move_to_end(key)
        while len(self._held) > self.max_sessions or next(iter(self._held.values()))[1] <= now:
            self._held.popitem(last=False)

    def find(self, now: float, pool: Pool, sid: str) -> SignalingUpstream | None:
        """The upstream that holds the session, if it is known and still one of the pool."""
        held = self._held.get((pool.host, pool.path, sid))
        if held is None or held[1] <= now or held[0] not in pool.upstreams:
            return None
        self.learn(now, pool, sid, held[0])
        return held[0]

    def forget(self, pool: Pool, sid: str) -> None:
        """The upstream that held the session has gone, and the session with it."""
        self._held.pop((pool.host, pool.path, sid), None)


class CheckedResolver(AbstractResolver):
    """Looks names up and gives only what may be connected to; connections are made to what was checked."""

    def __init__(self, lookup: Lookup) -> None:
        self.policy = RelayPolicy()
        self._lookup = lookup

    def configure(self, allowed: Iterable[IpNetwork]) -> None:
        """Names may resolve into these special networks as well."""
        self.policy = RelayPolicy(allowed)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The permitted addresses of a name. Raises OSError if there is none."""
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._lookup(host)
        except TimeoutError:
            raise OSError(f"{host}: no answer from the resolver") from None
        except UnicodeError as error:
            raise OSError(f"{host}: no host name: {error}") from None
        permitted = [answer for answer in found if self.policy.permits(answer)]
        if not permitted:
            hosts = ", ".join(found) or "nothing"
            raise OSError(f"{host} resolves to {hosts}, which signaling.allowed_networks does not hold")
        wanted = [_result(host, answer, port) for answer in permitted]
        return [one for one in wanted if family in {socket.AF_UNSPEC, one["family"]}]

    async def close(self) -> None:
        """Nothing is held."""


def _result(host: str, answer: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in answer else socket.AF_INET
    return ResolveResult(hostname=host, host=answer, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


def open_trust(settings: SignalingSettings) -> ssl.SSLContext:
    """What https:// upstreams are checked against. Raises OperatorError for a file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        # An SSLError has a text of its own, where the system has one for what the file system says.
        why = error if isinstance(error, ssl.SSLError) else error.strerror or error
        raise OperatorError(f"signaling.ca_file: {settings.ca_file}: {why}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
