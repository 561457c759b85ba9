"""TLS listeners behind a balancer: the PROXY header is read here, and then the data plane has the connection."""

from __future__ import annotations

import contextlib
import socket

from relay.addresses import Address
from relay.gateway.accepting import Acceptor
from relay.gateway.balancers import Balancers
from relay.gateway.pauses import Pauses
from relay.plane.api import Plane


class ProxiedListeners:
    """Owns the listeners of ``listen.tls`` that need a header, and their connections until the plane takes them."""

    def __init__(self, plane: Plane, balancers: Balancers, pauses: Pauses) -> None:
        self._plane = plane
        self._balancers = balancers
        self._acceptor = Acceptor("proxied", pauses)

    def listen(self, address: Address) -> Address:
        """Accept balancers on a literal address, on a free port for port 0. Raises OperatorError."""
        return self._acceptor.listen(address, "listen.tls", self._serve)

    async def drain(self) -> None:
        """Accept nobody from now on. Whoever has connected already is served."""
        await self._acceptor.drain()

    async def stop(self) -> None:
        """End all connections that the plane has not taken. May be repeated."""
        await self._acceptor.stop()

    async def _serve(self, accepted: socket.socket, peer: Address) -> None:
        with accepted, contextlib.suppress(OSError):  # the balancer is gone
            accepted.setblocking(False)
            introduced = await self._balancers.introduce(accepted, peer)
            if introduced is not None:
                self._plane.adopt(accepted.detach(), introduced.preread, introduced.client)
