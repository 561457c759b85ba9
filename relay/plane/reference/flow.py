"""The UDP leg of a flow in the reference plane: its socket, its counters, and what it leaves behind.

Uplink: a unit comes, an Allocate in it is noted, it is sent. Downlink: a datagram comes, a new lifetime is noted, it is
delivered. ``Flow`` passes any datagram of media. ``turn_flow`` adds the duties of a gateway from TURN/TCP to TURN/UDP.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.plane.alternates import MAX_HOPS, redirected
from relay.plane.api import MAX_USERNAME_CHARACTERS, CloseReason, DropReason, Totals, Traffic, Upstream
from relay.plane.reference.allocation import (
    ALLOCATE_ERROR,
    ALLOCATE_REQUEST,
    ALLOCATE_SUCCESS,
    REFRESH_REQUEST,
    Allocation,
)
from relay.plane.reference.allowance import Allowance, UserAllowance, is_of_peer
from relay.plane.reference.naming import Naming
from relay.plane.reference.tap import FlowTap
from relay.plane.reference.traffic import find_attribute, is_media, is_whole_stun, rtp_packet, traffic_of
from relay.plane.source_ports import ALLOCATION_LIFETIME_S, SourcePorts
from relay.plane.uplink import Fate, News, Uplink
from relay.quality.meter import Meter
from relay.quality.stream import Direction
from relay.sockaddr import from_sockaddr
from relay.wire.stun import AttributeType, StunError, parse_message

_MAX_DATAGRAM_BYTES = 65_535

# A request is kept for control (AllocationOrphaned) if it is not longer than this. Even with a name, a realm and a
# nonce of the greatest length (RFC 8489 section 14) it is far shorter.
MAX_KEPT_REQUEST_BYTES = 4096
_DROPS = {
    Fate.FULL: DropReason.UPLINK_FULL,
    Fate.OVERSIZE: DropReason.UPLINK_OVERSIZE,
    Fate.REFUSED: DropReason.UPLINK_REFUSED,
}

# One datagram is received at a time, on the one thread of the loop, and copied out at once.
_datagram = memoryview(bytearray(_MAX_DATAGRAM_BYTES))


@dataclass
class Account:
    """What is counted of one client's media: a session goes on with it when it moves to another upstream."""

    # Sees the uplink as it comes.
    meter: Meter
    opened_at: float
    # What was sent and received in this second.
    sent: Allowance = field(default_factory=Allowance)
    received: Allowance = field(default_factory=Allowance)
    # The same for all flows of its user, once it is known who that is.
    user: UserAllowance | None = None
    totals: Totals = field(default_factory=Totals)
    # The user of the last Allocate that named one.
    username: str = ""


@dataclass(frozen=True, slots=True)
class FlowSetup:
    """What a flow has from its plane and its connection.

    ``deliver`` takes the time at which a unit of the downlink came (time.monotonic), and the whole unit. ``fail`` is
    called once, when the upstream is gone. A TURN flow sends requests again after ``rto_s``, and takes an upstream that
    is silent for ``silence_s`` to be gone. With ``naming``, ``on_named`` is told whom a granted Allocate has named.
    """

    loop: asyncio.AbstractEventLoop
    account: Account
    ports: SourcePorts
    silence_s: float
    rto_s: float
    deliver: Callable[[float, bytes], None]
    fail: Callable[[CloseReason, str], None]
    on_named: Callable[[bytes], None]
    naming: Naming | None = None


