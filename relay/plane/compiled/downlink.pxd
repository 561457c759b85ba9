# From the upstream to the client: datagrams are received, STUN responses are matched with the client's requests, and
# what is meant for the client is delivered.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from relay.plane.compiled.engine cimport (
    DATAGRAMS_A_TURN, DROP_DOWNLINK_DUPLICATE, DROP_DOWNLINK_FULL, DROP_DOWNLINK_MALFORMED, DROP_DOWNLINK_RATE,
    DROP_DOWNLINK_USER_RATE, NOTICE_ALTERNATE, NOTICE_GRANTED, NOTICE_NAMED, NOTICE_STALE, NOTICE_STUN, REASON_UPSTREAM_UNREACHABLE, STATE_MEDIA,
    Connection, Engine,
)
from relay.plane.compiled.slots cimport queue_notice
from relay.plane.compiled.counting cimport copy_datagram, drop
from relay.plane.compiled.wheel cimport arm
from relay.plane.compiled.ending cimport write_client
from relay.plane.compiled.messages cimport post_message
from relay.plane.compiled.delivery cimport deliver
from relay.plane.compiled.upstream cimport on_news, on_upstream_gone
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.allowance cimport takes, takes_shared
from relay.plane.compiled.leaves.buffer cimport keep_bytes
from relay.plane.compiled.leaves.carriage cimport CARRIER_CONNECT_UDP, CARRIER_SESSION, admit_unasked
from relay.plane.compiled.leaves.live cimport free
from relay.plane.compiled.leaves.naming cimport Named, take_named
from relay.plane.compiled.leaves.question cimport answers_question
from relay.plane.compiled.leaves.schedule cimport TRAFFIC_CONTROL, is_media_datagram, traffic_of
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_ERROR, ALLOCATE_SUCCESS, ATTRIBUTE_ALTERNATE_SERVER, ATTRIBUTE_LIFETIME, ATTRIBUTE_XOR_RELAYED_ADDRESS,
    DATA_INDICATION,
    REFRESH_SUCCESS, RESPONSE_BIT, STUN_HEADER_BYTES, TRANSACTION_ID_BYTES, TRANSACTION_ID_OFFSET, count_attributes,
    datagram_unit, error_code, find_attribute, load16, load32,
)
from relay.plane.compiled.leaves.tap cimport TAP_DOWNLINK
from relay.plane.compiled.leaves.transactions cimport (
    ANSWER_DUPLICATE, ANSWER_FIRST, ANSWER_UNKNOWN, Answer, find_pending, on_response,
)
from relay.plane.compiled.leaves.uplink cimport is_proof, news_of

cdef enum:
    ALLOCATION_LIFETIME_US = 600000000  # of an answer that does not say (RFC 8656 section 7.2)
    ALLOCATION_MISMATCH = 437       # RFC 8656 section 7.2
    MAX_FRESH_PORTS = 256           # with the reasons in relay.plane.reference.turn_flow
    FRESH_PORTS_US = 5000000
    TRY_ALTERNATE = 300
    MAX_HOPS = 3                    # more 300s in a row are a loop


# Voice comes one packet at a time, so only one is taken. A flow that also had one in the turn before gets more than
# that, and several are taken. If any are left, epoll reports the socket again.
cdef inline void on_upstream(Engine* e, Connection* c) noexcept nogil:
    cdef bint often = e.turns - c.heard_turn <= 1
    cdef ssize_t size
    c.heard_turn = e.turns
    if often:
        take_datagrams(e, c)
        return
    size = posix.recv(c.udp, e.vectors[0].iov_base, e.vectors[0].iov_len, posix.MSG_DONTWAIT)
    if size < 0:
        on_upstream_error(e, c)
        return
    c.heard_us = e.now_us
    size = take_datagram(e, c, <uint8_t*> e.vectors[0].iov_base, <uint32_t> size, 0)
    if size and c.state == STATE_MEDIA:
        write_client(e, c, e.record, <uint32_t> size)


cdef inline void take_datagrams(Engine* e, Connection* c) noexcept nogil:
    cdef int i, got
    cdef uint32_t filled = 0
    got = posix.recvmmsg(c.udp, e.messages, DATAGRAMS_A_TURN, posix.MSG_DONTWAIT, NULL)
    if got < 0:
        on_upstream_error(e, c)
        return
    c.heard_us = e.now_us
    for i in range(got):
        filled = take_datagram(e, c, <uint8_t*> e.vectors[i].iov_base, e.messages[i].msg_len, filled)
        if c.state != STATE_MEDIA:
            return
    if filled:
        write_client(e, c, e.record, filled)


