"""What a flow may carry in a second, and all flows of a user together. The compiled twin is ``allowance.pxd``."""

from __future__ import annotations

from dataclasses import dataclass

# Packets and bytes are counted anew after this long.
ALLOWANCE_S = 1.0
_DATA_INDICATION = b"\x00\x17"


@dataclass(slots=True)
class Allowance:
    """So many packets and bytes in each second; 0 is no bound."""

    max_packets: int = 0
    max_bytes: int = 0
    _since: float = float("-inf")
    _packets: int = 0
    _bytes: int = 0

    def takes(self, now: float, unit: bytes) -> bool:
        """Count a packet, unless there have been too many.

        STUN has the same room once more: over TCP no client sends it again.
        """
        if now - self._since >= ALLOWANCE_S:
            self._since, self._packets, self._bytes = now, 0, 0
        is_stun = bool(unit) and unit[0] <= 3
        if 0 < self.max_packets << is_stun <= self._packets:
            return False
        if 0 < self.max_bytes << is_stun < self._bytes + len(unit):
            return False
        self._packets += 1
        self._bytes += len(unit)
        return True


@dataclass(slots=True, weakref_slot=True)
class UserAllowance:
    """What all flows of one user may carry in a second, each way."""

    sent: Allowance
    received: Allowance


def is_of_peer(unit: bytes) -> bool:
    """True for what a far peer has sent, in ChannelData, in a Data indication or as it is."""
    return len(unit) < 2 or unit[0] > 3 or unit[:2] == _DATA_INDICATION
