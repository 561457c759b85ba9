"""Where load may go: to this machine, to what is listed, and never to the vendor."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loadtest.engine.plans import Carrier
from loadtest.plan.hosts import TargetError
from loadtest.plan.profile import Profile, parse
from loadtest.plan.target import Target
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
        {"server": "[64:ff9b::343a:7ff1]:3478"},
        {"server": "[2002:343a:7ff1::1]:3478"},
        {"server": "c9rest\uff0exhoot\u3002com:443"},
        {"server": ["52.58.127.241", 3478]},
        {"peer": "52.58.127.241:0"},
        {"tunnel": "c9rest.xhoot.com:443", "web_proxy": "127.0.0.1:3128"},
        {"far": "52.58.127.241:3478"},
        {"upstream": "use1-stun1.xhoot.com:3478"},
        {"web_proxy": "c9portal.xhoot.com:3128"},
        {"cloud": "https://c9rest.xhoot.com"},
        {"metrics": "https://52.58.127.241/metrics"},
        {"control": "http://C9REST\uff0exhoot.com"},
        {"server_name": "use1-stun1.xhoot.com", "web_proxy": "127.0.0.1:3128"},
    ],
)
def test_the_vendor_is_refused_always(change: dict[str, Any]) -> None:
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
    found = resolve_target(profile, "lab", {"carrier": "websocket"})
    assert (found.server.host, found.carrier) == ("10.0.0.5", Carrier.WEBSOCKET)
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


@pytest.mark.parametrize(
    "change",
    [
        {"server": "2130706433:443"},
        {"server": "0x7f.1:443"},
        {"server": "c9res%74.xhoot.com:443"},
        {"cloud": "https://c9res%74.xhoot.com"},
        {"metrics": "http://876249073/"},
        {"server_name": "c9res%74.xhoot.com"},
        {"server": ["127.0.0.1", 65536]},
        {"server": "127.0.0.1:0"},
        {"metrics": "http://127.0.0.1:0"},
    ],
)
def test_what_can_be_read_in_more_than_one_way_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected a"):
        target(**change)


def test_a_name_of_the_vendors_is_for_a_relay_that_serves_it() -> None:
    """In TLS it leads nowhere. A web proxy would look it up."""
    assert target(server_name="Use1-Stun1.xhoot.com.").server_name == "use1-stun1.xhoot.com"
    through = target(server_name="use1-stun1.xhoot.com", web_proxy="127.0.0.1:3128", tunnel=LOCAL)
    through.require_loopback()
    assert b"CONNECT 127.0.0.1:4443 " in through.client_plan(0).texts()[4]


def test_a_name_that_a_web_proxy_looks_up_is_where_load_goes() -> None:
    found = target(server_name="relay.example", web_proxy="127.0.0.1:3128")
    assert b"CONNECT relay.example:4443 " in found.client_plan(0).texts()[4]
    with pytest.raises(TargetError, match=r"server_name relay\.example: not on this machine"):
        found.require_loopback()


def leads_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All names, from now on."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", (address, 443))])


@pytest.mark.parametrize(
    "change",
    [
        {"far": "relay.example:3478"},
        {"sink": "relay.example:16384"},
        {"upstream": "relay.example:3478"},
        {"web_proxy": "relay.example:3128"},
        {"web_proxy": "127.0.0.1:3128", "tunnel": "relay.example:443"},
        {"web_proxy": "127.0.0.1:3128", "server_name": "relay.example"},
        {"metrics": "http://relay.example:9443/metrics"},
        {"cloud": "https://relay.example"},
        {"control": "http://relay.example"},
    ],
    ids=lambda change: list(change)[-1],
)
def test_wherever_a_name_stands_it_must_not_lead_to_the_vendor(
    change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to("52.58.127.241", monkeypatch)
    with pytest.raises(TargetError, match=rf"{list(change)[-1]} 52\.58\.127\.241: belongs to the vendor"):
        target(**change).resolved()
    leads_to("192.0.2.9", monkeypatch)
    target(**change).resolved()


def test_names_that_others_look_up_need_not_be_known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    target(upstream="turn.inside:3478").resolved()
    with pytest.raises(
        TargetError, match=r"cloud turn\.inside: Name or service not known; expected a name that can be"
    ):
        target(cloud="http://turn.inside").resolved()


def test_a_localhost_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    leads_to("192.0.2.9", monkeypatch)
    for change in ({"server": "localhost:443"}, {"metrics": "http://localhost:9443"}):
        with pytest.raises(TargetError, match=r"localhost: leads to 192\.0\.2\.9 here; expected a loopback address"):
            target(**change).resolved()


LAB = {
    "server": "10.0.0.5:443",
    "far": "10.0.0.6:3478",
    "web_proxy": "10.0.0.7:3128",
    "server_name": "relay.lab",
    "cloud": "https://10.0.0.5",
}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Profile:
    """A profile that lists a target elsewhere; names lead there, too."""
    leads_to("10.0.0.5", monkeypatch)
    return parse({"description": "x", "users": 1, "targets": {"lab": LAB}}, "t")


@pytest.mark.parametrize("name", ["lab", LOCAL])
@pytest.mark.parametrize(
    "options",
    [
        {"far": "10.0.0.9:3478"},
        {"sink": "10.0.0.9:16384"},
        {"upstream": "10.0.0.9:3478"},
        {"web_proxy": "10.0.0.9:3128"},
        {"web_proxy": "127.0.0.1:3128", "server_name": "other.example"},
        {"metrics": "http://10.0.0.9:9443/metrics"},
        {"cloud": "https://10.0.0.9"},
    ],
    ids=lambda options: list(options)[-1],
)
def test_what_the_command_line_says_is_on_this_machine(lab: Profile, name: str, options: dict[str, str]) -> None:
    what = list(options)[-1]
    with pytest.raises(OperatorError, match=rf"--target {name}: {what} \S+: not on this machine; expected a loopback"):
        resolve_target(lab, name, options)


def test_what_the_profile_lists_may_be_elsewhere(lab: Profile) -> None:
    found = resolve_target(lab, "lab", {"metrics": "http://127.0.0.1:9443/metrics", "upstream": "127.0.0.1:3478"})
    assert (found.far, found.web_proxy) == (Address("10.0.0.6", 3478), Address("10.0.0.7", 3128))
    assert (found.server_name, found.upstream) == ("relay.lab", Address("127.0.0.1", 3478))


@pytest.mark.parametrize("name", ["lab", LOCAL])
def test_a_peer_is_on_this_machine(lab: Profile, name: str) -> None:
    assert resolve_target(lab, name, {"peer": "127.0.0.1:0"}).peer == Address("127.0.0.1", 0)
    with pytest.raises(
        OperatorError, match=rf"--target {name}: peer 192\.0\.2\.1: .*; expected an address of this machine, such as"
    ):
        resolve_target(lab, name, {"peer": "192.0.2.1:0"})


def test_a_colleague_is_in_one_place(lab: Profile) -> None:
    """The command line's counts. Two of them in one target are a mistake."""
    found = resolve_target(lab, "lab", {"sink": "127.0.0.1:16384"})
    assert (found.peer, found.far, found.sink) == (None, None, Address("127.0.0.1", 16384))
    with pytest.raises(ValidationError, match="peer and sink: a colleague is in one place; expected one of them"):
        target(peer="127.0.0.1:0", sink="127.0.0.1:1")


