"""Room in UDP sockets: what a full one has no room for is lost, and a test that waits for it waits in vain."""

from __future__ import annotations

import contextlib
import socket

# Thousands of small datagrams: what a crowd says while the test's loop stands still for a second.
BURST_BYTES = 8 << 20
# socket(7): beyond net.core.rmem_max and wmem_max, for root.
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33


def give_room(opened: socket.socket) -> None:
    """Let a socket hold a burst; one of an ordinary user holds what the system allows."""
    for option, forced in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
        opened.setsockopt(socket.SOL_SOCKET, option, BURST_BYTES)
        with contextlib.suppress(PermissionError):
            opened.setsockopt(socket.SOL_SOCKET, forced, BURST_BYTES)
