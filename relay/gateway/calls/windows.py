"""A window of a call: how both directions sounded between two readings of the plane, five seconds apart.

A direction carries several streams, one for each line that is heard. The MOS of a direction in a window is the MOS of
its worst audible stream: if a trader cannot understand one line, the others do not help.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from relay.plane.api import FlowSnapshot, Latency
from relay.quality.stream import Direction
from relay.quality.window import StreamWindow, stream_window


class Missing:
    """The share of packets that are missing, for classes that count packets."""

    __slots__ = ()

    expected: int
    lost: int
    late: int

    @property
    def lost_percent(self) -> float | None:
        """Packets that never came."""
        return 100 * self.lost / self.expected if self.expected else None

    @property
    def late_percent(self) -> float | None:
        """Packets that came too late to be played."""
        return 100 * self.late / self.expected if self.expected else None


@dataclass(frozen=True, slots=True)
class Heard(Missing):
    """One direction in one window. R and MOS are those of its worst audible stream: one that can be scored at all.

    The jitter is the highest of all streams. The percentages are of the packets expected on all streams. None means
    that there is no such stream.
    """

    expected: int = 0
    lost: int = 0
    late: int = 0
    jitter_ms: float | None = None
    r: float | None = None
    mos: float | None = None


SILENCE = Heard()


def worse(one: float | None, other: float | None) -> float | None:
    """The lower of two scores; None counts as none."""
    return min((mos for mos in (one, other) if mos is not None), default=None)


@dataclass(frozen=True, slots=True)
class Window:
    """Both directions and the client's link between two readings; ``age_s`` is the flow's age at the end of it.

    ``queue_ms`` is the 95th percentile of the time that packets waited for the client. None means that there was
    nothing to measure.
    """

    age_s: float
    uplink: Heard
    downlink: Heard
    queue_ms: float | None
    drops: int
    rtt_ms: float | None

    @property
    def mos(self) -> float | None:
        """The MOS of the worse direction."""
        return worse(self.uplink.mos, self.downlink.mos)


class Windows:
    """The windows of a call, oldest first, in 64 bytes each.

    A long call has more windows than are kept. Then the older ones are merged, and each has the worst of its time:
    what was bad in the morning can still be seen in the evening, though not to the second. The younger half stays as it
    is.
    """

    _WIDTH = 16

    def __init__(self) -> None:
        self._rows = array("f")
        # The first of the rows are merged ones. The next that is made takes this many windows.
        self._merged = 0
        self._step = 2

    def __len__(self) -> int:
        return len(self._rows) // self._WIDTH

    def __iter__(self) -> Iterator[Window]:
        return (self._window(start) for start in range(0, len(self._rows), self._WIDTH))

    def last(self, count: int) -> Iterator[Window]:
        """The last ``count``, oldest first."""
        begin = max(0, len(self) - count) * self._WIDTH
        return (self._window(start) for start in range(begin, len(self._rows), self._WIDTH))

    def append(self, window: Window, keep: int) -> None:
        """Add one, and merge older ones so that there are at most ``keep``."""
        self._rows.extend((window.age_s, *_packed(window.uplink), *_packed(window.downlink)))
        self._rows.extend((_float(window.queue_ms), window.drops, _float(window.rtt_ms)))
        while len(self) > max(1, keep):
            if self._merged > max(1, keep // 2):
                self._merge_pairs()
            else:
                self._merge(self._merged, min(self._step, len(self) - self._merged))
                self._merged += 1

    def _merge_pairs(self) -> None:
        """Halve the rows that are merged already."""
        for first in range(self._merged // 2):
            self._merge(first, 2)
        self._merged -= self._merged // 2
        self._step *= 2

    def _merge(self, first: int, count: int) -> None:
        """Make one row of so many."""
        start, end = first * self._WIDTH, (first + count) * self._WIDTH
        rows = (self._rows[row : row + self._WIDTH] for row in range(start, end, self._WIDTH))
        self._rows[start:end] = array(
            "f", [how(column) for how, column in zip(_MERGES, zip(*rows, strict=True), strict=True)]
        )

    def pack(self) -> bytes:
        """All of them as bytes, for a file: 16 numbers of 32 bits for each, the lowest byte first."""
        rows = self._rows[:]
        if sys.byteorder == "big":
            rows.byteswap()
        return rows.tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> Windows:
        """What ``pack`` has made. A window that is cut off is left out."""
        windows, size = cls(), 4 * cls._WIDTH
        windows._rows.frombytes(packed[: len(packed) // size * size])
        if sys.byteorder == "big":
            windows._rows.byteswap()
        return windows

    def _window(self, start: int) -> Window:
        row = self._rows[start : start + self._WIDTH]
        uplink, downlink = _unpacked(row[1:7]), _unpacked(row[7:13])
        return Window(row[0], uplink, downlink, _known(row[13]), int(row[14]), _known(row[15]))


def _last(values: Sequence[float]) -> float:
    return values[-1]


def _highest(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _lowest(values: Sequence[float]) -> float:
    return min((value for value in values if not math.isnan(value)), default=math.nan)


# How rows become one, column by column, as ``append`` and ``_packed`` lay them out.
_HEARD: tuple[Callable[[Sequence[float]], float], ...] = (sum, sum, sum, _highest, _lowest, _lowest)
_MERGES = (_last, *_HEARD, *_HEARD, _highest, sum, _highest)


def _packed(heard: Heard) -> Iterable[float]:
    return heard.expected, heard.lost, heard.late, _float(heard.jitter_ms), _float(heard.r), _float(heard.mos)


def _unpacked(row: Sequence[float]) -> Heard:
    return Heard(int(row[0]), int(row[1]), int(row[2]), _known(row[3]), _known(row[4]), _known(row[5]))


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def heard_between(earlier: FlowSnapshot | None, later: FlowSnapshot, playout_deadline_ms: float) -> tuple[Heard, Heard]:
    """Uplink and downlink between two readings of a flow."""
    # One way to the client takes half of its round trip. The way beyond the upstream is not seen.
    network_ms = 0.0 if later.link is None else later.link.rtt_us / 2000
    before = {} if earlier is None else {(one.direction, one.ssrc): one for one in earlier.streams}
    judged: dict[Direction, list[StreamWindow]] = {Direction.UPLINK: [], Direction.DOWNLINK: []}
    for stream in later.streams:
        known = before.get((stream.direction, stream.ssrc))
        if known is not None and known.packets == stream.packets:
            continue  # silent
        judged[stream.direction].append(stream_window(known, stream, playout_deadline_ms, network_ms))
    return _heard(judged[Direction.UPLINK]), _heard(judged[Direction.DOWNLINK])


def _heard(streams: Sequence[StreamWindow]) -> Heard:
    if not streams:
        return SILENCE
    audible = [one for one in streams if one.r is not None]
    worst = min(audible, key=lambda one: one.r or 0.0, default=None)
    return Heard(
        sum(one.expected for one in streams),
        sum(one.lost for one in streams),
        sum(one.late for one in streams),
        max((one.jitter_ms for one in audible), default=None),
        None if worst is None else worst.r,
        None if worst is None else worst.mos,
    )


def queue_percentile_ms(earlier: FlowSnapshot | None, later: FlowSnapshot, percent: int) -> float | None:
    """How long packets waited that left for the client between two readings: the percentile, in ms.

    It is the end of a bucket, so the figure is never too low. None if no packet left.
    """
    return percentile_ms(None if earlier is None else earlier.queue_delay, later.queue_delay, percent)


def percentile_ms(earlier: Latency | None, later: Latency, percent: int) -> float | None:
    """The same for any histogram of microseconds."""
    before = {} if earlier is None else dict(earlier.buckets)
    counts = [(end, count - before.get(end, 0)) for end, count in later.buckets]
    rank = -(-percent * sum(count for _, count in counts) // 100)
    if rank <= 0:
        return None
    for end, count in counts:
        rank -= count
        if rank <= 0:
            return end / 1000
    return None
