"""All calls: every five seconds one look at the plane, a window for each call, and a record of each call that ended.

The plane counts, and this divides. A look is spread over most of the five seconds, a few flows at a time: it may share
its core with a thread that carries voice, and a pause of a tenth of a second could be heard.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from relay.gateway.calls.call import BAD_MOS, Call, WholeCall
from relay.gateway.calls.histograms import Histograms
from relay.gateway.calls.ids import CallIds
from relay.gateway.calls.windows import worse
from relay.plane.api import Closed, CloseReason, ConnectionId, DropReason, FlowSnapshot, Snapshot
from relay.quality.emodel import mos
from relay.quality.stream import Direction

log = structlog.get_logger()

# Long enough for 250 packets of a stream, short enough that a user who complains is still on the line.
WINDOW_S = 5.0
# Half an hour of a call is kept, window by window. Minimum and mean are kept for the whole call.
WINDOWS_KEPT = 360
# At most this many windows of all calls together, 64 bytes each. With more than 2,777 calls, each call keeps fewer.
WINDOWS_KEPT_IN_ALL = 1_000_000
# A look is spread over this much of the window. The rest is reserve, in case the loop is late.
LOOK_S = 4.0
# Flows that are looked at in one go: a millisecond.
SLICE = 10
# Calls that ended, with their windows, for operators who look a minute later.
ENDED_KEPT = 200
# Looks that the charts remember: half an hour.
HISTORY_KEPT = 360


@dataclass(frozen=True, slots=True)
class Moment:
    """What one look saw of the whole relay; ``at`` in unix seconds, packets and drops since the plane's start."""

    at: float
    calls: int
    uplink_packets: int
    downlink_packets: int
    drops: Mapping[DropReason, int]


@dataclass(frozen=True, slots=True)
class EndedCall:
    """A flow that has ended; ``call`` has windows only if it carried RTP."""

    connection: ConnectionId
    call: Call
    flow: FlowSnapshot
    ended_at: float
    reason: CloseReason
    detail: str

    @property
    def id(self) -> str:
        """As everybody outside the relay knows it."""
        return self.call.id

    @property
    def carried_rtp(self) -> bool:
        """Whether it was a call at all."""
        return self.call.flow is not None

    @property
    def was_served(self) -> bool:
        """Whether its upstream has served it. That tells a call from a client that sends what looks like voice."""
        return self.flow.allocated or any(one.direction is Direction.DOWNLINK for one in self.flow.streams)

    @property
    def mos_min(self) -> float | None:
        """The lowest MOS of the worse direction."""
        return worse(self.call.uplink.mos_min, self.call.downlink.mos_min)


