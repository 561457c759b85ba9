"""The signaling proxy through the TLS port: what goes on to upstreams and how, what comes back, and what goes wrong."""

from __future__ import annotations

import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from relay.demo.authority import Authority
from relay.errors import OperatorError
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling.refusals import RefusalReason
from tests.support.benches.gateway import running_relay, write_config
from tests.support.benches.signaling import GET, NO_UPSTREAM, SWITCH, UPGRADE, open_websocket, proxying
from tests.support.peers.raw_http import OK, ask, receive_all, receive_head, recording_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import eventually

NOBODY = "http://127.0.0.1:1"


def fields_of(head: bytes) -> dict[str, list[str]]:
    """The header fields of a head, names in lower case."""
    found: dict[str, list[str]] = {}
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.decode().partition(": ")
        found.setdefault(name.lower(), []).append(value)
    return found


# What goes on


async def test_request_goes_on_as_it_came_but_for_what_is_between_neighbours(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, upstream):
        await ask(
            relay,
            b"GET /a%2Fb//c;d?x=%41&&y= HTTP/1.1\r\nHost: Desk.Relay.test:443\r\nOrigin: https://a.test\r\n"
            b"Cookie: a=1\r\nCookie: b=2\r\nX-Mixed-Case: \xc3\xa9\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
            b"Proxy-Authorization: Basic x\r\nX-Hop: 1\r\nConnection: close, x-hop\r\n\r\n",
        )
        received = upstream.received
        assert received.startswith(b"GET /a%2Fb//c;d?x=%41&&y= HTTP/1.1\r\n")
        fields = fields_of(received)
        assert fields["host"] == ["Desk.Relay.test:443"]
        assert fields["origin"] == ["https://a.test"]
        assert fields["cookie"] == ["a=1", "b=2"]
        assert fields["x-mixed-case"] == ["é"]
        assert b"X-Mixed-Case: " in received
        gone = {"keep-alive", "te", "proxy-authorization", "x-hop", "connection"}
        # Nothing of our own either: no Accept-Encoding, no User-Agent.
        said = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-relay-id"}
        assert set(fields) == {"host", "origin", "cookie", "x-mixed-case"} | said
        assert not gone & set(fields)


SPOOFED = b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: outer.test\r\n"
SPOOFED += b"Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nX-Forwarded-Port: 1\r\n"
# What content networks and other proxies say.
# fmt: off
SPOOFED_LIKEWISE = [
    "proxy", "x-real-port", "x-true-client-ip", "ali-cdn-real-ip", "wl-proxy-ssl", "x-tls-client-cert", "remote-groups",
    "x-webauth-user", "x-auth-request-user", "x-authentik-username", "x-amzn-oidc-identity",
    "x-ms-client-principal-name", "x-goog-authenticated-user-email",
    "cf-connecting-ip", "cf-ipcountry", "true-client-ip", "fastly-client-ip", "fly-client-ip", "x-azure-clientip",
    "x-envoy-external-address", "x-cluster-client-ip", "x-original-url", "x-rewrite-url",
    "x-original-forwarded-for", "x-forwarded-user", "x-forwarded-prefix", "x-forwarded-client-cert",
    "ssl-client-verify", "x-ssl-client-cert", "x-remote-user", "remote-user", "client-ip", "x-client-ip",
    "x-appengine-user-ip", "cloudfront-viewer-address", "x-arr-clientcert", "client-cert", "x-host",
]
# fmt: on
SPOOFED += b"".join(f"{name}: 192.0.2.1\r\n".encode() for name in SPOOFED_LIKEWISE)


async def test_what_a_client_says_of_itself_is_replaced(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, upstream):
        await ask(relay, GET + SPOOFED + b"\r\n")
        fields = fields_of(upstream.received)
        assert fields["x-forwarded-for"] == ["127.0.0.1"]
        assert fields["x-forwarded-proto"] == ["https"]
        assert fields["x-forwarded-host"] == ["relay.test"]
        assert fields["forwarded"] == ['for=127.0.0.1;host="relay.test";proto=https']
        assert not {"x-real-ip", "x-forwarded-port", *SPOOFED_LIKEWISE} & set(fields)
        assert b"192.0.2.1" not in upstream.received


