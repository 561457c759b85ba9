"""All targets hold on the stored corpus, and on as many random scenarios as a test suite has time for."""

from __future__ import annotations

import os
import random

import pytest

from relay.gateway.certificates.ocsp import Staple
from relay.gateway.entitlement.policies import Rule
from relay.plane.api import Traffic
from relay.wire.client_hello import ClientHello
from relay.wire.proxy_header import ProxyHeader
from tests.fuzz import CORPUS, GROUPS
from tests.fuzz.parsers import PARSERS
from tests.fuzz.targets import TARGETS as TWINS
from tests.fuzz.turn import MACHINES
from tests.support.certificates_made import NOW

TARGETS = TWINS | PARSERS | MACHINES

# How many random scenarios of a target, and of how many bytes at most; and how they begin, one of these or nothing.
SCENARIOS = {
    "framing": (20_000, 80),
    "first_bytes": (10_000, 24),
    "hello": (4000, 160),
    "transactions": (1000, 1200),
    "meter": (500, 400),
    "schedule": (400, 400),
    "questions": (4000, 60),
    "websocket": (4000, 60),
    "capsule": (4000, 60),
    "traffic": (20_000, 24),
    "stun": (4000, 80),
    "packet": (10_000, 24),
    "proxy_header": (10_000, 60),
    "client_hello": (10_000, 60),
    "http_answer": (4000, 80),
    "upgrade_answer": (4000, 60),
    "request": (4000, 80),
    "engineio": (4000, 60),
    "media_v1": (4000, 60),
    "entitlement": (4000, 40),
    "ocsp": (300, 12),
    "turn_server": (300, 400),
    "turn_client": (500, 400),
}
# Under sanitizers the compiled twin is watched, and the Python twin takes ten times as long: a part of them will do.
SHARE = 5 if os.environ.get("RELAY_SANITIZE") == "1" else 1
BEGINNINGS = {
    "framing": (
        b"\0",
        b"\1\0\6",
        b"\0\0\1\0\0\x21\x12\xa4\x42",
        b"\x10\0\1\0\0\x21\x12\xa4\x42",
        b"\2\0\2\0\4\x40\1\0\1",
    ),
    "first_bytes": (b"GET", b"\0\1\0\0\x21\x12\xa4", b"PRI", b"ABCDEFGHIJKLMNO"),
    # Behind a hello, before and behind our answer to it; behind fifty records.
    "hello": (b"\x18\x20", b"\x18\x20\x72\0", b"\x18\x20\x73\0", b"\x50\1" * 50),
    "transactions": (),
    # Behind a first question, and behind the last one before a sign of life.
    "questions": (b"\xc8\0", b"\xc8\0" * 3 + b"\x70\1"),
    # In the middle of a call of Opus, of one of G.711, and behind its stall; after words of 1.2 s with silence between
    # them, and with noise of a type of its own in it; with more senders than have a place.
    "meter": (
        b"\0\x7f\x7f",
        b"\0\xc8\1\xcc\1\x7f\x7f",
        b"\0\xc8\1\xcc\1\x7f\x7f\x86\x64",
        b"\0" + b"\x64\x3c\xb0\x10" * 3,
        b"\0" + b"\x64\x3c\xb0\4\xc8\5\1\x80\xb0\4\1\x80\xc8\0" * 4,
        b"\0" + b"".join(bytes([190, sender, 0, 128, 0, 128]) for sender in range(20)),
    ),
    # Voice, a chunk filled to its end, a burst in large frames, a flood of the smallest ones.
    "schedule": (b"\0" + b"\1\x2e" * 20, b"\0\x60\x18\1\1\xb8\xff", b"\1" + b"\x41\x40" * 60, b"\2\x90\xff\x91\xff"),
    # Within a text, within a message that is full, behind a ping and a cut.
    "websocket": (b"\1\x3d\0", b"\1\x71\x80", b"\0\x61\xff", b"\0\x78\x10\xf0\2"),
    "capsule": (b"\0\x20\xf0\3", b"\x41\xff"),
    "traffic": (b"\0\x17", b"\x40\1\0\4", b"\x80\xc8", b"\x16"),
    # Attributes of a request, of an error, and behind integrity.
    "stun": (b"\1\0\3", b"\1\1\x13\0\x09\0\4\0\0\4\1", b"\7\0\3\0\6\0\1a\0\0\0", b"\0\0\1\0\x08\x21\x12\xa4\x42"),
    "packet": (b"\x40\1\0\4", b"\x90\x6f", b"\x8f\0"),
    "proxy_header": (b"\1\x10TCP4 192.0.2.1 192.0.2.2 5000 443", b"\3\x20\x11", b"\x83\x20\x21", b"\x83\1\0"),
    "client_hello": (b"\1\0\0\0\6\0\4\0\0\1a", b"\1\0\x10\0\5\0\3\2h2", b"\0\1\0\0\x30\3\3"),
    "http_answer": (b"\1\5", b"\2\x40" + b"5\r\nhello\r\n", b"\3\x40", b"\1\x20A: b\r\n c"),
    "upgrade_answer": (b"\1\x40", b"\0\x09HTTP/1.1 "),
    "request": (b"\1", b"\2relay.test:443 HTTP/1.1\r\n", b"\3a/../b HTTP/1.1\r\nHost: a\r\n\r\n", b"\0"),
    "engineio": (b"\x10\x81\x20" + b'0{"sid":"abc', b"\4" + b'0{"sid":"', b"\0EIO=4&transport=websocket&"),
    "media_v1": (b'{"type":"open","username":"a","', b'{"type":"bind","peer":"192.0.2.1:5","', b'{"type":"error","'),
    "entitlement": (b'{"allowed":true,', b'{"allowed":false,"calls":'),
    # A good answer with a few bytes changed.
    "ocsp": (b"\1", b"\1\0\x10"),
    # After a good Allocate, and after a channel was bound.
    "turn_server": (b"\2\2\0\0", b"\2\2\0\0\2\3\3\4\5"),
    # After a challenge, and after an allocation.
    "turn_client": (b"\x0a\1\2", b"\x0a\1\2\2\1\1", b"\x0a\1\2\2\1\1\6\1\x0c\2\1\0"),
}


