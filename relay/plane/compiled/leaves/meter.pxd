# The RTP meter: the compiled twin of relay.quality.meter, with the same integers; what is chosen and why stands there.
# Fixed memory, no allocation, no floating point. Zeroed memory is a meter that has seen nothing.
#
# A packet's life: 1. whose is it  2. where in the sequence  3. how long a pause  4. which clock  5. late or not

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from relay.plane.compiled.leaves.histogram cimport relay_highest_bit

cdef enum:
    # Fixed by RFC 3550, RFC 3551 and RFC 5761.
    MAX_DROPOUT = 3000
    MAX_MISORDER = 100
    RTP_HEADER_BYTES = 12
    RTCP_HEADER_BYTES = 8
    RTCP_FIRST_TYPE = 192
    RTCP_LAST_TYPE = 223
    COMFORT_NOISE = 13
    PAYLOAD_TYPES = 128
    # Ours.
    MAX_STREAMS = 16
    ALIVE_US = 5000000
    SEEN_PACKETS = 64
    MIN_PACKET_US = 1000
    STALL_US = 200000
    LOW_WINDOW_US = 15000000
    STALE_US = 45000000
    SETTLE_US = 1000000
    JUMP_S = 2
    PAUSE_BUCKETS = 12
    SILENT_STEP_US = 100000
    GUESS_US = 1000000
    OTHER_PACKETS = 25
    WELL_KNOWN_CLOCKS = 7
    NO_CANDIDATE = -1

# Timestamps, transits and jitter are in units of the stream's clock; transits are modulo 2^32.
cdef struct Stream:
    # The first cache line and a little more: what every packet touches.
    int64_t last_us             # when the last packet came that was no duplicate
    uint64_t seen               # bit i: the packet i behind the highest has come
    uint64_t expected
    int64_t origin_us           # arrivals count from here
    uint32_t packets
    uint32_t clock_hz           # 0 while nobody can tell it
    uint32_t timestamp          # of the highest packet that counted
    uint32_t transit            # of the last packet that counted
    uint32_t jitter             # sixteenths
    uint32_t low                # the least transit of this window
    uint32_t low_before         # and of the one before
    uint16_t highest            # sequence number
    uint8_t payload_type
    uint8_t span                # how many up to the highest are expected, since the last restart; SEEN_PACKETS at most
    int64_t low_since_us        # when this window began
    int32_t candidate           # the sequence number that makes a jump a restart
    uint8_t absent              # the last packet was not there to be played
    uint8_t in_late_streak
    uint8_t guess_payload_type
    uint8_t guessed_payload_type
    uint32_t[PAUSE_BUCKETS] pauses
    int64_t longest_pause_us
    # What only some packets touch.
    int64_t late_since_us       # when the streak of late packets began
    uint32_t late_transit       # and with which transit
    uint32_t late
    uint32_t missing_runs
    uint32_t duplicates
    uint32_t reordered
    uint32_t restarts
    uint32_t stalls
    # The guess of a clock: where this span began, what the one before gave, and what came of it
    uint32_t guess_timestamp
    int64_t guess_us
    uint32_t guess_last         # the timestamp of its last packet
    uint8_t guess_others        # how many packets of other types came since
    uint8_t guess_clock         # a well-known one by its number, 0 for none
    uint8_t guessed_clock
    uint8_t guessed_before      # the payload type that was guessed before, and has the same clock

cdef struct Meter:
    uint32_t count              # of streams
    uint32_t last               # whose the last packet was
    uint32_t[MAX_STREAMS] ssrcs
    uint64_t rtcp
    uint64_t malformed          # neither RTP nor RTCP, by its header
    uint64_t strays             # far outside the sequence of its stream, the first packet of each restart among them
    Stream[MAX_STREAMS] streams

# What the steps of one packet need.
cdef struct Rtp:
    int64_t now_us
    int64_t deadline_us
    const uint32_t* clocks      # of PAYLOAD_TYPES, in Hz, 0 for those to be guessed: relay.quality.meter.clock_table
    uint32_t ssrc
    uint32_t timestamp
    uint16_t sequence_number
    uint8_t payload_type


