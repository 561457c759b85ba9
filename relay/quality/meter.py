"""The RTP meter: what the packets of one direction of a flow say about its streams.

It reads only RTP headers, which SRTP does not encrypt. RTCP is encrypted, and only counted. This is the obvious twin of
``meter.pxd``. Both use the same integers, so they agree exactly. What was chosen:

Sequence    RFC 3550 section A.1, without its probation: the first packet seen of a stream begins what is expected, so a
            call that is joined in the middle lost nothing. A packet from before the first adds just itself. A jump
            needs a second packet after it to be a restart. A gap of 100 packets or more is a jump of the sender, not
            loss, if neither arrival nor timestamps leave 1 ms for each packet. So is any gap after a jump. A packet
            that is 64 or more behind the highest counts as a duplicate: it no longer fills a gap.
Transit     arrival minus timestamp, in units of the stream's clock and modulo 2^32 as in section A.8, so a timestamp
            that wraps does not matter. A packet with the same timestamp as the one before it (video, DTMF) says
            nothing, and is never late.
Late        more than the deadline above the least transit of the last 15 to 30 s (two windows, one filling), so that
            clocks may drift. Windows change with packets, not with time: a stall does not forget what was fast.
            If all packets of a second at normal pace were late, and the transit did not fall, the level has shifted
            (a route change; a sender whose timestamps stood still on hold). Then this transit is the new least one.
New clock   A timestamp that goes back from one packet to the next, or that runs ahead of arrival by more than 2 s, or
            comes after 45 s without one, starts the transit anew: older packets no longer make anything late.
Runs        of packets that were not there to be played, in the order of arrival: a gap is a run until the next packet,
            even if a reordered one fills it later.
Pauses      between packets that are not duplicates. More than 200 ms is a stall, unless the sender was silent. It was
            silent if the timestamp advanced as much (within 200 ms or half of it), and by more than 100 ms for each
            sequence number. So comfort noise may be lost, and the first packets of a talk spurt. While the clock is not
            known, silence and a stall look the same, and nothing counts as a stall.
Clock       as configured for the payload type, or that of RFC 3551, or guessed: two spans of a second or more, one
            after the other, that agree within 4 % of one well-known clock. Timestamps run on through silence (RFC 3550
            section 5.1), so a span may contain pauses. But the first span must explain those of the second: after a
            stall, or a pause in which the timestamps stood still, the guess begins anew. Other payload types in
            between (comfort noise, digits) do not disturb it, but 25 such packets in a row are a new codec.
Streams     at most 16. Another one replaces the stream that has been silent longest. If that one was heard in the last
            5 s, and there are streams of a single packet, it replaces the longest silent of these instead, so that
            noise does not push out a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relay.quality.stream import Direction, RtpStream
from relay.wire.rtp import HEADER_BYTES, RtpError, RtpHeader, is_rtcp, parse_header

# --- fixed by RFC 3550 section A.1 ---
MAX_DROPOUT = 3000
MAX_MISORDER = 100
# The smallest RTCP packet: header and SSRC.
RTCP_BYTES = 8
# RFC 3551 section 6: the payload types that have a clock of their own.
COMFORT_NOISE = 13
STATIC_CLOCKS = {
    **dict.fromkeys((0, 3, 4, 5, 7, 8, 9, 12, COMFORT_NOISE, 15, 18), 8_000),
    6: 16_000,
    **dict.fromkeys((10, 11), 44_100),
    16: 11_025,
    17: 22_050,
    **dict.fromkeys((14, 25, 26, 28, 31, 32, 33, 34), 90_000),
}

# --- chosen here, with the reasons above ---
MAX_STREAMS = 16
ALIVE_US = 5_000_000
# How many packets behind the highest are known one by one.
SEEN_PACKETS = 64
MIN_PACKET_US = 1_000
STALL_US = 200_000
LOW_WINDOW_US = 15_000_000
STALE_US = 3 * LOW_WINDOW_US
SETTLE_US = 1_000_000
JUMP_S = 2
# The first ends at 1 ms, each other at twice the one before; the last has also what is longer.
PAUSE_BUCKETS = 12
# A sender is silent if it leaves more between its packets. A voice packet has 20 ms, seldom 60.
SILENT_STEP_US = 100_000
GUESS_US = 1_000_000
# Half a second of voice, or ten seconds of comfort noise.
OTHER_PACKETS = 25
GUESSED_CLOCKS = (8_000, 16_000, 24_000, 32_000, 44_100, 48_000, 90_000)
# Above, products of time and clock would not fit into 64 bits within a year.
MAX_CLOCK_HZ = 192_000

_PAYLOAD_TYPES = 128
_MODULUS = 1 << 32


def clock_table(payload_clocks: Mapping[int, int]) -> list[int]:
    """The clock in Hz of each of the 128 payload types, or 0 if it must be guessed.

    Raises ValueError for a payload type or a clock that cannot be.
    """
    table = [STATIC_CLOCKS.get(payload_type, 0) for payload_type in range(_PAYLOAD_TYPES)]
    for payload_type, clock_hz in payload_clocks.items():
        if payload_type not in range(_PAYLOAD_TYPES) or clock_hz not in range(1, MAX_CLOCK_HZ + 1):
            raise ValueError(
                f"payload type {payload_type} with a clock of {clock_hz} Hz, "
                f"expected 0 to {_PAYLOAD_TYPES - 1} and 1 to {MAX_CLOCK_HZ} Hz"
            )
        table[payload_type] = clock_hz
    return table


class Meter:
    """The streams of one direction. Times are microseconds of one clock that does not go back."""

    def __init__(self, deadline_us: int, payload_clocks: Mapping[int, int], direction: Direction) -> None:
        """A packet is late ``deadline_us`` after the fastest ones. Raises ValueError as ``clock_table`` does."""
        self.rtcp = 0
        self.malformed = 0  # neither RTP nor RTCP, by its header
        self.strays = 0  # far outside the sequence of its stream; the first packet of each restart is among them
        self._deadline_us = deadline_us
        self._clocks = clock_table(payload_clocks)
        self._direction = direction
        self._streams: list[_Stream] = []

    def on_packet(self, now_us: int, packet: bytes) -> None:
        """Count one packet. RTP and RTCP begin with a byte from 128 to 191; any other packet is malformed."""
        if is_rtcp(packet):
            if len(packet) < RTCP_BYTES:
                self.malformed += 1
            else:
                self.rtcp += 1
            return
        try:
            header = parse_header(packet)
        except RtpError:
            self.malformed += 1
            return
        if not _extension_fits(packet, header):
            self.malformed += 1
            return
        self._on_rtp(now_us, header)

    def streams(self, now_us: int) -> list[RtpStream]:
        """What is known of each stream now, at most 16."""
        return [stream.read(now_us, self._direction) for stream in self._streams]

    def _on_rtp(self, now_us: int, header: RtpHeader) -> None:
        for stream in self._streams:
            if stream.ssrc == header.ssrc:
                break
        else:
            self._open(now_us, header)
            return
        now_us = max(now_us, stream.last_us)
        ahead = (header.sequence_number - stream.highest) % 65536
        behind = -ahead % 65536
        if behind == 0 or (behind < MAX_MISORDER and stream.is_seen(behind)):
            stream.packets += 1
            stream.duplicates += 1
        elif behind < MAX_MISORDER:
            self._on_reordered(stream, now_us, header, behind)
        elif ahead < MAX_DROPOUT and self._is_plausible(stream, now_us, header, ahead):
            self._on_next(stream, now_us, header, ahead)
        else:
            self._on_jump(stream, now_us, header)

    def _open(self, now_us: int, header: RtpHeader) -> None:
        stream = _Stream(header.ssrc, header.sequence_number, header.payload_type, now_us)
        if len(self._streams) < MAX_STREAMS:
            self._streams.append(stream)
        else:
            self._streams[self._least_worth(now_us)] = stream
        self._start_timing(stream, now_us, header)

    def _least_worth(self, now_us: int) -> int:
        """The position of the stream that another one replaces."""
        longest_silent = min(range(MAX_STREAMS), key=lambda at: self._streams[at].last_us)
        if now_us - self._streams[longest_silent].last_us < ALIVE_US:
            single = [at for at in range(MAX_STREAMS) if self._streams[at].packets == 1]
            if single:
                return min(single, key=lambda at: self._streams[at].last_us)
        return longest_silent

    # Sequence (RFC 3550 section A.1)

    def _is_plausible(self, stream: _Stream, now_us: int, header: RtpHeader, ahead: int) -> bool:
        """Whether this many packets can have been sent since the last one. After a stray, only the next one can."""
        if ahead == 1 or stream.candidate >= 0:
            return ahead == 1
        if ahead < MAX_MISORDER:
            return True
        return ahead * MIN_PACKET_US <= max(now_us - stream.last_us, self._step_us(stream, header))

    def _on_next(self, stream: _Stream, now_us: int, header: RtpHeader, ahead: int) -> None:
        """Count a packet beyond the highest, which follows a gap unless ``ahead`` is 1."""
        stream.candidate = -1
        stream.packets += 1
        stream.expected += ahead
        stream.highest = header.sequence_number
        stream.seen = (stream.seen << ahead | 1) & (1 << SEEN_PACKETS) - 1
        stream.span = min(SEEN_PACKETS, stream.span + ahead)
        pause_us = now_us - stream.last_us
        stream.on_pause(pause_us, self._may_stall(stream, pause_us, header, ahead))
        late = self._judge_next(stream, now_us, header, pause_us)
        if (late or ahead > 1) and not stream.absent:
            stream.missing_runs += 1
        stream.absent = late
        stream.last_us = now_us

    def _may_stall(self, stream: _Stream, pause_us: int, header: RtpHeader, ahead: int) -> bool:
        """Whether a long pause counts as a stall: timestamps are of use, and do not say that the sender was silent."""
        if pause_us <= STALL_US or not self._has_clock(stream, header):
            return pause_us <= STALL_US
        silence_us = self._step_us(stream, header)
        return not _explains(silence_us, pause_us) or silence_us <= ahead * SILENT_STEP_US

    def _step_us(self, stream: _Stream, header: RtpHeader) -> int:
        """The time since the highest packet by the timestamps, or 0 if they are of no use."""
        if not self._has_clock(stream, header):
            return 0
        return max(0, stream.step(header.timestamp)) * 1_000_000 // stream.clock_hz

    def _has_clock(self, stream: _Stream, header: RtpHeader) -> bool:
        """Whether the timestamp belongs to the clock that the stream is known to have."""
        return stream.clock_hz > 0 and self._clock(stream, header.payload_type) == stream.clock_hz

    def _on_reordered(self, stream: _Stream, now_us: int, header: RtpHeader, behind: int) -> None:
        stream.packets += 1
        stream.reordered += 1
        stream.seen |= 1 << behind
        if behind >= stream.span:
            # From before the first one.
            stream.expected += 1
        pause_us = now_us - stream.last_us
        stream.on_pause(pause_us, pause_us <= STALL_US or self._has_clock(stream, header))
        self._judge_reordered(stream, now_us, header)
        stream.last_us = now_us

    def _on_jump(self, stream: _Stream, now_us: int, header: RtpHeader) -> None:
        """Count a packet far outside the sequence. The second of two in a row is a restart, and both count."""
        if header.sequence_number != stream.candidate:
            stream.candidate = (header.sequence_number + 1) % 65536
            self.strays += 1
            return
        stream.candidate = -1
        stream.restarts += 1
        stream.packets += 2
        stream.expected += 2
        stream.highest = header.sequence_number
        stream.seen = 0b11
        stream.span = 2
        stream.absent = False
        stream.last_us = now_us
        self._start_timing(stream, now_us, header)

    # Clock

    def _clock(self, stream: _Stream, payload_type: int) -> int:
        """The clock of a payload type in Hz, or 0 while it is not known."""
        if stream.clock_hz and payload_type == stream.payload_type:
            return stream.clock_hz
        if payload_type == COMFORT_NOISE and stream.payload_type != COMFORT_NOISE:
            # Comfort noise has the clock of the voice that it replaces (RFC 3389 section 4), even if that is not known
            # yet.
            return stream.clock_hz
        if self._clocks[payload_type]:
            return self._clocks[payload_type]
        return stream.guessed_hz if payload_type in stream.guessed_payload_types else 0

    def _guess(self, stream: _Stream, now_us: int, header: RtpHeader, pause_us: int) -> None:
        """Measure one span after another until two agree."""
        if self._is_aside(stream, header.payload_type):
            stream.guess_others += 1
            return
        if header.payload_type not in (stream.guess_payload_type, COMFORT_NOISE):
            stream.start_guess(now_us, header, 0)
            return
        step = max(0, _signed(header.timestamp - stream.guess_last))
        stream.guess_last = header.timestamp
        stream.guess_others = 0
        if pause_us > STALL_US and stream.guess_hz and not _explains(step * 1_000_000 // stream.guess_hz, pause_us):
            stream.start_guess(now_us, header, 0)
            return
        elapsed_us = now_us - stream.guess_us
        if elapsed_us < GUESS_US:
            return
        advance = (header.timestamp - stream.guess_timestamp) % _MODULUS
        clock_hz = nearest_clock(advance * 1_000_000 // elapsed_us)
        if clock_hz and clock_hz == stream.guess_hz:
            stream.on_guessed(clock_hz)
        stream.start_guess(now_us, header, clock_hz)

    def _is_aside(self, stream: _Stream, payload_type: int) -> bool:
        """Whether a packet of another payload type leaves the current guess alone."""
        guessing = stream.guess_payload_type
        if payload_type in (guessing, COMFORT_NOISE):
            return False
        is_running = not self._clocks[guessing] and guessing not in stream.guessed_payload_types
        return is_running and stream.guess_others < OTHER_PACKETS

    # Timing (RFC 3550 section A.8)

    def _start_timing(self, stream: _Stream, now_us: int, header: RtpHeader) -> None:
        """Forget all transits except this packet's."""
        clock_hz = self._clock(stream, header.payload_type)
        if not clock_hz:
            stream.start_guess(now_us, header, 0)
            return
        if clock_hz != stream.clock_hz:
            stream.jitter = 0
        if header.payload_type != COMFORT_NOISE:
            stream.payload_type = header.payload_type
        stream.clock_hz = clock_hz
        stream.origin_us = now_us
        stream.timestamp = header.timestamp
        stream.transit = -header.timestamp % _MODULUS
        stream.start_low(now_us)

    def _judge_next(self, stream: _Stream, now_us: int, header: RtpHeader, pause_us: int) -> bool:
        """Whether the packet is late."""
        clock_hz = self._clock(stream, header.payload_type)
        if not clock_hz:
            if not stream.clock_hz and header.payload_type != COMFORT_NOISE:
                stream.payload_type = header.payload_type
            self._guess(stream, now_us, header, pause_us)
            return False
        step = stream.step(header.timestamp)
        if clock_hz != stream.clock_hz or step < 0 or now_us - stream.low_since_us >= STALE_US:
            self._start_timing(stream, now_us, header)
            return False
        if header.payload_type != COMFORT_NOISE:
            stream.payload_type = header.payload_type
        if step == 0:
            return False
        transit = stream.transit_of(now_us, header.timestamp)
        if _signed(transit - stream.transit) < -JUMP_S * clock_hz:
            self._start_timing(stream, now_us, header)
            return False
        stream.timestamp = header.timestamp
        stream.on_transit(transit)
        stream.on_low(now_us)
        return self._is_late(stream, now_us, pause_us)

    def _judge_reordered(self, stream: _Stream, now_us: int, header: RtpHeader) -> None:
        """Count a reordered packet if it still can count. It starts nothing anew."""
        if not self._has_clock(stream, header):
            return
        transit = stream.transit_of(now_us, header.timestamp)
        beyond = _signed(transit - stream.transit)
        if stream.step(header.timestamp) >= 0 or beyond < -JUMP_S * stream.clock_hz:
            return
        stream.on_transit(transit)
        stream.late += stream.excess() > self._deadline(stream)

    def _is_late(self, stream: _Stream, now_us: int, pause_us: int) -> bool:
        deadline = self._deadline(stream)
        if stream.excess() <= deadline:
            stream.in_late_streak = False
            return False
        if not stream.in_late_streak or pause_us > STALL_US:
            stream.start_late_streak(now_us)
        elif now_us - stream.late_since_us >= SETTLE_US:
            if _signed(stream.transit - stream.late_transit) >= -deadline:
                stream.start_low(now_us)
                return False
            stream.start_late_streak(now_us)
        stream.late += 1
        return True

    def _deadline(self, stream: _Stream) -> int:
        return self._deadline_us * stream.clock_hz // 1_000_000