async def test_what_a_trusted_proxy_says_is_added_to(tmp_path: Path) -> None:
    async with proxying(tmp_path, trusted_networks=["127.0.0.0/8"]) as (relay, upstream):
        await ask(relay, GET + SPOOFED + b"\r\n")
        fields = fields_of(upstream.received)
        assert fields["x-forwarded-for"] == ["192.0.2.1, 127.0.0.1"]
        assert fields["x-forwarded-proto"] == ["http"]
        assert fields["x-forwarded-host"] == ["outer.test"]
        assert fields["forwarded"] == ['for=192.0.2.1, for=127.0.0.1;host="relay.test";proto=https']
        assert all(fields[name] == ["192.0.2.1"] for name in ("x-real-ip", *SPOOFED_LIKEWISE))


async def test_body_goes_on_as_it_comes(tmp_path: Path) -> None:
    async with (
        recording_upstream(lambda received: OK if received.endswith(b"end") else b"") as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url]}) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        body = gzip.compress(b"not looked into") + b"end"
        head = GET.replace(b"GET", b"POST") + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        await client.send(head % len(body))
        await client.send(body[:5])
        # It is there before the rest has been sent.
        await eventually(lambda: upstream.received.endswith(b"\r\n\r\n" + body[:5]))
        await client.send(body[5:])
        assert (await receive_all(client)).endswith(b"ok")
        assert upstream.received.endswith(b"\r\n\r\n" + body)


# What comes back


async def test_answer_comes_back_as_it_is(tmp_path: Path) -> None:
    packed = gzip.compress(b"page")
    answer = b"HTTP/1.1 203 As It Is\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\n"
    answer += b"Content-Type: text/html\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nETag: W/1\r\n"
    answer += b"Content-Length: %d\r\n\r\n" % len(packed) + packed
    async with proxying(tmp_path, answer) as (relay, _):
        said = await ask(relay, GET + b"\r\n")
        assert said.startswith(b"HTTP/1.1 203 As It Is\r\n")
        assert said.endswith(b"\r\n\r\n" + packed)
        fields = fields_of(said)
        assert fields["set-cookie"] == ["a=1; Path=/", "b=2"]
        assert fields["content-encoding"] == ["gzip"]
        assert fields["etag"] == ["W/1"]
        assert not {"x-hop", "keep-alive"} & set(fields)


async def test_answer_comes_back_piece_by_piece(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with proxying(tmp_path, head) as (relay, upstream):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(b"GET /a HTTP/1.1\r\nHost: relay.test\r\n\r\n")
        assert b"\r\nTransfer-Encoding: chunked\r\n" in await receive_head(client)
        for chunk in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"):
            upstream.send(chunk)
            assert await client.receive_exactly(len(chunk)) == chunk
        # And the connection serves the next request.
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n")
        assert (await receive_head(client)).startswith(b"HTTP/1.1 200 OK\r\n")
        client.abort()


@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad", b"bad"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
    ],
)
async def test_kinds_of_answers(tmp_path: Path, method: str, answer: bytes, expected: bytes) -> None:
    async with proxying(tmp_path, answer) as (relay, _):
        said = await ask(relay, GET.replace(b"GET", method.encode()) + b"\r\n")
        head, _, body = said.partition(b"\r\n\r\n")
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        if answer.startswith(hints):
            # RFC 9110 section 15.2: they are passed on.
            assert said.startswith(hints)
            head, _, body = said.removeprefix(hints).partition(b"\r\n\r\n")
        final = answer.removeprefix(hints)
        assert head.split(b"\r\n")[0] == final.split(b"\r\n")[0]
        assert body == expected


async def test_answer_that_breaks_off_is_not_ended_as_if_it_were_whole(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
    async with proxying(tmp_path, head) as (relay, upstream):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET + b"\r\n")
        received = b""
        while not received.endswith(b"one\r\n"):
            received += await client.receive()
        upstream.close_connections()
        assert await receive_all(client) == b""


