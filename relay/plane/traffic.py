"""What a unit is, by its first bytes: RFC 7983, and RFC 5761 for RTCP among RTP."""

from __future__ import annotations

from relay.plane.api import Traffic
from relay.wire.channeldata import HEADER_BYTES
from relay.wire.rtp import is_rtcp
from relay.wire.stun import MessageClass, Method, message_type

_DATA_INDICATION = message_type(Method.DATA, MessageClass.INDICATION).to_bytes(2)


def traffic_of(unit: bytes) -> Traffic:
    """Its class.

    Data indications are media whatever they carry: a client that wants its checks to go first binds a channel.
    """
    if unit[0] < 0x40:
        return Traffic.MEDIA if unit.startswith(_DATA_INDICATION) else Traffic.CONTROL
    first = unit[HEADER_BYTES] if len(unit) > HEADER_BYTES else 0xFF
    # The connectivity checks and consent of ICE, and DTLS.
    if first <= 3 or 20 <= first <= 63:
        return Traffic.CONTROL
    return Traffic.RTCP if is_rtcp(unit[HEADER_BYTES : HEADER_BYTES + 2]) else Traffic.MEDIA


def rtp_packet(unit: bytes) -> bytes | None:
    """The RTP or RTCP packet in a ChannelData message, or None."""
    if unit[0] >= 0x40 and len(unit) > HEADER_BYTES and unit[HEADER_BYTES] >> 6 == 2:
        return unit[HEADER_BYTES:]
    return None
