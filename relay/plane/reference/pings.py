"""Signs of life of a WebSocket client: proxies cut a silent tunnel, and TCP's keep-alive does not count for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Texts between two pings. A client opens and binds 64 channels, and may need as many messages again to bind them anew
# when the other side has moved. Each text costs control a turn of its loop.
MAX_TEXTS_A_PING = 128
# STUN of the upstream that nobody asked for, between two pings: a peer without a channel causes Data indications.
MAX_UNASKED_A_PING = 256
# After this many pings without any answer the client is gone.
MAX_UNHEARD = 2


class Pings:
    """Asks for a sign of life at even intervals, and counts what may come only a number of times in each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval_s: float,
        ping: Callable[[], None],
        is_listening: Callable[[], bool],
        fail: Callable[[], None],
    ) -> None:
        """``fail`` is called once, if the client has not said anything since the ping before the last.

        While ``is_listening`` is false, nothing that it says is heard, and silence does not count.
        """
        self._loop = loop
        self._interval_s = interval_s
        self._ping = ping
        self._is_listening = is_listening
        self._fail = fail
        self._unheard = 0
        self._texts = 0
        self._unasked = 0
        self._timer = loop.call_later(interval_s, self._on_timer)

    def on_heard(self) -> None:
        """The client has said something."""
        self._unheard = 0

    def on_text(self) -> bool:
        """The client has sent a text message. Returns False if it is one too many."""
        self._texts += 1
        return self._texts <= MAX_TEXTS_A_PING

    def on_unasked(self) -> bool:
        """The upstream has sent STUN that answers nothing. Returns False if it is one too many."""
        self._unasked += 1
        return self._unasked <= MAX_UNASKED_A_PING

    def close(self) -> None:
        """Ask no more."""
        self._timer.cancel()

    def _on_timer(self) -> None:
        if not self._is_listening():
            self._unheard = 0
        if self._unheard == MAX_UNHEARD:
            self._fail()
            return
        self._unheard += 1
        self._texts = 0
        self._unasked = 0
        self._timer = self._loop.call_later(self._interval_s, self._on_timer)
        self._ping()
