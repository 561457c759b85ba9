"""The asyncio TURN client: requests are awaited, data is sent at once and received by callback.

A whole probe::

    async with await open_turn_udp(server, username, password) as turn:
        mapped = await turn.binding()
        relayed = await turn.allocate()

``relay.turn.client`` decides, and this module carries: its messages to a link, its deadlines to a timer, its events
to the tasks that await them. The allocation, its permissions and its channels are renewed until ``close``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable

from relay.addresses import Address, AddressFamily, canonical
from relay.client.application import ClosedOnExit, Ending, guarded
from relay.client.connect import Proxy, as_proxy
from relay.client.links import MAX_DATA_BYTES, Link, UdpLink, open_tls_link, open_udp_link
from relay.client.requests import AwaitedRequests, TurnRequestError
from relay.errors import UpstreamError
from relay.timer import DeadlineTimer
from relay.turn.client import MAX_PEERS_PER_RENEWAL, TurnClient
from relay.turn.events import (
    AllocationCreated,
    AllocationRefreshed,
    BindingDone,
    ChannelBound,
    DataReceived,
    Event,
    PermissionsCreated,
    RequestFailed,
)
from relay.turn.transactions import RTO_S
from relay.wire.stun import Method

OnData = Callable[[Address, bytes], None]

# A request is sent at 0, 0.5, 1.5, 3.5 and 7.5 s (RFC 8489 section 6.2.1). A server that has answered none of them
# within 10 s is gone, and nobody wants to wait for the 39.5 s after which the RFC gives up.
REQUEST_TIMEOUT_S = 10.0
# Releasing is a courtesy: an allocation that is not released ends by itself.
RELEASE_TIMEOUT_S = 1.0


def _ignore(peer: Address, data: bytes) -> None:
    """The default: does nothing with data."""


class TurnConnection(ClosedOnExit):
    """One 5-tuple towards one TURN server; ``open_turn_udp`` and ``open_turn_tls`` make it.

    ``closed`` is done when the connection has ended: with None after ``close``, with an UpstreamError if the server
    closed it, broke its framing, or dropped the allocation. Requests raise TurnRequestError. Errors of ``on_data`` are
    logged, and end nothing.
    """

    def __init__(self, client: TurnClient, on_data: OnData, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = Ending()
        self._client = client
        self._on_data = guarded(on_data, "on_data")
        self._not_sent = 0
        self._timeout_s = timeout_s
        self._timer = DeadlineTimer(self._on_deadline)
        self._awaited = AwaitedRequests()
        self._link: Link

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the connection has ended. If several tasks wait for it with a timeout, they should shield it."""
        return self._ending.future

    @property
    def local_address(self) -> Address:
        """Our end of the connection."""
        return self._link.local_address

    @property
    def relayed_address(self) -> Address | None:
        """The relayed address, while there is an allocation."""
        return self._client.relayed_address

    @property
    def additional_address(self) -> Address | None:
        """The relayed IPv6 address, if both families were asked for and granted."""
        return self._client.additional_address

    @property
    def dropped(self) -> int:
        """Messages for which the socket had no room (UDP), and data beyond the backlog (TLS), or not fit to be sent."""
        return self._link.dropped + self._not_sent

    @property
    def not_sent(self) -> OSError | None:
        """Why our own machine did not send the last message; None if it did, or if that is not known (TLS)."""
        return self._link.not_sent

    # Requests

    async def binding(self) -> Address | None:
        """Our address as the server sees it (RFC 8489 section 2). None if the answer does not have it."""
        event = await self._request(Method.BINDING, (), lambda: self._client.bind(self._loop.time()))
        assert isinstance(event, BindingDone)
        return event.mapped_address

    async def allocate(
        self, attributes: tuple[tuple[int, bytes], ...] = (), family: AddressFamily | None = None
    ) -> Address:
        """The relayed address of a new allocation (RFC 8656 section 7); ``attributes`` are added to the request.

        Without a ``family`` it is IPv4, or IPv6 if the server has nothing else. With BOTH, ``additional_address`` is
        the second one, which a server need not grant.
        """
        start = self._client.allocate
        event = await self._request(Method.ALLOCATE, (), lambda: start(self._loop.time(), attributes, family))
        assert isinstance(event, AllocationCreated)
        return event.relayed_address

    async def refresh(self, lifetime_s: int | None = None) -> int:
        """Renew the allocation for ``lifetime_s``; 0 releases it. Returns the lifetime that is granted, in seconds."""
        event = await self._request(Method.REFRESH, (), lambda: self._client.refresh(self._loop.time(), lifetime_s))
        assert isinstance(event, AllocationRefreshed)
        return event.lifetime_s

    async def create_permission(self, *peers: Address) -> None:
        """Let datagrams from these peers' addresses pass; their ports do not matter (RFC 8656 section 10).

        More than 32 peers take several requests, because a request must fit into a packet.
        """
        for first in range(0, len(peers) or 1, MAX_PEERS_PER_RENEWAL):
            await self._permit(_literal(Method.CREATE_PERMISSION, *peers[first : first + MAX_PEERS_PER_RENEWAL]))

    async def _permit(self, peers: tuple[Address, ...]) -> None:
        start = self._client.create_permission
        await self._request(Method.CREATE_PERMISSION, peers, lambda: start(self._loop.time(), *peers))

    async def bind_channel(self, peer: Address) -> int:
        """Bind a channel to the peer, which also permits it (RFC 8656 section 12). Returns the channel's number."""
        start = self._client.bind_channel
        (peer,) = _literal(Method.CHANNEL_BIND, peer)
        event = await self._request(Method.CHANNEL_BIND, (peer,), lambda: start(self._loop.time(), peer))
        assert isinstance(event, ChannelBound)
        return event.channel_number

    async def _request(
        self, method: Method, peers: tuple[Address, ...], start: Callable[[], None], timeout_s: float | None = None
    ) -> Event:
        if self._ending.reached:
            raise TurnRequestError(method, 0, "the connection is closed")
        key = (method, peers)
        try:
            start()
        except (ValueError, OverflowError, struct.error) as error:
            raise TurnRequestError(method, 0, str(error)) from error
        answer = self._awaited.add(key)
        self._flush()
        try:
            return await self._awaited.wait(key, answer, self._timeout_s if timeout_s is None else timeout_s)
        except TurnRequestError as error:
            unanswered = not error.answered and error.__cause__ is None
            if unanswered and (not_sent := self._link.not_sent) is not None:
                # The server was not even asked. The cause tells callers that they must not blame it.
                reason = f"our own machine did not send: {not_sent.strerror}"
                raise TurnRequestError(method, 0, reason) from not_sent
            refusal = self._client.unproven_refusal(method, peers)
            if error.code or refusal is None:
                raise
            raise TurnRequestError(method, refusal.code, refusal.reason) from error

    # Data

    def send(self, peer: Address, data: bytes) -> None:
        """Send a datagram to the peer, as ChannelData if a channel is bound. Never waits, and raises nothing.

        On every carrier alike, it is dropped and counted if it has more than 2,000 bytes, if 64 KiB wait already, or if
        the peer is not a literal address.
        """
        try:
            message = None if len(data) > MAX_DATA_BYTES else self._client.send_data(peer, data)
        except ValueError:
            message = None
        if message is None:
            self._not_sent += 1
        else:
            self._link.send_data(message)

    # What the link tells

    def on_opened(self, link: Link) -> None:
        """The link is open."""
        self._link = link

    def on_message(self, message: bytes) -> None:
        """Take one whole message from the server."""
        if self._ending.reached:
            return
        events = self._client.receive(self._loop.time(), message)
        if len(events) == 1 and isinstance(events[0], DataReceived):
            self._on_data(events[0].peer, events[0].data)
            return
        self._dispatch(events)

    def on_unreachable(self, error: OSError) -> None:
        """Raise TurnRequestError, from the OSError, in all that wait for an answer: they need not wait any longer."""
        self._awaited.fail_all(f"the server cannot be reached: {error.strerror}", error)

    def on_lost(self, error: UpstreamError) -> None:
        """The link has ended. A relay that refuses has said why before, without a key to sign it with."""
        refusal = self._client.unproven_refusal(Method.ALLOCATE)
        told = None if refusal is None else TurnRequestError(Method.ALLOCATE, refusal.code, refusal.reason)
        self._end(told or error)

    # Events, messages and time

    def _on_deadline(self, now: float) -> None:
        self._dispatch(self._client.on_deadline(now))

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            self._on_event(event)
        if not self._ending.reached:
            self._flush()

    def _flush(self) -> None:
        for message in self._client.take_messages():
            self._link.send(message)
        self._timer.set(self._client.next_deadline())

    def _on_event(self, event: Event) -> None:
        match event:
            case BindingDone():
                self._awaited.answer((Method.BINDING, ()), event)
            case AllocationCreated():
                self._awaited.answer((Method.ALLOCATE, ()), event)
            case AllocationRefreshed():
                self._awaited.answer((Method.REFRESH, ()), event)
            case PermissionsCreated():
                self._awaited.answer((Method.CREATE_PERMISSION, event.peers), event)
            case ChannelBound():
                self._awaited.answer((Method.CHANNEL_BIND, (event.peer,)), event)
            case DataReceived():
                self._on_data(event.peer, event.data)
            case RequestFailed():
                self._on_failed(event)

    def _on_failed(self, event: RequestFailed) -> None:
        key = (event.method, event.peers)
        if key not in self._awaited and event.method == Method.REFRESH:
            # One of our own renewals has failed, so the allocation ends. Nobody would hear of it otherwise.
            self._end(TurnRequestError(event.method, event.code, event.reason))
        self._awaited.fail(event)

    # The end

    async def close(self, *, release: bool = True) -> None:
        """Release the allocation (Refresh with lifetime 0, unless ``release`` is false) and close. May be repeated."""
        try:
            if release and not self._ending.reached:
                await self._release()
        finally:
            self._end(None)
            await self._link.wait_closed()

    async def _release(self) -> None:
        """Release the allocation. If only an unanswered Allocate may have made one, the release is sent, and no more:
        a server that is late already is not waited for.
        """
        if self.relayed_address is None:
            self._client.release(self._loop.time())
            self._flush()
            return
        with contextlib.suppress(UpstreamError):
            start = self._client.release
            await self._request(Method.REFRESH, (), lambda: start(self._loop.time()), RELEASE_TIMEOUT_S)

    def _end(self, error: UpstreamError | None) -> None:
        if not self._ending.reach(error):
            return
        self._timer.cancel()
        self._link.close()
        self._awaited.fail_all("the connection was closed" if error is None else str(error), error)


