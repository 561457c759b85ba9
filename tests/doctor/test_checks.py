"""Each check judges a good world as good, and in a bad one names who acts and what to change."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from relay import catalog
from relay.addresses import Address
from relay.catalog import Service
from relay.catalog import Status as HostStatus
from relay.client.connect import Proxy
from relay.doctor.checks import ALL, BY_CODE
from relay.doctor.pac import NO_ENGINE
from relay.doctor.plan import Kind, Plan, RelaySite, Site
from relay.doctor.report import Actor, Area, Finding, Item, Status
from relay.doctor.seen import (
    DIRECT,
    CarrierSeen,
    Failure,
    Frames,
    NameSeen,
    PollingSeen,
    ProxySeen,
    ProxySource,
    Seen,
    SiteSeen,
    Step,
    StunSeen,
    TlsFault,
    TlsSeen,
    TurnSeen,
    Untested,
    VoiceSeen,
    WebSocketSeen,
)
from relay.doctor.targets import trust_of

CATALOG = catalog.load()
API, SIGNALING, MEDIA = "ctiapi.prod1.xhoot.com", "c9so-use1.xhoot.com", "use1-stun1.xhoot.com"
PROXY = Proxy(Address("proxy.firm.example", 3128))
THROUGH = f"through {PROXY.address}"
ENDS = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
GOOD_TLS = TlsSeen("host", "a public authority", ("*.xhoot.com",), ENDS, None, "", public=True, expected=None)
RELAY = RelaySite(Address("relay.firm.example", 443), "relay.firm.example")
STEADY = tuple([20.0] * 500)


def site(name: str, service: Service) -> Site:
    return Site(name, service, "use1", HostStatus.ACTIVE, Address(name, 443), Address(name, 443))


def plan_of(**more: Any) -> Plan:
    sites = (site(API, Service.API), site(SIGNALING, Service.SIGNALING), site(MEDIA, Service.MEDIA))
    given: dict[str, Any] = {"kind": Kind.LIVE, "target": "a made-up network", "catalog": CATALOG}
    return Plan(**{**given, "trust": trust_of(), "sites": sites, "relay": RELAY, **more})


def good() -> Seen:
    names = [API, SIGNALING, MEDIA]
    return Seen(
        names={API: NameSeen(("8.8.8.8",)), SIGNALING: NameSeen(("8.8.4.4",)), MEDIA: NameSeen(("54.174.51.241",))},
        sites=[SiteSeen(name, DIRECT, None, GOOD_TLS, 200, 12.0) for name in [*names, RELAY.label]],
        websockets=[WebSocketSeen(name, DIRECT, None, Frames.BOTH_WAYS) for name in (SIGNALING, RELAY.label)],
        polling=[PollingSeen(SIGNALING, DIRECT, None)],
        stun=[StunSeen(MEDIA, "use1", Address("54.174.51.241", 3478), 12.0, Address("203.0.113.9", 4000))],
        turn=[TurnSeen(MEDIA, "use1", Address("54.174.51.241", 20000), 10, 10, 10)],
        carriers=[CarrierSeen("TURN/TLS", DIRECT, None, answered=True)],
        voice=[VoiceSeen("UDP", True, STEADY), VoiceSeen("TURN/TLS", False, STEADY)],
    )


def proxied(failure: Failure | None) -> Seen:
    names = [API, SIGNALING, MEDIA, RELAY.label]
    ways = dict.fromkeys(names, (PROXY,))
    seen = ProxySeen(ProxySource.SETTING, "--proxy", ways, dict.fromkeys(names, "PROXY proxy.firm.example:3128"))
    tls = GOOD_TLS if failure is None else None
    sites = [SiteSeen(name, THROUGH, failure, tls, 200 if tls else 0) for name in names]
    return dataclasses.replace(good(), proxy=seen, sites=sites)


def judged(code: str, seen: Seen, **more: Any) -> tuple[list[Item], Finding | None]:
    items, findings = BY_CODE[code]().judge(plan_of(**more), seen)
    assert len(findings) <= 1
    return items, findings[0] if findings else None


def bad(code: str, seen: Seen, **more: Any) -> Finding:
    """The finding of a check, which there must be; it is about items that are bad, and of its code."""
    items, finding = judged(code, seen, **more)
    assert finding is not None, items
    assert finding.code == code
    assert finding.change.endswith(".")
    assert any(item.status in {Status.FAILED, Status.WARNING} for item in items)
    return finding


def with_site(name: str, failure: Failure | None = None, tls: TlsSeen | None = GOOD_TLS, status: int = 200) -> Seen:
    """The good world, except for one site."""
    sites = [one for one in good().sites if one.site != name]
    return dataclasses.replace(good(), sites=[*sites, SiteSeen(name, DIRECT, failure, tls, status)])


def test_the_good_world_has_no_findings() -> None:
    for seen in (good(), proxied(None)):
        for check in ALL:
            items, findings = check().judge(plan_of(), seen)
            assert findings == []
            assert {item.status for item in items} <= {Status.OK}


@pytest.mark.parametrize("check", ALL)
def test_each_check_explains_itself(check: Any) -> None:
    title, *paragraphs = (check.__doc__ or "").split("\n\n")
    assert title.endswith(".")
    assert [one.split("**")[1] for one in paragraphs] == ["Tested:", "Why:", "Change:"]
    assert len({one.code for one in ALL}) == len(ALL)


# DNS


def test_a_name_is_not_found() -> None:
    seen = dataclasses.replace(good(), names={MEDIA: NameSeen(fault="DNS has no address of it")})
    finding = bad("NAME-NOT-FOUND", seen)
    assert (finding.actor, finding.areas) == (Actor.NETWORK, (Area.VOICE_UDP, Area.VOICE_PROXY))
    assert "xhoot.com" in finding.change


def test_a_name_that_the_proxy_looks_up_need_not_be_known_here() -> None:
    seen = dataclasses.replace(proxied(None), names={API: NameSeen(fault="DNS has no address of it")})
    assert judged("NAME-NOT-FOUND", seen)[1] is None
    seen = dataclasses.replace(seen, names={MEDIA: NameSeen(fault="DNS has no address of it")})
    assert bad("NAME-NOT-FOUND", seen).areas == (Area.VOICE_UDP,)


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "0.0.0.0", "fe80::1%eth0"])
def test_dns_lies(address: str) -> None:
    finding = bad("NAME-WRONG", dataclasses.replace(good(), names={API: NameSeen((address,))}))
    assert (finding.status, finding.actor, finding.areas) == (Status.FAILED, Actor.NETWORK, (Area.API,))


def test_a_media_host_outside_the_networks_is_a_warning() -> None:
    finding = bad("NAME-WRONG", dataclasses.replace(good(), names={MEDIA: NameSeen(("8.8.8.8",))}))
    assert (finding.status, finding.actor) == (Status.WARNING, Actor.FIREWALL)
    assert judged("NAME-WRONG", good(), kind=Kind.EMULATOR)[0] == []


# The web proxy


def test_a_broken_pac_file() -> None:
    proxy = ProxySeen(ProxySource.PAC, "proxy.pac", faults=("it gave no answer within 5 s",))
    finding = bad("PROXY-SETTING", dataclasses.replace(good(), proxy=proxy))
    assert (finding.status, finding.actor) == (Status.FAILED, Actor.DESKTOP)
    assert Area.VOICE_UDP not in finding.areas
    assert "proxy.pac" in finding.problem


def test_a_pac_file_without_an_engine_was_not_tested() -> None:
    proxy = ProxySeen(ProxySource.PAC, "proxy.pac", faults=(NO_ENGINE,))
    items, finding = judged("PROXY-SETTING", dataclasses.replace(good(), proxy=proxy))
    assert finding is None
    assert [(item.status, item.decides) for item in items] == [(Status.NOT_TESTED, True)]


@pytest.mark.parametrize(
    ("code", "failure", "actor"),
    [
        ("PROXY-REACHABLE", Failure(Step.PROXY, "refused"), Actor.WEB_PROXY),
        ("PROXY-LOGIN", Failure(Step.PROXY, "407", 407, ("basic", "ntlm")), Actor.WEB_PROXY),
        ("PROXY-REFUSES", Failure(Step.PROXY, "403", 403), Actor.WEB_PROXY),
        ("PROXY-CANNOT-REACH", Failure(Step.PROXY, "503", 503), Actor.FIREWALL),
    ],
)
def test_a_failing_tunnel_is_of_one_check_alone(code: str, failure: Failure, actor: Actor) -> None:
    finding = bad(code, proxied(failure))
    assert (finding.status, finding.actor) == (Status.FAILED, actor)
    assert finding.areas == (Area.VOICE_PROXY, Area.SIGNALING, Area.API)
    others = {check.code for check in ALL if check().judge(plan_of(), proxied(failure))[1]}
    assert others == {code}


def test_a_login_that_is_not_known_here_was_not_tested() -> None:
    items, finding = judged("PROXY-LOGIN", proxied(Failure(Step.PROXY, "407", 407, ("negotiate", "ntlm"))))
    assert finding is None
    assert {item.status for item in items} == {Status.NOT_TESTED}
    assert "negotiate, ntlm" in items[0].detail


def test_the_rules_of_a_refusing_proxy_are_of_the_catalog() -> None:
    finding = bad("PROXY-REFUSES", proxied(Failure(Step.PROXY, "403", 403)))
    squid, zscaler, palo_alto = finding.rules
    assert "acl cloud9 dstdomain .xhoot.com\n" in squid.text
    assert squid.text.endswith("http_access allow CONNECT cloud9 cloud9_ports\n")
    assert zscaler.text == ".xhoot.com\n"
    assert "*.use1.prod1.xhoot.com/\n" in palo_alto.text


# Sites


def test_tcp_is_blocked() -> None:
    finding = bad("TCP-443", with_site(API, Failure(Step.TCP, "no answer"), None, 0))
    assert (finding.status, finding.actor, finding.areas) == (Status.FAILED, Actor.FIREWALL, (Area.API,))


def test_tcp_to_the_relay_is_blocked() -> None:
    seen = with_site(RELAY.label, Failure(Step.TCP, "no answer"), None, 0)
    finding = bad("TCP-443", dataclasses.replace(seen, names={RELAY.name: NameSeen(("192.0.2.7",))}))
    assert finding.areas == (Area.VOICE_PROXY,)
    assert "ip daddr 192.0.2.7/32 tcp dport { 443 } accept" in finding.rules[0].text


def test_a_direct_way_that_is_blocked_beside_a_proxy_is_no_fault() -> None:
    seen = proxied(None)
    direct = SiteSeen(API, DIRECT, Failure(Step.TCP, "no answer"))
    items, finding = judged("TCP-443", dataclasses.replace(seen, sites=[*seen.sites, direct]))
    assert finding is None
    assert [(item.status, item.decides) for item in items] == [(Status.OK, False)]


def test_tls_is_cut() -> None:
    finding = bad("TLS-HANDSHAKE", with_site(API, Failure(Step.TLS, "reset"), None, 0))
    assert (finding.status, finding.actor) == (Status.FAILED, Actor.FIREWALL)


@pytest.mark.parametrize(
    ("tls", "status"),
    [
        (dataclasses.replace(GOOD_TLS, issuer="Firm CA", public=False), Status.WARNING),
        (dataclasses.replace(GOOD_TLS, issuer="Firm CA", public=False, fault=TlsFault.UNTRUSTED), Status.FAILED),
        (dataclasses.replace(GOOD_TLS, issuer="mitmproxy", public=True), Status.WARNING),
        (dataclasses.replace(GOOD_TLS, issuer="Firm CA", expected=False), Status.WARNING),
    ],
)
def test_tls_is_inspected(tls: TlsSeen, status: Status) -> None:
    failure = None if tls.fault is None else Failure(Step.TLS, "verify failed")
    finding = bad("TLS-INSPECTED", with_site(API, failure, tls, 200))
    assert (finding.status, finding.actor) == (status, Actor.WEB_PROXY)
    assert tls.issuer in finding.problem
    assert [rule.product for rule in finding.rules] == ["squid", "Zscaler", "Palo Alto"]
    assert judged("TLS-CERTIFICATE", with_site(API, failure, tls, 200))[1] is None


def test_an_emulator_whose_own_authority_has_signed_is_not_inspected() -> None:
    tls = dataclasses.replace(GOOD_TLS, issuer="emulator CA", public=False, expected=True)
    assert judged("TLS-INSPECTED", with_site(API, None, tls))[1] is None
    unknown = dataclasses.replace(tls, expected=None)
    assert judged("TLS-INSPECTED", with_site(API, None, unknown), kind=Kind.RELAY)[1] is None


@pytest.mark.parametrize(
    ("fault", "actor", "word"),
    [
        (TlsFault.EXPIRED, Actor.VENDOR, "expired"),
        (TlsFault.WRONG_NAME, Actor.VENDOR, "*.xhoot.com"),
        (TlsFault.OTHER, Actor.VENDOR, "too weak"),
    ],
)
def test_a_certificate_is_bad(fault: TlsFault, actor: Actor, word: str) -> None:
    tls = dataclasses.replace(GOOD_TLS, fault=fault, fault_text="too weak", public=True)
    finding = bad("TLS-CERTIFICATE", with_site(API, Failure(Step.TLS, "verify failed"), tls, 0))
    assert (finding.status, finding.actor) == (Status.FAILED, actor)
    assert word in finding.problem


def test_a_relay_with_an_authority_that_this_machine_does_not_know() -> None:
    tls = dataclasses.replace(GOOD_TLS, issuer="Firm CA", fault=TlsFault.UNTRUSTED, public=False)
    seen = with_site(RELAY.label, Failure(Step.TLS, "verify failed"), tls, 0)
    finding = bad("TLS-CERTIFICATE", seen, kind=Kind.RELAY)
    assert (finding.actor, finding.areas) == (Actor.DESKTOP, (Area.VOICE_PROXY,))
    expired = dataclasses.replace(tls, fault=TlsFault.EXPIRED)
    seen = with_site(RELAY.label, Failure(Step.TLS, "verify failed"), expired, 0)
    assert bad("TLS-CERTIFICATE", seen, kind=Kind.RELAY).actor is Actor.RELAY


@pytest.mark.parametrize(
    ("failure", "answer", "status"),
    [
        (Failure(Step.HTTP, "closed"), 0, Status.FAILED),
        (None, 451, Status.WARNING),
        (None, 503, Status.WARNING),
    ],
)
def test_http_is_not_answered(failure: Failure | None, answer: int, status: Status) -> None:
    assert bad("HTTP-ANSWER", with_site(API, failure, GOOD_TLS, answer)).status is status
    assert judged("HTTP-ANSWER", with_site(API, None, GOOD_TLS, 403))[1] is None


# socket.io and WebSocket


def test_polling_fails() -> None:
    seen = dataclasses.replace(good(), polling=[PollingSeen(SIGNALING, DIRECT, Failure(Step.HTTP, "404", 404))])
    finding = bad("SOCKETIO-POLLING", seen)
    assert (finding.status, finding.areas) == (Status.FAILED, (Area.SIGNALING,))


def websocket(name: str, failure: Failure | None, frames: Frames | None, **more: Any) -> Seen:
    others = [one for one in good().websockets if one.site != name]
    return dataclasses.replace(good(), websockets=[*others, WebSocketSeen(name, DIRECT, failure, frames)], **more)


STRIPPED = Failure(Step.UPGRADE, "answered 400, expected 101", 400)
WORKS = CarrierSeen("WebSocket", DIRECT, None, answered=True)
SILENT = [CarrierSeen("TURN/TLS", DIRECT, Failure(Step.TLS, "closed"))]
NO_POLLING = [PollingSeen(SIGNALING, DIRECT, Failure(Step.HTTP, "404", 404))]


@pytest.mark.parametrize(("code", "failure"), [("WEBSOCKET-UPGRADE", STRIPPED), ("WEBSOCKET-FRAMES", None)])
def test_a_websocket_fails_and_there_is_another_way_or_not(code: str, failure: Failure | None) -> None:
    frames = None if failure is not None else Frames.SWALLOWED
    assert bad(code, websocket(SIGNALING, failure, frames)).status is Status.WARNING
    assert bad(code, websocket(SIGNALING, failure, frames, polling=NO_POLLING)).status is Status.FAILED
    assert bad(code, websocket(RELAY.label, failure, frames)).status is Status.WARNING
    finding = bad(code, websocket(RELAY.label, failure, frames, carriers=SILENT))
    assert (finding.status, finding.areas) == (Status.FAILED, (Area.VOICE_PROXY,))
    assert bad(code, websocket(RELAY.label, failure, frames, carriers=Untested("none"))).status is Status.FAILED


@pytest.mark.parametrize("frames", [Frames.BUFFERED, Frames.UP_SWALLOWED, Frames.SWALLOWED])
def test_what_becomes_of_frames_is_said(frames: Frames) -> None:
    assert f"frames {frames}" in bad("WEBSOCKET-FRAMES", websocket(SIGNALING, None, frames)).problem


# UDP


def stun(*answers: float | None, region: str = "use1") -> list[StunSeen]:
    where = Address("54.174.51.241", 3478)
    return [StunSeen(f"{region}-stun{n}", region, where, ms, None) for n, ms in enumerate(answers, 1)]


def test_stun_is_blocked_to_a_region() -> None:
    seen = dataclasses.replace(good(), stun=[*stun(None, None, region="euc1"), *stun(12.0)])
    finding = bad("UDP-STUN", seen)
    assert (finding.status, finding.actor, finding.areas) == (Status.FAILED, Actor.FIREWALL, (Area.VOICE_UDP,))
    nftables = finding.rules[0].text
    assert "ip daddr 52.58.127.240/29 udp dport { 3478 } accept" in nftables
    assert "54.174.51.240" not in nftables
    assert "16384" not in nftables
    assert "set service cloud9-udp-3478 protocol udp port 3478" in finding.rules[1].text


def test_a_silent_host_of_a_region_that_answers_is_a_warning() -> None:
    finding = bad("UDP-STUN", dataclasses.replace(good(), stun=stun(12.0, None)))
    assert (finding.status, finding.actor, finding.rules) == (Status.WARNING, Actor.VENDOR, ())


@pytest.mark.parametrize(("up", "down", "words"), [(0, 0, "in both directions"), (10, 0, "on the way back")])
def test_high_ports_are_blocked(up: int, down: int, words: str) -> None:
    turn = [TurnSeen("use1-stun1", "use1", Address("54.174.51.241", 20000), 10, up, down)]
    finding = bad("UDP-HIGH-PORTS", dataclasses.replace(good(), turn=turn))
    assert (finding.status, finding.actor) == (Status.FAILED, Actor.FIREWALL)
    assert words in finding.problem
    assert "ip daddr 54.174.51.240/28 udp dport { 16384-65535 } accept" in finding.rules[0].text


def test_high_ports_lose_some() -> None:
    turn = [TurnSeen("use1-stun1", "use1", Address("54.174.51.241", 20000), 10, 10, 5)]
    assert bad("UDP-HIGH-PORTS", dataclasses.replace(good(), turn=turn)).actor is Actor.NETWORK


@pytest.mark.parametrize(
    "turn",
    [
        Untested("no credentials"),
        [TurnSeen("use1-stun1", "use1", None, fault="ALLOCATE: 401", code=401)],
        [TurnSeen("use1-stun1", "use1", None, fault="ALLOCATE: no answer")],
    ],
)
def test_high_ports_that_nobody_could_try_were_not_tested(turn: Any) -> None:
    items, finding = judged("UDP-HIGH-PORTS", dataclasses.replace(good(), turn=turn))
    assert finding is None
    assert [(item.status, item.decides) for item in items] == [(Status.NOT_TESTED, True)]


# Voice


def test_no_carrier_works() -> None:
    finding = bad("CARRIERS", dataclasses.replace(good(), carriers=SILENT))
    assert (finding.status, finding.areas) == (Status.FAILED, (Area.VOICE_PROXY,))


def test_some_carriers_work() -> None:
    finding = bad("CARRIERS", dataclasses.replace(good(), carriers=[*SILENT, WORKS]))
    assert finding.status is Status.WARNING
    assert "WebSocket" in finding.change


def test_what_the_vendor_does_not_document_is_no_fault() -> None:
    silent = CarrierSeen("TURN/TLS at host", DIRECT, Failure(Step.FRAMES, "no answer"), certain=False)
    items, finding = judged("CARRIERS", dataclasses.replace(good(), carriers=[silent]))
    assert finding is None
    assert [(item.status, item.decides) for item in items] == [(Status.NOT_TESTED, True)]


@pytest.mark.parametrize(
    "delays",
    [
        tuple([20.0] * 480 + [None] * 20),
        tuple([400.0] * 500),
        tuple([20.0, 120.0] * 250),
        tuple([None] * 500),
    ],
)
@pytest.mark.parametrize("over_udp", [True, False])
def test_voice_sounds_bad(delays: tuple[float | None, ...], over_udp: bool) -> None:
    finding = bad("VOICE-QUALITY", dataclasses.replace(good(), voice=[VoiceSeen("a path", over_udp, delays)]))
    assert (finding.status, finding.actor) == (Status.WARNING, Actor.NETWORK)
    assert finding.areas == ((Area.VOICE_UDP,) if over_udp else (Area.VOICE_PROXY,))


@pytest.mark.parametrize(
    "voice",
    [
        Untested("no credentials"),
        [VoiceSeen("a path", True, (), fault="ALLOCATE: 486")],
        [VoiceSeen("a path", True, tuple([20.0, 400.0] * 250), late_ms=380.0)],
    ],
)
def test_voice_that_nobody_could_judge_was_not_tested(voice: Any) -> None:
    items, finding = judged("VOICE-QUALITY", dataclasses.replace(good(), voice=voice))
    assert finding is None
    assert [item.status for item in items] == [Status.NOT_TESTED]
