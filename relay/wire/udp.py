"""Whole IP packets around UDP datagrams, with correct lengths and checksums: RFC 791, RFC 8200, RFC 768.

Captures need them. The relay does not see the headers that the kernel writes, but they follow from the two addresses.
Time to live and flags are made up.
"""

from __future__ import annotations

import ipaddress
import struct

from relay.addresses import Address

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")

UDP_HEADER_BYTES = _UDP.size
PROTOCOL_UDP = 17
TIME_TO_LIVE = 64
DONT_FRAGMENT = 0x4000
# The largest payloads: the length fields of IPv4 and IPv6 have 16 bits.
MAX_UDP_BYTES_V4 = 0xFFFF - _IPV4.size - _UDP.size
MAX_UDP_BYTES_V6 = 0xFFFF - _UDP.size


def build_udp_packet(source: Address, target: Address, data: bytes) -> bytes:
    """The IP packet that carries a datagram between two literal addresses of one family.

    Raises ValueError for names, for two families, and for more than an IP packet holds.
    """
    sender, receiver = ipaddress.ip_address(source.host), ipaddress.ip_address(target.host)
    if sender.version != receiver.version:
        raise ValueError(f"{source} and {target} are of two families")
    if len(data) > (MAX_UDP_BYTES_V4 if sender.version == 4 else MAX_UDP_BYTES_V6):
        raise ValueError(f"{len(data)} bytes are more than a datagram holds")
    size = UDP_HEADER_BYTES + len(data)
    pseudo = sender.packed + receiver.packed + struct.pack("!II", size, PROTOCOL_UDP)
    checksum = _checksum(pseudo + _UDP.pack(source.port, target.port, size, 0) + data)
    udp = _UDP.pack(source.port, target.port, size, checksum) + data
    if sender.version == 6:
        return _IPV6.pack(6 << 28, size, PROTOCOL_UDP, TIME_TO_LIVE, sender.packed, receiver.packed) + udp
    return _ipv4_header(sender.packed, receiver.packed, size) + udp


def _ipv4_header(sender: bytes, receiver: bytes, size: int) -> bytes:
    total = _IPV4.size + size
    header = (0x45, 0, total, 0, DONT_FRAGMENT, TIME_TO_LIVE, PROTOCOL_UDP)
    # Only UDP sends all ones instead of zero.
    checksum = _checksum(_IPV4.pack(*header, 0, sender, receiver)) % 0xFFFF
    return _IPV4.pack(*header, checksum, sender, receiver)


def _checksum(data: bytes) -> int:
    """The checksum of RFC 1071, as UDP sends it: all ones instead of zero, because zero means "no checksum"."""
    # 2^16 is 1 modulo 2^16 - 1, so the remainder of the whole number is the sum of its 16-bit words.
    return 0xFFFF - int.from_bytes(data + b"\0" * (len(data) & 1)) % 0xFFFF
