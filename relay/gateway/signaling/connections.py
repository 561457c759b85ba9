"""HTTP/1.1 connections to upstreams: opened to checked addresses, kept for the next request, read and written as bytes.

aiohttp's client is not used for them. It writes heads as UTF-8, so bytes that are not UTF-8 are lost, and it reads no
answer before the body of the request has ended. What the bytes mean is in ``relay.wire.http1``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
from typing import Any, cast

from yarl import URL

from relay import deadlines
from relay.addresses import Address
from relay.config import SignalingSettings
from relay.errors import OperatorError
from relay.gateway.routing.resolve import ResolveError
from relay.gateway.signaling.addresses import Addresses
from relay.wire.http1 import AnswerHead, parse_answer_head

# Node's servers close a connection that has been idle for 5 s. It must not be used when that is about to happen.
UPSTREAM_KEEPALIVE_S = 4.0
# Idle connections that are kept for each upstream. A burst of polls opens more, and those are closed again.
MAX_IDLE = 64
# What is read before anyone asks for it. When it is full, the upstream is slowed down.
READ_BUFFER_BYTES = 64 * 1024


class ConnectFailed(Exception):
    """No connection was made. ``cause`` has few words and no address; ``certain`` means that no server listens."""

    def __init__(self, cause: str, *, certain: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.certain = certain


class Lost(Exception):
    """The upstream has ended the connection, or it broke: why, in few words."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. One task reads and one writes."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        # How many requests it has served before this one.
        self.served = 0
        # Bytes of an answer have come since the request.
        self.answering = False
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._ended = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._paused = False

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=READ_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Keep bytes for the reader."""
        self.answering = True
        self._buffer += data
        if len(self._buffer) > READ_BUFFER_BYTES:
            self.transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        """Nothing more comes; the transport closes."""
        self._ended = True
        _wake(self._reader)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed."""
        self._ended, self._error = True, exc
        _wake(self._reader)
        self._paused = False
        _wake(self._writer)

    def pause_writing(self) -> None:
        """The upstream does not take what it has been sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        _wake(self._writer)

    # Reading and writing

    @property
    def is_idle(self) -> bool:
        """True if it may serve another request: it is open, and nothing has come unasked."""
        return not self._ended and not self._buffer and not self.transport.is_closing()

    @property
    def is_open(self) -> bool:
        """True until it is closed, or is about to be."""
        return not self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send bytes. They are dropped if the connection has ended; the reader hears of that."""
        if not self._ended and not self.transport.is_closing():
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait until there is room for more. Raises Lost."""
        while self._paused:
            self._writer = self._loop.create_future()
            await self._writer
        if self._ended or self.transport.is_closing():
            raise Lost(self._why())

    async def read_head(self) -> AnswerHead:
        """The next head. Raises Lost or AnswerError."""
        while (found := parse_answer_head(self._buffer)) is None:
            await self._wait_for_more()
        head, size = found
        del self._buffer[:size]
        return head

    async def read(self) -> bytes:
        """What has come, as soon as there is something; empty at the end. Raises Lost if the connection broke."""
        if not self._buffer:
            try:
                await self._wait_for_more()
            except Lost:
                if self._error is not None:
                    raise
                return b""
        return self.take()

    def take(self) -> bytes:
        """What has come and was not read, without waiting."""
        data = bytes(self._buffer)
        self._buffer.clear()
        if not self._ended and not self.transport.is_closing():
            self.transport.resume_reading()
        return data

    def put_back(self, data: bytes) -> None:
        """Return bytes that belong to the next answer."""
        self._buffer[:0] = data

    async def _wait_for_more(self) -> None:
        had = len(self._buffer)
        while len(self._buffer) == had:
            if self._ended or self.transport.is_closing():
                raise Lost(self._why())
            self._reader = self._loop.create_future()
            await self._reader

    async def wait_for_end(self) -> None:
        """Wait until the upstream has ended it; what comes meanwhile is kept."""
        with contextlib.suppress(Lost):
            while True:
                await self._wait_for_more()

    def _why(self) -> str:
        number = self._error.errno if isinstance(self._error, OSError) else None
        return os.strerror(number).lower() if number else "it closed the connection"

    def close(self) -> None:
        """Close it; what was written goes first."""
        self.transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self.transport.abort()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Connections:
    """Opens connections, and keeps those that are idle for the next request."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._idle: dict[tuple[URL, ssl.SSLContext], list[tuple[UpstreamConnection, float]]] = {}
        self._closed = False

    def find_idle(self, origin: URL, trust: ssl.SSLContext) -> UpstreamConnection | None:
        """A connection that has served others before, if there is one."""
        idle = self._idle.get((origin, trust), [])
        now = asyncio.get_running_loop().time()
        while idle:
            connection, until = idle.pop()
            if connection.is_idle and now < until:
                connection.answering = False
                return connection
            connection.close()
        return None

    def keep(self, origin: URL, trust: ssl.SSLContext, connection: UpstreamConnection) -> None:
        """It has served a request and may serve the next."""
        loop = asyncio.get_running_loop()
        idle = self._idle.setdefault((origin, trust), [])
        if self._closed or not connection.is_idle or len(idle) >= MAX_IDLE:
            connection.close()
            return
        connection.served += 1
        idle.append((connection, loop.time() + UPSTREAM_KEEPALIVE_S))
        loop.call_later(UPSTREAM_KEEPALIVE_S, self._close_idle, origin, trust)

    def _close_idle(self, origin: URL, trust: ssl.SSLContext) -> None:
        idle, now = self._idle.get((origin, trust), []), asyncio.get_running_loop().time()
        # Timers may come a little early.
        old = [one for one in idle if one[1] <= now + 0.01 or not one[0].is_idle]
        for one in old:
            idle.remove(one)
            one[0].close()
        if not idle:
            self._idle.pop((origin, trust), None)

    def close(self) -> None:
        """Close the connections that are idle, and keep none from now on."""
        self._closed = True
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.close()
        self._idle.clear()

    async def open(self, origin: URL, trust: ssl.SSLContext, timeout_s: float) -> UpstreamConnection:
        """Connect to the first address that takes us, with TLS for https. Raises ConnectFailed."""
        host = origin.host or ""
        try:
            addresses = await self._addresses.find(Address(host, origin.port or 0))
        except ResolveError as error:
            raise ConnectFailed("its name was not resolved, or its address is not allowed") from error
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        tls: dict[str, Any] = {"ssl": trust, "server_hostname": host} if origin.scheme == "https" else {}
        failed: OSError = OSError(errno.EADDRNOTAVAIL, "")
        for number, address in enumerate(addresses):
            # Each address has an even share of the time that is left.
            share_s = (deadline - loop.time()) / (len(addresses) - number)
            try:
                async with deadlines.timeout(share_s):
                    _, connection = await loop.create_connection(UpstreamConnection, *address, **tls)
                    return connection
            except OSError as error:  # TimeoutError and ssl.SSLError are among them
                failed = error
        raise ConnectFailed(_explain(failed), certain=failed.errno == errno.ECONNREFUSED) from failed


def _explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "its certificate was refused, or TLS failed"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"


def open_trust(settings: SignalingSettings) -> ssl.SSLContext:
    """What https:// upstreams are checked against. Raises OperatorError for a file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        # An SSLError has a text of its own; for what the file system says, the system has one.
        why = error if isinstance(error, ssl.SSLError) else error.strerror or error
        raise OperatorError(f"signaling.ca_file: {settings.ca_file}: {why}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