def test_a_target_of_a_program_follows_the_same_rule(lab: Profile) -> None:
    assert target().admitted(lab.targets) == target()
    assert target(**LAB).admitted(lab.targets).server == Address("10.0.0.5", 443)
    for change in (
        {"server": "10.0.0.5:444"},
        {"server": "10.0.0.9:443"},
        # It is listed as something else.
        {"far": "10.0.0.5:443"},
        {"metrics": "http://10.0.0.5:9443"},
    ):
        with pytest.raises(TargetError, match="not on this machine; expected a loopback address"):
            target(**(LAB | change)).admitted(lab.targets)


def test_what_no_user_could_begin_with(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    for change, words in (
        ({"carrier": "connect-udp"}, "carrier connect-udp: asks for a TURN server; expected an upstream, or far"),
        (
            {"carrier": "udp", "web_proxy": "127.0.0.1:3128"},
            "web_proxy 127.0.0.1:3128: takes no UDP; expected a carrier",
        ),
        ({"authorities": str(empty)}, f"{empty}: no certificate in it; expected a PEM file of certificates"),
        ({"authorities": f"{empty}.not"}, f"{empty}.not: No such file or directory; expected a PEM file"),
        ({"authorities": "/dev/zero"}, "/dev/zero: not a file; expected a PEM file"),
        (
            {"peer": "192.0.2.1:0"},
            "peer 192.0.2.1: Cannot assign requested address; expected an address of this machine",
        ),
        ({"username": "x" * 600}, "username: expected 508 bytes at most"),
    ):
        with pytest.raises(TargetError, match=re.escape(words)):
            target(**change).require_usable()
    target(carrier="connect-udp", upstream="127.0.0.1:3478", peer="127.0.0.1:0").require_usable()
