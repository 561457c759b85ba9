"""Which HTTP requests may go on to an upstream, and with which headers.

A request that two servers may read differently does not go on. aiohttp's parser refuses most of those; what it lets
through is refused here. RFC 9110 and 9112, read strictly.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from aiohttp import web

from relay.addresses import IpNetwork

RawHeaders = Sequence[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, and what is hop-by-hop by custom.
HOP_BY_HOP = frozenset(
    b"connection,keep-alive,proxy-connection,proxy-authenticate,proxy-authorization,te,transfer-encoding,upgrade,"
    b"http2-settings".split(b",")
)
# What we ourselves say about the client.
TOLD_BY_US = frozenset(b"forwarded,x-forwarded-for,x-forwarded-proto,x-forwarded-host,x-relay-id".split(b","))
# What proxies and content networks say about a client: its address, the name and scheme it used, its certificate, who
# has logged in. Servers believe it, so only trusted proxies may say it.
TOLD_BY_PROXIES = frozenset(
    b"x-client-ip,x-cluster-client-ip,true-client-ip,client-ip,http-client-ip,remote-addr,remote-user,"
    b"x-remote-ip,x-remote-addr,x-remote-user,x-originating-ip,x-proxyuser-ip,x-appengine-user-ip,x-client,x-forwarded,"
    b"forwarded-for,forwarded-for-ip,fastly-client-ip,fly-client-ip,do-connecting-ip,incap-client-ip,proxy-client-ip,"
    b"x-nf-client-connection-ip,x-vercel-ip,x-sucuri-clientip,x-arr-clientcert,x-arr-ssl,"
    b"x-client-cert,x-client-dn,x-client-verify,client-cert,client-cert-chain,front-end-https,x-url-scheme,x-scheme,"
    b"x-host,x-http-host-override,x-rewrite-url,cloudfront-forwarded-proto,ali-cdn-real-ip,cdn-real-ip,real-ip,"
    b"x-true-client-ip,x-appengine-remote-addr,forwarded-host,forwarded-proto,x-client-certificate,x-webauth-user,"
    b"remote-name,remote-email,remote-groups,x-remote-group,x-remote-groups,"
    # CGI hands it to a program as HTTP_PROXY, which is a setting of its own there (httpoxy).
    b"proxy".split(b",")
)
_TOLD_PREFIXES = (
    b"cf-",
    b"x-forwarded-",
    b"x-original-",
    b"x-azure-",
    b"x-envoy-",
    b"x-vercel-",
    b"x-ssl-",
    b"ssl-client-",
    b"cloudfront-viewer-",
    b"wl-proxy-",
    b"x-real-",
    b"x-tls-client-",
    b"x-amzn-mtls-",
    b"x-amzn-oidc-",
    b"x-auth-request-",
    b"x-authentik-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ms-token-",
)


def tells_of_the_client(name: bytes) -> bool:
    """True for a header, in lower case, in which a proxy says who the client is or what it asked for."""
    return name in TOLD_BY_US or name in TOLD_BY_PROXIES or name.startswith(_TOLD_PREFIXES)


# Servers that turn "-" into "_" (CGI, WSGI) take the one for the other: a name with "_" must not mean one of these.
_NO_ALIAS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"content-type",
    b"cookie",
    b"origin",
    b"authorization",
    b"expect",
    b"trailer",
}
# Connection must not name one of these: to remove it would change what the request means.
_NOT_HOP_BY_HOP = frozenset({b"host", b"content-length", b"content-type", b"cookie", b"origin", b"authorization"})

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
# Visible ASCII without the fragment's mark, and what is not ASCII: servers take it as it is.
_TARGET = re.compile(rb"[!\"$-~\x80-\xff]+")
# Overlong UTF-8 and %u are read as dots and slashes by some servers, and by none as anything else.
_OVERLONG = re.compile(
    rb"\xc0[\xae\xaf]|\xe0\x80[\xae\xaf]|\xf0\x80\x80[\xae\xaf]|(?i:%u(?:002[ef]|005c|ff0[ef]|ff3c))"
)
# Some servers leave control characters out. Some read what comes after these marks as something other than path.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MARKS = re.compile(r"[;?#]")
# Each decoding of a path costs a look at all of it; what is encoded more often was not meant to be a path.
MAX_DECODINGS = 5
# Each is looked at several times. Node takes 2,000, haproxy 101.
MAX_FIELDS = 1000
_HOST = re.compile(r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# More than an exabyte is no length.
_LENGTH = re.compile(rb"[0-9]{1,18}")


class BadRequest(Exception):
    """A request that is not forwarded: the status to answer with, and why in a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Accepted(NamedTuple):
    """A request that two servers read alike."""

    # Origin form: what goes on to the upstream.
    target: bytes
    # Routes are chosen by path, which is decoded, and by host, which is lower case and without port.
    path: str
    query: str
    host: str
    upgrades: bool
    # It asks for another protocol, which is ignored (RFC 9110 section 7.8). What follows may be of that protocol.
    ignores_upgrade: bool
    # None for chunked; 0 without a body.
    body_bytes: int | None
    # The client waits for 100 before it sends the body.
    expects: bool