class Flow:
    """One client's UDP socket towards its upstream; this one carries datagrams as they are (CONNECT-UDP)."""

    def __init__(self, upstream: Upstream, setup: FlowSetup, left: socket.socket | None = None) -> None:
        """Opens a socket, or goes on with one that an earlier flow has ``left``. Raises OSError."""
        loop, account = setup.loop, setup.account
        self.upstream = upstream
        self.account = account
        self.totals = account.totals
        # Where its datagrams are copied to, if anywhere.
        self.tap: FlowTap | None = None
        self.heard_at = loop.time()
        # When something other than STUN last came.
        self.heard_media_at: float | None = None
        self.allocation = Allocation(self.heard_at)
        self._loop = loop
        self._ports = setup.ports
        self._deliver = setup.deliver
        self._fail = setup.fail
        self._naming = setup.naming
        self._on_named = setup.on_named
        self._authenticated = b""
        self._hops = 0
        if left is None:
            self._use(self._ports.open_socket(self.heard_at, upstream.address))
        else:
            # Only the flow before knew its lifetime.
            self.allocation.ends_at = self.heard_at + ALLOCATION_LIFETIME_S
            self._use(left)

    @property
    def is_open(self) -> bool:
        """True until ``close``."""
        return self._socket.fileno() >= 0

    @property
    def allocated(self) -> bool:
        """True while there is an allocation, as far as its lifetime says."""
        return self.allocation.is_live(self._loop.time())

    def _use(self, opened: socket.socket) -> None:
        self._socket = opened
        self._uplink = Uplink(opened, self.upstream.address)
        self._watch()

    def _watch(self) -> None:
        # Before the socket is connected it would hear anybody.
        if self.is_open and self._uplink.connected:
            self._loop.remove_reader(self._socket)
            self._loop.add_reader(self._socket, self._on_readable)

    # Uplink

    def send(self, arrived: float, unit: bytes) -> None:
        """Forward one unit of the client that came at ``arrived`` (time.monotonic), ChannelData without its padding."""
        if not self.account.sent.takes(arrived, unit):
            self.totals.drop(DropReason.UPLINK_RATE, traffic_of(unit))
            return
        if (user := self.account.user) is not None and not user.sent.takes(arrived, unit):
            self.totals.drop(DropReason.UPLINK_USER_RATE, traffic_of(unit))
            return
        if is_whole_stun(unit):
            if not self._may_name(unit):
                self.totals.drop(DropReason.UPLINK_RATE, Traffic.CONTROL)
                return
            self._on_stun_uplink(unit)
        elif (packet := rtp_packet(unit)) is not None:
            self.account.meter.on_packet(round(arrived * 1e6), packet)
        self._send(unit, traffic_of(unit))

    def _may_name(self, message: bytes) -> bool:
        """Whether a message may go on. An Allocate may not if it could hide who its user is."""
        if self._naming is None or message[0] << 8 | message[1] != ALLOCATE_REQUEST:
            return True
        name = find_attribute(message, AttributeType.USERNAME)
        return not name or self._naming.note(self._loop.time(), message[8:20], name)

    def _on_stun_uplink(self, message: bytes) -> None:
        kind = message[0] << 8 | message[1]
        if kind == ALLOCATE_REQUEST:
            self.allocation.on_request()
            name = (username(message) or b"").decode(errors="replace")
            self.account.username = name[:MAX_USERNAME_CHARACTERS] or self.account.username
        keeps = self.upstream.releases_allocations and kind in {ALLOCATE_REQUEST, REFRESH_REQUEST}
        if keeps and len(message) <= MAX_KEPT_REQUEST_BYTES:
            self._authenticated = message

    def _send(self, unit: bytes, traffic: Traffic, *, again: bool = False) -> None:
        """Send a unit and count it, or why it was not sent. ``again`` as for ``Uplink.send``."""
        fate = self._transmit(unit, again=again)
        if fate is Fate.SENT:
            self._count_sent(unit)
        elif fate is not Fate.GONE:
            self.totals.drop(_DROPS[fate], traffic)

    def _count_sent(self, unit: bytes) -> None:
        self.totals.uplink_packets += 1
        self.totals.uplink_bytes += len(unit)

    def _transmit(self, unit: bytes, *, again: bool = False) -> Fate:
        """Send a unit without counting it. If the fate is ``GONE``, the flow has ended."""
        connected = self._uplink.connected
        fate, news, code = self._uplink.send(self._loop.time(), unit, again=again)
        if fate is Fate.GONE:
            self._fail(CloseReason.UPSTREAM_UNREACHABLE, os.strerror(code))
            return fate
        self._on_news(news)
        if fate is Fate.SENT:
            self._copy(Direction.UPLINK, unit)
        if not connected:
            self._watch()
        elif fate is not Fate.SENT or news is not News.NONE:
            # uvloop lets go of a socket with an error: listen again, once it has.
            self._loop.call_soon(self._watch)
        return fate

    def _on_news(self, news: News) -> None:
        """ICMP has said something about an earlier datagram."""
        if news is News.OVERSIZE:
            self.totals.drop(DropReason.UPLINK_OVERSIZE)
        elif news is News.DOUBT:
            self._on_doubt()

    def _on_doubt(self) -> None:
        """The upstream may be gone. Here only the client could ask it."""

    def _copy(self, direction: Direction, datagram: bytes) -> None:
        if self.tap is not None:
            self.tap.put(direction, from_sockaddr(self._socket.getsockname()), datagram)

    # Downlink

    def _on_readable(self) -> None:
        # One datagram a turn: voice comes one at a time, and a second recv would mostly find nothing.
        try:
            size = self._socket.recv_into(_datagram)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_receive_error(error.errno or 0)
            return
        # The loop's own clock does not move within a turn, and knows only milliseconds.
        arrived = time.monotonic()
        self.heard_at = self._loop.time()
        datagram = bytes(_datagram[:size])
        self._copy(Direction.DOWNLINK, datagram)
        self._on_datagram(arrived, datagram)

    def _on_receive_error(self, code: int) -> None:
        fate, news, _ = self._uplink.judge(self._loop.time(), code)
        if fate is Fate.GONE:
            self._fail(CloseReason.UPSTREAM_UNREACHABLE, os.strerror(code))
            return
        self._on_news(news)
        self._loop.call_soon(self._watch)

    def _on_datagram(self, arrived: float, datagram: bytes) -> None:
        if not is_media(datagram):
            self.totals.drop(DropReason.DOWNLINK_MALFORMED)
            return
        if is_whole_stun(datagram):
            if self._follow(datagram):
                return  # the client sends its request again, as one does over UDP
            self._on_answer(datagram)
        else:
            self.heard_media_at = self._loop.time()
        self._pass_down(arrived, datagram)

    def _on_answer(self, message: bytes) -> None:
        """Note what an answer means for the allocation, and who has it."""
        self.allocation.on_answer(self._loop.time(), message)
        if self._naming is not None and message[0] << 8 | message[1] == ALLOCATE_SUCCESS:
            name = self._naming.take(message[8:20])
            if name is not None:
                self._on_named(name)

    def _pass_down(self, arrived: float, unit: bytes) -> None:
        """Deliver a unit, unless peers have sent the flow, or its user, too much in this second."""
        user = self.account.user
        if not is_of_peer(unit):
            self._deliver(arrived, unit)
        elif not self.account.received.takes(arrived, unit):
            self.totals.drop(DropReason.DOWNLINK_RATE, traffic_of(unit))
        elif user is not None and not user.received.takes(arrived, unit):
            self.totals.drop(DropReason.DOWNLINK_USER_RATE, traffic_of(unit))
        else:
            self._deliver(arrived, unit)

    def _follow(self, answer: bytes, request: bytes = b"") -> bool:
        """Go on at the server that a 300 names, and send it ``request``. Returns False if the client gets the 300."""
        if (
            answer[0] << 8 | answer[1] != ALLOCATE_ERROR
            or self.allocation.ends_at is not None
            or self._hops >= MAX_HOPS
        ):
            return False
        before, upstream = self._socket, redirected(self.upstream, answer)
        if upstream is None:
            return False
        try:
            opened = self._ports.open_socket(self._loop.time(), upstream.address)
        except OSError:
            return False
        self._hops += 1
        self._loop.remove_reader(before)
        before.close()
        self.upstream = upstream
        self._use(opened)
        if request:
            self._send(request, Traffic.CONTROL)
        return True

    # The end

    def close(self) -> None:
        """Close the socket. May be repeated."""
        self._stop()
        self._socket.close()

    def leave(self) -> tuple[int, bytes] | None:
        """End. Returns (fd, the client's last request) if there is an allocation that control can release."""
        leaves = self.is_open and self._authenticated and self.allocation.ends_at is not None
        self._stop()
        if leaves:
            return self._socket.detach(), self._authenticated
        self._socket.close()
        return None

    def _stop(self) -> None:
        if self.tap is not None:
            self.tap.end()
        if self.is_open:
            self._loop.remove_reader(self._socket)
            if (until := self.allocation.may_stay_until(self._loop.time())) is not None:
                self._rest(self._socket, until)

    def _rest(self, used: socket.socket, until: float) -> None:
        self._ports.rest(used.getsockname()[1], self.upstream.address, until)


def username(request: bytes) -> bytes | None:
    """The value of USERNAME. None without one, and for a request that cannot be read: the upstream refuses it."""
    try:
        return parse_message(request).get(AttributeType.USERNAME)
    except StunError:
        return None
