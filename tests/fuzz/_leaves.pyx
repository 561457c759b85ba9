# cython: auto_pickle=False, autotestdict=False
"""The header-only leaves of the compiled plane as Python sees them, for the comparison with their twins.

It is built for the tests only, and is in no wheel.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from relay.plane.compiled.leaves cimport capsule as capsules
from relay.plane.compiled.leaves cimport delays as histogram
from relay.plane.compiled.leaves cimport first_bytes
from relay.plane.compiled.leaves cimport hello as leaf_hello
from relay.plane.compiled.leaves cimport meter as leaf
from relay.plane.compiled.leaves cimport schedule as queues
from relay.plane.compiled.leaves cimport question as questions
from relay.plane.compiled.leaves cimport stun as stun_leaf
from relay.plane.compiled.leaves cimport transactions as table
from relay.plane.compiled.leaves cimport websocket as web
from relay.plane.compiled.leaves.buffer cimport clear_buffer
from relay.plane.compiled.leaves.first_bytes cimport FIRST_BYTES_HTTP, FIRST_BYTES_NEED_MORE, FIRST_BYTES_TURN
from relay.plane.compiled.leaves.framing cimport UNIT_NEEDS_MORE, UNIT_WHOLE, Unit, measure_unit
from relay.plane.compiled.leaves.live cimport LIVE_BUFFERS, alive, leave_blocks
from relay.plane.compiled.leaves.meter cimport PAUSE_BUCKETS, PAYLOAD_TYPES, Stream
from relay.plane.compiled.leaves.schedule cimport (
    CHUNK_ROOM, CHUNKS_A_FLOW, DATA_CHUNKS_A_FLOW, FRAME_HEADER_BYTES, PUT_REFUSED, TRAFFIC_CONTROL, TRAFFIC_DATA,
    TRAFFICS, Frame, Put, Rules,
)
from relay.plane.compiled.leaves.transactions cimport ANSWER_DUPLICATE, ANSWER_FIRST, Pending

from relay.plane.api import Latency
from relay.plane.compiled.numbers import FAULTS
from relay.plane.reference.first_bytes import FirstBytes
from relay.quality.stream import RtpStream
from relay.plane.reference.question import Judgement
from relay.turn.transactions import Answer


# A copy in a block of just its size: a sanitizer sees a read beyond it.
cdef uint8_t* exact(bytes data) except NULL:
    cdef uint8_t* copy = <uint8_t*> malloc(len(data))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const uint8_t*> data, len(data))
    return copy


cdef class StreamCutter:
    """Units of a TURN stream, as relay.wire.stream.StreamCutter gives them."""

    cdef readonly object fault      # a FramingFault, or None
    cdef bytes rest                 # the beginning of a unit that is not whole yet

    def __cinit__(self):
        self.fault = None
        self.rest = b""

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their unit."""
        return len(self.rest)

    def feed(self, bytes data not None) -> list:
        """Take bytes of the stream, give the units that are whole."""
        cdef Unit unit
        cdef list units = []
        cdef int measured = UNIT_WHOLE
        cdef Py_ssize_t offset = 0, size
        cdef uint8_t* copy
        if self.fault is not None:
            return units
        self.rest += data
        size = len(self.rest)
        copy = exact(self.rest)
        while measured == UNIT_WHOLE:
            measured = measure_unit(copy + offset, size - offset, &unit)
            if measured == UNIT_WHOLE:
                units.append((<char*> copy)[offset:offset + unit.size])
                offset += unit.stream_size
        if measured != UNIT_NEEDS_MORE:
            self.fault = FAULTS[-measured - 1]
            offset = size
        self.rest = self.rest[offset:]
        free(copy)
        return units


def decide(bytes data not None) -> object:
    """The verdict of relay.plane.reference.first_bytes.decide without ALPN."""
    cdef uint8_t* copy = exact(data)
    cdef first_bytes.FirstBytes verdict = first_bytes.decide(copy, len(data))
    free(copy)
    if verdict == FIRST_BYTES_NEED_MORE:
        return None
    if verdict == FIRST_BYTES_TURN:
        return FirstBytes.TURN
    return FirstBytes.HTTP if verdict == FIRST_BYTES_HTTP else FirstBytes.UNKNOWN


