"""What waits for a client that takes less than comes: in which order it leaves, and what is not worth sending any more.

Over TCP media is never lost, it is late, and late voice is worse than none. So the oldest goes, whole frames only, and
STUN and DTLS, without which a call dies, go first and are never dropped. No I/O, and ``now`` is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from relay.plane.api import DropReason, Totals, Traffic
from relay.plane.traffic import traffic_of
from relay.wire.channeldata import pad


class Frame(NamedTuple):
    """What waits, when it came, in seconds, and its bytes on the client's stream.

    ``unit`` is one of the downlink, or None for what the carrier itself says to the client.
    """

    arrived: float
    unit: bytes | None
    traffic: Traffic
    framed: bytes

    @property
    def size(self) -> int:
        """Bytes on the stream."""
        return len(self.framed)


class Schedule:
    """The frames of one flow that wait. What is dropped is counted in ``totals``."""

    def __init__(
        self,
        max_age_s: float,
        media_bytes: int,
        control_bytes: int,
        totals: Totals,
        frame: Callable[[bytes], bytes] = pad,
    ) -> None:
        """``media_bytes`` bounds RTCP and media together, ``control_bytes`` the rest; both count bytes on the stream.

        ``frame`` puts a unit into its carrier's frame.
        """
        self.max_age_s = max_age_s
        self._media_bytes = media_bytes
        self._control_bytes = control_bytes
        self._totals = totals
        self._frame = frame
        self._control: deque[Frame] = deque()
        self._rtcp: deque[Frame] = deque()
        self._media: deque[Frame] = deque()
        self._control_size = 0
        self._media_size = 0

    @property
    def waiting_bytes(self) -> int:
        """All that waits, as it will stand on the stream; 0 only if nothing does."""
        return self._control_size + self._media_size

    def oldest_age(self, now: float) -> float:
        """Seconds that the oldest frame has waited, 0 if nothing waits.

        More than the greatest age if nothing has come or gone since: what is too old leaves with the next ``put`` or
        ``take``.
        """
        heads = [queue[0].arrived for queue in (self._control, self._rtcp, self._media) if queue]
        return now - min(heads) if heads else 0.0

    def put(self, now: float, unit: bytes) -> bool:
        """Let a unit wait. False, and nothing is kept of it, if it is control and there is no room for it.

        Media makes room for itself: the oldest goes. A unit that is longer than all the room there is goes itself.
        """
        self._expire(now)
        frame = self.framed(now, unit)
        if frame.traffic is Traffic.CONTROL:
            return self._put_control(frame)
        if frame.size > self._media_bytes:
            self._totals.drop(DropReason.DOWNLINK_FULL, frame.traffic)
        else:
            while self._media_size + frame.size > self._media_bytes:
                self._drop(self._media or self._rtcp, DropReason.DOWNLINK_FULL)
            (self._rtcp if frame.traffic is Traffic.RTCP else self._media).append(frame)
            self._media_size += frame.size
        return True

    def put_framed(self, now: float, framed: bytes) -> bool:
        """Let wait what the carrier itself says, as control."""
        self._expire(now)
        return self._put_control(Frame(now, None, Traffic.CONTROL, framed))

    def framed(self, arrived: float, unit: bytes) -> Frame:
        """A unit as it will leave."""
        return Frame(arrived, unit, traffic_of(unit), self._frame(unit))

    def _put_control(self, frame: Frame) -> bool:
        if self._control_size + frame.size > self._control_bytes:
            return False
        self._control.append(frame)
        self._control_size += frame.size
        return True

    def take(self, now: float, room: int) -> list[Frame]:
        """Frames for ``room`` bytes, in the order they should leave; a first one that is longer is taken nevertheless.

        Where one does not fit, none behind it is taken.
        """
        self._expire(now)
        taken: list[Frame] = []
        for queue in (self._control, self._rtcp, self._media):
            while queue:
                if taken and queue[0].size > room:
                    return taken
                frame = queue.popleft()
                room -= frame.size
                if frame.traffic is Traffic.CONTROL:
                    self._control_size -= frame.size
                else:
                    self._media_size -= frame.size
                taken.append(frame)
        return taken

    def _expire(self, now: float) -> None:
        for queue in (self._media, self._rtcp):
            while queue and now - queue[0].arrived > self.max_age_s:
                self._drop(queue, DropReason.DOWNLINK_OLD)

    def _drop(self, queue: deque[Frame], reason: DropReason) -> None:
        frame = queue.popleft()
        self._media_size -= frame.size
        self._totals.drop(reason, frame.traffic)
