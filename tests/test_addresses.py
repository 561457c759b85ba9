"""Addresses: how they are read, and every network that is never relayed to, from its first to its last address."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import (
    LOOPBACK,
    NEVER_RELAYED,
    Address,
    RelayPolicy,
    canonical_host,
    parse_address,
    source_of,
    unmap,
)
from tests.support.properties import repeatable

# Section 9 of the protocol notes, written out again, so that a network that is lost from the module shows.
NEVER = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16"),
    *("3fff::/20", "5f00::/16"),
    *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
]


def permits(host: str, *allowed: str) -> bool:
    return RelayPolicy(ipaddress.ip_network(text) for text in allowed).permits(host)


# Reading


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.7:3478", Address("192.0.2.7", 3478)),
        ("turn.example:443", Address("turn.example", 443)),
        ("[2001:db8::7]:3478", Address("2001:db8::7", 3478)),
        ("[2001:DB8:0:0::7]:3478", Address("2001:db8::7", 3478)),
        ("[::]:0", Address("::", 0)),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "443", "host", "host:", ":443", "[]:443", "[::1]", "[::1]:", "[::1]443", "[::1:443"),
        *("host:-1", "host:+1", "host:65536", "host:99999999999999999999"),
        *("host:x", "host:4 43", "host:443 ", "host:\u0664\u0664"),
        *("::1:443", "2001:db8::7:443", "a:b:443", "[192.0.2.7]:443", "[host]:443", "[2001:db8::g]:443"),
        *("ho st:443", " host:443", "host\n:443", "http://host:443"),
    ],
)
def test_what_is_no_address_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|needs brackets|no spaces") as refusal:
        parse_address(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["192.0.2.7:3478", "turn.example:443", "[2001:db8::7]:3478"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("host", "literal", "ipv6"),
    [
        ("192.0.2.7", True, False),
        ("2001:db8::7", True, True),
        ("turn.example", False, False),
        ("192.0.2", False, False),
        ("192.0.2.07", False, False),
    ],
)
def test_names_and_literal_addresses_are_told_apart(host: str, literal: bool, ipv6: bool) -> None:
    address = Address(host, 1)
    assert (address.is_literal, address.is_ipv6) == (literal, ipv6)


def test_an_address_is_the_tuple_that_sockets_take() -> None:
    assert Address("192.0.2.7", 3478) == ("192.0.2.7", 3478)


# The networks that are never relayed to


def test_the_networks_are_those_of_the_registries() -> None:
    assert [str(network) for network in NEVER_RELAYED] == NEVER


@pytest.mark.parametrize("network", NEVER)
def test_first_and_last_address_are_refused_and_may_be_listed(network: str) -> None:
    first, last = ipaddress.ip_network(network)[0], ipaddress.ip_network(network)[-1]
    for address in {first, last}:
        assert not permits(str(address))
    # Addresses that wrap an IPv4 address need that one to be listed as well.
    listed = [network, *("0.0.0.0/8", "255.0.0.0/8")]
    assert permits(str(first), *listed)
    assert permits(str(last), *listed)


@pytest.mark.parametrize(
    "host",
    [
        *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"),
        *("169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0"),
        *("192.0.1.255", "192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0"),
        *("198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0"),
        *("223.255.255.255", "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", "64:ff9b::1:0:0", "64:ff9b:2::"),
        *("100:0:0:1::", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::", "2001:db7:ffff::", "2001:db9::"),
        *("2003::", "fbff:ffff::", "fe00::", "fe7f:ffff::", "2a00::1"),
    ],
)
def test_their_neighbours_are_relayed_to(host: str) -> None:
    assert permits(host)


# Unmapping


@pytest.mark.parametrize(
    ("address", "views"),
    [
        ("8.8.8.8", ["8.8.8.8"]),
        ("2a00::1", ["2a00::1"]),
        ("::", ["::"]),
        ("::1", ["::1"]),
        ("::ffff:127.0.0.1", ["127.0.0.1"]),
        ("::127.0.0.1", ["127.0.0.1"]),
        ("::2", ["0.0.0.2"]),
        ("2002:7f00:1::", ["2002:7f00:1::", "127.0.0.1"]),
        ("64:ff9b::10.0.0.1", ["64:ff9b::a00:1", "10.0.0.1"]),
        # Server 10.0.0.1; the client, 192.168.0.1, has its bits flipped.
        ("2001:0:a00:1:0:0:3f57:fffe", ["2001:0:a00:1::3f57:fffe", "10.0.0.1", "192.168.0.1"]),
    ],
)
def test_every_address_that_a_packet_may_end_at(address: str, views: list[str]) -> None:
    assert [str(view) for view in unmap(ipaddress.ip_address(address))] == views


def mapped(host: str) -> str:
    return f"::ffff:{host}"


def compatible(host: str) -> str:
    return f"::{host}"


def six_to_four(host: str) -> str:
    return str(ipaddress.IPv6Address(0x2002 << 112 | int(ipaddress.IPv4Address(host)) << 80))


def nat64(host: str) -> str:
    return f"64:ff9b::{host}"


def teredo_client(host: str) -> str:
    flipped = int(ipaddress.IPv4Address(host)) ^ 0xFFFFFFFF
    return str(ipaddress.IPv6Address(0x20010000 << 96 | 0x08080808 << 64 | flipped))


def teredo_server(host: str) -> str:
    return str(ipaddress.IPv6Address(0x20010000 << 96 | int(ipaddress.IPv4Address(host)) << 64 | 0xF7F7F7F7))


IPV4_NEVER = [network for network in NEVER if ":" not in network]


@pytest.mark.parametrize("wrap", [mapped, compatible, six_to_four, nat64, teredo_client, teredo_server])
@pytest.mark.parametrize("network", IPV4_NEVER)
def test_no_wrapping_gets_by_an_ipv4_rule(network: str, wrap: type[str]) -> None:
    """Not even where the operator lists all of IPv6."""
    forbidden = ipaddress.ip_network(network)
    for address in (forbidden[0], forbidden[-1]):
        if wrap is compatible and int(address) <= 1:
            continue  # These are :: and ::1, no IPv4 addresses.
        assert not permits(wrap(str(address)), "::/0")
        assert permits(wrap(str(address)), "::/0", network)


@pytest.mark.parametrize("wrap", [mapped, compatible])
def test_a_public_ipv4_address_may_be_mapped(wrap: type[str]) -> None:
    assert permits(wrap("8.8.8.8"))


@pytest.mark.parametrize("wrap", [six_to_four, nat64, teredo_client, teredo_server])
def test_a_public_ipv4_address_in_a_tunnel_needs_the_tunnel_to_be_listed(wrap: type[str]) -> None:
    assert not permits(wrap("8.8.8.8"))
    assert permits(wrap("8.8.8.8"), "64:ff9b::/96", "2001::/32", "2002::/16")


@pytest.mark.parametrize("host", ["fe80::1%eth0", "2a00::1%1", "::ffff:8.8.8.8%lo"])
def test_scope_ids_are_refused_whatever_is_listed(host: str) -> None:
    assert not permits(host, "::/0", "0.0.0.0/0")


@pytest.mark.parametrize(
    "host", ["", "turn.example", "8.8.8", "8.8.8.8.8", "134744072", "0x8080808", "010.8.8.8", "8.8.8.8 ", "[2a00::1]"]
)
def test_what_is_no_literal_address_is_refused_whatever_is_listed(host: str) -> None:
    assert not permits(host, "::/0", "0.0.0.0/0")


# The allow-list


def test_what_is_listed_is_permitted_and_nothing_near_it() -> None:
    policy = RelayPolicy([ipaddress.ip_network("10.1.2.0/24"), ipaddress.ip_network("fd00:1::/64")])
    assert policy.permits("10.1.2.0")
    assert policy.permits("10.1.2.255")
    assert policy.permits("::ffff:10.1.2.3")
    assert policy.permits("fd00:1::5")
    assert not policy.permits("10.1.1.255")
    assert not policy.permits("10.1.3.0")
    assert not policy.permits("fd00:1:0:1::")
    assert policy.permits("8.8.8.8")


def test_loopback_is_ready_to_be_listed() -> None:
    policy = RelayPolicy(LOOPBACK)
    assert policy.permits("127.0.0.1")
    assert policy.permits("127.255.255.255")
    assert policy.permits("::1")
    assert not policy.permits("10.0.0.1")
    assert not RelayPolicy().permits("127.0.0.1")


# The key of peer tables


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::192.0.2.1", "::c000:201"),
    ],
)
def test_canonical_host(address: str, host: str) -> None:
    assert canonical_host(ipaddress.ip_address(address)) == host


# Properties


@repeatable
@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


@repeatable
@given(st.text(max_size=30))
def test_any_text_is_judged(text: str) -> None:
    assert permits(text) in {True, False}


@repeatable
@given(st.ip_addresses(v=4), st.sampled_from([mapped, compatible, six_to_four, nat64, teredo_client, teredo_server]))
def test_a_wrapped_address_is_never_permitted_where_the_plain_one_is_not(
    address: ipaddress.IPv4Address, wrap: type[str]
) -> None:
    if int(address) > 1:
        assert permits(str(address)) or not permits(wrap(str(address)), "::/0")


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_counted_with_all_its_addresses(host: str, source: str) -> None:
    assert source_of(host) == source
