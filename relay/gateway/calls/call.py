"""One call: a flow that carries RTP, as a row of windows. The plane's counts go in, and how it sounded comes out."""

from __future__ import annotations

import math

from relay.gateway.calls.windows import Heard, Missing, Window, Windows, heard_between, queue_percentile_ms
from relay.plane.api import FlowSnapshot
from relay.quality import emodel

# A window with a lower MOS, as it is shown, is called bad: below R 70, G.107 Annex B says, many users are dissatisfied.
BAD_MOS = round(emodel.mos(70.0), 2)


class WholeCall(Missing):
    """One direction from the call's start, whatever windows are kept."""

    __slots__ = ("_jitter_ms", "_mos", "_scored", "expected", "late", "lost", "mos_min")

    def __init__(self) -> None:
        self.expected = 0
        self.lost = 0
        self.late = 0
        self.mos_min: float | None = None
        self._mos = 0.0
        self._jitter_ms = 0.0
        self._scored = 0

    def add(self, heard: Heard) -> None:
        """Take a window."""
        self.expected += heard.expected
        self.lost += heard.lost
        self.late += heard.late
        if heard.mos is None:
            return
        self._scored += 1
        self._mos += heard.mos
        self._jitter_ms += heard.jitter_ms or 0.0
        self.mos_min = heard.mos if self.mos_min is None else min(self.mos_min, heard.mos)

    @property
    def mos_mean(self) -> float | None:
        """The mean of the windows that have a score."""
        return self._mos / self._scored if self._scored else None

    @property
    def jitter_ms(self) -> float | None:
        """The mean jitter of these windows."""
        return self._jitter_ms / self._scored if self._scored else None


class Call:
    """A flow from its first RTP packet on. ``flow`` is the last reading, ``window`` what came since the one before."""

    __slots__ = ("downlink", "flow", "id", "mos", "region", "seen", "started_at", "uplink", "window", "windows")

    def __init__(self, id: str, region: str, started_at: float) -> None:  # noqa: A002 - the word that everybody uses
        self.id = id
        self.region = region
        # Unix time in seconds.
        self.started_at = started_at
        self.flow: FlowSnapshot | None = None
        self.window: Window | None = None
        self.windows = Windows()
        self.uplink = WholeCall()
        self.downlink = WholeCall()
        # The MOS of the last window, for sorting; inf if it has none.
        self.mos = math.inf
        # The tick that saw it last.
        self.seen = 0

    def read(self, flow: FlowSnapshot, playout_deadline_ms: float, keep: int) -> Window:
        """Take a reading. Returns the window since the last one; at most ``keep`` windows are kept."""
        uplink, downlink = heard_between(self.flow, flow, playout_deadline_ms)
        drops = sum(flow.totals.drops.values())
        window = Window(
            flow.age_s,
            uplink,
            downlink,
            queue_percentile_ms(self.flow, flow, 95),
            drops - (0 if self.flow is None else sum(self.flow.totals.drops.values())),
            None if flow.link is None else flow.link.rtt_us / 1000,
        )
        self.flow, self.window = flow, window
        self.windows.append(window, keep)
        self.uplink.add(uplink)
        self.downlink.add(downlink)
        mos = window.mos
        self.mos = math.inf if mos is None else mos
        return window
