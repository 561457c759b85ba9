"""What the kernel knows of the TCP connection to a client (tcp(7), TCP_INFO)."""

from __future__ import annotations

import socket
import struct

from relay.plane.api import ClientLink

# A system call for each packet would cost more than the packet.
SAMPLE_INTERVAL_S = 1.0
# struct tcp_info of <linux/tcp.h>, up to tcpi_notsent_bytes, which is there since Linux 4.6.
_TCP_INFO_BYTES = 148
_RTT = struct.Struct("=68xII")
_RETRANSMITS = struct.Struct("=100xI")
_NOT_SENT = struct.Struct("=144xI")


class LinkProbe:
    """Asks at most once a second, and remembers the answer."""

    def __init__(self, connected: socket.socket) -> None:
        self.last: ClientLink | None = None
        self._socket = connected
        self._due = 0.0

    def sample(self, now: float) -> None:
        """Ask if it is time; the socket must be open."""
        if now < self._due:
            return
        self._due = now + SAMPLE_INTERVAL_S
        try:
            self.last = read_link(self._socket)
        except OSError:
            return  # it was reset, and the transport will say so


def read_link(connected: socket.socket) -> ClientLink | None:
    """What TCP_INFO says now; None from a kernel that says less. Raises OSError."""
    raw = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(raw) < _TCP_INFO_BYTES:
        return None
    rtt_us, variation_us = _RTT.unpack_from(raw)
    return ClientLink(rtt_us, variation_us, _RETRANSMITS.unpack_from(raw)[0], _NOT_SENT.unpack_from(raw)[0])
