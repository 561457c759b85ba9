"""HTTP/1.1 messages as bytes (RFC 9112): heads that are written as they came, and the bodies of answers.

Field values are always bytes: RFC 9110 section 5.5 allows any octet above 0x7F in them, and servers do send file names
in Latin-1. A head is checked, but never decoded and encoded again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from relay.errors import PeerError

Fields = Sequence[tuple[bytes, bytes]]

# Our limit for the head of an answer. Node and haproxy accept 16 KiB, but the cookies of some portals are larger.
MAX_ANSWER_HEAD_BYTES = 64 * 1024
# The longest line with a chunk's size and its extensions, which nobody reads; also the longest line of a trailer.
MAX_CHUNK_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 16 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Some servers write HTTP/2.0 on a connection of HTTP/1.1; haproxy and nginx accept that, too.
_STATUS_LINE = re.compile(rb"HTTP/([1-9]\.[0-9]) ([1-9][0-9]{2})(?: (.*))?", re.DOTALL)
# RFC 9110 section 5.5: these three are dangerous in a value for any reader.
_UNSAFE = re.compile(rb"[\x00\r\n]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[^\x00\r\n]*)?")
_NO_BODY = frozenset({204, 304})


class AnswerError(PeerError):
    """An answer that is not HTTP/1.1, or that cannot be passed on; the message says what is wrong with it."""


class AnswerHead(NamedTuple):
    """The head of a response, as it came: ``fields`` in their order, with their own spelling."""

    # 0 for HTTP/1.0, 1 for HTTP/1.1 and above.
    minor: int
    status: int
    reason: bytes
    fields: Fields

    def values(self, wanted: bytes) -> list[bytes]:
        """All values of a field. ``name`` must be in lower case."""
        return [value for name, value in self.fields if name.lower() == wanted]

    def elements(self, wanted: bytes) -> list[bytes]:
        """The elements of a list field, over all its lines, in lower case."""
        return [one.strip(b" \t").lower() for value in self.values(wanted) for one in value.split(b",")]

    @property
    def keeps_alive(self) -> bool:
        """True if the connection may serve another request once the body has ended (RFC 9112 section 9.3)."""
        options = self.elements(b"connection")
        return b"close" not in options and (self.minor == 1 or b"keep-alive" in options)


def build_head(first: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole head. Raises ValueError for a field that would begin another line."""
    lines = [first, *(name + b": " + value for name, value in fields)]
    if any(_UNSAFE.search(line) for line in lines):
        raise ValueError("a line break or NUL in a head")
    return b"\r\n".join([*lines, b"", b""])


def parse_answer_head(data: bytes | bytearray) -> tuple[AnswerHead, int] | None:
    """Read the head of a response. Returns it and its size in bytes, or None for "need more". Raises AnswerError."""
    found = re.compile(rb"\r?\n\r?\n").search(data, 0, MAX_ANSWER_HEAD_BYTES)
    if found is None:
        if len(data) >= MAX_ANSWER_HEAD_BYTES:
            raise AnswerError(f"the head of its answer is larger than {MAX_ANSWER_HEAD_BYTES} bytes")
        if not data.startswith(b"HTTP/"[: len(data)]):
            raise AnswerError("its answer is not HTTP/1.1")
        return None
    first, *lines = re.split(rb"\r?\n", bytes(data[: found.start()]))
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None or _UNSAFE.search(first):
        raise AnswerError("its answer is not HTTP/1.1")
    fields = _parse_fields(lines)
    return AnswerHead(int(status_line[1] != b"1.0"), int(status_line[2]), status_line[3] or b"", fields), found.end()


