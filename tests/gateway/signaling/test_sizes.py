"""Heads of any size: large ones pass, larger ones hear why not, as do clients of an upstream that sends them."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.gateway.signaling.refusals import RefusalReason
from tests.support.benches.signaling import GET, proxying
from tests.support.peers.raw_http import ask


async def test_large_heads(tmp_path: Path) -> None:
    """Kerberos tickets have 12 KB, and some proxies add fields by the hundred."""
    async with proxying(tmp_path) as (relay, upstream):
        ticket = b"Authorization: Negotiate " + b"A" * 12_288
        fields = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(500))
        assert (await ask(relay, GET + ticket + b"\r\n" + fields + b"\r\n")).endswith(b"ok")
        assert ticket in upstream.received
        assert b"\r\nX-499: 499\r\n" in upstream.received
        with capture_logs() as lines:
            for number in range(20):
                said = await ask(relay, GET + b"X: " + b"A" * (33_000 + number) + b"\r\n\r\n")
                assert said.startswith(b"HTTP/1.1 431 ")
                assert said.endswith(b"431: the headers are larger than 32768 bytes\n")
        assert relay.gateway.signaling.refusals[RefusalReason.TOO_LARGE] == 20
        said = await ask(relay, GET + b"A: b\r\n" * 1100 + b"\r\n")
        assert said.endswith(b"431: there are more than 1000 headers\n")
        told = [line for line in lines if line["event"] == "signaling request refused"]
        assert 1 <= len(told) < 20
        assert (told[0]["status"], told[0]["client"]) == (431, "127.0.0.1")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nSet-Cookie: " + b"a" * 70_000, b"the head of its answer is larger than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 12_000, b"the head of its answer is larger than 65536 bytes"),
        (b"HTTP/2 200\r\n\r\n", b"its answer is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"a header of its answer has no name"),
        (b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n", b"a header of its answer holds a line break or NUL"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", b"the Content-Length of its answer is not one number"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"its answer has a transfer coding that is not chunked",
        ),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 40, b"more than 32 interim answers"),
    ],
)
async def test_answers_that_cannot_be_passed_on(tmp_path: Path, answer: bytes, why: bytes) -> None:
    async with proxying(tmp_path, answer) as (relay, _):
        said = await ask(relay, GET + b"\r\n")
        assert b"HTTP/1.1 502 Bad Gateway\r\n" in said
        assert said.endswith(b"502: signaling upstream: " + why + b"\n")
        [state] = relay.gateway.signaling.pools
        assert state.answers["failed"] == 1


async def test_answer_with_a_large_head(tmp_path: Path) -> None:
    cookies = b"".join(b"Set-Cookie: c%d=%b\r\n" % (number, b"a" * 300) for number in range(150))
    large = b"X-Large: " + b"b" * 12_288
    async with proxying(tmp_path, b"HTTP/1.1 200 OK\r\n" + cookies + large + b"\r\nContent-Length: 0\r\n\r\n") as (
        relay,
        _,
    ):
        said = await ask(relay, GET + b"\r\n")
        assert cookies + large + b"\r\n" in said
