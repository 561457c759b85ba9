"""The flow of a TURN client: the duties of a gateway from TURN over a stream to TURN over UDP.

Requests are sent again until they are answered, and second answers are dropped. After a 437 for a stale allocation the
Allocate is sent again from a fresh port. A 300 leads to another server (``alternates``). An upstream that answers
nothing, not even what the flow itself asks (``question``), ends the flow. The TURN client of a session is control: it
hears what any client would hear, and judges errors itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from relay.plane.api import CloseReason, DropReason, Traffic, Upstream
from relay.plane.endings import silence_detail
from relay.plane.reference.allocation import ALLOCATE_ERROR, ALLOCATION_MISMATCH, error_code
from relay.plane.reference.flow import Flow, FlowSetup
from relay.plane.reference.question import Judgement, Question
from relay.plane.reference.traffic import is_whole_stun
from relay.plane.source_ports import ALLOCATION_LIFETIME_S
from relay.plane.uplink import Fate
from relay.turn.transactions import Answer, Transactions

# How many fresh ports are tried for one client, and for how long. After a restart the upstream may still hold the
# allocations of all calls: if nine in ten ports of a narrow range are stale, 256 tries fail once in 10^11. A client
# that waits for its Allocate gives up after some seconds (browsers: ten for all of ICE).
MAX_FRESH_PORTS = 256
FRESH_PORTS_S = 5.0

# Class bits of a STUN message type (RFC 8489 figure 3).
_CLASS_BITS = 0x0110
_REQUEST_BITS = 0x0000
_RESPONSE_BIT = 0x0100


class TurnFlow(Flow):
    """Forwards whole STUN and ChannelData messages only."""

    def __init__(self, upstream: Upstream, setup: FlowSetup, left: socket.socket | None = None) -> None:
        """As ``Flow``. Raises OSError."""
        self._transactions = Transactions(setup.rto_s)
        self._question = Question(setup.rto_s)
        # Since when ICMP makes it doubtful that the upstream is there, or None.
        self._doubt_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silence_s = setup.silence_s
        self._fresh_ports = 0
        super().__init__(upstream, setup, left)

    # Uplink

    def _on_stun_uplink(self, message: bytes) -> None:
        super()._on_stun_uplink(message)
        if (message[0] << 8 | message[1]) & _CLASS_BITS == _REQUEST_BITS:
            self._transactions.on_request(self._loop.time(), message[8:20], message)
            self._arm()

    # Downlink

    def _on_datagram(self, arrived: float, datagram: bytes) -> None:
        unit = _whole_unit(datagram)
        if unit is None:
            self.totals.drop(DropReason.DOWNLINK_MALFORMED)
        elif unit[0] >= 0x40:
            self._pass_down(arrived, unit)
        elif unit[0] << 8 & _RESPONSE_BIT and self._question.is_answered_by(unit[8:20]):
            pass  # a sign of life, like any datagram; the client has not asked
        elif (answer := self._match(unit)) is Answer.DUPLICATE:
            self.totals.drop(DropReason.DOWNLINK_DUPLICATE, Traffic.CONTROL)
        elif answer is not None:
            self._on_stun(arrived, unit, answer)

    def _on_stun(self, arrived: float, message: bytes, answer: Answer) -> None:
        self._pass_down(arrived, message)

    def _match(self, message: bytes) -> Answer | None:
        """What a message answers. None if a request is sent elsewhere because of it."""
        kind = message[0] << 8 | message[1]
        if not kind & _RESPONSE_BIT:
            return Answer.UNKNOWN
        if kind == ALLOCATE_ERROR and self.allocation.ends_at is None:
            request = self._transactions.request(message[8:20])
            if self._retry_elsewhere(message) or (request is not None and self._follow(message, request)):
                return None
        answer = self._transactions.on_response(message[8:20])
        if answer is not Answer.DUPLICATE or kind == ALLOCATE_ERROR:
            self._on_answer(message)
        return answer

    def _retry_elsewhere(self, message: bytes) -> bool:
        """Send an Allocate again from a fresh port if it met another client's stale allocation (437)."""
        request, since = self._transactions.request(message[8:20]), self._transactions.first_sent(message[8:20])
        if request is None or since is None or error_code(message) != ALLOCATION_MISMATCH:
            return False
        now, stale = self._loop.time(), self._socket
        if self._fresh_ports >= MAX_FRESH_PORTS or now - since >= FRESH_PORTS_S:
            return False
        self._fresh_ports += 1
        self._rest(stale, now + ALLOCATION_LIFETIME_S)
        try:
            fresh = self._ports.open_fresh_socket(now, self.upstream.address)
        except OSError:
            return False
        self._loop.remove_reader(stale)
        stale.close()
        self._use(fresh)
        self._send(request, Traffic.CONTROL)
        return True

    # Time

    def _arm(self) -> None:
        due, quiet_since = self._transactions.next_deadline(), self._quiet_since()
        silent = None if quiet_since is None else self._question.next_deadline(quiet_since, self._silence_s)
        when = min((one for one in (due, silent) if one is not None), default=None)
        if when is None:
            return
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._judge_silence(now) is Fate.GONE:
            return
        again, _ = self._transactions.on_deadline(now)
        for request in again:
            self.totals.retransmissions += 1
            self._send(request, Traffic.CONTROL, again=True)
            if not self.is_open:  # the upstream turned out to be gone
                return
        self._arm()

    def _quiet_since(self) -> float | None:
        """When the silence began that may mean that the upstream is gone. None while nothing makes that likely."""
        if self._doubt_since is not None and self.heard_at > self._doubt_since:
            self._doubt_since = None
        reasons = (self._transactions.waiting_since, self._doubt_since)
        since = min((one for one in reasons if one is not None), default=None)
        return None if since is None else max(since, self.heard_at)

    def _judge_silence(self, now: float) -> Fate:
        """Ask a silent upstream whether it is there. If the fate is ``GONE`` it is not, and the flow has ended."""
        quiet_since = self._quiet_since()
        if quiet_since is None:
            return Fate.SENT
        judgement = self._question.judge(now, quiet_since, self._silence_s)
        if judgement is Judgement.ASK:
            return self._transmit(self._question.build())
        if judgement is Judgement.GONE:
            detail = silence_detail(self._silence_s, self._uplink.refused_for)
            self._fail(CloseReason.UPSTREAM_SILENT, detail)
            return Fate.GONE
        return Fate.SENT

    def _on_doubt(self) -> None:
        if self._doubt_since is None:
            self._doubt_since = self._loop.time()
            self._arm()

    # The end

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super()._stop()


