"""HTTP on the TLS port: what a browser sees, what a handler sees, and what a client gets that takes its time."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from relay import __version__
from relay.addresses import Address
from relay.gateway.http import site
from relay.plane.api import CloseReason
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.raw_http import ask
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually

NO_UPSTREAM = Address("127.0.0.1", 9)
GET = b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n"


def closed(relay: Relay, reason: CloseReason) -> int:
    return relay.gateway.plane.snapshot().closed.get(reason, 0)


@asynccontextmanager
async def browsing(
    relay: Relay, *, connections: int = 100
) -> AsyncIterator[Callable[[str, str], aiohttp.client._RequestContextManager]]:
    """``request(method, path)`` over the TLS port, by the name of the certificate."""
    connector = aiohttp.TCPConnector(ssl=relay.trust, limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield lambda method, path: session.request(method, f"https://{relay.tls}{path}", server_hostname="relay.test")


@pytest.mark.parametrize("gone", [True, False])
def test_a_client_that_has_gone_leaves_no_traceback(gone: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It asked for a 100 and left. What resets a connection elsewhere, such as an upstream, is told."""
    handler = site._Handler.__new__(site._Handler)
    handler.transport = Mock(spec=asyncio.Transport)
    handler.transport.is_closing.return_value = gone
    handler.logger = logging.getLogger("aiohttp.server")
    handler._loop, handler.debug, handler._request_count = Mock(get_debug=lambda: False), False, 2
    request = make_mocked_request("OPTIONS", "*", writer=Mock(output_size=0))
    response = handler.handle_error(request, 500, aiohttp.ClientConnectionResetError("closing"))
    assert response.status == (400 if gone else 500)
    assert bool(caplog.records) is not gone


async def test_page(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay, browsing(relay) as request:
        async with request("GET", "/") as response:
            assert response.status == 200
            assert response.content_type == "text/html"
            assert response.headers["Server"] == "cloud9-relay"
            assert __version__ in await response.text()
        async with request("GET", "/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")


async def test_answers_name_their_connection_in_the_log(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with running_relay(tmp_path, NO_UPSTREAM) as relay, browsing(relay, connections=1) as request:
            told = []
            for path in ("/", "/nothing", "/turn"):
                async with request("GET", path) as response:
                    told.append(response.headers["X-Relay-Id"])
    assert len(set(told)) == 1
    # It is the id of the connection, as in all other lines, and as in /api/flows.
    assert relay.gateway.ids.connection_of(told[0]) is not None
    [refused] = [line for line in lines if line["event"] == "upgrade refused"]
    assert refused["connection"] == told[0]


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("HEAD", "/", 200, ""),
        ("HEAD", "/healthz", 200, ""),
        ("POST", "/", 405, "405: Method Not Allowed"),
        ("GET", "/nothing", 404, "404: Not Found"),
        # The operators' pages are not for the world.
        ("GET", "/metrics", 404, "404: Not Found"),
        ("GET", "/api/flows", 404, "404: Not Found"),
    ],
)
async def test_other_requests(tmp_path: Path, method: str, path: str, status: int, body: str) -> None:
    async with (
        running_relay(tmp_path, NO_UPSTREAM) as relay,
        browsing(relay) as request,
        request(method, path) as response,
    ):
        assert (response.status, await response.text()) == (status, body)
        assert response.headers["Server"] == "cloud9-relay"


async def test_handler_sees_the_client_and_not_the_socket_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def on_page(request: web.Request) -> web.Response:
        opened = request[site.OPENED]
        seen = [request.remote, request.scheme, str(opened.client), opened.server_name, opened.tls_version]
        return web.json_response(seen)

    monkeypatch.setattr(site, "_on_page", on_page)
    async with (
        running_relay(tmp_path, NO_UPSTREAM) as relay,
        aiohttp.TCPConnector(ssl=relay.trust, local_addr=("127.0.0.77", 0)) as connector,
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"https://{relay.tls}/", server_hostname="desk.relay.test") as response,
    ):
        remote, scheme, client, server_name, tls_version = await response.json()
    assert (remote, scheme, server_name, tls_version) == ("127.0.0.77", "https", "desk.relay.test", "TLSv1.3")
    assert client.startswith("127.0.0.77:")


