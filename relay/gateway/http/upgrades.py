"""Requests that leave HTTP on the TLS port: TURN and sessions over WebSocket (RFC 6455), UDP by CONNECT-UDP (RFC 9298).

Each request is judged as a whole before anything is answered. Then the plane sends the 101 and carries the media. A
refusal says in plain text what was expected, and ends the connection: see ``site``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection, Mapping

from aiohttp import HttpVersion11, hdrs, web

from relay.addresses import Address, canonical_host, source_of
from relay.catalog import Catalog
from relay.gateway.http.site import OPENED, SERVER, SITE
from relay.gateway.lines import Lines
from relay.gateway.routing.flows import FlowRefused, Flows, UpgradeOutcome, Wanted
from relay.gateway.routing.resolve import ResolveError, ResolveFailure, Resolver, shown
from relay.gateway.routing.upstreams import Health, Upstreams, UpstreamState
from relay.gateway.sessions.sessions import Sessions
from relay.gateway.signaling.http_rules import CONNECTION, RELAY_ID
from relay.plane.api import Carrier, CloseReason, HttpOpened, Plane, Upstream
from relay.plane.networks import ClientNetworks
from relay.rate_limit import RateLimit
from relay.wire import upgrade as codec

TURN_PATH = "/turn"
SESSION_PATH = "/media"
UDP_PATH = "/.well-known/masque/udp/{host}/{port}/"
SUBPROTOCOLS = {Carrier.WEBSOCKET: "turn", Carrier.SESSION: "media.v1"}
# Probes of an upstream that is down may find it up again by then.
RETRY_AFTER_S = 5
# Ports that CONNECT-UDP may reach, other than those of configured upstreams: the vendor's TURN port, and the range that
# its media hosts relay from.
MEDIA_PORTS = (range(3478, 3479), range(16384, 65536))
# Refusals that are logged, for each outcome: a scan must not fill the log. The counters count all.
REFUSED_LINES_PER_S = 5

_PROXY_STATUS = "Proxy-Status"


class UpgradeRefused(Exception):
    """What is answered instead of a 101."""

    def __init__(
        self, outcome: UpgradeOutcome, status: int, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.status = status
        self.text = text
        self.headers = headers or {}


def _bad(text: str, status: int = 400, headers: Mapping[str, str] | None = None) -> UpgradeRefused:
    return UpgradeRefused(UpgradeOutcome.BAD_REQUEST, status, text, headers)


class Upgrades:
    """The handlers; ``routes`` are for the site."""

    def __init__(
        self,
        plane: Plane,
        flows: Flows,
        sessions: Sessions,
        upstreams: Upstreams,
        resolver: Resolver,
        *,
        networks: ClientNetworks,
    ) -> None:
        self._plane = plane
        self._flows = flows
        self._sessions = sessions
        self._upstreams = upstreams
        self._resolver = resolver
        self._networks = networks
        self._session_opens = RateLimit(0)
        self._origins: Collection[str] = ()
        self._vendor: Callable[[], Catalog]
        self._lines = Lines(REFUSED_LINES_PER_S)

    def configure(self, origins: Collection[str], vendor: Callable[[], Catalog], session_opens_per_second: int) -> None:
        """Take these from now on: the pages that may connect (all, if none), and the catalog with its networks.

        One source opens so many sessions in a second; 0 is no bound.
        """
        self._origins = frozenset(origins)
        self._vendor = vendor
        if session_opens_per_second != self._session_opens.per_second:
            self._session_opens = RateLimit(session_opens_per_second)

    def routes(self) -> list[web.RouteDef]:
        """What to serve."""
        return [
            # The answer to a HEAD has no upgrade in it (RFC 6455 section 4.1, RFC 9298 section 3.2: GET).
            web.get(TURN_PATH, self._on_turn, allow_head=False),
            web.get(SESSION_PATH, self._on_session, allow_head=False),
            web.get(UDP_PATH, self._on_udp, allow_head=False),
        ]

    # TURN and sessions over WebSocket

    async def _on_turn(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, Carrier.WEBSOCKET)

    async def _on_session(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, Carrier.SESSION)

    async def _on_udp(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, Carrier.CONNECT_UDP)

    async def _answer(self, request: web.Request, carrier: Carrier) -> web.StreamResponse:
        opened = request[OPENED]
        try:
            if carrier is Carrier.CONNECT_UDP:
                return await self._connect_udp(request, opened)
            return await self._open_websocket(request, opened, carrier)
        except web.HTTPBadRequest as early:
            return self._refuse(request, carrier, _bad(early.text or "bad request\n"))
        except UpgradeRefused as refusal:
            return self._refuse(request, carrier, refusal)

    def _refuse(self, request: web.Request, carrier: Carrier, refusal: UpgradeRefused) -> web.Response:
        self._flows.tally.upgrades[carrier, refusal.outcome] += 1
        self._lines.info(
            "upgrade refused",
            refusal.outcome,
            connection=request[CONNECTION],
            carrier=carrier.value,
            outcome=refusal.outcome.value,
            status=refusal.status,
            cause=refusal.text.rstrip(),
            client=str(request[OPENED].client),
        )
        response = web.Response(status=refusal.status, text=refusal.text, headers=refusal.headers)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        # The bytes that follow would be of another protocol.
        response.force_close()
        return response

    async def _open_websocket(self, request: web.Request, opened: HttpOpened, carrier: Carrier) -> web.StreamResponse:
        key = _check_websocket(request, SUBPROTOCOLS[carrier])
        self._check_origin(request)
        response = codec.build_websocket_response(key, SUBPROTOCOLS[carrier])
        response = _named(response, request[CONNECTION])

        def upgrade() -> None:
            if carrier is Carrier.SESSION:
                self._begin_session(opened, response)
            else:
                self._begin(Wanted(opened.connection, opened.server_name, carrier, client=opened.client.host), response)

        return await request[SITE].leave_http(request, upgrade)

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and self._origins and origin.lower() not in self._origins:
            raise UpgradeRefused(
                UpgradeOutcome.FORBIDDEN, 403, f"the page {shown(origin)} may not connect here (media.origins)\n"
            )

    def _begin_session(self, opened: HttpOpened, response: bytes) -> None:
        if self._flows.draining:
            raise _draining()
        self._look_at_pace(opened.client.host)
        self._plane.upgrade(opened.connection, response, Carrier.SESSION, None)
        self._sessions.open(opened)
        self._flows.tally.upgrades[Carrier.SESSION, UpgradeOutcome.ACCEPTED] += 1

    def _look_at_pace(self, host: str) -> None:
        """Raises UpgradeRefused if this source opens too many sessions in this second."""
        now = asyncio.get_running_loop().time()
        if not self._networks.is_exempt(host) and not self._session_opens.allows(now, source_of(host)):
            bound = f"expected at most {self._session_opens.per_second:g} (limits.session_opens_per_second_per_source)"
            raise _too_many(f"too many sessions of one source in a second: {bound}")

    def _begin(self, wanted: Wanted, response: bytes) -> None:
        def start(upstream: Upstream) -> None:
            self._plane.upgrade(wanted.connection, response, wanted.carrier, upstream)

        try:
            self._flows.begin(wanted, start)
        except FlowRefused as refused:
            raise _unavailable(refused) from None
        self._flows.tally.upgrades[wanted.carrier, UpgradeOutcome.ACCEPTED] += 1

    # CONNECT-UDP

    async def _connect_udp(self, request: web.Request, opened: HttpOpened) -> web.StreamResponse:
        host, port = _check_connect_udp(request)
        if self._flows.draining:
            raise _draining()
        target = await self._target(opened, host, port)
        client = opened.client.host
        wanted = Wanted(opened.connection, opened.server_name, Carrier.CONNECT_UDP, target=target, client=client)
        response = _named(
            codec.build_switching_protocols("connect-udp", [("Capsule-Protocol", "?1")]), request[CONNECTION]
        )
        return await request[SITE].leave_http(request, lambda: self._begin(wanted, response))

    async def _target(self, opened: HttpOpened, host: str, port: int) -> Upstream:
        """A configured upstream by name or address, else an address of the vendor's media networks."""
        state = self._configured(host, port)
        if state is None and self._flows.asks_for_users:
            # Media goes there without an Allocate, so there is no user name to ask about.
            raise _prohibited(f"{shown(host)}: expected an upstream, because this relay checks users ([entitlement])")
        if state is None:
            return _reachable(await self._media_address(opened, host, port))
        if not self._flows.may_reach(opened.server_name, state):
            raise _prohibited(f"{shown(host)}: this name serves another region")
        if state.health is Health.DOWN:
            text = f"the upstream {state.name} does not answer"
            raise _failed(UpgradeOutcome.NO_UPSTREAM, 503, "destination_unavailable", text)
        return state.for_plane()

    def _configured(self, host: str, port: int) -> UpstreamState | None:
        name = host.lower().rstrip(".")
        for state in self._upstreams:
            wanted = state.settings.address
            known = {state.name.lower(), wanted.host.lower().rstrip(".")}
            if state.address is not None:
                known.add(state.address.host)
            if port == wanted.port and (name in known or _canonical(name) in map(_canonical, known)):
                return state
        return None

    async def _media_address(self, opened: HttpOpened, host: str, port: int) -> Address:
        if not any(port in ports for ports in MEDIA_PORTS):
            raise _prohibited(f"port {port}: expected 3478, or 16384 to 65535")
        # A look-up tells the name to the world, so only the vendor's names are looked up.
        if not Address(host, port).is_literal and not self._vendor().covers(host):
            raise _prohibited(f"{shown(host)}: neither an upstream nor a host of the vendor")
        try:
            found = await self._resolver.resolve(host, port, opened.client.host)
        except ResolveError as error:
            outcomes = {ResolveFailure.DESTINATION_IP_PROHIBITED: UpgradeOutcome.FORBIDDEN}
            outcome = outcomes.get(error.failure, UpgradeOutcome.UNRESOLVED)
            raise UpgradeRefused(outcome, error.status, f"{error}\n", {_PROXY_STATUS: error.proxy_status}) from None
        networks = [one.network for one in self._vendor().networks]
        for address in found:
            if any(ipaddress.ip_address(address.host) in network for network in networks):
                return address
        raise _prohibited(f"{shown(host)}: neither an upstream nor in the vendor's media networks")