cdef inline void clear_meter(Meter* meter) noexcept nogil:
    memset(meter, 0, sizeof(Meter))


# --- What is read from it ---

cdef inline int64_t jitter_us(const Stream* stream) noexcept nogil:
    return <int64_t> stream.jitter * 1000000 // (16 * <int64_t> stream.clock_hz) if stream.clock_hz else 0


# The least pause that falls into the next bucket; the last one has also what is longer.
cdef inline int64_t pause_bucket_end_us(int bucket) noexcept nogil:
    return <int64_t> 1000 << bucket


# --- Small figures ---

cdef inline int32_t signed_difference(uint32_t one, uint32_t other) noexcept nogil:
    return <int32_t> (one - other)


cdef inline int pause_bucket(int64_t pause_us) noexcept nogil:
    cdef int64_t pause_ms = pause_us // 1000
    cdef int bucket = relay_highest_bit(<uint64_t> pause_ms) + 1 if pause_ms else 0
    return bucket if bucket < PAUSE_BUCKETS else PAUSE_BUCKETS - 1


# In Hz, by number from 1 on; 0 for 0.
cdef inline uint32_t well_known_clock(uint32_t number) noexcept nogil:
    cdef uint32_t[8] clocks = [0, 8000, 16000, 24000, 32000, 44100, 48000, 90000]
    return clocks[number]


# The number of the well-known clock within 4 % of a measured one, or 0.
cdef inline uint8_t nearest_clock(int64_t measured_hz) noexcept nogil:
    cdef int64_t clock_hz, off
    cdef uint8_t number
    for number in range(1, WELL_KNOWN_CLOCKS + 1):
        clock_hz = well_known_clock(number)
        off = measured_hz - clock_hz
        if (off if off >= 0 else -off) * 25 <= clock_hz:
            return number
    return 0


# Whether a sender that was silent for so long makes a pause of this length.
cdef inline bint explains(int64_t silence_us, int64_t pause_us) noexcept nogil:
    return pause_us - silence_us <= STALL_US and 2 * silence_us >= pause_us


cdef inline uint32_t read_u32(const uint8_t* data) noexcept nogil:
    return <uint32_t> data[0] << 24 | <uint32_t> data[1] << 16 | <uint32_t> data[2] << 8 | data[3]


cdef inline int32_t step_of(const Stream* stream, const Rtp* rtp) noexcept nogil:
    return signed_difference(rtp.timestamp, stream.timestamp)


cdef inline uint32_t transit_of(const Stream* stream, const Rtp* rtp) noexcept nogil:
    cdef int64_t arrival = (rtp.now_us - stream.origin_us) * <int64_t> stream.clock_hz // 1000000
    return <uint32_t> arrival - rtp.timestamp


# By how much the last packet was slower than the fastest one of recent times.
cdef inline int32_t excess_of(const Stream* stream) noexcept nogil:
    cdef int32_t above = signed_difference(stream.transit, stream.low)
    cdef int32_t above_before = signed_difference(stream.transit, stream.low_before)
    return above if above > above_before else above_before


cdef inline int64_t deadline_of(const Stream* stream, const Rtp* rtp) noexcept nogil:
    return rtp.deadline_us * <int64_t> stream.clock_hz // 1000000


# --- 5. Late or not: timing (RFC 3550 section A.8) ---

cdef inline void start_guess(Stream* stream, const Rtp* rtp, uint8_t clock) noexcept nogil:
    stream.guess_us = rtp.now_us
    stream.guess_timestamp = stream.guess_last = rtp.timestamp
    if rtp.payload_type != COMFORT_NOISE:
        stream.guess_payload_type = rtp.payload_type
    stream.guess_others = 0
    stream.guess_clock = clock


cdef inline void start_low(Stream* stream, int64_t now_us) noexcept nogil:
    stream.low = stream.low_before = stream.transit
    stream.low_since_us = now_us
    stream.in_late_streak = False


