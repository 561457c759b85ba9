"""What a unit is, by its first bytes: RFC 7983, and RFC 5761 for RTCP among RTP.

Over CONNECT-UDP a unit is any datagram of media: bare RTP too, or nothing at all.
"""

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
    if not unit:
        return Traffic.MEDIA
    if unit[0] < 0x40:
        return Traffic.MEDIA if unit.startswith(_DATA_INDICATION) else Traffic.CONTROL
    if unit[0] >= 0x80:
        return Traffic.RTCP if is_rtcp(unit) else Traffic.MEDIA
    first = unit[HEADER_BYTES] if len(unit) > HEADER_BYTES else 0xFF
    # The connectivity checks and consent of ICE, and DTLS.
    if first <= 3 or 20 <= first <= 63:
        return Traffic.CONTROL
    return Traffic.RTCP if is_rtcp(unit[HEADER_BYTES : HEADER_BYTES + 2]) else Traffic.MEDIA


def rtp_packet(unit: bytes) -> bytes | None:
    """The RTP or RTCP packet that a unit is, or that a ChannelData message holds whole; or None."""
    if unit[:1] < b"\x40":
        return None
    packet = unit
    if unit[0] < 0x80:
        packet = unit[HEADER_BYTES : HEADER_BYTES + int.from_bytes(unit[2:HEADER_BYTES])]
        if len(packet) < int.from_bytes(unit[2:HEADER_BYTES]):
            return None
    return packet if packet and packet[0] >> 6 == 2 else None


def is_media(datagram: bytes) -> bool:
    """True if the first byte is one of STUN, DTLS, ChannelData, RTP or RTCP (RFC 7983); an empty datagram passes."""
    first = datagram[0] if datagram else 0
    return first <= 3 or 20 <= first <= 79 or 128 <= first <= 191
