"""IP packets around datagrams: byte for byte, and every length and address by a reader of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address
from relay.wire.udp import build_udp_packet
from tests.support.pcapng import read_udp
from tests.support.properties import repeatable

V4 = (Address("192.0.2.1", 50000), Address("198.51.100.7", 3478))
V6 = (Address("2001:db8::1", 50000), Address("2001:db8::7", 3478))


def test_an_ipv4_packet() -> None:
    header = "4500 0020 0000 4000 4011 4e91 c0000201 c6336407"
    assert build_udp_packet(*V4, b"abcd").hex() == (header + "c350 0d96 000c 7dec 61626364").replace(" ", "")


def test_an_ipv6_packet() -> None:
    addresses = "20010db8000000000000000000000001 20010db8000000000000000000000007"
    expected = "60000000 000b 11 40" + addresses + "c350 0d96 000b 0f15 616263"
    assert build_udp_packet(*V6, b"abc").hex() == expected.replace(" ", "")


@repeatable
@given(
    st.sampled_from([V4, V6, V4[::-1], V6[::-1]]),
    st.one_of(
        st.binary(max_size=64), st.builds(lambda n, fill: fill * n, st.integers(0, 65_507), st.binary(max_size=1))
    ),
)
def test_lengths_and_checksums_are_right(ends: tuple[Address, Address], data: bytes) -> None:
    assert read_udp(build_udp_packet(*ends, data)) == (*ends, data)


def test_a_checksum_of_zero_is_sent_as_all_ones() -> None:
    """RFC 768: zero stands for "no checksum"."""
    whole = build_udp_packet(*V4, b"\0\0")
    checksum = whole[26:28]
    assert build_udp_packet(*V4, checksum)[26:28] == b"\xff\xff"


@pytest.mark.parametrize(("ends", "most"), [(V4, 65_507), (V6, 65_527)])
def test_the_longest(ends: tuple[Address, Address], most: int) -> None:
    assert read_udp(build_udp_packet(*ends, bytes(most)))[2] == bytes(most)
    with pytest.raises(ValueError, match="more than a datagram holds"):
        build_udp_packet(*ends, bytes(most + 1))


@pytest.mark.parametrize("target", [V6[0], Address("relay.example", 1)])
def test_two_families_and_names_are_refused(target: Address) -> None:
    with pytest.raises(ValueError, match=r"families|not appear"):
        build_udp_packet(V4[0], target, b"")
