"""Server-sent events: the summary once a second, built once for all who watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web

log = structlog.get_logger()

INTERVAL_S = 1.0
# The screens of an operations room. Each takes a connection and some kilobytes a second.
MAX_SUBSCRIBERS = 32
# Summaries that may wait for a slow subscriber. After that it is cut, and may come back.
WAITING_SUMMARIES = 5
# After a cut a browser comes back after this long.
RETRY_MS = 2000

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class _Subscriber:
    def __init__(self, request: web.Request) -> None:
        self.waiting: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING_SUMMARIES)
        self._request = request

    def send(self, event: bytes | None) -> bool:
        """Send an event. Returns False if the subscriber does not keep up, and is cut."""
        try:
            self.waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.cut()
            return False
        return True

    def cut(self) -> None:
        """Break the connection, which cancels the handler."""
        if self._request.transport is not None:
            self._request.transport.abort()


class Events:
    """The subscribers. While there are none, nothing is computed."""

    def __init__(self, summary: Callable[[], dict[str, Any]]) -> None:
        self._summary = summary
        self._subscribers: set[_Subscriber] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._subscribers)

    async def on_request(self, request: web.Request) -> web.StreamResponse:
        """Serve a subscriber until it goes, is cut, or the relay stops; 503 if there are too many."""
        if self._stopped or len(self._subscribers) >= MAX_SUBSCRIBERS:
            return web.json_response({"error": "too many subscribers"}, status=503, headers={"Retry-After": "5"})
        response = web.StreamResponse(headers=_HEADERS)
        # This comes before the first await, so that many that come at once are counted.
        subscriber = _Subscriber(request)
        self._subscribers.add(subscriber)
        try:
            await response.prepare(request)
            subscriber.send(f"retry: {RETRY_MS}\n\n".encode() + self._event())
            self._keep_time()
            while (event := await subscriber.waiting.get()) is not None:
                await response.write(event)
        except ConnectionError:
            pass  # it has gone
        finally:
            self._subscribers.discard(subscriber)
        return response

    def _event(self) -> bytes:
        # JSON has no line ends inside, so one data line holds it.
        return b"event: summary\ndata: " + json.dumps(self._summary(), separators=(",", ":")).encode() + b"\n\n"

    def _keep_time(self) -> None:
        if self._timer is None and self._subscribers and not self._stopped:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self.publish)

    def publish(self) -> None:
        """Send all subscribers the summary of now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._subscribers:
            return
        event = self._event()
        for subscriber in [one for one in self._subscribers if not one.send(event)]:
            self._subscribers.discard(subscriber)
            log.info("dashboard cut: it does not keep up")
        self._keep_time()

    def stop(self) -> None:
        """End all subscriptions."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for subscriber in list(self._subscribers):
            subscriber.send(None)
