"""One aiohttp application for all hosts. The Host header chooses the roles that answer; catalog names have one each.

    c9rest.xhoot.com                   the role of this host only
    c9rest.xhoot.com.localhost         the same: browsers resolve such names to this machine
    localhost, 127.0.0.1, other names  every role, because their paths do not overlap

A host that the catalog lists as not existing yet does not answer until it is switched on.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog
from aiohttp import web

from relay import deadlines
from relay.catalog import Catalog, Service, Status
from relay.catalog.model import Host
from relay.emulator.http.endpoints import Endpoint
from relay.emulator.http.errors import ApiError, internal
from relay.emulator.http.malformed import broken_body, refused_encoding
from relay.emulator.http.openapi import describe
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole
from relay.emulator.store.store import is_full, is_unavailable
from relay.rate_limit import RateLimit

log = structlog.get_logger()

# No answer takes longer, except of routes that say so. A body has 15 s, and the database 10 s for a connection; clients
# wait little longer.
ANSWER_TIMEOUT_S = 30.0
# For WebSockets, and for polls that end by themselves.
NO_DEADLINE = math.inf
# When to ask again if the database does not answer.
RETRY_AFTER_S = "5"
# Of one cause. A thousand requests that fail alike are not worth a thousand lines.
WARNINGS_PER_S = 0.1
LOCALHOST_SUFFIX = ".localhost"
_ROLES_OF_SERVICE = {
    Service.LOGIN: frozenset({HostRole.LOGIN}),
    Service.PORTAL: frozenset({HostRole.PORTAL}),
    Service.RECORDING: frozenset({HostRole.RECORDING}),
    Service.SIGNALING: frozenset({HostRole.SIGNALING}),
    Service.MEDIA: frozenset({HostRole.MEDIA}),
}
_APIS = frozenset({HostRole.CTI, HostRole.MANAGEMENT, HostRole.CALL_DATA, HostRole.AUDIT})
# The vendor lists six hosts as "APIs". Their names say which: c9apiproxy is for all of them, as far as we know.
_ROLES_OF_API = {
    "ctiapi": frozenset({HostRole.CTI}),
    "ctiapitrader": frozenset({HostRole.CTI}),
    "managementapi": frozenset({HostRole.MANAGEMENT}),
    "calldataapi": frozenset({HostRole.CALL_DATA}),
    "c9auditapi": frozenset({HostRole.AUDIT}),
    "c9apiproxy": _APIS,
}
# What names outside the vendor's domains serve.
_EVERY_ROLE = frozenset(HostRole)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Looks at a request before it is handled; an answer ends it. Faults on demand come in here.
Intercept = Callable[[web.Request, HostRole | None], Awaitable[web.StreamResponse | None]]


def roles_of(host: Host) -> frozenset[HostRole]:
    """What a host of the catalog serves."""
    if host.service is Service.API:
        return _ROLES_OF_API.get(host.name.partition(".")[0], _APIS)
    return _ROLES_OF_SERVICE[host.service]


class Names:
    """Which hosts answer. ``switch`` turns on hosts that the catalog lists as not existing yet, and off any host."""

    def __init__(self, catalog: Catalog, *, on: Iterable[str] = ()) -> None:
        self.catalog = catalog
        self._off = {host.name for host in catalog.hosts if host.status is not Status.ACTIVE} - set(on)
        # Hosts that a fault on demand hides.
        self.missing: Callable[[str], bool] = lambda name: False

    def exists(self, name: str) -> bool:
        """True for a host of the catalog that answers."""
        host = self.catalog.find(name)
        return host is not None and self._answers(host)

    def _answers(self, host: Host) -> bool:
        return host.name not in self._off and not self.missing(host.name)

    def switch(self, name: str, *, on: bool) -> None:
        """Let a host of the catalog answer or not. Raises KeyError for other names."""
        host = self.catalog.find(name)
        if host is None:
            raise KeyError(name)
        (self._off.discard if on else self._off.add)(host.name)

    def find(self, name: str) -> Host | None:
        """The host of the catalog that a client means, whether it answers or not."""
        return self.catalog.find(_bare(name))

    def roles(self, name: str) -> frozenset[HostRole] | None:
        """The roles behind a name, without port. None if the name does not exist in the vendor's cloud."""
        bare, host = _bare(name), self.find(name)
        if host is not None:
            return roles_of(host) if self._answers(host) else None
        if any(bare == apex or bare.endswith(f".{apex}") for apex in self.catalog.apexes):
            return None
        return _EVERY_ROLE


