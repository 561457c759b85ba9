"""Two softphones on a wire of the test's own: what arrives unharmed counts, and everything else is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pylibsrtp
import pytest

from relay.addresses import Address
from relay.demo.softphone import Line, Softphone, Stream, _extend, voice_payload
from relay.wire.rtp import RtpHeader, build_packet, parse_header

PEER = Address("192.0.2.7", 49152)


class Wire:
    """A line as far as a softphone needs one; it keeps what is sent."""

    def __init__(self) -> None:
        self.bound: list[Address] = []
        self.packets: list[bytes] = []

    async def bind_channel(self, peer: Address) -> int:
        self.bound.append(peer)
        return 0x4000

    def send(self, peer: Address, data: bytes) -> None:
        assert peer == PEER
        self.packets.append(data)


class Call:
    """A speaks, B listens; nothing reaches B before the test says so."""

    def __init__(self, packets: int, *, first: int = 0) -> None:
        self.stream, self.wire = Stream(packets, sent_at=[0.0] * first), Wire()
        silence = Stream(0)
        self._speaker = Softphone(self.stream, silence)
        self._listener = Softphone(silence, self.stream)

    async def speak(self, packets: int) -> list[bytes]:
        await self._speaker.dial(cast("Line", self.wire), PEER)
        for _ in range(packets):
            self._speaker.speak()
        return self.wire.packets

    def hear(self, *packets: bytes) -> None:
        for packet in packets:
            self._listener.hear(PEER, packet)

    @property
    def heard(self) -> tuple[int, int]:
        """Packets that arrived, and packets that were wrong."""
        return len(self.stream.received_at), self.stream.wrong


async def test_packets_are_those_of_g711_under_srtp() -> None:
    call = Call(3)
    packets = await call.speak(3)
    assert call.wire.bound == [PEER]
    assert [len(packet) for packet in packets] == [182] * 3
    headers = [parse_header(packet) for packet in packets]
    assert [header.sequence_number for header in headers] == [0, 1, 2]
    assert [header.timestamp for header in headers] == [0, 160, 320]
    assert [header.marker for header in headers] == [True, False, False]
    assert {(header.ssrc, header.payload_type) for header in headers} == {(call.stream.ssrc, 0)}
    # The voice itself is not in clear.
    assert voice_payload(call.stream.ssrc, 0) not in packets[0]


async def test_all_that_arrives_completes_the_stream() -> None:
    call = Call(5)
    packets = await call.speak(5)
    call.hear(*packets[:4])
    assert not call.stream.complete.is_set()
    call.hear(packets[4])
    await asyncio.wait_for(call.stream.complete.wait(), 1)
    assert call.heard == (5, 0)
    assert all(delay is not None and delay >= 0 for delay in call.stream.delays_ms)


async def test_order_does_not_matter_and_gaps_stay_gaps() -> None:
    call = Call(5)
    first, second, third, _, fifth = await call.speak(5)
    call.hear(third, first, fifth, second)
    assert call.heard == (4, 0)
    assert [delay is None for delay in call.stream.delays_ms] == [False, False, False, True, False]


@pytest.mark.parametrize("position", [0, 1, 2, 4, 8, 12, 100, 171, 172, 181], ids=lambda position: f"byte {position}")
async def test_flipped_bit_is_wrong(position: int) -> None:
    call = Call(2)
    first, second = await call.speak(2)
    flipped = bytearray(first)
    flipped[position] ^= 1
    call.hear(bytes(flipped), second)
    assert call.heard == (1, 1)
    assert call.stream.delays_ms[0] is None


@pytest.mark.parametrize(
    "spoil", [lambda packet: packet[:-1], lambda packet: packet + b"\0", lambda packet: packet[:11], lambda _: b""]
)
async def test_packet_of_another_length_is_wrong(spoil: Callable[[bytes], bytes]) -> None:
    call = Call(1)
    [packet] = await call.speak(1)
    call.hear(spoil(packet))
    assert call.heard == (0, 1)


async def test_duplicate_is_wrong() -> None:
    call = Call(2)
    first, second = await call.speak(2)
    call.hear(first, second, first)
    assert call.heard == (2, 1)


async def test_packet_of_another_call_is_wrong() -> None:
    mine, other = Call(1), Call(1)
    mine.hear(*await other.speak(1))
    assert mine.heard == (0, 1)


async def test_other_stream_under_the_same_key_is_wrong() -> None:
    mine = Call(1)
    other = Call(1)
    other.stream = replace(mine.stream, ssrc=mine.stream.ssrc ^ 1, sent_at=[])
    other._speaker = Softphone(other.stream, Stream(0))
    mine.hear(*await other.speak(1))
    assert mine.heard == (0, 1)


@pytest.mark.parametrize(
    ("ssrc_bits", "payload_number", "heard"),
    [(0, 0, (1, 0)), (1, 0, (0, 1)), (0, 1, (0, 1))],
    ids=["as it was sent", "of another source", "with another payload"],
)
def test_packet_that_authenticates_is_compared_too(ssrc_bits: int, payload_number: int, heard: tuple[int, int]) -> None:
    call = Call(1)
    ssrc = call.stream.ssrc
    header = RtpHeader(payload_type=0, sequence_number=0, timestamp=0, ssrc=ssrc ^ ssrc_bits)
    policy = pylibsrtp.Policy(key=call.stream.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
    call.hear(pylibsrtp.Session(policy).protect(build_packet(header, voice_payload(ssrc, payload_number))))
    assert call.heard == heard


async def test_sequence_numbers_wrap() -> None:
    # A call of 22 minutes, of which only the last packets before the wrap and the first behind it are sent.
    call = Call(10, first=65_531)
    packets = await call.speak(10)
    assert [parse_header(packet).sequence_number for packet in packets] == [*range(65_531, 65_536), *range(5)]
    assert parse_header(packets[-1]).timestamp == 65_540 * 160 & 0xFFFFFFFF
    call.hear(*packets)
    assert call.heard == (10, 0)
    assert sorted(call.stream.received_at) == list(range(65_531, 65_541))
    assert call.stream.complete.is_set()


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
    assert _extend(sequence_number, near) == number


def test_each_packet_of_each_stream_has_a_payload_of_its_own() -> None:
    payloads = {voice_payload(ssrc, number) for ssrc in (1, 2) for number in range(1000)}
    assert len(payloads) == 2000
    assert {len(payload) for payload in payloads} == {160}


def test_key_is_not_shown() -> None:
    assert "master_key" not in repr(Stream(1))
