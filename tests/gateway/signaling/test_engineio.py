"""What is read of Engine.IO: queries, and the session's id in every form of the first answer."""

from __future__ import annotations

import zlib

import pytest

from relay.gateway.signaling.engineio import (
    MAX_OPEN_BYTES,
    MAX_SID_CHARACTERS,
    Asked,
    asks_for_websocket,
    is_answer,
    parse_query,
    sid_of_polling,
    sid_of_websocket,
)

OPEN = b'0{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000}'
SID = "lv_VI97HAXpY6yYWAAAC"


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("EIO=4&transport=polling&t=abc", Asked("4", "polling", "")),
        ("EIO=3&transport=websocket&sid=abc-_1", Asked("3", "websocket", "abc-_1")),
        ("sid=a%2Bb", Asked("", "", "a+b")),
        ("", Asked("", "", "")),
        # Which of two is meant, servers may read differently.
        ("sid=a&sid=b&EIO=4&EIO=3", Asked("", "", "")),
        ("sid=" + "a" * (MAX_SID_CHARACTERS + 1), Asked("", "", "")),
        ("sid=%0a", Asked("", "", "")),
        ("EIO=4&transport=polling" + "&a=" * 2000 + "&sid=abc", Asked("4", "polling", "abc")),
    ],
)
def test_query(query: str, asked: Asked) -> None:
    assert parse_query(query) == asked


def test_handshake_is_what_opens_a_session() -> None:
    assert parse_query("EIO=4&transport=polling").is_handshake
    assert not parse_query("EIO=4&transport=polling&sid=a").is_handshake
    assert not parse_query("page=1").is_handshake


@pytest.mark.parametrize(
    ("query", "asks"),
    [
        ("EIO=4&transport=websocket", True),
        ("EIO=&transport=polling&transport=websocket", True),
        ("EIO=3&EIO=4&transport=web%73ocket", True),
        ("EIO=4&transport=polling&x=websocket", False),
        ("&a=" * 2000 + "&transport=websocket&EIO=4", True),
        # Other servers have transports as well.
        ("transport=websocket", False),
        ("eio=4&transport=websocket&sid=abc", False),
    ],
)
def test_every_way_to_ask_for_a_websocket_is_seen(query: str, asks: bool) -> None:
    assert asks_for_websocket(query) is asks


@pytest.mark.parametrize(
    ("query", "of_session", "upgrade"),
    [
        ("EIO=4&transport=polling&sid=abc", True, False),
        ("EIO=3&transport=websocket&sid=abc", True, True),
        ("EIO=4&transport=websocket", False, False),
        ("EIO=4&transport=webtransport&sid=abc", False, False),
        ("transport=websocket&sid=abc", False, False),
        ("EIO=4&sid=abc", False, False),
        ("sid=abc", False, False),
    ],
)
def test_what_belongs_to_a_session(query: str, of_session: bool, upgrade: bool) -> None:
    asked = parse_query(query)
    assert (asked.is_of_session, asked.is_upgrade_of_session) == (of_session, upgrade)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (OPEN, True),
        (b"4" + OPEN, True),
        (b"2", True),
        (b"bAAEC", True),
        (b"97:" + OPEN, True),
        (b"\x00\x01\xff4", True),
        (b'___eio[0]("2");', True),
        (b"ok", True),
        (b"", False),
        (b"okay", False),
        (b"<!doctype html>", False),
        (b'{"sid":"abc"}', False),
        (b"9", False),
        (b"7 items", False),
        (b"\x89PNG", False),
    ],
)
def test_answers_of_socket_io(body: bytes, expected: bool) -> None:
    assert is_answer(body) is expected


@pytest.mark.parametrize(
    "body",
    [
        OPEN,
        OPEN + b"\x1e40",
        b"97:" + OPEN + b"2:40",
        b"\x00\x09\x07\xff" + OPEN,
        b'___eio[0]("' + OPEN.replace(b'"', b'\\"') + b'");',
        b'___eio[12]("97:' + OPEN.replace(b'"', b'\\"') + b'2:40");',
        b'0{ "upgrades": [], "sid" : "lv_VI97HAXpY6yYWAAAC"}',
    ],
    ids=["4", "4 and a packet", "3", "3 binary", "4 JSONP", "3 JSONP", "another order"],
)
def test_polling(body: bytes) -> None:
    assert sid_of_polling(body) == SID


@pytest.mark.parametrize(
    "body",
    [b"", b"ok", b"4" + OPEN, b'{"sid":"abc"}', b'0{"sid":"a b"}', b'0{"sid":""}', b'0{"sid":"abc', b"0{" * 1000],
)
def test_polling_without_an_id(body: bytes) -> None:
    assert sid_of_polling(body) == ""


def frame(payload: bytes, first: int = 0x81) -> bytes:
    size = len(payload)
    return bytes([first, size]) + payload if size < 126 else bytes([first, 126]) + size.to_bytes(2) + payload


def deflated(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


@pytest.mark.parametrize(
    "stream", [frame(OPEN), frame(OPEN + b" " * 100), frame(deflated(OPEN), 0xC1)], ids=["short", "long", "deflate"]
)
def test_websocket_needs_its_whole_first_frame(stream: bytes) -> None:
    assert sid_of_websocket(stream) == SID
    assert sid_of_websocket(stream + frame(b"40")) == SID
    for end in range(len(stream)):
        assert sid_of_websocket(stream[:end]) is None


@pytest.mark.parametrize(
    "stream",
    [
        frame(OPEN, 0x82),
        frame(OPEN, 0x01),
        b"\x81\xe0" + bytes(4) + OPEN,
        b"\x81\x7f" + bytes(8),
        b"\x81\x7e" + (MAX_OPEN_BYTES + 1).to_bytes(2),
        frame(b"\xff" * 20, 0xC1),
        frame(b"40"),
        frame(deflated(b"0" * 10_000_000), 0xC1)[:MAX_OPEN_BYTES],
    ],
    ids=["binary", "fragment", "masked", "64 bits", "too long", "no deflate", "another packet", "bomb"],
)
def test_websocket_without_an_id(stream: bytes) -> None:
    assert not sid_of_websocket(stream)