def _named(response: bytes, connection: str) -> bytes:
    """The same with the name of the server, and the id of the connection."""
    named = f"\r\nServer: {SERVER}\r\n{RELAY_ID}: {connection}\r\n\r\n"
    return response.replace(b"\r\n\r\n", named.encode(), 1)


def _tokens(request: web.Request, name: str) -> list[str]:
    """The values of a list field, from all its lines, in upper and lower case as they came."""
    return [token.strip() for line in request.headers.getall(name, ()) for token in line.split(",") if token.strip()]


def _check_upgrade(request: web.Request, protocol: str) -> None:
    """Raises UpgradeRefused unless this is a whole HTTP/1.1 request to go on as ``protocol``."""
    told: dict[str, str] = {hdrs.UPGRADE: protocol, hdrs.CONNECTION: "Upgrade, close"}
    wanted = [token.lower() for token in _tokens(request, hdrs.UPGRADE)]
    if request.version < HttpVersion11:
        raise _bad(f"HTTP/1.0: expected HTTP/1.1 with Upgrade: {protocol}\n", 426, told)
    if not wanted:
        raise _bad(f"no Upgrade: expected Upgrade: {protocol}; a proxy on the way may have removed it\n", 426, told)
    if protocol not in wanted:
        raise _bad(f"Upgrade: {shown(wanted[0])}: expected {protocol}\n", 426, told)
    if "upgrade" not in [token.lower() for token in _tokens(request, hdrs.CONNECTION)]:
        raise _bad("Connection: expected Upgrade among its values; a proxy on the way may have removed it\n")
    if request.body_exists or hdrs.TRANSFER_ENCODING in request.headers:
        raise _bad("a body: expected none before the 101\n")


