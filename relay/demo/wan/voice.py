"""Both ends of a stream of the sentence: RTP under SRTP, with the times at which packets left and came.

Both ends are in one process, so they have one clock, and the listener can compare each packet with what was said.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections.abc import Sequence

import pylibsrtp

from relay.demo.wan.playout import Arrival
from relay.demo.wan.sentence import SAMPLES_PER_PACKET
from relay.emulator.softphone.sdp import PCMU
from relay.emulator.softphone.voice import extend, new_master_key
from relay.wire.rtp import HEADER_BYTES, RtpError, RtpHeader, build_packet, is_rtcp, parse_header

# RFC 3550 section 6.6: version 2, one source, in one word after the first.
BYE = 203
_BYE = struct.Struct("!BBHI")


class Talker:
    """Says the payloads again and again. ``sent_ns`` has for each packet when it left, on the monotonic clock."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self.ssrc = secrets.randbits(32)
        self.master_key = new_master_key()
        self.sent_ns: list[int] = []
        self._payloads = payloads
        self._session = pylibsrtp.Session(
            pylibsrtp.Policy(key=self.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
        )

    def payload(self, number: int) -> bytes:
        """What the packet with this number says."""
        return self._payloads[number % len(self._payloads)]

    def next_packet(self) -> bytes:
        """The next 20 ms, protected. It leaves now."""
        number = len(self.sent_ns)
        header = RtpHeader(
            payload_type=PCMU,
            sequence_number=number & 0xFFFF,
            timestamp=number * SAMPLES_PER_PACKET & 0xFFFFFFFF,
            ssrc=self.ssrc,
            marker=number == 0,
        )
        protected = self._session.protect(build_packet(header, self.payload(number)))
        self.sent_ns.append(time.monotonic_ns())
        return protected

    def goodbye(self) -> bytes:
        """The BYE of RTCP, protected: nothing comes after it."""
        return self._session.protect_rtcp(_BYE.pack(0x81, BYE, 1, self.ssrc))


class Ear:
    """Hears one talker. ``wrong`` counts what did not authenticate, came twice, or is not what was said."""

    def __init__(self, talker: Talker) -> None:
        self.arrivals: list[Arrival] = []
        self.wrong = 0
        self.ended = asyncio.Event()
        self._talker = talker
        self._numbers: set[int] = set()
        self._next = 0
        self._session = pylibsrtp.Session(
            pylibsrtp.Policy(key=talker.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_INBOUND)
        )

    def hear(self, packet: bytes) -> None:
        """Take one packet."""
        now_ns = time.monotonic_ns()
        try:
            if is_rtcp(packet):
                self._take_rtcp(self._session.unprotect_rtcp(packet))
            else:
                self._take(self._session.unprotect(packet), now_ns)
        # ValueError: longer than any packet of SRTP that pylibsrtp takes.
        except (pylibsrtp.Error, RtpError, ValueError):
            self.wrong += 1

    def _take(self, plain: bytes, now_ns: int) -> None:
        header = parse_header(plain)
        number = extend(header.sequence_number, self._next)
        sent_ns = self._talker.sent_ns
        if header.ssrc != self._talker.ssrc or not 0 <= number < len(sent_ns) or number in self._numbers:
            self.wrong += 1
            return
        if plain[HEADER_BYTES:] != self._talker.payload(number):
            self.wrong += 1
            return
        self._numbers.add(number)
        self._next = max(self._next, number + 1)
        self.arrivals.append(Arrival(number, (now_ns - sent_ns[number]) / 1e6, self._talker.payload(number)))

    def _take_rtcp(self, plain: bytes) -> None:
        if plain[1] != BYE:
            self.wrong += 1
            return
        self.ended.set()
