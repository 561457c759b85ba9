"""One HTTP/1.1 request over a TLS connection, and its answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from relay.client.connect import TlsProtocol
from relay.errors import UpstreamError
from relay.wire.http1 import AnswerError, AnswerHead, Body, body_of, parse_answer_head

# What is looked at of an answer. The first packet of engine.io has about 100 bytes, a page of a proxy some thousand.
MAX_BODY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and the beginning of its body."""

    head: AnswerHead
    body: bytes


class HttpStream(TlsProtocol):
    """A connection for one request. Not for another one after it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._data = b""
        self._lost = False
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        # isinstance would not do: uvloop's transports do not derive from asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer."""
        self._data += data
        if len(self._data) > 2 * MAX_BODY_BYTES:
            self.transport.pause_reading()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended."""
        self._lost = True
        self._changed.set()

    async def get(self, target: str, host: str) -> Answer:
        """Ask, and wait for the answer. The caller has a deadline. Raises UpstreamError."""
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Accept: */*", "Connection: close", "", ""]
        self.transport.write("\r\n".join(lines).encode("ascii"))
        try:
            return await self._answer()
        except AnswerError as error:
            raise UpstreamError(str(error)) from error

    async def _answer(self) -> Answer:
        while (parsed := parse_answer_head(self._data)) is None:
            await self._more()
        head, size = parsed
        body, taken, seen = body_of(head, "GET"), b"", size
        while not body.done and len(taken) < MAX_BODY_BYTES:
            taken += body.feed(self._data[seen:])
            seen = len(self._data)
            if body.done or len(taken) >= MAX_BODY_BYTES or not await self._goes_on(body):
                break
        return Answer(head, taken[:MAX_BODY_BYTES])

    async def _goes_on(self, body: Body) -> bool:
        """Wait for more. Returns False if the body ends with the connection, and that has ended."""
        try:
            await self._more()
        except UpstreamError:
            if body.ends_with_the_connection:
                return False
            raise
        return True

    async def _more(self) -> None:
        if self._lost:
            raise UpstreamError("closed the connection before its answer was complete")
        self._changed.clear()
        await self._changed.wait()

    def close(self) -> None:
        """End it without ceremony."""
        self.transport.abort()
