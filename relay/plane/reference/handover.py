"""Carries the plain bytes of an HTTP connection between the plane and control, over a pair of stream sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

# One read of a response: aiohttp writes chunks of 64 KiB.
_READ_BYTES = 64 * 1024


class Handover:
    """The plane's end of the pair. It holds little, because it reads neither side while the other does not take."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_response: Callable[[bytes], None],
        on_end: Callable[[], None],
        pause_client: Callable[[bool], None],
    ) -> None:
        """Opens the pair; ``fd`` is control's end. Raises OSError.

        ``pause_client(True)`` asks to read nothing more from the client until ``pause_client(False)``.
        """
        self._loop = loop
        self._on_response = on_response
        self._on_end = on_end
        self._pause_client = pause_client
        self._unsent = b""
        self._paused = False
        # The client sends no more.
        self.ended = False
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self.fd = theirs.detach()
        self._watch()

    def send_request(self, plain: bytes) -> None:
        """Pass the client's bytes on. If some stay unsent, the plane is asked to pause before it calls again."""
        self._unsent += plain
        self._on_writable()

    def end_request(self) -> None:
        """The client sends no more. aiohttp sees the end of the stream after it has read the rest."""
        self.ended = True
        if not self._unsent:
            self._shut_down()

    def pause_response(self, paused: bool) -> None:
        """Do not read responses while the client does not take them."""
        self._paused = paused
        if self._socket.fileno() >= 0:
            self._watch()

    def close(self) -> None:
        """Let go of the plane's end."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _watch(self) -> None:
        # Anew each time, because uvloop lets go of a socket with an error, even if there are bytes to read before it.
        # The socket has an error when control closes its end and leaves part of the request unread.
        self._loop.remove_reader(self._socket)
        if not self._paused:
            self._loop.add_reader(self._socket, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._watch()
            self._on_response(data)
        else:
            self._on_end()

    def _on_writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            sent = len(self._unsent)  # control has closed its end: nobody wants the rest, and _on_readable sees it too
        self._unsent = self._unsent[sent:]
        self._pause_client(bool(self._unsent))
        if self._unsent:
            self._loop.add_writer(self._socket, self._on_writable)
            return
        self._loop.remove_writer(self._socket)
        self._watch()
        if self.ended:
            self._shut_down()

    def _shut_down(self) -> None:
        # This fails if control has closed its end already.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
