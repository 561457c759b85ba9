"""How voice travels between a softphone and the TURN hosts: one class for each carrier, each with the same ``open``.

Anything with such an ``open`` is a carrier: a load test brings its own, and ``NoMedia`` is for signaling alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from relay import deadlines
from relay.addresses import Address
from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
from relay.client.requests import TurnRequestError
from relay.client.session import Session, SessionError, open_session
from relay.client.turn import TurnConnection, open_turn_tls, open_turn_udp
from relay.emulator.login.models import MediaHostView
from relay.emulator.softphone.errors import MediaFailed, NotEntitled
from relay.errors import UpstreamError
from relay.wire.stun import Method

OnData = Callable[[Address, bytes], None]
OnMoved = Callable[[Address], None]
# A TURN host that is asked whether the allocation is still there answers within a round trip.
CHECK_TIMEOUT_S = 2.0
# Releasing an allocation takes a round trip, or a second if nobody answers. Then the TURN host ends it by itself.
CLOSE_TIMEOUT_S = 5.0
_FORBIDDEN, _QUOTA = 403, 486


@dataclass(frozen=True)
class MediaAccess:
    """What the login gives for voice. ``attempt`` grows by one each time that a way has failed."""

    user_id: str
    username: str
    password: str = field(repr=False)
    hosts: tuple[MediaHostView, ...]
    attempt: int = 0

    @property
    def host(self) -> MediaHostView:
        """The TURN host to use now: the first is the nearest, and each attempt takes the next. Raises MediaFailed."""
        if not self.hosts:
            raise MediaFailed("The login has named no TURN host. An operator switches one on.")
        return self.hosts[self.attempt % len(self.hosts)]


class MediaLine(Protocol):
    """An open way to a TURN host, with an allocation there."""

    @property
    def relayed_address(self) -> Address | None:
        """Where the other side sends to."""

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the way has ended."""

    async def bind(self, peer: Address) -> None:
        """Let a peer's packets in, and be able to send to it. Raises UpstreamError."""

    def send(self, peer: Address, data: bytes) -> None:
        """Send a datagram to a bound peer. Never waits."""

    async def check(self) -> None:
        """Ask whether the allocation is still there. Raises UpstreamError."""

    async def close(self) -> None:
        """Release the allocation, and close. May be repeated."""


class Carrier(Protocol):
    """A way to open a ``MediaLine``. Raises MediaFailed, or NotEntitled."""

    @property
    def name(self) -> str:
        """For tables and logs."""

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Connect and allocate."""


@dataclass(frozen=True)
class Trust:
    """Whom to trust at the other end of TLS, and its name. None: the system's authorities, and the URL's host."""

    ssl_context: ssl.SSLContext | None = None
    server_hostname: str | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """The context to use."""
        return self.ssl_context or ssl.create_default_context()


class _Trusted(TypedDict):
    ssl_context: ssl.SSLContext
    server_hostname: str | None
    proxy: str | None


class NoMedia:
    """No voice at all: thousands of these log in from one process."""

    name = "no media"

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Raises MediaFailed. A softphone with this carrier does not call it."""
        raise MediaFailed("This softphone has no media.")


@dataclass(frozen=True)
class UdpTurn:
    """UDP to a TURN host: the vendor's default. Without ``server`` it is a host that the login names."""

    server: Address | None = None
    name: str = "UDP direct"

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Connect and allocate."""
        server = self.server or Address(access.host.address, access.host.udp_port)
        return await _allocated(
            self, access, lambda: open_turn_udp(server, access.username, access.password, on_data=on_data)
        )


@dataclass(frozen=True)
class TurnTls:
    """TURN over TLS: to a relay, or without ``server`` to a TURN host; ``proxy`` is a web proxy with CONNECT."""

    server: Address | None = None
    trust: Trust = Trust()
    proxy: str | None = field(default=None, repr=False)
    name: str = "TURN/TLS"

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Connect and allocate."""
        server = self.server or Address(access.host.address, access.host.tls_port)
        trusted = _trusted(self.trust, self.proxy)
        return await _allocated(
            self, access, lambda: open_turn_tls(server, access.username, access.password, on_data=on_data, **trusted)
        )


