"""TLS connections, directly or through a web proxy (HTTP CONNECT, RFC 9110 section 9.3.6) with Basic auth."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit

from relay.addresses import Address
from relay.errors import UpstreamError
from relay.wire.upgrade import UpgradeError, parse_response

_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)
# Of what a proxy says in its page, the first line is enough to act on.
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Proxy:
    """A web proxy, and who we are to it."""

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
    """A proxy that is given as it is or as a URL. Raises ValueError."""
    return Proxy.parse(given) if isinstance(given, str) else given


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel. ``opened`` is done when there is one, or an UpstreamError."""

    def __init__(self, target: Address, proxy: Proxy) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._target = target
        self._proxy = proxy
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._proxy.username:
            credentials = f"{self._proxy.username}:{self._proxy.password}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}")
        # uvloop's transports are no subclasses.
        cast("asyncio.WriteTransport", transport).write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self.opened.done():
            return
        try:
            response = parse_response(self._head)
            if response is None:
                return
            if not 200 <= response.status < 300:
                raise UpgradeError(f"refuses the tunnel: {response.status} {response.reason}"[:_SHOWN])
            if len(self._head) > response.size:
                raise UpgradeError("speaks before TLS has begun")
        except UpgradeError as error:
            self.opened.set_exception(UpstreamError(f"the proxy {self._proxy.address} {error}"))
        else:
            self.opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            cause = exc or "end of stream"
            self.opened.set_exception(UpstreamError(f"the proxy {self._proxy.address} closed the connection: {cause}"))


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
    """Connect and shake hands within ``timeout_s``. Raises UpstreamError, from the OSError or ssl.SSLError."""
    loop = asyncio.get_running_loop()
    hostname = server_hostname or server.host
    try:
        async with asyncio.timeout(timeout_s):
            if proxy is not None:
                tunnel = await _open_tunnel(proxy, server, local_address)
                return await _start_tls(tunnel, protocol, ssl_context, hostname)
            _, made = await loop.create_connection(
                protocol, *server, ssl=ssl_context, server_hostname=hostname, local_addr=local_address
            )
            return made
    except TimeoutError:
        raise UpstreamError(f"{server}: no TLS connection within {timeout_s:g} s") from None
    except (OSError, UnicodeError) as error:
        raise UpstreamError(f"{server}: {error}") from error


async def _open_tunnel(proxy: Proxy, server: Address, local_address: Address | None) -> asyncio.WriteTransport:
    loop = asyncio.get_running_loop()
    transport, tunnel = await loop.create_connection(
        lambda: _Tunnel(server, proxy), *proxy.address, local_addr=local_address
    )
    try:
        await tunnel.opened
    except BaseException:
        transport.abort()
        raise
    return transport


class _Shaking(asyncio.Protocol):
    """Stands in for a protocol until the handshake is done, which alone knows whether there is a connection to make."""

    def __init__(self) -> None:
        self.early = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


async def _start_tls(
    tunnel: asyncio.WriteTransport, protocol: Callable[[], _Protocol], ssl_context: ssl.SSLContext, hostname: str
) -> _Protocol:
    shaking = _Shaking()
    try:
        transport = await asyncio.get_running_loop().start_tls(tunnel, shaking, ssl_context, server_hostname=hostname)
    except BaseException:
        tunnel.abort()
        raise
    if transport is None or shaking.lost:
        raise ConnectionResetError("closed in the TLS handshake")
    made = protocol()
    transport.set_protocol(made)
    made.connection_made(transport)
    if shaking.early:
        made.data_received(shaking.early)
    return made
