"""Whether TCP is behind: when to stop giving it more.

What the kernel has taken can no longer be dropped. While a link stalls TCP goes on taking: as many segments as its
congestion window allows, and ``TCP_NOTSENT_LOWAT`` beyond. Together these are seconds of voice that arrive late and
hold up everything after them. So TCP gets nothing more once the oldest write has not been acknowledged for longer than
the fastest round trip and a little: what waits in the schedule instead can still be dropped. If TCP delivers a stream,
its oldest write is never that old, however much there is: each acknowledgement takes the oldest away.

A slow link looks the same. As soon as it had delivered what came before, it would take everything that has waited at
once. So after each such time only half as much as before may be on its way, and each acknowledgement allows as much
more as it covers. This is the slow start of TCP (RFC 5681 section 3.1), for its sender's own queue.

Data takes what voice leaves, and must not make voice wait in TCP or in the network. So once the oldest write is late,
by somewhat less than for voice, data goes only as fast as what is on its way is delivered. That does not slow it down.
A window that narrows would, where acknowledgements wait behind what the client itself sends.
"""

from __future__ import annotations

from collections import deque

# Writes that are remembered one by one. Later ones are judged with the last of them, and so are writes that come within
# a twelfth of the time that counts: in this way everything that may be on its way is remembered.
MARKS = 16
MARKS_IN_TIME = 12
# Less than this may be on its way without anything being wrong. A receiver acknowledges at least every second segment
# (RFC 9293 section 3.8.6.3), small ones perhaps later, and a single one only when its timer ends, after 200 ms on some
# systems. Waiting for that would mean one record each 200 ms.
UNACKNOWLEDGED_WRITES = 4
UNACKNOWLEDGED_BYTES = 1024
LARGE_WRITES = 2
# Later than the shortest round trip. Acknowledgements are delayed by 40 ms where a client says nothing itself.
BEHIND_US = 50_000
# The bounds of the window in bytes: a record, and more than a burst of 200 KB.
MIN_WINDOW = 1024
MAX_WINDOW = 256 * 1024
# Data waits from here on. A delayed acknowledgement takes this long.
DATA_BEHIND_US = 40_000
# Seven packets of SCTP. With less on the way an acknowledgement may be late for other reasons.
MIN_DATA_WINDOW = 8192
# Where data waits the path is busy, and acknowledgements wait in it too. So voice is held only beyond the delay that
# RFC 6817 section 2.5 allows to traffic that must not disturb others, and not before this much more is on the way.
BEHIND_BESIDE_DATA_US = 100_000
VOICE_BESIDE_DATA_BYTES = 4096


class Pace:
    """The writes of one connection that may not have been delivered yet. Positions count bytes from its start."""

    def __init__(self) -> None:
        # Whether data had to wait when ``is_behind`` was last asked.
        self.holds_data = False
        self._data_window = 0
        self._data_late = False
        self._marks: deque[tuple[int, int]] = deque()
        self._acknowledged = 0
        self._window: int | None = None
        self._late = False

    @property
    def is_much(self) -> bool:
        """True if enough may be undelivered to matter."""
        marks = self._marks
        return len(marks) >= UNACKNOWLEDGED_WRITES or (
            len(marks) >= LARGE_WRITES and marks[-1][0] - self._acknowledged >= UNACKNOWLEDGED_BYTES
        )

    def note_write(self, end: int, now_us: int, min_rtt_us: int) -> None:
        """TCP has been given everything up to ``end``."""
        marks = self._marks
        near_us = (min_rtt_us + BEHIND_US) // MARKS_IN_TIME
        if len(marks) == MARKS or (len(marks) >= UNACKNOWLEDGED_WRITES and now_us - marks[-1][1] < near_us):
            marks[-1] = (end, marks[-1][1])
        else:
            marks.append((end, now_us))

    def is_behind(self, acknowledged: int, min_rtt_us: int, now_us: int, *, beside_data: bool = False) -> bool:
        """True if the client, which has acknowledged this many bytes, has lacked one of them for too long.

        ``beside_data`` says that data waits.
        """
        marks = self._marks
        self._acknowledge(acknowledged)
        self.holds_data = False
        if not self.is_much:
            self._late = self._data_late = False
            return False
        on_the_way = marks[-1][0] - acknowledged
        late_us = now_us - marks[0][1] - min_rtt_us
        self._judge_data(on_the_way, late_us > DATA_BEHIND_US)
        if beside_data:
            self._late = False
            return late_us > BEHIND_BESIDE_DATA_US and on_the_way >= self._data_window + VOICE_BESIDE_DATA_BYTES
        if late_us <= BEHIND_US:
            self._late = False
            return self._window is not None and on_the_way >= self._window
        if not self._late:
            self._late = True
            self._window = max(MIN_WINDOW, on_the_way // 2)
        return True

    def _judge_data(self, on_the_way: int, late: bool) -> None:
        if late and not self._data_late:
            self._data_window = max(MIN_DATA_WINDOW, on_the_way)
        self._data_late = late
        self.holds_data = late and on_the_way >= self._data_window

    def _acknowledge(self, acknowledged: int) -> None:
        if self._window is not None and not self._late:
            self._window += acknowledged - self._acknowledged
            if self._window > MAX_WINDOW:
                self._window = None
        self._acknowledged = acknowledged
        while self._marks and self._marks[0][0] <= acknowledged:
            self._marks.popleft()