async def test_http_1_0_client_gets_no_chunks(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
    async with proxying(tmp_path, answer) as (relay, _):
        said = await ask(relay, b"GET /a HTTP/1.0\r\nHost: relay.test\r\n\r\n")
        assert b"chunked" not in said
        assert said.endswith(b"\r\n\r\none")


async def test_client_that_leaves_ends_its_request_upstream(tmp_path: Path) -> None:
    async with proxying(tmp_path, b"") as (relay, upstream):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET + b"\r\n")
        await eventually(lambda: upstream.received)
        ended = upstream.ended
        client.abort()
        await eventually(lambda: upstream.ended > ended)


# What goes wrong


async def test_a_connection_that_was_closed_while_idle_is_not_the_clients_affair(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, upstream):
        for number in range(3):
            assert (await ask(relay, GET + b"\r\n")).endswith(b"ok")
            if number:
                upstream.close_connections()
        assert upstream.received.count(b"GET /a") == 3


async def test_nobody_there_is_502(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [NOBODY]}) as relay:
        said = await ask(relay, GET + b"\r\n")
        assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert said.endswith(b"502: no signaling upstream could be reached: connection refused\n")
        assert relay.gateway.signaling.refusals[RefusalReason.UNREACHABLE] == 1


async def test_silence_is_504(tmp_path: Path) -> None:
    async with proxying(tmp_path, b"", response_timeout_s=0.2) as (relay, _):
        said = await ask(relay, GET + b"\r\n")
        assert said.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert said.endswith(b"504: the signaling upstream said nothing for 0.2 s\n")


async def test_request_without_a_connection_goes_to_the_next(tmp_path: Path) -> None:
    async with recording_upstream() as upstream:
        signaling = {"upstreams": [NOBODY, upstream.url], "health_interval_s": 3600.0}
        async with running_relay(tmp_path, NO_UPSTREAM, signaling=signaling) as relay:
            for _ in range(3):
                post = GET.replace(b"GET", b"POST") + b"Content-Length: 4\r\n\r\nbody"
                assert (await ask(relay, post)).endswith(b"ok")
            assert upstream.received.count(b"\r\n\r\nbody") == 3


async def test_request_that_was_sent_is_not_repeated(tmp_path: Path) -> None:
    async with (
        recording_upstream(lambda received: b"") as one,
        recording_upstream(lambda received: b"") as two,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [one.url, two.url]}) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET.replace(b"GET", b"POST") + b"Content-Length: 4\r\n\r\nbody")
        await eventually(lambda: b"body" in one.received + two.received)
        for upstream in (one, two):
            upstream.close_connections()
        said = await receive_all(client)
        assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert (one.received + two.received).count(b"body") == 1


async def test_down_and_up_again(tmp_path: Path) -> None:
    async with recording_upstream() as first:
        port = first.port
        signaling = {"upstreams": [first.url], "health_interval_s": 0.05}
        async with running_relay(tmp_path, NO_UPSTREAM, signaling=signaling) as relay:
            [state] = relay.gateway.signaling.pools
            await eventually(lambda: state.health is Health.UP)
    async with running_relay(tmp_path, NO_UPSTREAM, signaling=signaling) as relay:
        [state] = relay.gateway.signaling.pools
        await eventually(lambda: state.health is Health.DOWN)
        async with recording_upstream(port=port):
            await eventually(lambda: state.health is Health.UP)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET.replace(b"GET", b"POST") + b"Content-Length: 11\r\n\r\n", b"413 "),
        (GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n", b"413 "),
        (GET + b"X-Large: " + b"x" * 1100 + b"\r\n\r\n", b"431 "),
        (GET.replace(b"GET", b"POST") + b"Content-Length: 5\r\n\r\nslow", b"408 "),
    ],
    ids=["length", "chunks", "headers", "slow"],
)
async def test_limits(tmp_path: Path, request_bytes: bytes, status: bytes) -> None:
    limits = {"max_body_bytes": 10, "max_header_bytes": 1024, "body_timeout_s": 0.2}
    async with proxying(tmp_path, b"", **limits) as (relay, upstream):
        said = await ask(relay, request_bytes)
        assert said.startswith(b"HTTP/1.1 " + status)
        assert not upstream.received.endswith(b"0\r\n\r\n")


