"""Requests and answers, byte by byte, as a reverse proxy must pass them on; and where the relay does not, why."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A request that a client sends, and what the upstream answers.

    ``differs`` says why the relay does something else than haproxy and nginx do; empty where it does as one of them.
    """

    request: bytes
    answer: bytes
    differs: str = ""


HOST = b"Host: relay.test\r\n"
OK = b"HTTP/1.1 200 OK\r\nX-From: upstream\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAA")


def get(*fields: bytes, target: bytes = b"/a", method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    """A request without a body."""
    return (
        method + b" " + target + b" " + version + b"\r\n" + HOST + b"".join(one + b"\r\n" for one in fields) + b"\r\n"
    )


def post(body: bytes, *fields: bytes, method: bytes = b"POST", framing: bytes | None = None) -> bytes:
    """A request with a body, of a stated length unless it is framed otherwise."""
    framing = b"Content-Length: %d" % len(body) if framing is None else framing
    return get(*fields, framing, method=method) + body


def said(*fields: bytes, body: bytes = b"ok", status: bytes = b"200 OK", framing: bytes | None = None) -> bytes:
    """An answer, of a stated length unless it is framed otherwise."""
    framing = b"Content-Length: %d\r\n" % len(body) if framing is None else framing
    head = b"HTTP/1.1 " + status + b"\r\nX-From: upstream\r\n"
    return head + b"".join(one + b"\r\n" for one in fields) + framing + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
SPOOFED = "what is said of a client counts only where trusted_networks has the proxy that says it"
DOTS = "a server that resolves the dots would be asked for what another route has"
HOP_BY_HOP = "RFC 9110 section 7.6.1: between two neighbours only, what is behind must not take it for its own"
AMBIGUOUS = "two servers may read it differently"
PROTOCOLS = "RFC 9110 section 7.8: only WebSocket is passed on; any other protocol would be a tunnel past all rules"

REQUESTS: dict[str, Row] = {
    # Targets
    "plain": Row(get(), OK),
    "query": Row(get(target=b"/a?b=c&&d=%41&e"), OK),
    "empty query": Row(get(target=b"/a?"), OK),
    "encoded slash": Row(get(target=b"/a%2Fb"), OK),
    "lower-case hexadecimal": Row(get(target=b"/a%c3%a9"), OK),
    "two slashes": Row(get(target=b"//a//b"), OK),
    "parameters of a segment": Row(get(target=b"/a;v=1/b;w"), OK),
    "characters that need no encoding": Row(get(target=b"/a'()*!$,:@~-._="), OK),
    "characters that should be encoded": Row(get(target=b"/a|b^c`d{e}"), OK),
    "percent without digits": Row(get(target=b"/a%zz"), OK),
    "encoded bytes that are not UTF-8": Row(get(target=b"/r%e9sum%e9"), OK),
    "query that is not UTF-8": Row(get(target=b"/a?q=%ff%fe"), OK),
    "three dots": Row(get(target=b"/a/.../b"), OK),
    "target of 6,000 bytes": Row(get(target=b"/" + b"a" * 6000), OK),
    "200 query fields": Row(get(target=b"/a?" + b"&".join(b"f%d=%d" % (n, n) for n in range(200))), OK),
    "transport=websocket of a REST server": Row(get(target=b"/api?transport=websocket"), OK),
    "sid of a REST server": Row(get(target=b"/api?sid=abc"), OK),
    "absolute target": Row(get(target=b"http://relay.test/a?b"), OK),
    "bytes beyond ASCII": Row(get(target=b"/r\xe9sum\xe9"), OK),
    "dots": Row(get(target=b"/a/../b"), OK, DOTS),
    "encoded dots": Row(get(target=b"/a/%2e%2e/b"), OK, DOTS),
    "dots encoded twice": Row(get(target=b"/a/%252e%252e/b"), OK, DOTS),
    "dots with a parameter": Row(get(target=b"/a/..;/b"), OK, DOTS),
    "target of 9,000 bytes": Row(get(target=b"/" + b"a" * 9000), OK, "memory: 8,190 bytes, as nginx has it by default"),
    "fragment": Row(get(target=b"/a#b"), OK),
    # Methods and versions
    "HEAD": Row(get(method=b"HEAD"), said(body=b"", framing=b"Content-Length: 2\r\n")),
    "PUT": Row(post(b"abc", method=b"PUT"), OK),
    "PATCH": Row(post(b"abc", method=b"PATCH"), OK),
    "DELETE": Row(get(method=b"DELETE"), OK),
    "DELETE with a body": Row(post(b"abc", method=b"DELETE"), OK),
    "OPTIONS": Row(get(method=b"OPTIONS"), OK),
    "PROPFIND": Row(get(method=b"PROPFIND"), OK),
    "REPORT": Row(post(b"<a/>", method=b"REPORT"), OK),
    "PURGE": Row(get(method=b"PURGE"), OK),
    "GET with a body": Row(post(b"abc", method=b"GET"), OK),
    "HTTP/1.0": Row(get(version=b"HTTP/1.0"), OK),
    "HTTP/1.0 that keeps alive": Row(get(b"Connection: keep-alive", version=b"HTTP/1.0"), OK),
    "TRACE": Row(get(method=b"TRACE"), OK),
    "method of nobody": Row(get(method=b"SMUG"), OK, AMBIGUOUS),
    # Headers
    "Latin-1": Row(get(b"X-Name: r\xe9sum\xe9"), OK),
    "UTF-8": Row(get(b"X-Name: r\xc3\xa9sum\xc3\xa9"), OK),
    "not UTF-8 at all": Row(get(b"X-Name: \xff\xfe\x80"), OK),
    "empty value": Row(get(b"X-Empty:"), OK),
    "space around a value": Row(get(b"X-Space: \t a  b \t"), OK),
    "tab within a value": Row(get(b"X-Tab: a\tb"), OK),
    "quotes and commas": Row(get(b'X-Quoted: "a, b", c;d="e\\"f"'), OK),
    "odd characters in a name": Row(get(b"X-!#$%&'*+.^_`|~: a"), OK),
    "underscore in a name": Row(get(b"X_My_Header: a"), OK),
    "same name twice": Row(get(b"X-Two: a", b"X-Two: b"), OK),
    "two lines of cookies": Row(get(b"Cookie: a=1", b"Cookie: b=2"), OK),
    "name in odd case": Row(get(b"x-LoWeR: a"), OK),
    "300 headers": Row(get(*(b"X-%d: %d" % (number, number) for number in range(300))), OK),
    "Kerberos ticket of 12 KB": Row(get(b"Authorization: Negotiate " + b"A" * 12_288), OK),
    "header of 20,000 bytes": Row(get(b"X-Long: " + b"a" * 20_000), OK),
    "headers of 28,000 bytes": Row(get(*(b"X-%d: " % number + b"a" * 7000 for number in range(4))), OK),
    "headers of 40,000 bytes": Row(
        get(*(b"X-%d: " % number + b"a" * 4000 for number in range(10))), OK, "memory: signaling.max_header_bytes"
    ),
    "Connection names a header": Row(get(b"Connection: close, X-Hop", b"X-Hop: 1"), OK, HOP_BY_HOP),
    "Keep-Alive": Row(get(b"Keep-Alive: timeout=5"), OK),
    "Accept-Encoding": Row(get(b"Accept-Encoding: gzip, br;q=0.5"), OK),
    "Range": Row(get(b"Range: bytes=0-1"), OK),
    "Referer and Origin": Row(get(b"Referer: https://a.test/?b", b"Origin: null"), OK),
    "TE: trailers": Row(get(b"Connection: TE", b"TE: trailers"), OK),
    "Proxy-Connection": Row(get(b"Proxy-Connection: keep-alive"), OK, HOP_BY_HOP),
    "Content-Type of odd form": Row(post(b"abc", b"Content-Type: Text/HTML ;charset = x"), OK),
    "CF-Connecting-IP": Row(get(b"CF-Connecting-IP: 192.0.2.1"), OK, SPOOFED),
    "X-Real-IP": Row(get(b"X-Real-IP: 192.0.2.1"), OK, SPOOFED),
    "X-Forwarded-Port": Row(get(b"X-Forwarded-Port: 1"), OK, SPOOFED),
    "alias with an underscore": Row(get(b"X_Forwarded_For: 192.0.2.1"), OK, SPOOFED),
    "Connection names Host": Row(get(b"Connection: close, Host"), OK, AMBIGUOUS),
    "two Hosts": Row(get(HOST.strip()), OK),
    "no Host": Row(b"GET /a HTTP/1.1\r\n\r\n", OK),
    "control character": Row(get(b"X-One: a\x08b"), OK, "RFC 9110 section 5.5: control characters may be refused"),
    "NUL": Row(get(b"X-One: a\x00b"), OK),
    "folded": Row(get(b"X-One: a", b" b"), OK),
    # Bodies
    "body": Row(post(b"abc", b"Content-Type: text/plain"), OK),
    "body without a type": Row(post(b"abc"), OK),
    "empty body": Row(post(b""), OK),
    "POST without a length": Row(get(method=b"POST"), OK),
    "body of all bytes": Row(post(bytes(range(256)) * 8), OK),
    "chunks": Row(post(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", framing=CHUNKED), OK),
    "no chunks": Row(post(b"0\r\n\r\n", framing=CHUNKED), OK),
    "packed body": Row(post(b"\x1f\x8b\x08", b"Content-Encoding: gzip"), OK),
    "trailers": Row(post(b"1\r\na\r\n0\r\nX-End: 1\r\n\r\n", b"Trailer: X-End", framing=CHUNKED), OK),
    "length and chunks": Row(post(b"1\r\na\r\n0\r\n\r\n", b"Content-Length: 3", framing=CHUNKED), OK),
    "two lengths": Row(post(b"abc", b"Content-Length: 2"), OK),
    "same length twice": Row(post(b"abc", b"Content-Length: 3"), OK),
    # Upgrades
    "Upgrade to h2c": Row(get(b"Connection: Upgrade", b"Upgrade: h2c"), OK, PROTOCOLS),
    "Upgrade to TLS": Row(get(b"Connection: Upgrade", b"Upgrade: TLS/1.2, other"), OK, PROTOCOLS),
    "Upgrade with a body": Row(post(b"abc", b"Connection: Upgrade", b"Upgrade: h2c"), OK),
    "WebSocket that is refused": Row(get(*UPGRADE), said(status=b"403 No")),
}

CHUNKS = b"Transfer-Encoding: chunked\r\n"
ANSWERS: dict[str, Row] = {
    "created": Row(get(), said(b"Location: /b", status=b"201 Created")),
    "reason of one's own": Row(get(), said(status=b"200 All Is Well")),
    "reason in Latin-1": Row(get(), said(status=b"200 Tr\xe8s bien")),
    "no reason": Row(get(), said(status=b"200 ")),
    "status of nobody": Row(get(), said(status=b"299 Odd")),
    "status beyond 599": Row(get(), said(status=b"799 Odd")),
    "redirect": Row(get(), said(b"Location: http://other.test/a?b", status=b"302 Found")),
    "not modified": Row(get(), said(b'ETag: W/"a"', body=b"", status=b"304 Not Modified", framing=b"")),
    "not modified with a length": Row(
        get(), said(body=b"", status=b"304 Not Modified", framing=b"Content-Length: 9\r\n")
    ),
    "no content": Row(get(), said(body=b"", status=b"204 No Content", framing=b"")),
    "error with a body": Row(get(), said(body=b"bad", status=b"500 Oops")),
    "unavailable": Row(get(), said(b"Retry-After: 5", status=b"503 Later")),
    "unauthorized": Row(
        get(), said(b"WWW-Authenticate: Negotiate", b"WWW-Authenticate: Basic realm=a", status=b"401 Who")
    ),
    "partial": Row(get(), said(b"Content-Range: bytes 0-1/9", status=b"206 Partial Content")),
    "no type": Row(get(), said()),
    "empty type": Row(get(), said(b"Content-Type:")),
    "odd type": Row(get(), said(b"Content-Type: Text/HTML ;charset = x")),
    "file name in Latin-1": Row(get(), said(b'Content-Disposition: attachment; filename="r\xe9sum\xe9.pdf"')),
    "file name in UTF-8": Row(get(), said(b'Content-Disposition: attachment; filename="r\xc3\xa9sum\xc3\xa9.pdf"')),
    "not UTF-8 at all": Row(get(), said(b"X-Bytes: \xff\xfe\x80")),
    "control character": Row(get(), said(b"X-Control: a\x08b")),
    "several cookies": Row(get(), said(b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2; HttpOnly")),
    "same name twice": Row(get(), said(b"X-Two: a", b"X-Two: b")),
    "empty value": Row(get(), said(b"X-Empty:")),
    "space around a value": Row(get(), said(b"X-Space: \t a  b \t")),
    "underscore in a name": Row(get(), said(b"X_My_Header: a")),
    "name in odd case": Row(get(), said(b"x-LoWeR: a")),
    "200 headers": Row(get(), said(*(b"X-%d: %d" % (number, number) for number in range(200)))),
    "header of 20,000 bytes": Row(get(), said(b"X-Long: " + b"a" * 20_000)),
    "headers of 50,000 bytes": Row(get(), said(*(b"X-%d: " % number + b"a" * 5000 for number in range(10)))),
    "headers of 100,000 bytes": Row(
        get(), said(*(b"X-%d: " % number + b"a" * 5000 for number in range(20))), "memory: 64 KiB; the 502 says so"
    ),
    "packed body": Row(get(), said(b"Content-Encoding: gzip", body=b"\x1f\x8b\x08")),
    "server and date": Row(get(), said(b"Server: Upstream/1", b"Date: Thu, 01 Jan 1970 00:00:00 GMT")),
    "Via and Age": Row(get(), said(b"Via: 1.1 cache", b"Age: 5")),
    "Connection names a header": Row(get(), said(b"Connection: X-Hop", b"X-Hop: 1"), HOP_BY_HOP),
    "Connection: close": Row(get(), said(b"Connection: close")),
    "Alt-Svc": Row(get(), said(b'Alt-Svc: h3=":443"')),
    "folded": Row(get(), said(b"X-One: a", b" b")),
    "chunks": Row(get(), said(body=b"3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n", framing=CHUNKS)),
    "no chunks": Row(get(), said(body=b"0\r\n\r\n", framing=CHUNKS)),
    "trailers": Row(get(), said(b"Trailer: X-End", body=b"1\r\na\r\n0\r\nX-End: 1\r\n\r\n", framing=CHUNKS)),
    "chunks for HTTP/1.0": Row(get(version=b"HTTP/1.0"), said(body=b"3\r\nabc\r\n0\r\n\r\n", framing=CHUNKS)),
    "chunks and a length": Row(get(), said(b"Content-Length: 9", body=b"1\r\na\r\n0\r\n\r\n", framing=CHUNKS)),
    "empty body": Row(get(), said(body=b"")),
    "body of all bytes": Row(get(), said(body=bytes(range(256)) * 8)),
    "hints": Row(get(), b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
    "HEAD with a length": Row(get(method=b"HEAD"), said(body=b"", framing=b"Content-Length: 99\r\n")),
    "HEAD with chunks": Row(get(method=b"HEAD"), said(body=b"", framing=CHUNKS)),
    "HTTP/1.0": Row(get(), OK.replace(b"HTTP/1.1", b"HTTP/1.0")),
    "two lengths": Row(get(), said(b"Content-Length: 3")),
    "not HTTP": Row(get(), b"SSH-2.0-Upstream\r\n\r\n"),
    "HTTP/2": Row(get(), b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "name without a colon": Row(get(), said(b"X-Nothing")),
    "NUL": Row(get(), said(b"X-Nul: a\x00b")),
}
