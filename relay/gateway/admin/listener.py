"""The admin listener: HTTP for operators and their tools, at an address or on a unix socket.

At an address that other machines reach it has TLS. Its connections are bounded, because each takes a descriptor that a
call may need.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from pydantic import SecretStr

from relay.addresses import Address, UnixSocket
from relay.errors import OperatorError
from relay.gateway.accepting import Acceptor
from relay.gateway.admin import dashboard
from relay.gateway.admin.access import check_origin, check_token
from relay.gateway.admin.api import Api
from relay.gateway.admin.capture import Captures
from relay.gateway.admin.cluster import ClusterCollector
from relay.gateway.admin.events import Events
from relay.gateway.admin.hosts import check_host
from relay.gateway.admin.metrics import Metrics, RelayCollector
from relay.gateway.admin.refusals import AdminRefusal, AdminRefusals
from relay.gateway.admin.sockets import admin_context, identity_of, open_unix, remove_unix
from relay.gateway.admin.tokens import TokenCheck
from relay.gateway.admin.view import View
from relay.gateway.http.site import (
    FIRST_REQUEST_TIMEOUT_S,
    KEEPALIVE_TIMEOUT_S,
    SERVER,
    SHUTDOWN_TIMEOUT_S,
    name_server,
    on_healthz,
)
from relay.gateway.signaling.http_rules import CONNECTION, RELAY_ID
from relay.plane.certificates import ServerCertificate
from relay.plane.listening import open_listeners

_OnLost = Callable[[web.RequestHandler], None]
_OnBadHead = Callable[["_Handler"], None]

# Each takes a descriptor and some kilobytes. Dashboards keep two or three open, and 32 may watch events.
MAX_CONNECTIONS = 256
# From the connection until TLS is set up, and from the end until the client has agreed to it.
_TLS_OPTIONS: dict[str, Any] = {"ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": 2.0}

_HANDLER_OPTIONS: dict[str, Any] = {"access_log": None, "keepalive_timeout": KEEPALIVE_TIMEOUT_S}


class _Handler(web.RequestHandler):
    """Serves one connection, and tells its owner when that has ended.

    ``id`` is what the log calls the connection, ``client`` who it is from.
    """

    __slots__ = ("_on_bad_head", "_on_lost", "client", "id", "was_connected")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        id_: str,
        client: str,
        on_lost: _OnLost,
        on_bad_head: _OnBadHead,
    ) -> None:
        super().__init__(server, loop=loop, **_HANDLER_OPTIONS)
        self.was_connected = False
        self.id = id_
        self.client = client
        self._on_lost = on_lost
        self._on_bad_head = on_bad_head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.was_connected = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._on_lost(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            response = super().handle_error(request, status, exc, message)
        else:
            # Not the parser's words, which would show the request.
            self._on_bad_head(self)
            response = web.Response(status=status, text=f"{status}: bad request\n")
            response.force_close()
        response.headers["Server"] = SERVER
        response.headers[RELAY_ID] = self.id
        return response


class Admin:
    """``/healthz``, ``/readyz``, ``/metrics``, ``/api/...``, and the dashboard at ``/``."""

    def __init__(
        self,
        view: View,
        captures: Captures,
        *collectors: Collector,
        hosts: Collection[str] = (),
        token_hash: SecretStr | None = None,
        new_id: Callable[[], str] = str,
    ) -> None:
        """``hosts`` are names that it answers to, in lower case, besides the names that ``check_host`` knows.

        ``new_id`` gives each connection the id by which the log and the client know it.
        """
        self._captures = captures
        self.events = Events(view.summary)
        self._view = view
        self.refusals = refusals = AdminRefusals()
        self._metrics = Metrics(RelayCollector(view), ClusterCollector(view.cluster), refusals, *collectors)
        self._hosts = hosts
        self._tokens = TokenCheck(token_hash)
        self._new_id = new_id
        checks = check_host(hosts, refusals), check_origin(refusals), check_token(self._tokens, refusals)
        app = web.Application(middlewares=[self._on_first_request, *checks])
        app.on_response_prepare.append(name_server)
        app.on_response_prepare.append(_name_connection)
        app.router.add_get("/healthz", on_healthz)
        app.router.add_get("/readyz", self._on_readyz)
        app.router.add_get("/metrics", self._on_metrics)
        app.router.add_get("/api/events", self.events.on_request)
        app.router.add_post("/api/flows/{id}/capture", captures.on_request)
        app.router.add_routes(Api(view).routes())
        app.router.add_routes(dashboard.routes())
        self._runner = web.AppRunner(
            app, handle_signals=False, handler_cancellation=True, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        self._acceptor = Acceptor("admin")
        self._tls: ssl.SSLContext | None = None
        # Connections that have not brought a whole request yet, with the end of our patience.
        self._waiting: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        self._connections = 0
        self._unix: tuple[UnixSocket, tuple[int, int] | None] | None = None

    async def listen(
        self,
        address: Address,
        certificates: Sequence[ServerCertificate] = (),
        given: Sequence[socket.socket] = (),
    ) -> Address:
        """Serve on this address, port 0 for a free one; the bound address. Raises OperatorError.

        With certificates it speaks TLS. What is ``given`` listens there already, and is its own from here.
        """
        if certificates:
            self.use_certificates(certificates, at_first=True)
        await self._runner.setup()
        try:
            return self._acceptor.listen(given or open_listeners(address, 1, "listen.admin"), self._serve)
        except OperatorError:
            await self._runner.cleanup()
            raise

    async def listen_unix(self, where: UnixSocket, given: Sequence[socket.socket] = ()) -> UnixSocket:
        """Serve on a unix socket. Its file says who may ask, so no token is needed. Raises OperatorError.

        What is ``given`` listens there already, and is its own from here.
        """
        listeners = given or [open_unix(where)]
        self._unix = where, identity_of(where)
        self._tokens.configure(None)
        await self._runner.setup()
        self._acceptor.take(listeners, self._serve)
        return where

    def configure(self, token_hash: SecretStr | None) -> None:
        """Ask for another token from now on, or for none."""
        if self._unix is None:
            self._tokens.configure(token_hash)

    def use_certificates(self, certificates: Sequence[ServerCertificate], *, at_first: bool = False) -> None:
        """New connections get one of these, if this speaks TLS. Raises OperatorError, and then the old one stays."""
        if at_first or self._tls is not None:
            self._tls = admin_context(certificates, self._hosts)

    async def hand_over(self) -> None:
        """Close the listener and its connections. The file of a unix socket stays: another process listens there."""
        self._unix = None
        await self.stop()

    async def stop(self) -> None:
        """Close the listener and its connections. May be repeated."""
        self.events.stop()
        self._captures.stop()
        await self._acceptor.stop()
        if self._unix is not None:
            remove_unix(*self._unix)
        await self._runner.cleanup()
        for handler in list(self._waiting):
            self._forget(handler)

    # Connections

    async def _serve(self, accepted: socket.socket, client: Address) -> None:
        server, id_ = self._runner.server, self._new_id()
        if server is None or self._connections >= MAX_CONNECTIONS:
            if server is not None:
                self.refusals.note(AdminRefusal.TOO_MANY_CONNECTIONS, id_, client.host)
            accepted.close()
            return
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        on_lost, on_bad_head = self._on_lost, self._on_bad_head
        handler = _Handler(server, loop=loop, id_=id_, client=client.host, on_lost=on_lost, on_bad_head=on_bad_head)
        self._connections += 1
        self._waiting[handler] = loop.call_later(FIRST_REQUEST_TIMEOUT_S, self._lose_patience, handler)
        options: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls, **_TLS_OPTIONS}
        try:
            await loop.connect_accepted_socket(lambda: handler, accepted, **options)
        except OSError:  # the client has gone, or does not speak TLS as we do
            accepted.close()
        finally:
            if not handler.was_connected:
                self._on_lost(handler)

    def _on_lost(self, handler: web.RequestHandler) -> None:
        self._connections -= 1
        self._forget(handler)

    def _on_bad_head(self, handler: _Handler) -> None:
        self._forget(handler)
        self.refusals.note(AdminRefusal.BAD_REQUEST, handler.id, handler.client)

    def _lose_patience(self, handler: _Handler) -> None:
        self._forget(handler)
        self.refusals.note(AdminRefusal.REQUEST_TIMEOUT, handler.id, handler.client)
        handler.force_close()

    def _forget(self, handler: web.RequestHandler) -> None:
        if (deadline := self._waiting.pop(handler, None)) is not None:
            deadline.cancel()

    @web.middleware
    async def _on_first_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        assert isinstance(request.protocol, _Handler)
        self._forget(request.protocol)
        request[CONNECTION] = request.protocol.id
        return await handler(request)

    # What it serves

    async def _on_readyz(self, _: web.Request) -> web.Response:
        """200 if new calls should come here: an upstream is up, we are not about to stop, and there is memory."""
        view = self._view
        checks = {"upstream": view.upstreams.any_healthy, "draining": view.draining()}
        checks["memory_short"] = view.memory_is_short()
        ready = checks["upstream"] and not checks["draining"] and not checks["memory_short"]
        return web.json_response({"ready": ready, **checks}, status=200 if ready else 503)

    async def _on_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _name_connection(request: web.Request, response: web.StreamResponse) -> None:
    """Say which connection in the log this is."""
    if isinstance(request.protocol, _Handler):
        response.headers[RELAY_ID] = request.protocol.id