# Where it goes


async def test_own_paths_win(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, upstream):
        assert (await ask(relay, GET.replace(b"/a", b"/healthz") + b"\r\n")).endswith(b"ok\n")
        said = await ask(relay, GET.replace(b"GET /a", b"POST /healthz") + b"\r\n")
        assert said.startswith(b"HTTP/1.1 405 ")
        assert upstream.received == b""
        assert (await ask(relay, GET.replace(b"/a", b"/") + b"\r\n")).endswith(b"ok")
        assert upstream.received.startswith(b"GET / HTTP/1.1\r\n")


async def test_routes_by_host_and_path(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        exact, wild, deep = [await stack.enter_async_context(recording_upstream()) for _ in range(3)]
        routes = [
            {"host": "*.relay.test", "upstreams": [wild.url]},
            {"host": "*.relay.test", "path": "/socket.io/", "upstreams": [deep.url]},
            {"host": "desk.relay.test", "path": "/api", "upstreams": [exact.url]},
        ]
        async with running_relay(tmp_path, NO_UPSTREAM, signaling={"routes": routes}) as relay:
            for host, path, upstream in (
                (b"desk.relay.test", b"/api", exact),
                (b"DESK.relay.test.:443", b"/api/v1", exact),
                (b"desk.relay.test", b"/apis", wild),
                (b"a.b.relay.test", b"/", wild),
                (b"a.relay.test", b"/socket.io/?EIO=4", deep),
                (b"a.relay.test", b"/%73ocket.io/x", deep),
                (b"other.test", b"/", None),
                (b"relay.test", b"/", None),
            ):
                before = {one: len(one.received) for one in (exact, wild, deep)}
                said = await ask(relay, GET.replace(b"relay.test", host).replace(b"/a", path) + b"\r\n")
                assert said.startswith(b"HTTP/1.1 200 " if upstream else b"HTTP/1.1 404 "), (host, path)
                reached = [one for one, seen in before.items() if len(one.received) > seen]
                assert reached == ([upstream] if upstream else []), (host, path)


async def test_all_requests_of_an_unknown_session_go_to_the_same_upstream(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(recording_upstream()) for _ in range(3)]
        urls = [upstream.url for upstream in upstreams]
        async with running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": urls}) as relay:
            for number in range(6):
                seen = [len(upstream.received) for upstream in upstreams]
                for _ in range(4):
                    await ask(
                        relay, GET.replace(b"/a", b"/socket.io/?EIO=4&transport=polling&sid=s%d" % number) + b"\r\n"
                    )
                reached = [
                    upstream
                    for upstream, before in zip(upstreams, seen, strict=True)
                    if len(upstream.received) > before
                ]
                assert len(reached) == 1


async def test_ids_that_no_upstream_knows_are_not_remembered(tmp_path: Path) -> None:
    polling = b"/socket.io/?EIO=4&transport=polling&sid=made-up"
    page = OK.replace(b"\r\n\r\nok", b"\r\n\r\n<h")
    for target, answer, remembered in (
        (polling, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", 0),
        (polling, OK, 1),
        (polling + b"&a=" * 200, OK, 1),
        (polling.replace(b"?", b"?" + b"a=&" * 200), OK, 1),
        # Of other servers' sessions nothing is learnt, nor of what they say to socket.io.
        (polling, page, 0),
        (polling, b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 2\r\n\r\nok", 0),
        (b"/api?sid=made-up", OK, 0),
        (b"/api?EIO=4&sid=made-up", OK, 0),
    ):
        async with proxying(tmp_path, answer) as (relay, _):
            await ask(relay, GET.replace(b"/a", target) + b"\r\n")
            assert len(relay.gateway.signaling.affinity) == remembered


@contextlib.asynccontextmanager
async def tls_upstream(authority: Authority, *names: str) -> AsyncIterator[int]:
    """An https server with a certificate for these names; its port."""

    async def on_request(_: web.Request) -> web.Response:
        return web.Response(text="over TLS")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", on_request)
    issued = authority.issue(*names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.private_key)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_https_upstream_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "upstream"
    folder.mkdir()
    authority = Authority(folder)
    # The name is the certificate's; it resolves to loopback, which has to be allowed.
    settings = {"ca_file": str(authority.ca_certificate), "allowed_networks": ["127.0.0.0/8"]}
    async with tls_upstream(authority, "localhost") as port:
        for url, more, expected in (
            (f"https://localhost:{port}", settings, b"over TLS"),
            (f"https://127.0.0.1:{port}", settings, b"its certificate was refused, or TLS failed\n"),
            (
                f"https://localhost:{port}",
                {**settings, "ca_file": str(tmp_path / "ca.pem")},
                b"its certificate was refused, or TLS failed\n",
            ),
            (
                f"https://localhost:{port}",
                {**settings, "allowed_networks": []},
                b"its name was not resolved, or its address is not allowed\n",
            ),
        ):
            async with running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [url], **more}) as relay:
                assert (await ask(relay, GET + b"\r\n")).endswith(expected)


async def test_trust_that_cannot_be_read_is_the_operators(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"signaling\.ca_file"):
        async with running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [NOBODY], "ca_file": "none.pem"}):
            pass


