"""Addresses as sockets take and give them. There the zone of a link-local address (``fe80::1%eth0``) is a number.

If the zone is part of the host's text, Python drops it when a socket is bound or connected, and never returns it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Any

from relay.addresses import Address

SockAddr = tuple[str, int] | tuple[str, int, int, int]


def to_sockaddr(address: Address) -> SockAddr:
    """What ``bind`` and ``connect`` take for this address. Raises OSError if its interface is missing."""
    host, _, zone = address.host.partition("%")
    if not zone:
        return address
    return host, address.port, 0, _index(zone)


def _index(zone: str) -> int:
    if zone.isascii() and zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        raise OSError(errno.ENODEV, f"no network interface {zone!r}") from None


def from_sockaddr(sockaddr: Sequence[Any]) -> Address:
    """The address that ``getsockname`` and others return. A zone is a name, or a number if its interface has gone."""
    # An IPv6 socket that is connected to IPv4 gives v4-mapped addresses.
    host, port = str(sockaddr[0]).removeprefix("::ffff:"), int(sockaddr[1])
    scope = int(sockaddr[3]) if len(sockaddr) > 3 else 0
    if not scope or "%" in host:
        return Address(host, port)
    try:
        return Address(f"{host}%{socket.if_indextoname(scope)}", port)
    except OSError:
        return Address(f"{host}%{scope}", port)


def pack_sockaddr(address: Address) -> bytes:
    """A literal address as C has it: a sockaddr_in or a sockaddr_in6, without a zone if there is no such link now."""
    host, port = ipaddress.ip_address(address.host), address.port.to_bytes(2)
    if isinstance(host, ipaddress.IPv4Address):
        return struct.pack("=H2s4s8x", socket.AF_INET, port, host.packed)
    index = 0
    with contextlib.suppress(OSError):
        index = (*to_sockaddr(address), 0, 0)[3]
    return struct.pack("=H2s4x16sI", socket.AF_INET6, port, host.packed, index)
