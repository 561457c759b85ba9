"""Sockets that listen on one address and share its connections."""

from __future__ import annotations

import os
import socket

from relay.addresses import Address
from relay.errors import OperatorError
from relay.sockaddr import to_sockaddr

# A login storm is a thousand clients within seconds; the kernel caps this at net.core.somaxconn (4096).
LISTEN_BACKLOG = 1024


def open_listeners(address: Address, count: int, setting: str = "") -> list[socket.socket]:
    """``count`` sockets that listen on a literal address, on one free port for port 0.

    Raises OperatorError, which names the setting that the address is from.
    """
    try:
        return _open(address, count)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        named = f"{address} ({setting})" if setting else str(address)
        raise OperatorError(f"cannot listen on {named}: {reason.lower()}") from None


def _open(address: Address, count: int) -> list[socket.socket]:
    # SO_REUSEPORT would let a second relay slip onto a taken port: a socket without it asks first.
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        with _bound(family, address, shares=False) as probe:
            port = probe.getsockname()[1]
        for _ in range(count):
            listening = _bound(family, Address(address.host, port), shares=True)
            sockets.append(listening)
            listening.listen(LISTEN_BACKLOG)
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _bound(family: socket.AddressFamily, address: Address, *, shares: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(to_sockaddr(address))
    except OSError:
        opened.close()
        raise
    return opened
