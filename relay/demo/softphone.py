"""A softphone: RTP in the size of G.711, protected with SRTP. It notes what became of every packet."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Protocol

import pylibsrtp

from relay.addresses import Address
from relay.wire.rtp import RtpError, RtpHeader, build_packet, parse_header

PACKETS_PER_SECOND = 50
# 20 ms of G.711: with 12 bytes of RTP header and 10 of SRTP tag, 182 bytes on the wire.
PAYLOAD_BYTES = 160
SAMPLES_PER_PACKET = 160
PCMU = 0
# AES-128 key and salt (RFC 3711 section 8.2).
_MASTER_KEY_BYTES = 30


class Line(Protocol):
    """What a call needs to reach the upstream. A TurnConnection is one."""

    async def allocate(self) -> Address:
        """The relayed address. Raises UpstreamError."""

    async def bind_channel(self, peer: Address) -> int:
        """Bind a channel to the peer. Raises UpstreamError."""

    def send(self, peer: Address, data: bytes) -> None:
        """Send a datagram to a peer that is bound."""

    async def close(self) -> None:
        """Hang up."""


def voice_payload(ssrc: int, sequence_number: int) -> bytes:
    """Bytes instead of 20 ms of voice. Only this packet of this stream has them, so that any mix-up is noticed."""
    seed = ssrc.to_bytes(4) + sequence_number.to_bytes(2)
    return hashlib.shake_128(seed).digest(PAYLOAD_BYTES)


@dataclass
class Stream:
    """One direction of a call, as its two ends know it. Times are in seconds of one clock."""

    packets: int
    ssrc: int = field(default_factory=lambda: secrets.randbits(32))
    master_key: bytes = field(default_factory=lambda: secrets.token_bytes(_MASTER_KEY_BYTES), repr=False)
    sent_at: list[float] = field(default_factory=list)
    received_at: dict[int, float] = field(default_factory=dict)
    # Packets that did not authenticate, came twice, or were not what was sent.
    wrong: int = 0
    # Set when every packet of the call has come.
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def delays_ms(self) -> list[float | None]:
        """For each packet sent, its one-way delay, or None if it never came."""
        arrivals = [self.received_at.get(number) for number in range(len(self.sent_at))]
        return [
            None if arrival is None else (arrival - sent) * 1000
            for sent, arrival in zip(self.sent_at, arrivals, strict=True)
        ]

    def on_received(self, number: int, now: float) -> None:
        """Note the arrival of a packet."""
        self.received_at[number] = now
        if len(self.received_at) == self.packets:
            self.complete.set()


class Softphone:
    """One end of a call: it speaks one stream and listens to another."""

    def __init__(self, speaks: Stream, listens: Stream) -> None:
        self._speaks = speaks
        self._listens = listens
        self._outbound = _session(speaks.master_key, pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
        self._inbound = _session(listens.master_key, pylibsrtp.Policy.SSRC_ANY_INBOUND)
        self._line: Line | None = None
        self._peer = Address("", 0)

    async def dial(self, line: Line, peer: Address) -> None:
        """Bind a channel to the other phone's relayed address. Raises UpstreamError."""
        await line.bind_channel(peer)
        self._line = line
        self._peer = peer

    def speak(self) -> None:
        """Send the next 20 ms."""
        assert self._line is not None
        stream = self._speaks
        number = len(stream.sent_at)
        header = RtpHeader(
            payload_type=PCMU,
            sequence_number=number & 0xFFFF,
            timestamp=number * SAMPLES_PER_PACKET & 0xFFFFFFFF,
            ssrc=stream.ssrc,
            marker=number == 0,
        )
        packet = build_packet(header, voice_payload(stream.ssrc, header.sequence_number))
        protected = self._outbound.protect(packet)
        stream.sent_at.append(time.perf_counter())
        self._line.send(self._peer, protected)

    def hear(self, _: Address, packet: bytes) -> None:
        """Authenticate a packet that came, compare it, and note when."""
        now = time.perf_counter()
        stream = self._listens
        try:
            plain = self._inbound.unprotect(packet)
            header = parse_header(plain)
        except (pylibsrtp.Error, RtpError):
            stream.wrong += 1
            return
        number = _extend(header.sequence_number, len(stream.sent_at))
        expected = voice_payload(stream.ssrc, header.sequence_number)
        if header.ssrc != stream.ssrc or plain[12:] != expected or number in stream.received_at:
            stream.wrong += 1
            return
        stream.on_received(number, now)


def _extend(sequence_number: int, near: int) -> int:
    """The packet's number in the stream: the one nearest to ``near`` with these 16 low bits (RFC 3550 appendix A.1)."""
    offset = (sequence_number - near + 0x8000) & 0xFFFF
    return near + offset - 0x8000


def _session(master_key: bytes, direction: int) -> pylibsrtp.Session:
    return pylibsrtp.Session(pylibsrtp.Policy(key=master_key, ssrc_type=direction))
