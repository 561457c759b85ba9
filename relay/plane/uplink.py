"""The last step up: one flow's UDP socket, and what an error of ``send`` or ``recv`` means.

Only an ICMP port unreachable proves that nobody listens at the upstream. What our own kernel refuses (a packet filter,
no route, a link that is down, an address that is gone) says nothing about the upstream: the datagram is lost, as it
might be anywhere else on its way, and what must arrive is sent again. Other ICMP errors raise doubts, which the flow
settles by asking (``question``).

When ICMP has said something about an earlier datagram, Linux reports that once, and does not send the next datagram.
So that one is sent again, and a second error is its own. The compiled twin is ``leaves/uplink.pxd``.
"""

from __future__ import annotations

import errno
import socket
from enum import Enum
from typing import NamedTuple

from relay.addresses import Address
from relay.plane.source_ports import IP_MTU_DISCOVER, IP_PMTUDISC_DO, IPV6_MTU_DISCOVER, is_connected
from relay.sockaddr import to_sockaddr
from relay.wire.stun import HEADER_BYTES

# From Linux's in.h and in6.h: may be fragmented. The same value in both.
PMTUDISC_DONT = 0
# Every path of IPv6 carries a datagram of this size (RFC 8200 section 5: 1,280 bytes with both headers). A longer
# request that is not answered may have met a router that drops it and says nothing: it is sent again in fragments.
SURE_BYTES = 1232
# Where a packet filter rejects a datagram, our own kernel sends an ICMP message as well, at most this much later.
REJECTED_WITHIN_S = 1.0
# No more datagrams fit into a socket's buffer.
MAX_STRANGERS = 65_536

_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
# Errors that are never about an earlier datagram.
_OWN = _NO_ROOM | {errno.EPERM}


class Fate(Enum):
    """What became of a datagram."""

    SENT = "sent"
    FULL = "full"
    OVERSIZE = "oversize"
    REFUSED = "refused"
    GONE = "gone"  # nobody listens at the upstream


class News(Enum):
    """What ICMP has said of an earlier datagram."""

    NONE = "none"
    OVERSIZE = "oversize"
    DOUBT = "doubt"


class Sent(NamedTuple):
    """What became of a datagram, and what ICMP said of an earlier one. ``code`` is an errno where it was not sent."""

    fate: Fate
    news: News = News.NONE
    code: int = 0


class Uplink:
    """Sends on a socket that the flow owns. ``now`` is the flow's clock in seconds."""

    def __init__(self, opened: socket.socket, upstream: Address) -> None:
        self.socket = opened
        # Why the last datagram was not sent: an errno of our own kernel, 0 if it was.
        self.refused_for = 0
        self._upstream = upstream
        self._filtered_at: float | None = None
        self.connected = is_connected(opened)

    def send(self, now: float, datagram: bytes, *, again: bool = False) -> Sent:
        """Send a datagram.

        A STUN request that is too long for the path goes in fragments, and so does a long one that is sent ``again``.
        """
        sent = self._send(now, datagram, again)
        self.refused_for = sent.code if sent.fate is Fate.REFUSED else 0
        return sent

    def _send(self, now: float, datagram: bytes, again: bool) -> Sent:
        if not self.connected and (code := self._connect()):
            return Sent(Fate.REFUSED, code=code)
        if again and len(datagram) > SURE_BYTES and is_request(datagram):
            code = self._send_in_fragments(datagram)
        else:
            code = self._try(datagram)
        if not code:
            return Sent(Fate.SENT)
        first, news = code, News.NONE
        if first not in _OWN and not self.is_proof(now, first):
            code = self._try(datagram)
            news = News.NONE if code == first else _news(first)
        if code == errno.EMSGSIZE and is_request(datagram):
            code = self._send_in_fragments(datagram)
        if code == errno.EPERM:
            self._filtered_at = now
        return Sent(Fate.GONE if self.is_proof(now, code) else _fate(code), news, code)

    def _try(self, datagram: bytes) -> int:
        """Send. Returns 0, or the errno."""
        try:
            self.socket.send(datagram)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _send_in_fragments(self, datagram: bytes) -> int:
        level, option = socket.IPPROTO_IP, IP_MTU_DISCOVER
        if self.socket.family == socket.AF_INET6:
            level, option = socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER
        self.socket.setsockopt(level, option, PMTUDISC_DONT)
        code = self._try(datagram)
        self.socket.setsockopt(level, option, IP_PMTUDISC_DO)
        return code

    def _connect(self) -> int:
        """Connect a socket that was opened unconnected, and forget what strangers have sent to it meanwhile."""
        try:
            self.socket.connect(to_sockaddr(self._upstream))
        except OSError as error:
            return error.errno or errno.EIO
        self.connected = True
        for _ in range(MAX_STRANGERS):
            try:
                self.socket.recv(1)
            except OSError:
                break
        return 0

    def judge(self, now: float, code: int) -> Sent:
        """What an error of ``recv`` means: ICMP has spoken of an earlier datagram."""
        if self.is_proof(now, code):
            return Sent(Fate.GONE, code=code)
        return Sent(Fate.SENT, _news(code))

    def is_proof(self, now: float, code: int) -> bool:
        """True if nobody listens at the upstream: ICMP says so, and our own packet filter did not make it say so."""
        if code != errno.ECONNREFUSED:
            return False
        return self._filtered_at is None or now - self._filtered_at >= REJECTED_WITHIN_S


def _news(code: int) -> News:
    return News.OVERSIZE if code == errno.EMSGSIZE else News.DOUBT


def _fate(code: int) -> Fate:
    if not code:
        return Fate.SENT
    if code in _NO_ROOM:
        return Fate.FULL
    return Fate.OVERSIZE if code == errno.EMSGSIZE else Fate.REFUSED


def is_request(datagram: bytes) -> bool:
    """True for a STUN request (RFC 8489 figure 3: both class bits are 0)."""
    return len(datagram) >= HEADER_BYTES and datagram[0] & 0xC1 == 0 and datagram[1] & 0x10 == 0
