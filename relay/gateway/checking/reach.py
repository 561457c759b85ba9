"""Whether upstreams, servers of signaling and Redis answer: their names are looked up, and each address is asked.

The questions are those of the relay's own health checks, from the same source address. Each ends at its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from relay import deadlines
from relay.addresses import Address, RelayPolicy
from relay.config import Config, UpstreamServer
from relay.gateway.cluster.client import StoreError
from relay.gateway.cluster.opening import open_client
from relay.gateway.routing.health import METHODS, credentials_for
from relay.gateway.routing.lookups import Lookup, SystemLookup
from relay.gateway.routing.probe import Asker, Finding, ProbeVerdict
from relay.gateway.routing.resolve import ResolveError, Resolver
from relay.gateway.signaling.addresses import Addresses
from relay.gateway.signaling.connections import ConnectFailed, Connections, Lost, open_trust
from relay.gateway.signaling.health import ask
from relay.gateway.signaling.pools import Pools, SignalingUpstream
from relay.logs import printable
from relay.wire.http1 import AnswerError

# One lost packet proves nothing, so an upstream is asked this often.
TRIES = 3
# Servers that are asked at once. A question takes a socket or two, and seconds if nobody answers.
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Reached:
    """What was found at one address, or that a name has none. ``trouble`` is empty if it answered."""

    server: str
    address: str
    question: str
    took_s: float | None = None
    trouble: str = ""


async def reach(settings: Config, lookup: Lookup | None = None) -> list[Reached]:
    """Ask all, in the order of the configuration. ``lookup`` resolves names in place of the system."""
    async with _lookup(lookup) as looking:
        slots = asyncio.Semaphore(AT_ONCE)
        work = [*_of_upstreams(settings, looking), *_of_signaling(settings, looking), *_of_cluster(settings)]

        async def run(one: Callable[[], Awaitable[list[Reached]]]) -> list[Reached]:
            async with slots:
                return await one()

        found = await asyncio.gather(*map(run, work))
    return [reached for one in found for reached in one]


@contextlib.asynccontextmanager
async def _lookup(given: Lookup | None) -> AsyncIterator[Lookup]:
    if given is not None:
        yield given
        return
    system = SystemLookup()
    try:
        yield system
    finally:
        await system.close()


# Upstreams


def _of_upstreams(settings: Config, lookup: Lookup) -> Iterable[Callable[[], Awaitable[list[Reached]]]]:
    media = settings.media
    policy = RelayPolicy(media.allowed_networks)
    asker = Asker(settings.health.timeout_s, media.source_of_version(4), media.source_of_version(6), policy)
    for upstream in settings.upstreams:
        probe = upstream.probe or settings.health.probe
        yield _Upstream(upstream, probe, asker, Resolver(policy, lookup)).reach


@dataclass(frozen=True, slots=True)
class _Upstream:
    settings: UpstreamServer
    probe: str
    asker: Asker
    resolver: Resolver

    async def reach(self) -> list[Reached]:
        name, wanted = self.settings.name, self.settings.address
        # A literal address is the operator's own word.
        addresses: Sequence[Address] = [wanted]
        if not wanted.is_literal:
            try:
                addresses = await self.resolver.resolve(*wanted)
            except ResolveError as error:
                return [Reached(name, str(wanted), "its address", trouble=str(error))]
        rows = await asyncio.gather(*map(self._ask, addresses))
        return [row for some in rows for row in some]

    async def _ask(self, address: Address) -> list[Reached]:
        """Whether it lives and, if credentials are known, whether it serves."""
        methods = METHODS.get(self.probe, ())
        if not methods:
            return [Reached(self.settings.name, str(address), 'none (probe = "none")')]
        found = [await self._try(address, "a Binding", lambda: self.asker.ask_life(address, methods))]
        known = self.settings.username is not None or self.settings.secret is not None
        if known and self.probe in {"auto", "allocate"}:
            username, password = credentials_for(self.settings, "", time.time())
            ask_service = self.asker.ask_service
            found.append(await self._try(address, "an allocation", lambda: ask_service(address, username, password)))
        return found

    async def _try(self, address: Address, question: str, ask_once: Callable[[], Awaitable[Finding]]) -> Reached:
        for _ in range(TRIES):
            found = await ask_once()
            if found.verdict is ProbeVerdict.GOOD:
                break
        if found.answered is not None:
            question = "a Binding" if found.answered.name == "BINDING" else "an Allocate"
        return Reached(self.settings.name, str(address), question, found.rtt_s, found.cause)


# Signaling


def _of_signaling(settings: Config, lookup: Lookup) -> Iterable[Callable[[], Awaitable[list[Reached]]]]:
    addresses, pools = Addresses(lookup), Pools()
    addresses.configure(settings.signaling.allowed_networks)
    pools.configure(settings.signaling, settings.health)
    if not settings.signaling.configured:
        return
    trust, connections = open_trust(settings.signaling), Connections(addresses)

    def asking(upstream: SignalingUpstream) -> Callable[[], Awaitable[list[Reached]]]:
        async def reach_it() -> list[Reached]:
            path = settings.signaling.health_path
            question = f"GET {path}" if path else "a connection"
            began, trouble = time.perf_counter(), ""
            try:
                async with deadlines.timeout(settings.signaling.connect_timeout_s):
                    await ask(connections, upstream.origin, trust, settings.signaling)
            except ConnectFailed as failed:
                resolved = not isinstance(failed.__cause__, ResolveError)
                trouble = failed.cause if resolved else str(failed.__cause__)
            except TimeoutError:
                trouble = f"no answer within {settings.signaling.connect_timeout_s:g} s"
            except (Lost, AnswerError) as error:
                trouble = str(error)
            took_s = None if trouble else time.perf_counter() - began
            return [Reached("signaling", upstream.url, question, took_s, trouble)]

        return reach_it

    for upstream in pools:
        yield asking(upstream)


# The cluster


def _of_cluster(settings: Config) -> Iterable[Callable[[], Awaitable[list[Reached]]]]:
    cluster = settings.cluster

    async def reach_it() -> list[Reached]:
        client = open_client(cluster, "check")
        began, trouble = time.perf_counter(), ""
        try:
            async with deadlines.timeout(cluster.timeout_s):
                await client.probe()
        except TimeoutError:
            trouble = f"no answer within {cluster.timeout_s:g} s"
        except StoreError as failed:
            trouble = str(failed)
        took_s = None if trouble else time.perf_counter() - began
        with contextlib.suppress(StoreError):
            await client.close()
        return [Reached("cluster", str(cluster.address), "to write and read", took_s, trouble)]

    if cluster.redis is not None:
        yield reach_it


def table_of(found: Iterable[Reached]) -> Table:
    """One row for each. What servers and resolvers say is text, not markup."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("server", "address", "asked for", "ms", "result"):
        table.add_column(column, justify="right" if column == "ms" else "left", overflow="fold")
    for one in found:
        took = "" if one.took_s is None else f"{one.took_s * 1000:.1f}"
        result = Text(printable(one.trouble), style="red") if one.trouble else Text("ok", style="green")
        table.add_row(Text(one.server), Text(printable(one.address)), Text(one.question), took, result)
    return table
