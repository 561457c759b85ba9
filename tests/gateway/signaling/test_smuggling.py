"""HTTP request smuggling: bytes that two servers might read differently end in a refusal, and are never forwarded.

Each case goes to the TLS port as it stands here; behind the relay a server records what reaches it. What must not
arrive there has MARK in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from relay.addresses import Address
from tests.support.benches.gateway import running_relay
from tests.support.peers.raw_http import OK, ask, receive_all, receive_head, recording_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import eventually

NO_UPSTREAM = Address("127.0.0.1", 9)
MARK = b"smuggled"
# Every status that says "not like this": bad request, no such target, method, timeout, length, size, and so on.
REFUSALS = {400, 404, 405, 408, 413, 414, 417, 431, 501, 505}
HOST = b"Host: relay.test\r\n"
SECOND = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /first HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A POST whose head already must not arrive."""
    return b"POST /smuggled HTTP/1.1\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def get(*fields: bytes, target: bytes = b"/smuggled", host: bytes = HOST, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + host + b"".join(one + b"\r\n" for one in fields) + b"\r\n"


CASES = {
    # Two lengths
    "CL.TE": post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nG"),
    "TE.CL": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"8\r\nsmuggled\r\n0\r\n\r\n"),
    "CL.CL different": post(b"Content-Length: 8", b"Content-Length: 7", body=b"12345678"),
    "CL.CL same": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "CL list": post(b"Content-Length: 3, 3", body=b"abc"),
    "CL list of different": post(b"Content-Length: 3, 4", body=b"abc"),
    "CL.0": post(b"Content-Length: 0", b"Content-Length: 44", body=SECOND),
    "CL plus": post(b"Content-Length: +3", body=b"abc"),
    "CL minus": post(b"Content-Length: -3", body=b"abc"),
    "CL hexadecimal": post(b"Content-Length: 0x3", body=b"abc"),
    "CL with a space": post(b"Content-Length: 1 3", body=b"abc"),
    "CL with a point": post(b"Content-Length: 3.0", body=b"abc"),
    "CL empty": post(b"Content-Length: ", body=b"abc"),
    "CL underscores in digits": post(b"Content-Length: 1_0", body=b"0123456789"),
    "CL beyond 64 bits": post(b"Content-Length: 18446744073709551619", body=b"abc"),
    "CL of other digits": post("Content-Length: ٣".encode(), body=b"abc"),
    # Obfuscated codings
    "TE.TE": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=b"0\r\n\r\n"),
    "TE.TE same": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "TE identity": post(b"Transfer-Encoding: identity", body=b"abc"),
    "TE xchunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "TE chunked twice": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "TE gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "TE chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "TE in quotes": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "TE with a parameter": post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"),
    "TE empty": post(b"Transfer-Encoding: ", b"Content-Length: 3", body=b"abc"),
    "TE behind a space": post(b" Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "TE before a space": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "TE before a tab": post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"),
    "TE folded": post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
    "TE with HTTP/1.0": b"POST /smuggled HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE with an underscore": post(b"Transfer_Encoding: chunked", body=b"0\r\n\r\n"),
    "CL with an underscore": post(b"Content_Length: 44", body=b""),
    # Lines and characters
    "folded header": get(b"X-One: 1", b" 2"),
    "folded first header": get(host=b" Host: relay.test\r\n"),
    "bare LF": get(b"X-One: 1").replace(b"\r\n", b"\n"),
    "one bare LF": get(b"X-One: 1\nX-Two: 2"),
    "bare CR": get(b"X-One: 1\rX-Two: 2"),
    "NUL in a value": get(b"X-One: 1\x002"),
    "NUL in a name": get(b"X-\x00One: 1"),
    "control character in a value": get(b"X-One: 1\x082"),
    "no name": get(b": 1"),
    "no colon": get(b"X-One"),
    "space in a name": get(b"X One: 1"),
    "brackets in a name": get(b"X(One): 1"),
    "other characters in a name": get("X-É: 1".encode()),
    "an underscore for what we say": get(b"X_Forwarded_For: 127.0.0.1"),
    "an underscore for what proxies say": get(b"CF_Connecting_IP: 127.0.0.1"),
    "an underscore for what a family of proxies says": get(b"X_Original-Whatever: 127.0.0.1"),
    # Request lines
    "HTTP/0.9": b"GET /smuggled\r\n\r\n",
    "HTTP/1.2": get(version=b"HTTP/1.2"),
    "HTTP/2.0": get(version=b"HTTP/2.0"),
    "http/1.1": get(version=b"http/1.1"),
    "HTTP/1.1 with a space": get(version=b"HTTP/1.1 "),
    "a tab for a space": b"GET\t/smuggled\tHTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": get(target=b"/smuggled HTTP/1.1\tX:"),
    "fragment": get(target=b"/smuggled#part"),
    "other characters in the target": get(target="/smuggled/é".encode()),
    "dots": get(target=b"/a/../smuggled"),
    "encoded dots": get(target=b"/a/%2e%2e/smuggled"),
    "dots behind an encoded slash": get(target=b"/a%2f..%2fsmuggled"),
    "dots with a parameter": get(target=b"/a/..;/smuggled"),
    "dots with a parameter and a value": get(target=b"/a/..;a=b/smuggled"),
    "encoded dots with a parameter": get(target=b"/a/%2e%2e%3b/smuggled"),
    "one dot with a parameter": get(target=b"/a/.;/smuggled"),
    "dots, encoded twice": get(target=b"/a/%252e%252e/smuggled"),
    "dots before a query, for who decodes first": get(target=b"/a/..%3f/smuggled"),
    "dots before a fragment, for who decodes first": get(target=b"/a/..%23/smuggled"),
    "a control character between dots": get(target=b"/a/.%09./smuggled"),
    "a control character before dots": get(target=b"/a/%7f../smuggled"),
    "dots, encoded three times": get(target=b"/a/%25252e%25252e/smuggled"),
    "one of the dots encoded twice": get(target=b"/a/.%252e/smuggled"),
    "dots behind a slash encoded twice": get(target=b"/a%252f..%252fsmuggled"),
    "dots behind a backslash encoded twice": get(target=b"/a%255c..%255csmuggled"),
    "dots before a space": get(target=b"/a/..%20/smuggled"),
    "dots before a tab and a parameter": get(target=b"/a/..%09;x/smuggled"),
    "overlong dots": get(target=b"/a/%c0%ae%c0%ae/smuggled"),
    "overlong slash": get(target=b"/a/..%c0%afsmuggled"),
    "dots of 16 bits": get(target=b"/a/%u002e%u002e/smuggled"),
    "full-width dots": get(target=b"/a/%ef%bc%8e%ef%bc%8e/smuggled"),
    "two-dot leader": get(target=b"/a/%e2%80%a5/smuggled"),
    "NUL, encoded twice": get(target=b"/smuggled%2500"),
    "dots of an absolute target": get(target=b"http://relay.test/a/..;/smuggled"),
    "encoded a thousand times": get(target=b"/smuggled%" + b"25" * 3000 + b"2e"),
    "encoded NUL": get(target=b"/smuggled%00"),
    "no method of HTTP": b"SMUG /smuggled HTTP/1.1\r\n" + HOST + b"\r\n",
    "lower-case method": b"get /smuggled HTTP/1.1\r\n" + HOST + b"\r\n",
    "TRACE": b"TRACE /smuggled HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT smuggled.test:443 HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"X: smuggled\r\nConnection: close\r\n\r\n",
    # Hosts
    "no Host": get(host=b""),
    "no Host in HTTP/1.0": get(host=b"", version=b"HTTP/1.0"),
    "two Hosts": get(b"Host: other.test"),
    "two Hosts alike": get(b"Host: relay.test"),
    "Host with a user": get(host=b"Host: relay.test@other.test\r\n"),
    "Host with a space": get(host=b"Host: relay.test other.test\r\n"),
    "Host with a path": get(host=b"Host: relay.test/other\r\n"),
    "Host with a list": get(host=b"Host: relay.test, other.test\r\n"),
    "Host with a bad port": get(host=b"Host: relay.test:80:80\r\n"),
    "empty Host": get(host=b"Host: \r\n"),
    "absolute target of another host": get(target=b"http://other.test/smuggled"),
    "absolute target with a user": get(target=b"http://relay.test@other.test/smuggled"),
    "absolute target of another scheme": get(target=b"ftp://relay.test/smuggled"),
    # Hop by hop
    "Connection names Host": get(b"Connection: close, Host"),
    "Connection names Content-Length": post(b"Connection: Content-Length", b"Content-Length: 3", body=b"abc"),
    "Expect nonsense": post(b"Expect: 200-ok", b"Connection: close", b"Content-Length: 3", body=b"abc"),
    # Upgrades
    "h2c by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SECOND,
    "two protocols": get(UPGRADE.replace(b"websocket", b"websocket, h2c").rstrip()) + SECOND,
    "upgrade without Connection": get(UPGRADE.replace(b"Connection: Upgrade\r\n", b"").rstrip()) + SECOND,
    "upgrade with a body": get(UPGRADE + b"Content-Length: 50") + SECOND,
    "upgrade with chunks": get(UPGRADE + b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + SECOND,
    "upgrade in HTTP/1.0": get(UPGRADE.rstrip(), version=b"HTTP/1.0") + SECOND,
    "upgrade by POST": post(UPGRADE.rstrip(), b"Content-Length: 0") + SECOND,
    "websocket without upgrade": get(target=b"/socket.io/?EIO=4&transport=websocket&smuggled=1"),
    "websocket twice without upgrade": get(
        target=b"/socket.io/?EIO=4&transport=polling&transport=websocket&smuggled=1"
    ),
    # Sizes
    "one header too large": get(b"X-One: " + bytes(33_000).replace(b"\0", b"x")),
    "one header far too large": get(b"X-One: " + b"x" * 900_000),
    "headers too large": get(*(b"X-%d: " % number + b"x" * 4000 for number in range(10))),
    "too many headers": get(*(b"X-%d: 1" % number for number in range(4000))),
    "far too many headers": get(*(b"X-%d: 1" % number for number in range(40_000))),
    "headers without end": b"GET /smuggled HTTP/1.1\r\n" + HOST + b"X-One: 1\r\n" * 40_000,
    "target too long": get(target=b"/smuggled" + b"x" * 9000),
    "announced body too large": post(b"Content-Length: 99999999999", body=b"abc"),
}

