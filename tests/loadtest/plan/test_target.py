"""Where load may go: to this machine, to what is listed, and never to the vendor."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

import pytest
from pydantic import ValidationError

from loadtest.engine.plans import Carrier
from loadtest.plan.profile import parse
from loadtest.plan.target import Target, TargetError
from loadtest.running.targets import resolve_target
from relay import catalog
from relay.addresses import Address
from relay.errors import OperatorError

LOCAL = "127.0.0.1:4443"


def target(**changes: Any) -> Target:
    return Target.model_validate({"server": LOCAL, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"server": "c9rest.xhoot.com:443"},
        {"server": "C9REST.XHOOT.COM.:443"},
        {"server": "xhoot.com:443"},
        {"server": "deep.below.xhoot.com:443"},
        {"server": "52.58.127.241:3478"},
        {"server": "[::ffff:52.58.127.241]:3478"},
        {"far": "52.58.127.241:3478"},
        {"upstream": "use1-stun1.xhoot.com:3478"},
        {"web_proxy": "c9portal.xhoot.com:3128"},
        {"cloud": "https://c9rest.xhoot.com"},
        {"metrics": "https://52.58.127.241/metrics"},
    ],
)
def test_the_vendor_is_refused_always(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="belongs to the vendor"):
        target(**change)


@pytest.mark.parametrize("network", [one.network for one in catalog.load().networks], ids=str)
def test_no_network_of_the_vendor_is_loaded(network: Any) -> None:
    with pytest.raises(ValidationError, match="belongs to the vendor"):
        target(server=f"{network[0]}:3478")


def test_a_name_that_leads_to_the_vendor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("52.58.127.241", 443))])
    with pytest.raises(TargetError, match=r"server 52\.58\.127\.241: belongs to the vendor"):
        target(server="relay.example:443").resolved()


def test_a_listed_name_is_resolved_and_kept_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.9", 443))])
    found = target(server="relay.example:443").resolved()
    assert (found.server, found.server_name) == (Address("192.0.2.9", 443), "relay.example")


@pytest.mark.parametrize("host", ["10.0.0.5", "192.0.2.1", "relay.example", "128.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("what", ["server", "far", "web_proxy"])
def test_what_is_not_on_this_machine_must_be_listed(host: str, what: str) -> None:
    with pytest.raises(TargetError, match=rf"{what} .*: not on this machine; expected a loopback address"):
        target(**{what: f"{host}:443"}).require_loopback()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_this_machine_may_be_loaded(host: str) -> None:
    target(server=f"{host}:443").require_loopback()


def test_the_command_line_takes_what_the_profile_lists() -> None:
    profile = parse({"description": "x", "users": 1, "targets": {"lab": {"server": "10.0.0.5:443"}}}, "t")
    name, found = resolve_target(profile, "lab", {"carrier": "websocket"})
    assert (name, found.server.host, found.carrier) == ("lab", "10.0.0.5", Carrier.WEBSOCKET)
    with pytest.raises(OperatorError, match=r"--target 10\.0\.0\.5:443: server 10\.0\.0\.5: not on this machine"):
        resolve_target(profile, "10.0.0.5:443", {})
    with pytest.raises(OperatorError, match=r"--target lab: far 52\.58\.127\.241: belongs to the vendor"):
        resolve_target(profile, "lab", {"far": "52.58.127.241:1"})
    with pytest.raises(OperatorError, match=r"--target 127\.0\.0\.1:1: carrier: expected one of tls, websocket"):
        resolve_target(profile, "127.0.0.1:1", {"carrier": "pigeon"})
    with pytest.raises(OperatorError, match=r"--target nowhere: server: "):
        resolve_target(profile, "nowhere", {})


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:9", "http://user@127.0.0.1/", "http://"])
def test_a_url_is_one(url: str) -> None:
    with pytest.raises(ValidationError, match="expected a URL"):
        target(metrics=url)


def test_time_limited_credentials() -> None:
    username, password = target(secret="north", users=3).credentials(7)
    expiry, _, name = username.partition(":")
    assert name == "load-1"
    assert int(expiry) > time.time() + 7 * 86_400
    assert password == base64.b64encode(hmac.digest(b"north", username.encode(), hashlib.sha1)).decode()


def test_a_password_is_the_same_for_all() -> None:
    assert target(username="trader", password="secret").credentials(5) == ("trader", "secret")


def test_plans_of_clients() -> None:
    found = target(carrier="connect-udp", far="127.0.1.1:3478", web_proxy="127.0.0.1:3128", web_proxy_username="desk")
    near, far = found.client_plan(0), found.far_plan(0)
    assert (near.carrier, near.upstream) == (Carrier.CONNECT_UDP, Address("127.0.1.1", 3478))
    assert near.web_proxy is not None
    assert near.web_proxy.username == "desk"
    assert (far.carrier, far.server, far.web_proxy) == (Carrier.UDP, Address("127.0.1.1", 3478), None)
    assert target().far_plan(0).carrier is Carrier.TLS
