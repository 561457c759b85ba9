"""The two ends of a stream of voice: RTP in the size of G.711, protected with SRTP; each packet is checked on arrival.

The payload is not sound. It holds the time at which it was sent, and bytes that only this packet of this stream has. So
the listener knows the one-way delay, and notices any mix-up. The delay is right if both ends run on one machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from array import array

import pylibsrtp

from relay.emulator.softphone.sdp import MASTER_KEY_BYTES, PCMU
from relay.quality.playout import Playout, play
from relay.wire.rtp import HEADER_BYTES, RtpError, RtpHeader, build_packet, parse_header

PACKETS_PER_SECOND = 50
# 20 ms of G.711: with 12 bytes of RTP header and 10 of SRTP tag, 182 bytes on the wire.
PAYLOAD_BYTES = 160
SAMPLES_PER_PACKET = 160
_STAMP_BYTES = 8
# The delay of each packet is kept, in 4 bytes: 2.9 MB for a stream of four hours. What comes later is only counted.
MAX_TRACKED_PACKETS = 4 * 3600 * PACKETS_PER_SECOND


def voice_payload(ssrc: int, sequence_number: int, sent_at_ns: int) -> bytes:
    """The bytes of one packet: the time of a monotonic clock in nanoseconds, and what only this packet has."""
    stamp = sent_at_ns.to_bytes(_STAMP_BYTES)
    seed = ssrc.to_bytes(4) + sequence_number.to_bytes(2) + stamp
    return stamp + hashlib.shake_128(seed).digest(PAYLOAD_BYTES - _STAMP_BYTES)


def new_master_key() -> bytes:
    """A random SRTP master key."""
    return secrets.token_bytes(MASTER_KEY_BYTES)


class Speaker:
    """One direction as its source has it. ``sent`` counts packets; the first has the sequence number 0."""

    def __init__(self) -> None:
        self.ssrc = secrets.randbits(32)
        self.master_key = new_master_key()
        self.sent = 0
        self._session = _session(self.master_key, pylibsrtp.Policy.SSRC_ANY_OUTBOUND)

    def next_packet(self) -> bytes:
        """The next 20 ms, protected."""
        number = self.sent
        header = RtpHeader(
            payload_type=PCMU,
            sequence_number=number & 0xFFFF,
            timestamp=number * SAMPLES_PER_PACKET & 0xFFFFFFFF,
            ssrc=self.ssrc,
            marker=number == 0,
        )
        payload = voice_payload(self.ssrc, header.sequence_number, time.monotonic_ns())
        protected = self._session.protect(build_packet(header, payload))
        self.sent += 1
        return protected


class Arrivals:
    """What has come of one stream.

    ``received`` counts packets that came as they were sent. ``wrong`` counts those that did not authenticate, came
    twice, or are not what the source sends. Delays are kept of the first ``most`` packets.
    """

    def __init__(self, ssrc: int, most: int) -> None:
        self.ssrc = ssrc
        self.received = 0
        self.wrong = 0
        self._next = 0
        self._most = most
        self._delays_ms = array("f")
        self._wanted: tuple[int, asyncio.Event] | None = None

    def _take(self, number: int, delay_ms: float) -> None:
        """Count the packet with this number in the stream."""
        if not self._note(number, delay_ms):
            self.wrong += 1
            return
        self.received += 1
        self._next = max(self._next, number + 1)
        if self._wanted is not None and self.received >= self._wanted[0]:
            self._wanted[1].set()

    def _note(self, number: int, delay_ms: float) -> bool:
        """Keep a packet's delay. Returns False if it came before."""
        if not 0 <= number < self._most:
            return number >= 0
        if (missing := number + 1 - len(self._delays_ms)) > 0:
            self._delays_ms.extend([math.nan] * missing)
        if not math.isnan(self._delays_ms[number]):
            return False
        self._delays_ms[number] = max(0.0, delay_ms)
        return True

    async def wait_received(self, packets: int) -> None:
        """Wait until this many have come. The caller has a deadline. One task may wait at a time."""
        if self.received < packets:
            self._wanted = packets, asyncio.Event()
            await self._wanted[1].wait()

    def delays_ms(self, sent: int) -> list[float | None]:
        """The one-way delay of each packet that was sent, or None if it never came."""
        sent = min(sent, self._most)
        known = [None if math.isnan(delay) else delay for delay in self._delays_ms[:sent]]
        return known + [None] * (sent - len(known))

    def playout(self, sent: int | None = None) -> Playout:
        """How it sounded. Without ``sent``, packets lost after the last that came are not known."""
        return play(self.delays_ms(self._next if sent is None else sent))


class Listener(Arrivals):
    """One direction of a call as its sink has it, with the key of its source."""

    def __init__(self, ssrc: int, master_key: bytes) -> None:
        super().__init__(ssrc, MAX_TRACKED_PACKETS)
        self._session = _session(master_key, pylibsrtp.Policy.SSRC_ANY_INBOUND)

    def hear(self, packet: bytes) -> None:
        """Authenticate a packet, compare it, and note its delay."""
        now_ns = time.monotonic_ns()
        try:
            plain = self._session.unprotect(packet)
            header = parse_header(plain)
        # ValueError: longer than any packet of SRTP that pylibsrtp takes.
        except (pylibsrtp.Error, RtpError, ValueError):
            self.wrong += 1
            return
        sent_at_ns = sent_at(header, plain)
        if header.ssrc != self.ssrc or sent_at_ns is None:
            self.wrong += 1
            return
        self._take(extend(header.sequence_number, self._next), (now_ns - sent_at_ns) / 1e6)


class Saying:
    """How much is still to be said. ``left`` counts packets; None: there is no end."""

    def __init__(self, *, speaks: bool) -> None:
        self.left: int | None = None if speaks else 0
        self._said_all = asyncio.Event()

    def said(self) -> None:
        """One packet was said."""
        if self.left is not None:
            self.left -= 1
            if not self.left:
                self._said_all.set()

    async def say(self, packets: int) -> None:
        """Say this many, and wait until they are said."""
        self.left = packets
        self._said_all.clear()
        if packets:
            await self._said_all.wait()


def sent_at(header: RtpHeader, plain: bytes) -> int | None:
    """When a packet was sent, on the clock in nanoseconds. None if it is not as a ``Speaker`` sends it."""
    sent_at_ns = int.from_bytes(plain[HEADER_BYTES : HEADER_BYTES + _STAMP_BYTES])
    expected = voice_payload(header.ssrc, header.sequence_number, sent_at_ns)
    return sent_at_ns if plain[HEADER_BYTES:] == expected else None


def extend(sequence_number: int, near: int) -> int:
    """The packet's number in the stream: the one nearest to ``near`` with these 16 low bits (RFC 3550 appendix A.1)."""
    offset = (sequence_number - near + 0x8000) & 0xFFFF
    return near + offset - 0x8000


def _session(master_key: bytes, direction: int) -> pylibsrtp.Session:
    return pylibsrtp.Session(pylibsrtp.Policy(key=master_key, ssrc_type=direction))
