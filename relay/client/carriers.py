"""TURN connections that a web proxy lets through: over WebSocket (``/turn``) and CONNECT-UDP (RFC 9298)."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

from relay import deadlines
from relay.addresses import Address
from relay.client.connect import Proxy, as_proxy, connect_tls
from relay.client.turn import REQUEST_TIMEOUT_S, OnData, TurnConnection
from relay.client.upgraded import CapsuleLink, TurnWebSocketLink, UpgradedLink
from relay.errors import UpstreamError
from relay.turn.client import TurnClient
from relay.turn.transactions import RTO_S
from relay.wire.upgrade import (
    KEY_BYTES,
    Response,
    build_connect_udp_request,
    build_websocket_request,
    check_upgrade,
    check_websocket,
)

UDP_PATH = "/.well-known/masque/udp/{host}/{port}/"

# RFC 3986: characters that path and query may have as they are, and the sign of what has been quoted already.
_NOT_QUOTED = "%!$&'()*+,;=:@/?-._~"

_Link = TypeVar("_Link", bound=UpgradedLink)
Check = Callable[[Response], None]


def _ignore(peer: Address, data: bytes) -> None:
    """The default: does nothing with data."""


def _ascii(host: str) -> str:
    """A host in the form of HTTP and DNS. Raises ValueError."""
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not name.isprintable() or not name or " " in name:
        raise ValueError("expected a host name without spaces and control characters")
    return name


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an upgrade is asked for, and how to get there."""

    server: Address
    target: str
    ssl_context: ssl.SSLContext
    server_hostname: str | None
    proxy: Proxy | None
    timeout_s: float

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str | None,
        proxy: Proxy | str | None,
        timeout_s: float,
    ) -> Endpoint:
        """Read ``wss://host[:port]/path`` or ``https://...``. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in {"wss", "https"} or not parts.hostname or parts.username is not None:
            # The message does not show the URL, which may hold a password.
            raise ValueError("expected an address such as wss://voice.firm.example/media, without user and password")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        server = Address(_ascii(parts.hostname), parts.port or 443)
        context = ssl_context or ssl.create_default_context()
        name = None if server_hostname is None else _ascii(server_hostname)
        return cls(server, quote(target, safe=_NOT_QUOTED), context, name, as_proxy(proxy), timeout_s)

    @property
    def host(self) -> str:
        """The value of Host."""
        named = Address(self.server_hostname or self.server.host, self.server.port)
        host = str(named)
        return host.removesuffix(":443") if named.port == 443 else host

    async def open(self, link: Callable[[], _Link]) -> _Link:
        """Connect, and wait for the 101, both within ``timeout_s``. Raises UpstreamError."""
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        try:
            made = await connect_tls(
                link,
                self.server,
                ssl_context=self.ssl_context,
                server_hostname=self.server_hostname,
                timeout_s=self.timeout_s,
                proxy=self.proxy,
            )
            try:
                async with deadlines.timeout_at(deadline):
                    await made.opened
            except BaseException:
                made.abort()
                await made.wait_closed()
                raise
        except TimeoutError:
            way = "" if self.proxy is None else f" through the proxy {self.proxy.address}"
            raise UpstreamError(f"{self.server}{way}: no answer to the upgrade within {self.timeout_s:g} s") from None
        except UpstreamError as error:
            raise UpstreamError(f"{self.server}{self.target}: {error}") from error
        return made


def websocket_upgrade(endpoint: Endpoint, subprotocol: str) -> tuple[bytes, Check]:
    """The request for a WebSocket, with a fresh key, and the check of the answer."""
    key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    request = build_websocket_request(endpoint.target, endpoint.host, key, subprotocol)
    return request, lambda response: check_websocket(response, key, subprotocol)


async def open_turn_websocket(
    url: str,
    username: str = "",
    password: str = "",
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    proxy: Proxy | str | None = None,
    on_data: OnData = _ignore,
    timeout_s: float = REQUEST_TIMEOUT_S,
    lifetime_s: int = 600,
) -> TurnConnection:
    """TURN over WebSocket, at a ``url`` such as ``wss://voice.firm.example/turn``; the rest as in ``open_turn_tls``.

    The system's certificates are trusted unless ``ssl_context`` says otherwise. Raises UpstreamError if there is no
    WebSocket within ``timeout_s``, ValueError for a bad URL.
    """
    endpoint = Endpoint.parse(
        url, ssl_context=ssl_context, server_hostname=server_hostname, proxy=proxy, timeout_s=timeout_s
    )
    connection = TurnConnection(
        TurnClient(username, password, reliable=True, lifetime_s=lifetime_s), on_data, timeout_s
    )
    request, check = websocket_upgrade(endpoint, "turn")
    await endpoint.open(lambda: TurnWebSocketLink(request, check, connection))
    return connection


async def open_turn_connect_udp(
    url: str,
    target: Address,
    username: str = "",
    password: str = "",
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    proxy: Proxy | str | None = None,
    on_data: OnData = _ignore,
    timeout_s: float = REQUEST_TIMEOUT_S,
    lifetime_s: int = 600,
    rto_s: float = RTO_S,
) -> TurnConnection:
    """TURN over UDP datagrams that the relay at ``url`` (``https://voice.firm.example``) sends on to ``target``.

    Both ends see TURN over UDP, so the client sends a request again until it is answered, with ``rto_s`` as in
    ``open_turn_udp``. The rest is as in ``open_turn_websocket``.
    """
    path = UDP_PATH.format(host=quote(target.host, safe=""), port=target.port)
    endpoint = Endpoint.parse(
        url.rstrip("/") + path,
        ssl_context=ssl_context,
        server_hostname=server_hostname,
        proxy=proxy,
        timeout_s=timeout_s,
    )
    client = TurnClient(username, password, lifetime_s=lifetime_s, rto_s=rto_s)
    connection = TurnConnection(client, on_data, timeout_s)
    request = build_connect_udp_request(endpoint.target, endpoint.host)
    await endpoint.open(lambda: CapsuleLink(request, lambda got: check_upgrade(got, "connect-udp"), connection))
    return connection
