"""How messages reach clients: python-socketio's managers, with three differences.

A message to a room is encoded once and put into each client's queue at once: the library would start a task for each
client, 800 for a hoot. The task that writes to a WebSocket waits for its queue itself: the library would start another
task, with a timer, for each message. And a queue has a bound: a client that does not read is cut off, so it blocks
nobody and fills no memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import engineio
import socketio
from aiohttp import WSCloseCode, WSMsgType, web
from engineio import packet as eio_packet
from engineio.async_drivers.aiohttp import WebSocket
from engineio.exceptions import QueueEmpty
from socketio import packet

from relay.emulator.http.errors import ApiError
from relay.logs import printable

# A welcome to a user who shares hoots with 800 others has 100 KB. Two seconds of the busiest line have 100 messages.
MAX_QUEUED_MESSAGES = 1000
MAX_QUEUED_BYTES = 4 << 20
# Of a message to the hubs of other processes: no client can enter a room of this name.
HUBS = "@hubs"

# How soon a task that goes on in spite of a cancellation is cancelled again.
CANCEL_AGAIN_S = 0.1
# How long a client's own close is waited for. It comes at once, or never.
CLOSE_TIMEOUT_S = 2.0
# What a packet begins with. The library fails at others, and keeps the connection.
_PACKET_TYPES = frozenset("0123456")

OnHeard = Callable[[str, Any], Awaitable[None]]


class Outbox(asyncio.Queue[Any]):
    """What waits for one client. Once it is full, it stays empty, and ``on_full`` is called once."""

    def __init__(self, on_full: Callable[[], None]) -> None:
        super().__init__()
        self._on_full = on_full
        self._bytes = 0
        self.is_cut = False

    async def put(self, item: Any) -> None:
        """Never waits."""
        self.put_nowait(item)

    def put_nowait(self, item: Any) -> None:
        """Add a packet; None ends the writer."""
        if self.is_cut and item is not None:
            return
        self._bytes += _size(item)
        super().put_nowait(item)
        if self.qsize() > MAX_QUEUED_MESSAGES or self._bytes > MAX_QUEUED_BYTES:
            self.is_cut = True
            while not self.empty():
                super().get_nowait()
            self._bytes = 0
            super().put_nowait(None)
            self._on_full()

    async def join(self) -> None:
        """Do not wait for a client to read what it was sent: it may never do so."""

    def get_nowait(self) -> Any:
        """Also what ``get`` ends with."""
        item = super().get_nowait()
        self._bytes -= _size(item)
        return item

    async def take_all(self) -> list[Any]:
        """All packets that wait, as soon as there are any; none at the end. Raises QueueEmpty if it is cancelled.

        The library's ``poll`` does the same with a deadline. A WebSocket needs none here: its reader has one, and ends
        this with a None.
        """
        try:
            packets = [await self.get()]
        except asyncio.CancelledError:
            raise QueueEmpty from None
        while packets[-1] is not None and not self.empty():
            packets.append(self.get_nowait())
        if packets[-1] is None and len(packets) > 1:
            # First what comes before the end.
            self.put_nowait(packets.pop())
        return [] if packets == [None] else packets


def _size(item: Any) -> int:
    data = getattr(item, "data", None)
    return len(data) if isinstance(data, str | bytes) else 0


class FastManager(socketio.AsyncManager):  # type: ignore[misc]
    """Delivers on this process."""

    async def emit(
        self, event: str, data: Any, namespace: str, room: Any = None, skip_sid: Any = None, **_: Any
    ) -> None:
        """Put an event into the queue of each client in the room, or in one of them. No acknowledgements."""
        if namespace not in self.rooms:
            return
        sockets = self.server.eio.sockets
        encoded = None
        for sid, eio_sid in self.get_participants(namespace, room):
            socket = sockets.get(eio_sid)
            if socket is None or socket.closed or sid == skip_sid:
                continue
            if encoded is None:
                text = packet.Packet(packet.EVENT, namespace=namespace, data=[event, data]).encode()
                encoded = eio_packet.Packet(eio_packet.MESSAGE, text)
            socket.queue.put_nowait(encoded)


class RedisManager(socketio.AsyncRedisManager, FastManager):  # type: ignore[misc]
    """Delivers on this process and, through Redis, on the others. ``on_heard`` hears what others have sent."""

    on_heard: OnHeard | None = None

    async def _handle_emit(self, message: dict[str, Any]) -> None:
        if message.get("host_id") != self.host_id and self.on_heard is not None:
            await self.on_heard(message["event"], message["data"][0])
        await super()._handle_emit(message)

    async def stop(self) -> None:
        """End the listener, and close the connections."""
        listener: asyncio.Task[None] | None = getattr(self, "thread", None)
        while listener is not None and not listener.done():
            # Once is not always enough: in the middle of a request to Redis it may be lost.
            listener.cancel()
            await asyncio.wait([listener], timeout=CANCEL_AGAIN_S)
        if self.redis is not None:
            await self.pubsub.aclose()
            await self.redis.aclose()


class KnownWebSocket(WebSocket):  # type: ignore[misc]
    """A WebSocket whose connection its session knows, so that it can be cut."""

    async def __call__(self, environ: dict[str, Any]) -> web.WebSocketResponse:
        """Serve it to its end. A client that sends what is not of the protocol loses its session at once."""
        socket, request = self.handler.__self__, environ["aiohttp.request"]
        socket.transport = request.transport
        socket.poll = socket.queue.take_all
        self.environ = environ
        # Compression would cost a quarter of a megabyte for each connection, and time; this is for one machine.
        self._sock = web.WebSocketResponse(
            max_msg_size=self.server.max_http_buffer_size, compress=False, timeout=CLOSE_TIMEOUT_S
        )
        await self._sock.prepare(request)
        try:
            await self.handler(self)
        except ValueError as error:
            self.server.logger.warning("%s: not a packet of engine.io: %s", socket.sid, error)
            await self._sock.close(code=WSCloseCode.PROTOCOL_ERROR)
        finally:
            await socket.close(wait=False, abort=True, reason=self.server.reason.TRANSPORT_ERROR)
        return self._sock

    async def send(self, message: str) -> None:
        """Send a packet. None of ours is binary."""
        await self._sock.send_str(message)

    async def wait(self) -> str | bytes:
        """The next message. Raises OSError at the end."""
        message = await self._sock.receive()
        if isinstance(message.data, str) and message.data[:1] not in _PACKET_TYPES:
            raise OSError("not a packet of engine.io")
        if isinstance(message.data, str | bytes):
            return message.data
        # Clients of python-socketio close the WebSocket before they have sent that they disconnect. Status 1000 says
        # the same; a browser whose page is closed or loaded again sends 1001.
        if message.type is WSMsgType.CLOSE and message.data == WSCloseCode.OK:
            self.handler.__self__.said_goodbye = True
        raise OSError("closed")


class SessionEnded(KeyError):
    """The request is of a session that has ended."""


class EngineServer(engineio.AsyncServer):  # type: ignore[misc]
    """The library's server with bounded queues, and tasks that are ended with it."""

    def bound(self, on_full: Callable[[str], None], start: Callable[[Any, str], asyncio.Task[None]]) -> None:
        """Say what to do with a client whose queue is full, and how tasks are started."""
        self._on_full = on_full
        self._start = start
        self._async: dict[str, Any] = {**self._async, "websocket": KnownWebSocket}

    def create_queue(self, *_: Any, **__: Any) -> Outbox:
        """A client's queue. Its session is made before its id is known here, so the queue is its name."""
        box = Outbox(lambda: self._on_full_box(box))
        return box

    def _get_socket(self, sid: str) -> Any:
        try:
            return super()._get_socket(sid)
        except KeyError:
            raise SessionEnded(sid) from None

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Answer a request. Errors have the form of all errors."""
        try:
            return cast("web.StreamResponse", await super().handle_request(request))
        except (SessionEnded, UnboundLocalError):
            # The library has no answer if a session ends while it reads a request's packets.
            return _refusal(400, "The session has ended.").response()

    async def _make_response(self, response: dict[str, Any], environ: dict[str, Any]) -> web.Response:
        answer: web.Response = await super()._make_response(response, environ)
        if answer.status < 400:
            return answer
        try:
            message = json.loads(response["response"])
        except ValueError:
            message = ""
        refusal = _refusal(answer.status, message if isinstance(message, str) else "").response()
        if (origin := answer.headers.get("Access-Control-Allow-Origin")) is not None:
            refusal.headers["Access-Control-Allow-Origin"] = origin
        return refusal

    def _on_full_box(self, box: Outbox) -> None:
        for eio_sid, socket in self.sockets.items():
            if socket.queue is box:
                self._on_full(eio_sid)
                return

    def start_background_task(self, target: Any, *args: Any, **kwargs: Any) -> asyncio.Task[None]:
        """Start a task that ``SignalingServer.stop`` ends."""
        return self._start(target(*args, **kwargs), f"engine.io {target.__name__}")


def _refusal(status: int, message: str) -> ApiError:
    """What engine.io says of a request, in the form of all errors."""
    expected = "engine.io 4: a session that has not ended, or a new one without sid"
    return ApiError(status, "refused", printable(message) or "Refused.", where="request", expected=expected)
