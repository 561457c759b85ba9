"""The softphone's connection to a signaling server (python-socketio), which comes back by itself when it is cut.

Each connection is a new client of socket.io, so nothing of a broken one is left. Requests that wait when it breaks
fail at once. It tries to come back with growing pauses, for a bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import socketio
import structlog
from pydantic import ValidationError

from relay import deadlines
from relay.emulator.signaling.messages import (
    FROM_CLIENT,
    FROM_SERVER,
    Accepted,
    ConnectAuth,
    ErrorCode,
    ErrorInfo,
    Event,
    Refused,
    Welcome,
)
from relay.emulator.signaling.messages import SessionEnded as Ended
from relay.emulator.signaling.messages import SessionReplaced as Replaced
from relay.emulator.softphone.errors import (
    LoginRefused,
    SessionEnded,
    SessionReplaced,
    SignalingRefused,
    SoftphoneError,
    Unreachable,
)
from relay.tasks import Tasks

log = structlog.get_logger()

# When a floor of 1,000 logs in at once, the last welcome takes a while. A server that needs longer is hung.
CONNECT_TIMEOUT_S = 30.0
# The record of a call is on disk before the acknowledgement: milliseconds, or seconds in a storm.
ANSWER_TIMEOUT_S = 15.0
# Saying goodbye is a courtesy: the server notices a connection that is gone.
CLOSE_TIMEOUT_S = 2.0
# Pauses between attempts to come back: a blip is over at once, and a server that restarts must not be stormed.
MIN_PAUSE_S, MAX_PAUSE_S = 0.2, 5.0
# A server that is away for longer has lost the calls anyway.
RETURN_WITHIN_S = 60.0
# One user's actions. More at once is a mistake of the program.
MAX_WAITING = 256

_MODELS: dict[str, type[Event]] = {model.event: model for model in FROM_SERVER}
Answer = TypeVar("Answer", bound=Accepted)

# python-socketio would print its errors to stderr. What matters of them becomes an error here.
_SILENT = logging.getLogger("relay.emulator.softphone.socketio")
_SILENT.addHandler(logging.NullHandler())
_SILENT.setLevel(logging.CRITICAL + 1)
_SILENT.propagate = False


class Signaling:
    """``open`` it once, and ``close`` it. ``on_event`` hears each message, ``on_welcome`` each new connection's first.

    ``closed`` is done when it has ended for good: with None after ``close``, otherwise with a SoftphoneError.
    """

    def __init__(
        self,
        url: str,
        token: str,
        http: aiohttp.ClientSession,
        on_event: Callable[[Event], None],
        *,
        transports: tuple[str, ...] = ("websocket",),
        return_within_s: float = RETURN_WITHIN_S,
    ) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.malformed = 0
        self.returns = 0
        self._url = url
        self._auth = ConnectAuth(token=token).model_dump()
        self._http = http
        self._on_event = on_event
        self._transports = list(transports)
        self._return_within_s = return_within_s
        self._client: _Connection | None = None
        self._connected = asyncio.Event()
        self._tasks = Tasks()

    @property
    def is_connected(self) -> bool:
        """True while messages can be sent."""
        return self._client is not None and self._connected.is_set()

    async def open(self) -> None:
        """Connect, and wait for ``welcome``. Raises LoginRefused or Unreachable."""
        await self._connect()

    async def close(self) -> None:
        """Say goodbye, and end. May be repeated."""
        if not self.closed.done():
            self.closed.set_result(None)
        self._connected.set()
        try:
            await self._tasks.cancel()
        finally:
            client, self._client = self._client, None
            if client is not None:
                await client.close()

    async def ask(self, message: Event) -> Accepted:
        """Send a message, and wait for its acknowledgement. Raises SignalingRefused or Unreachable.

        While the connection is coming back it waits for that, within the same time.
        """
        if self.closed.done():
            raise Unreachable("signaling has ended")
        try:
            async with deadlines.timeout(ANSWER_TIMEOUT_S):
                await self._connected.wait()
                client = self._client
                if client is None:
                    raise Unreachable("signaling has ended")
                data = await client.ask(message)
        except TimeoutError:
            raise Unreachable(f"{message.event}: no answer within {ANSWER_TIMEOUT_S:g} s") from None
        return _answer(message, data)

    def cut(self) -> None:
        """Cut the connection, as a network would: for tests and load tests. It comes back by itself."""
        if self._client is not None:
            self._client.cut()

    # Coming and going

    async def _connect(self) -> None:
        client = _Connection(self._http, self._hear, self._on_lost)
        try:
            async with deadlines.timeout(CONNECT_TIMEOUT_S):
                await client.open(self._url, self._auth, self._transports)
        except TimeoutError:
            await client.close()
            raise Unreachable(f"signaling at {self._url}: no answer within {CONNECT_TIMEOUT_S:g} s") from None
        except BaseException:
            await client.close()
            raise
        if client.lost is not None:  # right after the welcome, before it was ours: ``_on_lost`` has not heard of it
            await client.close()
            raise client.lost
        self._client = client
        self._connected.set()

    def _on_lost(self, client: _Connection) -> None:
        if client is self._client and not self.closed.done():
            self._client = None
            self._connected.clear()
            self._tasks.start(self._return(client), "signaling returns")

    async def _return(self, lost: _Connection) -> None:
        await lost.close()
        pause_s = MIN_PAUSE_S
        error: SoftphoneError = Unreachable("the connection was cut")
        with contextlib.suppress(TimeoutError):
            async with deadlines.timeout(self._return_within_s):
                while True:
                    try:
                        await self._connect()
                    except Unreachable as failed:
                        error = failed
                    except SoftphoneError as refused:
                        self._end(refused)
                        return
                    else:
                        self.returns += 1
                        return
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
        self._end(Unreachable(f"signaling was cut, and did not come back within {self._return_within_s:g} s: {error}"))

    def _end(self, error: SoftphoneError) -> None:
        if not self.closed.done():
            self.closed.set_exception(error)
            # Nobody need ask for it.
            self.closed.exception()
            self._connected.set()

    def _hear(self, event: str, data: object) -> None:
        try:
            message = _MODELS[event].model_validate(data)
        except ValidationError as error:
            self.malformed += 1
            log.warning(
                "message of the server is malformed", softphone_event=event, error=str(error.errors()[0]["msg"])
            )
            return
        if isinstance(message, Replaced):
            self._end(SessionReplaced())
        elif isinstance(message, Ended):
            self._end(SessionEnded(message.reason))
        self._on_event(message)


def _answer(message: Event, data: object) -> Accepted:
    try:
        if isinstance(data, dict) and data.get("ok") is False:
            error = Refused.model_validate(data).error
            raise SignalingRefused(error.code, error.message, error.expected)
        return FROM_CLIENT[type(message)].model_validate(data)
    except ValidationError as error:
        raise Unreachable(f"{message.event}: the server's answer is malformed: {error.errors()[0]['msg']}") from None


class _Connection:
    """One connection of socket.io, from its first packet until it is lost or closed."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        hear: Callable[[str, object], None],
        on_lost: Callable[[_Connection], None],
    ) -> None:
        self._socketio: Any = socketio.AsyncClient(
            reconnection=False,
            logger=_SILENT,
            engineio_logger=_SILENT,
            handle_sigint=False,
            http_session=http,
            request_timeout=CLOSE_TIMEOUT_S,
        )
        self._hear = hear
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._welcomed: asyncio.Future[None] = self._loop.create_future()
        self._waiting: set[asyncio.Future[object]] = set()
        self._refusal: object = None
        self.lost: Unreachable | None = None
        for name in _MODELS:
            self._socketio.on(name, self._handler(name))
        self._socketio.on("connect_error", self._on_refused)
        self._socketio.on("disconnect", self._on_disconnect)

    def _handler(self, name: str) -> Callable[[object], None]:
        def handle(data: object = None) -> None:
            self._hear(name, data)
            if name == Welcome.event and not self._welcomed.done():
                self._welcomed.set_result(None)

        return handle

    async def open(self, url: str, auth: dict[str, Any], transports: list[str]) -> None:
        """Connect, and wait for the first message. Raises LoginRefused or Unreachable."""
        try:
            await self._socketio.connect(
                url, auth=auth, transports=transports, namespaces=["/"], wait_timeout=CONNECT_TIMEOUT_S
            )
        except (socketio.exceptions.ConnectionError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._explained(url, error) from error
        await self._welcomed

    def _explained(self, url: str, error: Exception) -> SoftphoneError:
        try:
            info = ErrorInfo.model_validate(self._refusal)
        except ValidationError:
            return Unreachable(f"signaling at {url}: {self._refusal or error}")
        if info.code is ErrorCode.NOT_LOGGED_IN:
            return LoginRefused(f"signaling at {url}: {info.message}")
        return Unreachable(f"signaling at {url}: {info.message} Expected: {info.expected}")

    def _on_refused(self, data: object = None) -> None:
        self._refusal = data

    async def ask(self, message: Event) -> object:
        """The acknowledgement, as it came. Raises Unreachable if the connection is lost before."""
        if len(self._waiting) >= MAX_WAITING:
            raise Unreachable(f"{MAX_WAITING} messages wait for an answer")
        answer: asyncio.Future[object] = self._loop.create_future()
        self._waiting.add(answer)

        def settle(data: object = None) -> None:
            if not answer.done():
                answer.set_result(data)

        data = message.model_dump(mode="json", by_alias=True, exclude_none=True)
        try:
            await self._socketio.emit(message.event, data, callback=settle)
            return await answer
        except socketio.exceptions.SocketIOError as error:
            raise Unreachable(f"{message.event}: {error}") from error
        finally:
            self._waiting.discard(answer)

    def _on_disconnect(self, reason: object = None) -> None:
        lost = self.lost = Unreachable(f"the connection to signaling was lost: {reason}")
        if not self._welcomed.done():
            self._welcomed.set_exception(lost)
            self._welcomed.exception()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(lost)
        self._on_lost(self)

    def cut(self) -> None:
        """Cut TCP, in both directions. Polling has no connection to cut."""
        if self._socketio.eio.ws is not None:
            # The event loop owns the socket. A second descriptor of it can be shut down all the same.
            descriptor = os.dup(self._socketio.eio.ws.get_extra_info("socket").fileno())
            with socket.socket(fileno=descriptor) as tcp, contextlib.suppress(OSError):
                tcp.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Say goodbye if there is anyone to hear it, and end what python-socketio has started."""
        engine = self._socketio.eio
        try:
            with contextlib.suppress(TimeoutError, OSError, aiohttp.ClientError, socketio.exceptions.SocketIOError):
                async with deadlines.timeout(CLOSE_TIMEOUT_S):
                    await self._socketio.disconnect()
        finally:
            if engine.ws is not None and not engine.ws.closed:
                with contextlib.suppress(TimeoutError, OSError, aiohttp.ClientError):
                    async with deadlines.timeout(CLOSE_TIMEOUT_S):
                        await engine.ws.close()
            running = [task for task in (engine.read_loop_task, engine.write_loop_task) if task is not None]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
