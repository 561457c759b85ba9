"""The UDP leg of a flow in the reference plane, and the duties of a TURN/TCP to TURN/UDP gateway on it.

Uplink: a unit comes, a request is remembered, the unit is sent. Downlink: a datagram comes, an answer is matched with
its request, the unit is delivered. Around that: requests are sent again until they are answered, a 437 for a stale
allocation is tried again from a fresh port, and an upstream that is gone ends the flow.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable

from relay.addresses import Address
from relay.plane.api import CloseReason, DropReason, Totals, Traffic, Upstream
from relay.plane.source_ports import SourcePorts
from relay.plane.tap import FlowTap
from relay.plane.traffic import rtp_packet, traffic_of
from relay.quality.meter import Meter
from relay.quality.stream import Direction
from relay.turn.transactions import MAX_REQUEST_BYTES, Answer, Transactions
from relay.wire.stun import (
    HEADER_BYTES,
    AttributeType,
    MessageClass,
    Method,
    StunError,
    is_stun,
    message_type,
    parse_message,
)

# A fresh port is tried this often for one client; a port pool where three in a row are stale is the operator's affair.
MAX_FRESH_PORTS = 3
# How long a port rests when the lifetime of what it left behind is not known (RFC 8656 section 3.2: the default).
ALLOCATION_LIFETIME_S = 600.0
_MAX_DATAGRAM_BYTES = 65_535
# So much of a user name is shown: it is the client's to choose.
MAX_USERNAME_CHARACTERS = 128

# Class bits of a STUN message type (RFC 8489 figure 3).
_CLASS_BITS = 0x0110
_REQUEST_BITS = 0x0000
_RESPONSE_BIT = 0x0100
_ALLOCATE_REQUEST = message_type(Method.ALLOCATE, MessageClass.REQUEST)
_ALLOCATE_SUCCESS = message_type(Method.ALLOCATE, MessageClass.SUCCESS)
_ALLOCATE_ERROR = message_type(Method.ALLOCATE, MessageClass.ERROR)
_REFRESH_REQUEST = message_type(Method.REFRESH, MessageClass.REQUEST)
_REFRESH_SUCCESS = message_type(Method.REFRESH, MessageClass.SUCCESS)

_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

# One datagram is received at a time, on the one thread of the loop, and copied out at once.
_datagram = memoryview(bytearray(_MAX_DATAGRAM_BYTES))


class Flow:
    """One client's UDP socket towards its upstream."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        upstream: Upstream,
        meter: Meter,
        *,
        ports: SourcePorts,
        silence_s: float,
        deliver: Callable[[float, bytes], None],
        fail: Callable[[CloseReason, str], None],
    ) -> None:
        """Opens the socket. Raises OSError.

        ``meter`` sees the uplink as it comes. ``deliver`` takes a whole unit of the downlink and when it came
        (time.monotonic); ``fail`` is called once, when the upstream is gone.
        """
        self.upstream = upstream
        self.totals = Totals()
        self.meter = meter
        # That of the last Allocate that named one.
        self.username = ""
        # Where its datagrams are copied to, if anywhere.
        self.tap: FlowTap | None = None
        self.opened_at = self.heard_at = loop.time()
        self._loop = loop
        self._ports = ports
        self._silence_s = silence_s
        self._deliver = deliver
        self._fail = fail
        self._transactions = Transactions()
        self._timer: asyncio.TimerHandle | None = None
        self._allocated_until: float | None = None
        self._allocating = False
        self._fresh_ports = 0
        self._authenticated = b""
        self._open()

    @property
    def allocated(self) -> bool:
        """True while there is an allocation, as far as its lifetime says."""
        return self._allocated_until is not None and self._loop.time() < self._allocated_until

    def _open(self) -> None:
        self._socket = self._ports.open_socket(self._loop.time(), self.upstream.address)
        self._watch()

    def _watch(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.add_reader(self._socket, self._on_readable)

    # Uplink

    def send(self, arrived: float, unit: bytes) -> None:
        """Forward one unit of the client that came at ``arrived`` (time.monotonic), ChannelData without its padding."""
        if unit[0] < 0x40:
            self._remember(unit)
        elif (packet := rtp_packet(unit)) is not None:
            self.meter.on_packet(round(arrived * 1e6), packet)
        self._send(unit, traffic_of(unit))

    def _remember(self, unit: bytes) -> None:
        kind = unit[0] << 8 | unit[1]
        if kind & _CLASS_BITS != _REQUEST_BITS:
            return
        if kind in {_ALLOCATE_REQUEST, _REFRESH_REQUEST} and len(unit) <= MAX_REQUEST_BYTES:
            if kind == _ALLOCATE_REQUEST:
                self._allocating = True
                self.username = _username(unit) or self.username
            if self.upstream.releases_allocations:
                self._authenticated = unit
        self._transactions.on_request(self._loop.time(), unit[8:20], unit)
        self._arm()

    def _send(self, unit: bytes, traffic: Traffic) -> None:
        try:
            self._socket.send(unit)
        except OSError as error:
            self._on_error(error, traffic)
        else:
            self.totals.uplink_packets += 1
            self.totals.uplink_bytes += len(unit)
            self._copy(Direction.UPLINK, unit)

    def _copy(self, direction: Direction, datagram: bytes) -> None:
        if self.tap is not None:
            self.tap.put(direction, Address(*self._socket.getsockname()[:2]), datagram)

    def _on_error(self, error: OSError, traffic: Traffic | None = None) -> None:
        if error.errno in _NO_ROOM:
            self.totals.drop(DropReason.UPLINK_FULL, traffic)
        elif error.errno == errno.EMSGSIZE:
            # Too long for our own link; or for one further on, as ICMP said later: the upstream is still there.
            self.totals.drop(DropReason.UPLINK_OVERSIZE, traffic)
            # uvloop lets go of a socket with an error: listen again, once it has.
            self._loop.call_soon(self._watch)
        else:
            self._fail(CloseReason.UPSTREAM_UNREACHABLE, error.strerror or str(error))

    # Downlink

    def _on_readable(self) -> None:
        # One datagram a turn: voice comes one at a time, and a second recv would mostly find nothing.
        try:
            size = self._socket.recv_into(_datagram)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_error(error)
            return
        # The loop's own clock stands still for a turn, and knows milliseconds only.
        arrived = time.monotonic()
        self.heard_at = self._loop.time()
        datagram = bytes(_datagram[:size])
        self._copy(Direction.DOWNLINK, datagram)
        unit = self._whole_unit(datagram)
        if unit is None:
            self.totals.drop(DropReason.DOWNLINK_MALFORMED)
        elif unit[0] >= 0x40 or self._on_stun(unit):
            self._deliver(arrived, unit)

    def _whole_unit(self, datagram: bytes) -> bytes | None:
        """The STUN or ChannelData message of a datagram, padding removed, or None."""
        if len(datagram) >= 4 and datagram[0] & 0xC0 == 0x40:
            size = 4 + (datagram[2] << 8 | datagram[3])
            return datagram[:size] if size <= len(datagram) else None
        if is_stun(datagram) and HEADER_BYTES + (datagram[2] << 8 | datagram[3]) == len(datagram):
            return None if len(datagram) & 3 else datagram
        return None

    def _on_stun(self, message: bytes) -> bool:
        """Match an answer with its request; False if it must not reach the client."""
        kind = message[0] << 8 | message[1]
        if not kind & _RESPONSE_BIT:
            return True
        transaction_id = message[8:20]
        if kind == _ALLOCATE_ERROR:
            if self._allocated_until is None and self._retry_elsewhere(message):
                return False
            self._allocating = False
        if self._transactions.on_response(transaction_id) is Answer.DUPLICATE:
            self.totals.drop(DropReason.DOWNLINK_DUPLICATE, Traffic.CONTROL)
            return False
        if kind in {_ALLOCATE_SUCCESS, _REFRESH_SUCCESS}:
            self._on_lifetime(message)
        return True

    def _on_lifetime(self, message: bytes) -> None:
        try:
            lifetime_s = parse_message(message).uint32(AttributeType.LIFETIME)
        except StunError:
            return  # the client's to judge
        if lifetime_s is None:
            lifetime_s = int(ALLOCATION_LIFETIME_S)
        self._allocating = False
        self._allocated_until = self._loop.time() + lifetime_s if lifetime_s else None

    def _retry_elsewhere(self, message: bytes) -> bool:
        """Send an Allocate again from a fresh port if it met another client's stale allocation (437)."""
        request = self._transactions.request(message[8:20])
        try:
            error = parse_message(message).error
        except StunError:
            return False
        if request is None or error is None or error.code != 437 or self._fresh_ports >= MAX_FRESH_PORTS:
            return False
        self._fresh_ports += 1
        stale = self._socket
        try:
            self._open()
        except OSError:
            self._socket = stale
            return False
        self._rest(stale, self._loop.time() + ALLOCATION_LIFETIME_S)
        self._loop.remove_reader(stale)
        stale.close()
        self._send(request, Traffic.CONTROL)
        return True

    # Time

    def _arm(self) -> None:
        waiting_since, due = self._transactions.waiting_since, self._transactions.next_deadline()
        if waiting_since is None or due is None:
            return
        when = min(due, max(waiting_since, self.heard_at) + self._silence_s)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        waiting_since = self._transactions.waiting_since
        if waiting_since is not None and now >= max(waiting_since, self.heard_at) + self._silence_s:
            self._fail(CloseReason.UPSTREAM_SILENT, f"no answer for {self._silence_s:g} s")
            return
        again, _ = self._transactions.on_deadline(now)
        for request in again:
            self.totals.retransmissions += 1
            self._send(request, Traffic.CONTROL)
            if self._socket.fileno() < 0:  # the upstream turned out to be gone
                return
        self._arm()

    # The end

    def close(self) -> tuple[int, bytes] | None:
        """Close the socket; or, if an allocation stays behind that control can release, give up (fd, request)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.tap is not None:
            self.tap.end()
        if self._socket.fileno() < 0:
            return None
        self._loop.remove_reader(self._socket)
        if self._allocated_until is None and not self._allocating:
            self._socket.close()
            return None
        self._rest(self._socket, self._allocated_until or self._loop.time() + ALLOCATION_LIFETIME_S)
        if self._authenticated and self._allocated_until is not None:
            return self._socket.detach(), self._authenticated
        self._socket.close()
        return None

    def _rest(self, used: socket.socket, until: float) -> None:
        self._ports.rest(used.getsockname()[1], self.upstream.address, until)


def _username(request: bytes) -> str:
    try:
        value = parse_message(request).get(AttributeType.USERNAME)
    except StunError:
        return ""  # the upstream's to refuse
    return (value or b"").decode(errors="replace")[:MAX_USERNAME_CHARACTERS]
