"""Bodies on their way to the upstream, beside answers that begin or end before them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.config import SignalingSettings
from relay.gateway.signaling.http_rules import BadRequest
from relay.gateway.signaling.upload import Upload
from tests.support.benches.gateway import Relay, running_relay
from tests.support.benches.signaling import GET, NO_UPSTREAM
from tests.support.peers.raw_http import OK, receive_all, receive_head, recording_upstream
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import eventually


@contextlib.asynccontextmanager
async def uploading(relay: Relay, length: int | None) -> AsyncIterator[TlsClient]:
    """A client that has sent the head of a POST."""
    client = await TlsClient.open(relay.tls, relay.trust)
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    await client.send(b"POST /a HTTP/1.1\r\nHost: relay.test\r\n" + framing + b"\r\n\r\n")
    try:
        yield client
    finally:
        client.abort()


@pytest.mark.parametrize("length", [None, 300_000], ids=["chunks", "length"])
async def test_body_goes_on_after_the_answer_has_begun(tmp_path: Path, length: int | None) -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi"
    piece = bytes(range(256)) * 390 + bytes(160)  # 100,000 bytes
    framed = b"%x\r\n%b\r\n" % (len(piece), piece) if length is None else piece

    async with (
        recording_upstream(lambda received: begun if b"POST" in received else b"") as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url], "body_timeout_s": 5.0}) as relay,
        uploading(relay, length) as client,
    ):
        assert (await receive_head(client)).endswith(b"fi") or (await client.receive_exactly(2)) == b"fi"
        for _ in range(2):
            seen = upstream.received.count(piece[:256])
            await client.send(framed)
            await eventually(lambda seen=seen: upstream.received.count(piece[:256]) > seen)  # type: ignore[misc]
        # The answer may even have ended.
        upstream.send(b"ve")
        assert await client.receive_exactly(2) == b"ve"
        await client.send(framed + (b"0\r\n\r\n" if length is None else b""))
        body = upstream.received.partition(b"\r\n\r\n")[2]
        await eventually(lambda: len(upstream.received.partition(b"\r\n\r\n")[2]) >= 300_000)
        if length is not None:
            assert upstream.received.endswith(piece * 3)
        else:
            await eventually(lambda: upstream.received.endswith(b"\r\n0\r\n\r\n"))
        assert body
        # Both connections serve the next request.
        await client.send(GET + b"\r\n")
        await eventually(lambda: b"GET /a HTTP/1.1\r\n" in upstream.received)
        assert len([one for one in upstream.connections if one]) == 1


@pytest.mark.parametrize("closes", [True, False])
async def test_upstream_that_answers_and_takes_no_more(tmp_path: Path, closes: bool) -> None:
    answer = b"HTTP/1.1 413 No More\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!"
    async with (
        recording_upstream(lambda received: answer if b"POST" in received else b"") as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url], "body_timeout_s": 1.0}) as relay,
        uploading(relay, 10_000_000) as client,
    ):
        head = await receive_head(client)
        assert head.startswith(b"HTTP/1.1 413 No More\r\n")
        if closes:
            upstream.close_connections()
        with contextlib.suppress(ConnectionError):
            await client.send(bytes(100_000))
        # It is not waited for: with the upstream gone at once, else after body_timeout_s.
        assert (head + await receive_all(client)).endswith(b"no!")
        await eventually(lambda: not relay.connections)


@pytest.mark.parametrize("expect", [True, False])
async def test_client_that_asks_before_it_sends_its_body(tmp_path: Path, expect: bool) -> None:
    """The upstream says whether it wants it (RFC 9110 section 10.1.1)."""
    first = b"HTTP/1.1 100 Continue\r\n\r\n" if expect else b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n"

    def answer(received: bytes) -> bytes:
        return OK if received == b"body" else first if b"\r\nExpect: 100-continue\r\n" in received else b""

    async with (
        recording_upstream(answer) as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url]}) as relay,
    ):
        client = await TlsClient.open(relay.tls, relay.trust)
        await client.send(GET.replace(b"GET", b"POST") + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        head = await receive_head(client)
        assert head.startswith(b"HTTP/1.1 100 Continue\r\n\r\n" if expect else b"HTTP/1.1 401 Who\r\n")
        if expect:
            await client.send(b"body")
        rest = await receive_all(client)
        assert rest.endswith(b"ok") == expect


async def test_no_exception_vanishes_in_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pieces(_: Upload) -> AsyncIterator[bytes]:
        yield b"a"
        raise LookupError("of ours")

    monkeypatch.setattr(Upload, "_pieces", pieces)
    with capture_logs() as lines:
        async with (
            recording_upstream(lambda received: b"") as upstream,
            running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url]}) as relay,
            uploading(relay, 3) as client,
        ):
            # Nobody waits for a body that cannot come any more.
            assert (await receive_head(client)).startswith(b"HTTP/1.1 502 ")
    [line] = [one for one in lines if one["event"] == "task failed"]
    assert (line["task"], str(line["exc_info"])) == ("upload", "of ours")


async def test_a_client_that_is_gone_is_not_a_mistake_of_ours() -> None:
    """aiohttp says so by an exception in the body, even if all of the body has come."""

    class Gone:
        async def readany(self) -> bytes:
            raise ConnectionResetError("Connection lost")

    request: Any = SimpleNamespace(content=Gone())
    accepted: Any = SimpleNamespace(expects=False, body_bytes=2)
    upload = Upload(request, accepted, SignalingSettings())
    with pytest.raises(BadRequest, match="the body is broken: ConnectionResetError"):
        await anext(upload._pieces())


async def test_upstream_that_does_not_read_is_504(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # the kernel takes what fits
        signaling = {"upstreams": [f"http://127.0.0.1:{deaf.getsockname()[1]}"], "response_timeout_s": 0.5}
        async with (
            running_relay(tmp_path, NO_UPSTREAM, signaling=signaling) as relay,
            uploading(relay, 15_000_000) as client,
        ):

            async def send() -> None:
                with contextlib.suppress(OSError):
                    for _ in range(150):
                        await client.send(bytes(100_000))

            sending = asyncio.create_task(send())
            head = await receive_head(client)
            assert head.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
            sending.cancel()
            await asyncio.wait([sending])
