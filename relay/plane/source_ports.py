"""Opens the UDP sockets of flows, each connected to its upstream, and lets used source ports rest.

A client that vanished leaves its allocation at the upstream until its lifetime ends. The upstream would take a new flow
from the same source port for that client and answer 437, so such a port rests until the allocation has ended. A relay
that starts anew does not know these ports. Then each 437 makes it try another one (``open_fresh_socket``).

A socket that cannot be connected now is given unconnected, with a port of its own: a missing route or source address
says nothing about the upstream. It is connected before it first sends (``uplink``).
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from relay.addresses import Address
from relay.plane.settings import PlaneSettings
from relay.sockaddr import pack_sockaddr, to_sockaddr

# How long a port rests when nobody knows the lifetime of the allocation there (RFC 8656 section 3.2: the default).
ALLOCATION_LIFETIME_S = 600.0

# From Linux's in.h and in6.h; Python 3.11 does not name them.
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DO = 2
IPV6_MTU_DISCOVER = 23
IPV6_PMTUDISC_DO = 2
IP_FREEBIND = 15
IPV6_FREEBIND = 78
# The kernel picks among 28,000 ports. Eight picks find a free one nine times in ten even when three in four rest. After
# that all ports are tried, each in some microseconds. A range of 2,000 takes no longer than this, and so nobody else
# waits for longer.
MAX_PICKS = 8
SEARCH_S = 0.02
# The range from which Linux picks, for IPv6 too, and its default where the file cannot be read.
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_PORT_RANGE = range(32_768, 61_000)
# Ports that are kept for others, such as 3478,8080-8089.
RESERVED_PORTS = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
# A burst of 200 KB must fit while the thread serves others. The kernel takes the memory only when it is filled.
RECEIVE_BUFFER_BYTES = 512 * 1024
# One entry for each port and upstream. Beyond this many the oldest entry goes.
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
        """A non-blocking socket for the upstream, from a port that does not rest, if there is one. Raises OSError."""
        # Kept open until a port is found, or the kernel might pick the same one again.
        picked: list[socket.socket] = []
        try:
            for _ in range(MAX_PICKS):
                picked.append(self._connect(upstream))
                if not self._rests(now, picked[-1], upstream):
                    return picked.pop()
            # Where all rest the last one is as good as any.
            return self._search(now, upstream) or picked.pop()
        finally:
            for unwanted in picked:
                unwanted.close()

    def open_fresh_socket(self, now: float, upstream: Address) -> socket.socket:
        """The same for a flow that has met a stale allocation. Raises OSError where every port rests."""
        opened = self.open_socket(now, upstream)
        if self._rests(now, opened, upstream):
            opened.close()
            raise OSError(errno.EADDRINUSE, "all source ports rest")
        return opened

    def _search(self, now: float, upstream: Address) -> socket.socket | None:
        """A socket from any free port of the range that does not rest. Returns None if SEARCH_S did not find one."""
        until = time.monotonic() + SEARCH_S
        for port in _ports_from_anywhere():
            if not self._is_resting(now, port, upstream):
                with contextlib.suppress(OSError):  # another socket has it
                    return self._connect(upstream, port)
            if time.monotonic() > until:
                break
        return None

    def rest(self, port: int, upstream: Address, until: float) -> None:
        """Keep flows to this upstream away from a source port until a time."""
        self._resting.pop((port, upstream), None)
        self._resting[port, upstream] = until
        if len(self._resting) > MAX_RESTING:
            del self._resting[next(iter(self._resting))]

    def _rests(self, now: float, opened: socket.socket, upstream: Address) -> bool:
        return bool(self._resting) and self._is_resting(now, opened.getsockname()[1], upstream)

    def _is_resting(self, now: float, port: int, upstream: Address) -> bool:
        key = (port, upstream)
        until = self._resting.get(key)
        if until is None:
            return False
        if until <= now:
            del self._resting[key]
        return until > now

    def _connect(self, upstream: Address, port: int = 0) -> socket.socket:
        family = socket.AF_INET6 if upstream.is_ipv6 else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._configure(opened, family)
            source = self._settings.source_ipv6 if upstream.is_ipv6 else self._settings.source_ipv4
            if source is not None:
                _bind(opened, Address(source, port))
            elif port:
                opened.bind(("", port))
            _connect_if_possible(opened, upstream)
        except OSError:
            opened.close()
            raise
        return opened

    def _configure(self, opened: socket.socket, family: socket.AddressFamily) -> None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if family is socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
        else:
            opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)


def _bind(opened: socket.socket, source: Address) -> None:
    """Bind to a source address, also to one that is away: its link may be down, or not have it yet."""
    try:
        opened.bind(to_sockaddr(source))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        ipv6 = opened.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, IPV6_FREEBIND) if ipv6 else (socket.IPPROTO_IP, IP_FREEBIND)
        opened.setsockopt(level, option, 1)
        opened.bind(to_sockaddr(source))


def _connect_if_possible(opened: socket.socket, upstream: Address) -> None:
    """Connect, or bind to a port if there is no way to the upstream now. Raises OSError if no port is free."""
    try:
        opened.connect(to_sockaddr(upstream))
    except OSError as error:
        if error.errno == errno.EAGAIN:  # udp(7): all ports of the range are in use
            raise
        if not opened.getsockname()[1]:
            opened.bind(("", 0))


def _ports_from_anywhere() -> Iterator[int]:
    """Each port that Linux might pick once, from a random one on."""
    ports, reserved = _port_range(), _reserved_ports()
    start = random.randrange(len(ports))  # noqa: S311
    turned = (ports[(start + step) % len(ports)] for step in range(len(ports)))
    return (port for port in turned if not any(port in kept for kept in reserved))


def _port_range() -> range:
    try:
        first, last = map(int, PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return DEFAULT_PORT_RANGE
    return range(first, last + 1) if 0 < first <= last < 65_536 else DEFAULT_PORT_RANGE


def _reserved_ports() -> list[range]:
    try:
        spans = [span.partition("-") for span in RESERVED_PORTS.read_text().strip().split(",") if span]
        return [range(int(first), int(last or first) + 1) for first, _, last in spans]
    except (OSError, ValueError):
        return []


def is_connected(opened: socket.socket) -> bool:
    """True if the socket has a peer."""
    try:
        opened.getpeername()
    except OSError:
        return False
    return True


def target_of(opened: socket.socket, upstream: Address) -> bytes:
    """The sockaddr that an unconnected socket is to be connected to; empty for a connected one."""
    if is_connected(opened):
        return b""
    return pack_sockaddr(upstream)