def _literal(method: Method, *peers: Address) -> tuple[Address, ...]:
    """The peers in the form in which they are compared. Raises TurnRequestError for one that is not an address."""
    try:
        return tuple(map(canonical, peers))
    except ValueError as error:
        raise TurnRequestError(method, 0, str(error)) from error


async def open_turn_udp(
    server: Address,
    username: str = "",
    password: str = "",
    *,
    on_data: OnData = _ignore,
    timeout_s: float = REQUEST_TIMEOUT_S,
    lifetime_s: int = 600,
    rto_s: float = RTO_S,
    local_address: Address | None = None,
) -> TurnConnection:
    """Open a UDP socket towards the server; nothing is sent yet. Raises UpstreamError if there is no way there.

    ``on_data(peer, data)`` is called as data arrives. A request raises if it is not answered within ``timeout_s``.
    ``lifetime_s`` is what allocations ask for, ``rto_s`` the first retransmission interval (RFC 8489 section 6.2.1).
    """
    client = TurnClient(username, password, lifetime_s=lifetime_s, rto_s=rto_s)
    connection = TurnConnection(client, on_data, timeout_s)
    await open_udp_link(server, connection, local_address)
    return connection


async def open_turn_tls(
    server: Address,
    username: str = "",
    password: str = "",
    *,
    ssl_context: ssl.SSLContext,
    server_hostname: str | None = None,
    on_data: OnData = _ignore,
    timeout_s: float = REQUEST_TIMEOUT_S,
    lifetime_s: int = 600,
    local_address: Address | None = None,
    proxy: Proxy | str | None = None,
) -> TurnConnection:
    """Connect to the server and shake hands within ``timeout_s``; the rest as in ``open_turn_udp``.

    ``server_hostname`` is the name for SNI and for the certificate, by default the server's host. ``proxy`` is a web
    proxy to go through, such as ``http://user:password@proxy.firm.example:3128``. Raises ValueError for a bad one.
    """
    through = as_proxy(proxy)
    client = TurnClient(username, password, reliable=True, lifetime_s=lifetime_s)
    connection = TurnConnection(client, on_data, timeout_s)
    await open_tls_link(
        server,
        connection,
        local_address,
        ssl_context=ssl_context,
        server_hostname=server_hostname or server.host,
        timeout_s=timeout_s,
        proxy=through,
    )
    return connection


def take_turn_udp(
    connected: socket.socket, username: str, password: str, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> TurnConnection:
    """Go on with a non-blocking UDP socket that is connected to a server. The connection owns it from here."""
    connection = TurnConnection(TurnClient(username, password), _ignore, timeout_s)
    UdpLink(connected, connection)
    return connection
