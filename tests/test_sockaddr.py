"""Zones: an interface by name in our texts, a number in what sockets take and give."""

from __future__ import annotations

import errno
import socket

import pytest

from relay.addresses import Address
from relay.sockaddr import from_sockaddr, to_sockaddr

LO = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("address", "sockaddr"),
    [
        (Address("192.0.2.7", 443), ("192.0.2.7", 443)),
        (Address("2001:db8::7", 443), ("2001:db8::7", 443, 0, 0)),
        (Address("fe80::1%lo", 443), ("fe80::1", 443, 0, LO)),
    ],
)
def test_there_and_back(address: Address, sockaddr: tuple[str | int, ...]) -> None:
    assert from_sockaddr(sockaddr) == address
    assert tuple(to_sockaddr(address)) in {sockaddr, sockaddr[:2]}


def test_zone_by_number() -> None:
    assert to_sockaddr(Address(f"fe80::1%{LO}", 443)) == ("fe80::1", 443, 0, LO)


def test_an_interface_that_has_gone_keeps_its_number() -> None:
    assert from_sockaddr(("fe80::1", 443, 0, 1 << 30)) == Address(f"fe80::1%{1 << 30}", 443)


def test_an_interface_that_is_missing() -> None:
    with pytest.raises(OSError, match="no network interface 'absent'") as raised:
        to_sockaddr(Address("fe80::1%absent", 443))
    assert raised.value.errno == errno.ENODEV


def test_the_kernel_agrees() -> None:
    """On this machine's own link-local addresses, if it has any."""
    for index, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as opened:
            try:
                opened.connect(("fe80::1", 9, 0, index))
            except OSError:
                continue
            local = from_sockaddr(opened.getsockname())
        if not local.host.startswith("fe80:"):
            continue
        assert local.host.endswith(f"%{name}")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as opened:
            opened.bind(to_sockaddr(Address(local.host, 0)))
            assert from_sockaddr(opened.getsockname()).host == local.host
