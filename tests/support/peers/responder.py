"""A UDP server that answers each request as it is told, from a script if need be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator

from relay.addresses import Address

Answer = Callable[[bytes], bytes | None]


def success(request: bytes) -> bytes:
    """A Binding success without a single attribute."""
    return b"\x01\x01\x00\x00" + request[4:20]


def refusal(request: bytes) -> bytes:
    """A Binding error: 500 Server Error."""
    return b"\x01\x11\x00\x08" + request[4:20] + bytes.fromhex("00090004 00000500")


def silence(_: bytes) -> None:
    """No answer."""


def refused_allocate(request: bytes) -> bytes:
    """An Allocate error: 508 Insufficient Capacity."""
    return b"\x01\x13\x00\x08" + request[4:20] + bytes.fromhex("00090004 00000508")


@contextlib.asynccontextmanager
async def open_responder(answer: Answer, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Address]:
    """A UDP server that answers each datagram as it is told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
        opened.bind((host, port))

        def on_readable() -> None:
            request, sender = opened.recvfrom(1500)
            if (answered := answer(request)) is not None:
                opened.sendto(answered, sender)

        loop = asyncio.get_running_loop()
        loop.add_reader(opened.fileno(), on_readable)
        try:
            yield Address(*opened.getsockname())
        finally:
            loop.remove_reader(opened.fileno())


def script(*answers: Answer) -> Answer:
    """One answer after the other, to as many transactions; the last one again and again."""
    following: Iterator[Answer] = iter(answers)
    seen: dict[bytes, Answer] = {}

    def answer(request: bytes) -> bytes | None:
        if request[8:20] not in seen:
            seen[request[8:20]] = next(following, answers[-1])
        return seen[request[8:20]](request)

    return answer
