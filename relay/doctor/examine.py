"""Runs all probes of a plan, in parallel, within its deadline, and then the checks.

Order: proxies and names, which all others need; then sites, WebSockets, STUN and carriers; then allocations; then
voice over every path that works. What has not ended at the deadline is an item of its own, and was not tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from relay import deadlines
from relay.catalog import Service, Status
from relay.client.connect import Proxy
from relay.client.turn import OnData, open_turn_udp
from relay.doctor.checks import ALL
from relay.doctor.checks.base import areas_of
from relay.doctor.checks.voice import figures_of
from relay.doctor.plan import Credentials, Plan, Site, TurnSite
from relay.doctor.probes import carriers, names, proxies, sites, udp, voice, websockets
from relay.doctor.probes.context import Context
from relay.doctor.report import Area, Item, Report
from relay.doctor.report import Status as ItemStatus
from relay.doctor.seen import (
    CarrierSeen,
    NameSeen,
    PollingSeen,
    ProxySeen,
    ProxySource,
    Seen,
    SiteSeen,
    StunSeen,
    TurnSeen,
    Untested,
    VoiceSeen,
    WebSocketSeen,
)

# Told of each probe that has ended: how many, of how many so far, and which.
OnStep = Callable[[int, int, str], None]
DEADLINE = "DEADLINE"
NO_CREDENTIALS = "no credentials of TURN were given (--turn-credentials)"
_T = TypeVar("_T")
Work = Callable[[], Coroutine[Any, Any, None]]


def _ignore(done: int, total: int, what: str) -> None:
    """Nobody looks."""


async def examine(plan: Plan, on_step: OnStep = _ignore) -> Report:
    """Test everything in the plan. Raises nothing that a network can cause."""
    started_at, started = time.time(), time.monotonic()
    running = _Examination(plan, on_step)
    with contextlib.suppress(TimeoutError):
        async with deadlines.timeout(plan.limits.total_s):
            await running.run()
    seen = running.seen
    items, findings = list(running.unended()), []
    for check in ALL:
        found, wrong = check().judge(plan, seen)
        items += found
        findings += wrong
    findings.sort(key=lambda finding: finding.status is not ItemStatus.FAILED)
    heard = () if isinstance(seen.voice, Untested) else tuple(figures_of(one) for one in seen.voice if not one.fault)
    return Report(
        target=plan.target,
        kind=plan.kind,
        catalog=plan.catalog.as_of,
        started_at=started_at,
        took_s=round(time.monotonic() - started, 1),
        items=tuple(items),
        findings=tuple(findings),
        voice=heard,
        skipped=plan.skipped,
        proxy=dict(seen.proxy.answers),
    )


class _Examination:
    """One run. ``seen`` grows as probes end, so that the deadline loses only what has not ended."""

    def __init__(self, plan: Plan, on_step: OnStep) -> None:
        self._plan = plan
        self._on_step = on_step
        self._pending: dict[str, tuple[Area, ...]] = {}
        self._done = 0
        self._proxy = ProxySeen(ProxySource.NONE)
        self._names: dict[str, NameSeen] = {}
        self._sites: list[SiteSeen] = []
        self._websockets: list[WebSocketSeen] = []
        self._polling: list[PollingSeen] = []
        self._stun: list[StunSeen] = []
        self._turn: list[TurnSeen] | Untested = Untested("no time was left")
        self._carriers: list[CarrierSeen] = []
        self._voice: list[VoiceSeen] | Untested = Untested("no time was left")
        self._open: dict[str, carriers.Carrier] = {}

    @property
    def seen(self) -> Seen:
        """What was seen so far."""
        plan = self._plan
        has_carriers = plan.relay is not None or bool(plan.sites_of(Service.MEDIA))
        return Seen(
            proxy=self._proxy,
            names=self._names if plan.looks_up else Untested("the plan has all addresses"),
            sites=self._sites,
            websockets=self._websockets,
            polling=self._polling,
            stun=self._stun if plan.turn else Untested("no TURN host is in the plan"),
            turn=self._turn if plan.turn else Untested("no TURN host is in the plan"),
            carriers=self._carriers if has_carriers else Untested("no relay was named"),
            voice=self._voice,
        )

    def unended(self) -> Iterable[Item]:
        """An item for each probe that has not ended."""
        why = f"not ended within {self._plan.limits.total_s:g} s"
        return (Item(DEADLINE, what, areas, ItemStatus.NOT_TESTED, why) for what, areas in self._pending.items())

    async def run(self) -> None:
        """All phases."""
        await self._find_ways()
        context = Context(self._plan, self._proxy, self._names)
        async with asyncio.TaskGroup() as group:
            for what, areas, work in self._first(context):
                group.create_task(self._probe(what, areas, work))
        await self._allocate(context)
        await self._talk(context)

    async def _probe(self, what: str, areas: tuple[Area, ...], work: Work) -> None:
        self._pending[what] = areas
        await work()
        del self._pending[what]
        self._done += 1
        self._on_step(self._done, self._done + len(self._pending), what)

    # First: which way, and where

    async def _find_ways(self) -> None:
        plan, relay = self._plan, self._plan.relay
        known = [site.name for site in plan.sites] + ([relay.label] if relay is not None else [])

        async def find() -> None:
            self._proxy = await proxies.find(plan.proxy, list(dict.fromkeys(known)))

        async def look_up() -> None:
            wanted = [site.name for site in plan.sites] + [host.name for host in plan.turn]
            wanted += [relay.name] if relay is not None else []
            literal = {relay.name} if relay is not None and relay.address.is_literal else set()
            wanted = [name for name in wanted if name not in literal]
            self._names = dict(await names.look_up(wanted, plan.limits.probe_s, plan.nameservers))

        work = [self._probe("web proxy", tuple(Area), find)]
        if plan.looks_up:
            work.append(self._probe("names", tuple(Area), look_up))
        await asyncio.gather(*work)

    # Then all that does not depend on each other

    def _first(self, context: Context) -> Iterable[tuple[str, tuple[Area, ...], Work]]:
        plan = self._plan
        for site in plan.sites:
            proxy = self._proxy.way_of(site.name)
            areas = areas_of(plan, site.name)
            yield f"{site.name}", areas, _into(self._sites, sites.reach, context, site, proxy)
            if site.service is Service.SIGNALING:
                name = f"socket.io at {site.name}"
                yield name, areas, _into(self._websockets, websockets.socket_io, context, site, proxy)
                yield f"polling at {site.name}", areas, _into(self._polling, websockets.polling, context, site, proxy)
        proxied = [site for site in plan.sites if self._proxy.way_of(site.name) is not None]
        for site in proxied[:1]:
            yield f"{site.name} directly", (), _into(self._sites, sites.reach, context, site, None)
        for host in plan.turn:
            yield f"STUN at {host.name}", (Area.VOICE_UDP,), _into(self._stun, udp.binding, context, host)
        if plan.relay is not None:
            yield from self._of_relay(context)
        else:
            for carrier in self._media_carriers(context):
                yield carrier.name, (Area.VOICE_PROXY,), self._asking(context, carrier)

    def _of_relay(self, context: Context) -> Iterable[tuple[str, tuple[Area, ...], Work]]:
        relay = self._plan.relay
        assert relay is not None
        proxy, areas = self._proxy.way_of(relay.label), (Area.VOICE_PROXY,)
        # As a site of its own. Its page answers without signaling.
        site = Site(relay.name, Service.LOGIN, None, Status.ACTIVE, relay.address, relay.address)

        async def reach(way: Proxy | None) -> SiteSeen:
            return replace(await sites.reach(context, site, way), site=relay.label)

        yield relay.label, areas, _into(self._sites, reach, proxy)
        if proxy is not None:
            yield f"{relay.label} directly", (), _into(self._sites, reach, None)
        yield "WebSocket of the relay", areas, _into(self._websockets, websockets.relay_turn, context, proxy)
        for carrier in carriers.relay_carriers(context, proxy):
            yield f"carrier {carrier.name}", areas, self._asking(context, carrier)

    def _media_carriers(self, context: Context) -> list[carriers.Carrier]:
        """TURN over TLS at the first media host of each region."""
        regions: dict[str | None, Site] = {}
        for site in self._plan.sites_of(Service.MEDIA):
            regions.setdefault(site.region, site)
        return [carriers.media_carrier(context, site, self._proxy.way_of(site.name)) for site in regions.values()]

    def _asking(self, context: Context, carrier: carriers.Carrier) -> Work:
        self._open[carrier.name] = carrier
        return _into(self._carriers, carriers.ask, context, carrier)

    # Then what needs credentials

    async def _allocate(self, context: Context) -> None:
        plan, credentials = self._plan, self._plan.credentials
        if credentials is None:
            self._turn = Untested(NO_CREDENTIALS)
            return
        nearest = self._nearest()
        if not nearest:
            self._turn = Untested("no TURN host answers at UDP 3478")
            return
        found: list[TurnSeen] = []
        self._turn = found
        hosts = [host for host in plan.turn if host.name in nearest]
        await asyncio.gather(
            *(
                self._probe(
                    f"allocation at {host.name}",
                    (Area.VOICE_UDP,),
                    _into(found, udp.allocation, context, host, credentials),
                )
                for host in hosts
            )
        )

    def _nearest(self) -> list[str]:
        """The host of each region that has answered fastest, the fastest region first."""
        answered = [(one.round_trip_ms, one) for one in self._stun if one.round_trip_ms is not None]
        regions: dict[str, str] = {}
        for _, one in sorted(answered, key=lambda pair: pair[0]):
            regions.setdefault(one.region, one.host)
        return list(regions.values())

    async def _talk(self, context: Context) -> None:
        plan, credentials = self._plan, self._plan.credentials
        if credentials is None:
            self._voice = Untested(NO_CREDENTIALS)
            return
        paths = list(self._paths(context))
        if not paths:
            self._voice = Untested("no path to a TURN server works")
            return
        found: list[VoiceSeen] = []
        self._voice = found

        async def listen(carrier: carriers.Carrier, over_udp: bool) -> VoiceSeen:
            return await voice.listen(carrier, carrier.name, credentials, plan.limits.voice_s, over_udp=over_udp)

        areas = {True: (Area.VOICE_UDP,), False: (Area.VOICE_PROXY,)}
        await asyncio.gather(
            *(
                self._probe(f"voice over {carrier.name}", areas[over_udp], _into(found, listen, carrier, over_udp))
                for carrier, over_udp in paths
            )
        )

    def _paths(self, context: Context) -> Iterable[tuple[carriers.Carrier, bool]]:
        """UDP to the nearest host, each carrier of the relay that works, and one media host by TLS."""
        allocated = [] if isinstance(self._turn, Untested) else [one.host for one in self._turn if one.relayed]
        nearest = next((name for name in self._nearest() if name in allocated), None)
        for host in self._plan.turn:
            if host.name == nearest:
                yield _over_udp(context, host), True
        answered = [one for one in self._carriers if one.answered]
        for one in answered:
            if one.certain:
                yield self._open[one.carrier], False
        for one in [one for one in answered if not one.certain][:1]:
            yield self._open[one.carrier], False


def _over_udp(context: Context, host: TurnSite) -> carriers.Carrier:
    async def open_line(who: Credentials, on_data: OnData) -> carriers.Line:
        address = context.located(host.name, host.address)
        timeout_s = context.plan.limits.probe_s
        return await open_turn_udp(address, who.username, who.password, on_data=on_data, timeout_s=timeout_s)

    return carriers.Carrier(f"UDP to {host.name}", "direct", open_line)


def _into(found: list[_T], probe: Callable[..., Awaitable[_T]], *arguments: Any) -> Work:
    """What runs a probe and keeps what it saw."""

    async def work() -> None:
        found.append(await probe(*arguments))

    return work
