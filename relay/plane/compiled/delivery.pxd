# What goes to the client. A unit is framed and written at once; or it waits, while TCP is behind or the client does not
# read, and may then be dropped.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from relay.plane.compiled.engine cimport (
    DROP_DOWNLINK_FULL, DROP_DOWNLINK_OLD, PLAIN_BYTES, REASON_SLOW_CLIENT, STATE_CLOSING, STATE_DEAD, STATE_HTTP,
    STATE_MEDIA, Connection, Engine,
)
from relay.plane.compiled.slots cimport ask_tcp_again, watch_client, watch_pipe
from relay.plane.compiled.counting cimport drop, meter, meter_datagram
from relay.plane.compiled.ending cimport end, finish, is_refused_for_now, write_client
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport drop_front, front
from relay.plane.compiled.leaves.carriage cimport (
    CARRIER_CONNECT_UDP, CARRIER_SESSION, CARRIER_TURN, frame_unit, is_from_peer,
)
from relay.plane.compiled.leaves.delays cimport record_delay
from relay.plane.compiled.leaves.pace cimport is_behind, note_write
from relay.plane.compiled.leaves.schedule cimport (
    NO_UNIT, PUT_DONE, PUT_REFUSED, TRAFFICS, TRAFFIC_CONTROL, TRAFFIC_DATA, Frame, Put, Rules, expire, first_frame,
    is_urgent, is_waiting, judge_peer, next_class, note_oldest, pop_frame, put_frame, traffic_of,
)

cdef enum:
    RECORD_BYTES = 1024             # of what has waited: at 64 kbit/s an eighth of a second until it can be read
    LINK_US = 1000000               # TCP_INFO once a second


# Frames one unit and puts it in the record of this turn, which already has ``filled`` bytes; or lets it wait if the
# client takes less than comes. Returns how many bytes the record has then.
cdef inline uint32_t deliver(Engine* e, Connection* c, uint8_t* unit, uint32_t size, uint32_t filled) noexcept nogil:
    cdef uint32_t framed
    cdef uint8_t* frame
    cdef int traffic
    cdef bint from_peer
    if must_wait(e, c) or (
        (c.pace.holds_data or c.schedule.data_bytes) and traffic_of(unit, size) == TRAFFIC_DATA
    ):
        traffic, from_peer = traffic_of(unit, size), is_from_peer(c.carrier, unit)
        frame = frame_unit(c.carrier, unit, size, &framed)
        let_wait(e, c, traffic, from_peer, frame, size, framed)
        return filled
    frame = frame_unit(c.carrier, unit, size, &framed)
    hand_over(e, c, unit, size, e.now_us)
    if filled and filled + framed > PLAIN_BYTES:
        write_client(e, c, e.record, filled)
        filled = 0
        if c.state != STATE_MEDIA:
            return 0
    if framed > PLAIN_BYTES:
        write_client(e, c, frame, framed)
        return 0
    memcpy(e.record + filled, frame, framed)
    return filled + framed


# Returns True if any traffic must wait. Data waits in more cases than these.
cdef inline bint must_wait(Engine* e, Connection* c) noexcept nogil:
    return c.out.size != 0 or is_urgent(&c.schedule) or falls_behind(e, c)


# Returns True if TCP has taken bytes that it does not deliver. More bytes would only grow old there, where nothing can
# be dropped.
cdef inline bint falls_behind(Engine* e, Connection* c) noexcept nogil:
    if is_behind(&c.pace, c.fd, c.wire.given, c.link.min_rtt_us, e.now_us, c.schedule.data_bytes != 0):
        ask_tcp_again(e, c)
        return True
    if c.pace.holds_data and c.schedule.data_bytes:
        ask_tcp_again(e, c)
    return False


# A unit goes to TLS and can no longer be dropped, so it is counted here, and metered as the client will see it. In a
# session only media comes here, and its four bytes of header may be overwritten already.
cdef inline void hand_over(
    Engine* e, Connection* c, const uint8_t* unit, uint32_t size, int64_t arrived_us
) noexcept nogil:
    cdef int64_t delay_us = e.now_us - arrived_us
    c.counters.downlink_packets += 1
    c.counters.downlink_bytes += size
    record_delay(&c.delays, delay_us)
    if c.carrier == CARRIER_CONNECT_UDP:
        meter_datagram(e, &c.downlink_meter, unit, size)
    elif size > 4 and (unit[0] >= 0x40 or c.carrier == CARRIER_SESSION):
        meter(e, &c.downlink_meter, unit + 4, size - 4)
    if e.now_us >= c.link_due_us:
        read_link(e, c)