@dataclass(slots=True)
class _Stream:
    """One SSRC. Timestamps, transits and jitter are in units of its clock; transits are modulo 2^32."""

    ssrc: int
    highest: int  # sequence number
    payload_type: int
    last_us: int  # when the last packet came that was not a duplicate
    packets: int = 1
    expected: int = 1
    duplicates: int = 0
    reordered: int = 0
    restarts: int = 0
    seen: int = 1  # bit i: the packet i behind the highest has come
    span: int = 1  # how many packets up to the highest are expected, since the last restart; 64 at most
    candidate: int = -1  # the sequence number that makes a jump a restart
    absent: bool = False  # the last packet was not there to be played
    missing_runs: int = 0
    # Timing, from the first packet whose clock is known
    clock_hz: int = 0
    origin_us: int = 0
    timestamp: int = 0  # of the highest packet that counted
    transit: int = 0  # of the last packet that counted
    jitter: int = 0  # sixteenths
    low: int = 0  # the least transit of this window
    low_before: int = 0  # and of the one before
    low_since_us: int = 0  # when this window began
    late: int = 0
    in_late_streak: bool = False
    late_since_us: int = 0  # when the streak of late packets began
    late_transit: int = 0  # and with which transit
    # Pauses
    stalls: int = 0
    longest_pause_us: int = 0
    pauses: list[int] = field(default_factory=lambda: [0] * PAUSE_BUCKETS)
    # The guess of a clock: where this span began, what the one before gave, and what came of it
    guess_us: int = 0
    guess_timestamp: int = 0
    guess_last: int = 0  # the timestamp of its last packet
    guess_payload_type: int = 0
    guess_others: int = 0  # how many packets of other types came since
    guess_hz: int = 0
    guessed_payload_types: tuple[int, int] = (0, 0)  # the last two of this clock: voice and its comfort noise, say
    guessed_hz: int = 0

    def is_seen(self, behind: int) -> bool:
        return behind >= SEEN_PACKETS or bool(self.seen >> behind & 1)

    def step(self, timestamp: int) -> int:
        """How far a timestamp is beyond the highest packet's."""
        return _signed(timestamp - self.timestamp)

    def transit_of(self, now_us: int, timestamp: int) -> int:
        return ((now_us - self.origin_us) * self.clock_hz // 1_000_000 - timestamp) % _MODULUS

    def on_transit(self, transit: int) -> None:
        """Jitter as in RFC 3550 section A.8. A pause of seconds is a stall, not jitter."""
        difference = abs(_signed(transit - self.transit))
        if difference <= JUMP_S * self.clock_hz:
            self.jitter += difference - (self.jitter + 8 >> 4)
        self.transit = transit

    def on_low(self, now_us: int) -> None:
        if now_us - self.low_since_us >= LOW_WINDOW_US:
            self.low_before, self.low, self.low_since_us = self.low, self.transit, now_us
        elif _signed(self.transit - self.low) < 0:
            self.low = self.transit

    def start_low(self, now_us: int) -> None:
        self.low = self.low_before = self.transit
        self.low_since_us = now_us
        self.in_late_streak = False

    def excess(self) -> int:
        """By how much the last packet was slower than the fastest one of recent times."""
        return max(_signed(self.transit - self.low), _signed(self.transit - self.low_before))

    def start_late_streak(self, now_us: int) -> None:
        self.in_late_streak = True
        self.late_since_us = now_us
        self.late_transit = self.transit

    def start_guess(self, now_us: int, header: RtpHeader, clock_hz: int) -> None:
        self.guess_us = now_us
        self.guess_timestamp = self.guess_last = header.timestamp
        if header.payload_type != COMFORT_NOISE:
            self.guess_payload_type = header.payload_type
        self.guess_others = 0
        self.guess_hz = clock_hz

    def on_guessed(self, clock_hz: int) -> None:
        before = self.guessed_payload_types[0] if clock_hz == self.guessed_hz else self.guess_payload_type
        self.guessed_payload_types = (self.guess_payload_type, before)
        self.guessed_hz = clock_hz

    def on_pause(self, pause_us: int, may_stall: bool) -> None:
        self.pauses[pause_bucket(pause_us)] += 1
        if may_stall:
            self.stalls += pause_us > STALL_US
            self.longest_pause_us = max(self.longest_pause_us, pause_us)

    def read(self, now_us: int, direction: Direction) -> RtpStream:
        return RtpStream(
            direction=direction,
            ssrc=self.ssrc,
            payload_type=self.payload_type,
            clock_hz=self.clock_hz,
            packets=self.packets,
            duplicates=self.duplicates,
            reordered=self.reordered,
            restarts=self.restarts,
            expected=self.expected,
            late=self.late,
            missing_runs=self.missing_runs,
            jitter_us=self.jitter * 1_000_000 // (16 * self.clock_hz) if self.clock_hz else 0,
            stalls=self.stalls,
            longest_pause_us=self.longest_pause_us,
            idle_us=max(0, now_us - self.last_us),
            pauses=[(1_000 << bucket, count) for bucket, count in enumerate(self.pauses) if count],
        )


def pause_bucket(pause_us: int) -> int:
    """The number of the histogram's bucket for a pause."""
    return min((pause_us // 1_000).bit_length(), PAUSE_BUCKETS - 1)


def nearest_clock(measured_hz: int) -> int:
    """The well-known clock within 4 % of a measured one, or 0."""
    for clock_hz in GUESSED_CLOCKS:
        if abs(measured_hz - clock_hz) * 25 <= clock_hz:
            return clock_hz
    return 0


def _extension_fits(packet: bytes, header: RtpHeader) -> bool:
    """Whether the header extension is there in full (RFC 3550 section 5.3.1)."""
    if not header.extension:
        return True
    start = HEADER_BYTES + 4 * header.csrc_count
    if len(packet) < start + 4:
        return False
    return len(packet) >= start + 4 + 4 * int.from_bytes(packet[start + 2 : start + 4])


def _explains(silence_us: int, pause_us: int) -> bool:
    """Whether a sender that was silent for this time explains a pause of this length."""
    return pause_us - silence_us <= STALL_US and 2 * silence_us >= pause_us


def _signed(difference: int) -> int:
    """A difference of 32-bit numbers, the shorter way round."""
    return (difference + _MODULUS // 2) % _MODULUS - _MODULUS // 2