# A first request that may be forwarded, and what comes behind it, which may not.
BEHIND = {
    "chunk size of nothing": CHUNKED + b"\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"0x8\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size with a sign": CHUNKED + b"+8\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size below zero": CHUNKED + b"-8\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size with an underscore": CHUNKED + b"1_0\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"10000000000000008\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size behind a space": CHUNKED + b" 8\r\nsmuggled\r\n0\r\n\r\n",
    "chunk size before a space": CHUNKED + b"8 \r\nsmuggled\r\n0\r\n\r\n",
    "chunk size behind a bare LF": CHUNKED + b"8\nsmuggled\r\n0\r\n\r\n",
    "chunk with a bare CR in its extension": CHUNKED + b"8;a\rb\r\nsmuggled\r\n0\r\n\r\n",
    "chunk with a bare LF in its extension": CHUNKED + b"8;a\nb\r\nsmuggled\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"1\r\nasmuggled\r\n0\r\n\r\n",
    "chunk without its end": CHUNKED + b"1\r\na\nsmuggled\r\n0\r\n\r\n",
    "last chunk without its end": CHUNKED + b"0\r\n" + SECOND,
    "trailers that were not announced": CHUNKED + b"0\r\nX-smuggled: 1\r\nContent-Length: 5\r\n\r\n",
    "folded trailers": CHUNKED + b"0\r\nX-One: 1\r\n smuggled\r\n\r\n",
    "garbage behind a request": get(target=b"/first") + b"\x00smuggled\r\n\r\n",
    "too many bytes behind a length": get(b"Content-Length: 1", target=b"/first") + b"a smuggled HTTP/1.1\r\n\r\n",
    "request behind an upgrade that the upstream refuses": get(UPGRADE.rstrip(), target=b"/first") + SECOND,
    "request behind an upgrade that is ignored": get(
        b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", target=b"/first"
    )
    + SECOND,
    "head without end behind a request": get(target=b"/first") + b"GET /smuggled HTTP/1.1\r\n" + b"X: 1\r\n" * 40_000,
    "trailers that were announced": CHUNKED.replace(b"\r\n\r\n", b"\r\nTrailer: X-smuggled\r\n\r\n")
    + b"0\r\nX-smuggled: 1\r\n\r\n",
    "request behind Connection: close": get(b"Connection: close", target=b"/first") + SECOND,
}


