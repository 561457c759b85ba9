"""The copies that a worker makes of a flow's datagrams, as the contract has them."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

from relay.addresses import Address
from relay.plane.compiled.connections import Flow
from relay.plane.compiled.numbers import TAP_DIRECTIONS, TAP_LOCAL
from relay.plane.taps import TappedDatagram
from relay.sockaddr import from_sockaddr

if TYPE_CHECKING:
    from relay._fastpath import TapReader


class FlowTap:
    """Python's end of a tap."""

    def __init__(self, reader: TapReader, flow: Flow) -> None:
        self.client = flow.client
        self.server_name = flow.server_name
        self.upstream = flow.upstream
        self._reader = reader
        self._local = Address("", 0)

    @property
    def missed(self) -> int:
        """How many datagrams found no room, from the start."""
        return self._reader.missed

    @property
    def ended(self) -> bool:
        """True if nothing more will come."""
        return self._reader.ended

    def take(self, limit: int) -> list[TappedDatagram]:
        """What has come, in order, at most this many."""
        taken = []
        for kind, at_us, missed, data in self._reader.take(limit):
            if kind == TAP_LOCAL:
                self._local = _address_of(data)
            else:
                taken.append(TappedDatagram(at_us, TAP_DIRECTIONS[kind], self._local, missed, data))
        return taken

    def close(self) -> None:
        """Copy no more. May be repeated."""
        self._reader.close()


def _address_of(sockaddr: bytes) -> Address:
    """The address in a sockaddr_in or sockaddr_in6."""
    family, port = int.from_bytes(sockaddr[:2], sys.byteorder), int.from_bytes(sockaddr[2:4])
    if family != socket.AF_INET6:
        return Address(socket.inet_ntop(family, sockaddr[4:8]), port)
    return from_sockaddr(
        (socket.inet_ntop(family, sockaddr[8:24]), port, 0, int.from_bytes(sockaddr[24:28], sys.byteorder))
    )
