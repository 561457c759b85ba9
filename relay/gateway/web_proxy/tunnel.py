"""A byte tunnel between two sockets: each direction ends by itself, and what is read waits until it is written.

It holds one chunk each way and nothing more, so a peer that does not read slows down the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from relay import deadlines
from relay.addresses import Address

# Read at once in each direction. An idle tunnel holds no buffer.
CHUNK_BYTES = 64 * 1024
# The idle deadline is moved at most this often while it runs, not for each chunk.
IDLE_STEPS = 16
# SO_LINGER, on and zero: close() sends RST.
_RESET = struct.pack("ii", 1, 0)


class TunnelEnd(StrEnum):
    """Why a tunnel ended: a label of metrics and a word of the log."""

    CLOSED = "closed"  # both sides have ended
    RESET = "reset"  # one side broke off
    IDLE = "idle"
    STOPPED = "stopped"  # the relay ends


@dataclass(slots=True)
class TunnelBytes:
    """What tunnels have carried; ``up`` is from the client."""

    up: int = 0
    down: int = 0

    def add_up(self, count: int) -> None:
        """Count bytes from the client."""
        self.up += count

    def add_down(self, count: int) -> None:
        """Count bytes to the client."""
        self.down += count


def configure_socket(connected: socket.socket) -> None:
    """Set what any TCP socket of a tunnel needs: no delay for small writes, and an end for peers that are gone."""
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def connect_any(addresses: Sequence[Address], timeout_s: float) -> socket.socket:
    """Connect to the first of these literal addresses that accepts; all together have ``timeout_s``.

    Each address has an equal share of the time that is left. Raises OSError, such as TimeoutError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    error: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for number, address in enumerate(addresses):
        share_s = (deadline - loop.time()) / (len(addresses) - number)
        try:
            async with deadlines.timeout(share_s):
                return await _connect(address)
        except OSError as failed:
            error = failed
    raise error


async def _connect(address: Address) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    connecting = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        configure_socket(connecting)
        # The address is literal: nothing is looked up again.
        await asyncio.get_running_loop().sock_connect(connecting, address)
    except BaseException:
        connecting.close()
        raise
    return connecting


async def carry(client: socket.socket, server: socket.socket, idle_timeout_s: float, count: TunnelBytes) -> TunnelEnd:
    """Carry bytes both ways until both sides have ended. Adds to ``count``. The caller closes the sockets."""
    try:
        async with deadlines.timeout(idle_timeout_s) as deadline:
            return await _carry(client, server, _Patience(deadline, idle_timeout_s), count)
    except TimeoutError:
        return TunnelEnd.IDLE


async def _carry(client: socket.socket, server: socket.socket, patience: _Patience, count: TunnelBytes) -> TunnelEnd:
    end = TunnelEnd.CLOSED
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(client, server, patience, count.add_up))
            both.create_task(_pump(server, client, patience, count.add_down))
    except* OSError:
        end = TunnelEnd.RESET
        # Some bytes are lost. A FIN would tell the other side that it has everything, so it gets a RST.
        for broken in (client, server):
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return end


async def _pump(source: socket.socket, sink: socket.socket, patience: _Patience, add: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    while chunk := await loop.sock_recv(source, CHUNK_BYTES):
        patience.renew()
        await loop.sock_sendall(sink, chunk)
        add(len(chunk))
    with contextlib.suppress(OSError):  # it is gone already, and the other direction will find out
        sink.shutdown(socket.SHUT_WR)


class _Patience:
    """Moves the deadline of a tunnel that carries something, but not for each chunk."""

    def __init__(self, deadline: deadlines.Deadline, idle_timeout_s: float) -> None:
        self._deadline = deadline
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._renewed = self._loop.time()

    def renew(self) -> None:
        now = self._loop.time()
        if now - self._renewed >= self._idle_timeout_s / IDLE_STEPS and not self._deadline.expired():
            self._renewed = now
            self._deadline.reschedule(now + self._idle_timeout_s)