cdef inline void on_upstream_error(Engine* e, Connection* c) noexcept nogil:
    cdef int fault = posix.errno
    if is_proof(&c.uplink, e.now_us, fault):
        on_upstream_gone(e, c, REASON_UPSTREAM_UNREACHABLE, fault)
    elif fault != posix.EAGAIN and fault != posix.EINTR:
        on_news(e, c, news_of(fault))


# Puts what a datagram brings into the record of this turn, which has ``filled`` bytes. Returns how many it has then.
cdef inline uint32_t take_datagram(
    Engine* e, Connection* c, uint8_t* data, uint32_t size, uint32_t filled
) noexcept nogil:
    if c.tap != NULL:
        copy_datagram(c, TAP_DOWNLINK, data, size)
    if c.carrier == CARRIER_CONNECT_UDP:
        return take_payload(e, c, data, size, filled)
    size = <uint32_t> datagram_unit(data, size)
    if not size:
        c.counters.drops[DROP_DOWNLINK_MALFORMED] += 1
    elif (data[0] >= 0x40 or on_stun(e, c, data, size)) and may_receive(e, c, data, size):
        return deliver(e, c, data, size, filled)
    return filled


# The same over CONNECT-UDP: the client gets each datagram as it is, duplicates too.
cdef inline uint32_t take_payload(
    Engine* e, Connection* c, uint8_t* data, uint32_t size, uint32_t filled
) noexcept nogil:
    cdef bint back = False
    if not is_media_datagram(data, size):
        c.counters.drops[DROP_DOWNLINK_MALFORMED] += 1
        return filled
    if size >= STUN_HEADER_BYTES and data[0] <= 3:
        if datagram_unit(data, size):
            if load16(data) == ALLOCATE_ERROR and is_redirected(e, c, data, size):
                return filled       # the client sends its request again, as one does over UDP
            back = brings_back(e, c, data, size)
            note_allocation(e, c, data, size)
            if not tell_named(e, c, data):
                return filled
        else:
            c.heard_media_us = e.now_us
        if c.admission.asks and must_wait_for_control(e, c, data, size, back):
            return filled
    else:
        c.heard_media_us = e.now_us
    return deliver(e, c, data, size, filled) if may_receive(e, c, data, size) else filled


