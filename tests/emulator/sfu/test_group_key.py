"""The group key: how it is written, and SRTP while it changes."""

from __future__ import annotations

import pylibsrtp
import pytest

from relay.emulator.sfu.group_key import LISTENER_KEEPS_S, TALKER_WAITS_S, GroupCipher, GroupKey, keepalive
from relay.wire.rtp import RtpHeader, build_packet
from relay.wire.stun import MessageClass, Method, parse_message


def packet(number: int) -> bytes:
    return build_packet(RtpHeader(0, number, number * 160, 7), b"voice" * 32)


def test_the_key_is_not_shown() -> None:
    key = GroupKey.new(1)
    assert repr(key) == "GroupKey(number=1)"
    assert GroupKey.new(1) != key


def test_the_key_is_written_and_read() -> None:
    key = GroupKey.new(12)
    assert key.crypto.startswith("12 AES_CM_128_HMAC_SHA1_80 inline:")
    assert GroupKey.parse(key.crypto) == key
    assert GroupKey.parse(f" {key.crypto}|2^20|1:4 ") == key


@pytest.mark.parametrize(
    "crypto",
    [
        "",
        "1",
        "x AES_CM_128_HMAC_SHA1_80 inline:" + "A" * 40,
        "1 AES_CM_128_HMAC_SHA1_32 inline:" + "A" * 40,
        "1 AES_CM_128_HMAC_SHA1_80 inline:" + "A" * 36,
        "1 AES_CM_128_HMAC_SHA1_80 inline:" + "*" * 40,
        "1 AES_CM_128_HMAC_SHA1_80 outline:" + "A" * 40,
        "1234567890 AES_CM_128_HMAC_SHA1_80 inline:" + "A" * 40,
    ],
)
def test_what_is_not_a_key_is_refused(crypto: str) -> None:
    with pytest.raises(ValueError, match=r"expected|base64"):
        GroupKey.parse(crypto)


def test_no_packet_is_lost_while_the_key_changes() -> None:
    first, second = GroupKey.new(1), GroupKey.new(2)
    talker, quick, slow = GroupCipher(first), GroupCipher(first), GroupCipher(first)
    sent = [(0.0, talker.protect(packet(1), 0.0))]
    talker.use(second, 1.0)
    quick.use(second, 1.0)
    now = 1.0 + TALKER_WAITS_S / 2
    assert talker.talks_with(now) == 1
    sent.append((now, talker.protect(packet(2), now)))
    now = 1.0 + TALKER_WAITS_S
    slow.use(second, now)
    assert talker.talks_with(now) == 2
    sent.append((now, talker.protect(packet(3), now)))
    for listener in (quick, slow):
        # They arrive together, after the change.
        assert [listener.unprotect(one, now) for _, one in sent] == [packet(1), packet(2), packet(3)]


def test_the_key_before_is_forgotten() -> None:
    first, second = GroupKey.new(1), GroupKey.new(2)
    talker, listener = GroupCipher(first), GroupCipher(first)
    listener.use(second, 1.0)
    assert listener.unprotect(talker.protect(packet(1), 1.0), 1.0 + LISTENER_KEEPS_S / 2) == packet(1)
    with pytest.raises(pylibsrtp.Error):
        listener.unprotect(talker.protect(packet(2), 1.0), 1.0 + LISTENER_KEEPS_S)


def test_an_old_key_changes_nothing() -> None:
    first, second, third = (GroupKey.new(number) for number in (1, 2, 3))
    cipher = GroupCipher(second)
    cipher.use(first, 0.0)
    cipher.use(GroupKey.new(2), 0.0)
    assert cipher.talks_with(100.0) == 2
    cipher.use(third, 0.0)
    assert cipher.talks_with(100.0) == 3


def test_a_listener_who_joins_late_understands_the_middle_of_a_key() -> None:
    """A talker begins below 2^15, and ends before the numbers wrap: there is no index to guess."""
    key = GroupKey.new(1)
    talker = GroupCipher(key)
    for number in range(32767, 65536, 1000):
        protected = talker.protect(packet(number), 0.0)
        assert GroupCipher(key).unprotect(protected, 0.0) == packet(number)


def test_a_keepalive_is_a_binding_indication() -> None:
    message = parse_message(keepalive())
    assert (message.method, message.message_class) == (Method.BINDING, MessageClass.INDICATION)
    assert keepalive() != keepalive()