cdef class Hello:
    """What a client may say before its handshake is done, as relay.plane.reference.hello.Hello has it."""

    cdef leaf_hello.Hello hello

    def take(self, bytes data not None) -> str | None:
        """What is wrong, or None."""
        cdef uint8_t* copy = exact(data)
        cdef bint good = leaf_hello.take_hello(&self.hello, copy, len(data))
        free(copy)
        return None if good else (<bytes> leaf_hello.words_of(self.hello.fault)).decode()

    def note_answer(self, bytes data not None) -> None:
        """Bytes of ours."""
        cdef uint8_t* copy = exact(data)
        if len(data):
            leaf_hello.note_answer(&self.hello, copy, len(data))
        free(copy)

    @property
    def done(self) -> bool:
        """True once what follows is encrypted."""
        return self.hello.done

    @property
    def whole(self) -> bool:
        """True once the first message is."""
        return self.hello.whole


cdef class WebSocket:
    """Whole messages of a client, as relay.wire.websocket.MessageCutter gives them."""

    cdef web.WebSocket web
    cdef bytes rest
    cdef readonly bint closed
    cdef readonly object fault      # (code, text), or None

    def __cinit__(self, bint takes_text):
        memset(&self.web, 0, sizeof(self.web))
        self.web.takes_text = takes_text
        self.rest = b""
        self.fault = None

    def __dealloc__(self):
        clear_buffer(&self.web.message)

    def feed(self, bytes data not None) -> list:
        """Take bytes of the stream, give (opcode, payload) of the messages that are whole."""
        cdef web.Message message
        cdef list messages = []
        cdef int got = web.WEB_PART
        cdef uint32_t offset = 0, size
        cdef uint8_t* copy
        if self.closed or self.fault is not None:
            return messages
        self.rest += data
        size = <uint32_t> len(self.rest)
        copy = exact(self.rest)
        while got > 0 and not self.closed:
            got = web.read_message(&self.web, copy + offset, size - offset, &message)
            if got > 0:
                offset += message.used
            if got == web.WEB_WHOLE:
                # What stands before a payload may be written to.
                memset(message.payload - web.WEB_ROOM, 0xFF, web.WEB_ROOM)
                messages.append((message.opcode, (<char*> message.payload)[:message.size]))
                self.closed = message.opcode == web.WEB_CLOSE
                if not self.web.opcode:
                    clear_buffer(&self.web.message)
        if got < 0:
            self.fault = self.describe(got)
        self.rest = self.rest[offset:]
        free(copy)
        return messages

    cdef object describe(self, int fault):
        cdef char[web.WEB_WORDS_BYTES] words
        web.describe_fault(fault, self.web.number, words)
        return web.close_code_of(fault), (<bytes> words).decode()


def is_utf8(bytes data not None) -> bool:
    """Whether Python would decode it."""
    cdef uint8_t* copy = exact(data)
    cdef bint verdict = web.is_utf8(copy, <uint32_t> len(data))
    free(copy)
    return verdict


def build_frame(uint8_t opcode, bytes payload not None) -> bytes:
    """The frame of a server."""
    cdef uint8_t* copy = exact(bytes(web.WEB_MAX_HEAD_BYTES) + payload)
    cdef uint64_t size = len(payload)
    cdef uint32_t head = web.write_head(copy + web.WEB_MAX_HEAD_BYTES, opcode, size)
    cdef bytes frame = (<char*> copy)[web.WEB_MAX_HEAD_BYTES - head:web.WEB_MAX_HEAD_BYTES + size]
    free(copy)
    return frame


cdef class Capsules:
    """UDP payloads, as relay.wire.capsule.CapsuleCutter gives them."""

    cdef capsules.Capsules capsules
    cdef bytes rest
    cdef readonly object fault
    cdef readonly int oversize

    def __cinit__(self):
        memset(&self.capsules, 0, sizeof(self.capsules))
        self.rest = b""
        self.fault = None

    @property
    def within(self) -> bool:
        """Whether a capsule has begun and is not whole."""
        return len(self.rest) > 0 or self.capsules.skip > 0

    def feed(self, bytes data not None) -> list:
        """Take bytes of the stream, give the payloads that are whole."""
        cdef capsules.Payload payload
        cdef list payloads = []
        cdef int got = capsules.CAPSULE_SKIPPED
        cdef uint32_t offset = 0, size
        cdef uint8_t* copy
        if self.fault is not None:
            return payloads
        self.rest += data
        size = <uint32_t> len(self.rest)
        copy = exact(self.rest)
        while got > 0:
            got = capsules.read_capsule(&self.capsules, copy + offset, size - offset, &payload)
            if got > 0:
                offset += payload.used
            if got == capsules.CAPSULE_PAYLOAD:
                payloads.append((<char*> payload.data)[:payload.size])
            self.oversize += got == capsules.CAPSULE_OVERSIZE
        if got == capsules.CAPSULE_NO_CONTEXT:
            self.fault = "no context id"
        elif got == capsules.CAPSULE_TOO_LONG:
            self.fault = f"datagram of {self.capsules.number} bytes"
        self.rest = self.rest[offset:]
        free(copy)
        return payloads


