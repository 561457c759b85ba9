"""The HTTP upgrade: the example of RFC 6455, what a client must refuse, every split."""

from __future__ import annotations

import pytest

from relay.wire.upgrade import (
    MAX_HEAD_BYTES,
    Response,
    UpgradeError,
    accept_key,
    build_connect_udp_request,
    build_switching_protocols,
    build_websocket_request,
    build_websocket_response,
    check_upgrade,
    check_websocket,
    is_key,
    parse_response,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3


def parsed(data: bytes) -> Response:
    response = parse_response(data)
    assert response is not None
    return response


def test_the_example_of_the_rfc() -> None:
    assert accept_key(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert build_websocket_response(KEY, "chat") == (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
    assert b"Protocol:" not in build_websocket_response(KEY, None)


def test_requests() -> None:
    assert build_websocket_request("/turn", "relay.test", KEY, "turn", [("Authorization", "Bearer x")]) == (
        b"GET /turn HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: turn\r\nAuthorization: Bearer x\r\n\r\n"
    )
    assert build_connect_udp_request("/.well-known/masque/udp/192.0.2.6/3478/", "relay.test") == (
        b"GET /.well-known/masque/udp/192.0.2.6/3478/ HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\n"
        b"Upgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"
    )
    with pytest.raises(ValueError, match="line break"):
        build_websocket_request("/turn", "a\r\nb", KEY, "turn")


@pytest.mark.parametrize(("key", "good"), [(KEY, True), ("", False), ("AAAA", False), ("*" * 24, False)])
def test_keys(key: str, good: bool) -> None:
    assert is_key(key) is good


def test_a_good_answer_at_every_split() -> None:
    head = build_websocket_response(KEY, "turn")
    for size in range(len(head)):
        assert parse_response(head[:size]) is None
    response = parsed(head + b"\x82\x00")
    assert response.size == len(head)
    assert response.status == 101
    check_websocket(response, KEY, "turn")
    check_upgrade(parsed(build_switching_protocols("connect-udp")), "connect-udp")


def test_a_reason_that_could_steer_a_terminal_is_not_shown() -> None:
    assert parsed(b"HTTP/1.1 403 Not here\r\n\r\n").reason == "Not here"
    assert parsed(b"HTTP/1.1 403 \x1b[2Jgone\r\n\r\n").reason == ""
    assert parsed(b"HTTP/1.1 403 one\nline more\r\n\r\n").reason == ""


def test_fields_of_one_name_are_joined() -> None:
    response = parsed(b"HTTP/1.1 200 OK\r\nVia: a\r\nVIA:  b \r\n\r\n")
    assert response.headers == {"via": "a, b"}


@pytest.mark.parametrize(
    "data",
    [
        b"H2",
        b"\x15\x03",
        b"HTTP/2 200 \r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 101 \r\nno field\r\n\r\n",
        b"HTTP/1.1 101 \r\nUpgrade : websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES,
    ],
)
def test_what_is_no_response(data: bytes) -> None:
    with pytest.raises(UpgradeError):
        parse_response(data)


UPGRADE = b"HTTP/1.1 101 x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
TURN = b"Sec-WebSocket-Protocol: turn\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n", "answered 403 Forbidden"),
        (b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\n" + ACCEPT + TURN, "not for websocket"),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n" + ACCEPT + TURN, "not for websocket"),
        (UPGRADE + TURN, "Accept"),
        (UPGRADE + ACCEPT.replace(b"s3", b"s4") + TURN, "Accept"),
        (UPGRADE + ACCEPT, "sub-protocol ''"),
        (UPGRADE + ACCEPT + TURN.replace(b"turn", b"other"), "sub-protocol 'other'"),
        (UPGRADE + ACCEPT + TURN + b"Sec-WebSocket-Extensions: permessage-deflate\r\n", "extension"),
    ],
)
def test_what_does_not_open_what_was_asked_for(head: bytes, expected: str) -> None:
    with pytest.raises(UpgradeError, match=expected):
        check_websocket(parsed(head + b"\r\n"), KEY, "turn")
    check_websocket(parsed(UPGRADE + ACCEPT + TURN + b"\r\n"), KEY, "turn")