def test_each_target_is_searched() -> None:
    assert {group: set(names) for group, names in GROUPS.items()} == {
        "twins": set(TWINS),
        "parsers": {*PARSERS, *MACHINES},
    }
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_the_stored_corpus(name: str) -> None:
    stored = sorted(CORPUS.joinpath(name).iterdir())
    assert 10 < len(stored) < 50
    for path in stored:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_random_scenarios(name: str) -> None:
    source = random.Random(name)
    count, most_bytes = SCENARIOS[name]
    for _ in range(count // SHARE):
        beginning = source.choice((b"", *BEGINNINGS[name]))
        data = beginning + source.randbytes(source.randrange(most_bytes))
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{name} fails on {data.hex()}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_a_difference_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that never fails proves nothing: with a twin that always says the same it must."""
    broken: dict[str, tuple[str, object]] = {
        "framing": ("relay.wire.stream.StreamCutter.feed", lambda _self, _data: []),
        "first_bytes": ("relay.plane.reference.first_bytes.decide", lambda _data, _alpn: None),
        "hello": ("relay.plane.reference.hello.Hello.take", lambda _self, _data: None),
        "questions": ("relay.plane.reference.question.Question.judge", lambda _self, _now, _since, _silence: None),
        "transactions": ("relay.turn.transactions.Transactions.on_response", lambda _self, _identity: None),
        "meter": ("relay.quality.meter.Meter.on_packet", lambda _self, _now_us, _packet: None),
        "schedule": ("relay.plane.reference.schedule.Schedule.take", lambda _self, _now, _room, **_with_data: []),
        "websocket": ("relay.wire.websocket.MessageCutter.feed", lambda _self, _data: []),
        "capsule": ("relay.wire.capsule.CapsuleCutter.feed", lambda _self, _data: []),
        "traffic": ("tests.fuzz.targets.traffic_of", lambda _data: Traffic.RTCP),
        "stun": ("tests.fuzz.parsers.find_attribute", lambda _message, _kind: b"never"),
        "packet": ("relay.wire.channeldata.build_channel_data", lambda _number, _data: b"never"),
        "proxy_header": ("tests.fuzz.parsers.parse_proxy_header", lambda data: ProxyHeader(1, None, len(data))),
        "client_hello": ("tests.fuzz.parsers.parse_client_hello", lambda _message: ClientHello(b"never")),
        "http_answer": ("relay.wire.http1.ChunkedBody.feed", lambda _self, data: data[:1]),
        "upgrade_answer": ("relay.wire.upgrade.parse_response", len),
        "request": ("tests.fuzz.parsers.parse_authority", lambda _text: ord("")),
        "engineio": ("relay.gateway.signaling.engineio.sid_of_polling", lambda _body: "x" * 200),
        "media_v1": ("relay.wire.media_v1.build_control", lambda _message: '{"type":"close","id":7}'),
        "entitlement": ("tests.fuzz.parsers.Entitled.model_validate_json", lambda _data: Rule(True, 0)),
        "ocsp": ("tests.fuzz.parsers.read_answer", lambda *_: Staple(b"", NOW, NOW)),
        "turn_server": ("relay.turn.server.TurnServer.on_deadline", lambda _self, _now: []),
        "turn_client": ("relay.turn.client.TurnClient.may_have_allocation", property(lambda _self: False)),
    }
    monkeypatch.setattr(*broken[name])
    with pytest.raises((AssertionError, TypeError)):
        test_the_stored_corpus(name)
