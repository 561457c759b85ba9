# Streams of voice: an absolute clock, talk spurts, what each packet carries, and the judgement of what comes back.
#
#   0  RTP header (12): PCMU; the SSRC is the stream's
#  12  stream (4), index (8), send time in us (8)
#  32  filler
#
# SRTP's tag covers every byte, so that a packet which is verified is the one that was sent.

from libc.math cimport log
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from loadtest.engine.carriers cimport CARRIER_PEER, FRAME_ROOM
from loadtest.engine.ending cimport end_stream
from loadtest.engine.engine cimport (
    FIRST_CHANNEL, HEARD, PHASE_READY, SENDS_A_TURN, STALL_US, Client, Engine, Stream, chance,
)
from loadtest.engine.heap cimport set_due
from loadtest.engine.requests cimport store16, store32
from loadtest.engine.srtp cimport RTP_HEADER_BYTES, protect, unprotect
from loadtest.engine.transport cimport send_to, send_unit
from loadtest.engine.windows cimport (
    COUNT_CORRUPT, COUNT_DUPLICATE, COUNT_EXPIRED, COUNT_FOREIGN, COUNT_LATE, COUNT_LOST, COUNT_MISROUTED,
    COUNT_RECEIVED, COUNT_REORDERED, COUNT_RUNS, COUNT_SENT, COUNT_STALLS, COUNT_UNSENT, OF_DELAY, OF_JITTER, OF_LATENESS, count,
    record,
)
from relay.plane.compiled.leaves.posix cimport monotonic_us
from relay.plane.compiled.leaves.stun cimport load32

cdef enum:
    CHANNEL_HEAD_BYTES = 4
    STAMP_BYTES = 20
    MIN_PACKET_BYTES = 32       # RTP header and stamp
    MARKER = 0x80
    LOOK_US = 50000             # from one look for what is still to come to the next


# 1. What was heard: a bit for each of the last HEARD indexes

cdef inline bint has_bit(const uint64_t* bits, uint64_t index) noexcept nogil:
    return bits[(index & (HEARD - 1)) >> 6] >> (index & 63) & 1


cdef inline void set_bit(uint64_t* bits, uint64_t index) noexcept nogil:
    bits[(index & (HEARD - 1)) >> 6] |= <uint64_t> 1 << (index & 63)


cdef inline void clear_bit(uint64_t* bits, uint64_t index) noexcept nogil:
    bits[(index & (HEARD - 1)) >> 6] &= ~(<uint64_t> 1 << (index & 63))


# A packet that was of no use to a listener. Those in a row are one run: the E-model wants to know how bursty they are.
cdef inline void judge_use(Engine* e, Stream* s, bint missed) noexcept nogil:
    if missed and not s.missed:
        s.totals.runs += 1
        count(e.window, COUNT_RUNS)
    s.missed = missed