cdef inline void start_late_streak(Stream* stream, int64_t now_us) noexcept nogil:
    stream.in_late_streak = True
    stream.late_since_us = now_us
    stream.late_transit = stream.transit


# Know nothing of the transit but this packet's.
cdef inline void start_timing(Stream* stream, const Rtp* rtp, uint32_t clock_hz) noexcept nogil:
    if clock_hz == 0:
        start_guess(stream, rtp, 0)
        return
    if clock_hz != stream.clock_hz:
        stream.jitter = 0
    if rtp.payload_type != COMFORT_NOISE:
        stream.payload_type = rtp.payload_type
    stream.clock_hz = clock_hz
    stream.origin_us = rtp.now_us
    stream.timestamp = rtp.timestamp
    stream.transit = 0 - rtp.timestamp
    start_low(stream, rtp.now_us)


cdef inline void on_transit(Stream* stream, uint32_t transit) noexcept nogil:
    cdef int64_t difference = signed_difference(transit, stream.transit)
    if difference < 0:
        difference = -difference
    if difference <= JUMP_S * <int64_t> stream.clock_hz:
        stream.jitter += <uint32_t> difference - ((stream.jitter + 8) >> 4)
    stream.transit = transit


cdef inline void on_low(Stream* stream, int64_t now_us) noexcept nogil:
    if now_us - stream.low_since_us >= LOW_WINDOW_US:
        stream.low_before = stream.low
        stream.low = stream.transit
        stream.low_since_us = now_us
    elif signed_difference(stream.transit, stream.low) < 0:
        stream.low = stream.transit


cdef inline bint is_late(Stream* stream, const Rtp* rtp, int64_t pause_us) noexcept nogil:
    cdef int64_t deadline = deadline_of(stream, rtp)
    if excess_of(stream) <= deadline:
        stream.in_late_streak = False
        return False
    if not stream.in_late_streak or pause_us > STALL_US:
        start_late_streak(stream, rtp.now_us)
    elif rtp.now_us - stream.late_since_us >= SETTLE_US:
        if signed_difference(stream.transit, stream.late_transit) >= -deadline:
            start_low(stream, rtp.now_us)
            return False
        start_late_streak(stream, rtp.now_us)
    stream.late += 1
    return True


# --- 4. Which clock ---

# In Hz; 0 if nobody can tell it yet.
cdef inline uint32_t clock_of(const Stream* stream, const Rtp* rtp) noexcept nogil:
    if stream.clock_hz and rtp.payload_type == stream.payload_type:
        return stream.clock_hz
    if rtp.payload_type == COMFORT_NOISE and stream.payload_type != COMFORT_NOISE:
        return stream.clock_hz
    if rtp.clocks[rtp.payload_type]:
        return rtp.clocks[rtp.payload_type]
    if is_guessed(stream, rtp.payload_type):
        return well_known_clock(stream.guessed_clock)
    return 0


# Whether the timestamp is of the clock that the stream is known to have.
cdef inline bint has_clock(const Stream* stream, const Rtp* rtp) noexcept nogil:
    return stream.clock_hz and clock_of(stream, rtp) == stream.clock_hz


cdef inline bint is_guessed(const Stream* stream, uint8_t payload_type) noexcept nogil:
    return payload_type == stream.guessed_payload_type or payload_type == stream.guessed_before


# Whether a packet of another type leaves the guess that runs alone.
cdef inline bint is_aside(const Stream* stream, const Rtp* rtp) noexcept nogil:
    cdef uint8_t guessing = stream.guess_payload_type
    if rtp.payload_type == guessing or rtp.payload_type == COMFORT_NOISE:
        return False
    return not rtp.clocks[guessing] and not is_guessed(stream, guessing) and stream.guess_others < OTHER_PACKETS


cdef inline void on_guessed(Stream* stream, uint8_t clock) noexcept nogil:
    stream.guessed_before = stream.guessed_payload_type if clock == stream.guessed_clock else stream.guess_payload_type
    stream.guessed_payload_type = stream.guess_payload_type
    stream.guessed_clock = clock