def check(request: web.BaseRequest, *, max_header_bytes: int, max_body_bytes: int) -> Accepted:
    """Look at the whole head of a request. Raises BadRequest."""
    headers: RawHeaders = request.raw_headers
    if request.method in {"CONNECT", "TRACE"}:
        raise BadRequest(405, f"{request.method} is not served here")
    if request.version not in {(1, 0), (1, 1)}:
        raise BadRequest(505, "expected HTTP/1.1")
    if sum(len(name) + len(value) + 4 for name, value in headers) > max_header_bytes:
        raise BadRequest(431, f"the headers are larger than {max_header_bytes} bytes")
    if len(headers) > MAX_FIELDS:
        raise BadRequest(431, f"there are more than {MAX_FIELDS} headers")
    for name, value in headers:
        _check_field(name, value)
    host = _single(headers, b"host", required=True)
    if not _HOST.fullmatch(host):
        raise BadRequest(400, "Host is not a host name")
    target = _origin_form(request.raw_path.encode("utf-8", "surrogateescape"), host)
    raw_path, _, query = target.partition(b"?")
    body_bytes = _check_framing(headers, chunks_allowed=request.version == (1, 1))
    if body_bytes is not None and body_bytes > max_body_bytes:
        raise BadRequest(413, f"the body is larger than {max_body_bytes} bytes")
    upgrades = _check_upgrade(request, body_bytes)
    return Accepted(
        target,
        _check_path(raw_path),
        query.decode("latin-1"),
        host.lower().rpartition(":")[0].rstrip(".") if re.search(r":[0-9]+$", host) else host.lower().rstrip("."),
        upgrades,
        not upgrades and bool(_values(headers, b"upgrade")),
        body_bytes,
        request.version == (1, 1) and _values(headers, b"expect") != [],
    )


def _check_field(name: bytes, value: bytes) -> None:
    if not _TOKEN.fullmatch(name):
        raise BadRequest(400, "a header's name is not a token")
    if not _VALUE.fullmatch(value):
        raise BadRequest(400, "a header contains control characters")
    plain = name.lower().replace(b"_", b"-")
    if b"_" in name and (plain in _NO_ALIAS or tells_of_the_client(plain)):
        raise BadRequest(400, "a header's name, with _ for -, could be mistaken for another")


def _values(headers: RawHeaders, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == wanted]


def _single(headers: RawHeaders, wanted: bytes, *, required: bool = False) -> str:
    values = _values(headers, wanted)
    if len(values) > 1 or (required and not values):
        raise BadRequest(400, f"expected {wanted.decode().title()} once")
    return values[0].decode("latin-1") if values else ""


def _elements(headers: RawHeaders, wanted: bytes) -> list[bytes]:
    return [one.strip(b" \t").lower() for value in _values(headers, wanted) for one in value.split(b",")]


def _origin_form(target: bytes, host: str) -> bytes:
    if not _TARGET.fullmatch(target):
        raise BadRequest(400, "the request target contains what a URL cannot")
    if target.startswith(b"/"):
        return target
    # RFC 9112 section 3.2.2: to be accepted, but it must say the same as Host.
    scheme, _, rest = target.partition(b"://")
    authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
    if scheme.lower() not in {b"http", b"https"} or authority.lower() != host.lower().encode("latin-1"):
        raise BadRequest(400, "the request target and Host differ")
    path = rest[len(authority) :]
    return path if path.startswith(b"/") else b"/" + path


def _check_path(raw: bytes) -> str:
    # Upstreams may resolve dots, or not: either way the route that was chosen may be the wrong one. Some decode twice,
    # and some take parameters out of segments first.
    decoded, once = raw, unquote_to_bytes(raw)
    for _ in range(MAX_DECODINGS + 1):
        if _leads_elsewhere(decoded):
            raise BadRequest(400, "the path contains . or .. segments, or NUL")
        if (more := unquote_to_bytes(decoded)) == decoded:
            break
        decoded = more
    else:
        raise BadRequest(400, f"the path is encoded more than {MAX_DECODINGS} times")
    # Bytes that are not UTF-8 are in no route's path. The request goes where the rest of its path leads.
    return once.decode("utf-8", "surrogateescape")


