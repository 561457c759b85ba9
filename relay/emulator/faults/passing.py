"""HTTP/1.1 messages as a proxy passes them on: heads by which it knows where a body ends, and bodies piece by piece."""

from __future__ import annotations

from asyncio import StreamReader
from collections.abc import AsyncIterator
from typing import Literal

READ_BYTES = 65536

Body = int | Literal["chunked", "to the end"]


def fields_of(head: bytes) -> dict[bytes, bytes]:
    """The fields of a head, in lower case."""
    fields = {}
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip().lower()
    return fields


def body_of(head: bytes, asked_with: bytes = b"") -> Body:
    """How the body after a head ends; ``asked_with`` is the request's method for an answer's head.

    Raises ValueError for what is not a head.
    """
    status = int(head.split(b" ")[1][:3]) if asked_with else 0
    if asked_with == b"HEAD" or status in {204, 304} or 100 <= status < 200:
        return 0
    fields = fields_of(head)
    if fields.get(b"transfer-encoding") == b"chunked":
        return "chunked"
    if b"content-length" in fields:
        return int(fields[b"content-length"])
    return "to the end" if asked_with else 0


async def pieces(body: Body, reader: StreamReader) -> AsyncIterator[bytes]:
    """A body as it comes. Raises EOFError if it breaks off, ValueError for something that is not a chunk."""
    if body == "to the end":
        while data := await reader.read(READ_BYTES):
            yield data
    elif body == "chunked":
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line
            async for data in _exactly(size + 2, reader):
                yield data
    else:
        async for data in _exactly(body, reader):
            yield data


async def _exactly(size: int, reader: StreamReader) -> AsyncIterator[bytes]:
    while size > 0:
        data = await reader.read(min(size, READ_BYTES))
        if not data:
            raise EOFError
        size -= len(data)
        yield data
