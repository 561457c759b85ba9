"""The admin listener: plain HTTP for operators and their tools, on loopback unless configured otherwise."""

from __future__ import annotations

import os
from collections.abc import Collection

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from relay.addresses import Address
from relay.errors import OperatorError
from relay.gateway.admin import dashboard
from relay.gateway.admin.api import Api
from relay.gateway.admin.capture import Captures
from relay.gateway.admin.events import Events
from relay.gateway.admin.hosts import check_host
from relay.gateway.admin.metrics import Metrics, RelayCollector
from relay.gateway.admin.view import View
from relay.gateway.http.site import SHUTDOWN_TIMEOUT_S, name_server, on_healthz
from relay.sockaddr import from_sockaddr


class Admin:
    """``/healthz``, ``/readyz``, ``/metrics``, ``/api/...``, and the dashboard at ``/``."""

    def __init__(self, view: View, captures: Captures, *collectors: Collector, hosts: Collection[str] = ()) -> None:
        """``hosts`` are names that it answers to, in lower case, in addition to those of ``check_host``."""
        self._captures = captures
        self.events = Events(view.summary)
        self._view = view
        self._metrics = Metrics(RelayCollector(view), *collectors)
        app = web.Application(middlewares=[check_host(hosts)])
        app.on_response_prepare.append(name_server)
        app.router.add_get("/healthz", on_healthz)
        app.router.add_get("/readyz", self._on_readyz)
        app.router.add_get("/metrics", self._on_metrics)
        app.router.add_get("/api/events", self.events.on_request)
        app.router.add_post("/api/flows/{connection}/capture", captures.on_request)
        app.router.add_routes(Api(view).routes())
        app.router.add_routes(dashboard.routes())
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )

    async def listen(self, address: Address) -> Address:
        """Serve on this address, port 0 for a free one; the bound address. Raises OperatorError."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError as error:
            await self._runner.cleanup()
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OperatorError(f"cannot listen on {address} (listen.admin): {reason.lower()}") from None
        return from_sockaddr(self._runner.addresses[0])

    async def stop(self) -> None:
        """Close the listener and its connections."""
        self.events.stop()
        self._captures.stop()
        await self._runner.cleanup()

    async def _on_readyz(self, _: web.Request) -> web.Response:
        """200 if a new call would be taken: at least one upstream is up, and we are not draining."""
        checks = {"upstream": self._view.upstreams.any_healthy, "draining": self._view.draining()}
        ready = checks["upstream"] and not checks["draining"]
        return web.json_response({"ready": ready, **checks}, status=200 if ready else 503)

    async def _on_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})
