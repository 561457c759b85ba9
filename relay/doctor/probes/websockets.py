"""WebSockets through whatever is on the way: are they opened, and do frames pass in both directions, at once?

A proxy may answer 101 and swallow what follows, or hold it back until a buffer of some KiB is full. So a question is
asked whose answer is known. If none comes, pings fill both directions: an answer that comes only then was held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from relay import deadlines
from relay.client.carriers import Check, Endpoint, websocket_upgrade
from relay.client.connect import Proxy
from relay.client.upgraded import WebSocketLink
from relay.doctor.failures import failure_of
from relay.doctor.plan import Site
from relay.doctor.probes.context import Context
from relay.doctor.probes.sites import Server, handshake
from relay.doctor.seen import Failure, Frames, PollingSeen, Step, WebSocketSeen, way_name
from relay.errors import UpstreamError
from relay.wire.stun import TRANSACTION_ID_BYTES, MessageClass, Method, build_message
from relay.wire.upgrade import Response, UpgradeError, check_upgrade
from relay.wire.websocket import MAX_CONTROL_BYTES, Opcode

# Engine.IO 4, as socket.io 3 and later have it.
ENGINE_IO = "/socket.io/?EIO=4&transport="
# The first packet of engine.io, and what begins a session of socket.io.
OPEN_PACKET, CONNECT_PACKET = "0", "40"
# Buffers of proxies that hold frames back have 4 KiB, seldom more. The answers to pings fill the way back.
FILLING_PINGS = 150
# Nobody sends more before it is asked again.
MAX_MESSAGES = 64

Message = str | bytes


class Talk(WebSocketLink):
    """A WebSocket whose messages are waited for."""

    def __init__(self, request: bytes, check: Check) -> None:
        super().__init__(request, check, self._on_gone)
        self._messages: asyncio.Queue[Message] = asyncio.Queue(MAX_MESSAGES)

    def _on_gone(self, error: UpstreamError) -> None:
        """Nobody else is to be told: ``ended`` has it."""

    def _look_again(self, within_s: float) -> None:
        """No watch for silence: how long it may last is decided here."""

    def _on_text(self, text: str) -> None:
        self._put(text)

    def _on_binary(self, payload: bytes) -> None:
        self._put(payload)

    def _put(self, message: Message) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._messages.put_nowait(message)

    @property
    def heard(self) -> bool:
        """Whether any frame came, be it a pong."""
        return self._heard_frames

    def say(self, message: Message) -> None:
        """Send a message."""
        opcode, payload = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
        self._send_frame(opcode, payload)

    def fill(self) -> None:
        """Fill the buffers of both directions with pings and the answers to them."""
        for _ in range(FILLING_PINGS):
            self._send_frame(Opcode.PING, secrets.token_bytes(MAX_CONTROL_BYTES))

    async def next(self, timeout_s: float) -> Message | None:
        """The next message, or None if none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(timeout_s):
                return await self._messages.get()
        return None


async def socket_io(context: Context, site: Site, proxy: Proxy | None) -> WebSocketSeen:
    """socket.io by WebSocket: the server speaks first, and answers a Connect."""
    server = Server(context.server_of(site, proxy), site.name, proxy)
    endpoint = _endpoint(context, server, f"{ENGINE_IO}websocket")
    return await _converse(context, site.name, endpoint, _engine_io_upgrade, CONNECT_PACKET, speaks_first=True)


async def relay_turn(context: Context, proxy: Proxy | None) -> WebSocketSeen:
    """The relay's own WebSocket: a Binding is answered by the upstream, without credentials."""
    relay = context.plan.relay
    assert relay is not None
    endpoint = _endpoint(context, Server(context.relay_server(proxy), relay.name, proxy), "/turn")
    question = build_message(Method.BINDING, MessageClass.REQUEST, secrets.token_bytes(TRANSACTION_ID_BYTES))
    return await _converse(
        context, relay.label, endpoint, lambda to: websocket_upgrade(to, "turn"), question, speaks_first=False
    )


def _endpoint(context: Context, server: Server, target: str) -> Endpoint:
    limits = context.plan.limits
    return Endpoint(server.address, target, context.plan.trust, server.name, server.proxy, limits.probe_s)


def _engine_io_upgrade(endpoint: Endpoint) -> tuple[bytes, Check]:
    """The request without a sub-protocol, which socket.io has not."""
    request, _ = websocket_upgrade(endpoint, "")
    lines = [line for line in request.split(b"\r\n") if not line.lower().startswith(b"sec-websocket-protocol:")]

    def check(response: Response) -> None:
        check_upgrade(response, "websocket")
        if response.headers.get("sec-websocket-extensions"):
            raise UpgradeError("an extension that was not asked for", 101)

    return b"\r\n".join(lines), check


async def _converse(
    context: Context,
    site: str,
    endpoint: Endpoint,
    upgrade: Callable[[Endpoint], tuple[bytes, Check]],
    question: Message,
    *,
    speaks_first: bool,
) -> WebSocketSeen:
    way = way_name(endpoint.proxy)
    request, check = upgrade(endpoint)
    async with context.slots:
        try:
            talk = await endpoint.open(lambda: Talk(request, check))
        except UpstreamError as error:
            return WebSocketSeen(site, way, failure_of(error, Step.UPGRADE))
        try:
            frames = await _frames(talk, question, context.plan.limits.answer_s, speaks_first=speaks_first)
        finally:
            talk.abort()
            await talk.wait_closed()
    return WebSocketSeen(site, way, None, frames)


async def _frames(talk: Talk, question: Message, answer_s: float, *, speaks_first: bool) -> Frames:
    """What becomes of frames: first those of a server that speaks first, then the question and its answer."""
    if speaks_first:
        came = await _heard(talk, answer_s)
        if came is not Frames.BOTH_WAYS:
            return came
    talk.say(question)
    came = await _heard(talk, answer_s)
    return Frames.UP_SWALLOWED if came is Frames.SWALLOWED and speaks_first else came


async def _heard(talk: Talk, answer_s: float) -> Frames:
    if await talk.next(answer_s) is not None:
        return Frames.BOTH_WAYS
    talk.fill()
    return Frames.BUFFERED if await talk.next(answer_s) is not None or talk.heard else Frames.SWALLOWED


async def polling(context: Context, site: Site, proxy: Proxy | None) -> PollingSeen:
    """The first poll of socket.io, which a server answers at once."""
    way = way_name(proxy)
    server = Server(context.server_of(site, proxy), site.name, proxy)
    async with context.slots:
        stream, _, failure = await handshake(context, server)
        if stream is None:
            return PollingSeen(site.name, way, failure)
        try:
            async with deadlines.timeout(context.plan.limits.probe_s):
                answer = await stream.get(f"{ENGINE_IO}polling", site.name)
        except (UpstreamError, TimeoutError) as error:
            return PollingSeen(site.name, way, Failure(Step.HTTP, str(error) or "no answer to a poll"))
        finally:
            stream.close()
    status = answer.head.status
    if status != 200 or not answer.body.startswith(OPEN_PACKET.encode()):
        return PollingSeen(site.name, way, Failure(Step.HTTP, f"answered {status}, which is not socket.io", status))
    return PollingSeen(site.name, way, None)