def _check_websocket(request: web.Request, subprotocol: str) -> str:
    """The key of a good opening handshake (RFC 6455 section 4.2.1). Raises UpgradeRefused."""
    _check_upgrade(request, "websocket")
    versions = request.headers.getall(hdrs.SEC_WEBSOCKET_VERSION, ())
    if list(versions) != [codec.WEBSOCKET_VERSION]:
        told: dict[str, str] = {hdrs.SEC_WEBSOCKET_VERSION: codec.WEBSOCKET_VERSION}
        given = ", ".join(map(shown, versions)) or "none"
        raise _bad(f"Sec-WebSocket-Version: {given}: expected {codec.WEBSOCKET_VERSION}\n", 426, told)
    keys = request.headers.getall(hdrs.SEC_WEBSOCKET_KEY, ())
    if len(keys) != 1 or not codec.is_key(keys[0]):
        raise _bad("Sec-WebSocket-Key: expected the Base64 of 16 bytes, once\n")
    offered = _tokens(request, hdrs.SEC_WEBSOCKET_PROTOCOL)
    if subprotocol not in offered:
        given = ", ".join(map(shown, offered[:4])) or "none"
        raise _bad(f"Sec-WebSocket-Protocol: {given}: expected {subprotocol} among them\n")
    return keys[0]


