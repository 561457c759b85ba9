"""TLS listeners behind a balancer: the PROXY header is read here, and then the data plane has the connection."""

from __future__ import annotations

import contextlib
import socket

from relay.addresses import Address
from relay.gateway.accepting import accept_all, open_listener
from relay.gateway.balancers import Balancers
from relay.plane.api import Plane
from relay.sockaddr import from_sockaddr
from relay.tasks import Tasks


class ProxiedListeners:
    """Owns the listeners of ``listen.tls`` that need a header, and their connections until the plane takes them."""

    def __init__(self, plane: Plane, balancers: Balancers) -> None:
        self._plane = plane
        self._balancers = balancers
        self._listeners: list[socket.socket] = []
        self._accepting = Tasks()
        self._serving = Tasks()

    async def listen(self, address: Address) -> Address:
        """Accept balancers on a literal address, on a free port for port 0. Raises OperatorError."""
        listener = open_listener(address, "listen.tls")
        self._listeners.append(listener)
        self._accepting.start(accept_all(listener, self._on_accepted), "proxied listener")
        return from_sockaddr(listener.getsockname())

    async def drain(self) -> None:
        """Accept nobody from now on. Whoever has connected already is served."""
        await self._accepting.cancel()
        while self._listeners:
            self._listeners.pop().close()

    async def stop(self) -> None:
        """End all connections that the plane has not taken. May be repeated."""
        await self.drain()
        await self._serving.cancel()

    def _on_accepted(self, accepted: socket.socket, peer: Address) -> None:
        self._serving.start(self._serve(accepted, peer), "proxied connection")

    async def _serve(self, accepted: socket.socket, peer: Address) -> None:
        with accepted, contextlib.suppress(OSError):  # the balancer is gone
            accepted.setblocking(False)
            introduced = await self._balancers.introduce(accepted, peer)
            if introduced is not None:
                self._plane.adopt(accepted.detach(), introduced.preread, introduced.client)