class Said(NamedTuple):
    statuses: list[int]
    text: bytes


def read(answer: bytes) -> Said:
    return Said([int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)], answer)


@pytest.fixture
def settings() -> dict[str, object]:
    return {"max_body_bytes": 1 << 20, "body_timeout_s": 5.0}


@pytest.mark.parametrize("name", CASES)
async def test_nothing_of_it_is_forwarded(tmp_path: Path, settings: dict[str, object], name: str) -> None:
    async with (
        recording_upstream() as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url], **settings}) as relay,
    ):
        said = read(await ask(relay, CASES[name]))
        assert upstream.received == b""
        # One answer, and what has come behind gets none.
        assert len(said.statuses) <= 1
        assert set(said.statuses) <= REFUSALS, said


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "the head first"])
@pytest.mark.parametrize("name", BEHIND)
async def test_what_is_behind_is_not_forwarded(
    tmp_path: Path, settings: dict[str, object], name: str, at_once: bool
) -> None:
    async with (
        recording_upstream(lambda received: b"") as upstream,
        running_relay(
            tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url], **settings, "response_timeout_s": 1.0}
        ) as relay,
    ):
        head, end, rest = BEHIND[name].partition(b"\r\n\r\n")
        if b"chunked" in head:
            end += b"1\r\na\r\n"  # a good one before
        elif b"Content-Length" in head:
            end, rest = end + rest[:1], rest[1:]
        client = await TlsClient.open(relay.tls, relay.trust)
        if at_once:
            await client.send(head + end + rest)
        else:
            await client.send(head + end)
            await eventually(lambda: b"/first" in upstream.received)
            await client.send(rest)
        said = read(await receive_all(client))
        assert len(said.statuses) <= 1
        assert set(said.statuses) <= REFUSALS | {504}  # the upstream of this test never answers
        assert MARK not in upstream.received
        assert upstream.received.count(b" HTTP/1.1\r\n") <= 1
        # What was begun is not ended as if it were whole.
        assert not upstream.received.endswith(b"0\r\n\r\n") or name.startswith("trailers")


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        (b"GET  /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", b"GET /a HTTP/1.1\r\n"),
        (get(b"Connection: close", target=b"https://relay.test/a?b"), b"GET /a?b HTTP/1.1\r\n"),
        (CHUNKED + b"1;ext=smuggled\r\na\r\n0\r\n\r\n", b"\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        (CHUNKED + b"0001\r\na\r\n000\r\nX-smuggled: 1\r\n\r\n", b"\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        (get(b"Connection: close, X-smuggled", b"X-Smuggled: 1", target=b"/a"), b"GET /a HTTP/1.1\r\n"),
        (get(b"Connection: Upgrade", b"Upgrade: smuggled/2, other", target=b"/a"), b"GET /a HTTP/1.1\r\n"),
        (get(b"X-One: \xff\xfe", target=b"/a"), b"\r\nX-One: \xff\xfe\r\n"),
        (get(target=b"/%ff%FE?q=%e9"), b"GET /%ff%FE?q=%e9 HTTP/1.1\r\n"),
        (get(target=b"/a...b/..c/100%25/%2525;d=.."), b"GET /a...b/..c/100%25/%2525;d=.. HTTP/1.1\r\n"),
    ],
    ids=[
        "two spaces",
        "absolute target",
        "chunk extension",
        "zeros and trailers",
        "named by Connection",
        "another protocol",
        "neither ASCII nor UTF-8",
        "a path that is not UTF-8",
        "dots that lead nowhere",
    ],
)
async def test_what_is_accepted_goes_on_in_its_plainest_form(tmp_path: Path, sent: bytes, forwarded: bytes) -> None:
    async with (
        recording_upstream(lambda received: OK if received.endswith(b"\r\n\r\n") else b"") as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url]}) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(sent)
        assert (await receive_head(client)).startswith(b"HTTP/1.1 200 OK\r\n")
        client.abort()
        assert forwarded in upstream.received
        assert MARK not in upstream.received.lower()


@pytest.mark.parametrize(
    "head", [get(UPGRADE.rstrip(), target=b"/healthz"), b"CONNECT a.test:1 HTTP/1.1\r\n" + HOST + b"\r\n"]
)
async def test_what_is_behind_a_refused_upgrade_of_our_own_paths_is_no_request(tmp_path: Path, head: bytes) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        for parts in ((head + SECOND,), (head, SECOND)):
            assert len(read(await ask(relay, *parts)).statuses) == 1


async def test_the_table_is_long_enough_and_can_fail(tmp_path: Path, settings: dict[str, object]) -> None:
    assert len(CASES) + len(BEHIND) >= 40
    async with (
        recording_upstream() as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url], **settings}) as relay,
    ):
        said = read(await ask(relay, get(b"Connection: close")))
        assert said.statuses == [200]
        assert MARK in upstream.received