class Calls:
    """Keeps the calls of a plane. ``run`` it, tell it of what closed, and read."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        region_of: Callable[[str], str],
        *,
        ids: CallIds | None = None,
        on_started: Callable[[Call], None] = lambda _: None,
        max_calls: int = 0,
        playout_deadline_ms: float = 60.0,
    ) -> None:
        """``region_of`` takes the name of an upstream. At most ``max_calls`` are kept; 0 means no bound.

        ``on_started`` is told of each call once: when the first look after its first RTP packet has seen it, or just
        before its end if that comes first.
        """
        self._snapshot = snapshot
        self._region_of = region_of
        self._on_started = on_started
        self.ids = ids or CallIds()
        self._calls: dict[ConnectionId, Call] = {}
        self._closed: set[ConnectionId] = set()
        self._tick = 0
        self._keep = WINDOWS_KEPT
        self.ended: deque[EndedCall] = deque(maxlen=ENDED_KEPT)
        self.history: deque[Moment] = deque(maxlen=HISTORY_KEPT)
        self.histograms = {direction: Histograms() for direction in Direction}
        # Calls beyond the bound, in the last look.
        self.unwatched = 0
        self.configure(max_calls=max_calls, playout_deadline_ms=playout_deadline_ms)

    def configure(self, *, max_calls: int, playout_deadline_ms: float) -> None:
        """Use these from the next look on."""
        self._max_calls = max_calls or math.inf
        self.playout_deadline_ms = playout_deadline_ms

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def get(self, connection: ConnectionId) -> Call | None:
        """The call of a flow, or None."""
        return self._calls.get(connection)

    def get_ended(self, connection: ConnectionId) -> EndedCall | None:
        """One of the last calls that ended, or None."""
        return next((one for one in reversed(self.ended) if one.connection == connection), None)

    def worst(self, count: int) -> list[Call]:
        """The calls that sound worst now, worst first; those without a score last."""
        return heapq.nsmallest(count, self._calls.values(), key=lambda call: call.mos)

    def ended_badly(self, count: int) -> list[EndedCall]:
        """The last calls that had a bad window, latest first."""
        bad = [one for one in reversed(self.ended) if (least := one.mos_min) is not None and round(least, 2) < BAD_MOS]
        return bad[:count]

    # Looking

    async def run(self) -> None:
        """Look each five seconds, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + WINDOW_S, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                await self.look(LOOK_S)
            except Exception:
                # A flow that cannot be read must not hide all others for ever.
                log.exception("calls not read")

    async def look(self, over_s: float = 0.0) -> None:
        """Read the plane once, a window for each call, spread over this many seconds."""
        now, snapshot = time.time(), self._snapshot()
        self._tick += 1
        self._closed.clear()
        self._keep = max(1, min(WINDOWS_KEPT, WINDOWS_KEPT_IN_ALL // max(1, len(self._calls))))
        self.unwatched = 0
        flows = snapshot.flows
        pause_s = over_s * SLICE / max(SLICE, len(flows))
        for start in range(0, len(flows), SLICE):
            for flow in flows[start : start + SLICE]:
                self._read(flow, now)
            await asyncio.sleep(pause_s)
        self._forget_lost()
        totals = snapshot.totals
        self.history.append(
            Moment(now, len(self._calls), totals.uplink_packets, totals.downlink_packets, dict(totals.drops))
        )

    def _read(self, flow: FlowSnapshot, now: float) -> None:
        if not flow.streams or flow.connection in self._closed:
            return
        call = self._calls.get(flow.connection)
        is_new = call is None
        if call is None:
            if len(self._calls) >= self._max_calls:
                self.unwatched += 1
                return
            call = self._calls[flow.connection] = self._new(flow, now)
        call.seen = self._tick
        self._take(call, flow)
        if is_new:
            self._on_started(call)

    def _new(self, flow: FlowSnapshot, now: float) -> Call:
        return Call(self.ids.id_of(flow.connection), self._region_of(flow.upstream.name), now - flow.age_s)

    def _take(self, call: Call, flow: FlowSnapshot) -> None:
        window = call.read(flow, self.playout_deadline_ms, self._keep)
        self.histograms[Direction.UPLINK].add(window.uplink)
        self.histograms[Direction.DOWNLINK].add(window.downlink)

    def _forget_lost(self) -> None:
        """Forget calls that the plane no longer has. Two looks must miss them: a Closed may be on the way."""
        lost = [connection for connection, call in self._calls.items() if call.seen < self._tick - 1]
        for connection in lost:
            del self._calls[connection]

    # Ends

    def on_closed(self, closed: Closed) -> EndedCall | None:
        """Take the last reading of a flow. Returns None if the connection never became one."""
        if closed.flow is None:
            return None
        now = time.time()
        self._closed.add(closed.connection)
        known = self._calls.pop(closed.connection, None)
        call = known or self._new(closed.flow, now)
        if closed.flow.streams:
            self._take(call, closed.flow)
            if known is None:
                self._on_started(call)
        ended = EndedCall(closed.connection, call, closed.flow, now, closed.reason, closed.detail)
        if ended.carried_rtp:
            self.ended.append(ended)
        return ended

    # Numbers

    def mos_bands(self) -> tuple[list[int], int]:
        """Calls by their present MOS: a count for each band of ``BANDS``, best first, and one for those without."""
        counts = Counter(band_of(call.mos) for call in self._calls.values())
        return [counts[number] for number in range(len(BANDS))], counts[NO_BAND]

    def mos_by_upstream(self) -> dict[str, float]:
        """The mean of the present MOS of each upstream's calls, of those that have one."""
        sums: dict[str, list[float]] = {}
        for call in self._calls.values():
            if call.flow is not None and call.mos is not math.inf:
                entry = sums.setdefault(call.flow.upstream.name, [0.0, 0.0])
                entry[0] += call.mos
                entry[1] += 1
        return {name: total / count for name, (total, count) in sums.items()}


# The categories of speech transmission quality of G.109, best first, each with its lowest MOS: R 90, 80, 70, 60, 50.
# This is the only list. A MOS has two digits here, as people and the API see it, so a figure has one band everywhere.
BANDS = (
    ("best", round(mos(90), 2)),
    ("high", round(mos(80), 2)),
    ("medium", round(mos(70), 2)),
    ("low", round(mos(60), 2)),
    ("poor", round(mos(50), 2)),
    ("not recommended", 1.0),
)
NO_BAND = -1


def band_of(score: float) -> int:
    """The number of a MOS in ``BANDS``; NO_BAND for inf, which is no score."""
    if score == math.inf:
        return NO_BAND
    shown = round(score, 2)
    return next(number for number, (_, least) in enumerate(BANDS) if shown >= least or number == len(BANDS) - 1)


def whole(way: WholeCall) -> dict[str, float | int | None]:
    """The figures of a whole call, one way, as logs, records and the API name them."""
    return {
        "expected": way.expected,
        "lost_percent": rounded(way.lost_percent, 3),
        "late_percent": rounded(way.late_percent, 3),
        "jitter_ms": rounded(way.jitter_ms, 2),
        "mos_min": rounded(way.mos_min, 2),
        "mos_mean": rounded(way.mos_mean, 2),
    }


def rounded(value: float | None, digits: int) -> float | None:
    """A number as people read it, or None."""
    return None if value is None else round(value, digits)
