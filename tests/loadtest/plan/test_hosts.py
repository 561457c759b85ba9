"""Hosts in their one form: whatever they are spelled like, the rule is for what they lead to."""

from __future__ import annotations

import pytest

from loadtest.plan.hosts import TargetError, canonical, canonical_url, host_of, is_loopback, refuse_vendor, require_here
from relay.addresses import Address

FULL_WIDTH = "\uff43\uff19rest\uff0exhoot\u3002com"
# A host of the vendor's, 52.58.127.241, inside IPv6: mapped, compatible, 6to4, NAT64.
WITHIN_IPV6 = ["::ffff:52.58.127.241", "::52.58.127.241", "2002:343a:7ff1::1", "64:ff9b::343a:7ff1"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Relay.Example.", "relay.example"),
        (FULL_WIDTH, "c9rest.xhoot.com"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("turn_1.inside", "turn_1.inside"),
        ("127.0.0.1.", "127.0.0.1"),
        ("::FFFF:127.0.0.1", "127.0.0.1"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("LOCALHOST", "localhost"),
    ],
)
def test_a_host_has_one_form(text: str, form: str) -> None:
    assert canonical(text) == form
    assert canonical(form) == form


@pytest.mark.parametrize(
    "text",
    [
        "c9res%74.xhoot.com",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "127.1",
        "0177.0.0.1",
        "127.0.0.01",
        "876249073",
        "1.2.3.4.5",
        "fe80::1%eth0",
        "::1::",
        "a..example",
        ".example",
        "",
        ".",
        "-a.example",
        "a b",
        "user@example",
        "xhoot.com\u2100.example",
        "\uff05.example",
        "x" * 64 + ".example",
        "a." * 130,
    ],
)
def test_a_host_that_can_be_read_in_more_than_one_way_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="expected a"):
        canonical(text)


@pytest.mark.parametrize("text", [FULL_WIDTH, "XHOOT.com.", "deep.below.xhoot.com", *WITHIN_IPV6])
def test_the_vendor_is_known_in_any_spelling(text: str) -> None:
    with pytest.raises(TargetError, match=r"far .*: belongs to the vendor"):
        refuse_vendor("far", canonical(text))


@pytest.mark.parametrize("text", ["notxhoot.com", "xhoot.com.example", "127.0.0.1", "::1", "64:ff9b::7f00:1"])
def test_others_are_not_the_vendor(text: str) -> None:
    refuse_vendor("far", canonical(text))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:9443/metrics?x=1", "http://127.0.0.1:9443/metrics?x=1"),
        ("https://Relay.Example.:0443/", "https://relay.example:443/"),
        ("http://[::FFFF:127.0.0.1]:80", "http://127.0.0.1:80"),
        ("http://[::1]", "http://[::1]"),
        (f"https://{FULL_WIDTH}", "https://c9rest.xhoot.com"),
    ],
)
def test_a_url_has_one_form(text: str, url: str) -> None:
    assert canonical_url(text) == url
    assert canonical_url(url) == url
    assert host_of(url) == canonical(host_of(url))


@pytest.mark.parametrize(
    "text",
    [
        "http://user@127.0.0.1/",
        "http://127.0.0.1:80@c9rest.xhoot.com/",
        "http://127.0.0.1\\@c9rest.xhoot.com/",
        "http://c9res%74.xhoot.com/",
        "http://2130706433/",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/\r\nHost: x",
        "http://[fe80::1%25eth0]/",
        "HTTP://127.0.0.1",
        "file:///etc/passwd",
    ],
)
def test_a_url_that_can_be_read_in_more_than_one_way_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="expected a"):
        canonical_url(text)


def test_what_is_on_this_machine_by_definition() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "128.0.0.1", "localhost.example", "64:ff9b::7f00:1"))


def test_an_address_of_this_machine() -> None:
    require_here("peer", Address("127.0.0.1", 0))
    for host in ("192.0.2.1", "2001:db8::1", "0.0.0.0", "::", "224.0.0.1"):
        with pytest.raises(TargetError, match=rf"peer {host}: .*; expected an address of this machine"):
            require_here("peer", Address(host, 0))
