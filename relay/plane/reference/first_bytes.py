"""The first bytes inside TLS decide what a connection carries, once and for all.

ChannelData never comes first: with 0x40 to 0x7F it would begin like a method of HTTP ("GE" is 0x4745).
"""

from __future__ import annotations

from enum import Enum

from relay.wire.stream import FramingFault, measure_unit

# RFC 7443. Chromium sends no ALPN for TURN, so its absence says nothing.
TURN_ALPN = frozenset({"stun.turn", "stun.nat-discovery"})
# The longest registered method has 17 letters (UPDATEREDIRECTREF). With the space 18 bytes decide.
_METHOD_BYTES = 18


class FirstBytes(Enum):
    """What the connection carries."""

    TURN = "turn"
    HTTP = "http"
    UNKNOWN = "unknown"


def decide(data: bytes, alpn: str | None) -> FirstBytes | None:
    """Judge the bytes that have come so far, however they were split. Returns None if it needs more."""
    if alpn in TURN_ALPN:
        return FirstBytes.TURN
    if not data:
        return None
    if data[0] < 0x40:
        return _decide_stun(data)
    return _decide_http(data)


def _decide_stun(data: bytes) -> FirstBytes | None:
    measured = measure_unit(data[:8])
    if measured is None:
        return None
    return FirstBytes.UNKNOWN if isinstance(measured, FramingFault) else FirstBytes.TURN


def _decide_http(data: bytes) -> FirstBytes | None:
    head = data[:_METHOD_BYTES]
    method, space, _ = head.partition(b" ")
    if not (method.isalpha() and method.isupper() and method.isascii()):
        return FirstBytes.UNKNOWN
    if space:
        # "PRI * HTTP/2.0" is the preface of HTTP/2, which is not offered.
        return FirstBytes.HTTP if len(method) >= 3 and method != b"PRI" else FirstBytes.UNKNOWN
    return None if len(head) < _METHOD_BYTES else FirstBytes.UNKNOWN
