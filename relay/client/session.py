"""The asyncio client of sessions (sub-protocol ``media.v1``, docs/media.v1.md): media through a relay, without TURN.

A call, whole::

    def on_data(peer, packet): ...                       # SRTP from the other side

    async with await open_session(
        "wss://voice.firm.example/media", username=username, password=password, on_data=on_data, on_moved=tell_peer
    ) as session:
        tell_peer(session.relayed_address)               # by the application's own signaling
        await session.bind(peer)
        session.send(peer, packet)

A connection that is cut comes back by itself within the ten seconds that the relay keeps the allocation for; what is
sent meanwhile is dropped, as a network would. When the relay goes to another upstream, ``on_moved`` hears the new
relayed address; channels stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self

from relay.addresses import Address
from relay.client.carriers import Endpoint, websocket_upgrade
from relay.client.connect import Proxy
from relay.client.upgraded import SessionLink, WebSocketClosed
from relay.errors import UpstreamError
from relay.tasks import Tasks
from relay.wire import media_v1
from relay.wire.media_v1 import Bind, Bound, Failed, MediaV1Error, Moved, Open, Opened, Resume, Resumed

SUBPROTOCOL = "media.v1"
OPEN_TIMEOUT_S = 10.0
# A session that is not closed in order ends by itself.
CLOSE_TIMEOUT_S = 1.0
# Between attempts to come back: a proxy that restarts is there again soon, and the relay's ten seconds run.
RETRY_S = 0.25

OnData = Callable[[Address, bytes], None]
OnMoved = Callable[[Address], None]


class SessionError(UpstreamError):
    """The relay has refused something; ``code`` is that of its message, 0 if there was no answer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}" if code else reason)
        self.code = code
        self.reason = reason


def _ignore(peer: Address, data: bytes) -> None:
    """Nobody asked for data."""


def _stay(relayed: Address) -> None:
    """Nobody asked where it moved."""


