"""The RTP header (RFC 3550 section 5.1): the part of SRTP that is not encrypted."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from relay.errors import PeerError

HEADER_BYTES = 12
# RFC 5761 section 4: on a shared port, packet types 192-223 are RTCP.
_RTCP_PACKET_TYPES = range(192, 224)
_HEADER = struct.Struct("!BBHII")


class RtpError(PeerError):
    """The bytes are not an RTP packet."""


@dataclass(frozen=True, slots=True)
class RtpHeader:
    """The fixed header. ``timestamp`` counts in units of the payload's clock, 8000 a second for G.711."""

    payload_type: int
    sequence_number: int
    timestamp: int
    ssrc: int
    marker: bool = False
    padding: bool = False
    extension: bool = False
    csrc_count: int = 0


def is_rtcp(packet: bytes) -> bool:
    """True if the packet is RTCP rather than RTP, on a port that carries both (RFC 5761)."""
    return len(packet) >= 2 and packet[0] >> 6 == 2 and packet[1] in _RTCP_PACKET_TYPES


def parse_header(packet: bytes) -> RtpHeader:
    """Read the header of one RTP packet. Raises RtpError."""
    if len(packet) < HEADER_BYTES:
        raise RtpError(f"{len(packet)} bytes, expected at least {HEADER_BYTES}")
    first, second, sequence_number, timestamp, ssrc = _HEADER.unpack_from(packet)
    if first >> 6 != 2:
        raise RtpError(f"version {first >> 6}, expected 2")
    csrc_count = first & 0x0F
    if len(packet) < HEADER_BYTES + 4 * csrc_count:
        raise RtpError(f"{csrc_count} contributing sources in {len(packet)} bytes")
    return RtpHeader(
        payload_type=second & 0x7F,
        sequence_number=sequence_number,
        timestamp=timestamp,
        ssrc=ssrc,
        marker=bool(second & 0x80),
        padding=bool(first & 0x20),
        extension=bool(first & 0x10),
        csrc_count=csrc_count,
    )


def build_packet(header: RtpHeader, payload: bytes) -> bytes:
    """Write header and payload. Contributing sources and extensions count as payload."""
    first = 0x80 | header.padding << 5 | header.extension << 4 | header.csrc_count
    second = header.marker << 7 | header.payload_type
    return _HEADER.pack(first, second, header.sequence_number, header.timestamp, header.ssrc) + payload
