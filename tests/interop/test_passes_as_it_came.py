"""HTTP passes as it came: one table, run against the relay and against Debian's haproxy and nginx."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from relay.addresses import Address
from relay.wire.http1 import AnswerError, AnswerHead, body_of, parse_answer_head
from tests.support.benches.gateway import running_relay
from tests.support.http_table import ANSWERS, REQUESTS, Row
from tests.support.peers.raw_http import RecordingUpstream, recording_upstream
from tests.support.peers.reverse_proxies import needs_reverse_proxies, open_haproxy, open_nginx

NO_UPSTREAM = Address("127.0.0.1", 9)
PATIENT_S = 30.0
# What is between neighbours, and what each of the three says of the client or of itself.
OWN = {
    *(b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"te", b"trailer"),
    *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"x-relay-id"),
}


class Outcome(NamedTuple):
    """What a row comes to: what the upstream was asked, and what the client was answered."""

    # Request line, header fields, body, trailers; empty if nothing was passed on.
    asked: tuple[object, ...]
    # Informational statuses, status and reason, header fields, body, trailers; a status alone if the proxy answered.
    answered: tuple[object, ...]


class Bench:
    """A proxy, the upstream that it has, and a way to it."""

    def __init__(self, address: Address, upstream: RecordingUpstream, trust: ssl.SSLContext | None) -> None:
        self._address = address
        self._upstream = upstream
        self._trust = trust
        self.answer = b""

    async def run(self, row: Row) -> Outcome:
        """What becomes of a row."""
        self.answer, before = row.answer, len(self._upstream.connections)
        for kept in self._upstream.connections:
            kept.clear()
        async with asyncio.timeout(PATIENT_S):
            answered = await self._ask(row.request)
        assert len(self._upstream.connections) >= before
        return Outcome(_asked(self._upstream.received), answered)

    async def _ask(self, request: bytes) -> tuple[object, ...]:
        tls = {"ssl": self._trust, "server_hostname": "relay.test"} if self._trust is not None else {}
        reader, writer = await asyncio.open_connection(*self._address, **tls, limit=1 << 20)  # type: ignore[arg-type]
        try:
            writer.write(request)
            return await _answered(reader, request.split(b" ", 1)[0].decode())
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _fields(fields: object) -> tuple[object, ...]:
    """Names in lower case, without those between neighbours, in their order among those of the same name."""
    kept = [(name.lower(), value) for name, value in fields if name.lower() not in OWN]  # type: ignore[attr-defined]
    return tuple(sorted(kept, key=lambda one: one[0]))


def _asked(received: bytes) -> tuple[object, ...]:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return ()
    first, *lines = head.split(b"\r\n")
    fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    framing = {name.lower(): value for name, value in fields}
    trailers: tuple[object, ...] = ()
    if b"transfer-encoding" in framing:
        chunked = body_of(AnswerHead(1, 200, b"", [(b"Transfer-Encoding", b"chunked")]), "GET")
        body = chunked.feed(body)
        assert chunked.done
        trailers = _fields(chunked.trailers)
    return first, _fields(fields), body, trailers


async def _answered(reader: asyncio.StreamReader, method: str) -> tuple[object, ...]:
    informational: list[int] = []
    received = b""
    try:
        while True:
            while (found := parse_answer_head(received)) is None:
                chunk = await reader.read(65536)
                if not chunk:
                    return ("closed",)
                received += chunk
            head, size = found
            received = received[size:]
            if head.status >= 200:
                break
            informational.append(head.status)
        body = body_of(head, method)
        payload = body.feed(received) if not body.done else b""
        while not body.done:
            chunk = await reader.read(65536)
            if not chunk:
                body.end()
                break
            payload += body.feed(chunk)
    except AnswerError as error:
        return ("broken", str(error))
    if not any(name.lower() == b"x-from" for name, _ in head.fields):
        # Of the proxy itself: what it says is its own affair.
        return ("refused", head.status // 100)
    trailers = _fields(body.trailers)
    return tuple(informational), head.status, head.reason, _fields(head.fields), payload, trailers


class Benches(NamedTuple):
    ours: Bench
    haproxy: Bench
    nginx: Bench


@contextlib.asynccontextmanager
async def benches(folder: Path) -> AsyncIterator[Benches]:
    made: list[Bench] = []

    async with contextlib.AsyncExitStack() as stack:

        async def upstream() -> RecordingUpstream:
            number = len(uppers)
            one = await stack.enter_async_context(
                recording_upstream(lambda received: made[number].answer if _whole(received) else b"")
            )
            uppers.append(one)
            return one

        uppers: list[RecordingUpstream] = []
        settings = {"upstreams": [(await upstream()).url], "health_interval_s": 3600.0}
        for open_one in (open_haproxy, open_nginx):
            address = Address("127.0.0.1", (await upstream()).port)
            made.append(Bench(await stack.enter_async_context(open_one(address)), uppers[-1], None))
        relay = await stack.enter_async_context(running_relay(folder, NO_UPSTREAM, signaling=settings))
        made.insert(0, Bench(relay.tls, uppers[0], relay.trust))
        yield Benches(*made)


def _whole(received: bytes) -> bool:
    """True once a request is whole."""
    head, end, body = received.partition(b"\r\n\r\n")
    lower = head.lower()
    if not end:
        return False
    if b"\r\ntransfer-encoding:" in lower:
        return body.endswith((b"0\r\n\r\n", b"X-End: 1\r\n\r\n", b"x-end: 1\r\n\r\n"))
    _, found, length = lower.partition(b"\r\ncontent-length:")
    return len(body) >= int(length.split(b"\r\n")[0]) if found else True


@needs_reverse_proxies
@pytest.mark.parametrize("table", [REQUESTS, ANSWERS], ids=["requests", "answers"])
async def test_the_relay_passes_on_what_others_do(tmp_path: Path, table: dict[str, Row]) -> None:
    wrong: list[str] = []
    async with benches(tmp_path) as three:
        for name, row in table.items():
            ours = await three.ours.run(row)
            others = [await three.haproxy.run(row), await three.nginx.run(row)]
            if (ours in others) == bool(row.differs):
                why = "does as one of them, and says why not" if row.differs else "does as neither"
                wrong.append(f"{name}: {why}\n  ours    {ours}\n  haproxy {others[0]}\n  nginx   {others[1]}")
    assert not wrong, "\n".join(wrong)


def test_the_table_is_long_enough() -> None:
    assert len(REQUESTS) + len(ANSWERS) >= 80