def _bare(name: str) -> str:
    return name.lower().removesuffix(".").removesuffix(LOCALHOST_SUFFIX)


def name_in(host_header: str) -> str:
    """A Host header without its port and brackets."""
    if host_header.startswith("["):
        return host_header[1:].partition("]")[0]
    return host_header.partition(":")[0]


def is_address(name: str) -> bool:
    """True for an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Site:
    """Collects endpoints and routes of all roles, and makes the application."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.endpoints: list[Endpoint] = []
        self.intercepts: list[Intercept] = []
        self.app = web.Application(middlewares=[self._middleware], client_max_size=1 << 40)
        self._roles: dict[web.AbstractResource | None, HostRole] = {}
        self._warnings = RateLimit(WARNINGS_PER_S)
        self._description: str | None = None
        self._handlers: set[asyncio.Task[Any]] = set()
        self.add(
            Endpoint(HostRole.EMULATOR, "GET", "/openapi.json", Mark.INVENTED, "This description", self._describe),
        )

    def add(self, *endpoints: Endpoint) -> None:
        """Serve endpoints."""
        for endpoint in endpoints:
            self.endpoints.append(endpoint)
            self._description = None
            self.route(endpoint.role, endpoint.method, endpoint.path, endpoint.answer_to, timeout_s=endpoint.timeout_s)

    def route(
        self,
        role: HostRole,
        method: str,
        path: str,
        handler: Handler,
        *,
        timeout_s: float | None = None,
        on_slow: Callable[[ApiError], web.Response] = ApiError.response,
    ) -> None:
        """Serve something that is not an endpoint: pages, files, WebSockets.

        If the handler takes longer than ``timeout_s`` (ANSWER_TIMEOUT_S if None), it is cancelled, and the answer is
        503, in the form that ``on_slow`` gives it.
        """
        timeout_s = ANSWER_TIMEOUT_S if timeout_s is None else timeout_s
        if timeout_s != NO_DEADLINE:
            handler = functools.partial(self._answer_within, timeout_s, handler, on_slow)
        route = self.app.router.add_route(method, path, handler)
        self._roles[route.resource] = role

    def claim(self, role: HostRole, resource: web.AbstractResource) -> None:
        """Say whose role a resource is that was added to ``app.router`` by other means, such as static files."""
        self._roles[resource] = role

    @property
    def running(self) -> int:
        """How many connections have a task."""
        return len(self._handlers)

    async def finish(self, timeout_s: float) -> None:
        """Wait for the tasks of all connections, also of those that are lost already; cancel them after a time."""
        if not self._handlers:
            return
        _, slow = await asyncio.wait(self._handlers, timeout=timeout_s)
        for task in slow:
            task.cancel()
        if slow:
            await asyncio.wait(slow)

    def _note_task(self, task: asyncio.Task[None]) -> None:
        """Keep the task of a connection. aiohttp forgets it when the connection is lost, before it has ended."""
        if task not in self._handlers:
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

    async def _answer_within(
        self,
        timeout_s: float,
        handler: Handler,
        on_slow: Callable[[ApiError], web.Response],
        request: web.Request,
    ) -> web.StreamResponse:
        try:
            async with deadlines.timeout(timeout_s) as deadline:
                return await handler(request)
        except TimeoutError:
            if not deadline.expired():
                raise
        if self._warnings.allows(asyncio.get_running_loop().time(), "slow"):
            log.warning("an answer took too long", method=request.method, path=request.path, timeout_s=timeout_s)
        message, headers = f"There was no answer within {timeout_s:.0f} s.", {"Retry-After": RETRY_AFTER_S}
        expected = f"another attempt in {RETRY_AFTER_S} s"
        return on_slow(ApiError(503, "too_slow", message, expected=expected, headers=headers))

    async def _describe(self, call: object) -> web.Response:
        # It takes a tenth of a second, in which nothing else is done.
        if self._description is None:
            self._description = json.dumps(describe(self.endpoints))
        return web.json_response(text=self._description)

    def _role_of(self, request: web.Request) -> HostRole | None:
        return self._roles.get(request.match_info.route.resource)

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._note_task(request.task)
        try:
            role = self._role_of(request)
            self._check_host(request, role)
            if (refusal := refused_encoding(request.headers.getall("Content-Encoding", ()))) is not None:
                return _last_answer(refusal)
            for intercept in self.intercepts:
                if (answer := await intercept(request, role)) is not None:
                    return answer
            return await handler(request)
        except ApiError as refused:
            return refused.response()
        except web.HTTPMethodNotAllowed as refused:
            return self._method_not_allowed(request, sorted(refused.allowed_methods))
        except web.HTTPNotFound:
            paths = "a path of GET /openapi.json"
            return ApiError(
                404, "no_such_path", "There is nothing at this path.", where="path", expected=paths
            ).response()
        except web.HTTPException as answer:
            if answer.status < 400:
                raise
            expected = "a request as GET /openapi.json describes it"
            return ApiError(answer.status, "refused", answer.reason, where="request", expected=expected).response()
        except (ConnectionResetError, web.RequestPayloadError) as broken:
            return _last_answer(broken_body(broken))
        except Exception as error:
            if (not_now := self._not_now(error)) is not None:
                return not_now.response()
            incident = secrets.token_hex(4)
            log.exception("request failed", incident=incident, method=request.method, path=request.path)
            return internal(incident).response()

    def _not_now(self, error: Exception) -> ApiError | None:
        """What to tell if the database or the disk has failed, not the emulator. None for other errors."""
        if is_full(error):
            what, refused = (
                "disk full",
                ApiError(507, "no_space", "The emulator's disk is full.", expected="more space"),
            )
        elif is_unavailable(error):
            message, headers = "The database does not answer, or has too much to do.", {"Retry-After": RETRY_AFTER_S}
            expected = f"another attempt in {RETRY_AFTER_S} s"
            what, refused = "database unavailable", ApiError(503, "busy", message, expected=expected, headers=headers)
        else:
            return None
        if self._warnings.allows(asyncio.get_running_loop().time(), what):
            log.warning(what, error=str(getattr(error, "orig", None) or error)[:200] or type(error).__name__)
        return refused

    def _method_not_allowed(self, request: web.Request, allowed: Sequence[str]) -> web.Response:
        names = ", ".join(allowed)
        message = f"{request.method[:20]} is not a method of this path."
        return ApiError(
            405, "wrong_method", message, where="method", expected=names, headers={"Allow": names}
        ).response()

    def _check_host(self, request: web.Request, role: HostRole | None) -> None:
        name = name_in(request.host)
        if not name.isascii():
            message = "The Host header has bytes beyond ASCII."
            raise ApiError(400, "bad_host", message, where="Host", expected="a host name or an address")
        roles = self.names.roles(name)
        if roles is None:
            raise self._no_such_host(name)
        if role is None or role in roles or roles == _EVERY_ROLE:
            return
        hosts = [h.name for h in self.names.catalog.hosts if role in roles_of(h) and self.names.exists(h.name)]
        message = f"{name[:100]} does not serve this path: it is for {', '.join(sorted(roles))}."
        raise ApiError(404, "wrong_host", message, where="Host", expected=", ".join(hosts[:3]) or "localhost")

    def _no_such_host(self, name: str) -> ApiError:
        host = self.names.find(name)
        message = f"The vendor has no host {name[:100]!r}."
        expected = "a host of `relay catalog show` that exists"
        if host is not None and self.names.missing(host.name):
            message = f"A fault on demand hides the host {host.name}."
            expected = "the fault taken off, in the portal or at /emulator/v1/faults"
        elif host is not None and host.status is not Status.ACTIVE:
            message = f"The vendor's host {host.name} does not exist yet."
            expected = f"another host, or an emulator that was started with --host-on {host.name}"
        return ApiError(421, "no_such_host", message, where="Host", expected=expected)


def _last_answer(refused: ApiError) -> web.Response:
    """The answer to a request of which nobody knows where it ends, and where the next one begins."""
    answer = refused.response()
    answer.force_close()
    return answer
