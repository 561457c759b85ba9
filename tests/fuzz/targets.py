"""What is compared: each target reads any bytes as a scenario, plays it to both twins, and raises where they differ.

``parsers`` and ``turn`` have the targets without a compiled twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

from relay.plane.api import DropReason, Totals, Traffic
from relay.plane.reference import first_bytes
from relay.plane.reference.delays import Delays as ObviousDelays
from relay.plane.reference.hello import MAX_HELLO_BYTES, HelloFault
from relay.plane.reference.hello import Hello as ObviousHello
from relay.plane.reference.question import Question as ObviousQuestion
from relay.plane.reference.schedule import EARLY_DROP_PERIOD_S, PEER_CONTROL_PERIOD_S, Room
from relay.plane.reference.schedule import Schedule as ObviousSchedule
from relay.plane.reference.traffic import is_media, traffic_of
from relay.quality.meter import Meter as ObviousMeter
from relay.quality.meter import clock_table
from relay.quality.stream import Direction
from relay.turn.transactions import RTO_S, Answer
from relay.turn.transactions import Transactions as ObviousTransactions
from relay.wire.capsule import MAX_PAYLOAD_BYTES, MAX_UDP_PAYLOAD_BYTES, CapsuleCutter, build_datagram, build_varint
from relay.wire.stream import MAX_UNIT_BYTES
from relay.wire.stream import StreamCutter as ObviousCutter
from relay.wire.websocket import MAX_BINARY_BYTES, MAX_TEXT_BYTES, MessageCutter, Opcode, build_frame
from tests.fuzz import _leaves

COOKIE = b"\x21\x12\xa4\x42"
# Beyond, a scenario is longer but not different.
MAX_STEPS = 600
MAX_PACKETS = 4000
# Two that nobody knows, G.711, the meter's own word for silence, two that are configured.
PAYLOAD_TYPES = (111, 0, 13, 96, 101, 105)
PAYLOAD_CLOCKS = {96: 90_000, 101: 8_000}
CLOCKS = (48_000, 8_000, 16_000, 90_000)
DEADLINES_US = (60_000, 0, 20_000, 1_000_000)
MAX_AGE_US = 200_000
DATA_AGE_US = 1_000_000
# Bytes of media, of control and of data that may wait, and the least that a unit has. In each the obvious twin's bound
# is met before the chunks of the compiled one are full, 80 and 64 of data, which the header of each frame and the end
# of each chunk fill too.
ROOMS = (
    (40_000, 20_000, 20_000, 4),
    (200_000, 66_000, 100_000, 1000),
    (12_000, 4_000, 4_000, 4),
    (70_000, 66_000, 66_000, 200),
)
LONGEST_DATAGRAM_BYTES = 65_535
# What a server says first: nothing, an alert, a ServerHello, a HelloRetryRequest (RFC 8446 section 4.1.3).
RETRY = "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
ANSWERS = ("", "15030300020246", "160303002a020000260303" + "07" * 32, "160303002a020000260303" + RETRY)


def compare_framing(data: bytes) -> None:
    """Bytes: how many cuts (0 to 15; 16 more: zeroes follow, enough for every unit), where each is, the stream."""
    count, follows = (data[0] % 16, data[0] & 16) if data else (0, 0)
    stream = data[1 + 2 * count :] + bytes(MAX_UNIT_BYTES if follows else 0)
    places = (int.from_bytes(data[at : at + 2]) % (len(stream) + 1) for at in range(1, 1 + 2 * count, 2))
    obvious, compiled = ObviousCutter(), _leaves.StreamCutter()
    for start, end in pairwise([0, *sorted(places), len(stream), len(stream)]):
        chunk = stream[start:end]
        assert compiled.feed(chunk) == obvious.feed(chunk), (start, end)
        assert (compiled.fault, compiled.pending) == (obvious.fault, obvious.pending), (start, end)


def compare_first_bytes(data: bytes) -> None:
    """Bytes: those of the connection. Every prefix is judged, as it might have come alone."""
    for size in range(min(len(data), 64) + 1):
        assert _leaves.decide(data[:size]) is first_bytes.decide(data[:size], None), data[:size]


def compare_hello(data: bytes) -> None:
    """Bytes: steps of one byte for what is said, by the client or by us, and one for how much of it."""
    obvious, compiled = ObviousHello(), _leaves.Hello()
    for part in _hello_parts(data):
        if isinstance(part, str):
            answer = bytes.fromhex(part)
            obvious.note_answer(answer)
            compiled.note_answer(answer)
            continue
        fault = None
        try:
            obvious.take(part)
        except HelloFault as found:
            fault = str(found)
        assert compiled.take(part) == fault, part
        if fault is not None:
            return
        assert (compiled.whole, compiled.done) == (obvious.whole, obvious.done), part


def _hello_parts(data: bytes) -> Iterator[bytes | str]:
    for verb, what in _steps(data):
        if verb < 64:
            # A record of a kind that occurs, with a message in it, or a part of one.
            kind, size = (22, 22, 22, 20, 21, 23, 22, 0)[verb % 8], what if verb & 8 else what * 70
            message = b"\1" + (size if verb & 16 else MAX_HELLO_BYTES - 4 - (what & 3)).to_bytes(3) + bytes(what)
            body = message[: what % 8] if verb & 32 else message
            yield bytes([kind]) + b"\3\3" + len(body).to_bytes(2) + body
        elif verb < 96:
            yield bytes([22, 3, 3, 0, what % 4]) + bytes(what % 4)
        elif verb < 112:
            yield bytes([22, 3, 3, verb, what])
        elif verb < 128:
            yield ANSWERS[verb % len(ANSWERS)]
        elif verb < 192:
            yield bytes(what * (verb - 127))
        else:
            yield bytes([what])


def compare_questions(data: bytes) -> None:
    """Bytes: steps of one byte for what happens and one for how long after; a deadline is met to the microsecond."""
    rto_us, silence_us = round(RTO_S * 1e6), 4_000_000
    obvious, compiled = ObviousQuestion(rto_s=rto_us), _leaves.Question(rto_us)
    now_us = quiet_since_us = 1
    for step, (verb, what) in enumerate(_steps(data)):
        if verb < 96:
            now_us += what * 50_000
        elif verb < 128:
            quiet_since_us = now_us = now_us + what
        elif verb < 160:
            built = [obvious.build(), compiled.build()]
            assert built[0][:8] == built[1][:8], step
            assert built[0][16:] == built[1][16:], step
            assert obvious.is_answered_by(built[0][8:20]), step
            assert compiled.is_answered_by(built[1]), step
            assert not compiled.is_answered_by(built[0]), step
        else:
            now_us = max(now_us, round(obvious.next_deadline(quiet_since_us, silence_us)) - (verb & 1))
        assert compiled.judge(now_us, quiet_since_us, silence_us) is obvious.judge(
            now_us, quiet_since_us, silence_us
        ), step
        assert compiled.next_deadline(quiet_since_us, silence_us) == obvious.next_deadline(
            quiet_since_us, silence_us
        ), step


def compare_transactions(data: bytes) -> None:
    """Bytes: steps of one byte for what happens and one for what it happens to."""
    # With an interval in microseconds the obvious twin counts in whole numbers, as the compiled one does.
    rto_us = round(RTO_S * 1e6)
    obvious, compiled = ObviousTransactions(rto_s=rto_us), _leaves.Transactions(rto_us)
    now_us = 1
    for step, (verb, what) in enumerate(_steps(data)):
        identity = what.to_bytes(12, "little")
        if verb < 96:
            message = bytes([0, verb % 12, verb, what]) + COOKIE + identity + bytes(_attribute_bytes(verb))
            obvious.on_request(now_us, identity, message)
            compiled.on_request(now_us, message)
        elif verb < 160:
            assert compiled.on_response(identity) is obvious.on_response(identity), step
        elif verb < 176:
            # One that differs in the first byte only.
            _compare_answers(obvious, compiled, bytes([what ^ 0xFF]) + identity[1:])
        elif verb < 224:
            # Up to 39.5 s, after which nothing waits any longer: steps of 1 us, and such as meet the intervals.
            now_us += what if verb < 184 else what * 125_000
        else:
            now_us = max(now_us, round(obvious.next_deadline() or 0) - (verb & 1))
        assert compiled.on_deadline(now_us) == obvious.on_deadline(now_us)[0], step
        assert len(compiled) == len(obvious), step
        assert compiled.waiting_since == obvious.waiting_since, step
        assert compiled.next_deadline() == obvious.next_deadline(), step
    for identity in (what.to_bytes(12, "little") for what in range(256)):
        _compare_answers(obvious, compiled, identity)


@dataclass
class Sender:
    """One source as a scenario moves it."""

    ssrc: int
    payload_type: int = 111
    clock_hz: int = 48_000
    sequence_number: int = 65_500
    timestamp: int = 2**32 - 100_000

    def move(self, packets: int) -> None:
        """Go on by so many packets of 20 ms, or back."""
        self.sequence_number = (self.sequence_number + packets) % 65_536
        self.skip(packets * self.clock_hz // 50)

    def skip(self, units: int) -> None:
        self.timestamp = (self.timestamp + units) % 2**32

    def packet(self, first: int = 0x80, tail: bytes = b"voice") -> bytes:
        numbers = self.sequence_number.to_bytes(2) + self.timestamp.to_bytes(4) + self.ssrc.to_bytes(4)
        return bytes([first, self.payload_type]) + numbers + tail


def compare_meter(data: bytes) -> None:
    """Bytes: the deadline, then steps of one byte for what happens and one for how much of it."""
    deadline_us = DEADLINES_US[data[0] % 4] if data else 0
    obvious = ObviousMeter(deadline_us, PAYLOAD_CLOCKS, Direction.UPLINK)
    compiled = _leaves.Meter(deadline_us, clock_table(PAYLOAD_CLOCKS), Direction.UPLINK)
    now_us = 0
    for count, (now_us, packet) in enumerate(islice(_packets(data[1:]), MAX_PACKETS)):
        obvious.on_packet(now_us, packet)
        compiled.on_packet(now_us, packet)
        if count % 64 == 0:
            _compare_streams(obvious, compiled, now_us)
    _compare_streams(obvious, compiled, now_us + 1_000)


def _compare_streams(obvious: ObviousMeter, compiled: _leaves.Meter, now_us: int) -> None:
    streams = obvious.streams(now_us)
    assert compiled.streams(now_us) == streams
    assert (compiled.rtcp, compiled.malformed, compiled.strays) == (obvious.rtcp, obvious.malformed, obvious.strays)
    for stream in streams:
        assert stream.packets >= 1, stream
        assert stream.late <= stream.packets - stream.duplicates, stream
        assert stream.expected >= stream.packets - stream.duplicates, stream
        assert stream.missing_runs <= stream.expected, stream
        assert 0 <= stream.jitter_us <= 2_000_000, stream


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What came when."""
    now_us = 1_000_000_000
    senders = [Sender(ssrc) for ssrc in range(20)]
    sender = senders[0]
    for verb, what in _steps(data):
        if verb < 80:
            sender.move(1)
            now_us += 20_000 + (what - 128) * 150
            yield now_us, sender.packet()
        elif verb < 128:
            for _ in range(what % 128):
                sender.move(1)
                now_us += 20_000
                yield now_us, sender.packet()
        elif verb < 136:
            # What waited while nothing came: it stalls, and then all comes at once.
            now_us += what % 128 * 20_000
            for _ in range(what % 128):
                sender.move(1)
                now_us += verb % 8 * 100
                yield now_us, sender.packet()
        elif verb < 144:
            sender.move(what)
            now_us += verb % 2 * what * 20_000
        elif verb < 148:
            sender.sequence_number = (sender.sequence_number + what * 256) % 65_536
        elif verb < 164:
            sender.move(-(what % 128))
            yield now_us, sender.packet()
            sender.move(what % 128)
        elif verb < 168:
            # Again, or lost on the way.
            yield now_us, sender.packet()
        elif verb < 172:
            sender.skip((what - 128) << 24)
        elif verb < 176:
            sender.skip((what - 128) << 8)
        elif verb < 180:
            sender.skip(what * sender.clock_hz // 10)
            now_us += what * 100_000
        elif verb < 188:
            now_us += what * 50_000
        elif verb < 200:
            sender = senders[what % 20]
        elif verb < 204:
            sender.payload_type = PAYLOAD_TYPES[what % len(PAYLOAD_TYPES)]
        elif verb < 208:
            sender.clock_hz = CLOCKS[what % 4]
        elif verb < 216:
            # Any version, with contributing sources and an extension of any length.
            yield now_us, sender.packet(what, bytes([verb, what]) * (verb % 8 * 4))
        elif verb < 224:
            yield now_us, sender.packet(0x80 | what >> 3)[: what % 20]
        elif verb < 232:
            yield now_us, bytes([0x80, 192 + what % 32]) + bytes(verb % 16)
        elif verb < 236:
            # A clock that goes back must not matter.
            now_us -= what * 1_000
        elif verb < 240:
            now_us += what * 1_000_000
        else:
            sender.move(1)
            now_us += what
            yield now_us, sender.packet()


def _steps(data: bytes) -> Iterator[tuple[int, int]]:
    return zip(data[: 2 * MAX_STEPS : 2], data[1 : 2 * MAX_STEPS : 2], strict=False)


def _attribute_bytes(verb: int) -> int:
    """Mostly none; also the longest request that is sent again, and one beyond."""
    return {0: 1480, 1: 1481, 2: 1484}.get(verb, 0)


def _compare_answers(obvious: ObviousTransactions, compiled: _leaves.Transactions, identity: bytes) -> None:
    answer: Answer = obvious.on_response(identity)
    assert compiled.on_response(identity) is answer, identity


class Queues:
    """Both twins of the schedule, and of the histogram of what waited in it; each step is compared."""

    def __init__(self, media_bytes: int, control_bytes: int, data_bytes: int) -> None:
        self._totals = Totals()
        # With whole microseconds for seconds.
        period_us = round(PEER_CONTROL_PERIOD_S * 1e6)
        early_us = round(EARLY_DROP_PERIOD_S * 1e6)
        room = Room(media_bytes, control_bytes, data_bytes, DATA_AGE_US, period_us, early_us)
        self._obvious = ObviousSchedule(MAX_AGE_US, room, self._totals)
        self.compiled = _leaves.Schedule(MAX_AGE_US, media_bytes, control_bytes, data_bytes, DATA_AGE_US)
        self._delays, self._compiled_delays = ObviousDelays(), _leaves.Delays()
        self.now_us = 1_000_000

    def put(self, unit: bytes) -> None:
        assert self.compiled.put(self.now_us, unit) == self._obvious.put(self.now_us, unit)
        self.compare()

    def take(self, room: int, *, with_data: bool = True) -> None:
        taken = self._obvious.take(self.now_us, room, with_data=with_data)
        compiled = self.compiled.take(self.now_us, room, with_data)
        assert compiled == [(one.arrived, one.unit, one.framed) for one in taken]
        for frame in taken:
            self._delays.record(round(self.now_us - frame.arrived))
            self._compiled_delays.record(round(self.now_us - frame.arrived))
        self.compare()

    def compare(self) -> None:
        waiting = self._obvious.waiting_bytes
        assert (self.compiled.waiting_bytes, self.compiled.is_waiting) == (waiting, waiting > 0)
        assert self.compiled.oldest_age(self.now_us) == self._obvious.oldest_age(self.now_us)
        old, full = self.compiled.drops
        reasons = {DropReason.DOWNLINK_OLD: sum(old), DropReason.DOWNLINK_FULL: sum(full)}
        traffics = {traffic: old[at] + full[at] for at, traffic in enumerate(Traffic)}
        assert {reason: count for reason, count in reasons.items() if count} == self._totals.drops
        assert {traffic: count for traffic, count in traffics.items() if count} == self._totals.drops_by_traffic
        assert self._compiled_delays.latency() == self._delays.latency()
        assert self.compiled.chunks <= _leaves.MAX_CHUNKS

    def drain(self) -> None:
        """Take all that waits; nothing is left of it."""
        while self.compiled.is_waiting:
            self.take(4096)
        assert self.compiled.chunks == 0


def waiting_unit(traffic: Traffic, number: int, size: int) -> bytes:
    """A unit of the downlink, of ``size`` bytes but 4 at least, of a class if it has room for that, and its number."""
    if traffic is Traffic.CONTROL and size % 4 == 0 and number % 2 and size >= 20:
        return b"\x01\x01" + (size - 20).to_bytes(2) + COOKIE + (number.to_bytes(4) * (size // 4))[: size - 8]
    # Of data one begins as STUN does.
    data = b"\x17\xfe" if number % 2 else b"\0\1"
    first = {Traffic.CONTROL: b"\x16\xfe", Traffic.RTCP: b"\x80\xc8", Traffic.MEDIA: b"\x80\x6f"}.get(traffic, data)
    content = first + number.to_bytes(4) * (size // 4)
    return b"\x40\x01" + (max(size, 4) - 4).to_bytes(2) + content[: max(size, 4) - 4]


def compare_schedule(data: bytes) -> None:
    """Bytes: how much room there is, then steps of one byte for what happens and one for how much of it."""
    *room, least = ROOMS[data[0] % len(ROOMS)] if data else ROOMS[0]
    queues = Queues(*room)
    before, number = _leaves.live_buffers() - queues.compiled.chunks, 0
    for verb, what in _steps(data[1:]):
        # Mostly media; what is not, by its size.
        position = (2, (2, 3)[what % 2], 1, (0, 3)[what // 2 % 2])[verb % 4]
        traffic = tuple(Traffic)[position]
        number += 1
        if verb < 64:
            queues.put(waiting_unit(traffic, number, max(least, 4 * what + verb // 4 % 4)))
        elif verb < 96:
            # Around one chunk, or two.
            chunks = _leaves.CHUNK_BYTES * (1 + verb // 4 % 2) - _leaves.HEADER_BYTES
            queues.put(waiting_unit(traffic, number, max(least, chunks - 64 + what // 2)))
        elif verb < 128:
            # To the end of the last chunk, to where another header fits behind it, or a little beyond.
            left = queues.compiled.room(position) - _leaves.HEADER_BYTES
            queues.put(waiting_unit(traffic, number, max(least, left + what % 48 - 24)))
        elif verb < 144:
            # As large as datagrams become.
            queues.put(waiting_unit(traffic, number, max(least, LONGEST_DATAGRAM_BYTES - what * 256)))
        elif verb < 152:
            for _ in range(what):
                number += 1
                queues.put(waiting_unit(traffic, number, least))
        elif verb < 184:
            queues.take(what * 32, with_data=verb % 2 == 0)
        elif verb < 200:
            queues.take(4096)
        elif verb < 208:
            queues.drain()
        elif verb < 240:
            queues.now_us += what * 1000
        else:
            queues.now_us += what * what * 100
    queues.drain()
    assert _leaves.live_buffers() == before


def compare_websocket(data: bytes) -> None:
    """Bytes: whether texts are taken, then steps of one byte for what the client sends and one for how much of it."""
    takes_text = bool(data) and data[0] & 1 == 1
    obvious, compiled = MessageCutter(from_client=True, takes_text=takes_text), _leaves.WebSocket(takes_text)
    for chunk in _cut_up(_websocket_parts(data[1:])):
        whole = [(int(message.opcode), message.payload) for message in obvious.feed(chunk)]
        assert compiled.feed(chunk) == whole, chunk
        fault = None if obvious.fault is None else (int(obvious.fault.code), obvious.fault.text)
        assert (compiled.fault, compiled.closed and fault is None) == (fault, obvious.closed and fault is None), chunk
    payload = bytes(int.from_bytes(data[:3]) % 70_000)
    assert _leaves.build_frame(Opcode.BINARY, payload) == build_frame(Opcode.BINARY, payload)


# Text whole, and cut within a character; what is none: an overlong NUL, half a surrogate, beyond the last, a bare tail.
TEXTS = (
    "aé€\U0001f600z".encode(),
    "é".encode()[:1],
    "é".encode()[1:],
    "€".encode()[:2],
    "\U0001f600".encode()[:3],
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"12345678\x80",
    b"",
)
CODES = (1000, 1001, 1003, 1004, 1005, 1006, 1007, 1014, 1015, 999, 2999, 3000, 4999, 5000, 0, 65_535)


def _websocket_parts(data: bytes) -> Iterator[bytes | int]:
    """Bytes, and numbers: so many bytes into what follows the stream is cut."""
    mask = b"\x11\xa2\x33\xc4"
    for verb, what in _steps(data):
        final = verb % 2 == 0
        if verb < 56:
            yield build_frame(Opcode.BINARY, bytes([verb, what] * what)[:what], mask=mask)
        elif verb < 96:
            opcode = (Opcode.CONTINUATION, Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY)[verb // 2 % 4]
            yield build_frame(opcode, TEXTS[what % len(TEXTS)], mask=mask, final=final)
        elif verb < 112:
            opcode = Opcode.CONTINUATION if verb & 2 else Opcode.BINARY
            yield build_frame(opcode, bytes(MAX_BINARY_BYTES - 128 + what), mask=mask, final=final)
        elif verb < 120:
            opcode = Opcode.CONTINUATION if verb & 2 else Opcode.TEXT
            yield build_frame(opcode, bytes(MAX_TEXT_BYTES - 128 + what), mask=mask, final=final)
        elif verb < 144:
            yield build_frame(Opcode.PING if final else Opcode.PONG, bytes([what]) * (what % 128), mask=mask)
        elif verb < 152:
            code = CODES[what % len(CODES)].to_bytes(2)
            yield build_frame(Opcode.CLOSE, (code + TEXTS[verb % len(TEXTS)])[: verb % 16], mask=mask)
        elif verb < 168:
            # A head as no encoder makes it.
            yield bytes([verb % 16 | 0x80, 0xFE if final else 0xFF]) + what.to_bytes(2 if final else 8)
        elif verb < 200:
            yield bytes([what])
        else:
            yield what


def _cut_up(parts: Iterator[bytes | int]) -> Iterator[bytes]:
    stream, places = bytearray(), [0]
    for part in parts:
        if isinstance(part, int):
            places.append(len(stream) + part)
        else:
            stream += part
    ends = sorted(min(place, len(stream)) for place in places)
    for start, end in pairwise([*ends, len(stream)]):
        yield bytes(stream[start:end])


def compare_capsule(data: bytes) -> None:
    """Bytes: steps of one byte for what the client sends and one for how much of it."""
    obvious, compiled = CapsuleCutter(), _leaves.Capsules()
    for chunk in _cut_up(_capsule_parts(data)):
        assert compiled.feed(chunk) == obvious.feed(chunk), chunk
        assert (compiled.fault, compiled.oversize) == (obvious.fault, obvious.oversize), chunk
        assert obvious.fault is not None or compiled.within == obvious.within, chunk
    payload = bytes(int.from_bytes(data[:3]) % 70_000)
    assert _leaves.build_datagram(payload) == build_datagram(payload)


def _capsule_parts(data: bytes) -> Iterator[bytes | int]:
    for verb, what in _steps(data):
        if verb < 64:
            yield build_datagram(bytes([what]) * what)
        elif verb < 88:
            # Around the longest that is kept, and around the longest that may be.
            longest = MAX_UDP_PAYLOAD_BYTES if verb % 4 == 0 else MAX_PAYLOAD_BYTES
            yield build_datagram(bytes(longest - 128 + what))
        elif verb < 112:
            # Another type, or another context, or none at all.
            kind, context = (verb % 3, b"") if verb & 4 else (0, build_varint(verb % 3 * 100))
            value = (context + bytes(what))[: what if verb & 8 else None]
            yield build_varint(kind * 5000) + build_varint(len(value)) + value
        elif verb < 144:
            # Numbers longer than they need be.
            head = _long_varint(0, verb & 3) + _long_varint(what, verb >> 2 & 3)
            yield head + (_long_varint(0, verb >> 1 & 3) + bytes(what))[:what]
        elif verb < 152:
            yield _long_varint(verb % 2, 0) + build_varint(what << (verb % 8 * 7)) + bytes(verb % 8 * 40)
        elif verb < 200:
            yield bytes([what])
        else:
            yield what


def _long_varint(value: int, exponent: int) -> bytes:
    return (value | exponent << ((8 << exponent) - 2)).to_bytes(1 << exponent) if value < 64 else build_varint(value)


def compare_traffic(data: bytes) -> None:
    """Bytes: those of a datagram over CONNECT-UDP."""
    assert _leaves.traffic_of_datagram(data) == (list(Traffic).index(traffic_of(data)) if is_media(data) else None)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "framing": compare_framing,
    "first_bytes": compare_first_bytes,
    "hello": compare_hello,
    "questions": compare_questions,
    "transactions": compare_transactions,
    "meter": compare_meter,
    "schedule": compare_schedule,
    "websocket": compare_websocket,
    "capsule": compare_capsule,
    "traffic": compare_traffic,
}
