"""Voice under a group key, without a network: keys that come late, losses while a key changes, and wrong packets."""

from __future__ import annotations

import pytest

from relay.emulator.sfu import GroupCipher, GroupKey
from relay.emulator.sfu.group_key import MAX_FIRST_SEQUENCE_NUMBER, TALKER_WAITS_S
from relay.emulator.softphone import group
from relay.emulator.softphone.group import HOLD_S, GroupListeners, GroupSpeaker
from relay.wire.rtp import RtpHeader, build_packet, parse_header

NOW = 1000.0
FIRST, SECOND = GroupKey.new(1), GroupKey.new(2)


def say(speaker: GroupSpeaker, cipher: GroupCipher, packets: int, now: float = NOW) -> list[bytes]:
    return [speaker.next_packet(cipher, now) for _ in range(packets)]


def hear(listeners: GroupListeners, cipher: GroupCipher, *packets: bytes, now: float = NOW) -> None:
    for packet in packets:
        listeners.hear(cipher, packet, now)


def test_voices_are_told_apart() -> None:
    speakers, listeners, cipher = [GroupSpeaker(), GroupSpeaker()], GroupListeners(), GroupCipher(FIRST)
    for speaker in speakers:
        hear(listeners, cipher, *say(speaker, GroupCipher(FIRST), 5))
    assert {ssrc: voice.received for ssrc, voice in listeners.voices.items()} == {one.ssrc: 5 for one in speakers}


def test_each_key_begins_with_a_low_sequence_number_and_losses_meanwhile_are_known() -> None:
    speaker, listeners = GroupSpeaker(), GroupListeners()
    talks, listens = GroupCipher(FIRST), GroupCipher(FIRST)
    packets = say(speaker, talks, 10)
    talks.use(SECOND, NOW)
    listens.use(SECOND, NOW)
    packets += say(speaker, talks, 5) + say(speaker, talks, 10, NOW + TALKER_WAITS_S)
    begins = parse_header(packets[15])
    assert begins.sequence_number <= MAX_FIRST_SEQUENCE_NUMBER
    assert begins.timestamp == 15 * 160
    # The last under the first key, and the first under the second, are lost.
    hear(listeners, listens, *packets[:14], *packets[16:])
    voice = listeners.voice(speaker.ssrc)
    assert (voice.received, voice.wrong, voice.playout().lost) == (23, 0, 2)


def test_another_hoot_begins_with_a_new_sequence_number_even_under_the_same_number_of_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = iter([7, 99])
    monkeypatch.setattr("secrets.randbelow", lambda _: next(numbers))
    speaker = GroupSpeaker()
    [before] = say(speaker, GroupCipher(FIRST), 1)
    [after] = say(speaker, GroupCipher(GroupKey.new(1)), 1)
    assert [parse_header(packet).sequence_number for packet in (before, after)] == [7, 99]


def test_packets_wait_for_a_key_that_is_late() -> None:
    speaker, listeners, listens = GroupSpeaker(), GroupListeners(), GroupCipher(FIRST)
    hear(listeners, listens, *say(speaker, GroupCipher(FIRST), 2))
    hear(listeners, listens, *say(speaker, GroupCipher(SECOND), 3))
    listeners.expire(NOW + HOLD_S / 2)
    voice = listeners.voice(speaker.ssrc)
    assert (voice.received, listeners.wrong) == (2, 0)
    listens.use(SECOND, NOW + 1)
    listeners.on_key(listens, NOW + 1)
    assert (voice.received, voice.wrong, voice.playout().lost) == (5, 0, 0)


def test_packets_whose_key_does_not_come_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "MAX_HELD", 3)
    listeners, listens = GroupListeners(), GroupCipher(FIRST)
    hear(listeners, listens, *say(GroupSpeaker(), GroupCipher(SECOND), 3), b"", b"x" * 4000)
    assert listeners.wrong == 2
    listeners.on_key(listens, NOW)
    listeners.expire(NOW + HOLD_S)
    assert (listeners.wrong, listeners.received) == (5, 0)


def test_one_who_joins_late_misses_nothing_of_before() -> None:
    speaker, listeners = GroupSpeaker(), GroupListeners()
    packets = say(speaker, GroupCipher(FIRST), 20)
    # Two that were overtaken by the first that came.
    hear(listeners, GroupCipher(FIRST), packets[12], packets[10], packets[11], *packets[14:])
    voice = listeners.voice(speaker.ssrc)
    assert (voice.received, voice.wrong) == (9, 0)
    assert (voice.playout().sent, voice.playout().lost) == (10, 1)


def test_packet_that_comes_twice_is_wrong() -> None:
    speaker, listeners, listens = GroupSpeaker(), GroupListeners(), GroupCipher(FIRST)
    [packet] = say(speaker, GroupCipher(FIRST), 1)
    hear(listeners, listens, packet, packet)
    listeners.expire(NOW + HOLD_S)
    assert (listeners.received, listeners.wrong) == (1, 1)


@pytest.mark.parametrize(("timestamp", "payload"), [(160, b"v" * 160), (161, b""), (160, b"")])
def test_packet_that_authenticates_is_compared_too(timestamp: int, payload: bytes) -> None:
    listeners = GroupListeners()
    packet = GroupCipher(FIRST).protect(build_packet(RtpHeader(0, 1, timestamp, 7), payload), NOW)
    hear(listeners, GroupCipher(FIRST), packet)
    assert (listeners.voice(7).received, listeners.voice(7).wrong) == (0, 1)


def test_voices_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "MAX_VOICES", 2)
    listeners, listens = GroupListeners(), GroupCipher(FIRST)
    for _ in range(3):
        hear(listeners, listens, *say(GroupSpeaker(), GroupCipher(FIRST), 2))
    assert (len(listeners.voices), listeners.untracked, listeners.received) == (2, 2, 6)
