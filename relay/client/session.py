"""The asyncio client of sessions (sub-protocol ``media.v1``, docs/media.v1.md): media through a relay, without TURN.

A whole call::

    def on_data(peer, packet): ...                       # SRTP from the other side

    async with await open_session(
        "wss://voice.firm.example/media", username=username, password=password, on_data=on_data, on_moved=tell_peer
    ) as session:
        tell_peer(session.relayed_address)               # by the application's own signaling
        await session.bind(peer)
        session.send(peer, packet)

A connection that is cut comes back by itself, within the ten seconds for which the relay keeps the allocation. What is
sent meanwhile is dropped, as a network would do. When the relay goes to another upstream, ``on_moved`` hears the new
relayed address. Channels stay as they are.

A relay that does not know the session is not the one that the client has left, or has been started anew. There the
session opens anew, with the same credentials, and binds the same channels. To the application that is a move like any
other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Callable
from dataclasses import replace

from relay import deadlines
from relay.addresses import Address, AddressFamily, canonical
from relay.client.application import ClosedOnExit, Ending, guarded
from relay.client.carriers import Endpoint, websocket_upgrade
from relay.client.connect import Proxy
from relay.client.links import MAX_DATA_BYTES
from relay.client.upgraded import SessionLink, WebSocketClosed
from relay.errors import UpstreamError
from relay.tasks import Tasks
from relay.wire import media_v1
from relay.wire.media_v1 import Bind, Bound, Failed, MediaV1Error, Moved, Open, Opened, Resume, Resumed

SUBPROTOCOL = "media.v1"
OPEN_TIMEOUT_S = 10.0
# A session whose close is not answered ends by itself.
CLOSE_TIMEOUT_S = 1.0
# Time between attempts to come back: a proxy that restarts is back soon, and the relay waits only ten seconds.
RETRY_S = 0.25
# What a relay answers to a token that it does not know.
NO_SUCH_TOKEN = 404
# Refusals that may be over in a moment: there is no upstream, the relay drains, or the user has too many calls. One of
# these may be this one: relays that share their state count the calls of a dead one for some seconds.
PASSING = frozenset({486, 503})

OnData = Callable[[Address, bytes], None]
OnMoved = Callable[[Address], None]


class SessionError(UpstreamError):
    """The relay has refused something. ``code`` is from its message, 0 if there was no answer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}" if code else reason)
        self.code = code
        self.reason = reason


class SessionRefused(SessionError, WebSocketClosed):
    """The relay has ended the session, and has said why: ``code`` and ``reason`` are from its message."""

    def __init__(self, refusal: SessionError, closed: WebSocketClosed) -> None:
        UpstreamError.__init__(self, f"{closed}: {refusal}")
        self.code = refusal.code
        self.reason = refusal.reason


def _ignore(peer: Address, data: bytes) -> None:
    """The default: does nothing with data."""


def _stay(relayed: Address) -> None:
    """The default: does nothing when the session moves."""