cdef inline void read_link(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t[posix.TCP_INFO_BYTES] info
    cdef posix.socklen_t size = posix.TCP_INFO_BYTES
    c.link_due_us = e.now_us + LINK_US
    if posix.getsockopt(c.fd, posix.IPPROTO_TCP, posix.TCP_INFO, info, &size) == 0 and size == posix.TCP_INFO_BYTES:
        memcpy(&c.link.rtt_us, info + posix.TCP_INFO_RTT, 4)
        memcpy(&c.link.rtt_variation_us, info + posix.TCP_INFO_RTTVAR, 4)
        memcpy(&c.link.retransmits, info + posix.TCP_INFO_TOTAL_RETRANS, 4)
        memcpy(&c.link.unsent_bytes, info + posix.TCP_INFO_NOTSENT_BYTES, 4)
        memcpy(&c.link.min_rtt_us, info + posix.TCP_INFO_MIN_RTT, 4)
        c.link.known = True


# Lets a frame wait with its class of traffic, which may drop older ones.
cdef inline void let_wait(
    Engine* e, Connection* c, int traffic, bint from_peer, const uint8_t* frame, uint32_t size, uint32_t framed
) noexcept nogil:
    cdef Rules rules
    cdef Put put
    set_rules(e, c, &rules)
    if traffic == TRAFFIC_CONTROL and from_peer:
        traffic = judge_peer(&c.schedule, &rules, e.now_us, framed)
    put = put_frame(&c.schedule, &rules, e.now_us, traffic, frame, size, framed)
    count_drops(c, &rules)
    if put == PUT_REFUSED and from_peer:
        # There was no memory. A far peer's packet must not end the connection for that.
        drop(c, DROP_DOWNLINK_FULL, traffic)
    elif put == PUT_REFUSED:
        end(e, c, REASON_SLOW_CLIENT)
    elif put == PUT_DONE:
        if traffic == TRAFFIC_DATA and c.pace.holds_data:
            ask_tcp_again(e, c)
        watch_client(e, c)


cdef inline void set_rules(Engine* e, Connection* c, Rules* rules) noexcept nogil:
    rules.max_age_us, rules.data_age_us = c.max_age_us, e.bounds.max_data_age_us
    rules.media_bytes, rules.control_bytes = e.bounds.downlink_media_bytes, e.bounds.downlink_control_bytes
    rules.data_bytes = e.bounds.downlink_data_bytes
    memset(rules.old, 0, sizeof(rules.old))
    memset(rules.full, 0, sizeof(rules.full))


cdef inline void count_drops(Connection* c, const Rules* rules) noexcept nogil:
    cdef int traffic
    for traffic in range(TRAFFICS):
        c.counters.drops[DROP_DOWNLINK_OLD] += rules.old[traffic]
        c.counters.drops[DROP_DOWNLINK_FULL] += rules.full[traffic]
        c.counters.drops_by_traffic[traffic] += rules.old[traffic] + rules.full[traffic]


# The client reads again. First TLS gets what it refused, unchanged; then goes one record of what waits.
cdef inline void on_writable(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t size
    cdef int written
    while c.out.size:
        size = c.retry if c.retry else PLAIN_BYTES if c.out.size > PLAIN_BYTES else c.out.size
        tls.ERR_clear_error()
        written = tls.SSL_write(c.ssl, front(&c.out), size)
        if written <= 0:
            if is_refused_for_now(e, c, written):
                c.retry = size
            return
        c.retry = 0
        drop_front(&c.out, written)
        note_write(&c.pace, c.wire.given, e.now_us, c.link.min_rtt_us)
    if c.state == STATE_CLOSING:
        finish(e, c)
        return
    if is_waiting(&c.schedule) and not falls_behind(e, c):
        write_waiting(e, c)
    if c.state in (STATE_CLOSING, STATE_DEAD):
        return
    watch_client(e, c)
    if c.state == STATE_HTTP and c.pipe >= 0:
        watch_pipe(e, c)


# Writes one record of what has waited, the most urgent class first. If the first unit is longer, it fills a record of
# its own, or several.
cdef inline void write_waiting(Engine* e, Connection* c) noexcept nogil:
    cdef Rules rules
    cdef Frame frame
    cdef uint8_t* unit
    cdef int traffic
    cdef uint32_t filled = 0
    set_rules(e, c, &rules)
    expire(&c.schedule, &rules, e.now_us)
    count_drops(c, &rules)
    traffic = next_class(&c.schedule)
    while traffic != TRAFFICS and not (traffic == TRAFFIC_DATA and c.pace.holds_data):
        frame = first_frame(&c.schedule.queues[traffic])[0]
        if filled and filled + frame.padded > RECORD_BYTES:
            break
        # The first buffer for datagrams is free here, and has room for the longest unit.
        pop_frame(&c.schedule, traffic, e.datagrams + filled)
        unit = e.datagrams + filled
        filled += frame.padded
        if c.carrier != CARRIER_TURN:
            unit += frame.padded - frame.size
        if frame.size != NO_UNIT:
            hand_over(e, c, unit, frame.size, frame.arrived_us)
        traffic = next_class(&c.schedule)
    note_oldest(&c.schedule)
    if filled:
        write_client(e, c, e.datagrams, filled)


# No event says when TCP has caught up, so it is asked.
cdef inline void ask_those_behind(Engine* e) noexcept nogil:
    cdef Connection* c = e.behind
    cdef Connection* following
    e.behind = NULL
    e.behind_seen_us = e.now_us
    while c != NULL:
        following = c.behind_next
        c.behind = False
        if not falls_behind(e, c):
            if not c.out.size:
                write_waiting(e, c)
            if c.state == STATE_MEDIA:
                watch_client(e, c)
        c = following


# Sends frames of our own, which are not units of the upstream: before everything that waits, and uncounted.
cdef inline void send_own(Engine* e, Connection* c, const uint8_t* frames, uint32_t size) noexcept nogil:
    if must_wait(e, c):
        let_wait(e, c, TRAFFIC_CONTROL, False, frames, NO_UNIT, size)
    else:
        write_client(e, c, frames, size)


# Sends a STUN message of our own in place of one of the upstream's.
cdef inline void reply(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    memcpy(e.vectors[0].iov_base, message, size)
    size = deliver(e, c, <uint8_t*> e.vectors[0].iov_base, size, 0)
    if size and c.state == STATE_MEDIA:
        write_client(e, c, e.record, size)
