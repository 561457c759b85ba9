"""Listeners of the control plane: for connections that have something to say before the data plane takes them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from relay.addresses import Address
from relay.gateway import descriptors
from relay.gateway.pauses import Pauses
from relay.plane.endings import pause_of
from relay.sockaddr import from_sockaddr
from relay.tasks import Tasks

# While no descriptor is left, or memory is short, new clients wait in the kernel's queue for this long.
ACCEPT_PAUSE_S = 0.25

Serve = Callable[[socket.socket, Address], Coroutine[Any, Any, None]]


class Acceptor:
    """Owns listeners, and what serves the connections that they accept."""

    def __init__(self, name: str, pauses: Pauses | None = None) -> None:
        """``name`` is what its connections are called. ``pauses`` hears when clients have to wait.

        Without it these are operators, and they have the descriptors that clients must leave.
        """
        self._name = name
        self._pauses = pauses
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._serving = Tasks()

    def __len__(self) -> int:
        """How many connections are served."""
        return len(self._serving)

    def listen(self, listeners: Sequence[socket.socket], serve: Serve) -> Address:
        """Accept on sockets that listen on one address, and are its own from here. Returns the address.

        ``serve`` owns the socket that it is given; the address is the other end.
        """
        self.take(listeners, serve)
        return from_sockaddr(listeners[0].getsockname())

    def take(self, listeners: Sequence[socket.socket], serve: Serve) -> None:
        """The same with sockets of any family."""
        self._listeners += listeners
        for listener in listeners:
            self._watch(listener, serve)

    def drain(self) -> None:
        """Accept nobody from now on. Whoever has connected already is served."""
        while self._listeners:
            listener = self._listeners.pop()
            self._loop.remove_reader(listener)
            if (pause := self._paused.pop(listener, None)) is not None:
                pause.cancel()
            listener.close()

    def endings(self) -> list[Callable[[], object]]:
        """For each connection that is served, what ends it."""
        return [serving.cancel for serving in self._serving.running()]

    async def stop(self) -> None:
        """End whatever is served. May be repeated."""
        self.drain()
        await self._serving.cancel()

    def _watch(self, listener: socket.socket, serve: Serve) -> None:
        self._paused.pop(listener, None)
        self._loop.add_reader(listener, self._on_newcomer, listener, serve)

    def _on_newcomer(self, listener: socket.socket, serve: Serve) -> None:
        # Not a task that waits for ``sock_accept``: if it is cancelled just when somebody has come, they are lost.
        if self._pauses is not None and (self._pauses.memory_is_short or not descriptors.has_room()):
            self._pause(listener, serve, errno.ENOMEM if self._pauses.memory_is_short else errno.EMFILE)
            return
        try:
            accepted, peer = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # gone, or taken by another process that has the same socket
        except OSError as error:
            self._pause(listener, serve, error.errno or 0)
            return
        accepted.setblocking(False)
        # The other end of a unix socket has no name.
        client = from_sockaddr(peer) if isinstance(peer, tuple) else Address("", 0)
        self._serving.start(serve(accepted, client), f"{self._name} connection")

    def _pause(self, listener: socket.socket, serve: Serve, code: int) -> None:
        """Leave newcomers in the kernel's queue for a moment."""
        if self._pauses is not None:
            self._pauses.note(pause_of(code), self._name)
        self._loop.remove_reader(listener)
        self._paused[listener] = self._loop.call_later(ACCEPT_PAUSE_S, self._watch, listener, serve)
