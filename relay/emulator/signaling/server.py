"""The socket.io server: polling and WebSocket, protocol 5, on an aiohttp application. ``/socket.io/`` is its path.

It bounds what a client can hold: connections, time to log in, sizes, messages a second, and what waits for it. Whatever
is beyond leads to an acknowledgement that says so, or ends the connection; never to a stack trace.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import socketio
import structlog
from aiohttp import web
from engineio import payload
from engineio.exceptions import EngineIOError
from socketio.packet import ACK, CONNECT, CONNECT_ERROR, DISCONNECT, EVENT

from relay.emulator.signaling.delivery import HUBS, EngineServer, FastManager, RedisManager
from relay.emulator.signaling.directory import Directory, OnCallEnded
from relay.emulator.signaling.entrance import Entrance
from relay.emulator.signaling.event_log import EventLog
from relay.emulator.signaling.housekeeping import TICK_S, Housekeeping
from relay.emulator.signaling.hub import GRACE_S, LOGINS, Hub
from relay.emulator.signaling.messages import ErrorCode, PresenceStatus
from relay.emulator.signaling.parsing import refused
from relay.emulator.signaling.shared import MemoryShared, Shared
from relay.emulator.signaling.shared_redis import DEAD_AFTER_S, TIMEOUT_S, RedisShared, open_redis
from relay.emulator.signaling.state import Refusal
from relay.tasks import Tasks

log = structlog.get_logger()

PATH = "/socket.io/"
NAMESPACE = "/"
# A floor of 1,000 users that reconnects has old and new connections for a while; 5,000 take some 100 MB.
MAX_CONNECTIONS = 5000
# Who has not logged in by then never will: a client sends its token with its first packet.
LOGIN_TIMEOUT_S = 10.0
# A description of 64 KiB with the escapes of JSON, in its packet.
MAX_MESSAGE_BYTES = 128 * 1024
# A client that answers ten calls at once sends 200 candidates; a person at a board sends one message a second.
MESSAGES_PER_SECOND = 50.0
MESSAGES_AT_ONCE = 200.0
# Refused messages count too. A client that is this many beyond its ration goes on in spite of all refusals: it is
# broken, or means harm, and is cut off.
MAX_EXCESS = 500.0
# Over polling one request may have all the candidates of a call. The library's own bound is 16, and it would drop the
# whole request.
payload.Payload.max_decode_packets = 256
# No message of ours is binary, and the library would keep any number of attachments.
_TAKEN = frozenset({CONNECT, DISCONNECT, EVENT, ACK})
# How long the last words to a client may take before its connection is cut.
LINGER_S = 5.0
# Every 25 s a ping, which must be answered within 20 s: what all servers of socket.io do.
PING_INTERVAL_S = 25.0
PING_TIMEOUT_S = 20.0


@dataclass(slots=True)
class _Client:
    """One connection, from its first request on. ``tokens`` of the bucket that bounds its messages."""

    eio_sid: str
    tokens: float = MESSAGES_AT_ONCE
    since: float = 0.0
    login: asyncio.TimerHandle | None = None

    def allows(self, now: float) -> bool:
        self.tokens = min(MESSAGES_AT_ONCE, self.tokens + (now - self.since) * MESSAGES_PER_SECOND)
        self.since = now
        self.tokens -= 1
        return self.tokens >= 0

    @property
    def is_flooding(self) -> bool:
        return self.tokens < -MAX_EXCESS


class _Json:
    """Compact, and never raises anything but ValueError."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return json.dumps(value, separators=(",", ":"))

    @staticmethod
    def loads(text: str | bytes, **_: Any) -> Any:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class _Log(logging.LoggerAdapter[logging.Logger]):
    """What the library says of its clients: one line. A stack trace only of what can be no client's fault."""

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log the exception that is being handled."""
        error = sys.exc_info()[1]
        of_a_client: tuple[type[Exception], ...] = (ValueError, OSError, EngineIOError)
        if str(msg).startswith("post request"):
            # The library reads a request's packets there, and fails at some that no client should send.
            of_a_client += (LookupError, TypeError)
        if isinstance(error, of_a_client):
            self.warning("%s: %s", msg, error)
        else:
            self.error(msg, *args, exc_info=error)


def _library_log() -> _Log:
    logger = logging.getLogger("socketio.server")
    logger.setLevel(logging.ERROR)
    return _Log(logger, {})


class SignalingServer(socketio.AsyncServer):  # type: ignore[misc]
    """The server, and the hub behind it. ``start`` it, route ``PATH`` to ``handle_request``, and ``stop`` it.

    With ``redis_url`` its state is shared with other processes. ``stop`` before the web server is stopped, because
    requests wait for messages.
    """

    def __init__(
        self,
        directory: Directory,
        on_call_ended: OnCallEnded,
        *,
        redis_url: str | None = None,
        event_log: EventLog | None = None,
        grace_s: float = GRACE_S,
        tick_s: float = TICK_S,
        dead_after_s: float = DEAD_AFTER_S,
        ping_interval_s: float = PING_INTERVAL_S,
        ping_timeout_s: float = PING_TIMEOUT_S,
        login_timeout_s: float = LOGIN_TIMEOUT_S,
    ) -> None:
        process = uuid.uuid4().hex
        shared: Shared = MemoryShared()
        manager = FastManager()
        if redis_url is not None:
            shared = RedisShared(open_redis(redis_url), process, dead_after_s=dead_after_s)
            # No timeout for reading: to hear nothing for a while is what a subscriber does.
            manager = RedisManager(redis_url, channel="c9so", redis_options={"socket_connect_timeout": TIMEOUT_S})
            manager.on_heard = self._on_heard
        super().__init__(
            client_manager=manager,
            async_mode="aiohttp",
            # One message of a client after the other: their order counts, and nothing can pile up.
            async_handlers=False,
            # The token is in the connection's own message and not in a cookie, so a foreign page gains nothing.
            cors_allowed_origins="*",
            cors_credentials=False,
            http_compression=False,
            max_http_buffer_size=MAX_MESSAGE_BYTES,
            ping_interval=ping_interval_s,
            ping_timeout=ping_timeout_s,
            json=_Json,
            logger=_library_log(),
            engineio_logger=_library_log(),
        )
        self.hub = Hub(
            directory,
            shared,
            self,
            on_call_ended,
            process=process,
            event_log=event_log,
            grace_s=grace_s,
        )
        self.cut_off = 0
        self._login_timeout_s = login_timeout_s
        self._housekeeping = Housekeeping(self.hub, tick_s=tick_s)
        self._clients: dict[str, _Client] = {}
        self._entrance = Entrance()
        self._tasks = Tasks()
        self.eio.bound(self._on_full, self._tasks.start)
        self.on("connect", self._on_connect)
        self.on("disconnect", self._on_disconnect)

    def _engineio_server_class(self) -> type[EngineServer]:
        return EngineServer

    # Its life

    def start(self) -> None:
        """Begin to serve."""
        self._housekeeping.start()
        self.manager_initialized = True
        self.manager.initialize()

    async def stop(self) -> None:
        """End all connections. Users of other processes keep their calls, and ours have their grace there."""
        await self._housekeeping.stop()
        sockets = list(self.eio.sockets.values())
        await asyncio.gather(*(self._close(socket) for socket in sockets), return_exceptions=True)
        for socket in sockets:
            self._abort(socket)
        await self.eio.shutdown()
        if isinstance(self.manager, RedisManager):
            await self.manager.stop()
        await self._tasks.cancel()
        try:
            await self.hub.shared.leave(self.hub.clock() + self.hub.grace_s)
        except Exception as error:
            log.warning("signaling could not say good-bye to the other processes", error=str(error))
        await self.hub.shared.close()
        self.hub.event_log.close()

    # Delivery, for the hub

    async def emit(self, event: str, data: Any = None, rooms: list[str] | None = None, **options: Any) -> None:
        """See ``hub.Delivery``."""
        await self.manager.emit(event, data, NAMESPACE, room=rooms, **options)

    async def enter(self, connection: str, rooms: Iterable[str]) -> None:
        """See ``hub.Delivery``."""
        if not self.manager.is_connected(connection, NAMESPACE):
            return
        wanted = set(rooms)
        for room in set(self.rooms(connection)) - wanted - {connection}:
            await self.leave_room(connection, room)
        for room in wanted:
            await self.enter_room(connection, room)

    async def drop(self, connection: str) -> None:
        """See ``hub.Delivery``."""
        await self.disconnect(connection)

    async def tell_others(self, what: str) -> None:
        """See ``hub.Delivery``."""
        await self.manager.emit(HUBS, what, NAMESPACE, room=HUBS)

    async def _on_heard(self, event: str, data: Any) -> None:
        if event == HUBS:
            await (self.hub.end_logged_out() if data == LOGINS else self.hub.reload())
        elif event == "line.state":
            await self.hub.announcer.heard(data["line"])
        elif event == "presence.state":
            self.hub.announcer.heard_presence(data["user_id"], PresenceStatus(data["state"]))

    # Connections

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> str | None:
        if len(self._clients) >= MAX_CONNECTIONS:
            return f"{ErrorCode.TOO_MANY_CONNECTIONS}: this server has {MAX_CONNECTIONS} connections"
        self._clients[eio_sid] = client = _Client(eio_sid)
        self._expect_login(client)
        await super()._handle_eio_connect(eio_sid, environ)
        return None

    def _expect_login(self, client: _Client) -> None:
        loop = asyncio.get_running_loop()
        client.login = loop.call_later(self._login_timeout_s, self._cut, client.eio_sid)

    async def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        try:
            async with self._entrance.turn(data):
                # It may have gone while it waited.
                if eio_sid in self._clients:
                    await self._log_in(eio_sid, namespace, data)
        except Refusal as refusal:
            info = refusal.info
            answer = {"message": info.message, "data": info.model_dump(mode="json")}
            await self._send_packet(eio_sid, self.packet_class(CONNECT_ERROR, namespace=namespace, data=answer))

    async def _log_in(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        await super()._handle_connect(eio_sid, namespace, data)
        sid = self.manager.sid_from_eio_sid(eio_sid, NAMESPACE)
        if sid is None or not self.manager.is_connected(sid, NAMESPACE):
            return
        client = self._clients.get(eio_sid)
        if client is None:
            # It was lost while the token was looked up, and the library tells only of those that had connected.
            await self._handle_disconnect(eio_sid, NAMESPACE, self.reason.TRANSPORT_CLOSE)
        elif client.login is not None:
            client.login.cancel()
            client.login = None
            await self.hub.admit(sid)

    async def _on_connect(self, sid: str, _: dict[str, Any], auth: Any = None) -> None:
        try:
            await self.hub.connect(sid, auth)
        except Refusal as refusal:
            info = refusal.info
            raise socketio.exceptions.ConnectionRefusedError(info.message, info.model_dump(mode="json")) from None

    async def _on_disconnect(self, sid: str, reason: str) -> None:
        eio_sid = self.manager.eio_sid_from_sid(sid, NAMESPACE)
        said_goodbye = getattr(self.eio.sockets.get(eio_sid), "said_goodbye", False)
        await self.hub.disconnect(sid, for_good=said_goodbye or reason == self.reason.CLIENT_DISCONNECT)
        if (client := self._clients.get(eio_sid)) is not None and client.login is None:
            # The connection itself may stay. It has to log in again, or go.
            self._expect_login(client)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        if (client := self._clients.pop(eio_sid, None)) is not None and client.login is not None:
            client.login.cancel()
        await super()._handle_eio_disconnect(eio_sid, reason)
        self._linger(eio_sid)

    def _on_full(self, eio_sid: str) -> None:
        self.cut_off += 1
        log.warning("a client does not read what it is sent: cut off", connection=eio_sid)
        self._cut(eio_sid)

    def _cut(self, eio_sid: str) -> None:
        """End a connection, whatever its client does."""
        if (socket := self.eio.sockets.get(eio_sid)) is not None:
            self._tasks.start(self._close(socket), "cut off")

    async def _close(self, socket: Any) -> None:
        await socket.close(wait=False, abort=False, reason=self.reason.SERVER_DISCONNECT)

    def _linger(self, eio_sid: str) -> None:
        """Let a client read its last words, but not for long."""
        if (socket := self.eio.sockets.get(eio_sid)) is not None:
            loop = asyncio.get_running_loop()
            # After the last words, this ends the writer or a poll that waits. The library would leave a poll waiting.
            loop.call_soon(socket.queue.put_nowait, None)
            loop.call_later(LINGER_S, self._abort, socket)

    @staticmethod
    def _abort(socket: Any) -> None:
        if (transport := getattr(socket, "transport", None)) is not None:
            transport.abort()

    # Messages

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        """Look at a packet before the library does: it would take binary ones without a bound, and trust their form."""
        client = self._clients.get(eio_sid)
        if client is None:
            return
        try:
            parsed = self.packet_class(encoded_packet=data) if isinstance(data, str) else None
        except ValueError:
            parsed = None
        if parsed is None or parsed.packet_type not in _TAKEN:
            self._cut(eio_sid)
            return
        if parsed.packet_type != EVENT:
            if client.allows(asyncio.get_running_loop().time()):
                await super()._handle_eio_message(eio_sid, data)
            elif client.is_flooding:
                self._cut(eio_sid)
        elif isinstance(parsed.data, list) and parsed.data and isinstance(parsed.data[0], str):
            await self._on_event(client, parsed)
        else:
            self._cut(eio_sid)

    async def _on_event(self, client: _Client, parsed: Any) -> None:
        """Answer an event. The library would let a client call our own handlers, with events of their names."""
        if client.allows(asyncio.get_running_loop().time()):
            sid = self.manager.sid_from_eio_sid(client.eio_sid, NAMESPACE)
            answer = await self._answer(sid if parsed.namespace in {None, NAMESPACE} else "", *parsed.data)
        elif client.is_flooding:
            self._cut(client.eio_sid)
            return
        else:
            wanted = f"at most {MESSAGES_PER_SECOND:.0f} messages a second, and {MESSAGES_AT_ONCE:.0f} at once"
            answer = refused(Refusal(ErrorCode.RATE_LIMITED, "Too many messages.", wanted))
        if parsed.id is not None:
            acknowledgement = self.packet_class(ACK, namespace=parsed.namespace, id=parsed.id, data=[answer])
            await self._send_packet(client.eio_sid, acknowledgement)

    async def _answer(self, sid: str | None, event: str, *args: Any) -> dict[str, Any]:
        if len(args) > 1:
            return refused(Refusal(ErrorCode.BAD_MESSAGE, f"The event has {len(args)} values.", "one object"))
        return await self.hub.handle(sid or "", event, args[0] if args else None)


Add = Callable[[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]], object]


def serve_signaling(add_route: Add, server: SignalingServer) -> None:
    """Route ``/socket.io/`` to the server: ``add_route`` takes method, path and handler."""
    for method in ("GET", "POST", "OPTIONS"):
        add_route(method, PATH, server.handle_request)
