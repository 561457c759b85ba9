from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.plane.reference.first_bytes import FirstBytes, decide
from relay.wire.stun import MessageClass, Method, build_message

BINDING = build_message(Method.BINDING, MessageClass.REQUEST, bytes(12))

CASES = [
    (BINDING, FirstBytes.TURN),
    (b"GET / HTTP/1.1\r\n", FirstBytes.HTTP),
    (b"HEAD ", FirstBytes.HTTP),
    (b"DELETE ", FirstBytes.HTTP),
    (b"CONNECT host:443", FirstBytes.HTTP),
    (b"OPTIONS * ", FirstBytes.HTTP),
    (b"UPDATEREDIRECTREF /", FirstBytes.HTTP),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FirstBytes.UNKNOWN),
    (b"get / HTTP/1.1", FirstBytes.UNKNOWN),
    (b"GE /", FirstBytes.UNKNOWN),
    (b"GET/ ", FirstBytes.UNKNOWN),
    (b"A" * 18, FirstBytes.UNKNOWN),
    # ChannelData is never first: these could be the methods above, and are none.
    (b"\x40\x00\x00\x00", FirstBytes.UNKNOWN),
    (b"\x4f\xff\x00\x04abcd", FirstBytes.UNKNOWN),
    (b"\x7f", FirstBytes.UNKNOWN),
    (b"\x80", FirstBytes.UNKNOWN),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01", FirstBytes.UNKNOWN),
    (b"\x00\x01\x00\x01\x21\x12\xa4\x42", FirstBytes.UNKNOWN),
    (b"\x00\x01\x00\x00\x21\x12\xa4\x43", FirstBytes.UNKNOWN),
    (b"\r\nGET / HTTP/1.1", FirstBytes.UNKNOWN),
]


@pytest.mark.parametrize(("data", "verdict"), CASES)
def test_verdict_does_not_depend_on_how_the_bytes_came(data: bytes, verdict: FirstBytes) -> None:
    assert decide(data, None) is verdict
    verdicts = [decide(data[:size], None) for size in range(len(data) + 1)]
    undecided = verdicts.count(None)
    assert verdicts[:undecided] == [None] * undecided
    assert set(verdicts[undecided:]) == {verdict}


@pytest.mark.parametrize("alpn", ["stun.turn", "stun.nat-discovery"])
def test_alpn_decides_before_any_byte(alpn: str) -> None:
    assert decide(b"", alpn) is FirstBytes.TURN
    assert decide(b"", "http/1.1") is None


def test_alpn_of_http_does_not_keep_turn_out() -> None:
    assert decide(BINDING, "http/1.1") is FirstBytes.TURN


@given(st.binary(max_size=64))
def test_eighteen_bytes_always_decide(data: bytes) -> None:
    verdict = decide(data, None)
    assert verdict is not None or len(data) < 18
    if verdict is not None:
        assert decide(data + b"x", None) is verdict
