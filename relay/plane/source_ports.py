"""Opens the UDP sockets of flows, each connected to its upstream, and lets used source ports rest.

A client that vanished leaves its allocation at the upstream for up to its lifetime. A new flow from the same source
port would be taken for that client and answered 437, so such a port rests until the allocation has ended.
"""

from __future__ import annotations

import socket

from relay.addresses import Address
from relay.plane.api import PlaneSettings
from relay.sockaddr import to_sockaddr

# From Linux's in.h and in6.h; Python 3.11 does not name them.
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DO = 2
IPV6_MTU_DISCOVER = 23
IPV6_PMTUDISC_DO = 2
# The kernel picks among 28,000 ports; eight picks find a rested one even when three in four rest.
MAX_PICKS = 8
# A burst of 200 KB must fit while the thread serves others; the kernel takes the memory only when it is filled.
RECEIVE_BUFFER_BYTES = 512 * 1024
# One entry for each port and upstream; when a thousand upstreams' ports rest, the oldest entry goes.
MAX_RESTING = 1 << 20


class SourcePorts:
    """The source ports of one plane. ``now`` is the plane's clock, in seconds."""

    def __init__(self, settings: PlaneSettings) -> None:
        self._settings = settings
        self._resting: dict[tuple[int, Address], float] = {}

    def configure(self, settings: PlaneSettings) -> None:
        """Use the source addresses of these settings from now on."""
        self._settings = settings

    def open_socket(self, now: float, upstream: Address) -> socket.socket:
        """A non-blocking socket connected to the upstream, from a port that does not rest. Raises OSError."""
        rejected: list[socket.socket] = []
        try:
            while True:
                opened = self._connect(upstream)
                if not self._rests(now, opened, upstream) or len(rejected) == MAX_PICKS - 1:
                    return opened
                # Kept open until a port is found, or the kernel might pick the same one again.
                rejected.append(opened)
        finally:
            for unwanted in rejected:
                unwanted.close()

    def rest(self, port: int, upstream: Address, until: float) -> None:
        """Keep flows to this upstream away from a source port until a time."""
        self._resting.pop((port, upstream), None)
        self._resting[port, upstream] = until
        if len(self._resting) > MAX_RESTING:
            del self._resting[next(iter(self._resting))]

    def _rests(self, now: float, opened: socket.socket, upstream: Address) -> bool:
        if not self._resting:
            return False
        key = (opened.getsockname()[1], upstream)
        until = self._resting.get(key)
        if until is None:
            return False
        if until <= now:
            del self._resting[key]
        return until > now

    def _connect(self, upstream: Address) -> socket.socket:
        family = socket.AF_INET6 if upstream.is_ipv6 else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._configure(opened, family)
            opened.connect(to_sockaddr(upstream))
        except OSError:
            opened.close()
            raise
        return opened

    def _configure(self, opened: socket.socket, family: socket.AddressFamily) -> None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if family is socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
            source = self._settings.source_ipv6
        else:
            opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            source = self._settings.source_ipv4
        if source is not None:
            opened.bind(to_sockaddr(Address(source, 0)))
