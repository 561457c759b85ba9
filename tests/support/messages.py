"""What tests send: STUN messages that say their number, the answers to them, and voice in ChannelData."""

from __future__ import annotations

from relay.addresses import Address
from relay.wire.channeldata import build_channel_data
from relay.wire.rtp import RtpHeader, build_packet
from relay.wire.stun import (
    AttributeType,
    MessageClass,
    Method,
    build_error_code,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)

# One packet of G.711 voice, RTP as far as its first byte says.
VOICE = b"\x80" + bytes(range(1, 160)) + b"0123456789ab"
# What ``voice`` sends.
FRAME_BYTES = 1200
SSRC = 7
# Where ``allocated`` says that the allocation is.
RELAYED = Address("192.0.2.1", 50000)


def stun(number: int, method: int = Method.BINDING, message_class: MessageClass = MessageClass.REQUEST) -> bytes:
    """A message whose transaction id says its number."""
    return build_message(method, message_class, number.to_bytes(12))


def answer(request: bytes, *attributes: tuple[int, bytes], error: int = 0, key: bytes | None = None) -> bytes:
    """The upstream's answer to a request, with a key an authenticated one."""
    parsed = parse_message(request)
    kind = MessageClass.ERROR if error else MessageClass.SUCCESS
    coded = [(AttributeType.ERROR_CODE, build_error_code(error))] if error else []
    return build_message(parsed.method, kind, parsed.transaction_id, [*coded, *attributes], integrity_key=key)


def allocated(request: bytes, lifetime_s: int = 600, *, key: bytes | None = None, address: Address = RELAYED) -> bytes:
    """A success for an Allocate request."""
    relayed = build_xor_address(address, parse_message(request).transaction_id)
    return answer(
        request,
        (AttributeType.XOR_RELAYED_ADDRESS, relayed),
        (AttributeType.LIFETIME, build_uint32(lifetime_s)),
        key=key,
    )


HELLO = stun(0, message_class=MessageClass.INDICATION)


def voice(number: int, size: int = FRAME_BYTES) -> bytes:
    """An RTP packet in ChannelData, ``size`` bytes together, that says its number."""
    payload = number.to_bytes(4) + bytes(size - 20)
    # 2 ms of G.711 each: the clock of a stream goes no faster than these tests send.
    return build_channel_data(0x4001, build_packet(RtpHeader(0, number & 0xFFFF, 16 * number, SSRC), payload))


def number_of(unit: bytes) -> int:
    """The number of ``voice``."""
    return int.from_bytes(unit[16:20])
