"""The CTI WebSocket at ``/api``: who is let in, and who hears of what."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import WSCloseCode, web

from relay import deadlines
from relay.emulator.apis.cti.connection import Connection, Shared
from relay.emulator.apis.cti.floor import Floor
from relay.emulator.apis.cti.messages import MAX_MESSAGE_BYTES
from relay.emulator.apis.cti.rejections import Rejections
from relay.emulator.apis.security import Keys, api_error, client_address, signed_request
from relay.emulator.apis.verifying import SignatureRefused
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import NO_DEADLINE, Site
from relay.emulator.names import Api, HostRole
from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.messages import PresenceStatus
from relay.emulator.signaling.state import Line, LineSpec
from relay.emulator.store import Store

PATH = "/api"
# A firm has one or two programs that watch it. Each connection may hold a thousand messages.
MAX_CONNECTIONS_OF_KEY = 20
MAX_CONNECTIONS = 200
# How soon a client that vanished is noticed.
HEARTBEAT_S = 20.0
# How long the database may take for each step of the handshake. Then the answer is 503.
HANDSHAKE_TIMEOUT_S = 10.0
# In the signature, a WebSocket has its own scheme.
SCHEMES = {"http": "ws", "https": "wss"}


class CtiServer:
    """``register`` it, and ``stop`` it before the web server is stopped."""

    def __init__(self, store: Store, keys: Keys, hub: Hub) -> None:
        self.rejections = Rejections()
        self._keys = keys
        self._shared = Shared(Floor(hub, store), keys, store, self.rejections)
        self._connections: set[Connection] = set()
        self._gone = asyncio.Event()
        self._shared.floor.observe(self._on_line, self._on_presence)

    def __len__(self) -> int:
        return len(self._connections)

    def register(self, site: Site) -> None:
        """Serve the WebSocket, and the endpoints for rejections on demand."""
        site.route(HostRole.CTI, "GET", PATH, self._on_request, timeout_s=NO_DEADLINE)
        self.rejections.register(site, self._keys)

    async def stop(self) -> None:
        """Close all connections, and wait for them. The caller has a deadline."""
        for connection in self._connections:
            connection.close(WSCloseCode.GOING_AWAY, "the emulator stops")
        while self._connections:
            self._gone.clear()
            await self._gone.wait()

    async def _on_request(self, request: web.Request) -> web.WebSocketResponse:
        handshake = signed_request(request, b"", schemes=SCHEMES)
        address = client_address(request)
        authorization, date = request.headers.get("Authorization"), request.headers.get("Date")
        try:
            async with deadlines.timeout(HANDSHAKE_TIMEOUT_S):
                key = await self._keys.check(handshake, authorization, date, address=address, api=Api.CTI)
        except SignatureRefused as refused:
            raise api_error(refused) from None
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        if not socket.can_prepare(request):
            message = "This is a WebSocket: the request has no Upgrade, or a wrong one."
            expected = "Upgrade: websocket, Connection: Upgrade, Sec-WebSocket-Key, Sec-WebSocket-Version: 13"
            raise ApiError(426, "no_upgrade", message, expected=expected, headers={"Upgrade": "websocket"})
        self._check_room(key.key)
        connection = Connection(self._shared, socket, key, handshake, request)
        self._connections.add(connection)
        try:
            async with deadlines.timeout(HANDSHAKE_TIMEOUT_S):
                await connection.load()
            await socket.prepare(request)
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._gone.set()
        return socket

    def _check_room(self, key: str) -> None:
        held = Counter(connection.key.key for connection in self._connections)
        headers = {"Retry-After": "30"}
        if held[key] >= MAX_CONNECTIONS_OF_KEY:
            expected = f"at most {MAX_CONNECTIONS_OF_KEY}"
            raise ApiError(429, "too_many", "The key has too many connections.", expected=expected, headers=headers)
        if len(self._connections) >= MAX_CONNECTIONS:
            expected = f"at most {MAX_CONNECTIONS}"
            raise ApiError(503, "busy", "There are too many CTI connections.", expected=expected, headers=headers)

    def _on_line(self, spec: LineSpec, line: Line) -> None:
        for connection in self._connections:
            connection.on_line(spec, line)

    def _on_presence(self, user_id: str, presence: PresenceStatus) -> None:
        for connection in self._connections:
            connection.on_presence(user_id, presence)