def build_datagram(bytes payload not None) -> bytes:
    """The DATAGRAM capsule of one UDP payload."""
    cdef uint8_t* copy = exact(bytes(capsules.CAPSULE_ROOM) + payload)
    cdef uint32_t size = <uint32_t> len(payload)
    cdef uint32_t head = capsules.write_capsule_head(copy + capsules.CAPSULE_ROOM, size)
    cdef bytes capsule = (<char*> copy)[capsules.CAPSULE_ROOM - head:capsules.CAPSULE_ROOM + size]
    free(copy)
    return capsule


def traffic_of_datagram(bytes datagram not None) -> object:
    """The place of its class in Traffic, None for what is no media."""
    cdef uint8_t* copy = exact(datagram)
    cdef uint32_t size = <uint32_t> len(datagram)
    traffic = queues.traffic_of(copy, size) if queues.is_media_datagram(copy, size) else None
    free(copy)
    return traffic


cdef class Transactions:
    """The table of relay.turn.transactions; time is in microseconds, and never 0."""

    cdef table.Transactions table

    def __cinit__(self, int64_t rto_us):
        memset(&self.table, 0, sizeof(self.table))
        self.table.rto_us = rto_us

    def __dealloc__(self):
        table.clear_transactions(&self.table)

    def __len__(self) -> int:
        return self.table.count

    def on_request(self, int64_t now_us, bytes message not None) -> None:
        """A STUN request was sent."""
        cdef uint8_t* copy = exact(message)
        table.on_request(&self.table, now_us, copy, <unsigned int> len(message))
        free(copy)

    def on_response(self, bytes transaction_id not None) -> object:
        """A response with this id came."""
        cdef uint8_t* copy = exact(transaction_id)
        cdef table.Answer answer = table.on_response(&self.table, copy)
        free(copy)
        if answer == ANSWER_FIRST:
            return Answer.FIRST
        return Answer.DUPLICATE if answer == ANSWER_DUPLICATE else Answer.UNKNOWN

    @property
    def waiting_since(self) -> object:
        """When the oldest unanswered request was first sent, or None."""
        return table.waiting_since_us(&self.table) or None

    def next_deadline(self) -> object:
        """When on_deadline wants to be called, or None."""
        return table.next_due_us(&self.table) or None

    def on_deadline(self, int64_t now_us) -> list:
        """Messages to send again."""
        cdef list again = []
        cdef Pending* pending = table.take_due(&self.table, now_us)
        while pending != NULL:
            again.append((<char*> pending.message)[:pending.size])
            pending = table.take_due(&self.table, now_us)
        return again


def datagram_unit(bytes datagram not None) -> int:
    """The size of the STUN or ChannelData message in a datagram, 0 if there is none."""
    cdef uint8_t* copy = exact(datagram)
    cdef size_t size = stun_leaf.datagram_unit(copy, len(datagram))
    free(copy)
    return size


def find_attribute(bytes message not None, uint16_t kind) -> bytes | None:
    """What relay.plane.reference.traffic.find_attribute gives; and there are as many of them as that allows."""
    cdef uint8_t* copy = exact(message)
    cdef const uint8_t* value = stun_leaf.find_attribute(copy, len(message), kind, 0)
    cdef int count = stun_leaf.count_attributes(copy, len(message), kind)
    cdef object found = None
    if value != NULL:
        found = (<const char*> value)[:stun_leaf.load16(value - 2)]
    free(copy)
    assert found is None or count
    return found


def error_code(bytes message not None) -> int:
    """What relay.plane.reference.allocation.error_code gives."""
    cdef uint8_t* copy = exact(message)
    cdef int code = stun_leaf.error_code(copy, len(message))
    free(copy)
    return code


