"""A DNS server of one UDP socket: names it knows, names it does not, and names that it never answers for."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import cast

NXDOMAIN = 3
A, AAAA = 1, 28


class DnsServer(asyncio.DatagramProtocol):
    """``asked`` are the names of the questions, each question once for A and once for AAAA."""

    def __init__(self, names: Mapping[str, Sequence[str]], silent: str | tuple[str, ...]) -> None:
        self.asked: list[str] = []
        self.address = ""
        self._names = dict(names)
        self._silent = silent
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transport of asyncio is not a subclass of the class that its documentation names.
        self._transport = cast("asyncio.DatagramTransport", transport)
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _name(data)
        (kind,) = struct.unpack_from("!H", data, end)
        self.asked.append(name)
        if name.endswith(self._silent) or self._transport is None:
            return
        known = self._names.get(name)
        answers = [one for one in known or () if ipaddress.ip_address(one).version == (4 if kind == A else 6)]
        code = 0 if known is not None else NXDOMAIN
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(answers), 0, 0)
        # Each for no time at all: it is asked for again.
        records = [_record(kind, ipaddress.ip_address(one).packed) for one in answers]
        self._transport.sendto(head + data[12 : end + 4] + b"".join(records), addr)


def _name(query: bytes) -> tuple[str, int]:
    """The name of the question, in lower case, and where it ends."""
    labels, offset = [], 12
    while size := query[offset]:
        labels.append(query[offset + 1 : offset + 1 + size].decode("ascii"))
        offset += 1 + size
    return ".".join(labels).lower(), offset + 1


def _record(kind: int, packed: bytes) -> bytes:
    return struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed


@contextlib.asynccontextmanager
async def dns_server(
    names: Mapping[str, Sequence[str]] | None = None, silent: str | tuple[str, ...] = ".slow"
) -> AsyncIterator[DnsServer]:
    """A server on loopback; it never answers for names that end in ``silent``."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: DnsServer(names or {}, silent), ("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
