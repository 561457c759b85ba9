"""ChannelData messages (RFC 8656 section 12.4): channel number, length, data; padded over streams only."""

from __future__ import annotations

import struct
from typing import NamedTuple

from relay.errors import PeerError

HEADER_BYTES = 4
# RFC 8656 section 12 allows these to be bound.
FIRST_CHANNEL = 0x4000
LAST_CHANNEL = 0x4FFF
LAST_RFC5766_CHANNEL = 0x7FFF

_HEADER = struct.Struct("!HH")


class ChannelDataError(PeerError):
    """The bytes are not a ChannelData message."""


class ChannelData(NamedTuple):
    """The number of the channel and the data, without padding."""

    channel_number: int
    data: bytes


def is_channel_data(data: bytes) -> bool:
    """True if the top two bits are 01. Numbers up to 0x7FFF are framed this way (RFC 5766), but cannot be bound."""
    return len(data) >= HEADER_BYTES and data[0] & 0xC0 == 0x40


def parse_channel_data(message: bytes) -> ChannelData:
    """Read one message. Bytes after the data are padding (section 12.5). Raises ChannelDataError."""
    if not is_channel_data(message):
        raise ChannelDataError(f"no ChannelData in {len(message)} bytes that begin with {message[:1].hex()!r}")
    channel_number, length = _HEADER.unpack_from(message)
    if HEADER_BYTES + length > len(message):
        raise ChannelDataError(f"length {length} in a message of {len(message)} bytes")
    return ChannelData(channel_number, message[HEADER_BYTES : HEADER_BYTES + length])


def build_channel_data(channel_number: int, data: bytes, *, padded: bool = False) -> bytes:
    """Write one message. ``padded``: with zero bytes to a multiple of four, as streams require."""
    message = _HEADER.pack(channel_number, len(data)) + data
    return pad(message) if padded else message


def pad(message: bytes) -> bytes:
    """Fill a message to a multiple of four bytes with zeroes."""
    missing = -len(message) & 3
    return message + bytes(missing) if missing else message
