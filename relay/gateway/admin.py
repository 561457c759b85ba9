"""The admin listener: plain HTTP for operators and their tools, on loopback unless configured otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from relay.addresses import Address
from relay.errors import OperatorError
from relay.gateway.metrics import Metrics
from relay.gateway.site import SHUTDOWN_TIMEOUT_S, name_server, on_healthz
from relay.gateway.upstreams import Upstreams, UpstreamState
from relay.plane.api import FlowSnapshot, Snapshot


class Admin:
    """``/healthz``, ``/readyz``, ``/metrics``, ``/api/flows`` and ``/api/upstreams``."""

    def __init__(
        self,
        metrics: Metrics,
        upstreams: Upstreams,
        snapshot: Callable[[], Snapshot],
        draining: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._upstreams = upstreams
        self._snapshot = snapshot
        self._draining = draining
        app = web.Application()
        app.on_response_prepare.append(name_server)
        app.router.add_get("/healthz", on_healthz)
        app.router.add_get("/readyz", self._on_readyz)
        app.router.add_get("/metrics", self._on_metrics)
        app.router.add_get("/api/flows", self._on_flows)
        app.router.add_get("/api/upstreams", self._on_upstreams)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)

    async def listen(self, address: Address) -> Address:
        """Serve on this address, port 0 for a free one; the bound address. Raises OperatorError."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError as error:
            await self._runner.cleanup()
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OperatorError(f"cannot listen on {address} (listen.admin): {reason.lower()}") from None
        return Address(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        """Close the listener and its connections."""
        await self._runner.cleanup()

    async def _on_readyz(self, _: web.Request) -> web.Response:
        """200 if a new call would be taken: at least one upstream is up, and we are not draining."""
        checks = {"upstream": self._upstreams.any_healthy, "draining": self._draining()}
        ready = checks["upstream"] and not checks["draining"]
        return web.json_response({"ready": ready, **checks}, status=200 if ready else 503)

    async def _on_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _on_flows(self, _: web.Request) -> web.Response:
        return web.json_response({"flows": [_describe_flow(flow) for flow in self._snapshot().flows]})

    async def _on_upstreams(self, _: web.Request) -> web.Response:
        return web.json_response({"upstreams": [_describe_upstream(state) for state in self._upstreams]})


def _describe_flow(flow: FlowSnapshot) -> dict[str, Any]:
    totals = flow.totals
    return {
        "connection": flow.connection,
        "client": str(flow.client),
        "server_name": flow.server_name,
        "carrier": flow.carrier,
        "upstream": flow.upstream.name,
        "age_s": round(flow.age_s, 3),
        "heard_s": round(flow.heard_s, 3),
        "uplink": {"packets": totals.uplink_packets, "bytes": totals.uplink_bytes},
        "downlink": {"packets": totals.downlink_packets, "bytes": totals.downlink_bytes},
        "retransmissions": totals.retransmissions,
        "drops": totals.drops,
    }


def _describe_upstream(state: UpstreamState) -> dict[str, Any]:
    return {
        "name": state.name,
        "region": state.settings.region,
        "address": None if state.address is None else str(state.address),
        "health": state.health,
        "rtt_ms": None if state.rtt_s is None else round(state.rtt_s * 1000, 3),
        "flows": state.flows,
    }