async def test_many_requests_on_one_connection(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        async with browsing(relay, connections=1) as request:
            for _ in range(20):
                async with request("GET", "/healthz") as response:
                    assert await response.read() == b"ok\n"
            await becomes(lambda: relay.gateway.plane.snapshot().accepted, 1)
        await eventually(lambda: not relay.connections)


async def test_pipelined_requests_in_one_record(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET * 5)
        received = b""
        while received.count(b"ok\n") < 5:
            received += await client.receive()
        assert received.count(b"HTTP/1.1 200 OK\r\n") == 5
        await client.close()


async def test_request_of_single_bytes(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        client = await TlsClient.open(relay.tls, relay.trust, byte_by_byte=True)
        for byte in GET:
            await client.send(bytes([byte]))
        received = b""
        while not received.endswith(b"ok\n"):
            received += await client.receive()
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        await client.close()


async def test_large_response_to_a_slow_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than all the buffers between hold; each chunk says where it belongs.
    chunks = 512
    sent: list[int] = []

    def chunk(number: int) -> bytes:
        return number.to_bytes(4) * (8 * 1024)

    async def on_page(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = chunks * len(chunk(0))
        await response.prepare(request)
        for number in range(chunks):
            await response.write(chunk(number))
            sent.append(number)
        return response

    monkeypatch.setattr(site, "_on_page", on_page)
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        slow = await TlsClient.open(relay.tls, relay.trust, receive_buffer=64 * 1024)
        await slow.send(b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n")
        await eventually(lambda: sent)
        # While this one does not read, others are served, and what waits for it is bounded.
        async with browsing(relay) as request:
            for _ in range(20):
                async with request("GET", "/healthz") as response:
                    assert response.status == 200
        assert len(sent) < chunks
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += await slow.receive()
        header_bytes = received.index(b"\r\n\r\n") + 4
        del received[:header_bytes]
        while len(received) < chunks * len(chunk(0)):
            received += await slow.receive()
        assert received == b"".join(chunk(number) for number in range(chunks))
        await slow.close()


async def test_slow_headers_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "FIRST_REQUEST_TIMEOUT_S", 0.05)
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert await client.receive() == b""
        client.abort()
        await eventually(lambda: closed(relay, CloseReason.HTTP_CLOSED) == 1)


async def test_slow_headers_of_a_later_request_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(site._HANDLER_OPTIONS, "keepalive_timeout", 0.2)
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.receive()).startswith(b"HTTP/1.1 200 ")
        await client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        while await client.receive():
            pass
        client.abort()
        await eventually(lambda: closed(relay, CloseReason.HTTP_CLOSED) == 1)


async def test_deadline_of_the_first_request_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "FIRST_REQUEST_TIMEOUT_S", 3600)
    async with running_relay(tmp_path, NO_UPSTREAM) as relay, browsing(relay) as request:
        async with request("GET", "/healthz") as response:
            assert response.status == 200
        await eventually(lambda: not relay.gateway._site._deadlines)


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\nBroken\r\n\r\n", "400 Bad Request", "bad request: Invalid header token"),
        (b"GET / HTTP/9.9\r\n\r\n", "400 Bad Request", "bad request: Bad status line: Invalid HTTP version"),
        (b"GET /r\xe9sum\xe9 HTTP/1.1\r\n\r\n", "400 Bad Request", "bad request: Invalid char in url path"),
        (b"GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request", "bad request"),
        (
            b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
            "414 Request-URI Too Long",
            "the request target is larger than 8190 bytes",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
            "431 Request Header Fields Too Large",
            "the headers are larger than 32768 bytes",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 20_000,
            "431 Request Header Fields Too Large",
            "there are more than 1000 headers",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"1" * 600 + b"\r\n") * 1000,
            "431 Request Header Fields Too Large",
            "the headers are larger than 32768 bytes",
        ),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400 Bad Request",
            "bad request: Transfer-Encoding can't be present with Content-Length",
        ),
        (GET + b"GARBAGE\x00\r\n\r\n", "400 Bad Request", "bad request: Invalid method encountered"),
    ],
)
async def test_bad_request_is_refused_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: str, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    with capture_logs() as lines:
        async with running_relay(tmp_path, NO_UPSTREAM) as relay:
            received = await ask(relay, request_bytes)
            assert sum(relay.gateway.signaling.refusals.values()) == 1
    last = received.rpartition(b"HTTP/")[2]
    assert last.startswith(f"1.0 {status}\r\n".encode())
    assert b"Server: cloud9-relay\r\n" in last
    assert last.endswith(f"\r\n\r\n{status[:3]}: {reason}\n".encode())
    [line] = [line for line in lines if line["event"] == "signaling request refused"]
    assert line["cause"] == reason
    assert f"X-Relay-Id: {line['connection']}\r\n".encode() in last
    assert caplog.records == []


async def test_failure_of_ours_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_page(_: web.Request) -> web.Response:
        raise ZeroDivisionError("not for the client")

    monkeypatch.setattr(site, "_on_page", on_page)
    async with (
        running_relay(tmp_path, NO_UPSTREAM) as relay,
        browsing(relay) as request,
        request("GET", "/") as response,
    ):
        assert response.status == 500
        assert response.headers["Server"] == "cloud9-relay"
        assert "not for the client" not in await response.text()
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_upload_that_is_too_large_for_anything(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(b"POST / HTTP/1.1\r\nHost: relay.test\r\nContent-Length: 1000000000\r\n\r\n" + bytes(8192))
        assert (await client.receive()).startswith(b"HTTP/1.1 405 ")
        client.reset()
        await eventually(lambda: not relay.connections)


async def test_client_that_leaves_in_the_middle_of_a_request(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        for leave in (TlsClient.reset, TlsClient.abort):
            client = await TlsClient.open(relay.tls, relay.trust)
            await client.send(b"GET / HTTP/1.1\r\nHost: ")
            await eventually(lambda: relay.gateway._site._handlers)
            leave(client)
            await eventually(lambda: not relay.gateway._site._handlers)
        await becomes(lambda: relay.connections, 0)
        await eventually(lambda: not relay.gateway._site._opened and not relay.gateway._site._deadlines)


async def test_stop_closes_idle_connections(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET)
        assert (await client.receive()).startswith(b"HTTP/1.1 200 OK\r\n")
    try:
        while await client.receive():
            pass
    except ssl.SSLError as error:
        pytest.fail(f"not closed in order: {error}")
    finally:
        client.abort()


async def test_connection_handed_over_after_the_stop_is_closed(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM) as relay:
        await relay.gateway._site.stop()
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET)
        assert await client.receive() == b""
        client.abort()
        await eventually(lambda: not relay.connections)
