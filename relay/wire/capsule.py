"""The capsule protocol (RFC 9297) as CONNECT-UDP has it (RFC 9298): UDP payloads in DATAGRAM capsules."""

from __future__ import annotations

# RFC 9297 section 3.5 and RFC 9298 section 5: the type of a DATAGRAM capsule, the context of UDP payloads.
DATAGRAM = 0
UDP_CONTEXT = 0
# RFC 9298 section 5: what UDP can carry.
MAX_UDP_PAYLOAD_BYTES = 65_527
# The most that we keep: no path to an upstream carries more in one packet.
MAX_PAYLOAD_BYTES = 2048
# RFC 9000 section 16.
MAX_VARINT = (1 << 62) - 1
# The longest header (type and length), and the context id after it.
_MAX_HEAD_BYTES = 24


def parse_varint(data: bytes, offset: int = 0) -> tuple[int, int] | None:
    """Read a variable-length integer (RFC 9000 section 16), in any of its lengths.

    Returns the value and the offset after it, or None for "need more".
    """
    if offset >= len(data):
        return None
    end = offset + (1 << (data[offset] >> 6))
    if end > len(data):
        return None
    value = int.from_bytes(data[offset:end])
    return value & ((1 << (8 * (end - offset) - 2)) - 1), end


def build_varint(value: int) -> bytes:
    """Write a variable-length integer in its shortest form. Raises ValueError beyond 2^62 - 1."""
    for exponent in range(4):
        bits = (8 << exponent) - 2
        if 0 <= value < 1 << bits:
            return (value | exponent << bits).to_bytes(1 << exponent)
    raise ValueError(f"{value}: expected 0 to {MAX_VARINT}")


def build_capsule(capsule_type: int, value: bytes) -> bytes:
    """Write one capsule."""
    return build_varint(capsule_type) + build_varint(len(value)) + value


def build_datagram(payload: bytes) -> bytes:
    """The DATAGRAM capsule of one UDP payload."""
    return build_capsule(DATAGRAM, build_varint(UDP_CONTEXT) + payload)


class CapsuleCutter:
    """Collects bytes and gives UDP payloads. Of a capsule it keeps only a payload that is wanted."""

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        """Longer payloads are skipped."""
        # Why the stream cannot be cut any further.
        self.fault: str | None = None
        # Payloads that were longer than wanted, from the start.
        self.oversize = 0
        self._max_payload_bytes = max_payload_bytes
        self._rest = bytearray()
        # How many bytes of something unwanted are still to come.
        self._skip = 0

    @property
    def within(self) -> bool:
        """True if a capsule has begun but is not complete."""
        return bool(self._rest or self._skip)

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their capsule."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream, and return the payloads that are complete.

        Other capsules and other contexts are skipped as they come. After a broken capsule ``fault`` is set: the
        payloads before it are still returned, and later bytes are ignored.
        """
        payloads: list[bytes] = []
        self._rest += data
        while self.fault is None and self._pass_over():
            payload = self._next_payload()
            if payload is not None:
                payloads.append(payload)
            elif not self._skip:
                break
        if self.fault is not None:
            self._rest.clear()
        return payloads

    def _pass_over(self) -> bool:
        """Drop what is not wanted. Returns True if something comes after it."""
        passed = min(self._skip, len(self._rest))
        del self._rest[:passed]
        self._skip -= passed
        return bool(self._rest)

    def _next_payload(self) -> bytes | None:
        """The next payload, or None for "need more", something to skip, or a fault."""
        head = bytes(self._rest[:_MAX_HEAD_BYTES])
        measured = _parse_header(head)
        if measured is None:
            return None
        capsule_type, length, start = measured
        end = start + length
        if capsule_type != DATAGRAM:
            self._skip = end
            return None
        if length == 0 or (len(head) > start and start + (1 << (head[start] >> 6)) > end):
            self.fault = "no context id"
            return None
        context = parse_varint(head, start)
        if context is None:
            return None
        return self._next_datagram(*context, end)

    def _next_datagram(self, context: int, start: int, end: int) -> bytes | None:
        if context != UDP_CONTEXT:
            self._skip = end
        elif end - start > MAX_UDP_PAYLOAD_BYTES:
            self.fault = f"datagram of {end - start} bytes"
        elif end - start > self._max_payload_bytes:
            self.oversize += 1
            self._skip = end
        elif len(self._rest) >= end:
            payload = bytes(self._rest[start:end])
            del self._rest[:end]
            return payload
        return None


def _parse_header(head: bytes) -> tuple[int, int, int] | None:
    """Type, length and where the value begins, or None for "need more"."""
    capsule_type = parse_varint(head)
    if capsule_type is None:
        return None
    length = parse_varint(head, capsule_type[1])
    return None if length is None else (capsule_type[0], *length)
