"""Addresses that this machine has, does not have, and may get later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay import config
from relay.errors import OperatorError
from relay.gateway.checking import machine
from relay.gateway.checking.machine import check_addresses

# For documentation (RFC 5737, RFC 3849): no machine has them.
ELSEWHERE, ELSEWHERE_V6 = "192.0.2.7", "2001:db8::7"


def settings(**sections: Any) -> config.Config:
    tree = {
        "certificates": [{"certificate": "cert.pem", "private_key": "key.pem"}],
        "upstreams": [{"name": "stun1", "address": "192.0.2.7:3478"}],
        **sections,
    }
    return config.parse(tree, folder=Path(), source="relay.toml")


def test_addresses_of_this_machine() -> None:
    listen = {"tls": ["127.0.0.1:443", "127.9.9.9:443", "[::]:443"], "admin": "[::1]:9443"}
    assert check_addresses(settings(listen=listen)) == []
    assert check_addresses(settings()) == []


def test_each_address_that_is_missing_has_a_line() -> None:
    listen: dict[str, Any] = {"tls": ["127.0.0.1:443", f"{ELSEWHERE}:443"], "admin": f"[{ELSEWHERE_V6}]:9443"}
    listen["admin_unprotected"] = True
    zoned = {"source_addresses": ["fe80::1%nolink0"]}
    with pytest.raises(OperatorError) as refused:
        check_addresses(settings(listen={**listen, "web_proxy": ["127.0.0.1:3128"]}, media=zoned))
    assert str(refused.value).splitlines() == [
        f"listen.tls.1: {ELSEWHERE}: this machine does not have this address",
        f"listen.admin: {ELSEWHERE_V6}: this machine does not have this address",
        "media.source_addresses.0: fe80::1%nolink0: no network interface 'nolink0'",
    ]


def test_an_address_that_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that takes over an address: there the kernel binds sockets to any."""
    allowed = tmp_path / "ip_nonlocal_bind"
    allowed.write_text("1\n")
    monkeypatch.setattr(machine, "NONLOCAL_BIND", {4: allowed, 6: allowed})
    monkeypatch.setattr(machine, "_try_to_bind", lambda _: None)
    listen = {"tls": ["127.0.0.1:443", f"{ELSEWHERE}:443", f"[{ELSEWHERE_V6}]:443", "[::1]:443"]}
    later = "this machine does not have this address now"
    assert check_addresses(settings(listen=listen)) == [
        f"listen.tls.1: {ELSEWHERE}: {later}",
        f"listen.tls.2: {ELSEWHERE_V6}: {later}",
    ]
    allowed.write_text("0\n")
    assert check_addresses(settings(listen=listen)) == []
