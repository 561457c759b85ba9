"""The target of a test is checked before anything starts; so is what the demo does not take."""

from __future__ import annotations

import re
from typing import Any

import pytest

from loadtest.engine.plans import Carrier
from loadtest.plan.profile import parse
from loadtest.plan.target import Target
from loadtest.running import targets
from loadtest.running.processes import Mode, web_address
from loadtest.running.targets import check_target, past_the_relay, ready_target, ready_targets
from relay.addresses import Address
from relay.errors import OperatorError
from tests.loadtest.running.driver import small

LOCAL = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("the demo was started")

    monkeypatch.setattr(targets, "demo_target", start)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"far": "127.0.0.1:1"}, "--target demo: has its own cloud and relay, so --far would say nothing of it"),
        ({"metrics": "http://127.0.0.1:1", "cloud": "http://127.0.0.1:1"}, "so --metrics, --cloud would say nothing"),
        ({"authorities": "ca.pem"}, "so --ca would say nothing"),
        ({"users": 3}, "so --target-users would say nothing"),
        ({"secret": "north"}, "so --secret would say nothing"),
        (
            {"upstream": "127.0.0.1:1"},
            "expected --carrier, --server-name, --peer, --sink, --web-proxy only, or another",
        ),
        ({"carrier": "pigeon"}, "--target demo: carrier: expected one of tls, websocket"),
        ({"sink": "10.0.0.9:1"}, "--target demo: sink 10.0.0.9: not on this machine"),
        ({"web_proxy": "10.0.0.9:1"}, "--target demo: web_proxy 10.0.0.9: not on this machine"),
        ({"web_proxy": LOCAL, "carrier": "udp"}, "--target demo: web_proxy 127.0.0.1:9: takes no UDP"),
        (
            {"peer": "192.0.2.1:0"},
            "--target demo: peer 192.0.2.1: Cannot assign requested address; expected an address",
        ),
        (
            {"peer": "127.0.0.1:0", "sink": LOCAL},
            "--peer and --sink: a colleague is in one place; expected one of them",
        ),
        ({"peer": "127.0.0.1:0", "far": LOCAL}, "--peer and --far: a colleague is in one place; expected one of them"),
    ],
)
def test_what_makes_no_sense_with_the_demo(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OperatorError, match=re.escape(words)), ready_target(small(), "demo", options):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"carrier": "connect-udp"},
        {"carrier": "udp"},
        {"peer": "127.0.0.1:0"},
        {"sink": LOCAL},
        {"web_proxy": "127.0.0.1:3128", "server_name": "use1-stun1.xhoot.com"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_demo_takes(options: dict[str, str]) -> None:
    check_target(small(), "demo", options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"carrier": "connect-udp"}, "carrier connect-udp: asks for a TURN server; expected an upstream, or far"),
        ({"carrier": "udp", "web_proxy": LOCAL}, "web_proxy 127.0.0.1:9: takes no UDP; expected a carrier over TLS"),
        ({"authorities": "/nowhere.pem"}, "/nowhere.pem: No such file or directory; expected a PEM file"),
        ({"far": LOCAL, "sink": LOCAL}, "--far and --sink: a colleague is in one place"),
    ],
)
def test_what_no_user_could_begin_with(options: dict[str, str], words: str) -> None:
    with pytest.raises(OperatorError, match=re.escape(words)):
        check_target(small(), LOCAL, options)


def test_users_that_log_in_need_a_cloud() -> None:
    with pytest.raises(
        OperatorError, match=rf"--target {LOCAL}: its users log in, but it names no cloud; expected --cloud"
    ):
        check_target(small(), LOCAL, {}, needs_cloud=True)
    check_target(small(), LOCAL, {"cloud": "http://127.0.0.1:9"}, needs_cloud=True)


def test_a_master_has_no_users_and_a_worker_no_metrics() -> None:
    listed = {"server": LOCAL, "peer": "192.0.2.1:0", "authorities": "/nowhere.pem"}
    profile = parse({"description": "x", "users": 1, "targets": {"lab": listed}}, "t")
    check_target(profile, "lab", {}, mode=Mode(master=True))
    with pytest.raises(OperatorError, match="nowhere"):
        check_target(profile, "lab", {}, mode=Mode(worker=True))
    check_target(small(), LOCAL, {"metrics": "http://127.0.0.1:9"}, mode=Mode(worker=True))


def test_one_target_over_several_carriers() -> None:
    several = [{"upstream": "localhost:3478", "carrier": carrier} for carrier in ("udp", "tls")]
    with ready_targets(small(), LOCAL, several) as found:
        assert [one.carrier for one in found] == [Carrier.UDP, Carrier.TLS]
        # Over UDP it is the TURN server itself.
        assert [past_the_relay(one).server for one in found] == [Address("127.0.0.1", 3478), Address("127.0.0.1", 9)]
    assert isinstance(found[0], Target)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "--web 'nonsense': expected host:port"),
        ("127.0.0.1:", "--web '127.0.0.1:': expected host:port"),
        ("127.0.0.1:0", "--web 127.0.0.1:0: expected a port from 1 to 65535"),
        ("127.0.0.1:65536", "--web '127.0.0.1:65536': expected host:port"),
        ("0x7f.1:8089", "--web '0x7f.1': expected an address"),
        (
            "0.0.0.0:8089",
            "--web 0.0.0.0:8089: the page starts and stops load, and has no password; expected a loopback",
        ),
        ("desk.example:8089", "expected a loopback address, such as 127.0.0.1:8089"),
    ],
)
def test_locusts_page_is_for_this_machine(text: str, words: str) -> None:
    with pytest.raises(OperatorError, match=re.escape(words)):
        web_address(text)


@pytest.mark.parametrize(
    ("text", "host"), [("127.0.0.1:8089", "127.0.0.1"), ("[::1]:8089", "::1"), ("localhost:8089", "localhost")]
)
def test_locust_is_told_where_its_page_is(text: str, host: str) -> None:
    arguments = Mode(web=str(web_address(text))).arguments()
    assert arguments[arguments.index("--web-host") :][:4] == ["--web-host", host, "--web-port", "8089"]