async def test_reload(tmp_path: Path) -> None:
    async with recording_upstream() as upstream, running_relay(tmp_path, NO_UPSTREAM) as relay:
        assert (await ask(relay, GET + b"\r\n")).startswith(b"HTTP/1.1 404 ")
        write_config(relay.config_file, {**relay.tree, "signaling": {"upstreams": [upstream.url]}})
        relay.gateway.reload(relay.config_file)
        assert (await ask(relay, GET + b"\r\n")).endswith(b"ok")
        [state] = relay.gateway.signaling.pools
        await eventually(lambda: state.health is Health.UP)
        # A mistake changes nothing.
        write_config(relay.config_file, {**relay.tree, "signaling": {"upstreams": [NOBODY], "ca_file": "none.pem"}})
        with pytest.raises(OperatorError):
            relay.gateway.reload(relay.config_file)
        assert (await ask(relay, GET + b"\r\n")).endswith(b"ok")
        health = relay.gateway.signaling._health
        assert health is not None
        assert len(health._tasks) == 1
        write_config(relay.config_file, relay.tree)
        relay.gateway.reload(relay.config_file)
        assert (await ask(relay, GET + b"\r\n")).startswith(b"HTTP/1.1 404 ")
        # An upstream that is none any more is not probed.
        await eventually(lambda: not len(health._tasks))


# WebSockets


