"""One direction of a TCP connection over a path that delays and loses: what comes when, without I/O and clock.

It does what matters to voice. A segment that was lost is sent again once later ones have been acknowledged (RACK, RFC
8985) or when nothing is (RFC 6298). Meanwhile nothing that comes after it is handed on: a stream has one order. A
window bounds what is in flight, and is smaller after losses (RFC 5681, with CUBIC's factor).

It leaves out the handshake, delayed acknowledgements, tail loss probes, and CUBIC's growth. The round trip is known,
and never varies.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Ethernet's 1500 bytes without the headers of IP and TCP, the latter with timestamps.
MAX_SEGMENT_BYTES = 1448
# RFC 6928.
INITIAL_WINDOW = 10.0
MIN_WINDOW = 2.0
# What CUBIC keeps of the window after a loss (RFC 9438 section 4.6), as Linux does by default.
KEPT_AFTER_LOSS = 0.7
# Linux waits this long beyond a round trip for any acknowledgement (TCP_RTO_MIN), twice as long each time after.
PATIENCE_S = 0.2
MAX_BACKOFF = 6
# RFC 8985 section 6.2: segments may overtake each other by a quarter of a round trip.
REORDERING_SHARE = 0.25
# Sums of times are not exact.
CLOCK_ERROR_S = 1e-6


@dataclass(eq=False, slots=True)
class _Segment:
    """Bytes on their way. ``sent_at`` is the last time; ``known`` says that the sender knows of its arrival."""

    number: int
    data: bytes
    sent_at: float = -math.inf
    flies: bool = False
    came: bool = False
    known: bool = False


class TcpModel:
    """``write`` and ``read`` are the two applications. ``now`` is in seconds, and must not go back.

    ``is_lost`` is asked for each segment that is sent, ``is_answer_lost`` for each acknowledgement.
    """

    def __init__(self, delay_s: float, is_lost: Callable[[], bool], is_answer_lost: Callable[[], bool]) -> None:
        self._delay_s = delay_s
        self._is_lost = is_lost
        self._is_answer_lost = is_answer_lost
        self._round_trip_s = 2 * delay_s
        # What is to happen, by time, then in the order in which it was decided.
        self._decisions = itertools.count()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        # The sender
        self._unsent = bytearray()
        self._numbers = itertools.count()
        self._segments: deque[_Segment] = deque()  # sent, the first of them not acknowledged
        self._window = INITIAL_WINDOW
        self._threshold = math.inf
        self._recovers_until = -1  # the last segment that was sent when a loss was seen
        self._latest_known_sent_at = -math.inf
        self._backoff = 0
        self._gives_up_at = math.inf
        self._looks_again_at = math.inf
        # The receiver
        self._came: list[_Segment] = []
        self._held: dict[int, _Segment] = {}
        self._next = 0
        self._readable = bytearray()

    @property
    def waiting_bytes(self) -> int:
        """What was written and has not been read."""
        inside = sum(len(segment.data) for segment in self._segments if segment.number >= self._next)
        return len(self._unsent) + inside + len(self._readable)

    def write(self, data: bytes, now: float) -> None:
        """Hand bytes to the sender."""
        self._advance(now)
        self._unsent += data
        self._send(now)

    def read(self, now: float) -> bytes:
        """Take the bytes that have come by now, in order."""
        self._advance(now)
        data = bytes(self._readable)
        self._readable.clear()
        return data

    def next_deadline(self) -> float:
        """When to call ``read``; infinite if nothing will happen by itself."""
        first = self._due[0][0] if self._due else math.inf
        return min(first, self._gives_up_at, self._looks_again_at)

    def _advance(self, now: float) -> None:
        while (when := self.next_deadline()) <= now:
            if self._due and self._due[0][0] == when:
                heapq.heappop(self._due)[2](when)
            elif self._looks_again_at == when:
                self._look_for_losses(when)
            else:
                self._give_up_waiting(when)
            self._send(when)

    def _schedule(self, now: float, arrive: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (now + self._delay_s, next(self._decisions), arrive))

    # The sender

    def _send(self, now: float) -> None:
        """Send what the window allows, first what was lost."""
        room = int(self._window) - sum(segment.flies for segment in self._segments)
        lost = [segment for segment in self._segments if not segment.flies and not segment.known]
        for segment in lost[: max(0, room)]:
            self._transmit(segment, now)
        for _ in range(room - len(lost)):
            if not self._unsent:
                break
            segment = _Segment(next(self._numbers), bytes(self._unsent[:MAX_SEGMENT_BYTES]))
            del self._unsent[:MAX_SEGMENT_BYTES]
            self._segments.append(segment)
            self._transmit(segment, now)

    def _transmit(self, segment: _Segment, now: float) -> None:
        if not any(one.flies for one in self._segments):
            self._wait(now)
        segment.flies, segment.sent_at = True, now
        if not self._is_lost():
            self._schedule(now, lambda when: self._arrive(segment, when))

    def _wait(self, now: float) -> None:
        """Begin to wait for an acknowledgement."""
        self._gives_up_at = now + (self._round_trip_s + PATIENCE_S) * 2**self._backoff

    def _learn(self, came: list[_Segment], now: float) -> None:
        """An acknowledgement: these have come."""
        new = [segment for segment in came if not segment.known]
        was_full = sum(segment.flies for segment in self._segments) >= int(self._window)
        for segment in new:
            segment.known, segment.flies = True, False
            # Sooner than a round trip, it is an earlier copy that came.
            if now - segment.sent_at > self._round_trip_s - CLOCK_ERROR_S:
                self._latest_known_sent_at = max(self._latest_known_sent_at, segment.sent_at)
        moved = False
        while self._segments and self._segments[0].known:
            self._segments.popleft()
            moved = True
        if moved:
            self._backoff = 0
            self._wait(now)
        if not self._segments:
            self._gives_up_at = math.inf
        if was_full and (not self._recovering or self._window < self._threshold):
            self._grow(len(new))
        self._look_for_losses(now)

    @property
    def _recovering(self) -> bool:
        return bool(self._segments) and self._segments[0].number <= self._recovers_until

    def _grow(self, segments: int) -> None:
        self._window += segments if self._window < self._threshold else segments / self._window

    def _look_for_losses(self, now: float) -> None:
        """What was sent well before something that has come is lost. Look again when more of it is old enough."""
        self._looks_again_at = math.inf
        for segment in self._segments:
            if not segment.flies or segment.sent_at >= self._latest_known_sent_at:
                continue
            lost_at = segment.sent_at + self._round_trip_s * (1 + REORDERING_SHARE)
            if lost_at <= now:
                self._lose(segment)
            else:
                self._looks_again_at = min(self._looks_again_at, lost_at)

    def _lose(self, segment: _Segment) -> None:
        segment.flies = False
        if not self._recovering:
            self._recovers_until = self._segments[-1].number
            self._window = self._threshold = max(MIN_WINDOW, self._window * KEPT_AFTER_LOSS)

    def _give_up_waiting(self, now: float) -> None:
        """Nothing was acknowledged for too long: all that is in flight is lost, and one segment is tried."""
        for segment in self._segments:
            if segment.flies:
                self._lose(segment)
        self._window = 1.0
        self._backoff = min(self._backoff + 1, MAX_BACKOFF)
        self._gives_up_at = math.inf
        self._wait(now)

    # The receiver

    def _arrive(self, segment: _Segment, now: float) -> None:
        if not segment.came:
            segment.came = True
            self._came.append(segment)
            self._held[segment.number] = segment
        while (next_one := self._held.pop(self._next, None)) is not None:
            self._readable += next_one.data
            self._next += 1
        # Whatever came since the last acknowledgement that was not lost.
        if not self._is_answer_lost():
            came, self._came = self._came, []
            self._schedule(now, lambda when: self._learn(came, when))
