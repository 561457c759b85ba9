"""Voice under the group key of a hoot: one speaker, and all who are heard. Each packet is checked on arrival.

The key changes during a hoot, and with it the stream of SRTP: the sequence number begins anew. The RTP timestamp goes
on. It counts the packets of a speaker, so a listener knows what was lost, also while the key changed.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections import deque

import pylibsrtp

from relay.emulator.sfu import GroupCipher
from relay.emulator.sfu.group_key import MAX_FIRST_SEQUENCE_NUMBER
from relay.emulator.softphone.sdp import PCMU
from relay.emulator.softphone.voice import PACKETS_PER_SECOND, SAMPLES_PER_PACKET, Arrivals, sent_at, voice_payload
from relay.wire.rtp import RtpError, RtpHeader, build_packet, parse_header

# The delay of each packet, in 4 bytes: 720 KB for an hour of one voice. What comes later is only counted.
MAX_TRACKED_PACKETS = 3600 * PACKETS_PER_SECOND
# Everyone who speaks while one listens. 12 talk at once; each time that someone joins, they have another SSRC.
MAX_VOICES = 256
# Packets that overtook the first one that was heard. Later ones than these are not of this stream.
MAX_REORDERED = PACKETS_PER_SECOND
# A new key comes over TCP, and the first packets under it over UDP. If the key is late, they wait this long for it.
HOLD_S = 2.0
# 12 talkers in this time send 1,200 packets: 220 KB.
MAX_HELD = 1200


class GroupSpeaker:
    """This user in a hoot. ``sent`` counts packets, over all keys."""

    def __init__(self) -> None:
        self.ssrc = secrets.randbits(32)
        self.sent = 0
        self._under: tuple[GroupCipher, int] | None = None
        self._sequence_number = 0

    def next_packet(self, cipher: GroupCipher, now: float) -> bytes:
        """The next 20 ms, protected."""
        under = cipher, cipher.talks_with(now)
        if under != self._under:
            self._under = under
            self._sequence_number = secrets.randbelow(MAX_FIRST_SEQUENCE_NUMBER + 1)
        header = RtpHeader(
            payload_type=PCMU,
            sequence_number=self._sequence_number,
            timestamp=self.sent * SAMPLES_PER_PACKET & 0xFFFFFFFF,
            ssrc=self.ssrc,
            marker=self.sent == 0,
        )
        payload = voice_payload(self.ssrc, header.sequence_number, time.monotonic_ns())
        protected = cipher.protect(build_packet(header, payload), now)
        self._sequence_number = (self._sequence_number + 1) & 0xFFFF
        self.sent += 1
        return protected


class GroupListener(Arrivals):
    """One talker of a hoot, as a listener has them. What they said before the first packet that came is not missing."""

    def __init__(self, ssrc: int) -> None:
        super().__init__(ssrc, MAX_TRACKED_PACKETS)
        self._first: int | None = None

    def hear(self, header: RtpHeader, plain: bytes) -> None:
        """Compare a packet that has been decrypted, and note its delay."""
        sent_at_ns = sent_at(header, plain)
        number, rest = divmod(header.timestamp, SAMPLES_PER_PACKET)
        if sent_at_ns is None or rest:
            self.wrong += 1
            return
        first = number if self._first is None else self._first
        if 0 < first - number <= MAX_REORDERED:
            self._delays_ms = array("f", [float("nan")] * (first - number)) + self._delays_ms
            self._next += first - number
            first = number
        self._first = first
        self._take(number - first, (time.monotonic_ns() - sent_at_ns) / 1e6)


class GroupListeners:
    """All who are heard in a hoot, by SSRC. The SFU does not tell whose SSRC it is.

    ``wrong`` counts packets that matched no key in time. ``untracked`` counts packets of further voices, when there are
    MAX_VOICES already.
    """

    def __init__(self) -> None:
        self.voices: dict[int, GroupListener] = {}
        self.wrong = 0
        self.untracked = 0
        self.received = 0
        # Packets under a key that has not come yet, and until when they wait for it.
        self._held: deque[tuple[float, bytes]] = deque()

    def voice(self, ssrc: int) -> GroupListener:
        """A talker, who may not have been heard yet."""
        if ssrc not in self.voices:
            self.voices[ssrc] = GroupListener(ssrc)
        return self.voices[ssrc]

    def hear(self, cipher: GroupCipher, packet: bytes, now: float) -> None:
        """Take a packet of the SFU."""
        if not self._decrypt(cipher, packet, now):
            if len(self._held) >= MAX_HELD:
                self._held.popleft()
                self.wrong += 1
            self._held.append((now + HOLD_S, packet))

    def on_key(self, cipher: GroupCipher, now: float) -> None:
        """A new key has come: maybe some packets have waited for it."""
        held, self._held = self._held, deque()
        self._held.extend(one for one in held if not self._decrypt(cipher, one[1], now))

    def expire(self, now: float) -> None:
        """Give up packets whose key has not come."""
        while self._held and self._held[0][0] <= now:
            self._held.popleft()
            self.wrong += 1

    def _decrypt(self, cipher: GroupCipher, packet: bytes, now: float) -> bool:
        """Returns False if the packet does not authenticate."""
        try:
            plain = cipher.unprotect(packet, now)
            header = parse_header(plain)
        # ValueError: longer than any packet of SRTP that pylibsrtp takes.
        except (pylibsrtp.Error, RtpError, ValueError):
            return False
        self.received += 1
        if header.ssrc not in self.voices and len(self.voices) >= MAX_VOICES:
            self.untracked += 1
        else:
            self.voice(header.ssrc).hear(header, plain)
        return True