@dataclass(frozen=True)
class TurnWebSocket:
    """TURN in WebSocket messages, at the relay's ``url`` such as ``wss://voice.firm.example/turn``."""

    url: str
    trust: Trust = Trust()
    proxy: str | None = field(default=None, repr=False)
    name: str = "WebSocket"

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Connect and allocate."""
        trusted = _trusted(self.trust, self.proxy)
        return await _allocated(
            self,
            access,
            lambda: open_turn_websocket(self.url, access.username, access.password, on_data=on_data, **trusted),
        )


@dataclass(frozen=True)
class ConnectUdp:
    """CONNECT-UDP through the relay at ``url``, such as ``https://voice.firm.example``, to a TURN host."""

    url: str
    trust: Trust = Trust()
    target: Address | None = None
    proxy: str | None = field(default=None, repr=False)
    name: str = "CONNECT-UDP"

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Connect and allocate."""
        target = self.target or Address(access.host.address, access.host.udp_port)
        trusted = _trusted(self.trust, self.proxy)
        username, password = access.username, access.password
        return await _allocated(
            self,
            access,
            lambda: open_turn_connect_udp(self.url, target, username, password, on_data=on_data, **trusted),
        )


@dataclass(frozen=True)
class MediaSession:
    """A session of the relay (docs/media.v1.md), at a ``url`` such as ``wss://voice.firm.example/media``.

    The relay chooses the TURN host, and moves to another one by itself.
    """

    url: str
    trust: Trust = Trust()
    proxy: str | None = field(default=None, repr=False)
    region: str | None = None
    name: str = "session"

    async def open(self, access: MediaAccess, on_data: OnData, on_moved: OnMoved) -> MediaLine:
        """Connect; the relay allocates."""
        try:
            session = await open_session(
                self.url,
                username=access.username,
                password=access.password,
                region=self.region,
                on_data=on_data,
                on_moved=on_moved,
                **_trusted(self.trust, self.proxy),
            )
        except UpstreamError as error:
            raise explained(error, self.name, access.user_id) from error
        return _SessionLine(session)


class _TurnLine:
    def __init__(self, connection: TurnConnection) -> None:
        self._connection = connection
        self.send = connection.send
        self.close = connection.close

    @property
    def relayed_address(self) -> Address | None:
        return self._connection.relayed_address

    @property
    def closed(self) -> asyncio.Future[None]:
        return self._connection.closed

    async def bind(self, peer: Address) -> None:
        await self._connection.bind_channel(peer)

    async def check(self) -> None:
        try:
            async with deadlines.timeout(CHECK_TIMEOUT_S):
                await self._connection.refresh()
        except TimeoutError:
            raise UpstreamError(f"the TURN host does not answer within {CHECK_TIMEOUT_S:g} s") from None


class _SessionLine:
    def __init__(self, session: Session) -> None:
        self._session = session
        self.close = session.close

    @property
    def relayed_address(self) -> Address | None:
        return self._session.relayed_address

    @property
    def closed(self) -> asyncio.Future[None]:
        return self._session.closed

    async def bind(self, peer: Address) -> None:
        await self._session.bind(peer)

    def send(self, peer: Address, data: bytes) -> None:
        self._session.send(peer, data)

    async def check(self) -> None:
        """The relay watches its upstream, and the session its connection."""


async def _allocated(
    carrier: Carrier, access: MediaAccess, connect: Callable[[], Awaitable[TurnConnection]]
) -> MediaLine:
    try:
        connection = await connect()
        try:
            await connection.allocate()
        except BaseException:
            await connection.close()
            raise
    except UpstreamError as error:
        raise explained(error, carrier.name, access.user_id) from error
    return _TurnLine(connection)


async def close_line(line: MediaLine) -> None:
    """Release a way, also one that has failed."""
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with deadlines.timeout(CLOSE_TIMEOUT_S):
            await line.close()


def _trusted(trust: Trust, proxy: str | None) -> _Trusted:
    return {"ssl_context": trust.context, "server_hostname": trust.server_hostname, "proxy": proxy}


def explained(error: UpstreamError, carrier: str, user_id: str) -> MediaFailed:
    """The error in words that say who must act."""
    code, reason = 0, str(error)
    if isinstance(error, SessionError) or (isinstance(error, TurnRequestError) and error.method == Method.ALLOCATE):
        code, reason = error.code, error.reason
    if code == _FORBIDDEN and "cannot be checked" in reason:
        return NotEntitled(
            f"{carrier}: the relay cannot check whether {user_id} may call ({reason}). "
            "Its operator must look at the entitlement service."
        )
    if code == _FORBIDDEN and "region" in reason:
        return NotEntitled(
            f"{carrier}: {user_id} may not use this region ({reason}). The relay's operator changes that."
        )
    if code == _FORBIDDEN:
        return NotEntitled(
            f"{carrier}: the relay refuses {user_id} ({reason}). The setting Voice via Web Proxy is off for this user. "
            "A firm administrator switches it on in the portal, under Users; it counts from the next login."
        )
    if code == _QUOTA:
        return NotEntitled(
            f"{carrier}: {user_id} has too many calls at once ({reason}). The relay's operator sets the limit."
        )
    return MediaFailed(f"{carrier}: {error}")
