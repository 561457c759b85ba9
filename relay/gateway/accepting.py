"""Listeners of the control plane: for connections that have something to say before the data plane takes them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from relay.addresses import Address
from relay.errors import OperatorError
from relay.gateway import descriptors
from relay.gateway.pauses import Pauses
from relay.plane.endings import pause_of
from relay.plane.listening import LISTEN_BACKLOG
from relay.sockaddr import from_sockaddr, to_sockaddr
from relay.tasks import Tasks

# While no descriptor is left, new clients wait in the kernel's queue for this long.
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
        self._listeners: list[socket.socket] = []
        self._accepting = Tasks()
        self._serving = Tasks()

    def listen(self, address: Address, key: str, serve: Serve) -> Address:
        """Accept on a literal address, on a free port for port 0. Raises OperatorError that names the setting.

        ``serve`` owns the socket that it is given; the address is the other end.
        """
        listener = _open_listener(address, key)
        self.take(listener, serve)
        return from_sockaddr(listener.getsockname())

    def take(self, listener: socket.socket, serve: Serve) -> None:
        """The same with a socket that listens already, and is owned here from now on."""
        self._listeners.append(listener)
        self._accepting.start(self._accept(listener, serve), f"{self._name} listener")

    async def drain(self) -> None:
        """Accept nobody from now on. Whoever has connected already is served."""
        await self._accepting.cancel()
        while self._listeners:
            self._listeners.pop().close()

    def endings(self) -> list[Callable[[], object]]:
        """For each connection that is served, what ends it."""
        return [serving.cancel for serving in self._serving.running()]

    async def stop(self) -> None:
        """End whatever is served. May be repeated."""
        await self.drain()
        await self._serving.cancel()

    async def _accept(self, listener: socket.socket, serve: Serve) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    await self._pause(error.errno or 0)
                continue
            await self._wait_for_room(accepted)
            # The other end of a unix socket has no name.
            client = from_sockaddr(peer) if isinstance(peer, tuple) else Address("", 0)
            self._serving.start(serve(accepted, client), f"{self._name} connection")

    async def _wait_for_room(self, accepted: socket.socket) -> None:
        """Hold this one, and leave all after it in the kernel's queue, while clients have all that is for them."""
        try:
            while self._pauses is not None and not descriptors.has_room():
                await self._pause(errno.EMFILE)
        except BaseException:
            accepted.close()
            raise

    async def _pause(self, code: int) -> None:
        if self._pauses is not None:
            self._pauses.note(pause_of(code), self._name)
        await asyncio.sleep(ACCEPT_PAUSE_S)


def _open_listener(address: Address, key: str) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        listener = socket.create_server(to_sockaddr(address), family=family, backlog=LISTEN_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OperatorError(f"cannot listen on {address} ({key}): {reason.lower()}") from None
    listener.setblocking(False)
    return listener
