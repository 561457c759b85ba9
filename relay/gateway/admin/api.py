"""``/api/...`` of the admin listener: the values of ``View`` as JSON. docs/api.md describes them."""

from __future__ import annotations

from aiohttp import web

from relay.gateway.admin.view import Json, View, describe_upstream
from relay.plane.api import ConnectionId

# A flow takes some 700 bytes. A list has this many flows if the request does not say, and never more than MAX_FLOWS.
FLOWS_SHOWN = 1000
MAX_FLOWS = 10_000
# Longer than any name that an operator looks for.
MATCH_CHARACTERS = 200

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Api:
    """The handlers, all of them for GET."""

    def __init__(self, view: View) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """What to serve."""
        return [
            web.get("/api/flows", self._on_flows),
            web.get("/api/flows/{connection}", self._on_flow),
            web.get("/api/upstreams", self._on_upstreams),
            web.get("/api/summary", self._on_summary),
            web.get("/api/history", self._on_history),
        ]

    async def _on_flows(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", str(FLOWS_SHOWN))
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 9):
            return _answer({"error": f"limit: expected a number from 0 to {MAX_FLOWS}"}, 400)
        match = request.query.get("match", "")[:MATCH_CHARACTERS]
        return _answer(await self._view.flows(min(int(limit), MAX_FLOWS), match))

    async def _on_flow(self, request: web.Request) -> web.Response:
        given = request.match_info["connection"]
        # 20 digits hold 64 bits.
        known = given.isascii() and given.isdigit() and len(given) <= 20
        found = await self._view.flow(ConnectionId(int(given))) if known else None
        return _answer({"error": "no such flow"}, 404) if found is None else _answer(found)

    async def _on_upstreams(self, _: web.Request) -> web.Response:
        return _answer({"upstreams": [describe_upstream(state) for state in self._view.upstreams]})

    async def _on_summary(self, _: web.Request) -> web.Response:
        return _answer(self._view.summary())

    async def _on_history(self, _: web.Request) -> web.Response:
        return _answer(self._view.history())


def _answer(value: Json, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, headers=_HEADERS)