def _check_connect_udp(request: web.Request) -> tuple[str, int]:
    """Host and port of a good request (RFC 9298 section 3.2). Raises UpgradeRefused."""
    _check_upgrade(request, "connect-udp")
    # RFC 9297 section 3.4: a value that is not a boolean counts as absent, and some clients leave the field out.
    if [value.strip() for value in request.headers.getall("Capsule-Protocol", ("?1",))] == ["?0"]:
        raise _bad("Capsule-Protocol: ?0: expected ?1\n")
    host, port = request.match_info["host"], request.match_info["port"]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _bad(f"port {shown(port)}: expected 1 to 65535\n")
    if host.startswith("["):
        raise _bad("expected an IPv6 address without brackets, its colons as %3A\n")
    return host, int(port)


def _canonical(host: str) -> str:
    """A literal address in the form that is compared, with v4-mapped ones as IPv4; a name as it is."""
    try:
        return canonical_host(ipaddress.ip_address(host))
    except ValueError:
        return host


def _reachable(address: Address) -> Upstream:
    """Ask the kernel for a route, which sends nothing. Raises UpgradeRefused."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
    except OSError as error:
        text = f"{address}: {error.strerror or error}"
        raise _failed(UpgradeOutcome.UNREACHABLE, 502, "destination_ip_unroutable", text) from None
    return Upstream(str(address), address)


def _failed(outcome: UpgradeOutcome, status: int, error: str, text: str) -> UpgradeRefused:
    headers = {_PROXY_STATUS: f"relay; error={error}"}
    if status == 503:
        headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    return UpgradeRefused(outcome, status, f"{text}\n", headers)


def _prohibited(text: str) -> UpgradeRefused:
    return _failed(UpgradeOutcome.FORBIDDEN, 403, "destination_ip_prohibited", text)


def _draining() -> UpgradeRefused:
    text = "the relay is about to stop, and accepts no new calls\n"
    headers: dict[str, str] = {hdrs.RETRY_AFTER: str(RETRY_AFTER_S)}
    return UpgradeRefused(UpgradeOutcome.DRAINING, 503, text, headers)


def _too_many(text: str) -> UpgradeRefused:
    headers: dict[str, str] = {hdrs.RETRY_AFTER: str(RETRY_AFTER_S)}
    return UpgradeRefused(UpgradeOutcome.TOO_MANY, 429, f"{text}\n", headers)


def _unavailable(refused: FlowRefused) -> UpgradeRefused:
    if refused.reason is CloseReason.DRAINING:
        return _draining()
    if refused.reason is CloseReason.TOO_MANY_FLOWS:
        return _too_many(str(refused))
    headers: dict[str, str] = {hdrs.RETRY_AFTER: str(RETRY_AFTER_S)}
    no_memory = refused.reason is CloseReason.NO_MEMORY
    outcome = UpgradeOutcome.NO_MEMORY if no_memory else UpgradeOutcome.NO_UPSTREAM
    return UpgradeRefused(outcome, 503, f"{refused}\n", headers)
