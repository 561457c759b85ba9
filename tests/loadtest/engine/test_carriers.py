"""Frames of a client and of a server, beside what the relay's own codecs make of them."""

from __future__ import annotations

import random

import pytest

from relay.wire.capsule import CapsuleCutter, build_capsule, build_datagram
from relay.wire.channeldata import build_channel_data, pad
from relay.wire.stream import StreamCutter
from relay.wire.websocket import Message, MessageCutter, Opcode, build_frame
from tests.loadtest.engine._parts import Taker, live_buffers, put_text, put_unit

TLS, WEBSOCKET, SESSION, CONNECT_UDP, UDP = range(5)
UNIT, TEXT, PING, CLOSE = range(4)
STUN = bytes.fromhex("010100002112a442") + bytes(12)
SIZES = [0, 1, 3, 4, 61, 62, 63, 117, 121, 122, 123, 124, 172, 1000, 1400]


def voice(size: int, channel: int = 0x4001) -> bytes:
    return build_channel_data(channel, random.Random(size).randbytes(size))


def server_frames(carrier: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """What a server sends on a carrier, and what a client is to find in it."""
    units = [voice(size) for size in SIZES] + [STUN]
    if carrier == TLS:
        return b"".join(pad(unit) for unit in units), [(UNIT, unit) for unit in units]
    if carrier == CONNECT_UDP:
        other = build_capsule(0x1234, b"of another kind")
        return other.join(build_datagram(unit) for unit in units), [(UNIT, unit) for unit in units]
    frames = [(UNIT, unit) for unit in units]
    frames[3:3] = [(TEXT, b'{"type": "moved"}'), (PING, b"hm"), (PING, b"")]
    frames.append((CLOSE, b"\x03\xe8bye"))
    opcodes = {UNIT: Opcode.BINARY, TEXT: Opcode.TEXT, PING: Opcode.PING, CLOSE: Opcode.CLOSE}
    pong = build_frame(Opcode.PONG, b"not told")
    return pong + b"".join(build_frame(opcodes[kind], payload) for kind, payload in frames), frames


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", [0, 1, 0xFEDCBA98])
def test_units_reach_a_server(size: int, mask: int) -> None:
    unit = voice(size)
    assert StreamCutter().feed(put_unit(TLS, unit, mask)) == [unit]
    assert put_unit(UDP, unit, mask) == unit
    assert CapsuleCutter().feed(put_unit(CONNECT_UDP, unit, mask)) == [unit]
    assert MessageCutter(from_client=True).feed(put_unit(WEBSOCKET, unit, mask)) == [Message(Opcode.BINARY, unit)]
    assert MessageCutter(from_client=True).feed(put_unit(SESSION, unit, mask)) == [
        Message(Opcode.BINARY, unit[:2] + unit[4:])
    ]


def test_masks_are_the_ones_asked_for() -> None:
    assert put_unit(WEBSOCKET, STUN, 0x01020304)[2:6] == bytes([4, 3, 2, 1])


def test_texts_reach_a_server() -> None:
    for text in (b"", b'{"type": "open"}', b"x" * 125, b"x" * 126, b"x" * 300):
        assert MessageCutter(from_client=True).feed(put_text(text, 77)) == [Message(Opcode.TEXT, text)]


@pytest.mark.parametrize("carrier", [TLS, WEBSOCKET, SESSION, CONNECT_UDP])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, 1 << 20])
def test_a_stream_is_cut_wherever_it_was_split(carrier: int, step: int) -> None:
    stream, frames = server_frames(carrier)
    taker, found = Taker(carrier), []
    for start in range(0, len(stream), step):
        found += taker.feed(stream[start : start + step])
        assert not taker.broken
    assert found == frames


def test_a_datagram_is_one_unit() -> None:
    assert Taker(UDP).feed(STUN) == [(UNIT, STUN)]
    assert Taker(UDP).feed(voice(5)) == [(UNIT, voice(5))]
    assert Taker(UDP).feed(pad(voice(5))) == [(UNIT, voice(5))]


@pytest.mark.parametrize(
    ("carrier", "data"),
    [
        (UDP, STUN[:19]),
        (UDP, voice(5)[:-1]),
        (UDP, b"\x80" + STUN[1:]),
        (TLS, b"\x80"),
        (TLS, STUN[:4] + b"\0" + STUN[5:]),
        (WEBSOCKET, b"\x02\x00"),
        (WEBSOCKET, b"\xc2\x00"),
        (WEBSOCKET, b"\x82\x80"),
        (WEBSOCKET, b"\x82\x7f"),
        (CONNECT_UDP, b"\0\0"),
    ],
)
def test_what_is_broken_is_seen(carrier: int, data: bytes) -> None:
    taker = Taker(carrier)
    assert taker.feed(data) == []
    assert taker.broken


def test_nothing_is_left() -> None:
    assert live_buffers() == 0