class Session:
    """A session; made by ``open_session``.

    ``closed`` is done when it has ended: with None by ``close``, with an UpstreamError when the relay ended it, or when
    it could not come back in time. ``dropped`` counts media that was not sent. ``resumptions`` counts returns.
    """

    def __init__(self, endpoint: Endpoint, on_data: OnData, on_moved: OnMoved) -> None:
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.relayed_address = Address("", 0)
        self.mapped_address: Address | None = None
        self.upstream = ""
        self.dropped = 0
        self.resumptions = 0
        self._endpoint = endpoint
        self._on_data = on_data
        self._on_moved = on_moved
        self._token = ""
        self._resume_within_s = 0.0
        self._link: SessionLink | None = None
        self._channels: dict[Address, int] = {}
        self._peers: dict[int, Address] = {}
        self._ids = itertools.count(1)
        self._waiting: dict[media_v1.RequestId, asyncio.Future[media_v1.RelayMessage]] = {}
        # Set while there is a connection that carries media.
        self._connected = asyncio.Event()
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What a caller does

    async def bind(self, peer: Address, channel: int | None = None) -> int:
        """Bind a channel to the peer, a literal address; its number. Raises SessionError, UpstreamError.

        It waits for a connection that is coming back, all within ten seconds.
        """
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._wait_connected()
                answer = await self._ask(lambda identity: Bind(peer, channel, identity))
        except TimeoutError:
            raise SessionError(0, f"bind: no answer within {OPEN_TIMEOUT_S:g} s") from None
        if not isinstance(answer, Bound):
            raise SessionError(0, "bind: the relay answered something else")
        return answer.channel

    def send(self, to: Address | int, data: bytes) -> None:
        """Send a datagram to a peer that is bound, or over a channel. Never waits: what cannot go is dropped.

        Raises KeyError for a peer without a channel.
        """
        channel = to if isinstance(to, int) else self._channels[to]
        if self._link is None or not self._connected.is_set():
            self.dropped += 1
            return
        before = self._link.dropped
        self._link.send_media(media_v1.build_media(channel, data))
        self.dropped += self._link.dropped - before

    async def close(self) -> None:
        """Say that the call is over, and close. May be repeated."""
        link = self._link
        try:
            if link is not None and self._connected.is_set() and not self.closed.done():
                with contextlib.suppress(UpstreamError, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._ask(media_v1.Close)
        finally:
            self._end(None)
            await self._tasks.cancel()
            if link is not None:
                await link.wait_closed()

    # Opening and coming back

    async def open(self, username: str, password: str, region: str | None) -> None:
        """Connect and have the relay allocate. Raises SessionError, UpstreamError."""
        link = await self._connect()
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                answer = await self._ask(lambda identity: Open(username, password, region, identity))
            if not isinstance(answer, Opened):
                raise SessionError(0, "open: the relay answered something else")
        except BaseException as error:
            self._end(None)
            await link.wait_closed()
            if isinstance(error, TimeoutError):
                raise SessionError(0, f"open: no answer within {self._endpoint.timeout_s:g} s") from None
            raise
        self.mapped_address = answer.mapped
        self._take(answer)

    async def _connect(self) -> SessionLink:
        request, check = websocket_upgrade(self._endpoint, SUBPROTOCOL)
        link = await self._endpoint.open(lambda: SessionLink(request, check, self))
        if link.ended is not None:  # right behind the 101, before it was ours: ``on_lost`` has not heard of it
            raise link.ended
        self._link = link
        return link

    def _take(self, answer: Opened | Resumed) -> None:
        self.relayed_address, self.upstream = answer.relayed, answer.upstream
        self._token, self._resume_within_s = answer.token, answer.resume_within_s
        self._connected.set()

    async def _return(self, cause: UpstreamError) -> None:
        """Come back with the token, before the relay gives the allocation up."""
        deadline = self._loop.time() + self._resume_within_s
        while self._loop.time() < deadline:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._resume()
                return
            except SessionError as error:
                self._end(SessionError(error.code, f"the connection was cut ({cause}), and not resumed: {error}"))
                return
            except (UpstreamError, TimeoutError) as error:
                cause = error if isinstance(error, UpstreamError) else cause
                self._let_go()
            await asyncio.sleep(min(RETRY_S, max(0.0, deadline - self._loop.time())))
        self._end(UpstreamError(f"the connection was cut, and not resumed within {self._resume_within_s:g} s: {cause}"))

    async def _resume(self) -> None:
        await self._connect()
        answer = await self._ask(lambda identity: Resume(self._token, identity))
        if not isinstance(answer, Resumed):
            raise SessionError(0, "resume: the relay answered something else")
        moved = answer.relayed != self.relayed_address
        self.resumptions += 1
        self._take(answer)
        if moved:
            self._on_moved(answer.relayed)

    async def _wait_connected(self) -> None:
        """Raises UpstreamError if the session has ended, or ends meanwhile."""
        if self.closed.done():
            raise SessionError(0, "the session is closed")
        connected = self._tasks.start(self._until_connected(), "connected")
        await asyncio.wait([connected, self.closed], return_when=asyncio.FIRST_COMPLETED)
        connected.cancel()
        if self.closed.done():
            raise SessionError(0, "the session is closed")

    async def _until_connected(self) -> None:
        await self._connected.wait()

    async def _ask(self, message: Callable[[int], media_v1.ClientMessage]) -> media_v1.RelayMessage:
        """The answer to a message. Raises SessionError if it is a refusal, UpstreamError if the link is lost."""
        if self._link is None:
            raise UpstreamError("the connection was cut")
        identity = next(self._ids)
        answer: asyncio.Future[media_v1.RelayMessage] = self._loop.create_future()
        self._waiting[identity] = answer
        self._link.send_text(media_v1.build_control(message(identity)))
        try:
            return await answer
        finally:
            del self._waiting[identity]

    # What the link tells

    def on_binary(self, payload: bytes) -> None:
        """Take media; of a channel that nobody bound it is ignored."""
        try:
            channel, data = media_v1.parse_media(payload)
        except MediaV1Error as error:
            self._fail(str(error))
            return
        if (peer := self._peers.get(channel)) is not None:
            self._on_data(peer, data)

    def on_text(self, text: str) -> None:
        """Take a control message."""
        try:
            message = media_v1.parse_relay_message(text)
        except MediaV1Error as error:
            self._fail(str(error))
            return
        if isinstance(message, Bound):
            # Before anybody waits: media may be right behind it.
            self._channels[message.peer], self._peers[message.channel] = message.channel, message.peer
        elif isinstance(message, Moved):
            self.relayed_address, self.upstream = message.relayed, message.upstream
            self._on_moved(message.relayed)
            return
        waiting = self._waiting.get(message.id)
        if isinstance(message, Failed):
            self._on_failed(message, waiting)
        elif waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _on_failed(self, message: Failed, waiting: asyncio.Future[media_v1.RelayMessage] | None) -> None:
        error = SessionError(message.code, message.reason)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        elif message.peer is not None:
            # A channel that could not be renewed, or bound after a move.
            self._peers.pop(self._channels.pop(message.peer, 0), None)

    def _fail(self, cause: str) -> None:
        self._end(UpstreamError(f"the relay broke the protocol: {cause}"))

    def on_lost(self, link: SessionLink, error: UpstreamError) -> None:
        """The connection has ended: come back, unless the relay itself has closed it."""
        if link is not self._link or self.closed.done():
            return
        was_connected = self._connected.is_set()
        self._let_go()
        for waiting in list(self._waiting.values()):
            if not waiting.done():
                waiting.set_exception(error)
        if isinstance(error, WebSocketClosed) and (was_connected or not self._token):
            self._end(error)
        elif was_connected:
            self._tasks.start(self._return(error), "resume")

    def _let_go(self) -> None:
        link, self._link = self._link, None
        self._connected.clear()
        if link is not None:
            link.abort()

    def _end(self, error: UpstreamError | None) -> None:
        if self.closed.done():
            return
        link = self._link
        self._connected.clear()
        if error is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(error)
            # Who does not ask how it ended must not be told by a warning.
            self.closed.exception()
        for waiting in list(self._waiting.values()):
            if not waiting.done():
                waiting.set_exception(error or SessionError(0, "the session is closed"))
        if link is not None:
            link.close()


async def open_session(
    url: str,
    *,
    username: str = "",
    password: str = "",
    region: str | None = None,
    proxy: Proxy | str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    on_data: OnData = _ignore,
    on_moved: OnMoved = _stay,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> Session:
    """Open a session at ``url``, such as ``wss://voice.firm.example/media``, within ``timeout_s`` for each step.

    ``username`` and ``password`` are the TURN credentials that the vendor's signaling gives the client. ``on_data(peer,
    packet)`` is called as media arrives, ``on_moved(relayed)`` when the relayed address has become another. ``proxy``
    is a web proxy, such as ``http://user:password@proxy.firm.example:3128``. The system's certificates are trusted
    unless ``ssl_context`` says other. Raises SessionError if the relay refuses, UpstreamError if it cannot be reached,
    ValueError for a URL that is none.
    """
    endpoint = Endpoint.parse(
        url, ssl_context=ssl_context, server_hostname=server_hostname, proxy=proxy, timeout_s=timeout_s
    )
    session = Session(endpoint, on_data, on_moved)
    await session.open(username, password, region)
    return session
