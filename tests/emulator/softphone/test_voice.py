"""Two ends of a stream on a wire of the test's own: what arrives unharmed counts, and everything else is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pylibsrtp
import pytest

from relay.emulator.softphone import voice
from relay.emulator.softphone.voice import Listener, Speaker, extend, voice_payload
from relay.wire.rtp import RtpHeader, build_packet, parse_header


class Stream:
    """One speaks, another listens; nothing arrives before the test says so."""

    def __init__(self, *, first: int = 0) -> None:
        self.speaker = Speaker()
        self.speaker.sent = first
        self.listener = Listener(self.speaker.ssrc, self.speaker.master_key)
        self.listener._next = first

    def speak(self, packets: int) -> list[bytes]:
        return [self.speaker.next_packet() for _ in range(packets)]

    def hear(self, *packets: bytes) -> None:
        for packet in packets:
            self.listener.hear(packet)

    @property
    def heard(self) -> tuple[int, int]:
        """Packets that arrived, and packets that were wrong."""
        return self.listener.received, self.listener.wrong


def test_packets_are_those_of_g711_under_srtp() -> None:
    stream = Stream()
    packets = stream.speak(3)
    assert [len(packet) for packet in packets] == [182] * 3
    headers = [parse_header(packet) for packet in packets]
    assert [header.sequence_number for header in headers] == [0, 1, 2]
    assert [header.timestamp for header in headers] == [0, 160, 320]
    assert [header.marker for header in headers] == [True, False, False]
    assert {(header.ssrc, header.payload_type) for header in headers} == {(stream.speaker.ssrc, 0)}
    # SRTP encrypts the payload: two packets with the same would differ.
    session = pylibsrtp.Session(
        pylibsrtp.Policy(key=stream.speaker.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_INBOUND)
    )
    assert session.unprotect(packets[0])[12:] not in packets[0]


async def test_all_that_arrives_is_counted_and_awaited() -> None:
    stream = Stream()
    packets = stream.speak(5)
    waiting = asyncio.ensure_future(stream.listener.wait_received(5))
    await asyncio.sleep(0)
    stream.hear(*packets[:4])
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.hear(packets[4])
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(stream.listener.wait_received(5), 1)
    assert stream.heard == (5, 0)
    delays = stream.listener.delays_ms(5)
    assert all(delay is not None and 0 <= delay < 60_000 for delay in delays)


def test_order_does_not_matter_and_gaps_stay_gaps() -> None:
    stream = Stream()
    first, second, third, _, fifth = stream.speak(5)
    stream.hear(third, first, fifth, second)
    assert stream.heard == (4, 0)
    assert [delay is None for delay in stream.listener.delays_ms(5)] == [False, False, False, True, False]
    playout = stream.listener.playout()
    assert (playout.sent, playout.received, playout.lost) == (5, 4, 1)


def test_losses_at_the_end_need_the_number_sent() -> None:
    stream = Stream()
    stream.hear(*stream.speak(10)[:6])
    assert (stream.listener.playout().lost, stream.listener.playout(10).lost) == (0, 4)


@pytest.mark.parametrize("position", [0, 1, 2, 4, 8, 12, 100, 171, 172, 181], ids=lambda position: f"byte {position}")
def test_flipped_bit_is_wrong(position: int) -> None:
    stream = Stream()
    first, second = stream.speak(2)
    flipped = bytearray(first)
    flipped[position] ^= 1
    stream.hear(bytes(flipped), second)
    assert stream.heard == (1, 1)
    assert stream.listener.delays_ms(2)[0] is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packet: packet[:-1],
        lambda packet: packet + b"\0",
        lambda packet: packet[:11],
        lambda _: b"",
        lambda packet: packet * 20,
    ],
)
def test_packet_of_another_length_is_wrong(spoil: Callable[[bytes], bytes]) -> None:
    stream = Stream()
    [packet] = stream.speak(1)
    stream.hear(spoil(packet))
    assert stream.heard == (0, 1)


def test_duplicate_is_wrong() -> None:
    stream = Stream()
    first, second = stream.speak(2)
    stream.hear(first, second, first)
    assert stream.heard == (2, 1)


def test_packet_of_another_call_is_wrong() -> None:
    mine, other = Stream(), Stream()
    mine.hear(*other.speak(1))
    assert mine.heard == (0, 1)


@pytest.mark.parametrize(
    ("ssrc_bits", "payload_number", "heard"),
    [(0, 0, (1, 0)), (1, 0, (0, 1)), (0, 1, (0, 1))],
    ids=["as it was sent", "of another source", "with another payload"],
)
def test_packet_that_authenticates_is_compared_too(ssrc_bits: int, payload_number: int, heard: tuple[int, int]) -> None:
    stream = Stream()
    ssrc = stream.speaker.ssrc
    header = RtpHeader(payload_type=0, sequence_number=0, timestamp=0, ssrc=ssrc ^ ssrc_bits)
    policy = pylibsrtp.Policy(key=stream.speaker.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
    payload = voice_payload(ssrc ^ ssrc_bits, payload_number, 0)
    stream.hear(pylibsrtp.Session(policy).protect(build_packet(header, payload)))
    assert stream.heard == heard


def test_time_is_part_of_what_is_checked() -> None:
    assert voice_payload(1, 2, 3)[8:] != voice_payload(1, 2, 4)[8:]
    assert voice_payload(1, 2, 3)[:8] == bytes([0] * 7 + [3])


def test_sequence_numbers_wrap() -> None:
    # A call of 22 minutes, of which only the last packets before the wrap and the first after it are sent.
    stream = Stream(first=65_531)
    packets = stream.speak(10)
    assert [parse_header(packet).sequence_number for packet in packets] == [*range(65_531, 65_536), *range(5)]
    assert parse_header(packets[-1]).timestamp == 65_540 * 160 & 0xFFFFFFFF
    stream.hear(*packets)
    assert stream.heard == (10, 0)
    delays = stream.listener.delays_ms(65_541)
    assert [number for number, delay in enumerate(delays) if delay is not None] == list(range(65_531, 65_541))


@pytest.mark.parametrize(
    ("sequence_number", "near", "number"),
    [
        (0, 0, 0),
        (5, 3, 5),
        (65_535, 65_536, 65_535),
        (0, 65_535, 65_536),
        (1, 131_072, 131_073),
        (65_535, 131_073, 131_071),
    ],
)
def test_number_of_a_packet_from_16_bits(sequence_number: int, near: int, number: int) -> None:
    assert extend(sequence_number, near) == number


def test_what_comes_after_hours_is_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "MAX_TRACKED_PACKETS", 3)
    stream = Stream()
    stream.hear(*stream.speak(5))
    assert stream.heard == (5, 0)
    assert len(stream.listener.delays_ms(5)) == 3


def test_each_packet_of_each_stream_has_a_payload_of_its_own() -> None:
    payloads = {voice_payload(ssrc, number, 0) for ssrc in (1, 2) for number in range(1000)}
    assert len(payloads) == 2000
    assert {len(payload) for payload in payloads} == {160}