cdef class Question:
    """The rule of relay.plane.reference.question; time is in microseconds, and never 0."""

    cdef questions.Question question
    cdef int64_t rto_us

    def __cinit__(self, int64_t rto_us):
        memset(&self.question, 0, sizeof(self.question))
        self.rto_us = rto_us

    def next_deadline(self, int64_t quiet_since_us, int64_t silence_us) -> int:
        """When judge wants to be called."""
        return questions.next_question_us(&self.question, quiet_since_us, silence_us)

    def judge(self, int64_t now_us, int64_t quiet_since_us, int64_t silence_us) -> object:
        """Whether to ask now."""
        cdef questions.Judgement judgement = questions.judge(
            &self.question, now_us, quiet_since_us, silence_us, self.rto_us)
        return (Judgement.WAIT, Judgement.ASK, Judgement.GONE)[judgement]

    def build(self) -> bytes:
        """The next question."""
        cdef uint8_t[questions.QUESTION_BYTES] message
        questions.write_question(&self.question, message)
        return (<char*> message)[:questions.QUESTION_BYTES]

    def is_answered_by(self, bytes message not None) -> bool:
        """True if a response answers one of the questions."""
        cdef uint8_t* copy = exact(message)
        cdef bint answered = questions.answers_question(&self.question, copy)
        free(copy)
        return answered


STREAM_BYTES = sizeof(Stream)
METER_BYTES = sizeof(leaf.Meter)


cdef class Meter:
    """The meter of relay.quality.meter; RFC 3551's clocks are in the table that it is given."""

    cdef leaf.Meter meter
    cdef uint32_t[PAYLOAD_TYPES] clocks
    cdef int64_t deadline_us
    cdef object direction

    def __cinit__(self, int64_t deadline_us, clocks, direction):
        leaf.clear_meter(&self.meter)
        self.deadline_us = deadline_us
        self.direction = direction
        for payload_type, clock_hz in enumerate(clocks):
            self.clocks[payload_type] = clock_hz

    @property
    def rtcp(self) -> int:
        """RTCP packets."""
        return self.meter.rtcp

    @property
    def malformed(self) -> int:
        """Packets that are neither RTP nor RTCP."""
        return self.meter.malformed

    @property
    def strays(self) -> int:
        """Packets far outside the sequence of their stream."""
        return self.meter.strays

    def on_packet(self, int64_t now_us, bytes packet not None) -> None:
        """One packet came."""
        cdef uint8_t* copy = exact(packet)
        leaf.meter_packet(&self.meter, now_us, copy, <uint32_t> len(packet), self.deadline_us, self.clocks)
        free(copy)

    def streams(self, int64_t now_us) -> list:
        """What is known of each stream now."""
        return [self._read(position, now_us) for position in range(self.meter.count)]

    cdef object _read(self, uint32_t position, int64_t now_us):
        cdef Stream* stream = &self.meter.streams[position]
        return RtpStream(
            direction=self.direction,
            ssrc=self.meter.ssrcs[position],
            payload_type=stream.payload_type,
            clock_hz=stream.clock_hz,
            packets=stream.packets,
            duplicates=stream.duplicates,
            reordered=stream.reordered,
            restarts=stream.restarts,
            expected=stream.expected,
            late=stream.late,
            missing_runs=stream.missing_runs,
            jitter_us=leaf.jitter_us(stream),
            stalls=stream.stalls,
            longest_pause_us=stream.longest_pause_us,
            idle_us=max(0, now_us - stream.last_us),
            pauses=[
                (leaf.pause_bucket_end_us(bucket), stream.pauses[bucket])
                for bucket in range(PAUSE_BUCKETS) if stream.pauses[bucket]
            ],
        )


# In all, and of them with data.
MAX_CHUNKS = CHUNKS_A_FLOW + DATA_CHUNKS_A_FLOW
MAX_DATA_CHUNKS = DATA_CHUNKS_A_FLOW
CHUNK_BYTES = CHUNK_ROOM
HEADER_BYTES = FRAME_HEADER_BYTES


def live_buffers() -> int:
    """Blocks of memory that leaves have taken and not given back."""
    return alive(LIVE_BUFFERS)


def leave_memory(int64_t blocks) -> None:
    """Let leaves take so many more blocks of memory; -1 for as many as there are."""
    leave_blocks(blocks)


