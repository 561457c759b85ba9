"""The twins agree on the stored corpus, and on as many random scenarios as a test suite has time for."""

from __future__ import annotations

import os
import random

import pytest

from relay.plane.api import Traffic
from tests.fuzz import CORPUS
from tests.fuzz.targets import TARGETS

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
}


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
        except AssertionError as error:
            raise AssertionError(f"the twins differ on {data.hex()}") from error


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
    }
    monkeypatch.setattr(*broken[name])
    with pytest.raises(AssertionError):
        test_the_stored_corpus(name)
