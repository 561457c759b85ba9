"""Histograms of all windows, for Prometheus: MOS, missing packets and jitter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.gateway.calls.windows import Heard
from relay.quality.emodel import mos

# The steps of G.107 Annex B, R 50 to 90, and two lower ones for what is hardly speech.
MOS_STEPS = tuple(round(step, 2) for step in (1.5, 2.0, mos(50), mos(60), mos(70), mos(80), mos(90)))
# Without concealment, 1 % of missing packets can be heard; with 20 % people cannot talk.
MISSING_STEPS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Recorders of trader voice ask for at most 30 ms; jitter buffers hold 40 to 100.
JITTER_STEPS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2)


class Histogram:
    """Counts values by the first step that they do not exceed. Counts only grow."""

    def __init__(self, steps: Sequence[float]) -> None:
        self.steps = steps
        # The last count is for values above all steps.
        self.counts = [0] * (len(steps) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.steps, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Histograms:
    """The windows of one direction, of all calls together."""

    mos: Histogram = field(default_factory=lambda: Histogram(MOS_STEPS))
    missing_ratio: Histogram = field(default_factory=lambda: Histogram(MISSING_STEPS))
    jitter_s: Histogram = field(default_factory=lambda: Histogram(JITTER_STEPS_S))

    def add(self, heard: Heard) -> None:
        """Count a window, if it can be judged."""
        if heard.mos is None:
            return
        self.mos.add(heard.mos)
        self.missing_ratio.add((heard.lost + heard.late) / heard.expected)
        self.jitter_s.add((heard.jitter_ms or 0.0) / 1000)
