"""The E-model of ITU-T G.107 (06/2015): mouth-to-ear delay and missing packets to an R factor and a MOS-CQE.

Only what a packet network changes is computed; everything else (loudness, echo, noise) has the defaults of the
Recommendation, which give R = 93.2. Echo is taken as cancelled, so delay counts through Idd alone.

The scale is narrowband. The wideband model (G.107.1) has another scale, from 0 to 129, so never put values of both into
one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# --- fixed by the Recommendation ---
# G.107 section 7.7: the R factor of a narrowband call with all parameters at their defaults.
R_WITH_DEFAULTS = 93.2
# G.107 section 7.4: a delay up to this costs nothing.
DELAY_WITHOUT_IMPAIRMENT_MS = 100.0
# G.107 Annex B.
MIN_MOS = 1.0
MAX_MOS = 4.5

# --- chosen here ---
# The voice in one packet: clients send 50 packets a second.
PACKETISATION_MS = 20.0


@dataclass(frozen=True, slots=True)
class Codec:
    """How well a codec sounds, and how it takes losses (G.113 Appendix I).

    ``ie`` is the equipment impairment without loss. ``bpl`` is the robustness to loss: larger is better.
    ``provisional`` marks our own values, because G.113 has none. Say so wherever a score made of them is shown. Raises
    ValueError for a robustness that is not above 0.
    """

    name: str
    ie: float
    bpl: float
    provisional: bool = False

    def __post_init__(self) -> None:
        if not self.bpl > 0:
            raise ValueError(f"{self.name}: bpl is {self.bpl}, expected a number above 0")


G711 = Codec("G.711 without concealment", ie=0.0, bpl=4.3)
G711_CONCEALED = Codec("G.711 with concealment", ie=0.0, bpl=25.1)
# G.113 has no narrowband values for Opus. These are cautious: between G.711 with and without concealment.
OPUS = Codec("Opus", ie=0.0, bpl=10.0, provisional=True)
OPUS_FEC = Codec("Opus with FEC", ie=0.0, bpl=20.0, provisional=True)


def mouth_to_ear_ms(network_ms: float, jitter_buffer_ms: float, packetisation_ms: float = PACKETISATION_MS) -> float:
    """Ta of G.107 in ms: one way through the network, and what sender and receiver add."""
    return network_ms + jitter_buffer_ms + packetisation_ms


def delay_impairment(mouth_to_ear_ms: float) -> float:
    """Idd of G.107 section 7.4, for the whole way in ms (``mouth_to_ear_ms``), not for the network alone.

    Raises ValueError for a delay that is negative or not finite.
    """
    if not 0 <= mouth_to_ear_ms < math.inf:
        raise ValueError(f"delay is {mouth_to_ear_ms} ms, expected 0 or more")
    if mouth_to_ear_ms <= DELAY_WITHOUT_IMPAIRMENT_MS:
        return 0.0
    x = math.log2(mouth_to_ear_ms / DELAY_WITHOUT_IMPAIRMENT_MS)
    return 25 * (math.pow(1 + x**6, 1 / 6) - 3 * math.pow(1 + (x / 3) ** 6, 1 / 6) + 2)


def effective_equipment_impairment(codec: Codec, missing_percent: float, burst_ratio: float = 1.0) -> float:
    """Ie,eff of G.107 section 7.5.

    ``missing_percent`` (Ppl) is 0 to 100 and counts every packet that was not there to be played, lost or late.
    ``burst_ratio`` (BurstR) is 1 for random losses and larger for losses in runs. Raises ValueError for other values.
    """
    if not 0 <= missing_percent <= 100:
        raise ValueError(f"missing packets are {missing_percent} %, expected 0 to 100")
    if not 1 <= burst_ratio < math.inf:
        raise ValueError(f"burst ratio is {burst_ratio}, expected 1 or more")
    share = missing_percent / (missing_percent / burst_ratio + codec.bpl)
    return codec.ie + (95 - codec.ie) * share


def r_factor(codec: Codec, mouth_to_ear_ms: float, missing_percent: float, burst_ratio: float = 1.0) -> float:
    """R of G.107 section 7.1: 93.2 at best. Long bursts bring it below 0, which ``mos`` accepts.

    Units and ValueError as for ``delay_impairment`` and ``effective_equipment_impairment``.
    """
    delay = delay_impairment(mouth_to_ear_ms)
    return R_WITH_DEFAULTS - delay - effective_equipment_impairment(codec, missing_percent, burst_ratio)


def mos(r: float) -> float:
    """MOS-CQE of an R factor (G.107 Annex B): 1 to 4.5."""
    if r <= 0:
        return MIN_MOS
    if r >= 100:
        return MAX_MOS
    # Between 0 and about 6.5 the polynomial falls below 1, which is not a valid score.
    return max(MIN_MOS, 1 + 0.035 * r + 7e-6 * r * (r - 60) * (100 - r))
