"""What a host counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from relay.turn.drops import Drop


@dataclass
class Counters:
    """What was carried: datagrams from clients to peers (up) and back (down), and the bytes of their data."""

    uplink_packets: int = 0
    uplink_bytes: int = 0
    downlink_packets: int = 0
    downlink_bytes: int = 0
    drops: Counter[Drop] = field(default_factory=Counter)

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.uplink_packets + other.uplink_packets,
            self.uplink_bytes + other.uplink_bytes,
            self.downlink_packets + other.downlink_packets,
            self.downlink_bytes + other.downlink_bytes,
            self.drops + other.drops,
        )
