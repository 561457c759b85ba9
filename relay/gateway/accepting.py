"""Listeners of the control plane: for connections that have something to say before the data plane takes them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

from relay.addresses import Address
from relay.errors import OperatorError
from relay.sockaddr import from_sockaddr, to_sockaddr

# As in the plane: a login storm is a thousand clients within seconds.
BACKLOG = 1024
# While no descriptor is left, new clients wait in the kernel's queue for this long.
ACCEPT_PAUSE_S = 0.25


def open_listener(address: Address, key: str) -> socket.socket:
    """Listen on a literal address, on a free port for port 0. Raises OperatorError that names the setting."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        listener = socket.create_server(to_sockaddr(address), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OperatorError(f"cannot listen on {address} ({key}): {reason.lower()}") from None
    listener.setblocking(False)
    return listener


async def accept_all(listener: socket.socket, serve: Callable[[socket.socket, Address], None]) -> None:
    """Accept until cancelled. ``serve`` owns the sockets that it is given."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, peer = await loop.sock_accept(listener)
        except OSError as error:
            if error.errno != errno.ECONNABORTED:
                await asyncio.sleep(ACCEPT_PAUSE_S)
            continue
        serve(accepted, from_sockaddr(peer))
