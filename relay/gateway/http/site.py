"""HTTP on the TLS port: aiohttp serves the connections that the plane hands over.

Handlers see the client, not the socket pair between: ``request.remote`` is the client's address, ``request.scheme``
is https, and ``request[OPENED]`` has server name and TLS version. A connection leaves HTTP by
``request[SITE].leave_http``. What is not the relay's own goes on to signaling.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import termios
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import _ErrInfo

from relay import __version__, deadlines
from relay.bodies import BodyFaults
from relay.gateway.calls.ids import CallIds
from relay.gateway.signaling.http_rules import CONNECTION, MAX_FIELDS, RELAY_ID, BadRequest
from relay.gateway.signaling.proxy import SignalingProxy
from relay.plane.api import ConnectionId, HttpOpened
from relay.tasks import Tasks

OPENED = web.RequestKey("opened", HttpOpened)
SITE: web.RequestKey[Site] = web.RequestKey("site")
# The first request must be whole by then, against clients that send headers slowly. The plane has waited for its first
# byte before.
FIRST_REQUEST_TIMEOUT_S = 10.0
# An idle connection is kept this long for the next request: browsers keep theirs about as long.
KEEPALIVE_TIMEOUT_S = 75.0
# Requests to the relay itself are small.
MAX_BODY_BYTES = 64 * 1024
# When the relay stops, running requests have this long to end.
SHUTDOWN_TIMEOUT_S = 2.0
# The plane takes a connection back within a turn of its loop, and then closes its end of the socket pair.
LEAVE_TIMEOUT_S = 5.0
SERVER = "cloud9-relay"
HEALTH_PATH = "/healthz"
_HEAD_END = b"\r\n\r\n"
# What aiohttp's parser says when there are more fields than it accepts.
_TOO_MANY = ("Too many headers received",)
# RFC 9112 section 3 asks for 8,000 at least; nginx takes 8 KiB.
MAX_TARGET_BYTES = 8190

_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cloud9-relay</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:4rem auto;padding:0 1rem;
color-scheme:light dark}}code{{font-size:.95em}}</style>
<h1>cloud9-relay</h1>
<p>This is a voice relay, version {__version__}. It is reachable, and its TLS certificate was accepted.</p>
<p>Voice clients use this address as their <code>turns:</code> server. There is nothing else to see here.</p>
</html>
"""


async def _on_page(_: web.Request) -> web.Response:
    return web.Response(text=_PAGE, content_type="text/html")


async def on_healthz(_: web.Request) -> web.Response:
    """Say that the process answers, and no more than that."""
    return web.Response(text="ok\n")


async def name_server(_: web.Request, response: web.StreamResponse) -> None:
    """Say who we are, not what we are made of."""
    response.headers["Server"] = SERVER


def _found_by_parser(error: BaseException | None) -> str:
    """What the parser found wrong with a request. It shows the client's bytes after that, which are left out here."""
    found, shown, _ = str(getattr(error, "message", "")).partition(":\n\n")
    words = " ".join(found.split())
    return f"bad request: {words}" if shown and words else "bad request"


# Makes the answer for a connection whose request is not served.
OnBadHead = Callable[[web.RequestHandler, BadRequest], web.Response]


