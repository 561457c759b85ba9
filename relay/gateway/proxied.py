"""TLS listeners behind a balancer: the PROXY header is read here, and then the data plane has the connection."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Sequence

from relay.addresses import Address
from relay.gateway.accepting import Acceptor
from relay.gateway.balancers import Balancers
from relay.gateway.calls.ids import CallIds
from relay.gateway.pauses import Pauses
from relay.plane.api import Plane
from relay.plane.client_certificates import ClientCertificates


class ProxiedListeners:
    """Owns the listeners of ``listen.tls`` that need a header, and their connections until the plane takes them."""

    def __init__(self, plane: Plane, balancers: Balancers, pauses: Pauses, ids: CallIds) -> None:
        self._plane = plane
        self._balancers = balancers
        self._ids = ids
        self._acceptor = Acceptor("proxied", pauses)

    def __len__(self) -> int:
        """How many connections the plane has not taken yet."""
        return len(self._acceptor)

    def listen(self, listeners: Sequence[socket.socket], asks: ClientCertificates = ClientCertificates.NONE) -> Address:
        """Accept balancers on sockets that listen on one address. Returns the address.

        ``asks`` is for the clients that they bring.
        """
        return self._acceptor.listen(listeners, functools.partial(self._serve, asks))

    def drain(self) -> None:
        """Accept nobody from now on. Whoever has connected already is served."""
        self._acceptor.drain()

    async def stop(self) -> None:
        """End all connections that the plane has not taken. May be repeated."""
        await self._acceptor.stop()

    async def _serve(self, asks: ClientCertificates, accepted: socket.socket, peer: Address) -> None:
        with accepted, contextlib.suppress(OSError):  # the balancer is gone
            accepted.setblocking(False)
            connection = self._plane.new_id()
            introduced = await self._balancers.introduce(accepted, peer, self._ids.id_of(connection))
            if introduced is not None:
                client = introduced.client
                self._plane.adopt(accepted.detach(), introduced.preread, client, asks, connection)
