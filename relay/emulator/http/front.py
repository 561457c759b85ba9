"""The connections of HTTP: how many there are, how long they may say nothing, and what malformed requests are told.

aiohttp alone would keep any number of them for an hour, and log a stack trace for each malformed request.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import secrets
import socket
import ssl
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from relay.addresses import Address
from relay.bodies import BodyFaults
from relay.emulator.handshakes import HANDSHAKE_TIMEOUT_S, Handshakes
from relay.emulator.http.errors import ApiError, internal
from relay.emulator.http.malformed import MAX_HEADER_BYTES, MAX_TARGET_BYTES, refusal
from relay.plane.reference.listener import Listener
from relay.plane.reference.reserve import Reserve
from relay.rate_limit import RateLimit
from relay.sockaddr import from_sockaddr
from relay.tasks import Tasks

log = structlog.get_logger()

# The head of a request must be whole by then, and the next request must come by then. Browsers keep connections about
# as long.
KEEPALIVE_TIMEOUT_S = 75.0
# A client that sends a body which nobody reads has this long to take the answer.
LINGERING_TIME_S = 2.0
# Some 50 KB each. A test of a large floor has a few thousand.
MAX_CONNECTIONS = 10_000
# One warning in this time: a flood must not fill the log.
WARNING_INTERVAL_S = 60.0
# Lines about malformed requests. More are not worth reading.
MALFORMED_PER_S = 1.0


def max_connections() -> int:
    """How many connections there may be. The other half of the descriptors is for TURN, the database and files."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if allowed == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, allowed // 2)


class Front:
    """All listeners of one runner, and their connections together."""

    def __init__(self, runner: web.AppRunner, handshakes: Handshakes) -> None:
        """``runner`` is set up already."""
        assert runner.server is not None
        self._server: web.Server = runner.server
        self._handshakes = handshakes
        self._listeners: list[asyncio.Server | _TlsListener] = []
        self._warned_at = float("-inf")
        self._malformed = RateLimit(MALFORMED_PER_S)

    async def serve(self, listening: socket.socket, context: ssl.SSLContext | None) -> Address:
        """Accept connections of a socket that listens. Returns its address."""
        if context is None:
            self._listeners.append(
                await asyncio.get_running_loop().create_server(self._connection, sock=listening, ssl=None)
            )
        else:
            self._listeners.append(_TlsListener(listening, context, self._connection, self._handshakes))
        return from_sockaddr(listening.getsockname())

    async def close(self) -> None:
        """Accept no more connections, and end those that shake hands."""
        for listener in self._listeners:
            listener.close()
            if isinstance(listener, _TlsListener):
                await listener.ended()

    def _connection(self) -> web.RequestHandler:
        loop = asyncio.get_running_loop()
        return _Connection(
            self._server,
            front=self,
            loop=loop,
            access_log=None,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=LINGERING_TIME_S,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    def make_room(self) -> bool:
        """If there are too many connections, close the one that has been open longest of those without a request.

        Returns False if all of them have one.
        """
        connections, most = self._server.connections, max_connections()
        if len(connections) < most:
            return True
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            log.warning("too many HTTP connections: idle ones are closed", connections=len(connections), most=most)
        for each in connections:
            if isinstance(each, _Connection) and each.idle:
                each.force_close()
                return True
        return False

    def note_malformed(self, client: str | None, found: str) -> None:
        """Log that a client has sent what is not a request."""
        if self._malformed.allows(asyncio.get_running_loop().time(), ""):
            log.info("malformed request", client=client, found=found)


class _TlsListener:
    """Accepts at a socket, and makes connections of those who have shaken hands when it was their turn."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        connection: Callable[[], asyncio.Protocol],
        handshakes: Handshakes,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._connection = connection
        self._handshakes = handshakes
        self._arriving = Tasks()
        # The oldest first.
        self._newcomers: dict[socket.socket, None] = {}
        self._listener = Listener(self._loop, listening, self._welcome)

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()

    async def ended(self) -> None:
        """End those that shake hands."""
        await self._arriving.cancel()
        while self._newcomers:
            self._newcomers.popitem()[0].close()

    def _welcome(self, accepted: socket.socket, _: Address, reserve: Reserve) -> None:
        reserve.give_up()
        accepted.setblocking(False)
        if len(self._newcomers) >= max_connections():
            # The oldest is the least likely to go on. Its handshake fails.
            oldest = next(iter(self._newcomers))
            del self._newcomers[oldest]
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        self._newcomers[accepted] = None
        self._arriving.start(self._arrive(accepted), "HTTPS client arrives")

    async def _arrive(self, accepted: socket.socket) -> None:
        try:
            await self._handshakes.turn(accepted)
            await self._loop.connect_accepted_socket(
                self._connection, accepted, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except OSError:
            # The client has gone, does not speak TLS, or takes too long: nothing that anybody could do about.
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            self._newcomers.pop(accepted, None)


class _Connection(BodyFaults):
    """aiohttp's, except for what it tells clients and the log of errors that do not reach the application."""

    __slots__ = ("_front",)

    def __init__(self, server: web.Server, *, front: Front, **options: Any) -> None:
        super().__init__(server, **options)
        self._front = front

    @property
    def idle(self) -> bool:
        """True while no request is answered."""
        return self._waiter is not None and not self._waiter.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        has_room = self._front.make_room()
        super().connection_made(transport)
        if not has_room:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status < 500:
            refused = refusal(exc)
            self._front.note_malformed(request.remote, str(refused))
        else:
            incident = secrets.token_hex(4)
            log.error("request failed", incident=incident, method=request.method, path=request.path, exc_info=exc)
            refused = internal(incident)
        answer = refused.response()
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPExpectationFailed):
            # aiohttp looks at this header before the application does.
            message, expected = "The server cannot do what Expect asks for.", "100-continue, or no such header"
            resp = ApiError(417, "wrong_expect", message, where="Expect", expected=expected).response()
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **options: Any) -> None:
        error = options.get("exc_info")
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            # A body that nobody wanted is broken.
            self._front.note_malformed(None, "a broken body")
        else:
            super().log_exception(*args, **options)
