"""What waits for a client that takes less than comes: in which order it leaves, and when it is not worth sending.

Over TCP media is never lost. It is late, and late voice is worse than none. So the oldest is dropped, in whole frames.
Control leaves first and is not dropped, because a call dies without it. Data leaves last, and where there is too much
the newest is dropped: its sender slows down when something is lost, and must learn of it early. There is no I/O here,
and ``now`` is an argument.

A far peer can send as much as it likes of what looks like control. So what it sends counts as control up to a bound
each second, while less than half of the room for control is taken. The rest counts as data. In this way it cannot delay
voice for long, and it cannot end the connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from relay.plane.api import DropReason, Totals, Traffic
from relay.plane.reference.traffic import is_from_peer, traffic_of
from relay.wire.channeldata import pad

# Control of a far peer in each period. A flight of DTLS with a chain of certificates has 5 KB, and twenty checks of ICE
# with their answers have 4 KB. This much takes an eighth of a link of 1 Mbit/s.
PEER_CONTROL_BYTES = 16 * 1024
PEER_CONTROL_PERIOD_S = 1.0
# SCTP doubles what it sends until it hears of a loss, a round trip later, and needs seconds to recover from hundreds of
# losses. So one packet is dropped while there is still room for what comes until then, and the next one only when SCTP
# can have slowed down.
EARLY_DROP_PERIOD_S = 0.5


class Room(NamedTuple):
    """The bounds of one flow: bytes on the stream, and how long data may wait."""

    media_bytes: int  # RTCP included
    control_bytes: int
    data_bytes: int
    data_age_s: float
    peer_control_period_s: float = PEER_CONTROL_PERIOD_S
    early_drop_period_s: float = EARLY_DROP_PERIOD_S


class Frame(NamedTuple):
    """What waits: when it came, in seconds, and its bytes on the client's stream.

    ``unit`` is a unit of the downlink, or None for what the carrier itself says to the client.
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
        room: Room,
        totals: Totals,
        frame: Callable[[bytes], bytes] = pad,
        *,
        from_peers: bool = False,
    ) -> None:
        """``max_age_s`` is how old media may grow. ``frame`` puts a unit into its carrier's frame.

        ``from_peers`` says that everything comes from far peers, even STUN outside ChannelData.
        """
        self.max_age_s = max_age_s
        self._room = room
        self._totals = totals
        self._frame = frame
        self._from_peers = from_peers
        self._control: deque[Frame] = deque()
        self._rtcp: deque[Frame] = deque()
        self._media: deque[Frame] = deque()
        self._data: deque[Frame] = deque()
        self._control_size = 0
        self._media_size = 0
        self._data_size = 0
        # What far peers have sent as control, and since when.
        self._peer_bytes = 0
        self._peer_since = 0.0
        self._early_drop_at = 0.0

    @property
    def waiting_bytes(self) -> int:
        """Everything that waits, as bytes on the stream. 0 only if nothing waits."""
        return self._control_size + self._media_size + self._data_size

    @property
    def has_data(self) -> bool:
        """True if data waits."""
        return self._data_size > 0

    @property
    def is_urgent(self) -> bool:
        """True if more than data waits."""
        return bool(self._control_size or self._media_size)

    def oldest_age(self, now: float) -> float:
        """How many seconds the oldest frame has waited. 0 if nothing waits.

        It may be more than the greatest age: a frame that is too old leaves only with the next ``put`` or ``take``.
        """
        heads = [queue[0].arrived for queue in (self._control, self._rtcp, self._media, self._data) if queue]
        return now - min(heads) if heads else 0.0

    def put(self, now: float, unit: bytes) -> bool:
        """Let a unit wait. Returns False, and keeps nothing of it, if it is control and there is no room for it.

        For media the oldest media makes room. Data that finds no room is dropped itself, and so is a unit that is
        longer than all the room there is.
        """
        self._expire(now)
        frame = self.framed(now, unit)
        if frame.traffic is Traffic.CONTROL:
            if not (self._from_peers or is_from_peer(unit)) or self._admit_peer(now, frame.size):
                return self._put_control(frame)
            frame = frame._replace(traffic=Traffic.DATA)
        if frame.traffic is Traffic.DATA:
            self._put_data(now, frame)
        elif frame.size > self._room.media_bytes:
            self._totals.drop(DropReason.DOWNLINK_FULL, frame.traffic)
        else:
            while self._media_size + frame.size > self._room.media_bytes:
                self._drop(self._media or self._rtcp, DropReason.DOWNLINK_FULL)
            (self._rtcp if frame.traffic is Traffic.RTCP else self._media).append(frame)
            self._media_size += frame.size
        return True

    def put_framed(self, now: float, framed: bytes) -> bool:
        """Let something wait that the carrier itself says, as control."""
        self._expire(now)
        return self._put_control(Frame(now, None, Traffic.CONTROL, framed))

    def framed(self, arrived: float, unit: bytes) -> Frame:
        """A unit as it will leave for the client."""
        return Frame(arrived, unit, traffic_of(unit), self._frame(unit))

    def _put_control(self, frame: Frame) -> bool:
        if self._control_size + frame.size > self._room.control_bytes:
            return False
        self._control.append(frame)
        self._control_size += frame.size
        return True

    def _admit_peer(self, now: float, size: int) -> bool:
        """Whether this much more from a far peer counts as control."""
        if now - self._peer_since >= self._room.peer_control_period_s:
            self._peer_since, self._peer_bytes = now, 0
        if self._peer_bytes + size > PEER_CONTROL_BYTES or self._control_size + size > self._room.control_bytes // 2:
            return False
        self._peer_bytes += size
        return True

    def _put_data(self, now: float, frame: Frame) -> None:
        if self._data_size + frame.size > self._room.data_bytes or self._is_early_drop(now):
            self._totals.drop(DropReason.DOWNLINK_FULL, Traffic.DATA)
        else:
            self._data.append(frame)
            self._data_size += frame.size

    def _is_early_drop(self, now: float) -> bool:
        """True once in a while, if more than a quarter of the room for data is taken."""
        if self._data_size <= self._room.data_bytes // 4 or now - self._early_drop_at < self._room.early_drop_period_s:
            return False
        self._early_drop_at = now
        return True

    def take(self, now: float, room: int, *, with_data: bool = True) -> list[Frame]:
        """Take frames for ``room`` bytes, in the order they should leave. The first is taken even if it is longer.

        When one does not fit, none after it is taken. Without ``with_data`` data stays.
        """
        self._expire(now)
        taken: list[Frame] = []
        for queue in (self._control, self._rtcp, self._media, self._data)[: None if with_data else 3]:
            while queue:
                if taken and queue[0].size > room:
                    return taken
                frame = queue.popleft()
                room -= frame.size
                self._note_gone(frame)
                taken.append(frame)
        return taken

    def _expire(self, now: float) -> None:
        for queue, age_s in (
            (self._media, self.max_age_s),
            (self._rtcp, self.max_age_s),
            (self._data, self._room.data_age_s),
        ):
            while queue and now - queue[0].arrived > age_s:
                self._drop(queue, DropReason.DOWNLINK_OLD)

    def _drop(self, queue: deque[Frame], reason: DropReason) -> None:
        frame = queue.popleft()
        self._note_gone(frame)
        self._totals.drop(reason, frame.traffic)

    def _note_gone(self, frame: Frame) -> None:
        if frame.traffic is Traffic.CONTROL:
            self._control_size -= frame.size
        elif frame.traffic is Traffic.DATA:
            self._data_size -= frame.size
        else:
            self._media_size -= frame.size
