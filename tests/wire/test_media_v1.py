"""The control messages of sessions: what is read, what is refused and how, and that both ends agree."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address, AddressFamily
from relay.wire import media_v1
from relay.wire.media_v1 import (
    Bind,
    Bound,
    ClientMessage,
    Close,
    Closed,
    Failed,
    MediaV1Error,
    Moved,
    Open,
    Opened,
    RelayMessage,
    Resume,
    Resumed,
    build_control,
    build_media,
    parse_client_message,
    parse_media,
    parse_relay_message,
)

PEER = Address("192.0.2.7", 16384)
PEER6 = Address("2001:db8::7", 16384)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Open("me", "pass", "use1", 1), '{"type":"open","username":"me","password":"pass","region":"use1","id":1}'),
        (Open(), '{"type":"open"}'),
        (Resume("abc", "x"), '{"type":"resume","token":"abc","id":"x"}'),
        (Bind(PEER, 0x4001), '{"type":"bind","peer":"192.0.2.7:16384","channel":16385}'),
        (Bind(PEER6, None, 0), '{"type":"bind","peer":"[2001:db8::7]:16384","id":0}'),
        (Close(), '{"type":"close"}'),
        (Close(""), '{"type":"close","id":""}'),
    ],
)  # fmt: skip
def test_client_messages(message: ClientMessage, text: str) -> None:
    assert build_control(message) == text
    assert parse_client_message(text) == message


@pytest.mark.parametrize(
    "message",
    [
        Opened(PEER, PEER6, "use1-stun1", "token", 10.0, 1),
        Opened(PEER, None, "use1-stun1", "token", 10.0),
        Resumed(PEER, "use1-stun1", "token", 10.0, "x"),
        Bound(PEER, 0x4FFF, 7),
        Moved(PEER6, "use1-stun2"),
        Closed(2),
        Failed(401, "the upstream refuses: Unauthorized", None, 1),
        Failed(403, "bind: the upstream refuses: Forbidden", PEER),
    ],
)
def test_relay_messages(message: RelayMessage) -> None:
    assert parse_relay_message(build_control(message)) == message


def test_later_versions_may_say_more() -> None:
    assert parse_client_message('{"type":"close","why":"lunch","id":null}') == Close()


def test_addresses_are_told_apart_by_what_they_are() -> None:
    text = '{"type":"bind","peer":"[::ffff:192.0.2.7]:16384"}'
    assert parse_client_message(text) == Bind(PEER)
    assert parse_client_message('{"type":"bind","peer":"[2001:0DB8:0::7]:16384"}') == Bind(PEER6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 8000, "no JSON"),
        ("1" * 8000, "no JSON"),
        ('{"type":"open","username":NaN}', "username: expected a string of 1 to 508 characters"),
        ("[]", "expected a JSON object"),
        ('"open"', "expected a JSON object"),
        ("{}", "type: expected a string"),
        ('{"type":7}', "type: expected a string"),
        ('{"type":"opened"}', "type: expected open, resume, bind or close"),
        ('{"type":"open","username":"a"}', "password: expected a string"),
        ('{"type":"open","password":"a"}', "username: expected a string"),
        ('{"type":"open","username":"","password":"a"}', "username: expected a string"),
        (json.dumps({"type": "open", "username": "é" * 300, "password": "a"}), "username: expected at most 508 bytes"),
        ('{"type":"open","username":"\\ud800","password":"a"}', "username: half a surrogate pair"),
        ('{"type":"open","region":5}', "region: expected a string of 1 to 63 characters"),
        ('{"type":"resume"}', "token: expected a string of 1 to 64 characters"),
        (json.dumps({"type": "resume", "token": "x" * 65}), "token: expected a string of 1 to 64 characters"),
        ('{"type":"bind"}', "peer: expected a string"),
        ('{"type":"bind","peer":"192.0.2.7"}', "peer: expected an address such as"),
        ('{"type":"bind","peer":"desk.example:16384"}', "peer: expected an address such as"),
        ('{"type":"bind","peer":"192.0.2.7:0"}', "peer: expected a port from 1 to 65535, and no scope"),
        ('{"type":"bind","peer":"192.0.2.7:70000"}', "peer: expected an address such as"),
        ('{"type":"bind","peer":"[fe80::1%lo]:7"}', "peer: expected a port from 1 to 65535, and no scope"),
        ('{"type":"bind","peer":"192.0.2.7:7","channel":16383}', "channel: expected a number from 16384 to 20479"),
        ('{"type":"bind","peer":"192.0.2.7:7","channel":true}', "channel: expected a number"),
        ('{"type":"bind","peer":"192.0.2.7:7","channel":16384.0}', "channel: expected a number"),
        ('{"type":"close","id":[]}', "id: expected a number, or at most 64 characters"),
        ('{"type":"close","id":true}', "id: expected a number, or at most 64 characters"),
        (json.dumps({"type": "close", "id": "x" * 65}), "id: expected a number, or at most 64 characters"),
        (json.dumps({"type": "close", "id": 1 << 53}), "id: expected a number, or at most 64 characters"),
        (json.dumps({"type": "close", "more": "x" * 8192}), "a message of 8221 characters: expected at most 8192"),
    ],
)  # fmt: skip
def test_what_no_client_may_say(text: str, reason: str) -> None:
    with pytest.raises(MediaV1Error) as caught:
        parse_client_message(text)
    assert str(caught.value).startswith(reason)


def test_a_refusal_names_the_message() -> None:
    with pytest.raises(MediaV1Error) as caught:
        parse_client_message('{"type":"bind","id":"seven"}')
    assert caught.value.id == "seven"


@given(st.text())
def test_any_text_is_a_message_or_an_error(text: str) -> None:
    for parse in (parse_client_message, parse_relay_message):
        with contextlib.suppress(MediaV1Error):
            parse(text)


@given(
    st.dictionaries(
        st.sampled_from(
            ["type", "id", "peer", "channel", "token", "username", "password", "relayed", "code", "reason"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=4,
        )
        | st.sampled_from(["open", "resume", "bind", "close", "opened", "bound", "moved", "error", "192.0.2.7:7"]),
    )
)
def test_any_object_is_a_message_or_an_error(values: dict[str, object]) -> None:
    for parse in (parse_client_message, parse_relay_message):
        try:
            message = parse(json.dumps(values))
        except MediaV1Error:
            continue
        assert parse(build_control(message)) == message


def test_secrets_are_not_shown() -> None:
    shown = repr([Open("trader", "hunter2"), Resume("hunter2"), Opened(PEER, None, "up", "hunter2", 10.0)])
    assert "hunter2" not in shown


def test_media() -> None:
    assert build_media(0x4001, b"abc") == b"\x40\x01abc"
    assert parse_media(b"\x7f\xffabc") == (0x7FFF, b"abc")
    assert parse_media(b"\x40\x00") == (0x4000, b"")
    for wrong in (b"", b"\x40", b"\x3f\xff", b"\x80\x00abc"):
        with pytest.raises(MediaV1Error):
            parse_media(wrong)
    assert media_v1.CHANNEL_BYTES == 2


@pytest.mark.parametrize("family", AddressFamily)
def test_families(family: AddressFamily) -> None:
    text = f'{{"type":"open","username":"me","password":"pass","family":"{family.value}"}}'
    assert build_control(Open("me", "pass", family=family)) == text
    assert parse_client_message(text) == Open("me", "pass", family=family)
    told: list[RelayMessage] = [
        Opened(PEER, None, "up", "token", 10.0, 1, PEER6),
        Resumed(PEER, "up", "token", 10.0, 1, PEER6),
        Moved(PEER, "up", PEER6),
    ]
    for message in told:
        assert f'"additional":"{PEER6}"' in build_control(message)
        assert parse_relay_message(build_control(message)) == message


@pytest.mark.parametrize("family", ['"ipv5"', "4", "true", '""', '["ipv4"]'])
def test_families_that_are_none(family: str) -> None:
    with pytest.raises(MediaV1Error, match="family: expected"):
        parse_client_message(f'{{"type":"open","username":"me","password":"pass","family":{family}}}')
