"""What of an HTTP request may go on to an upstream; what two servers might read differently may not.

aiohttp's parser refuses most of it before; what that lets through is refused here. RFC 9110 and 9112, read strictly.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from aiohttp import web
from multidict import CIMultiDict

from relay.addresses import IpNetwork

RawHeaders = Sequence[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, and what is hop-by-hop by use.
HOP_BY_HOP = frozenset(
    b"connection,keep-alive,proxy-connection,proxy-authenticate,proxy-authorization,te,trailer,transfer-encoding,"
    b"upgrade,http2-settings".split(b",")
)
# What we say of the client ourselves, and what others take for the same.
TOLD_BY_US = frozenset(
    b"forwarded,x-forwarded-for,x-forwarded-proto,x-forwarded-host,x-forwarded-port,x-forwarded-scheme,"
    b"x-forwarded-ssl,x-forwarded-server,x-forwarded-by,x-real-ip,x-client-ip,x-cluster-client-ip,true-client-ip,"
    b"x-original-url,x-rewrite-url,x-original-host".split(b",")
)
# Servers that turn "-" into "_" (CGI, WSGI) take the one for the other: a name with "_" must not mean one of these.
_NO_ALIAS = (
    HOP_BY_HOP
    | TOLD_BY_US
    | {b"host", b"content-length", b"content-type", b"cookie", b"origin", b"authorization", b"expect"}
)
# To have these removed by naming them in Connection would change what the request means.
_NOT_HOP_BY_HOP = frozenset({b"host", b"content-length", b"content-type", b"cookie", b"origin", b"authorization"})

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"[!\"$-~]+")  # visible ASCII, but for the fragment's mark
_HOST = re.compile(r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# More than an exabyte is no length.
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Refused(Exception):
    """A request that is not forwarded: the status to answer with, and why in a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Accepted(NamedTuple):
    """A request that two servers read alike."""

    # Origin form: what goes on to the upstream.
    target: str
    # Decoded, and lower case without port: what routes are chosen by.
    path: str
    query: str
    host: str
    upgrades: bool
    # None for chunked; 0 without a body.
    body_bytes: int | None


def check(request: web.BaseRequest, *, max_header_bytes: int, max_body_bytes: int) -> Accepted:
    """Look at the whole head of a request. Raises Refused."""
    headers: RawHeaders = request.raw_headers
    if request.method in {"CONNECT", "TRACE"}:
        raise Refused(405, f"{request.method} is not served here")
    if request.version not in {(1, 0), (1, 1)}:
        raise Refused(505, "expected HTTP/1.1")
    if sum(len(name) + len(value) + 4 for name, value in headers) > max_header_bytes:
        raise Refused(431, f"the headers are larger than {max_header_bytes} bytes")
    for name, value in headers:
        _check_field(name, value)
    host = _single(headers, b"host", required=True)
    if not _HOST.fullmatch(host):
        raise Refused(400, "Host is no host name")
    target = _origin_form(request.raw_path, host)
    raw_path, _, query = target.partition("?")
    body_bytes = _check_framing(headers, chunks_allowed=request.version == (1, 1))
    if body_bytes is not None and body_bytes > max_body_bytes:
        raise Refused(413, f"the body is larger than {max_body_bytes} bytes")
    return Accepted(
        target,
        _check_path(raw_path),
        query,
        host.lower().rpartition(":")[0].rstrip(".") if re.search(r":[0-9]+$", host) else host.lower().rstrip("."),
        _check_upgrade(request, body_bytes),
        body_bytes,
    )


def _check_field(name: bytes, value: bytes) -> None:
    if not _TOKEN.fullmatch(name):
        raise Refused(400, "a header's name is no token")
    if not _VALUE.fullmatch(value):
        raise Refused(400, "a header holds control characters")
    if not value.isascii():
        try:
            value.decode()
        except UnicodeDecodeError:
            raise Refused(400, "a header is neither ASCII nor UTF-8") from None
    if b"_" in name and name.lower().replace(b"_", b"-") in _NO_ALIAS:
        raise Refused(400, "a header's name, with _ for -, may be taken for another")


def _values(headers: RawHeaders, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == wanted]


def _single(headers: RawHeaders, wanted: bytes, *, required: bool = False) -> str:
    values = _values(headers, wanted)
    if len(values) > 1 or (required and not values):
        raise Refused(400, f"expected {wanted.decode().title()} once")
    return values[0].decode("latin-1") if values else ""


def _elements(headers: RawHeaders, wanted: bytes) -> list[bytes]:
    return [one.strip(b" \t").lower() for value in _values(headers, wanted) for one in value.split(b",")]


