"""The TCP connection to a client: what the kernel is told to do, and what it knows (tcp(7), TCP_INFO)."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

from relay.plane.api import ClientLink

# Keep-alive finds a client that vanished without a word within 90 s; so does unacknowledged data within 30 s.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
USER_TIMEOUT_MS = 30_000
# The kernel takes megabytes from us before it says that a client does not read: minutes of voice that nobody wants to
# hear by then. Beyond this much unsent it takes nothing. What it has taken can no longer be dropped.
NOTSENT_LOWAT_BYTES = 16 * 1024
# A system call for each packet would cost more than the packet.
SAMPLE_INTERVAL_S = 1.0
# struct tcp_info of <linux/tcp.h>, up to tcpi_min_rtt, which is there since Linux 4.6.
_TCP_INFO_BYTES = 152
_RTT = struct.Struct("=68xII")
_RETRANSMITS = struct.Struct("=100xI")
_NOT_SENT = struct.Struct("=144xI")
_MIN_RTT = struct.Struct("=148xI")
_QUEUED = struct.Struct("=i")


class LinkProbe:
    """Asks at most once a second, and remembers the answer. ``min_rtt_us`` is TCP's shortest recent round trip."""

    def __init__(self, connected: socket.socket) -> None:
        self.last: ClientLink | None = None
        self.min_rtt_us = 0
        self._socket = connected
        self._due = 0.0

    def sample(self, now: float) -> None:
        """Ask if it is time; the socket must be open."""
        if now < self._due:
            return
        self._due = now + SAMPLE_INTERVAL_S
        try:
            raw = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return  # it was reset, and the transport will say so
        if len(raw) < _TCP_INFO_BYTES:
            return  # an older kernel says less
        rtt_us, variation_us = _RTT.unpack_from(raw)
        self.last = ClientLink(rtt_us, variation_us, _RETRANSMITS.unpack_from(raw)[0], _NOT_SENT.unpack_from(raw)[0])
        (self.min_rtt_us,) = _MIN_RTT.unpack_from(raw)

    def unacknowledged(self) -> int:
        """Bytes that the client has not acknowledged yet (SIOCOUTQ, tcp(7)); 0 once the connection is gone."""
        try:
            (queued,) = _QUEUED.unpack(fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(_QUEUED.size)))
        except OSError:
            return 0
        return int(queued)


def configure_client_socket(accepted: socket.socket) -> None:
    """Prepare an accepted socket for voice, and for a client that vanishes."""
    # Voice is small and must not wait for more to come (Nagle).
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
