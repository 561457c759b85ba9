"""The downlink's last step in the reference plane: from a flow to its client.

A unit is written at once while the socket takes everything and TCP delivers it. Otherwise it waits in the schedule. As
soon as TCP delivers again, what waits leaves in small records, one each turn: TLS cannot take back what it was given,
so it is given as little as possible. Data begins to wait earlier than the rest, and lets the rest pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from relay.plane.api import Totals, Traffic
from relay.plane.reference.delays import Delays
from relay.plane.reference.schedule import Frame, Schedule
from relay.plane.reference.traffic import rtp_packet, traffic_of
from relay.quality.meter import Meter

# A client can read nothing of a record before all of it has come, and nothing more urgent that comes after it. At
# 64 kbit/s this much takes an eighth of a second.
RECORD_BYTES = 1024
# Nothing tells when TCP has caught up, so it is asked this often. A jitter buffer does not notice.
ASK_AGAIN_S = 0.005


class Downlink:
    """One flow's way to its client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        totals: Totals,
        schedule: Schedule,
        meter: Meter,
        *,
        write: Callable[[bytes], None],
        is_blocked: Callable[[], bool],
        is_behind: Callable[[bool], bool],
        holds_data: Callable[[], bool],
    ) -> None:
        """``write`` encrypts and sends. ``meter`` sees what leaves: a dropped packet is lost, one that waited is late.

        ``is_blocked`` says that the socket has not taken everything yet. ``is_behind`` says that it has, but that TCP
        does not deliver it; its argument is whether data waits. ``holds_data`` says whether data has to wait since
        ``is_behind`` was last asked.
        """
        self.delays = Delays()
        self.schedule = schedule
        self.meter = meter
        self._loop = loop
        self._totals = totals
        self._write = write
        self._is_blocked = is_blocked
        self._is_behind = is_behind
        self._holds_data = holds_data
        self._turn: asyncio.Handle | None = None
        self._closed = False

    def deliver(self, arrived: float, unit: bytes) -> bool:
        """Send a unit that came at ``arrived`` (time.monotonic), or let it wait. Returns False if there is no room."""
        if self._must_wait() or self._is_data_to_wait(unit):
            return self.schedule.put(arrived, unit)
        self._hand_over([self.schedule.framed(arrived, unit)])
        return True

    def say(self, framed: bytes) -> bool:
        """The same for something that the carrier itself says, and that is framed already."""
        now = time.monotonic()
        if self._must_wait():
            return self.schedule.put_framed(now, framed)
        self._hand_over([Frame(now, None, Traffic.CONTROL, framed)])
        return True

    def _must_wait(self) -> bool:
        if self.schedule.is_urgent or self._is_blocked():
            return True
        if self._is_behind(self.schedule.has_data):
            self._ask_again()
            return True
        return False

    def _is_data_to_wait(self, unit: bytes) -> bool:
        """True for data while other packets wait, and while data is held."""
        if not (self._holds_data() or self.schedule.waiting_bytes) or traffic_of(unit) is not Traffic.DATA:
            return False
        self._ask_again()
        return True

    def _ask_again(self) -> None:
        self._turn = self._turn or self._loop.call_later(ASK_AGAIN_S, self._on_turn)

    def wake(self) -> None:
        """The socket takes more."""
        if self._closed or not self.schedule.waiting_bytes:
            return
        if self._holds_data() and not self.schedule.is_urgent:
            self._ask_again()
        else:
            self._turn = self._turn or self._loop.call_soon(self._on_turn)

    def close(self) -> None:
        """Send nothing more, and forget what waits."""
        self._closed = True
        if self._turn is not None:
            self._turn.cancel()

    def _on_turn(self) -> None:
        self._turn = None
        if self._is_blocked():
            return
        if self._is_behind(self.schedule.has_data):
            self._ask_again()
            return
        if frames := self.schedule.take(time.monotonic(), RECORD_BYTES, with_data=not self._holds_data()):
            self._hand_over(frames)
        if not self._is_blocked():
            self.wake()

    def _hand_over(self, frames: list[Frame]) -> None:
        now = time.monotonic()
        for frame in frames:
            if frame.unit is None:
                continue
            self._totals.downlink_packets += 1
            self._totals.downlink_bytes += len(frame.unit)
            if (packet := rtp_packet(frame.unit)) is not None:
                self.meter.on_packet(round(now * 1e6), packet)
            self.delays.record(round((now - frame.arrived) * 1e6))
        self._write(b"".join(frame.framed for frame in frames))
