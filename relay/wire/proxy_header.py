"""The PROXY protocol: what a balancer says of a connection before the client's first byte (HAProxy's specification).

A balancer in front of the relay is the client of every connection. With this header it names the real one. Version 1
is a line of text, version 2 is binary and may carry further values (TLV), which are checked and not used.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

from relay.addresses import Address, canonical_host
from relay.errors import PeerError

V1_PREFIX = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
# Section 2.1: the longest line, with its end.
MAX_V1_BYTES = 107
# Balancers add names, a unique id and facts about TLS: some hundred bytes. A client certificate may come as well.
MAX_V2_BYTES = 16 + 4096

_V2_HEAD_BYTES = 16
_V2_VERSION = 2
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _INET, _INET6, _UNIX = 0, 1, 2, 3
_STREAM = 1
_IP_BYTES = {_INET: 4, _INET6: 16}
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_TLV_HEAD_BYTES = 3
_CRC32C = 0x03
# Section 2.1: one space between the fields, decimal ports without a zero in front.
_V1_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN( [ -~]*)?")
# Castagnoli's polynomial, its bits reversed (RFC 3720 section 12.1).
_CRC32C_POLYNOMIAL = 0x82F63B78


class ProxyHeaderError(PeerError):
    """This is no PROXY header, or one that cannot be used. The text says what was expected."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """``client`` is who connected to the balancer; None if it is the balancer itself, or nobody with an IP address.

    ``size`` bytes are the header's. What follows is the client's.
    """

    version: int
    client: Address | None
    size: int


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the start of the data. Returns None while it is not whole. Raises ProxyHeaderError."""
    if not any(start[: len(data)] == data[: len(start)] for start in (V1_PREFIX, V2_SIGNATURE)):
        raise ProxyHeaderError("expected a PROXY header first")
    if data[:1] == V1_PREFIX[:1]:
        return _parse_v1(data)
    return _parse_v2(data)


# Version 1


def _parse_v1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:MAX_V1_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= MAX_V1_BYTES:
            raise ProxyHeaderError(f"version 1: expected the line to end within {MAX_V1_BYTES} bytes")
        return None
    size = len(line) + len(end)
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(1, None, size)
    found = _V1_LINE.fullmatch(line)
    if found is None:
        raise ProxyHeaderError("version 1: expected PROXY, TCP4, TCP6 or UNKNOWN, two addresses and two ports")
    family, source, destination, source_port, destination_port = (field.decode("ascii") for field in found.groups())
    client = _v1_address(family, source, source_port)
    _v1_address(family, destination, destination_port)
    return ProxyHeader(1, client, size)


def _v1_address(family: str, host: str, port: str) -> Address:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        ip = None
    if ip is None or f"TCP{ip.version}" != family or int(port) > 0xFFFF:
        raise ProxyHeaderError(f"version 1: expected an address and a port of {family}")
    return Address(canonical_host(ip), int(port))


# Version 2


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEAD_BYTES:
        return None
    version, command = divmod(data[12], 16)
    family, transport = divmod(data[13], 16)
    size = _V2_HEAD_BYTES + int.from_bytes(data[14:16])
    if version != _V2_VERSION or command not in {_LOCAL, _PROXY}:
        raise ProxyHeaderError("version 2: expected version 2, and the command LOCAL or PROXY")
    if size > MAX_V2_BYTES:
        raise ProxyHeaderError(f"version 2: expected at most {MAX_V2_BYTES} bytes")
    if len(data) < size:
        return None
    if command == _LOCAL:
        # Section 2.2: whatever else it says is to be ignored.
        return ProxyHeader(2, None, size)
    if family not in _ADDRESS_BYTES or (family and transport != _STREAM):
        raise ProxyHeaderError("version 2: expected a client over TCP")
    addresses, values = _V2_HEAD_BYTES, _V2_HEAD_BYTES + _ADDRESS_BYTES[family]
    if size < values:
        raise ProxyHeaderError("version 2: expected room for both addresses")
    if family:
        _check_values(data[:size], values)
    return ProxyHeader(2, _v2_client(family, data[addresses:values]), size)


def _v2_client(family: int, addresses: bytes) -> Address | None:
    """Both IP addresses come first, then both ports."""
    length = _IP_BYTES.get(family)
    if length is None:
        return None
    port = int.from_bytes(addresses[2 * length : 2 * length + 2])
    return Address(canonical_host(ipaddress.ip_address(addresses[:length])), port)


def _check_values(header: bytes, start: int) -> None:
    """Section 2.2: values fill the rest of the header. A checksum among them must be right (section 2.2.4)."""
    for kind, at, length in _values(header, start):
        if kind != _CRC32C:
            continue
        zeroed = header[:at] + bytes(length) + header[at + length :]
        if length != 4 or int.from_bytes(header[at : at + 4]) != crc32c(zeroed):
            raise ProxyHeaderError("version 2: expected another checksum")


def _values(header: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Each value's kind, where it is, and its length. Raises ProxyHeaderError if one is cut off."""
    while start < len(header):
        at = start + _TLV_HEAD_BYTES
        length = int.from_bytes(header[start + 1 : at])
        if at + length > len(header):
            raise ProxyHeaderError("version 2: expected whole values after the addresses")
        yield header[start], at, length
        start = at + length


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720, appendix B.4. Few balancers send it, and a header is short."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (_CRC32C_POLYNOMIAL if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF
