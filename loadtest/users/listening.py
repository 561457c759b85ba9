"""How streams sound, second by second: for each stream one event to Locust, and one MOS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from locust.env import Environment

from loadtest.engine.windows import StreamTotals, Window
from loadtest.figures.quality import score
from loadtest.users.measuring import Measures

MEDIA = "media"
# The engine shows this many streams at a time, and the others the next time.
SHOWN_AT_ONCE = 4096
# Each is an event of Locust; a relay that is down for a while makes many.
MAX_STALLS = 100


class StreamLost(Exception):
    """Packets of a stream were lost."""

    cause_text = "packets were lost"


class Stalled(Exception):
    """A packet took 200 ms longer than the one before it."""

    cause_text = "a packet took 200 ms longer than the one before"


@dataclass(frozen=True)
class Sound:
    """What happened to a stream since it was last looked at."""

    sent: int
    received: int
    lost: int
    late: int
    runs: int
    delay_sum_s: float

    @property
    def delay_s(self) -> float:
        """The mean."""
        return self.delay_sum_s / self.received if self.received else 0.0


def sound_of(now: StreamTotals, before: StreamTotals | None) -> Sound:
    """The difference. A stream that was not there before began in between."""
    if before is None or before.sent > now.sent or before.received > now.received:
        return Sound(now.sent, now.received, now.lost, now.late, now.runs, now.delay_sum_s)
    return Sound(
        now.sent - before.sent,
        now.received - before.received,
        now.lost - before.lost,
        now.late - before.late,
        now.runs - before.runs,
        now.delay_sum_s - before.delay_sum_s,
    )


class Ear:
    """Listens to all streams of this process."""

    def __init__(self, environment: Environment, measures: Measures, playout_ms: float) -> None:
        self._environment = environment
        self._measures = measures
        self._playout_ms = playout_ms
        self._heard: Mapping[int, StreamTotals] = {}

    def hear(self, window: Window) -> None:
        """What was heard in a window."""
        for number, now in window.streams.items():
            self._tell(sound_of(now, self._heard.get(number)))
        shows_all = len(window.streams) < SHOWN_AT_ONCE
        self._heard = window.streams if shows_all else {**self._heard, **window.streams}
        for _ in range(min(window.counters["stalls"], MAX_STALLS)):
            self._measures.failed(self._environment, MEDIA, "stall", 0.0, Stalled())

    def _tell(self, sound: Sound) -> None:
        mos = score(sound.sent, sound.lost + sound.late, sound.runs, self._playout_ms)
        if mos is None:
            return
        self._measures.scored(mos)
        if sound.lost:
            error = StreamLost(f"{sound.lost} packets were lost")
            self._measures.failed(self._environment, MEDIA, "stream-second", sound.delay_s, error)
        else:
            self._measures.done(self._environment, MEDIA, "stream-second", sound.delay_s)
