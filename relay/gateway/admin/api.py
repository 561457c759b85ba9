"""``/api/...`` of the admin listener: the values of ``View`` as JSON. docs/api.md describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import datetime

from aiohttp import web

from relay.gateway.admin.cluster import describe_cluster
from relay.gateway.admin.queries import MAX_CHARACTERS, BadQuery, limit_of, search_of, zone_of
from relay.gateway.admin.view import Json, View, describe_upstream
from relay.gateway.calls.explain import explain, zone_name
from relay.gateway.calls.store import CallsUnavailable

# A flow takes some 700 bytes. A list has this many flows if the request does not say, and never more than MAX_FLOWS.
FLOWS_SHOWN = 1000
MAX_FLOWS = 10_000

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_Handler = Callable[[web.Request], Awaitable[web.Response]]


class Api:
    """The handlers, all of them for GET."""

    def __init__(self, view: View) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """What to serve."""
        return [
            web.get("/api/flows", _in_words(self._on_flows)),
            web.get("/api/flows/{id}", _in_words(self._on_flow)),
            web.get("/api/calls", _in_words(self._on_calls)),
            web.get("/api/calls/{id}", _in_words(self._on_call)),
            web.get("/api/calls/{id}/explanation", _in_words(self._on_explanation)),
            web.get("/api/upstreams", self._on_upstreams),
            web.get("/api/cluster", self._on_cluster),
            web.get("/api/summary", self._on_summary),
            web.get("/api/history", self._on_history),
        ]

    async def _on_flows(self, request: web.Request) -> web.Response:
        limit = limit_of(request.query, FLOWS_SHOWN, MAX_FLOWS)
        return _answer(await self._view.flows(limit, request.query.get("match", "")[:MAX_CHARACTERS]))

    async def _on_flow(self, request: web.Request) -> web.Response:
        found = await self._view.flow(request.match_info["id"][:MAX_CHARACTERS])
        return _answer({"error": "no such flow"}, 404) if found is None else _answer(found)

    async def _on_calls(self, request: web.Request) -> web.Response:
        search = search_of(request.query)
        # One more says whether there is another page.
        found = await self._view.store.find(dataclasses.replace(search, limit=search.limit + 1))
        shown = found[: search.limit]
        return _answer({"calls": shown, "next": shown[-1]["id"] if shown and len(found) > len(shown) else None})

    async def _on_call(self, request: web.Request) -> web.Response:
        found = await self._view.call(request.match_info["id"][:MAX_CHARACTERS])
        return _no_such_call() if found is None else _answer(found)

    async def _on_explanation(self, request: web.Request) -> web.Response:
        found = await self._view.call(request.match_info["id"][:MAX_CHARACTERS])
        if found is None:
            return _no_such_call()
        began = datetime.fromisoformat(found["started_at"]).timestamp()
        zone = zone_of(request.query, began)
        sentences = [{"rule": one.rule, "text": one.text} for one in explain(found, zone)]
        return _answer({"id": found["id"], "times": zone_name(zone, began), "sentences": sentences})

    async def _on_upstreams(self, _: web.Request) -> web.Response:
        return _answer({"upstreams": [describe_upstream(state) for state in self._view.upstreams]})

    async def _on_cluster(self, _: web.Request) -> web.Response:
        return _answer(describe_cluster(self._view.cluster))

    async def _on_summary(self, _: web.Request) -> web.Response:
        return _answer(self._view.summary())

    async def _on_history(self, _: web.Request) -> web.Response:
        return _answer(self._view.history())


def _in_words(handler: _Handler) -> _Handler:
    """The same handler, whose errors are answers."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except BadQuery as error:
            return _answer({"error": str(error)}, 400)
        except CallsUnavailable as error:
            return _answer({"error": str(error)}, 503)

    return answer


def _no_such_call() -> web.Response:
    return _answer({"error": "no such call"}, 404)


def _answer(value: Json, status: int = 200) -> web.Response:
    return web.json_response(value, status=status, headers=_HEADERS)