class _Handler(BodyFaults):
    """A client's mistake leaves no traceback in our log, and the answer does not show our version.

    Bytes after an Upgrade or a CONNECT belong to the protocol that it asks for. They are never read as a request: if
    the connection does not leave HTTP, it ends.
    """

    __slots__ = (
        "_head_bytes",
        "_last_body",
        "_max_head_bytes",
        "_max_header_bytes",
        "_on_bad_head",
        "_past_head",
        "_seen",
        "_too_large",
    )

    def __init__(self, *arguments: Any, on_bad_head: OnBadHead, max_header_bytes: int, **options: Any) -> None:
        """``on_bad_head`` is told of a head that is not served, and makes the answer."""
        # ``check`` says what is wrong with a head. A head that is far too large is not read at all, to save memory.
        far_too_large = 2 * max_header_bytes
        super().__init__(
            *arguments,
            max_line_size=MAX_TARGET_BYTES,
            # The parser's errors differ only in their bound, so the two bounds must differ.
            max_field_size=max(far_too_large, MAX_TARGET_BYTES + 1),
            max_headers=2 * MAX_FIELDS,
            **options,
        )
        self._seen = b""
        self._past_head = False
        # Bytes since the last message, and the reader of its body.
        self._head_bytes = 0
        self._last_body: StreamReader = EMPTY_PAYLOAD
        self._too_large = False
        self._max_header_bytes = max_header_bytes
        self._max_head_bytes = MAX_TARGET_BYTES + far_too_large
        self._on_bad_head = on_bad_head

    def data_received(self, data: bytes) -> None:
        """Take bytes, and count those of a head."""
        # A head may end with bytes of the chunk before. While a request is answered, all bytes come after it.
        seen = self._seen + data
        answering = self._current_request is not None or bool(self._messages)
        self._past_head = answering or bool(seen.partition(_HEAD_END)[2])
        self._seen = seen[-len(_HEAD_END) + 1 :]
        if self._too_large:
            return
        served, in_head = self._request_count, self._last_body.is_eof()
        super().data_received(data)
        if self._request_count != served:
            self._head_bytes, self._last_body = 0, self._messages[-1][1]
        elif in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._max_head_bytes:
                self._refuse_head()

    def _refuse_head(self) -> None:
        """The head has many fields, each within the bound: answer as if the parser had found it too large."""
        self._too_large = True
        error = LineTooLong(b"", self.max_field_size)
        self._messages.append((_ErrInfo(status=431, exc=error, message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def has_more(self) -> bool:
        """True if the client has sent something after the head of the request, or two requests at once."""
        if self._past_head or self.transport is None:
            return True
        waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return any(waiting)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if resp.status != 101 and (request.method == hdrs.METH_CONNECT or hdrs.UPGRADE in request.headers):
            self._message_tail = b""
            self._messages.clear()
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionResetError) and (self.transport is None or self.transport.is_closing()):
            # The client has gone, and aiohttp had something to say before any handler: a 100 for OPTIONS *.
            return web.Response(status=400)
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            if exc.args[1] == MAX_TARGET_BYTES:
                refused = BadRequest(414, f"the request target is larger than {MAX_TARGET_BYTES} bytes")
            else:
                refused = BadRequest(431, f"the headers are larger than {self._max_header_bytes} bytes")
        elif exc is not None and exc.args == _TOO_MANY:
            refused = BadRequest(431, f"there are more than {MAX_FIELDS} headers")
        else:
            refused = BadRequest(status, _found_by_parser(exc))
        response = self._on_bad_head(self, refused)
        response.headers["Server"] = SERVER
        return response


# A client that sends a body which nobody reads has this long to take the answer.
LINGERING_TIME_S = 2.0
# Bodies pass as they are, compressed or not.
_HANDLER_OPTIONS: dict[str, Any] = {
    "access_log": None,
    "keepalive_timeout": KEEPALIVE_TIMEOUT_S,
    "lingering_time": LINGERING_TIME_S,
    "auto_decompress": False,
}


class Site:
    """Owns the descriptors of HttpOpened events, from ``open`` on."""

    def __init__(
        self, signaling: SignalingProxy, routes: Iterable[web.AbstractRouteDef] = (), *, ids: CallIds | None = None
    ) -> None:
        """``routes`` are served in addition to ``/healthz``. Everything else is for ``signaling``."""
        self._signaling = signaling
        self._ids = ids or CallIds()
        app = web.Application(middlewares=[self._introduce], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(name_server)
        app.on_response_prepare.append(self._name_connection)
        app.router.add_get(HEALTH_PATH, on_healthz)
        app.router.add_routes(routes)
        others = app.router.add_route("*", "/{path:.*}", self._on_other, expect_handler=self._on_expect)
        self._others = others.resource
        # When a client has gone, its handler ends, even while it waits for the rest of a body.
        self._runner = web.AppRunner(
            app, handle_signals=False, handler_cancellation=True, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        self._tasks = Tasks()
        self._handlers: dict[ConnectionId, web.RequestHandler] = {}
        self._opened: dict[web.RequestHandler, HttpOpened] = {}
        self._deadlines: dict[ConnectionId, asyncio.TimerHandle] = {}
        # Those that have asked for something besides /healthz: they are not checks of a balancer.
        self._asked: set[ConnectionId] = set()
        self._stopped = False
        self._lets_go = False

    async def start(self) -> None:
        """Be ready for connections."""
        await self._signaling.start()
        await self._runner.setup()

    def open(self, opened: HttpOpened) -> None:
        """Serve a connection that speaks HTTP. After ``stop``, close it."""
        if self._stopped or self._runner.server is None:
            os.close(opened.fd)
            return
        loop = asyncio.get_running_loop()
        handler = _Handler(
            self._runner.server,
            loop=loop,
            on_bad_head=self._on_bad_head,
            max_header_bytes=self._signaling.settings.max_header_bytes,
            **_HANDLER_OPTIONS,
        )
        self._handlers[opened.connection] = handler
        self._opened[handler] = opened
        self._deadlines[opened.connection] = loop.call_later(FIRST_REQUEST_TIMEOUT_S, handler.force_close)
        self._tasks.start(self._serve(opened.fd, handler), "http")

    def _on_bad_head(self, handler: web.RequestHandler, refused: BadRequest) -> web.Response:
        opened = self._opened.get(handler)
        if opened is None:
            return self._signaling.refuse_bad(refused, "")
        self._asked.add(opened.connection)
        connection = self._ids.id_of(opened.connection)
        response = self._signaling.refuse_bad(refused, opened.client.host, connection)
        response.headers[RELAY_ID] = connection
        return response

    async def _name_connection(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say in answers of the relay itself which connection in the log this is."""
        if (opened := self._opened.get(request.protocol)) is not None:
            response.headers[RELAY_ID] = self._ids.id_of(opened.connection)

    async def _serve(self, fd: int, handler: web.RequestHandler) -> None:
        stream = socket.socket(fileno=fd)
        stream.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: handler, stream)
        except OSError:
            stream.close()

    def on_closed(self, connection: ConnectionId) -> bool:
        """The plane has closed a connection: forget it. Returns True if it asked for something besides ``/healthz``."""
        asked = connection in self._asked
        self._asked.discard(connection)
        self._forget(connection)
        return asked

    def _forget(self, connection: ConnectionId) -> None:
        if (handler := self._handlers.pop(connection, None)) is not None:
            del self._opened[handler]
            self._cancel_deadline(connection)

    def _cancel_deadline(self, connection: ConnectionId) -> None:
        if (deadline := self._deadlines.pop(connection, None)) is not None:
            deadline.cancel()

    def connections(self) -> list[ConnectionId]:
        """The connections that speak HTTP now."""
        return list(self._handlers)

    def let_go(self) -> None:
        """From now on end each connection after its next response: its client comes back on a new one."""
        self._lets_go = True

    @web.middleware
    async def _introduce(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        opened = self._opened.get(request.protocol)
        if opened is None:  # the client has gone already
            raise web.HTTPServiceUnavailable
        self._cancel_deadline(opened.connection)
        if request.path != HEALTH_PATH:
            self._asked.add(opened.connection)
        if self._lets_go:
            # As if the client had asked for it: whoever makes the response says so in it.
            request._message = request._message._replace(should_close=True)
        introduced = request.clone(scheme="https", remote=opened.client.host)
        introduced[OPENED] = opened
        introduced[CONNECTION] = self._ids.id_of(opened.connection)
        introduced[SITE] = self
        return await handler(introduced)

    async def leave_http(self, request: web.Request, upgrade: Callable[[], None]) -> web.StreamResponse:
        """Have ``upgrade`` tell the plane to take the connection back. The plane sends the response itself.

        This does not return, unless the plane fails to do so. Raises HTTPBadRequest if the client has not waited for
        the response, and HTTPServiceUnavailable if the connection has ended; then ``upgrade`` is not called.
        """
        handler = request.protocol
        assert isinstance(handler, _Handler)
        if handler not in self._opened:
            # The plane has told us its end already. If a flow began now, nobody would ever hear of its end.
            raise web.HTTPServiceUnavailable
        if handler.has_more:
            raise web.HTTPBadRequest(text="bytes after the request: expected none before the 101\n")
        upgrade()
        try:
            # We wait for the plane to close its end: in a plane with threads, closing ours could overtake the upgrade.
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(LEAVE_TIMEOUT_S):
                    await asyncio.get_running_loop().create_future()
            handler.force_close()
            raise web.HTTPServiceUnavailable
        finally:
            # From now on the connection is not HTTP, and it may last for hours.
            self._forget(request[OPENED].connection)

    async def _on_other(self, request: web.Request) -> web.StreamResponse:
        """Answer what no other route takes: our paths with a method that they do not have, and signaling."""
        for resource in request.app.router.resources():
            if resource is not self._others and (methods := (await resource.resolve(request))[1]):
                raise web.HTTPMethodNotAllowed(request.method, methods)
        if self._signaling.configured:
            return await self._signaling.on_request(request)
        if request.path != "/":
            raise web.HTTPNotFound
        if request.method not in {"GET", "HEAD"}:
            raise web.HTTPMethodNotAllowed(request.method, {"GET", "HEAD"})
        return await _on_page(request)

    async def _on_expect(self, request: web.Request) -> None:
        """A client asks whether it may send its body. The signaling upstream answers, if there is one."""
        if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
            raise web.HTTPExpectationFailed(text="expected Expect: 100-continue, or none\n")
        if not self._signaling.configured and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def stop(self) -> None:
        """End all connections."""
        self._stopped = True
        await self._signaling.stop()
        await self._tasks.finish()
        for connection in list(self._deadlines):
            self._cancel_deadline(connection)
        await self._runner.cleanup()
