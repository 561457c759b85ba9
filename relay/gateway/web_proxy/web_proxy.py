"""The web proxy: listeners for clients that are configured to use it, which take CONNECT and serve proxy.pac.

A connection has one request. A CONNECT goes to the plane (``adopt``), into a tunnel (``tunnel``), or gets a page that
says why not, and what to do (``http``). ``destinations`` says where a client may go.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage

from relay.addresses import Address, RelayPolicy, source_of
from relay.catalog import Catalog, render_pac
from relay.config import WebProxySettings
from relay.errors import OperatorError
from relay.gateway import descriptors
from relay.gateway.accepting import Acceptor
from relay.gateway.balancers import Balancers, Check
from relay.gateway.calls.ids import CallIds
from relay.gateway.http.closing import build_response, send_last
from relay.gateway.lines import Lines
from relay.gateway.listening import Opened
from relay.gateway.pauses import Pauses
from relay.gateway.routing.lookups import Lookup
from relay.gateway.routing.resolve import ResolveError, Resolver, shown
from relay.gateway.web_proxy.basic_auth import CHALLENGE, BasicAuth
from relay.gateway.web_proxy.destinations import Destinations, Way, parse_authority
from relay.gateway.web_proxy.guesses import MAX_WAIT_S, Guesses
from relay.gateway.web_proxy.http import (
    ClientGone,
    ProxyOutcome,
    ProxyRefusal,
    build_established,
    build_page,
    read_head,
)
from relay.gateway.web_proxy.tunnel import TunnelBytes, TunnelEnd, carry, configure_socket, connect_any
from relay.plane.api import ConnectionId, Plane
from relay.plane.certificates import ServerCertificate
from relay.plane.client_certificates import ClientCertificates, strictest
from relay.plane.networks import ClientNetworks
from relay.rate_limit import RateLimit
from relay.sockaddr import from_sockaddr

log = structlog.get_logger()

# All addresses of a name together.
CONNECT_TIMEOUT_S = 10.0
# One line a minute for each host that was refused, and at most this many for each reason. The counters count all.
HOST_LINES_PER_S = 1 / 60
REASON_LINES_PER_S = 10

# This many clients beyond a bound are told why. Further ones are closed at once: each holds a descriptor while it is
# told.
TOLD_WHY = 64
FULL = "This relay has reached its limit of connections. Try again later."
# Upper and lower case do not matter. Some DHCP servers cut the last byte of the URL in their option 252; hence the
# last.
PAC_PATHS = ("/proxy.pac", "/wpad.dat", "/wpad.da")
# How balancers ask whether the relay is there.
CHECKS = frozenset({"GET", "HEAD", "OPTIONS"})
PAC_TYPE = "application/x-ns-proxy-autoconfig"
# The part of a Host field that may be written into proxy.pac.
_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
# These refuse the user, not the host that they ask for.
_OF_ONE_USER = frozenset({ProxyOutcome.CREDENTIALS_WRONG, ProxyOutcome.TOO_MANY_GUESSES})


@dataclass(slots=True)
class WebProxyTotals:
    """Counters from the start, except ``connections`` and ``tunnels``, which are those that are open now."""

    connections: int = 0
    tunnels: int = 0
    outcomes: Counter[ProxyOutcome] = field(default_factory=Counter)
    ends: Counter[TunnelEnd] = field(default_factory=Counter)
    bytes: TunnelBytes = field(default_factory=TunnelBytes)


@dataclass(frozen=True, slots=True)
class _Visitor:
    """One connection: who it is from, and by which id the plane and the log know it."""

    accepted: socket.socket
    client: Address
    connection: ConnectionId
    id: str


class WebProxy:
    """Owns the listeners of ``listen.web_proxy``, and their connections until the plane takes them.

    ``addresses`` are the bound ones, from ``listen`` on.
    """

    def __init__(
        self,
        plane: Plane,
        settings: WebProxySettings,
        catalog: Catalog,
        certificates: Sequence[ServerCertificate],
        lookup: Lookup,
        *,
        balancers: Balancers,
        networks: ClientNetworks,
        pauses: Pauses,
        ids: CallIds,
    ) -> None:
        self.totals = WebProxyTotals()
        self.addresses: list[Address] = []
        self._plane = plane
        self._balancers = balancers
        self._networks = networks
        self._ids = ids
        self._resolver = Resolver(RelayPolicy(), lookup)
        # Where the plane listens, and what clients are asked for there.
        self._tls: dict[Address, ClientCertificates] = {}
        self._pauses = pauses
        self._acceptor = Acceptor("web proxy", pauses)
        self._per_source: Counter[str] = Counter()
        self._draining = False
        self._guesses = Guesses()
        self._host_lines = RateLimit(HOST_LINES_PER_S)
        self._lines = Lines(REASON_LINES_PER_S)
        self.configure(settings, catalog, certificates)

    # Life

    def configure(
        self, settings: WebProxySettings, catalog: Catalog, certificates: Sequence[ServerCertificate]
    ) -> None:
        """Take rules, users and bounds; running tunnels stay."""
        self._settings = settings
        self._catalog = catalog
        self._auth = BasicAuth(settings.users)
        self._resolver.policy = RelayPolicy(settings.allowed_networks)
        self.use_certificates(certificates)

    def use_certificates(self, certificates: Sequence[ServerCertificate]) -> None:
        """Connect clients that ask for a name of one of these to the plane."""
        self._certified = frozenset[str]().union(*(certificate.names for certificate in certificates))
        self._destinations = self._make_destinations()

    def _make_destinations(self) -> Destinations:
        return Destinations(self._catalog, self._settings.allow, self._certified, tuple(self._tls))

    def listen(
        self,
        listeners: Sequence[Opened],
        tls: Sequence[Address],
        proxied: Collection[Address] = (),
        asks: Sequence[ClientCertificates] = (),
    ) -> None:
        """Accept clients; ``tls`` is where the plane listens, and ``asks`` what it asks for at each of these addresses.

        On addresses that are ``proxied`` a balancer says who the client is.
        """
        self._tls = dict(zip(tls, asks or [ClientCertificates.NONE] * len(tls), strict=True))
        self._destinations = self._make_destinations()
        for opened in listeners:
            serve = self._serve_proxied if opened.wanted in proxied else self._serve
            self.addresses.append(self._acceptor.listen(opened.copies(), serve))

    def unlisten(self) -> None:
        """Accept no clients from now on. Those who have connected already are served."""
        self._acceptor.drain()

    def drain(self) -> None:
        """Accept no clients, and open no tunnels, from now on. Running tunnels stay."""
        self._draining = True
        self.unlisten()

    def endings(self) -> list[Callable[[], object]]:
        """For each connection that the plane has not taken, what ends it."""
        return self._acceptor.endings()

    async def stop(self) -> None:
        """End all connections that the plane has not taken."""
        self.drain()
        await self._acceptor.stop()

    # One connection

    async def _serve_proxied(self, accepted: socket.socket, peer: Address) -> None:
        with accepted, contextlib.suppress(OSError):  # the balancer is gone
            accepted.setblocking(False)
            connection = self._plane.new_id()
            introduced = await self._balancers.introduce(accepted, peer, self._ids.id_of(connection))
            if introduced is not None:
                await self._serve_client(self._visitor(accepted, introduced.client, connection), introduced.preread)

    async def _serve(self, accepted: socket.socket, client: Address) -> None:
        await self._serve_client(self._visitor(accepted, client, self._plane.new_id()))

    def _visitor(self, accepted: socket.socket, client: Address, connection: ConnectionId) -> _Visitor:
        return _Visitor(accepted, client, connection, self._ids.id_of(connection))

    async def _serve_client(self, visitor: _Visitor, preread: bytes = b"") -> None:
        totals, source = self.totals, source_of(visitor.client.host)
        totals.connections += 1
        self._per_source[source] += 1
        try:
            with visitor.accepted, contextlib.suppress(OSError):  # the client is gone, and its outcome is counted
                await self._answer(visitor, preread)
        finally:
            totals.connections -= 1
            self._per_source[source] -= 1
            if not self._per_source[source]:
                del self._per_source[source]

    async def _answer(self, visitor: _Visitor, preread: bytes) -> None:
        target = ""
        try:
            configure_socket(visitor.accepted)
            self._admit(visitor)
            request, behind = await read_head(visitor.accepted, preread)
            target = request.path
            if request.method == "CONNECT":
                await self._connect(visitor, request, behind)
            else:
                await self._send_pac(visitor, request)
        except ClientGone as gone:
            is_check = gone.outcome is ProxyOutcome.CLIENT_CLOSED and not gone.received
            if is_check and self._balancers.trusts(visitor.client.host):
                self._balancers.note_check(Check.CONNECT, visitor.client, visitor.id)
            else:
                self.totals.outcomes[gone.outcome] += 1
        except ProxyRefusal as refused:
            self.totals.outcomes[refused.outcome] += 1
            self._log_refused(refused, visitor, target)
            await send_last(visitor.accepted, build_page(refused, visitor.id))

    def _admit(self, visitor: _Visitor) -> None:
        client, settings, source = visitor.client, self._settings, source_of(visitor.client.host)
        if self._networks.refuses(client.host):
            refused = ProxyOutcome.NETWORK_REFUSED
            fields = {"connection": visitor.id, "client": str(client), "reason": refused.value}
            self._lines.info("web proxy refused", refused, **fields)
            raise ClientGone(refused)
        per_source = 0 if self._networks.is_exempt(client.host) else settings.connections_per_source
        told = f"This relay has reached its limit of connections from {source}. Close some, or try again later."
        for bound, count, text in (
            (settings.connections, self.totals.connections, FULL),
            (per_source, self._per_source[source], told),
        ):
            if 0 < bound < count - TOLD_WHY:
                raise ClientGone(ProxyOutcome.TOO_MANY_CONNECTIONS)
            if 0 < bound < count:
                raise _failed(ProxyOutcome.TOO_MANY_CONNECTIONS, 503, text, "connection_limit_reached")

    def _log_refused(self, refused: ProxyRefusal, visitor: _Visitor, target: str) -> None:
        # A browser always begins without credentials, and learns from the refusal that it needs some.
        if refused.outcome is ProxyOutcome.CREDENTIALS_MISSING:
            return
        now, reason, wanted = asyncio.get_running_loop().time(), refused.outcome.value, shown(target)
        # Wrong passwords from two addresses are two problems, and have a line each.
        of_whom = source_of(visitor.client.host) if refused.outcome in _OF_ONE_USER else ""
        if self._host_lines.allows(now, f"{reason} {wanted} {of_whom}"):
            told = {"target": wanted, "reason": reason, "cause": refused.text}
            self._lines.info("web proxy refused", reason, connection=visitor.id, client=str(visitor.client), **told)

    # CONNECT

    async def _connect(self, visitor: _Visitor, request: RawRequestMessage, preread: bytes) -> None:
        wanted = await self._judge(request, visitor.client)
        reached = str(visitor.accepted.getsockname()[0])
        match self._destinations.way(wanted, reached):
            case Way.ADOPT:
                await self._adopt(visitor, wanted, preread)
            case Way.TUNNEL:
                await self._tunnel(visitor, wanted, preread)
            case Way.REFUSE_PORT:
                text = (
                    f"This relay connects to {wanted.host}, but not to its port {wanted.port}. If you need this, "
                    f'ask the operator of the relay to add "{wanted}" to web_proxy.allow.'
                )
                raise _failed(ProxyOutcome.PORT_REFUSED, 403, text, "http_request_denied")
            case Way.REFUSE_HOST:
                text = (
                    f"This relay connects only to the hosts of the voice service, and {wanted.host} is not one of "
                    "them. Let your browser use this relay's /proxy.pac: then it asks the relay only for these hosts. "
                    f'Or ask the operator of the relay to add "{wanted}" to web_proxy.allow.'
                )
                raise _failed(ProxyOutcome.HOST_REFUSED, 403, text, "http_request_denied")

    async def _judge(self, request: RawRequestMessage, client: Address) -> Address:
        """Where a CONNECT wants to go. Raises ProxyRefusal if this client may not ask at all."""
        try:
            wanted = parse_authority(request.path)
        except ValueError as error:
            raise ProxyRefusal(ProxyOutcome.BAD_REQUEST, 400, f"This request cannot be read: {error}.") from None
        # RFC 9110 section 9.3.6: a CONNECT has no content. Bytes that one hop takes for content, another takes for the
        # tunnel's. A length of 0 means the same to all, and Windows' own client sends it.
        lengths = request.headers.getall("Content-Length", [])
        if lengths not in ([], ["0"]) or "Transfer-Encoding" in request.headers:
            text = "A CONNECT has no content: expected Content-Length 0 or none, and no Transfer-Encoding."
            raise ProxyRefusal(ProxyOutcome.BAD_REQUEST, 400, text)
        await self._authenticate(request, client)
        if self._draining:
            raise ProxyRefusal(
                ProxyOutcome.DRAINING, 503, "This relay is about to stop. Try again, or use another one."
            )
        if self._pauses.memory_is_short:
            raise ProxyRefusal(ProxyOutcome.NO_MEMORY, 503, "This relay is short of memory. Try again in a minute.")
        return wanted

    async def _authenticate(self, request: RawRequestMessage, client: Address) -> None:
        given = request.headers.getall("Proxy-Authorization", [])
        if not self._auth.required:
            return
        text = "This relay asks for a name and password (Basic authentication). Its operator gives them out."
        fields = {"Proxy-Authenticate": CHALLENGE}
        if not given:
            raise ProxyRefusal(ProxyOutcome.CREDENTIALS_MISSING, 407, text, fields)
        if len(given) > 1 or not await self._is_permitted(given[0], client):
            wrong = "Name or password is wrong, or not sent as Basic authentication. The operator gives them out."
            raise ProxyRefusal(ProxyOutcome.CREDENTIALS_WRONG, 407, wrong, fields)

    async def _is_permitted(self, given: str, client: Address) -> bool:
        """Whether name and password are right. Clients that guess wait for the answer. Raises ProxyRefusal."""
        loop, source, name = asyncio.get_running_loop(), source_of(client.host), self._auth.name_of(given)
        if not name:
            return False  # and nothing was guessed
        wait_s = self._guesses.begin(loop.time(), source, name)
        if wait_s is None:
            text = f"Too many wrong passwords for this name came from {source}. Wait some seconds, and try again."
            raise ProxyRefusal(ProxyOutcome.TOO_MANY_GUESSES, 429, text, {"Retry-After": str(math.ceil(MAX_WAIT_S))})
        if wait_s:
            try:
                await asyncio.sleep(wait_s)
            finally:
                self._guesses.end(source, name)
        if self._auth.permits(given):
            self._guesses.succeed(source, name)
            return True
        await asyncio.sleep(self._guesses.fail(loop.time(), source, name))
        return False

    async def _adopt(self, visitor: _Visitor, wanted: Address, preread: bytes) -> None:
        self.totals.outcomes[ProxyOutcome.ADOPTED] += 1
        await asyncio.get_running_loop().sock_sendall(visitor.accepted, build_established(visitor.id))
        asks = self._asks_at(wanted.port)
        self._plane.adopt(visitor.accepted.detach(), preread, visitor.client, asks, visitor.connection)

    def _asks_at(self, port: int) -> ClientCertificates:
        """What clients are asked for that could have come to this port by themselves: no less, if there are several.

        A client may also ask for 443 where the plane listens at another port. Then all of its listeners count.
        """
        there = [asks for address, asks in self._tls.items() if address.port == port]
        return strictest(there or self._tls.values())

    async def _tunnel(self, visitor: _Visitor, wanted: Address, preread: bytes) -> None:
        totals, loop = self.totals, asyncio.get_running_loop()
        with await self._open(visitor.client, wanted) as server:
            totals.outcomes[ProxyOutcome.TUNNEL] += 1
            totals.tunnels += 1
            end = TunnelEnd.STOPPED
            try:
                # Neither waits: both are smaller than the kernel's buffer for a new connection.
                await loop.sock_sendall(visitor.accepted, build_established(visitor.id))
                await loop.sock_sendall(server, preread)
                totals.bytes.add_up(len(preread))
                end = await carry(visitor.accepted, server, self._settings.idle_timeout_s, totals.bytes)
            except OSError:
                end = TunnelEnd.RESET
            finally:
                totals.tunnels -= 1
                totals.ends[end] += 1
                log.debug("tunnel ended", connection=visitor.id, target=str(wanted), reason=end.value)

    async def _open(self, client: Address, wanted: Address) -> socket.socket:
        """Connect to a judged address, never to the name itself. Raises ProxyRefusal."""
        if not descriptors.has_room():
            raise _failed(ProxyOutcome.TOO_MANY_CONNECTIONS, 503, FULL, "connection_limit_reached")
        try:
            addresses = await self._resolver.resolve(*wanted, client.host)
        except ResolveError as error:
            raise _failed(ProxyOutcome(error.failure.value), error.status, f"{error}.", error.failure.value) from None
        try:
            return await connect_any(addresses, CONNECT_TIMEOUT_S)
        except TimeoutError:
            text = f"{wanted} does not answer."
            raise _failed(ProxyOutcome.CONNECTION_TIMEOUT, 504, text, "connection_timeout") from None
        except ConnectionRefusedError:
            text = f"{wanted} refuses the connection."
            raise _failed(ProxyOutcome.CONNECTION_REFUSED, 502, text, "connection_refused") from None
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise _failed(ProxyOutcome.TOO_MANY_CONNECTIONS, 503, FULL, "connection_limit_reached") from None
            # The error's own text would not help: in uvloop it names the system call.
            text = f"{wanted} cannot be reached: {os.strerror(error.errno or 0).lower()}."
            raise _failed(ProxyOutcome.CONNECTION_FAILED, 502, text, "destination_unavailable") from None

    # proxy.pac

    async def _send_pac(self, visitor: _Visitor, request: RawRequestMessage) -> None:
        """Answer a request that is not CONNECT: with proxy.pac, or with a page; or a balancer's check."""
        is_pac = request.path.partition("?")[0].lower() in PAC_PATHS
        if request.method in CHECKS and not is_pac and self._balancers.trusts(visitor.client.host):
            await self._balancers.answer_check(visitor.accepted, visitor.client, visitor.id)
            return
        if "://" in request.path:
            text = (
                "This relay accepts only CONNECT, and does not pass on plain http:// requests. Use https://, or let "
                "your browser use this relay's /proxy.pac: then it asks the relay only for hosts of the voice service."
            )
            raise ProxyRefusal(ProxyOutcome.PLAIN_HTTP, 403, text)
        if request.method not in {"GET", "HEAD"}:
            text = "This relay accepts CONNECT, and GET of /proxy.pac and /wpad.dat."
            raise ProxyRefusal(ProxyOutcome.METHOD_REFUSED, 405, text, {"Allow": "CONNECT, GET, HEAD"})
        if not is_pac:
            text = "This is the web proxy of a voice relay. It serves only /proxy.pac and /wpad.dat."
            raise ProxyRefusal(ProxyOutcome.PLAIN_HTTP, 403, text)
        local = from_sockaddr(visitor.accepted.getsockname())
        body = self.pac(request.headers.get("Host", ""), local).encode("ascii")
        response = build_response(200, body, PAC_TYPE, connection=visitor.id)
        self.totals.outcomes[ProxyOutcome.PAC] += 1
        await send_last(visitor.accepted, response.removesuffix(body) if request.method == "HEAD" else response)

    def pac(self, host: str, local: Address) -> str:
        """proxy.pac for a client that asked ``host`` (a Host field) for it, and reached ``local``.

        It names ``web_proxy.advertise`` if that is set. Otherwise it names the host, or the address that was reached if
        the field does not hold a host.
        """
        if self._settings.advertise is not None:
            return render_pac(self._catalog, str(self._settings.advertise))
        found = _HOST.fullmatch(host)
        if found is not None:
            with contextlib.suppress(OperatorError):  # an IPv6 address that is not valid
                return render_pac(self._catalog, f"{found[1]}:{local.port}")
        # A zone has no meaning on another machine.
        return render_pac(self._catalog, str(Address(local.host.partition("%")[0], local.port)))

    def routes(self) -> list[web.RouteDef]:
        """proxy.pac on the TLS port."""
        return [web.get(f"/{{file:(?i:{re.escape(path[1:])})}}", self._on_pac) for path in PAC_PATHS]

    async def _on_pac(self, request: web.Request) -> web.Response:
        if not self.addresses:
            raise web.HTTPNotFound(text="This relay has no web proxy (listen.web_proxy).\n")
        # The port is the web proxy's, not the one of this request, which is the plane's.
        text = self.pac(request.headers.get("Host", ""), self.addresses[0])
        return web.Response(text=text, content_type=PAC_TYPE)


def _failed(outcome: ProxyOutcome, status: int, text: str, error: str) -> ProxyRefusal:
    return ProxyRefusal(outcome, status, text, {"Proxy-Status": f"relay; error={error}"})