# Returns False for what a flow, or its user, may not receive any more from peers in this second: it is dropped.
cdef inline bint may_receive(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int64_t packets = e.bounds.packets_per_second_per_flow, octets = e.bounds.bytes_per_second_per_flow
    if size >= 2 and data[0] <= 3 and load16(data) != DATA_INDICATION:
        return True     # what the upstream itself says has a bound of its own, and ends the connection beyond it
    if not takes(&c.received, e.now_us, size, packets, octets, False):
        drop(c, DROP_DOWNLINK_RATE, traffic_of(data, size))
        return False
    packets, octets = e.bounds.packets_per_second_per_user, e.bounds.bytes_per_second_per_user
    if c.user != NULL and not takes_shared(&c.user.received, e.now_us, size, packets, octets, False):
        drop(c, DROP_DOWNLINK_USER_RATE, traffic_of(data, size))
        return False
    return True


# Matches a response with its request. Returns False if the message must not reach the client.
cdef inline bint on_stun(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t kind = load16(message)
    cdef Answer answer = ANSWER_UNKNOWN
    cdef bint back
    if kind == ALLOCATE_ERROR and c.carrier != CARRIER_SESSION and not c.allocated_until_us:
        if is_stale(e, c, message, size) or is_redirected(e, c, message, size):
            return False
    if kind & RESPONSE_BIT:
        if answers_question(&c.question, message):
            return False        # we have asked, not the client; like any datagram it shows that the upstream is there
        answer = on_response(c.transactions, message + TRANSACTION_ID_OFFSET)
    if answer == ANSWER_DUPLICATE:
        if kind == ALLOCATE_ERROR:
            note_allocation(e, c, message, size)
        drop(c, DROP_DOWNLINK_DUPLICATE, TRAFFIC_CONTROL)
        return False
    if c.carrier == CARRIER_SESSION:
        if answer == ANSWER_FIRST or admit_unasked(c.carriage):
            post_message(e, c, NOTICE_STUN, message, size, c.carriage.moves, 0)
        else:
            drop(c, DROP_DOWNLINK_FULL, traffic_of(message, size))
        return False
    back = brings_back(e, c, message, size)
    note_allocation(e, c, message, size)
    if not tell_named(e, c, message):
        return False
    return not (c.admission.asks and must_wait_for_control(e, c, message, size, back))


# Returns True for a Refresh that gives a lifetime to an allocation that had ended as far as we knew. coturn keeps an
# allocation for a second after the client gives it up; and one may have been refreshed just before it ran out.
cdef inline bint brings_back(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* value
    if load16(message) != REFRESH_SUCCESS or c.allocated_until_us > e.now_us:
        return False
    value = find_attribute(message, size, ATTRIBUTE_LIFETIME, 4)
    return value == NULL or load32(value) != 0


# Notes how long the client's allocation lives: it may have to be released for the client.
cdef inline void note_allocation(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t kind = load16(message)
    cdef const uint8_t* value
    if kind == ALLOCATE_ERROR:
        # If another client's allocation is on this port, the port must rest as if the allocation were ours.
        c.allocating = error_code(message, size) == ALLOCATION_MISMATCH
    elif kind == ALLOCATE_SUCCESS or kind == REFRESH_SUCCESS:
        value = find_attribute(message, size, ATTRIBUTE_LIFETIME, 4)
        c.allocating = False
        if kind == ALLOCATE_SUCCESS:
            c.both_families = count_attributes(message, size, ATTRIBUTE_XOR_RELAYED_ADDRESS) > 1
        elif c.both_families and value != NULL and not load32(value):
            return      # perhaps only one address was given up, and the other lives (RFC 8656 section 7.2)
        if value == NULL:
            c.allocated_until_us = e.now_us + ALLOCATION_LIFETIME_US
        else:
            c.allocated_until_us = e.now_us + <int64_t> load32(value) * 1000000 if load32(value) else 0
            c.idle_since_us = e.now_us


# Tells control whom the Allocate named that the upstream has granted. Returns False if the connection has ended of it.
cdef inline bint tell_named(Engine* e, Connection* c, const uint8_t* message) noexcept nogil:
    cdef Named named
    if c.naming == NULL or load16(message) != ALLOCATE_SUCCESS:
        return True
    if take_named(c.naming, message + TRANSACTION_ID_OFFSET, &named):
        post_message(e, c, NOTICE_NAMED, named.name, named.size, 0, 0)
        free(named.name)
    return c.state == STATE_MEDIA


# Returns True if the message grants an allocation, or brings one back: then control answers in its place. Only one can
# wait, and no server grants two.
cdef inline bint must_wait_for_control(
    Engine* e, Connection* c, const uint8_t* message, uint32_t size, bint back
) noexcept nogil:
    if load16(message) != ALLOCATE_SUCCESS and not back:
        return False
    if c.admission.granted:
        drop(c, DROP_DOWNLINK_DUPLICATE, TRAFFIC_CONTROL)
        return True
    c.admission.granted = True
    c.answer_due_us = e.now_us + e.bounds.control_timeout_us
    arm(e, c)
    post_message(e, c, NOTICE_GRANTED, message, size, 0, 0)
    return True


# An Allocate met a stale allocation of another client (437): control is asked for a socket on a fresh port, and the
# request goes out again from there. The response is kept for the client, in case there is no socket.
cdef inline bint is_stale(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef int position = find_pending(c.transactions, message + TRANSACTION_ID_OFFSET)
    if position < 0 or error_code(message, size) != ALLOCATION_MISMATCH or c.stale_answer != NULL:
        return False
    if c.fresh_ports >= MAX_FRESH_PORTS or e.now_us - c.transactions.pending[position].first_sent_us >= FRESH_PORTS_US:
        return False
    keep_bytes(&c.stale_answer, &c.stale_size, message, size)
    if c.stale_answer == NULL:
        return False
    c.fresh_ports += 1
    queue_notice(e, c, NOTICE_STALE)
    return True


# The upstream names another server (300): if the flow may follow, control is asked for a socket to that server. Except
# over CONNECT-UDP the request goes out again from it. A copy of the response that comes meanwhile is dropped.
cdef inline bint is_redirected(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* identity = message + TRANSACTION_ID_OFFSET
    if not c.follows or c.allocated_until_us or error_code(message, size) != TRY_ALTERNATE:
        return False
    if c.stale_answer != NULL:
        return memcmp(c.stale_answer + TRANSACTION_ID_OFFSET, identity, TRANSACTION_ID_BYTES) == 0
    if c.hops >= MAX_HOPS or find_attribute(message, size, ATTRIBUTE_ALTERNATE_SERVER, 8) == NULL:
        return False
    if c.carrier != CARRIER_CONNECT_UDP and find_pending(c.transactions, identity) < 0:
        return False
    keep_bytes(&c.stale_answer, &c.stale_size, message, size)
    if c.stale_answer == NULL:
        return False
    c.hops += 1
    post_message(e, c, NOTICE_ALTERNATE, message, size, 0, 0)
    return True
