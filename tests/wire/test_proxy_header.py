"""The PROXY header: made by hand as its specification has it, at every split, and broken in every place."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address
from relay.wire.proxy_header import (
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    V2_SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    crc32c,
    parse_proxy_header,
)
from tests.support.properties import repeatable

TCP4, TCP6, UNIX, UNSPECIFIED = 0x11, 0x21, 0x31, 0x00
LOCAL, PROXY = 0x20, 0x21
V4 = bytes([192, 0, 2, 7, 203, 0, 113, 1]) + struct.pack("!HH", 40_000, 443)
V6 = (
    ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("2001:db8::1").packed + struct.pack("!HH", 1, 443)
)
MAPPED = ipaddress.ip_address("::ffff:192.0.2.7").packed * 2 + struct.pack("!HH", 1, 443)


def v2(command: int, family: int, rest: bytes) -> bytes:
    return V2_SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2) + rest


def with_checksum(family: int, addresses: bytes) -> bytes:
    empty = v2(PROXY, family, addresses + b"\x03\0\x04" + bytes(4))
    return empty[:-4] + crc32c(empty).to_bytes(4)


GOOD = [
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 40000 443\r\n", 1, Address("192.0.2.7", 40_000)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", 1, Address("255.255.255.255", 65_535)),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 0 443\r\n", 1, Address("2001:db8::7", 0)),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 5 443\r\n", 1, Address("192.0.2.7", 5)),
    (b"PROXY UNKNOWN\r\n", 1, None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", 1, None),
    (v2(PROXY, TCP4, V4), 2, Address("192.0.2.7", 40_000)),
    (v2(PROXY, TCP6, V6), 2, Address("2001:db8::7", 1)),
    (v2(PROXY, TCP6, MAPPED), 2, Address("192.0.2.7", 1)),
    (v2(PROXY, TCP4, V4 + b"\x05\0\x03abc\x04\0\0"), 2, Address("192.0.2.7", 40_000)),
    (v2(PROXY, UNIX, bytes(216)), 2, None),
    (v2(PROXY, UNSPECIFIED, b""), 2, None),
    (v2(PROXY, UNSPECIFIED, b"whatever"), 2, None),
    (v2(LOCAL, UNSPECIFIED, b""), 2, None),
    (v2(LOCAL, TCP4, b"cut"), 2, None),
    (with_checksum(TCP4, V4), 2, Address("192.0.2.7", 40_000)),
    (v2(PROXY, TCP4, V4 + b"\x04\x0f\xf1" + bytes(MAX_V2_BYTES - 16 - 12 - 3)), 2, Address("192.0.2.7", 40_000)),
]


@pytest.mark.parametrize(("header", "version", "client"), GOOD)
def test_a_header_is_read_at_every_split(header: bytes, version: int, client: Address | None) -> None:
    for size in range(len(header)):
        assert parse_proxy_header(header[:size]) is None
    for behind in (b"", b"\x16\x03\x01", b"\r\n"):
        assert parse_proxy_header(header + behind) == ProxyHeader(version, client, len(header))


BROKEN = [
    (b"\x16\x03\x01\0\x05", "expected a PROXY header first"),
    (b"GET / HTTP/1.0\r\n\r\n", "expected a PROXY header first"),
    (b"PROXYTCP4", "expected a PROXY header first"),
    (b"\r\n\r\n\0\r\nQUIX", "expected a PROXY header first"),
    (b"PROXY \r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY UDP4 192.0.2.7 203.0.113.1 1 2\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4  192.0.2.7 203.0.113.1 1 2\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 1\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 1 2 3\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 01 2\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 1 2\n\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY UNKNOWN\0\r\n", "version 1: expected PROXY, TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 65536 2\r\n", "version 1: expected an address and a port of TCP4"),
    (b"PROXY TCP4 192.0.2.7 203.0.113.1 1 65536\r\n", "version 1: expected an address and a port of TCP4"),
    (b"PROXY TCP4 192.0.2.256 203.0.113.1 1 2\r\n", "version 1: expected an address and a port of TCP4"),
    (b"PROXY TCP4 2001:db8::7 203.0.113.1 1 2\r\n", "version 1: expected an address and a port of TCP4"),
    (b"PROXY TCP6 2001:db8::7 203.0.113.1 1 2\r\n", "version 1: expected an address and a port of TCP6"),
    (
        b"PROXY UNKNOWN " + b"a" * (MAX_V1_BYTES - 14),
        f"version 1: expected the line to end within {MAX_V1_BYTES} bytes",
    ),
    (b"PROXY UNKNOWN " + b"a" * MAX_V1_BYTES + b"\r\n", f"expected the line to end within {MAX_V1_BYTES} bytes"),
    (v2(0x11, TCP4, V4), "version 2: expected version 2, and the command LOCAL or PROXY"),
    (v2(0x22, TCP4, V4), "version 2: expected version 2, and the command LOCAL or PROXY"),
    (v2(PROXY, 0x12, V4), "version 2: expected a client over TCP"),
    (v2(PROXY, 0x41, V4), "version 2: expected a client over TCP"),
    (v2(PROXY, 0x10, V4), "version 2: expected a client over TCP"),
    (v2(PROXY, TCP4, V4[:-1]), "version 2: expected room for both addresses"),
    (v2(PROXY, TCP6, V4), "version 2: expected room for both addresses"),
    (v2(PROXY, TCP4, V4 + b"\x05\0"), "version 2: expected whole values after the addresses"),
    (v2(PROXY, TCP4, V4 + b"\x05\0\x03ab"), "version 2: expected whole values after the addresses"),
    (with_checksum(TCP4, V4)[:-1] + b"\0", "version 2: expected another checksum"),
    (v2(PROXY, TCP4, V4 + b"\x03\0\x02ab"), "version 2: expected another checksum"),
    (v2(PROXY, TCP4, V4)[:14] + b"\x10\x01", f"version 2: expected at most {MAX_V2_BYTES} bytes"),
]


@pytest.mark.parametrize(("header", "expected"), BROKEN)
def test_a_broken_header_says_what_was_expected(header: bytes, expected: str) -> None:
    with pytest.raises(ProxyHeaderError, match=expected):
        parse_proxy_header(header)


def test_the_checksum_of_the_specification() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@repeatable
@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21\x11\0"]), st.binary())
def test_any_bytes_give_a_header_or_a_fault_or_need_more(start: bytes, rest: bytes) -> None:
    try:
        header = parse_proxy_header(start + rest)
    except ProxyHeaderError:
        return
    assert header is None or 0 < header.size <= len(start + rest)