def _origin_form(target: str, host: str) -> str:
    if not _TARGET.fullmatch(target):
        raise Refused(400, "the request target holds what a URL does not")
    if target.startswith("/"):
        return target
    # RFC 9112 section 3.2.2: to be accepted, but it must say the same as Host.
    try:
        parts = urlsplit(target)
    except ValueError:
        raise Refused(400, "the request target is no URL") from None
    if parts.scheme not in {"http", "https"} or parts.netloc.lower() != host.lower():
        raise Refused(400, "the request target and Host do not say the same")
    return (parts.path or "/") + ("?" + parts.query if "?" in target else "")


def _check_path(raw: str) -> str:
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Refused(400, "the path is no UTF-8") from None
    # Upstreams may resolve them, or not: either way the route that was chosen may be the wrong one.
    if not {".", ".."}.isdisjoint(path.replace("\\", "/").split("/")) or "\x00" in path:
        raise Refused(400, "the path holds . or .. segments")
    return path


def _check_framing(headers: RawHeaders, *, chunks_allowed: bool) -> int | None:
    lengths, codings = _values(headers, b"content-length"), _values(headers, b"transfer-encoding")
    if _values(headers, b"trailer"):
        raise Refused(400, "trailers are not forwarded")
    if codings:
        if lengths:
            raise Refused(400, "Transfer-Encoding and Content-Length contradict each other")
        if codings[0].lower() != b"chunked" or len(codings) > 1:
            raise Refused(400, "expected Transfer-Encoding: chunked and no other coding")
        if not chunks_allowed:
            raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Refused(400, "expected one Content-Length, in digits")
    return int(lengths[0])


def _check_upgrade(request: web.BaseRequest, body_bytes: int | None) -> bool:
    headers: RawHeaders = request.raw_headers
    options, protocols = _elements(headers, b"connection"), _elements(headers, b"upgrade")
    if any(option in _NOT_HOP_BY_HOP for option in options):
        raise Refused(400, "Connection names a header that is not hop-by-hop")
    if not protocols:
        return False
    if protocols != [b"websocket"] or b"upgrade" not in options:
        raise Refused(400, "expected Connection: Upgrade with Upgrade: websocket, or neither")
    if request.method != "GET" or request.version != (1, 1) or body_bytes != 0:
        raise Refused(400, "an upgrade to WebSocket is a GET of HTTP/1.1 without a body")
    return True


# Headers that go on


def end_to_end(headers: RawHeaders, *dropped: bytes) -> Iterator[tuple[str, str]]:
    """All but the hop-by-hop ones, those that Connection names, and ``dropped`` (lower case)."""
    leave = HOP_BY_HOP.union(dropped, _elements(headers, b"connection"))
    for name, value in headers:
        if name.lower() not in leave and _VALUE.fullmatch(value):
            yield name.decode("ascii", "replace"), value.decode("utf-8", "surrogateescape")


class Forwarding:
    """Says who the client is (RFC 7239, X-Forwarded-*); what it says itself counts only from trusted networks."""

    def __init__(self, trusted: Iterable[IpNetwork] = ()) -> None:
        self._trusted = tuple(trusted)

    def trusts(self, host: str) -> bool:
        """True if what this address says of its clients is believed."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)

    def client(self, request: web.BaseRequest) -> str:
        """The client's address, as far as it can be trusted."""
        remote = request.remote or ""
        if self.trusts(remote):
            named = request.headers.getall("X-Forwarded-For", [])
            for one in reversed([one.strip() for value in named for one in value.split(",")]):
                if not self.trusts(one):
                    return one[:64] or remote
        return remote

    def add(self, request: web.BaseRequest, headers: CIMultiDict[str]) -> None:
        """Put what is said of the client into the headers that go on, which must hold none of it."""
        remote, host, given = request.remote or "", request.headers.get("Host", ""), request.headers
        trusted = self.trusts(remote)

        def said(name: str) -> list[str]:
            return given.getall(name, []) if trusted else []

        node = f'"[{remote}]"' if ":" in remote else remote
        element = f'for={node};host="{host}";proto={request.scheme}'
        scheme = next((one for one in said("X-Forwarded-Proto")[:1] if one in {"http", "https"}), request.scheme)
        outer = next((one for one in said("X-Forwarded-Host")[:1] if _HOST.fullmatch(one)), host)
        headers["X-Forwarded-For"] = ", ".join([*said("X-Forwarded-For"), remote])
        headers["X-Forwarded-Proto"] = scheme
        headers["X-Forwarded-Host"] = outer
        headers["Forwarded"] = ", ".join([*said("Forwarded"), element])
