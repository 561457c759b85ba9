"""The gateway: puts plane, upstreams, health, HTTP and admin together; starts, drains, stops and reloads them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Hashable, Sequence
from pathlib import Path
from typing import Any, assert_never

import structlog

from relay import config
from relay.addresses import Address, RelayPolicy, UnixSocket
from relay.catalog import Catalog
from relay.config import Config, LimitsSettings
from relay.errors import OperatorError
from relay.gateway import descriptors
from relay.gateway.admin.capture import Captures
from relay.gateway.admin.listener import Admin
from relay.gateway.admin.metrics import CertificateCollector, PauseCollector, SignalingCollector
from relay.gateway.admin.operation import MemoryCollector, OperationCollector, Reloads
from relay.gateway.admin.sockets import open_unix
from relay.gateway.admin.view import View
from relay.gateway.balancers import Balancers
from relay.gateway.calls.call import Call
from relay.gateway.calls.calls import Calls, EndedCall
from relay.gateway.calls.ids import CallIds
from relay.gateway.calls.records import Records, closed_of, make_file, record_of, started_of
from relay.gateway.calls.store import CallStore, Kept
from relay.gateway.certificates.client_ca import ClientCa
from relay.gateway.certificates.keeper import CertificateKeeper, utc_now
from relay.gateway.certificates.ocsp import require_staples
from relay.gateway.certificates.stapling import Stapler
from relay.gateway.checking.files import check, why_no_staples
from relay.gateway.cluster.cluster import Cluster
from relay.gateway.departure import Departure
from relay.gateway.entitlement.admission import TurnAdmission
from relay.gateway.entitlement.verdicts import Entitlement
from relay.gateway.http.site import Site
from relay.gateway.http.upgrades import Upgrades
from relay.gateway.lines import Lines
from relay.gateway.listening import Listening, Opened
from relay.gateway.memory.watch import MemoryWatch
from relay.gateway.pauses import Pauses
from relay.gateway.plane_bounds import plane_settings
from relay.gateway.proxied import ProxiedListeners
from relay.gateway.routing.flows import FlowRefused, Flows, Wanted
from relay.gateway.routing.health import HealthMonitor
from relay.gateway.routing.lookups import Lookup, SystemLookup
from relay.gateway.routing.release import AllocationReleaser
from relay.gateway.routing.resolve import Resolver
from relay.gateway.routing.routes import Routes
from relay.gateway.routing.unallocated import Unallocated
from relay.gateway.routing.upstreams import Health, Upstreams, UpstreamState
from relay.gateway.sessions.sessions import Sessions
from relay.gateway.signaling.proxy import SignalingProxy
from relay.gateway.web_proxy.web_proxy import WebProxy
from relay.plane.api import (
    AcceptPaused,
    AllocateGranted,
    AllocateRequested,
    AllocationNamed,
    AllocationOrphaned,
    Carrier,
    Closed,
    CloseReason,
    ConnectionId,
    Event,
    HttpOpened,
    Plane,
    StunReceived,
    TextReceived,
    TurnOpened,
    UpstreamLost,
)
from relay.plane.certificates import ServerCertificate
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates
from relay.plane.compiled.plane import CompiledPlane
from relay.plane.networks import ClientNetworks
from relay.plane.reference.plane import ReferencePlane
from relay.rate_limit import RateLimit
from relay.tasks import Tasks

log = structlog.get_logger()

# When probes say that an upstream is down, those of its flows that have heard nothing for this long are closed. A flow
# that still hears media shows that only the probe was lost.
SILENT_FLOW_S = 2.0
# For each reason: a port scan must not fill the log. The counters count all.
CLOSED_LINES_PER_S = 20
# A trading floor that hangs up at the same moment. Anyone can send packets that look like voice, and so end many calls.
CALL_LINES_PER_S = 500
# Records of flows that no upstream has served. Anyone can end many of them, without a password, and each takes 600
# bytes on the disk.
UNSERVED_RECORDS_PER_S = 20
# The same for calls that are kept for a search. When the file is full, each of them takes the place of a real call.
UNSERVED_KEPT_PER_S = 2
# What a reload does not change: sockets are bound, the cluster is joined and the log is set up at the start.
FIXED_SECTIONS = ("listen", "cluster", "log")
# Ends that are not a sign of trouble. They are logged at level debug.
_QUIET = frozenset({CloseReason.CLIENT_CLOSED, CloseReason.HTTP_CLOSED, CloseReason.STOPPED})


class Gateway:
    """One relay. ``start`` and ``stop`` it once; ``tls`` and ``admin`` are the bound addresses in between.

    ``plane``, ``upstreams`` and the other public objects may be looked at: ``plane.snapshot()`` says what runs.
    """

    def __init__(
        self,
        settings: Config,
        lookup: Lookup | None = None,
        folder: Path | None = None,
        *,
        listening: Listening | None = None,
    ) -> None:
        """Raises OperatorError for files that cannot be used, and then nothing runs. Needs a running loop.

        ``lookup`` resolves the names of upstreams, and names that clients ask for, in place of the system. ``folder``
        is for a file that the configuration does not name: the calls that are kept. Without it they are not.
        ``listening`` may have sockets for the addresses in ``[listen]`` already.
        """
        self.listening = listening or Listening()
        self.tls: list[Address] = []
        self.admin: Address | UnixSocket = Address("", 0)
        self._config = settings
        self._folder = folder
        self.ids = CallIds()
        self.reloads = Reloads()  # whoever asks for a reload notes how it went
        self.upstreams = Upstreams()
        self.upstreams.configure(settings.upstreams, settings.health)
        # The plane's threads run from its constructor on, so what can raise comes before it.
        vendor, certificates = check(settings)
        self.cluster = Cluster(settings.cluster, self.ids.prefix, lambda: self.tls, lambda: self.draining)
        self.entitlement = Entitlement(settings.entitlement, self._allocated, self.cluster.calls)
        self.certificates = CertificateKeeper(self._use_certificates)
        self.certificates.take(settings.certificates, settings.routes, certificates)
        self.client_ca = ClientCa(settings.listen.client_ca, self._trust_clients)
        self.plane = self._make_plane(certificates)
        self.stapler = self._make_stapler(certificates)
        self._names = SystemLookup()
        lookup = lookup or self._names
        self._admission = TurnAdmission(self.plane, self.entitlement, self.ids)
        self._networks = ClientNetworks()
        self._unallocated = Unallocated(self.plane.carries, self._networks.is_exempt)
        self.flows = Flows(self.upstreams, self._admission.on_begun, self._unallocated)
        self._health = HealthMonitor(self.upstreams, self._on_probe, lookup)
        self.resolver = Resolver(RelayPolicy(settings.media.allowed_networks), lookup)
        self._releaser = AllocationReleaser()
        self._sessions = self._make_sessions()
        self._upgrades = Upgrades(
            self.plane, self.flows, self._sessions, self.upstreams, self.resolver, networks=self._networks
        )
        self.signaling = SignalingProxy(lookup, self.cluster.sessions)
        self.signaling.configure(settings.signaling, settings.health)
        self.balancers = Balancers(settings.balancers, settings.limits.handshake_timeout_s, lambda: self.ready)
        self.pauses = Pauses()
        self.memory = MemoryWatch(self.plane.hold, (self.pauses, self.flows, self.signaling))
        self._proxied = ProxiedListeners(self.plane, self.balancers, self.pauses, self.ids)
        self.web_proxy = self._make_web_proxy(vendor(), certificates, lookup)
        self._site = Site(self.signaling, [*self._upgrades.routes(), *self.web_proxy.routes()], ids=self.ids)
        self.calls = Calls(self.plane.snapshot, self.upstreams.region_of, ids=self.ids, on_started=self._on_started)
        self.records = Records(settings.quality.records)
        self.store = CallStore(Kept.of(settings.quality, folder))
        self._tasks = Tasks()
        self._configure_calls()
        self._configure_flows(vendor)
        self.captures = Captures(self.plane.tap, settings.capture, self.ids)
        self._view = self._make_view()
        self._admin = self._make_admin()
        self.departure = self._make_departure()
        self._closed_lines, self._call_lines = Lines(CLOSED_LINES_PER_S), Lines(CALL_LINES_PER_S)
        self._unserved, self._unserved_kept = RateLimit(UNSERVED_RECORDS_PER_S), RateLimit(UNSERVED_KEPT_PER_S)
        self._started = contextlib.AsyncExitStack()

    def _make_plane(self, certificates: Sequence[ServerCertificate]) -> Plane:
        bounds, listen = plane_settings(self._config), self._config.listen
        plane: Plane
        if listen.plane == "reference":
            plane = ReferencePlane(bounds, certificates, self._on_events)
        else:
            plane = CompiledPlane(bounds, certificates, self._on_events, workers=listen.workers)
        plane.trust_clients(self.client_ca.authorities)
        return plane

    def _make_stapler(self, certificates: Sequence[ServerCertificate]) -> Stapler:
        stapler = Stapler(self.plane.set_certificates, utc_now)
        stapler.take(certificates, asks=not why_no_staples(self._config))
        return stapler

    def _make_sessions(self) -> Sessions:
        return Sessions(
            self.plane,
            self.flows,
            self.upstreams,
            self._health,
            self._releaser,
            entitlement=self.entitlement,
            is_exempt=self._networks.is_exempt,
            ids=self.ids,
            shared=self.cluster.returns,
        )

    def _make_web_proxy(self, vendor: Catalog, certificates: Sequence[ServerCertificate], lookup: Lookup) -> WebProxy:
        return WebProxy(
            self.plane,
            self._config.web_proxy,
            vendor,
            certificates,
            lookup,
            balancers=self.balancers,
            networks=self._networks,
            pauses=self.pauses,
            ids=self.ids,
        )

    def _make_view(self) -> View:
        return View(
            self.plane.snapshot,
            self.calls,
            self.upstreams,
            self.records,
            lambda: self.draining,
            entitlement=self.entitlement,
            store=self.store,
            tally=self.flows.tally,
            web_proxy=self.web_proxy.totals,
            balancers=self.balancers.totals,
            cluster=self.cluster,
            memory_is_short=lambda: self.memory.short,
        )

    def _make_admin(self) -> Admin:
        settings = self._config
        collectors = (
            SignalingCollector(self.signaling),
            CertificateCollector(self.certificates, self.stapler, self.client_ca),
            OperationCollector(self.reloads, lambda: self._config),
            MemoryCollector(self.memory),
        )
        hosts, token_hash = settings.listen.admin_hosts, settings.admin.token_hash
        pauses = PauseCollector(self.pauses.counts)
        return Admin(
            self._view,
            self.captures,
            *collectors,
            pauses,
            hosts=hosts,
            token_hash=token_hash,
            new_id=lambda: self.ids.id_of(self.plane.new_id()),
        )

    def _make_departure(self) -> Departure:
        return Departure(
            self.plane,
            self.flows,
            self._site,
            self._admin,
            self.listening,
            self._proxied,
            self.web_proxy,
            lambda: self._config.limits,
        )

    @property
    def draining(self) -> bool:
        """True once this is to stop: balancers are told so, and after ``lame_duck_s`` no new flows are taken."""
        return self.departure.begun or self.flows.draining

    @property
    def ready(self) -> bool:
        """True if new calls should come here: an upstream is up, there is memory, and this is not draining."""
        return self.upstreams.any_healthy and not self.draining and not self.memory.short

    # Life

    async def start(self, may_accept: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Listen, watch the upstreams, and accept. Raises OperatorError, and then nothing is left half-started.

        Nobody is accepted before ``may_accept`` has returned. What can fail comes before it.
        """
        async with contextlib.AsyncExitStack() as started:
            started.push_async_callback(self._names.close)
            # These stop after the plane, whose end ends calls, and each call has a record.
            started.push_async_callback(self.records.stop)
            started.push_async_callback(self.store.stop)
            started.push_async_callback(self._releaser.stop)
            started.callback(self._sessions.stop)
            started.push_async_callback(self.cluster.stop)
            await self.cluster.start()
            self.entitlement.start()
            started.push_async_callback(self.entitlement.stop)
            started.callback(self._admission.stop)
            started.push_async_callback(self.plane.stop)
            make_file(self._config.quality.records)
            self.store.start()
            started.push_async_callback(self.stapler.stop)
            await self.stapler.start()
            await self._site.start()
            started.push_async_callback(self._site.stop)
            started.callback(self.listening.close)
            threads = len(self.plane.turns())
            tls, proxies, admin = self.listening.open_all(self._config.listen, threads, open_unix)
            self._health.configure(self._config.health, self._config.media)
            started.push_async_callback(self._health.stop)
            self.certificates.start()
            started.push_async_callback(self.certificates.stop)
            self.client_ca.start()
            started.push_async_callback(self.client_ca.stop)
            self._tasks.start(self.calls.run(), "calls")
            self._tasks.start(self.memory.run(), "memory")
            started.push_async_callback(self._tasks.cancel)
            if may_accept is not None:
                await may_accept()
            self.admin = await self._accept_admin(admin)
            started.push_async_callback(self._admin.stop)
            started.push_async_callback(self._proxied.stop)
            self.tls = [await self._accept_tls(opened) for opened in tls]
            started.push_async_callback(self.web_proxy.stop)
            asks = list(map(self._asks_at, self._config.listen.tls))
            self.web_proxy.listen(proxies, self.tls, self._config.listen.proxy_protocol, asks)
            self._started = started.pop_all()

    async def _accept_admin(self, opened: Opened) -> Address | UnixSocket:
        if isinstance(opened.wanted, UnixSocket):
            return await self._admin.listen_unix(opened.wanted, opened.copies())
        certificates = self.certificates.serving() if self._config.listen.admin_has_tls else ()
        return await self._admin.listen(opened.wanted, certificates, opened.copies())

    async def _accept_tls(self, opened: Opened) -> Address:
        asks = self._asks_at(opened.wanted)
        if opened.wanted in self._config.listen.proxy_protocol:
            return self._proxied.listen(opened.copies(), asks)
        return await self.plane.listen(opened.address, opened.copies(), asks)

    def _asks_at(self, wanted: Address | UnixSocket) -> ClientCertificates:
        asked = self._config.listen.client_certificates.items()
        return ClientCertificates(next((asks for address, asks in asked if address == wanted), "none"))

    async def drain(self) -> None:
        """Take no new flows, and wait until the running ones have ended, for at most ``drain_timeout_s``."""
        await self.departure.drain()

    @property
    def limits(self) -> LimitsSettings:
        """The bounds that count now."""
        return self._config.limits

    async def stop(self) -> None:
        """End everything. May be repeated."""
        self.flows.draining = True
        self.listening.close()
        await self._started.aclose()
        # Its threads run even if the gateway was never started.
        await self.plane.stop()

    def reload(self, path: Path) -> Config:
        """Take everything except ``FIXED_SECTIONS`` from the file; live connections stay as they are.

        Returns the settings that hold now. Raises OperatorError, and then everything is as it was.
        """
        settings = config.load(path)
        # Each of these raises before it has changed anything. What cannot fail comes after them.
        if self._config.listen.proxy_protocol and not settings.balancers.networks:
            raise OperatorError(
                f"{path}: balancers.networks: expected some until the next start: listeners need a header"
            )
        if self._config.listen.admin_has_tls and settings.admin.token_hash is None:
            raise OperatorError(f"{path}: admin.token_hash: expected one until the next start: listen.admin needs it")
        vendor, certificates = check(settings)
        authorities = self.client_ca.read()
        self.entitlement.check(settings.entitlement)
        make_file(settings.quality.records)
        descriptors.raise_limit(settings)
        self.plane.set_certificates(self.stapler.take(certificates, asks=not why_no_staples(settings)))
        self.client_ca.take(authorities)
        self.plane.configure(plane_settings(settings))
        self.web_proxy.configure(settings.web_proxy, vendor(), certificates)
        for section in FIXED_SECTIONS:
            if getattr(settings, section) != getattr(self._config, section):
                log.warning(f"{section}: a change takes effect with the next start")
        # Keep what runs, not what the file says: if the file goes back to it, the next reload sees no change.
        running = {section: getattr(self._config, section) for section in FIXED_SECTIONS}
        self._config = settings.model_copy(update=running)
        self.certificates.take(settings.certificates, settings.routes, certificates)
        self.upstreams.configure(settings.upstreams, settings.health)
        self.entitlement.configure(settings.entitlement)
        self._configure_flows(vendor)
        self._health.configure(settings.health, settings.media)
        self.signaling.configure(settings.signaling, settings.health)
        self.resolver.policy = RelayPolicy(settings.media.allowed_networks)
        self.records.path = settings.quality.records
        self.store.configure(Kept.of(settings.quality, self._folder))
        self.captures.configure(settings.capture)
        self._admin.configure(settings.admin.token_hash)
        self._admin.use_certificates(certificates)
        self.balancers.configure(settings.balancers, settings.limits.handshake_timeout_s)
        self._configure_calls()
        log.info("configuration reloaded", upstreams=len(settings.upstreams), routes=len(settings.routes))
        self.certificates.tell()
        descriptors.tell(settings)
        return self._config

    def _trust_clients(self, authorities: ClientAuthorities | None) -> None:
        self.plane.trust_clients(authorities)

    def _use_certificates(self, certificates: Sequence[ServerCertificate]) -> None:
        require_staples(certificates, why_no_staples(self._config))
        self.plane.set_certificates(self.stapler.take(certificates, asks=not why_no_staples(self._config)))
        self.web_proxy.use_certificates(certificates)
        self._admin.use_certificates(certificates)

    def _configure_calls(self) -> None:
        settings = self._config
        self.calls.configure(
            max_calls=settings.limits.connections, playout_deadline_ms=settings.quality.playout_deadline_ms
        )

    def _configure_flows(self, vendor: Callable[[], Catalog]) -> None:
        settings = self._config
        access, limits = settings.access, settings.limits
        self._networks.configure(access.allow, access.deny, limits.exempt_networks)
        self._unallocated.bound = limits.unallocated_flows_per_source
        self.memory.configure(limits.memory_bytes, watches=limits.watch_memory)
        policy = RelayPolicy(settings.media.allowed_networks)
        self.flows.configure(Routes(settings.routes), policy, asks_for_users=self.entitlement.asks_for_users)
        self._sessions.configure(
            own_credentials=settings.media.own_credentials,
            per_source=limits.sessions_per_source,
            per_user=limits.sessions_per_user,
        )
        self._upgrades.configure(settings.media.origins, vendor, limits.session_opens_per_second_per_source)

    # Events

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                self._on_event(event)
            except Exception:
                # A mistake of ours. The other events of this batch belong to other clients.
                connection = getattr(event, "connection", None)
                id_ = None if connection is None else self.ids.id_of(connection)
                log.exception("event failed", kind=type(event).__name__, connection=id_)

    def _on_event(self, event: Event) -> None:
        match event:
            case TurnOpened():
                self._on_turn_opened(event)
            case HttpOpened():
                self._site.open(event)
            case AllocateRequested():
                self._admission.on_requested(event)
            case AllocateGranted():
                self._admission.on_granted(event)
            case AllocationNamed():
                self._admission.on_named(event)
            case TextReceived():
                self._sessions.on_text(event)
            case StunReceived():
                self._sessions.on_stun(event)
            case UpstreamLost():
                self._sessions.on_upstream_lost(event)
            case AllocationOrphaned():
                if not self._sessions.on_orphan(event):
                    self._releaser.release(event, self.upstreams.get(event.upstream.name))
            case AcceptPaused():
                self.pauses.note(event)
            case Closed():
                self._on_closed(event)
            case unknown:
                assert_never(unknown)

    def _on_turn_opened(self, opened: TurnOpened) -> None:
        connection = opened.connection
        try:
            self.flows.begin(
                Wanted(connection, opened.server_name, Carrier.TURN, client=opened.client.host),
                lambda upstream: self.plane.attach(connection, upstream),
            )
        except FlowRefused as refused:
            self.plane.close(connection, refused.reason)

    def _on_closed(self, closed: Closed) -> None:
        asked = self._site.on_closed(closed.connection)
        self._admission.on_closed(closed.connection)
        state = self.flows.end(closed.connection)
        if state is not None and closed.reason in {CloseReason.UPSTREAM_SILENT, CloseReason.UPSTREAM_UNREACHABLE}:
            self._health.suspect(state)
        self._sessions.on_closed(closed)
        ended = self.calls.on_closed(closed)
        if ended is not None:
            self._record(ended)
        if ended is not None and ended.carried_rtp:
            self._call_lines.info("call_ended", **record_of(ended))
        else:
            self._log_closed(closed, asked=asked)

    def _on_started(self, call: Call) -> None:
        self._call_lines.info("call_started", **started_of(call))

    def _record(self, ended: EndedCall) -> None:
        now = asyncio.get_running_loop().time()
        if ended.was_served or self._unserved.allows(now, ""):
            self.records.write(record_of(ended))
        else:
            self.records.leave_out()
        if ended.was_served or self._unserved_kept.allows(now, ""):
            self.store.write(functools.partial(self._view.stored, ended))
        else:
            self.store.leave_out()

    def _log_closed(self, closed: Closed, *, asked: bool) -> None:
        if self.balancers.note_closed(closed, asked=asked) or closed.reason in _QUIET:
            log.debug("connection closed", **closed_of(closed, self.ids))
        else:
            self._closed_lines.info("connection closed", closed.reason, **closed_of(closed, self.ids))

    def _allocated(self, holder: Hashable) -> bool:
        """Whether the call that holds a place still lives. A session gives its place back itself, when it ends."""
        return self.plane.allocated(ConnectionId(holder)) if isinstance(holder, int) else True

    def _on_probe(self, state: UpstreamState) -> None:
        if state.health is Health.UP and state.life.settled:
            self._sessions.on_upstream_up(state)
        if not self.flows.has_lost(state):
            return
        for flow in self.plane.snapshot().flows:
            if self.flows.state_of(flow.connection) is not state or flow.heard_s < SILENT_FLOW_S:
                continue
            if not state.is_down(flow.upstream.address):
                continue
            if flow.connection in self._sessions:
                self._sessions.on_upstream_down(flow.connection)
            else:
                self.plane.close(flow.connection, CloseReason.UPSTREAM_SILENT)