# Counts as lost what has not come in time, or whose place a new packet takes.
cdef inline void judge(Engine* e, Stream* s, int64_t now_us) noexcept nogil:
    cdef uint32_t age_ms
    cdef bint heard
    while s.judged < s.next:
        heard = has_bit(s.heard, s.judged)
        if not heard:
            age_ms = <uint32_t> (now_us // 1000) - s.sent_ms[s.judged & (HEARD - 1)]
            if age_ms < s.patience_us // 1000 and s.next - s.judged < HEARD:
                break
            s.totals.lost += 1
            count(e.window, COUNT_LOST)
        judge_use(e, s, not heard or has_bit(s.came_late, s.judged))
        s.judged += 1


# 2. Sending

cdef inline void store64(uint8_t* data, uint64_t value) noexcept nogil:
    store32(data, <uint32_t> (value >> 32))
    store32(data + 4, <uint32_t> value)


cdef inline uint64_t load64(const uint8_t* data) noexcept nogil:
    return <uint64_t> load32(data) << 32 | load32(data + 4)


# The filler stays what it was: it is encrypted differently each time.
cdef inline void build_packet(Engine* e, Stream* s, uint8_t* packet, int64_t now_us) noexcept nogil:
    packet[0], packet[1] = 0x80, MARKER if s.opens_spurt else 0
    store16(packet + 2, <uint16_t> s.next)
    # A clock of 8 kHz.
    store32(packet + 4, <uint32_t> ((s.due_us - s.started_us) // 125))
    store32(packet + 8, e.first_ssrc + s.number)
    store32(packet + RTP_HEADER_BYTES, s.number)
    store64(packet + RTP_HEADER_BYTES + 4, s.next)
    store64(packet + RTP_HEADER_BYTES + 12, <uint64_t> now_us)


cdef inline bint send_packet(Engine* e, Stream* s, int64_t now_us) noexcept nogil:
    cdef Client* c = e.clients[s.sender]
    cdef uint8_t* unit = e.leaving + FRAME_ROOM
    cdef uint32_t size
    if c == NULL or c.serial != s.sender_serial or c.phase != PHASE_READY or s.peer >= c.peer_count or not c.peers[s.peer].bound:
        return False
    build_packet(e, s, unit + CHANNEL_HEAD_BYTES, now_us)
    size = protect(&s.sending, unit + CHANNEL_HEAD_BYTES, s.packet_bytes, s.next)
    if c.plan.carrier == CARRIER_PEER:
        return send_to(c, &c.peers[s.peer].address, unit + CHANNEL_HEAD_BYTES, size)
    store16(unit, FIRST_CHANNEL + s.peer)
    store16(unit + 2, size)
    return send_unit(e, c, unit, CHANNEL_HEAD_BYTES + size)


# The length of a spurt or a pause: exponential, as telephony has it (ITU-T P.59), about its mean.
cdef inline int64_t some_us(Engine* e, int64_t mean_us) noexcept nogil:
    cdef double uniform = <double> ((chance(e) >> 11) + 1) / 9007199254740992.0
    return <int64_t> (-log(uniform) * <double> mean_us)


cdef inline void plan_next(Engine* e, Stream* s) noexcept nogil:
    if s.left:
        s.left -= 1
        s.stopping = s.left == 0
    s.due_us += s.interval_us
    s.opens_spurt = False
    if s.pause_us and s.due_us >= s.quiet_us:
        s.due_us += some_us(e, s.pause_us) // s.interval_us * s.interval_us
        s.quiet_us = s.due_us + some_us(e, s.talk_us)
        s.opens_spurt = True


cdef inline void send_due(Engine* e, Stream* s) noexcept nogil:
    # The stamp is taken before the packet may have to wait for room: that wait is the server's doing.
    cdef int64_t now_us = monotonic_us()
    record(e.window, OF_LATENESS, now_us - s.due_us)
    judge(e, s, now_us)
    clear_bit(s.heard, s.next)
    clear_bit(s.came_late, s.next)
    s.sent_ms[s.next & (HEARD - 1)] = <uint32_t> (now_us // 1000)
    if send_packet(e, s, now_us):
        s.totals.sent += 1
        count(e.window, COUNT_SENT)
        s.next += 1
    else:
        s.totals.unsent += 1
        count(e.window, COUNT_UNSENT)
    plan_next(e, s)
    set_due(&e.due_streams, s.number, s.due_us)


# A stream that is to end: it is heard out.
cdef inline void drain_stream(Engine* e, Stream* s, int64_t now_us) noexcept nogil:
    judge(e, s, now_us)
    if s.judged == s.next:
        end_stream(e, s)
    else:
        set_due(&e.due_streams, s.number, now_us + LOOK_US)


# Sends what is due, in the order of time. True if there may be more.
cdef inline bint serve_streams(Engine* e) noexcept nogil:
    cdef Stream* s
    for _ in range(SENDS_A_TURN):
        if not e.due_streams.count or e.due_streams.items[0].us > e.now_us:
            return False
        s = e.streams[e.due_streams.items[0].number]
        if s.stopping:
            # Not the time at which the turn began: a late stream may have sent its last packets since then.
            drain_stream(e, s, monotonic_us())
        else:
            e.carried = True
            send_due(e, s)
    return True


# 3. Receiving

cdef inline void note_jitter(Engine* e, Stream* s, int64_t delay_us) noexcept nogil:
    cdef int64_t difference = delay_us - s.transit_us
    if s.compares:
        if difference >= STALL_US:
            count(e.window, COUNT_STALLS)
        difference = difference if difference >= 0 else -difference
        s.jitter_16us += difference - ((s.jitter_16us + 8) >> 4)
        record(e.window, OF_JITTER, s.jitter_16us >> 4)
    s.transit_us, s.compares = delay_us, True


cdef inline void count_once(Engine* e, Stream* s, uint64_t index, int64_t delay_us) noexcept nogil:
    set_bit(s.heard, index)
    count(e.window, COUNT_RECEIVED)
    record(e.window, OF_DELAY, delay_us)
    s.totals.received += 1
    s.totals.delay_sum_us += delay_us
    if delay_us > s.totals.delay_max_us:
        s.totals.delay_max_us = delay_us
    if delay_us > s.late_us:
        s.totals.late += 1
        set_bit(s.came_late, index)
        count(e.window, COUNT_LATE)
    if index < s.highest:
        s.totals.reordered += 1
        count(e.window, COUNT_REORDERED)
    else:
        s.highest = index + 1
    note_jitter(e, s, delay_us)


cdef inline void on_verified(Engine* e, Stream* s, const uint8_t* packet, int64_t now_us) noexcept nogil:
    cdef uint64_t index = load64(packet + RTP_HEADER_BYTES + 4)
    if index >= s.next or index + HEARD <= s.next:
        count(e.window, COUNT_EXPIRED)
    elif has_bit(s.heard, index):
        s.totals.duplicate += 1
        count(e.window, COUNT_DUPLICATE)
    elif index < s.judged:
        set_bit(s.heard, index)
        count(e.window, COUNT_EXPIRED)
    else:
        count_once(e, s, index, now_us - <int64_t> load64(packet + RTP_HEADER_BYTES + 12))


# What has come on a channel of a client, or to a peer.
cdef inline void on_media(Engine* e, Client* c, uint8_t* packet, uint32_t size) noexcept nogil:
    cdef int64_t now_us = monotonic_us()
    cdef uint32_t number
    cdef Stream* s
    e.carried = True
    number = load32(packet + 8) - e.first_ssrc if size >= MIN_PACKET_BYTES else e.max_streams
    s = e.streams[number] if number < e.max_streams else NULL
    if s == NULL:
        # Of ours, but its stream has ended: all that had not come by then was lost.
        count(e.window, COUNT_EXPIRED if number < e.max_streams else COUNT_FOREIGN)
    elif unprotect(&s.receiving, packet, size) != <int> s.packet_bytes:
        count(e.window, COUNT_CORRUPT)
    elif s.receiver_serial != c.serial:
        count(e.window, COUNT_MISROUTED)
    else:
        on_verified(e, s, packet, now_us)


cdef inline uint64_t serial_of(Engine* e, uint32_t number) noexcept nogil:
    cdef Client* c = e.clients[number] if number < e.max_clients else NULL
    return 0 if c == NULL else c.serial


# Begins when its plan says, or at a random phase, so that streams which are begun together do not send together.
cdef inline void begin_stream(Engine* e, Stream* s) noexcept nogil:
    e.streams[s.number] = s
    s.sender_serial, s.receiver_serial = serial_of(e, s.sender), serial_of(e, s.receiver)
    if not s.due_us:
        s.due_us = e.now_us + <int64_t> (chance(e) % <uint64_t> s.interval_us)
    s.started_us = s.due_us
    s.quiet_us = s.due_us + some_us(e, s.talk_us)
    s.opens_spurt = True
    set_due(&e.due_streams, s.number, s.due_us)
