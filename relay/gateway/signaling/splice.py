"""Two connections made one: bytes pass both ways untouched, as they come, after a 101.

A byte's life: one end's transport reads it → written to the other's → when that one's buffer is full, the first is
not read until it has room. An end of stream is passed on and the other direction goes on for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

# Bytes that wait in each direction before the sender is no longer read: some messages of signaling.
BUFFER_BYTES = 64 * 1024
# When one side has ended, the other has this long to say the rest.
HALF_CLOSED_S = 15.0
# What a peer does not take within this is dropped when the other has gone.
LINGER_S = 5.0

# Sees the first bytes that the upstream sends; says whether it has seen enough.
Observe = Callable[[bytes], bool]


class Owner(Protocol):
    """The protocol that a transport had before. It is told of the connection's end."""

    def connection_lost(self, exc: BaseException | None, /) -> None:
        """The connection has ended."""


class _End(asyncio.Protocol):
    """One of the two: its transport, and what has come from it."""

    peer: _End

    def __init__(self, splice: Splice, transport: asyncio.Transport, owner: Owner) -> None:
        self.transport = transport
        self.owner = owner
        self.received = 0
        self.ended = self.lost = False
        self.error: BaseException | None = None
        self._splice = splice
        self._half_closes = transport.get_extra_info("sslcontext") is None and transport.can_write_eof()

    def take_over(self) -> None:
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self.transport.set_protocol(self)
        # The former protocol may have paused it while nothing read its bytes.
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._splice.on_data(self, data)
        self.peer.write(data)

    def write(self, data: bytes) -> None:
        if data and not self.lost and not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        if not self.peer.lost and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.peer.lost and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def eof_received(self) -> bool:
        self.ended = True
        self._splice.on_end(self)
        # TLS of asyncio cannot stay half open: it closes, whatever this returns.
        return self._half_closes and not self.transport.is_closing()

    def end(self) -> None:
        """The other side has ended, so no more goes to this one."""
        if self.lost or self.transport.is_closing():
            return
        if self._half_closes:
            self.transport.write_eof()
        else:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        self.error = exc
        self._splice.on_lost(self)


class Splice:
    """Joins two transports from ``run`` on until both are closed; their owners are told when both are.

    ``idle_timeout_s`` without a byte either way ends it.
    """

    def __init__(
        self,
        client: tuple[asyncio.Transport, Owner],
        upstream: tuple[asyncio.Transport, Owner],
        *,
        idle_timeout_s: float,
        observe: Observe | None = None,
        on_client_speaks: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client, self._upstream = _End(self, *client), _End(self, *upstream)
        self._client.peer, self._upstream.peer = self._upstream, self._client
        self._idle_timeout_s = idle_timeout_s
        self._observe = observe
        self._on_client_speaks = on_client_speaks
        self._touched = self._loop.time()
        self._done = self._loop.create_future()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._last_timer: asyncio.TimerHandle | None = None

    @property
    def client_bytes(self) -> int:
        """How much has come from the client."""
        return self._client.received

    @property
    def upstream_bytes(self) -> int:
        """How much has come from the upstream."""
        return self._upstream.received

    async def run(self, client_tail: bytes, upstream_tail: bytes) -> None:
        """Carry until both ends are closed; the tails have come already. Cancelled, it closes both at once."""
        try:
            self._client.take_over()
            self._upstream.take_over()
            for end, tail in ((self._client, client_tail), (self._upstream, upstream_tail)):
                if tail:
                    end.data_received(tail)
            for end in (self._client, self._upstream):
                if end.transport.is_closing():  # it ended before it was ours
                    end.peer.end()
            self._watch_idle()
            await self._done
        finally:
            self.abort()

    def abort(self) -> None:
        """Close both ends without waiting for what they have not taken."""
        for end in (self._client, self._upstream):
            if not end.lost:
                end.transport.abort()
        for timer in (self._idle_timer, self._last_timer):
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Close both ends; what is on its way has a moment to arrive."""
        self._end_by(LINGER_S, self.abort)
        for end in (self._client, self._upstream):
            if not end.lost:
                end.transport.close()

    def _end_by(self, seconds: float, call: Callable[[], None]) -> None:
        if self._last_timer is not None:
            self._last_timer.cancel()
        self._last_timer = self._loop.call_later(seconds, call)

    def _watch_idle(self) -> None:
        left_s = self._touched + self._idle_timeout_s - self._loop.time()
        if left_s > 0:
            self._idle_timer = self._loop.call_later(left_s, self._watch_idle)
        else:
            self.close()

    # What the ends say

    def on_data(self, end: _End, data: bytes) -> None:
        """Bytes have come from an end."""
        self._touched = self._loop.time()
        if self._on_client_speaks is not None and end is self._client:
            self._on_client_speaks()
            self._on_client_speaks = None
        if self._observe is not None and end is self._upstream and self._observe(data):
            self._observe = None

    def on_end(self, end: _End) -> None:
        """An end says no more."""
        end.peer.end()
        if end.peer.ended:
            self.close()
        else:
            self._end_by(HALF_CLOSED_S, self.close)

    def on_lost(self, end: _End) -> None:
        """An end is closed."""
        if end.peer.lost:
            if not self._done.done():
                self._done.set_result(None)
            # Tell the owners only now: aiohttp cancels the handler, which has carried the rest until here.
            for one in (self._client, self._upstream):
                one.owner.connection_lost(one.error)
        else:
            end.peer.transport.close()
            self._end_by(LINGER_S, self.abort)