def _parse_fields(lines: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        if line[:1] in b" \t" and fields:
            # RFC 9112 section 5.2: a folded line is joined, and spaces replace the fold.
            if _UNSAFE.search(line):
                raise AnswerError("a header of its answer holds a line break or NUL")
            name, value = fields[-1]
            fields[-1] = name, (value + b"  " + line.replace(b"\t", b" ")).rstrip(b" ")
            continue
        name, colon, value = line.partition(b":")
        # RFC 9112 section 5.1: a proxy removes the space before the colon.
        name = name.rstrip(b" \t")
        if not colon or not _TOKEN.fullmatch(name):
            raise AnswerError("a header of its answer has no name")
        if _UNSAFE.search(value):
            raise AnswerError("a header of its answer holds a line break or NUL")
        fields.append((name, value.strip(b" \t")))
    return fields


# Bodies


class Body:
    """The body of an answer: ``feed`` it until it is ``done``. ``rest`` keeps what came after it."""

    def __init__(self, left: int | None) -> None:
        """``left`` bytes follow. None: everything until the connection ends."""
        self.done = left == 0
        self.rest = b""
        # What came after the last chunk.
        self.trailers: Fields = ()
        self._left = left

    @property
    def ends_with_the_connection(self) -> bool:
        """True if only the end of the connection ends it."""
        return self._left is None

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes. Raises AnswerError."""
        if self._left is None:
            return data
        piece, self.rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        self.done = not self._left
        return piece

    def end(self) -> None:
        """Note that the connection has ended. Raises AnswerError if something is missing."""
        if self._left is None:
            self.done = True
        if not self.done:
            raise AnswerError("it closed the connection within its answer")


class ChunkedBody(Body):
    """A body in chunks (RFC 9112 section 7.1), with its trailer section."""

    def __init__(self) -> None:
        super().__init__(1)  # never 0 before the last chunk
        self._buffer = b""
        self._chunk_left = 0
        self._step: Callable[[list[bytes]], bool] = self._begin_chunk

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes. Raises AnswerError."""
        self._buffer += data
        pieces: list[bytes] = []
        while not self.done and self._step(pieces):
            pass
        if self.done:
            self.rest, self._buffer = self._buffer, b""
        return b"".join(pieces)

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_CHUNK_LINE_BYTES:
                raise AnswerError("a line between the chunks of its answer is too long")
            return None
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def _begin_chunk(self, _: list[bytes]) -> bool:
        line = self._line()
        if line is None:
            return False
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise AnswerError("a chunk of its answer has no size")
        self._chunk_left = int(size[1], 16)
        self._step = self._take if self._chunk_left else self._end
        return True

    def _take(self, pieces: list[bytes]) -> bool:
        piece, self._buffer = self._buffer[: self._chunk_left], self._buffer[self._chunk_left :]
        self._chunk_left -= len(piece)
        pieces.append(piece)
        if not self._chunk_left:
            self._step = self._end_chunk
        return bool(self._buffer)

    def _end_chunk(self, _: list[bytes]) -> bool:
        if len(self._buffer) < 2 and self._buffer in b"\r\n":
            return False
        if not self._buffer.startswith(b"\r\n"):
            raise AnswerError("a chunk of its answer is longer than its size")
        self._buffer = self._buffer[2:]
        self._step = self._begin_chunk
        return bool(self._buffer)

    def _end(self, _: list[bytes]) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            self.done = True
            return False
        trailers = [*self.trailers, *_parse_fields([line])]
        if sum(len(name) + len(value) for name, value in trailers) > MAX_TRAILER_BYTES:
            raise AnswerError(f"the trailers of its answer are larger than {MAX_TRAILER_BYTES} bytes")
        self.trailers = trailers
        return True


def body_of(head: AnswerHead, method: str) -> Body:
    """The body that follows a final answer to a request of this method (RFC 9112 section 6.3). Raises AnswerError."""
    codings, lengths = head.elements(b"transfer-encoding"), head.values(b"content-length")
    if method == "HEAD" or head.status in _NO_BODY:
        return Body(0)
    if codings:
        if codings != [b"chunked"]:
            raise AnswerError("its answer has a transfer coding that is not chunked")
        return ChunkedBody()
    if not lengths:
        return Body(None)
    # RFC 9110 section 8.6: a list of the same number is one number.
    numbers = {one.strip(b" \t") for value in lengths for one in value.split(b",")}
    if len(numbers) > 1 or not _LENGTH.fullmatch(next(iter(numbers))):
        raise AnswerError("the Content-Length of its answer is not one number")
    return Body(int(numbers.pop()))
