"""STUN requests that wait for their response over UDP, and when they are sent again (RFC 8489 section 6.2.1)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

# Fixed by RFC 8489 section 6.2.1: a request is sent Rc times, and the last one waits for Rm times the first interval.
SENDS = 7
LAST_WAIT_FACTOR = 16
# The recommended initial retransmission timeout.
RTO_S = 0.5
# Our bounds. A client has a handful of requests under way; 32 leaves room for a burst of CreatePermission.
MAX_PENDING = 32
# Answered transactions are remembered, so that late copies of an answer are recognized.
MAX_ANSWERED = 64
# The longest datagram of IPv4: nothing longer can be sent at all.
MAX_REQUEST_BYTES = 65_507
# All pending requests of one 5-tuple together: one of the longest, or 32 that each fill an Ethernet frame.
MAX_PENDING_BYTES = 65_536

# The requests that a TURN server always answers: Allocate, Refresh, CreatePermission and ChannelBind. It may ignore
# others for a reason (RFC 8489 section 6.3): a wrong FINGERPRINT, or a method or attribute that it does not know.
TELLING_TYPES = frozenset({b"\x00\x03", b"\x00\x04", b"\x00\x08", b"\x00\x09"})


class Answer(Enum):
    """What a response is to us."""

    FIRST = "first"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class _Pending:
    message: bytes
    first_sent: float
    due: float
    wait: float
    sends: int = 1


class Transactions:
    """The requests of one 5-tuple: at most MAX_PENDING of them, and ``max_bytes`` together. Beyond that the oldest is
    forgotten.
    """

    def __init__(self, rto_s: float = RTO_S, max_bytes: int = MAX_PENDING_BYTES) -> None:
        self._rto_s = rto_s
        self._max_bytes = max_bytes
        self._pending: OrderedDict[bytes, _Pending] = OrderedDict()
        self._answered: OrderedDict[bytes, None] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    def on_request(self, now: float, transaction_id: bytes, message: bytes) -> None:
        """A request was sent. A copy that the requester itself sends again changes nothing."""
        if len(message) > MAX_REQUEST_BYTES or transaction_id in self._pending:
            return
        self._answered.pop(transaction_id, None)
        while len(self._pending) >= MAX_PENDING or self._bytes + len(message) > self._max_bytes:
            self._remove(next(iter(self._pending)))
        self._pending[transaction_id] = _Pending(message, now, now + self._rto_s, self._rto_s)
        self._bytes += len(message)

    def _remove(self, transaction_id: bytes) -> None:
        self._bytes -= len(self._pending.pop(transaction_id).message)

    def on_response(self, transaction_id: bytes) -> Answer:
        """A response came; it ends the retransmission of its request."""
        if transaction_id in self._pending:
            self._remove(transaction_id)
            self._answered[transaction_id] = None
            if len(self._answered) > MAX_ANSWERED:
                self._answered.popitem(last=False)
            return Answer.FIRST
        return Answer.DUPLICATE if transaction_id in self._answered else Answer.UNKNOWN

    def request(self, transaction_id: bytes) -> bytes | None:
        """The request that waits under this id, or None."""
        pending = self._pending.get(transaction_id)
        return None if pending is None else pending.message

    @property
    def waiting_since(self) -> float | None:
        """When the oldest unanswered request was first sent, of those that a server always answers; None for none."""
        telling = (one for one in self._pending.values() if one.message[:2] in TELLING_TYPES)
        return min((pending.first_sent for pending in telling), default=None)

    def first_sent(self, transaction_id: bytes) -> float | None:
        """When the request that waits under this id was first sent, or None."""
        pending = self._pending.get(transaction_id)
        return None if pending is None else pending.first_sent

    def next_deadline(self) -> float | None:
        """When on_deadline wants to be called, or None."""
        return min((pending.due for pending in self._pending.values()), default=None)

    def on_deadline(self, now: float) -> tuple[list[bytes], list[bytes]]:
        """What is due: messages to send again, and the ids of transactions that have ended without an answer."""
        again: list[bytes] = []
        ended: list[bytes] = []
        for transaction_id, pending in self._pending.items():
            if pending.due > now:
                continue
            if pending.sends >= SENDS:
                ended.append(transaction_id)
                continue
            again.append(pending.message)
            pending.sends += 1
            pending.wait *= 2
            pending.due = now + (LAST_WAIT_FACTOR * self._rto_s if pending.sends == SENDS else pending.wait)
        for transaction_id in ended:
            self._remove(transaction_id)
        return again, ended
