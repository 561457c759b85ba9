"""What a relay can see of one RTP stream: the figures of one SSRC in one direction, from its first packet.

The figures only grow, so the difference of two readings describes the time between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Uplink is from the client to the upstream."""

    UPLINK = "uplink"
    DOWNLINK = "downlink"


@dataclass(frozen=True, slots=True)
class RtpStream:
    """One SSRC in one direction: the uplink as it came from the client, the downlink as it left to the client.

    ``expected`` counts from the first to the highest sequence number, wraps included (RFC 3550 section A.3); a source
    that starts over adds what its new range expects. ``late`` packets came later than the fastest ones by more than the
    playout deadline. ``missing_runs`` counts runs of packets that were not there to be played, lost or late.
    ``clock_hz`` is 0 while it is not known; then ``jitter_us`` and ``late`` are 0, too. ``pauses`` is a histogram of
    the time between packets: (end in us, count), the end exclusive, without empty buckets.
    """

    direction: Direction
    ssrc: int
    payload_type: int
    clock_hz: int
    packets: int
    duplicates: int
    reordered: int
    restarts: int
    expected: int
    late: int
    missing_runs: int
    jitter_us: int
    stalls: int  # pauses of more than 200 ms
    longest_pause_us: int
    idle_us: int  # since the last packet
    pauses: Sequence[tuple[int, int]] = ()

    @property
    def lost(self) -> int:
        """How many packets never came. 0 if duplicates hide this."""
        return max(0, self.expected - (self.packets - self.duplicates))
