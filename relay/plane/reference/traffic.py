"""What a unit is, by its first bytes: RFC 7983, and RFC 5761 for RTCP among RTP.

Over CONNECT-UDP a unit is any datagram of media, also bare RTP or an empty one.
"""

from __future__ import annotations

from relay.plane.api import Traffic
from relay.wire import stun
from relay.wire.channeldata import HEADER_BYTES
from relay.wire.rtp import is_rtcp
from relay.wire.stun import AttributeType, MessageClass, Method, is_stun, message_type

_DATA_INDICATION = message_type(Method.DATA, MessageClass.INDICATION).to_bytes(2)


def traffic_of(unit: bytes) -> Traffic:
    """The class of a unit.

    A Data indication is media or data, never control: a client that wants its checks to go first binds a channel.
    """
    if len(unit) >= HEADER_BYTES and unit[0] & 0xC0 == 0x40:
        return _kind(unit[HEADER_BYTES : HEADER_BYTES + int.from_bytes(unit[2:HEADER_BYTES])])
    if unit.startswith(_DATA_INDICATION) and is_whole_stun(unit):
        data = find_attribute(unit, AttributeType.DATA)
        return Traffic.DATA if data is not None and _kind(data) is Traffic.DATA else Traffic.MEDIA
    return _kind(unit)


def is_from_peer(unit: bytes) -> bool:
    """True for what a far peer sends, False for the upstream's own STUN."""
    return not unit or unit[0] >= 0x40


def _kind(payload: bytes) -> Traffic:
    # An empty datagram is a sign of life, and counts as RTP.
    first = payload[0] if payload else 0x80
    # The connectivity checks and consent of ICE; change_cipher_spec, alert and handshake of DTLS.
    if 20 <= first <= 22 or is_whole_stun(payload):
        return Traffic.CONTROL
    if first >> 6 != 2:
        return Traffic.DATA
    return Traffic.RTCP if is_rtcp(payload) else Traffic.MEDIA


def is_whole_stun(datagram: bytes) -> bool:
    """True if the datagram is one STUN message, and nothing else."""
    size = len(datagram)
    return is_stun(datagram) and not size & 3 and stun.HEADER_BYTES + int.from_bytes(datagram[2:4]) == size


def find_attribute(message: bytes, kind: int) -> bytes | None:
    """The value of the first attribute of this type, wherever it is, as a server might see it. None without one."""
    offset = stun.HEADER_BYTES
    while offset + 4 <= len(message):
        length = int.from_bytes(message[offset + 2 : offset + 4])
        if offset + 4 + length > len(message):
            return None
        if int.from_bytes(message[offset : offset + 2]) == kind:
            return message[offset + 4 : offset + 4 + length]
        offset += 4 + length + (-length & 3)
    return None


def rtp_packet(unit: bytes) -> bytes | None:
    """The RTP or RTCP packet that a unit is, or that is whole in a ChannelData message. None if there is none."""
    if unit[:1] < b"\x40":
        return None
    packet = unit
    if unit[0] < 0x80:
        packet = unit[HEADER_BYTES : HEADER_BYTES + int.from_bytes(unit[2:HEADER_BYTES])]
        if len(packet) < int.from_bytes(unit[2:HEADER_BYTES]):
            return None
    return packet if packet and packet[0] >> 6 == 2 else None


def is_media(datagram: bytes) -> bool:
    """True if the first byte may begin STUN, DTLS, ChannelData, RTP or RTCP (RFC 7983). An empty datagram passes."""
    first = datagram[0] if datagram else 0
    return first <= 3 or 20 <= first <= 79 or 128 <= first <= 191
