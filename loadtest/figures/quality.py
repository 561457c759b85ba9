"""Losses and lateness to a MOS, by the E-model of ``relay.quality``: G.711 with concealment, narrowband.

A listener plays each packet ``playout_ms`` after it was sent. What is not there by then was not heard, whether it was
lost or late: otherwise each path over TCP, where nothing is lost, would be perfect. That time is also the delay.
"""

from __future__ import annotations

from relay.quality import emodel
from relay.quality.playout import scored_r

CODEC = emodel.G711_CONCEALED


def bursts(sent: int, missing: int, runs: int) -> float:
    """BurstR of G.107: the mean run of missing packets, divided by the mean of random losses. At least 1."""
    if not runs or not sent:
        return 1.0
    return max(1.0, missing / runs * max(0, sent - missing) / sent)


def score(sent: int, missing: int, runs: int, playout_ms: float) -> float | None:
    """The MOS of this many packets, of which some were lost or late, in this many runs; None if there were none."""
    percent = 100 * min(missing, sent) / sent if sent > 0 else None
    r = scored_r(CODEC, emodel.mouth_to_ear_ms(0, playout_ms), percent, bursts(sent, missing, runs))
    return None if r is None else emodel.mos(r)