class SessionFlow(TurnFlow):
    """Control is the TURN client: ``on_stun`` tells it of all STUN, and it gets every socket back."""

    def __init__(
        self,
        upstream: Upstream,
        setup: FlowSetup,
        on_stun: Callable[[bytes, bool], None],
        left: socket.socket | None = None,
    ) -> None:
        """As ``TurnFlow``. ``on_stun`` gets each message, and whether a request waited for it. Raises OSError."""
        self._tell = on_stun
        super().__init__(upstream, setup, left)

    def _count_sent(self, unit: bytes) -> None:
        # What control asks is not counted, and neither are the answers that it hears.
        if unit[0] >= 0x40:
            super()._count_sent(unit)

    def _on_stun(self, arrived: float, message: bytes, answer: Answer) -> None:
        self._tell(message, answer is Answer.FIRST)

    def _retry_elsewhere(self, message: bytes) -> bool:
        return False

    def leave(self) -> tuple[int, bytes] | None:
        """End. Returns the socket if it is still open: control has made the allocation that it leads to."""
        if not self.is_open:
            return None
        self._stop()
        return self._socket.detach(), b""


def _whole_unit(datagram: bytes) -> bytes | None:
    """The STUN or ChannelData message of a datagram, padding removed, or None."""
    if len(datagram) >= 4 and datagram[0] & 0xC0 == 0x40:
        size = 4 + (datagram[2] << 8 | datagram[3])
        return datagram[:size] if size <= len(datagram) else None
    return datagram if is_whole_stun(datagram) else None
