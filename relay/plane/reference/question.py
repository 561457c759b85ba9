"""Whether an upstream is still there: what a flow itself asks before silence counts, and for how long it waits.

An unanswered request says little by itself: servers ignore what they do not know, or what is damaged (RFC 8489 section
6.3). So when half of the allowed silence has passed, the flow asks something that no server can find fault with. Any
answer is a sign of life, an error too, and so is any other packet. Then the time begins anew.

It asks two things in turn, because some servers leave a Binding unanswered (coturn with ``no-stun``): a Binding, and a
CreatePermission that names no peer. The second changes nothing, and every server refuses it with an error (RFC 8656
section 10.2). The compiled twin is ``question.pxd``.
"""

from __future__ import annotations

import secrets
from enum import Enum

from relay.wire.stun import TRANSACTION_ID_BYTES, MessageClass, Method, build_message

# The transaction ids of one flow's questions begin alike, so that late answers are known too. Nobody else has the same
# eight random bytes. The other bytes are a counter.
PREFIX_BYTES = 8
_COUNTER_BYTES = TRANSACTION_ID_BYTES - PREFIX_BYTES
_METHODS = (Method.BINDING, Method.CREATE_PERMISSION)


class Judgement(Enum):
    """What is to be done about a silent upstream."""

    WAIT = "wait"
    ASK = "ask"
    GONE = "gone"


class Question:
    """The questions of one flow. Times are the caller's clock in seconds; ``quiet_since`` is when the silence began."""

    def __init__(self, rto_s: float) -> None:
        """The first question is asked again after ``rto_s``, then after twice as long, and so on.

        If little time is left it is asked sooner, so that it is asked at least three times.
        """
        self._rto_s = rto_s
        self._prefix = secrets.token_bytes(PREFIX_BYTES)
        self._asked = 0
        # The silence that was asked about; when it was first, when it will be next, and the wait before that.
        self._quiet_since: float | None = None
        self._first = self._due = self._wait = 0.0

    def next_deadline(self, quiet_since: float, silence_s: float) -> float:
        """When ``judge`` wants to be called."""
        if quiet_since != self._quiet_since:
            return quiet_since + silence_s / 2
        return min(self._due, self._first + silence_s / 2)

    def judge(self, now: float, quiet_since: float, silence_s: float) -> Judgement:
        """Whether to ask now. An upstream is GONE when half of ``silence_s`` has passed after the first question."""
        if quiet_since != self._quiet_since:
            if now < quiet_since + silence_s / 2:
                return Judgement.WAIT
            self._quiet_since, self._first = quiet_since, now
            self._wait = min(self._rto_s, silence_s / 8)
        elif now >= self._first + silence_s / 2:
            return Judgement.GONE
        elif now < self._due:
            return Judgement.WAIT
        else:
            self._wait *= 2
        self._due = now + self._wait
        return Judgement.ASK

    def build(self) -> bytes:
        """The next question."""
        method = _METHODS[self._asked % len(_METHODS)]
        self._asked += 1
        return build_message(method, MessageClass.REQUEST, self._prefix + self._asked.to_bytes(_COUNTER_BYTES))

    def is_answered_by(self, transaction_id: bytes) -> bool:
        """True if a response with this id answers one of the questions."""
        return self._asked > 0 and transaction_id.startswith(self._prefix)