# Whether the first span of a guess explains a pause in the second.
cdef inline bint guess_explains(const Stream* stream, int32_t step, int64_t pause_us) noexcept nogil:
    if stream.guess_clock == 0:
        return True
    return step > 0 and explains(<int64_t> step * 1000000 // well_known_clock(stream.guess_clock), pause_us)


cdef inline void guess_clock(Stream* stream, const Rtp* rtp, int64_t pause_us) noexcept nogil:
    cdef int32_t step = signed_difference(rtp.timestamp, stream.guess_last)
    cdef int64_t elapsed_us
    cdef uint8_t clock
    if is_aside(stream, rtp):
        stream.guess_others += 1
        return
    if rtp.payload_type != stream.guess_payload_type and rtp.payload_type != COMFORT_NOISE:
        start_guess(stream, rtp, 0)
        return
    stream.guess_last = rtp.timestamp
    stream.guess_others = 0
    if pause_us > STALL_US and not guess_explains(stream, step, pause_us):
        start_guess(stream, rtp, 0)
        return
    elapsed_us = rtp.now_us - stream.guess_us
    if elapsed_us < GUESS_US:
        return
    clock = nearest_clock(<int64_t> (rtp.timestamp - stream.guess_timestamp) * 1000000 // elapsed_us)
    if clock and clock == stream.guess_clock:
        on_guessed(stream, clock)
    start_guess(stream, rtp, clock)


cdef inline bint judge_next(Stream* stream, const Rtp* rtp, int64_t pause_us) noexcept nogil:
    cdef uint32_t clock_hz = clock_of(stream, rtp)
    cdef uint32_t transit
    cdef int32_t step
    if clock_hz == 0:
        if stream.clock_hz == 0 and rtp.payload_type != COMFORT_NOISE:
            stream.payload_type = rtp.payload_type
        guess_clock(stream, rtp, pause_us)
        return False
    step = step_of(stream, rtp)
    if clock_hz != stream.clock_hz or step < 0 or rtp.now_us - stream.low_since_us >= STALE_US:
        start_timing(stream, rtp, clock_hz)
        return False
    if rtp.payload_type != COMFORT_NOISE:
        stream.payload_type = rtp.payload_type
    if step == 0:
        return False
    transit = transit_of(stream, rtp)
    if signed_difference(transit, stream.transit) < -JUMP_S * <int64_t> clock_hz:
        start_timing(stream, rtp, clock_hz)
        return False
    stream.timestamp = rtp.timestamp
    on_transit(stream, transit)
    on_low(stream, rtp.now_us)
    return is_late(stream, rtp, pause_us)


# A reordered packet counts where it can, and starts nothing anew.
cdef inline void judge_reordered(Stream* stream, const Rtp* rtp) noexcept nogil:
    cdef uint32_t transit
    if not has_clock(stream, rtp) or step_of(stream, rtp) >= 0:
        return
    transit = transit_of(stream, rtp)
    if signed_difference(transit, stream.transit) < -JUMP_S * <int64_t> stream.clock_hz:
        return
    on_transit(stream, transit)
    stream.late += excess_of(stream) > deadline_of(stream, rtp)


# --- 3. How long a pause ---

cdef inline void on_pause(Stream* stream, int64_t pause_us, bint may_stall) noexcept nogil:
    stream.pauses[pause_bucket(pause_us)] += 1
    if may_stall:
        stream.stalls += pause_us > STALL_US
        if pause_us > stream.longest_pause_us:
            stream.longest_pause_us = pause_us


# How long since the highest packet by the timestamps; 0 if they do not tell.
cdef inline int64_t step_us(const Stream* stream, const Rtp* rtp) noexcept nogil:
    cdef int64_t step = step_of(stream, rtp)
    if step <= 0 or not has_clock(stream, rtp):
        return 0
    return step * 1000000 // <int64_t> stream.clock_hz


# Whether a pause counts as a stall if it is long: timestamps tell, and not that the sender was silent.
cdef inline bint may_stall(const Stream* stream, const Rtp* rtp, int64_t pause_us, uint32_t ahead) noexcept nogil:
    cdef int64_t silence_us
    if pause_us <= STALL_US or not has_clock(stream, rtp):
        return pause_us <= STALL_US
    silence_us = step_us(stream, rtp)
    return not explains(silence_us, pause_us) or silence_us <= <int64_t> ahead * SILENT_STEP_US


# --- 2. Where in the sequence (RFC 3550 section A.1) ---

# Whether so many packets can have been sent since the last one. Behind a stray only the next one will do.
cdef inline bint is_plausible(const Stream* stream, const Rtp* rtp, uint32_t ahead) noexcept nogil:
    cdef int64_t needed_us = <int64_t> ahead * MIN_PACKET_US
    if ahead == 1 or stream.candidate != NO_CANDIDATE:
        return ahead == 1
    return ahead < MAX_MISORDER or needed_us <= rtp.now_us - stream.last_us or needed_us <= step_us(stream, rtp)


cdef inline void on_next(Stream* stream, const Rtp* rtp, uint32_t ahead) noexcept nogil:
    cdef int64_t pause_us = rtp.now_us - stream.last_us
    cdef uint32_t span = stream.span + ahead
    cdef bint late
    stream.candidate = NO_CANDIDATE
    stream.packets += 1
    stream.expected += ahead
    stream.highest = rtp.sequence_number
    stream.seen = (stream.seen << ahead if ahead < SEEN_PACKETS else 0) | 1
    stream.span = <uint8_t> span if span < SEEN_PACKETS else SEEN_PACKETS
    on_pause(stream, pause_us, may_stall(stream, rtp, pause_us, ahead))
    late = judge_next(stream, rtp, pause_us)
    stream.missing_runs += (late or ahead > 1) and not stream.absent
    stream.absent = late
    stream.last_us = rtp.now_us


cdef inline void on_reordered(Stream* stream, const Rtp* rtp, uint32_t behind) noexcept nogil:
    cdef int64_t pause_us = rtp.now_us - stream.last_us
    stream.packets += 1
    stream.reordered += 1
    stream.seen |= <uint64_t> 1 << behind
    stream.expected += behind >= stream.span
    on_pause(stream, pause_us, pause_us <= STALL_US or has_clock(stream, rtp))
    judge_reordered(stream, rtp)
    stream.last_us = rtp.now_us


# The second of two in a row is a restart, and both count; False for the first.
cdef inline bint on_jump(Stream* stream, const Rtp* rtp) noexcept nogil:
    if rtp.sequence_number != stream.candidate:
        stream.candidate = (rtp.sequence_number + 1) & 0xFFFF
        return False
    stream.candidate = NO_CANDIDATE
    stream.restarts += 1
    stream.packets += 2
    stream.expected += 2
    stream.highest = rtp.sequence_number
    stream.seen = 3
    stream.span = 2
    stream.absent = False
    stream.last_us = rtp.now_us
    start_timing(stream, rtp, clock_of(stream, rtp))
    return True


cdef inline bint is_duplicate(const Stream* stream, uint32_t behind) noexcept nogil:
    if behind >= MAX_MISORDER:
        return False
    return behind >= SEEN_PACKETS or (stream.seen >> behind) & 1


# False for a packet far outside the sequence.
cdef inline bint on_sequence(Stream* stream, const Rtp* rtp) noexcept nogil:
    cdef uint32_t ahead = (<uint32_t> rtp.sequence_number - stream.highest) & 0xFFFF
    cdef uint32_t behind = (0 - ahead) & 0xFFFF
    if is_duplicate(stream, behind):
        stream.packets += 1
        stream.duplicates += 1
    elif behind < MAX_MISORDER:
        on_reordered(stream, rtp, behind)
    elif ahead < MAX_DROPOUT and is_plausible(stream, rtp, ahead):
        on_next(stream, rtp, ahead)
    else:
        return on_jump(stream, rtp)
    return True


# --- 1. Whose is it ---

# The stream that gives way to another.
cdef inline uint32_t least_worth(const Meter* meter, int64_t now_us) noexcept nogil:
    cdef uint32_t silent = 0
    cdef uint32_t single = MAX_STREAMS
    cdef uint32_t i
    for i in range(meter.count):
        if meter.streams[i].last_us < meter.streams[silent].last_us:
            silent = i
        if meter.streams[i].packets == 1:
            if single == MAX_STREAMS or meter.streams[i].last_us < meter.streams[single].last_us:
                single = i
    if single < MAX_STREAMS and now_us - meter.streams[silent].last_us < ALIVE_US:
        return single
    return silent


cdef inline void open_stream(Meter* meter, const Rtp* rtp) noexcept nogil:
    cdef uint32_t position = meter.count
    cdef Stream* stream
    if position < MAX_STREAMS:
        meter.count += 1
    else:
        position = least_worth(meter, rtp.now_us)
    stream = &meter.streams[position]
    memset(stream, 0, sizeof(Stream))
    meter.last = position
    meter.ssrcs[position] = rtp.ssrc
    stream.highest = rtp.sequence_number
    stream.payload_type = rtp.payload_type
    stream.last_us = rtp.now_us
    stream.packets = 1
    stream.expected = 1
    stream.seen = 1
    stream.span = 1
    stream.candidate = NO_CANDIDATE
    start_timing(stream, rtp, clock_of(stream, rtp))


# Sets meter.last; False if the stream is not among those known.
cdef inline bint find_stream(Meter* meter, uint32_t ssrc) noexcept nogil:
    cdef uint32_t i
    if meter.last < meter.count and meter.ssrcs[meter.last] == ssrc:
        return True
    for i in range(meter.count):
        if meter.ssrcs[i] == ssrc:
            meter.last = i
            return True
    return False


# Whether contributing sources and header extension are there in full (RFC 3550 sections 5.1 and 5.3.1).
cdef inline bint is_whole(const uint8_t* packet, uint32_t size) noexcept nogil:
    cdef uint32_t header = RTP_HEADER_BYTES + 4 * <uint32_t> (packet[0] & 0x0F)
    if packet[0] & 0x10:
        if size < header + 4:
            return False
        header += 4 + 4 * (<uint32_t> packet[header + 2] << 8 | packet[header + 3])
    return size >= header


# One packet that is RTP or RTCP by its first byte, 128 to 191; any other is malformed. Any bytes will do. now_us is of
# a clock that does not go back; clocks are PAYLOAD_TYPES entries of at most 192000 (relay.quality.meter.clock_table).
cdef inline void meter_packet(
    Meter* meter, int64_t now_us, const uint8_t* packet, uint32_t size, int64_t deadline_us, const uint32_t* clocks
) noexcept nogil:
    cdef Rtp rtp
    cdef Stream* stream
    if size >= 2 and packet[0] >> 6 == 2 and RTCP_FIRST_TYPE <= packet[1] <= RTCP_LAST_TYPE:
        if size < RTCP_HEADER_BYTES:
            meter.malformed += 1
        else:
            meter.rtcp += 1
        return
    if size < RTP_HEADER_BYTES or packet[0] >> 6 != 2 or not is_whole(packet, size):
        meter.malformed += 1
        return
    rtp.now_us = now_us
    rtp.deadline_us = deadline_us
    rtp.clocks = clocks
    rtp.payload_type = packet[1] & 0x7F
    rtp.sequence_number = <uint16_t> (packet[2] << 8 | packet[3])
    rtp.timestamp = read_u32(packet + 4)
    rtp.ssrc = read_u32(packet + 8)
    if not find_stream(meter, rtp.ssrc):
        open_stream(meter, &rtp)
        return
    stream = &meter.streams[meter.last]
    if rtp.now_us < stream.last_us:
        rtp.now_us = stream.last_us
    meter.strays += not on_sequence(stream, &rtp)
