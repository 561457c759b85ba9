"""Cuts a TURN stream into units: STUN messages and ChannelData (RFC 8489 section 6.2.2, RFC 8656 section 12.5).

It is the obvious twin of ``framing.pxd`` in the compiled plane; property tests compare the two.
"""

from __future__ import annotations

from enum import StrEnum

from relay.wire.stun import MAGIC_COOKIE_BYTES

# The longest unit on a stream: a STUN message of length 65532. (A ChannelData of 65535 bytes takes 65540.)
MAX_UNIT_BYTES = 20 + 65532


class FramingFault(StrEnum):
    """Why a stream cannot be cut any further. After a fault nothing is re-synchronised."""

    FIRST_BYTE = "first_byte"  # top bit set: neither STUN nor ChannelData
    STUN_LENGTH = "stun_length"  # not a multiple of four
    MAGIC_COOKIE = "magic_cookie"


def measure_unit(head: bytes) -> tuple[int, int] | FramingFault | None:
    """Measure the unit that begins with ``head``. Returns (size, size on the stream), a fault, or None for "need more".

    The two sizes differ by the padding of ChannelData. A fault is seen with the first byte that shows it, so
    the verdict does not depend on how the stream was split.
    """
    if not head:
        return None
    if head[0] & 0x80:
        return FramingFault.FIRST_BYTE
    if head[0] & 0x40:
        if len(head) < 4:
            return None
        size = 4 + int.from_bytes(head[2:4])
        return size, size + (-size & 3)
    if len(head) >= 4 and head[3] & 3:
        return FramingFault.STUN_LENGTH
    if not MAGIC_COOKIE_BYTES.startswith(head[4:8]):
        return FramingFault.MAGIC_COOKIE
    if len(head) < 8:
        return None
    size = 20 + int.from_bytes(head[2:4])
    return size, size


class StreamCutter:
    """Collects bytes and gives whole units. It holds at most one unit that is not complete yet."""

    def __init__(self) -> None:
        self.fault: FramingFault | None = None
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their unit."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream, and return the units that are complete, ChannelData without padding.

        After a broken unit ``fault`` is set: the units before it are still returned, and later bytes are ignored.
        """
        if self.fault is not None:
            return []
        data = self._rest + data
        units: list[bytes] = []
        offset = 0
        while True:
            measured = measure_unit(data[offset : offset + 8])
            if isinstance(measured, FramingFault):
                self.fault = measured
                self._rest = b""
                return units
            if measured is None or offset + measured[1] > len(data):
                self._rest = data[offset:]
                return units
            units.append(data[offset : offset + measured[0]])
            offset += measured[1]
