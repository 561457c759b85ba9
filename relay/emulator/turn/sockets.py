"""UDP sockets of TURN hosts, and what it means if one cannot be opened."""

from __future__ import annotations

import errno
import socket

from relay.addresses import Address
from relay.sockaddr import to_sockaddr

# The longest possible datagram, so that none is cut off.
MAX_DATAGRAM_BYTES = 65535
# Datagrams taken from one socket before the others have their turn: 64 take about two milliseconds in Python.
MAX_DATAGRAMS_PER_WAKE_UP = 64
# The kernel counts 768 bytes for a voice packet, so 1 MiB holds 1,300 of them: 270 ms of 100 calls. This is a request:
# the kernel grants at most net.core.rmem_max and net.core.wmem_max.
SOCKET_BUFFER_BYTES = 1 << 20
# The socket of a whole host serves up to 1,000 calls.
HOST_BUFFER_BYTES = 4 << 20

# Why no socket can be opened at all. Any other error is about the port that was tried.
_LACKING = {
    errno.EMFILE: "no file descriptors left in this process",
    errno.ENFILE: "no file descriptors left on this machine",
    errno.ENOBUFS: "no memory for sockets",
    errno.ENOMEM: "no memory for sockets",
}


def open_udp_socket(address: Address, buffer_bytes: int = SOCKET_BUFFER_BYTES) -> socket.socket:
    """A bound non-blocking socket with room for a burst. Raises OSError."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if address.is_ipv6:
            # Otherwise "::" would also receive IPv4 datagrams, and report their senders as ::ffff:a.b.c.d.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        opened.bind(to_sockaddr(address))
    except OSError:
        opened.close()
        raise
    return opened


def take_datagrams(source: socket.socket) -> list[tuple[bytes, Address]]:
    """Datagrams that have come, with their senders; others have their turn after ``MAX_DATAGRAMS_PER_WAKE_UP``."""
    found: list[tuple[bytes, Address]] = []
    for _ in range(MAX_DATAGRAMS_PER_WAKE_UP):
        try:
            data, sender = source.recvfrom(MAX_DATAGRAM_BYTES)
        except BlockingIOError:
            break
        except OSError:
            continue  # ICMP: an earlier one did not arrive
        found.append((data, Address(sender[0], sender[1])))
    return found


def lacking(error: OSError) -> str:
    """What has run out, so that no other port would help either; empty if the error is about this port."""
    return _LACKING.get(error.errno or 0, "")