class Session(ClosedOnExit):
    """A session; ``open_session`` makes it.

    ``closed`` is done when it has ended: with None after ``close``, with an UpstreamError if the relay ended it, or if
    it could not come back in time. ``dropped`` counts media that was not sent, ``resumptions`` how often it came back,
    and ``reopenings`` how often it had to open anew for that. ``additional_address`` is the relayed IPv6 address, if
    both families were asked for and granted. Errors of ``on_data`` and ``on_moved`` are logged, and end nothing.
    """

    def __init__(self, endpoint: Endpoint, on_data: OnData, on_moved: OnMoved) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = Ending()
        self.relayed_address = Address("", 0)
        self.additional_address: Address | None = None
        self.mapped_address: Address | None = None
        self.upstream = ""
        self.dropped = 0
        self.resumptions = 0
        self.reopenings = 0
        self._endpoint = endpoint
        self._on_data = guarded(on_data, "on_data")
        self._on_moved = guarded(on_moved, "on_moved")
        # What it was opened with: another relay is asked for the same.
        self._asked = Open()
        self._token = ""
        self._resume_within_s = 0.0
        self._link: SessionLink | None = None
        self._channels: dict[Address, int] = {}
        self._peers: dict[int, Address] = {}
        # Channels that the allocation does not have yet, because it is a new one.
        self._unbound: set[Address] = set()
        # The relayed addresses that the application knows.
        self._told: tuple[Address, Address | None] | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[media_v1.RequestId, asyncio.Future[media_v1.RelayMessage]] = {}
        # Peers for which a channel has been asked: the relay must not bind others.
        self._wanted: set[Address] = set()
        # The last message of the relay, if that was an error that answers nothing: it may be why the session ends next.
        self._refusal: SessionError | None = None
        # Set while there is a connection that carries media.
        self._connected = asyncio.Event()
        self._tasks = Tasks()

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the session has ended. If several tasks wait for it with a timeout, they should shield it."""
        return self._ending.future

    # What a caller does

    async def bind(self, peer: Address, channel: int | None = None) -> int:
        """Bind a channel to the peer, a literal address. Returns its number. Raises SessionError, UpstreamError.

        While the connection is coming back it waits for that, all within ten seconds.
        """
        try:
            peer = canonical(peer)
        except ValueError as error:
            raise SessionError(0, f"bind: {error}") from error
        self._wanted.add(peer)
        try:
            async with deadlines.timeout(OPEN_TIMEOUT_S):
                await self._wait_connected()
                answer = await self._ask(lambda identity: Bind(peer, channel, identity))
        except TimeoutError:
            raise SessionError(0, f"bind: no answer within {OPEN_TIMEOUT_S:g} s") from None
        if not isinstance(answer, Bound):
            raise SessionError(0, "bind: the relay answered something else")
        return answer.channel

    def send(self, to: Address | int, data: bytes) -> None:
        """Send a datagram to a peer that is bound, or over its channel. Never waits.

        It is dropped and counted if there is no connection, if 64 KiB wait already, or if it has more than 2,000 bytes.
        Raises KeyError for a peer without a channel, or a channel without a peer.
        """
        channel = self._channel(to)
        if self._link is None or not self._connected.is_set() or len(data) > MAX_DATA_BYTES:
            self.dropped += 1
            return
        before = self._link.dropped
        self._link.send_media(media_v1.build_media(channel, data))
        self.dropped += self._link.dropped - before

    def _channel(self, to: Address | int) -> int:
        if isinstance(to, int):
            if to not in self._peers:
                raise KeyError(to)
            return to
        channel = self._channels.get(to)
        if channel is None:
            with contextlib.suppress(ValueError):
                to = canonical(to)
            channel = self._channels[to]
        return channel

    async def close(self) -> None:
        """Say that the call is over, and close. May be repeated."""
        link = self._link
        try:
            if link is not None and self._connected.is_set() and not self._ending.reached:
                with contextlib.suppress(UpstreamError, TimeoutError):
                    async with deadlines.timeout(CLOSE_TIMEOUT_S):
                        await self._ask(media_v1.Close)
        finally:
            self._end(None)
            await self._tasks.cancel()
            if link is not None:
                await link.wait_closed()

    # Opening and coming back

    async def open(self, username: str, password: str, region: str | None, family: AddressFamily | None = None) -> None:
        """Connect and have the relay allocate. Raises SessionError, UpstreamError."""
        self._asked = Open(username, password, region, None, family)
        link = await self._connect()
        try:
            async with deadlines.timeout(self._endpoint.timeout_s):
                await self._ask_to_open()
        except BaseException as error:
            self._end(None)
            await link.wait_closed()
            if isinstance(error, TimeoutError):
                raise SessionError(0, f"open: no answer within {self._endpoint.timeout_s:g} s") from None
            raise

    async def _connect(self) -> SessionLink:
        request, check = websocket_upgrade(self._endpoint, SUBPROTOCOL)
        link = await self._endpoint.open(lambda: SessionLink(request, check, self))
        if link.ended is not None:  # right after the 101, before it was ours: ``on_lost`` has not heard of it
            raise link.ended
        self._link = link
        return link

    async def _ask_to_open(self) -> Opened:
        answer = await self._ask(lambda identity: replace(self._asked, id=identity))
        if not isinstance(answer, Opened):
            raise SessionError(0, "open: the relay answered something else")
        return answer

    def _take(self, answer: Opened | Resumed) -> None:
        self._settle(answer)
        if isinstance(answer, Opened):
            self.mapped_address = answer.mapped
            self._unbound = set(self._channels)
        self._token, self._resume_within_s = answer.token, answer.resume_within_s
        if not self._unbound:
            self._go_on(answer)

    def _go_on(self, answer: Opened | Resumed) -> None:
        """The allocation has all channels: carry media."""
        if self._told is not None:
            self.resumptions += isinstance(answer, Resumed)
            self.reopenings += isinstance(answer, Opened)
        self._connected.set()
        self._tell_moved()

    def _settle(self, message: Opened | Resumed | Moved) -> None:
        """Take the addresses."""
        self.relayed_address, self.additional_address = message.relayed, message.additional
        self.upstream = message.upstream

    def _tell_moved(self) -> None:
        """Tell the application the relayed address, if it knows another one. Whoever opens a session asks for it."""
        before, self._told = self._told, (self.relayed_address, self.additional_address)
        if before not in {None, self._told}:
            self._on_moved(self.relayed_address)

    async def _return(self, cause: UpstreamError) -> None:
        """Come back with the token, before the relay gives the allocation up."""
        try:
            await self._try_to_return(cause)
        except Exception as error:
            self._end(UpstreamError(f"the connection was cut ({cause}), and not resumed: {error!r}"))
            raise

    async def _try_to_return(self, cause: UpstreamError) -> None:
        deadline = self._loop.time() + self._resume_within_s
        while self._loop.time() < deadline and not self._ending.reached:
            try:
                async with deadlines.timeout_at(deadline):
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
        try:
            answer = await self._ask(lambda identity: Resume(self._token, identity))
        except SessionError as error:
            if error.code != NO_SUCH_TOKEN or isinstance(error, WebSocketClosed):
                raise
            await self._open_anew()
            return
        if not isinstance(answer, Resumed):
            raise SessionError(0, "resume: the relay answered something else")
        await self._bind_again(answer)

    async def _open_anew(self) -> None:
        """Have a relay that does not know the session allocate, with the same channels.

        Raises UpstreamError if another attempt may succeed, SessionError if not.
        """
        try:
            answer = await self._ask_to_open()
        except SessionError as error:
            if error.code in PASSING:
                raise UpstreamError(f"open: {error}") from error
            raise
        await self._bind_again(answer)

    async def _bind_again(self, answer: Opened | Resumed) -> None:
        """Bind the channels that the allocation does not have. One that the relay refuses is given up."""
        if not self._unbound:
            return  # media flows already
        peers = sorted(self._unbound)
        for peer, bound in zip(peers, await asyncio.gather(*map(self._ask_again, peers)), strict=True):
            if not bound:
                self._forget_channel(peer)
        if self._link is None:  # it was lost with the last answer
            raise UpstreamError("the connection was cut")
        self._unbound.clear()
        self._go_on(answer)

    async def _ask_again(self, peer: Address) -> bool:
        try:
            await self._ask(lambda identity: Bind(peer, self._channels.get(peer), identity))
        except SessionError as error:
            if isinstance(error, WebSocketClosed):
                raise
            return False
        return True

    async def _wait_connected(self) -> None:
        """Raises UpstreamError if the session has ended, or ends meanwhile."""
        # ``_end`` sets it as well.
        await self._connected.wait()
        if self._ending.reached:
            raise SessionError(0, "the session is closed")

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
        """Take media. If nobody has bound its channel, it is ignored."""
        if self._ending.reached:
            return
        try:
            channel, data = media_v1.parse_media(payload)
        except MediaV1Error as error:
            self._fail(str(error))
            return
        if (peer := self._peers.get(channel)) is not None:
            self._on_data(peer, data)

    def on_text(self, text: str) -> None:
        """Take a control message."""
        if self._ending.reached:
            return
        try:
            message = media_v1.parse_relay_message(text)
        except MediaV1Error as error:
            self._fail(str(error))
            return
        self._refusal = None
        if isinstance(message, Moved):
            self._settle(message)
            if self._connected.is_set():
                self._tell_moved()
            return
        if isinstance(message, Bound):
            # This does not wait for a task to wake up: media may follow at once.
            self._on_bound(message)
        waiting = self._waiting.get(message.id)
        if isinstance(message, Failed):
            self._on_failed(message, waiting)
        elif waiting is not None and not waiting.done():
            if isinstance(message, Opened | Resumed) and not self._connected.is_set():
                # Nor does this: the next message may be in the same segment.
                self._take(message)
            waiting.set_result(message)

    def _on_bound(self, message: Bound) -> None:
        if message.peer not in self._wanted:
            return
        before = self._channels.get(message.peer)
        if before is not None:
            self._peers.pop(before, None)
        self._channels[message.peer], self._peers[message.channel] = message.channel, message.peer

    def _on_failed(self, message: Failed, waiting: asyncio.Future[media_v1.RelayMessage] | None) -> None:
        """Give the error to the request that it answers, or to the only one that waits. Else it may explain the end."""
        error = SessionError(message.code, message.reason)
        if waiting is None and message.peer is not None:
            # A channel that could not be renewed, or bound after a move.
            self._forget_channel(message.peer)
            return
        if waiting is None and len(self._waiting) == 1:
            (waiting,) = self._waiting.values()
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        else:
            self._refusal = error

    def _forget_channel(self, peer: Address) -> None:
        self._peers.pop(self._channels.pop(peer, 0), None)

    def _fail(self, cause: str) -> None:
        self._end(UpstreamError(f"the relay broke the protocol: {cause}"))

    def on_lost(self, link: SessionLink, error: UpstreamError) -> None:
        """The connection has ended: come back, unless the relay itself has closed it."""
        if link is not self._link or self._ending.reached:
            return
        if isinstance(error, WebSocketClosed) and self._refusal is not None:
            error = SessionRefused(self._refusal, error)
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
        if not self._ending.reach(error):
            return
        link, self._link = self._link, None
        # Wake the tasks that wait to bind; they will see that the session has ended.
        self._connected.set()
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
    family: AddressFamily | None = None,
    proxy: Proxy | str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    on_data: OnData = _ignore,
    on_moved: OnMoved = _stay,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> Session:
    """Open a session at ``url``, such as ``wss://voice.firm.example/media``, within ``timeout_s`` for each step.

    ``username`` and ``password`` are the TURN credentials that the vendor's signaling gives the client. ``on_data(peer,
    packet)`` is called as media arrives, ``on_moved(relayed)`` when the relayed address has changed. ``family`` asks
    for IPv6, or for both; without it the address is IPv4, or IPv6 if there is nothing else. ``proxy`` is a web proxy,
    such as ``http://user:password@proxy.firm.example:3128``. The system's certificates are trusted unless
    ``ssl_context`` says otherwise. Raises SessionError if the relay refuses, UpstreamError if it cannot be reached,
    ValueError for a bad URL.
    """
    endpoint = Endpoint.parse(
        url, ssl_context=ssl_context, server_hostname=server_hostname, proxy=proxy, timeout_s=timeout_s
    )
    session = Session(endpoint, on_data, on_moved)
    await session.open(username, password, region, family)
    return session
