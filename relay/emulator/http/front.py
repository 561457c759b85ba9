"""The connections of HTTP: how many there are, and how long they may say nothing.

aiohttp alone would keep any number of them, for an hour.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from typing import Any

import structlog
from aiohttp import web

from relay.addresses import Address
from relay.sockaddr import from_sockaddr

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


def max_connections() -> int:
    """How many connections there may be. The other half of the descriptors is for TURN, the database and files."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if allowed == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, allowed // 2)


class Front:
    """All listeners of one runner, and their connections together."""

    def __init__(self, runner: web.AppRunner) -> None:
        """``runner`` is set up already."""
        assert runner.server is not None
        self._server: web.Server = runner.server
        self._listeners: list[asyncio.Server] = []
        self._warned_at = float("-inf")

    async def serve(self, listening: socket.socket, context: ssl.SSLContext | None) -> Address:
        """Accept connections of a socket that listens. Returns its address."""
        listener = await asyncio.get_running_loop().create_server(self._connection, sock=listening, ssl=context)
        self._listeners.append(listener)
        return from_sockaddr(listening.getsockname())

    def close(self) -> None:
        """Accept no more connections."""
        for listener in self._listeners:
            listener.close()

    def _connection(self) -> web.RequestHandler:
        loop = asyncio.get_running_loop()
        return _Connection(
            self._server,
            front=self,
            loop=loop,
            access_log=None,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=LINGERING_TIME_S,
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


class _Connection(web.RequestHandler):
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
