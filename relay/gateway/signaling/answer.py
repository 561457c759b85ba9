"""An answer of an upstream on its way to the client: its head as it came, its body as it comes."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_protocol import RequestHandler

from relay.gateway.signaling.http_rules import end_to_end
from relay.wire.http1 import AnswerHead, Body, ChunkedBody, Fields, build_head


class PassedOn(web.StreamResponse):
    """It is written by ``begin``, ``send`` and ``finish``. aiohttp is given it at the end, and adds nothing.

    ``web.StreamResponse`` would write the head as UTF-8, and add fields that it misses.
    """

    def __init__(self, request: web.BaseRequest, head: AnswerHead, body: Body, *, last: bool) -> None:
        """``last``: the client's connection ends with it."""
        super().__init__(status=head.status)
        self._answer = head
        self._framing = body
        self._out: AbstractStreamWriter = request.writer
        self._modern = request.version >= HttpVersion11
        self._without_body = request.method == hdrs.METH_HEAD or head.status in {204, 304}
        by_chunks = isinstance(body, ChunkedBody) or body.ends_with_the_connection
        self._in_chunks = self._modern and not self._without_body and by_chunks
        # For a client of HTTP/1.0 such a body ends with the connection.
        unmeasured = by_chunks and not self._in_chunks and not self._without_body
        self._closes = last or unmeasured or not request.keep_alive
        self._finished = False

    def _fields(self) -> Iterable[tuple[bytes, bytes]]:
        seen_length = False
        # RFC 9112 section 6.2 and RFC 9110 section 8.6: one length, and none where there can be no body.
        no_length = self._in_chunks or self._answer.status == 204
        for name, value in end_to_end(self._answer.fields):
            if name.lower() != b"content-length":
                yield name, value
            elif not no_length and not seen_length:
                seen_length = True
                yield name, value.partition(b",")[0].strip(b" \t")
        announced = self._without_body and self._modern and self._answer.values(b"transfer-encoding")
        if self._in_chunks or (announced and self._answer.status != 204 and not seen_length):
            yield b"Transfer-Encoding", b"chunked"
        if self._closes and self._modern:
            yield b"Connection", b"close"
        elif not self._closes and not self._modern:
            yield b"Connection", b"keep-alive"

    async def begin(self) -> None:
        """Send the head. Raises ConnectionError if the client has gone."""
        first = b"HTTP/1.1 %d %b" % (self._answer.status, self._answer.reason)
        await self._out.write(build_head(first, self._fields()))

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body. Raises ConnectionError if the client has gone."""
        if piece:
            await self._out.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._in_chunks else piece)

    async def finish(self, trailers: Fields = ()) -> None:
        """End the body. Raises ConnectionError if the client has gone."""
        if self._in_chunks:
            await self._out.write(build_head(b"0", trailers))
        self._finished = True

    # What aiohttp asks

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """It is sent already."""
        return self._out

    async def write_eof(self, data: bytes = b"") -> None:
        """It is ended already."""
        await self._out.drain()

    @property
    def keep_alive(self) -> bool | None:
        """False if the client's connection ends with it, also because the answer broke off."""
        return self._finished and not self._closes

    @property
    def prepared(self) -> bool:
        """Nothing can be changed from now on."""
        return True


async def pass_informational(request: web.BaseRequest, head: AnswerHead, *, expects: bool) -> None:
    """Pass a 1xx on (RFC 9110 section 15.2). Raises ConnectionError if the client has gone."""
    if request.version >= HttpVersion11 and (head.status != 100 or expects):
        first = b"HTTP/1.1 %d %b" % (head.status, head.reason)
        unframed = [one for one in end_to_end(head.fields) if one[0].lower() != b"content-length"]
        await request.writer.write(build_head(first, unframed))


async def pass_switch(request: web.BaseRequest, head: AnswerHead, protocol: bytes) -> None:
    """Pass a 101 on. Raises ConnectionError if the client has gone."""
    unframed = [one for one in end_to_end(head.fields) if one[0].lower() != b"content-length"]
    fields = [*unframed, (b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
    await request.writer.write(build_head(b"HTTP/1.1 101 %b" % head.reason, fields))


class _Tail:
    """Keeps what comes, as aiohttp gives it to parsers."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The transport says so, too."""


def take_tail(client: RequestHandler) -> bytes:
    """What the client has sent after the head of an upgrade. aiohttp parses nothing more of it."""
    tail = _Tail()
    client.set_parser(tail)  # type: ignore[arg-type]
    return bytes(tail.data)
