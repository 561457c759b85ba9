"""Talker and ear: what comes is counted once, with its delay, and what is not what was said is wrong."""

from __future__ import annotations

import pylibsrtp
import pytest

from relay.demo.wan.playout import delays_of
from relay.demo.wan.voice import Ear, Talker
from relay.wire.rtp import HEADER_BYTES, parse_header

WORDS = [bytes([number]) * 160 for number in range(3)]


def ends() -> tuple[Talker, Ear]:
    talker = Talker(WORDS)
    return talker, Ear(talker)


def test_the_words_are_said_again_and_again_and_heard() -> None:
    talker, ear = ends()
    for _ in range(7):
        ear.hear(talker.next_packet())
    assert [one.number for one in ear.arrivals] == list(range(7))
    assert [one.payload for one in ear.arrivals] == [*WORDS, *WORDS, WORDS[0]]
    assert ear.wrong == 0
    assert all(one.delay_ms >= 0 for one in ear.arrivals)
    assert len(talker.sent_ns) == 7


def test_it_is_srtp_in_the_size_of_a_call() -> None:
    talker = Talker(WORDS)
    packets = [talker.next_packet() for _ in range(2)]
    assert [len(packet) for packet in packets] == [182, 182]
    assert WORDS[0] not in packets[0]
    heads = [parse_header(packet) for packet in packets]
    assert [(head.sequence_number, head.timestamp, head.marker) for head in heads] == [(0, 0, True), (1, 160, False)]
    other_key = pylibsrtp.Session(pylibsrtp.Policy(key=bytes(30), ssrc_type=pylibsrtp.Policy.SSRC_ANY_INBOUND))
    with pytest.raises(pylibsrtp.Error):
        other_key.unprotect(packets[0])


def test_what_is_lost_or_reordered() -> None:
    talker, ear = ends()
    packets = [talker.next_packet() for _ in range(5)]
    for number in (0, 3, 1):
        ear.hear(packets[number])
    assert [delay is not None for delay in delays_of(ear.arrivals, 5)] == [True, True, False, True, False]
    assert ear.wrong == 0


def test_more_packets_than_sequence_numbers() -> None:
    talker, ear = ends()
    for number in range(0x10000 + 10):
        packet = talker.next_packet()
        if number % 100 == 0 or number > 0xFFF0:
            ear.hear(packet)
    assert ear.arrivals[-1].number == 0x10000 + 9
    assert ear.wrong == 0


def test_what_is_wrong() -> None:
    talker, ear = ends()
    packet = talker.next_packet()
    stranger = Talker(WORDS).next_packet()
    ear.hear(packet)
    for wrong in (packet, stranger, b"", b"\x80", bytes(4000), packet[:HEADER_BYTES], talker.goodbye()[:-1]):
        ear.hear(wrong)
    assert (len(ear.arrivals), ear.wrong) == (1, 7)
    assert not ear.ended.is_set()


def test_a_packet_that_says_something_else_under_the_same_key() -> None:
    talker, ear = ends()
    liar = Talker(WORDS[::-1])
    liar.ssrc, liar._session = talker.ssrc, talker._session
    packet = liar.next_packet()
    talker.sent_ns.append(0)
    ear.hear(packet)
    assert (ear.arrivals, ear.wrong) == ([], 1)


def test_a_packet_that_was_not_sent_yet() -> None:
    talker, ear = ends()
    packet = talker.next_packet()
    talker.sent_ns.clear()
    ear.hear(packet)
    assert (ear.arrivals, ear.wrong) == ([], 1)


def test_goodbye_ends_it_and_may_be_said_again() -> None:
    talker, ear = ends()
    ear.hear(talker.next_packet())
    goodbye = talker.goodbye()
    assert not ear.ended.is_set()
    ear.hear(goodbye)
    assert ear.ended.is_set()
    ear.hear(talker.goodbye())
    assert ear.wrong == 0


def test_other_rtcp_is_no_goodbye() -> None:
    talker, ear = ends()
    report = bytes([0x80, 201, 0, 1]) + talker.ssrc.to_bytes(4)
    ear.hear(talker._session.protect_rtcp(report))
    assert ear.wrong == 1
    assert not ear.ended.is_set()