def _leads_elsewhere(path: bytes) -> bool:
    if _OVERLONG.search(path) or b"\0" in path:
        return True
    # Full-width dots and slashes are plain ones to some.
    text = unicodedata.normalize("NFKC", path.decode("utf-8", "surrogateescape")).replace("\\", "/")
    segments = (_MARKS.split(segment, maxsplit=1)[0].strip() for segment in _CONTROL.sub("", text).split("/"))
    return not {".", ".."}.isdisjoint(segments)


def _check_framing(headers: RawHeaders, *, chunks_allowed: bool) -> int | None:
    lengths, codings = _values(headers, b"content-length"), _values(headers, b"transfer-encoding")
    if codings:
        if lengths:
            raise BadRequest(400, "Transfer-Encoding and Content-Length contradict each other")
        if codings[0].lower() != b"chunked" or len(codings) > 1:
            raise BadRequest(400, "expected Transfer-Encoding: chunked and no other coding")
        if not chunks_allowed:
            raise BadRequest(400, "HTTP/1.0 has no Transfer-Encoding")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise BadRequest(400, "expected one Content-Length, in digits")
    return int(lengths[0])


def _check_upgrade(request: web.BaseRequest, body_bytes: int | None) -> bool:
    headers: RawHeaders = request.raw_headers
    options, protocols = _elements(headers, b"connection"), _elements(headers, b"upgrade")
    if any(option in _NOT_HOP_BY_HOP for option in options):
        raise BadRequest(400, "Connection names a header that is not hop-by-hop")
    if b"websocket" not in protocols:
        return False
    if protocols != [b"websocket"] or b"upgrade" not in options:
        raise BadRequest(400, "expected Connection: Upgrade with Upgrade: websocket, or neither")
    if request.method != "GET" or request.version != (1, 1) or body_bytes != 0:
        raise BadRequest(400, "an upgrade to WebSocket is a GET of HTTP/1.1 without a body")
    return True


# Headers that go on


def end_to_end(headers: RawHeaders, *dropped: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All but the hop-by-hop ones, those that Connection names, and ``dropped`` (lower case)."""
    leave = HOP_BY_HOP.union(dropped, _elements(headers, b"connection"))
    for name, value in headers:
        if name.lower() not in leave:
            yield name, value


# The id of the connection that a request came by, as in the log and in /api/flows; and the field that tells it to
# clients and to upstreams, so that what they see can be found in the log.
CONNECTION = web.RequestKey("connection", str)
RELAY_ID = "X-Relay-Id"


class Forwarding:
    """Says who the client is (RFC 7239, X-Forwarded-*). What it says itself counts only from trusted networks."""

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

    def fields(self, request: web.BaseRequest) -> Iterator[tuple[bytes, bytes]]:
        """All headers that go on. The last ones say who the client is."""
        remote, host, given = request.remote or "", request.headers.get("Host", ""), request.headers
        trusted = self.trusts(remote)
        # RFC 9110 section 6.5.1: trailers may be dropped. A server that merges them into the head would take them for
        # fields that were checked.
        for name, value in end_to_end(request.raw_headers, b"trailer"):
            lower = name.lower()
            if lower not in TOLD_BY_US and (trusted or not tells_of_the_client(lower)):
                yield name, value

        def said(name: str) -> list[str]:
            return given.getall(name, []) if trusted else []

        node = f'"[{remote}]"' if ":" in remote else remote
        element = f'for={node};host="{host}";proto={request.scheme}'
        scheme = next((one for one in said("X-Forwarded-Proto")[:1] if one in {"http", "https"}), request.scheme)
        outer = next((one for one in said("X-Forwarded-Host")[:1] if _HOST.fullmatch(one)), host)
        for told, text in (
            (b"X-Forwarded-For", ", ".join([*said("X-Forwarded-For"), remote])),
            (b"X-Forwarded-Proto", scheme),
            (b"X-Forwarded-Host", outer),
            (b"Forwarded", ", ".join([*said("Forwarded"), element])),
        ):
            yield told, text.encode("utf-8", "surrogateescape")
        if (connection := request.get(CONNECTION)) is not None:
            yield RELAY_ID.encode(), connection.encode()