async def test_bytes_behind_a_101_are_untouched(tmp_path: Path) -> None:
    # No frames at all: nobody here reads them.
    first = b"\xff\x00not a frame"
    async with proxying(tmp_path, SWITCH + first) as (relay, upstream):
        client = await open_websocket(relay)
        head, _, rest = (await receive_head(client)).partition(b"\r\n\r\n")
        fields = fields_of(head + b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert fields["connection"] == ["Upgrade"]
        assert fields["upgrade"] == ["websocket"]
        assert fields["sec-websocket-extensions"] == ["permessage-deflate"]
        assert fields["sec-websocket-accept"] == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
        assert not {"transfer-encoding", "content-length", "content-type"} & set(fields)
        assert rest + await client.receive_exactly(len(first) - len(rest)) == first
        sent = fields_of(upstream.received)
        assert (sent["connection"], sent["upgrade"]) == (["Upgrade"], ["websocket"])
        assert sent["sec-websocket-key"] == ["dGhlIHNhbXBsZSBub25jZQ=="]
        await client.send(bytes(range(256)), b"\r\n\r\n")
        await eventually(lambda: upstream.received.endswith(bytes(range(256)) + b"\r\n\r\n"))
        # To the recording server these look like one more head.
        assert await client.receive_exactly(len(SWITCH + first)) == SWITCH + first
        await eventually(lambda: relay.gateway.signaling.websockets == 1)
        upstream.close_connections()
        assert await client.receive() == b""
        client.abort()
        await eventually(lambda: not relay.gateway.signaling.websockets)
        await eventually(lambda: not relay.connections)


async def test_end_of_the_client_is_passed_on(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH) as (relay, upstream):
        client = await open_websocket(relay)
        await receive_head(client)
        await client.send(b"close frame")
        ended = upstream.ended
        await client.end()
        await eventually(lambda: upstream.ended > ended)
        assert upstream.received.endswith(b"close frame")
        client.abort()


async def test_frames_in_the_same_segment_as_the_upgrade(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH) as (relay, upstream):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(UPGRADE % b"" + b"early frame")
        assert (await receive_head(client)).startswith(b"HTTP/1.1 101 ")
        await eventually(lambda: upstream.received.endswith(b"early frame"))
        client.abort()


async def test_client_that_leaves_ends_its_websocket(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH) as (relay, upstream):
        for leave in (TlsClient.reset, TlsClient.abort):
            client = await open_websocket(relay)
            await receive_head(client)
            ended = upstream.ended
            leave(client)
            await eventually(lambda ended=ended: upstream.ended > ended)  # type: ignore[misc]
        await eventually(lambda: not relay.connections)
        await eventually(lambda: not relay.gateway.signaling.websockets)


async def test_stop_ends_websockets_and_polls(tmp_path: Path) -> None:
    answers = iter([SWITCH, b""])
    async with recording_upstream(lambda received: next(answers) if b"\r\n\r\n" in received else b"") as upstream:
        async with running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url]}) as relay:
            socket = await open_websocket(relay)
            await receive_head(socket)
            poll = await TlsClient.open(relay.tls, relay.trust)
            await poll.send(GET + b"\r\n")
            await eventually(lambda: b"GET /a" in upstream.received)
        assert await receive_all(socket) == b""
        assert await receive_all(poll) == b""


async def test_request_on_an_open_connection_after_the_stop(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, upstream):
        await relay.gateway.signaling.stop()
        assert (await ask(relay, GET + b"\r\n")).startswith(b"HTTP/1.1 503 ")
        assert b"GET" not in upstream.received


async def test_upgrade_that_the_upstream_refuses(tmp_path: Path) -> None:
    async with proxying(tmp_path) as (relay, _):
        client = await open_websocket(relay)
        assert (await receive_all(client)).endswith(b"ok")


async def test_idle_websocket_is_closed(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH, websocket_idle_timeout_s=0.1) as (relay, _):
        assert (await receive_all(await open_websocket(relay))).startswith(b"HTTP/1.1 101 ")


async def test_101_that_nobody_asked_for(tmp_path: Path) -> None:
    async with proxying(tmp_path, SWITCH) as (relay, _):
        assert (await ask(relay, GET + b"\r\n")).startswith(b"HTTP/1.1 502 ")


# What is counted


async def test_metrics(tmp_path: Path) -> None:
    async with (
        proxying(tmp_path) as (relay, upstream),
        aiohttp.ClientSession() as session,
    ):
        await ask(relay, GET + b"\r\n")
        await ask(relay, GET + b"Connection: Host\r\n\r\n")
        async with session.get(f"http://{relay.admin}/metrics") as response:
            text = await response.text()
    assert f'relay_signaling_requests_total{{status_class="2xx",upstream="{upstream.url}"}} 1.0' in text
    assert f'relay_signaling_requests_total{{status_class="failed",upstream="{upstream.url}"}} 0.0' in text
    assert f'relay_signaling_upgrades_total{{upstream="{upstream.url}"}} 0.0' in text
    assert f'relay_signaling_websockets{{upstream="{upstream.url}"}} 0.0' in text
    assert 'relay_signaling_refusals_total{reason="bad_request"} 1.0' in text
    assert 'relay_signaling_refusals_total{reason="polling_only"} 0.0' in text
    assert "relay_signaling_swallowed_upgrades_total 0.0" in text
