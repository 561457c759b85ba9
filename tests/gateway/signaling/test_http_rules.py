"""Who a client is, as far as it can be told; the table of what is refused is in test_smuggling.py."""

from __future__ import annotations

import ipaddress

import pytest
from aiohttp.test_utils import make_mocked_request

from relay.gateway.signaling.http_rules import CONNECTION, Forwarding, end_to_end

TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("remote", "said", "client"),
    [
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        # The last one that nobody vouches for; what stands before it anybody may have written.
        ("10.0.0.1", "203.0.113.9, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("unknown", "198.51.100.1", "unknown"),
    ],
)
def test_client(remote: str, said: str, client: str) -> None:
    request = make_mocked_request("GET", "/", {"X-Forwarded-For": said} if said else {}).clone(remote=remote)
    assert Forwarding(TRUSTED).client(request) == client


def test_ipv6_is_quoted_in_forwarded() -> None:
    request = make_mocked_request("GET", "/", {"Host": "a.test"}).clone(remote="2001:db8::1", scheme="https")
    headers = dict(Forwarding().fields(request))
    assert headers[b"Forwarded"] == b'for="[2001:db8::1]";host="a.test";proto=https'
    assert headers[b"X-Forwarded-For"] == b"2001:db8::1"


def test_upstreams_are_told_the_connection_and_no_other() -> None:
    request = make_mocked_request("GET", "/", {"Host": "a.test", "X-Relay-Id": "forged"}).clone(remote="10.0.0.1")
    assert b"X-Relay-Id" not in dict(Forwarding(TRUSTED).fields(request))
    request[CONNECTION] = "07pwk3m9x-c-5"
    told = [value for name, value in Forwarding(TRUSTED).fields(request) if name.lower() == b"x-relay-id"]
    assert told == [b"07pwk3m9x-c-5"]


def test_what_goes_end_to_end() -> None:
    headers = [(b"A", b"1"), (b"Connection", b"close, b"), (b"B", b"2"), (b"TE", b"x"), (b"D", b"3"), (b"E", b"\xe9")]
    assert list(end_to_end(headers, b"d")) == [(b"A", b"1"), (b"E", b"\xe9")]