cdef class Schedule:
    """The queues of relay.plane.reference.schedule; time is in microseconds, and never 0."""

    cdef queues.Schedule schedule
    cdef Rules rules

    def __cinit__(
        self, int64_t max_age_us, uint32_t media_bytes, uint32_t control_bytes, uint32_t data_bytes,
        int64_t data_age_us,
    ):
        memset(&self.schedule, 0, sizeof(self.schedule))
        memset(&self.rules, 0, sizeof(self.rules))
        self.rules.max_age_us, self.rules.data_age_us = max_age_us, data_age_us
        self.rules.media_bytes, self.rules.control_bytes = media_bytes, control_bytes
        self.rules.data_bytes = data_bytes

    def __dealloc__(self):
        queues.clear_schedule(&self.schedule)

    @property
    def waiting_bytes(self) -> int:
        """All that waits, padding included."""
        return queues.waiting_bytes(&self.schedule)

    @property
    def is_waiting(self) -> bool:
        """Whether anything waits."""
        return queues.is_waiting(&self.schedule)

    @property
    def chunks(self) -> int:
        """Chunks of memory."""
        return self.schedule.chunks

    @property
    def drops(self) -> tuple:
        """How many were dropped for their age, and for want of room, each by class."""
        return (
            tuple([self.rules.old[traffic] for traffic in range(TRAFFICS)]),
            tuple([self.rules.full[traffic] for traffic in range(TRAFFICS)]),
        )

    def oldest_age(self, int64_t now_us) -> int:
        """Microseconds that the oldest frame has waited, 0 if nothing waits."""
        return now_us - self.schedule.oldest_us if self.schedule.oldest_us else 0

    def room(self, int traffic) -> int:
        """Bytes that are left in the last chunk of a class."""
        cdef queues.Queue* queue = &self.schedule.queues[traffic]
        return CHUNK_ROOM - queue.end if queue.tail != NULL else CHUNK_ROOM

    def put(self, int64_t now_us, bytes unit not None) -> bool:
        """Let a unit wait; False if it is refused."""
        padded = unit + bytes(-len(unit) & 3)
        cdef uint8_t* copy = exact(padded)
        cdef uint32_t size = <uint32_t> len(unit), framed = <uint32_t> len(padded)
        cdef int traffic = queues.traffic_of(copy, size)
        if traffic == TRAFFIC_CONTROL and copy[0] >= 0x40:
            traffic = queues.judge_peer(&self.schedule, &self.rules, now_us, framed)
        cdef Put put = queues.put_frame(&self.schedule, &self.rules, now_us, traffic, copy, size, framed)
        free(copy)
        return put != PUT_REFUSED

    def take(self, int64_t now_us, uint32_t room, bint with_data=True) -> list:
        """(arrival, unit, the unit with its padding) of what leaves, as write_waiting of the plane takes it."""
        cdef list taken = []
        cdef uint32_t filled = 0
        cdef Frame frame
        cdef uint8_t* out
        queues.expire(&self.schedule, &self.rules, now_us)
        cdef int traffic = queues.next_class(&self.schedule)
        while traffic != TRAFFICS and (with_data or traffic != TRAFFIC_DATA):
            frame = queues.first_frame(&self.schedule.queues[traffic])[0]
            if filled and filled + frame.padded > room:
                break
            out = <uint8_t*> malloc(frame.padded)
            queues.pop_frame(&self.schedule, traffic, out)
            taken.append((frame.arrived_us, (<char*> out)[:frame.size], (<char*> out)[:frame.padded]))
            free(out)
            filled += frame.padded
            traffic = queues.next_class(&self.schedule)
        queues.note_oldest(&self.schedule)
        return taken


cdef class Delays:
    """The histogram of relay.plane.reference.delays."""

    cdef histogram.Delays delays

    def __cinit__(self):
        memset(&self.delays, 0, sizeof(self.delays))

    def record(self, int64_t delay_us) -> None:
        """Count one packet."""
        histogram.record_delay(&self.delays, delay_us)

    def add(self, Delays other not None) -> None:
        """Add another's packets to these."""
        histogram.add_delays(&self.delays, &other.delays)

    def latency(self) -> object:
        """The histogram as it is now."""
        return Latency(
            tuple([
                (1 << histogram.DELAY_FIRST_POWER + bucket, self.delays.counts[bucket])
                for bucket in range(histogram.DELAY_BUCKETS) if self.delays.counts[bucket]
            ]),
            self.delays.sum_us,
        )
