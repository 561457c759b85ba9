"""TLS connections, directly or through a web proxy (HTTP CONNECT, RFC 9110 section 9.3.6) with Basic auth.

TCP comes first, then TLS over it. So a link can see how much waits in either of them, and in the kernel.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit

from relay import deadlines
from relay.addresses import Address
from relay.client.application import fail
from relay.errors import UpstreamError
from relay.wire.upgrade import UpgradeError, parse_response

# The first line of a proxy's page is enough to act on.
_SHOWN = 200


class ProxyError(UpstreamError):
    """The web proxy has failed, or refuses the tunnel.

    ``status`` is that of its answer, 0 if there was none. ``logins`` are the ways to log in that a 407 offers, in lower
    case, such as ``basic`` and ``negotiate``.
    """

    def __init__(self, message: str, status: int = 0, logins: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.logins = logins


@dataclass(frozen=True, slots=True)
class Proxy:
    """A web proxy, and our name and password there."""

    address: Address
    username: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read ``http://[user:password@]host:port``. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError("expected a proxy such as http://proxy.firm.example:3128")
        address = Address(parts.hostname, parts.port or 80)
        return cls(address, unquote(parts.username or ""), unquote(parts.password or ""))


def as_proxy(given: Proxy | str | None) -> Proxy | None:
    """A proxy that is given as such, or as a URL. Raises ValueError."""
    return Proxy.parse(given) if isinstance(given, str) else given


class TlsProtocol(asyncio.Protocol):
    """The protocol of ``connect_tls``. ``tcp`` is the transport below TLS, ``proxy`` the way that it takes."""

    tcp: asyncio.WriteTransport
    proxy: Proxy | None = None


_Protocol = TypeVar("_Protocol", bound=TlsProtocol)


class _Tcp(asyncio.Protocol):
    """A TCP connection before TLS, on which a server must be silent."""

    def __init__(self) -> None:
        self.spoke = False

    def data_received(self, data: bytes) -> None:
        self.spoke = True


class _Tunnel(_Tcp):
    """Asks a proxy for a tunnel. ``opened`` is done when there is one, or has an UpstreamError."""

    def __init__(self, target: Address, proxy: Proxy) -> None:
        super().__init__()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._target = target
        self._proxy = proxy
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._proxy.username:
            credentials = f"{self._proxy.username}:{self._proxy.password}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}")
        # isinstance would not do: uvloop's transports do not derive from asyncio's.
        cast("asyncio.WriteTransport", transport).write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            super().data_received(data)
            return
        self._head += data
        logins: tuple[str, ...] = ()
        try:
            response = parse_response(self._head)
            if response is None:
                return
            if not 200 <= response.status < 300:
                logins = _logins(response.headers.get("proxy-authenticate", ""))
                raise UpgradeError(f"refuses the tunnel: {response.status} {response.reason}"[:_SHOWN], response.status)
            if len(self._head) > response.size:
                raise UpgradeError("speaks before TLS has begun")
        except UpgradeError as error:
            fail(self.opened, ProxyError(f"the proxy {self._proxy.address} {error}", error.status, logins))
        else:
            self.opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        cause = exc or "end of stream"
        fail(self.opened, ProxyError(f"the proxy {self._proxy.address} closed the connection: {cause}"))


def _logins(offered: str) -> tuple[str, ...]:
    """The schemes of Proxy-Authenticate (RFC 9110 section 11.6.1): words that no ``=`` follows, each once."""
    words = re.findall(r"(?:^|,)\s*([A-Za-z][\w-]*)(?=\s+[^\s=]|\s*(?:,|$))", offered)
    return tuple(dict.fromkeys(word.lower() for word in words))


async def connect_tls(
    protocol: Callable[[], _Protocol],
    server: Address,
    *,
    ssl_context: ssl.SSLContext,
    server_hostname: str | None,
    timeout_s: float,
    local_address: Address | None = None,
    proxy: Proxy | None = None,
) -> _Protocol:
    """Connect and shake hands within ``timeout_s``.

    Raises UpstreamError, from the OSError or ssl.SSLError, and ProxyError if the proxy has failed.
    """
    way = _Way(server, proxy)
    try:
        async with deadlines.timeout(timeout_s):
            tcp, before = await way.connect(local_address)
            if before.spoke:
                raise ConnectionResetError("speaks before TLS has begun")
            made = await _start_tls(tcp, protocol, ssl_context, server_hostname or server.host, proxy)
    except TimeoutError:
        raise way.failed(f"{way.at}: {way.wanted} within {timeout_s:g} s") from None
    # ValueError: a host that DNS or TLS cannot name. OverflowError: a port that is out of range.
    except (OSError, ValueError, OverflowError) as error:
        raise way.failed(f"{way.at}: {error}") from error
    return made


class _Way:
    """The way to a server, maybe through a proxy.

    ``at`` says whom we wait for now, ``wanted`` for what, and ``failed`` is the error if it does not come.
    """

    def __init__(self, server: Address, proxy: Proxy | None) -> None:
        self._server = server
        self._proxy = proxy
        self._arrive()

    def _arrive(self) -> None:
        self.failed: type[UpstreamError] = UpstreamError
        self.at = (
            str(self._server) if self._proxy is None else f"{self._server} through the proxy {self._proxy.address}"
        )
        self.wanted = "no TLS connection"

    async def connect(self, local_address: Address | None) -> tuple[asyncio.Transport, _Tcp]:
        """A TCP connection that TLS can begin on."""
        loop, proxy, server = asyncio.get_running_loop(), self._proxy, self._server
        if not 0 < server.port <= 65535:
            raise ValueError("expected a port from 1 to 65535")
        if proxy is None:
            return await loop.create_connection(_Tcp, *server, local_addr=local_address)
        if not server.host.isprintable() or " " in server.host:
            raise ValueError("expected a host without spaces and control characters")
        self.at, self.wanted, self.failed = f"the proxy {proxy.address}", "no tunnel", ProxyError
        transport, tunnel = await loop.create_connection(
            lambda: _Tunnel(server, proxy), *proxy.address, local_addr=local_address
        )
        try:
            await tunnel.opened
        except BaseException:
            transport.abort()
            raise
        self._arrive()
        return transport, tunnel


class _Shaking(asyncio.Protocol):
    """Takes the protocol's place until the handshake is done: before that there may be no connection at all."""

    def __init__(self) -> None:
        self.early = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


async def _start_tls(
    tcp: asyncio.Transport,
    protocol: Callable[[], _Protocol],
    ssl_context: ssl.SSLContext,
    hostname: str,
    proxy: Proxy | None,
) -> _Protocol:
    shaking = _Shaking()
    # uvloop would begin TLS on a closed transport, and fail in a callback where nobody can catch it.
    if tcp.is_closing():
        raise ConnectionResetError("closed before the TLS handshake")
    try:
        transport = await asyncio.get_running_loop().start_tls(tcp, shaking, ssl_context, server_hostname=hostname)
        if transport is None or shaking.lost:
            raise ConnectionResetError("closed in the TLS handshake")
        made = protocol()
    except BaseException:
        tcp.abort()
        raise
    made.tcp, made.proxy = tcp, proxy
    transport.set_protocol(made)
    made.connection_made(transport)
    if shaking.early:
        made.data_received(shaking.early)
    return made
