# The UDP socket to the upstream: what goes out through it, what errors and ICMP mean, and what happens when the
# upstream is gone.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from relay.plane.compiled.engine cimport (
    DROP_UPLINK_FULL, DROP_UPLINK_OVERSIZE, DROP_UPLINK_REFUSED, NOTICE_SILENT, NOTICE_UNREACHABLE,
    REASON_UPSTREAM_SILENT, REASON_UPSTREAM_UNREACHABLE, STATE_MEDIA, Command, Connection, Engine,
)
from relay.plane.compiled.slots cimport ON_UDP, mark, watch
from relay.plane.compiled.counting cimport count_sent, count_up, drop
from relay.plane.compiled.wheel cimport arm
from relay.plane.compiled.ending cimport end
from relay.plane.compiled.messages cimport post_message
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.carriage cimport CARRIER_CONNECT_UDP, CARRIER_SESSION
from relay.plane.compiled.leaves.live cimport LIVE_SOCKETS, count_live
from relay.plane.compiled.leaves.schedule cimport traffic_of
from relay.plane.compiled.leaves.tap cimport end_tap
from relay.plane.compiled.leaves.transactions cimport clear_transactions
from relay.plane.compiled.leaves.uplink cimport (
    NEWS_DOUBT, NEWS_OVERSIZE, News, Uplink, is_no_room, is_proof, is_unsure, send_after_all, send_in_fragments,
)


cdef inline void use_socket(Connection* c, const Command* command) noexcept nogil:
    c.udp = command.number
    memset(&c.uplink, 0, sizeof(Uplink))
    c.uplink.target_size = command.target_size
    memcpy(c.uplink.target, command.target, command.target_size)


# Returns True also without an upstream. A socket is not watched before it is connected, since anyone could send to it.
cdef inline bint watch_upstream(Engine* e, Connection* c) noexcept nogil:
    if c.udp < 0 or c.uplink.target_size:
        return True
    return watch(e, posix.EPOLL_CTL_ADD, c.udp, posix.EPOLLIN, mark(ON_UDP, c)) == 0


# Every packet of a client goes this way.
cdef inline void send_up(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if posix.send(c.udp, unit, size, posix.MSG_DONTWAIT) >= 0:
        count_up(e, c, unit, size)
    else:
        on_send_error(e, c, unit, size, posix.errno)


# Sends a request for control, or again for a timer. What control asks for a session is not counted, and neither are the
# answers. A tap sees it, as it sees everything that leaves.
cdef inline void send_request(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    if posix.send(c.udp, message, size, posix.MSG_DONTWAIT) >= 0:
        count_sent(e, c, message, size)
    else:
        on_send_error(e, c, message, size, posix.errno)


# Sends a request again. If it is long, a router may have dropped the first one without a word, so this one may be
# fragmented.
cdef inline void send_up_again(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    cdef int fault
    c.counters.retransmissions += 1
    if not is_unsure(unit, size) or c.uplink.target_size:
        send_request(e, c, unit, size)
        return
    fault = send_in_fragments(c.udp, unit, size)
    if fault:
        on_send_error(e, c, unit, size, fault)
    else:
        count_sent(e, c, unit, size)


cdef inline void on_send_error(Engine* e, Connection* c, const uint8_t* unit, uint32_t size, int fault) noexcept nogil:
    fault = settle(e, c, unit, size, fault)
    if not fault:
        count_sent(e, c, unit, size)
    elif is_no_room(fault):
        drop(c, DROP_UPLINK_FULL, traffic_of(unit, size))
    elif fault == posix.EMSGSIZE:
        drop(c, DROP_UPLINK_OVERSIZE, traffic_of(unit, size))
    elif c.udp >= 0 and c.state == STATE_MEDIA:
        drop(c, DROP_UPLINK_REFUSED, traffic_of(unit, size))


# Deals with an error of ``send``. Returns 0 if the datagram has gone after all, or the error that stopped it. If the
# upstream is gone, the flow ends or moves.
cdef inline int settle(Engine* e, Connection* c, const uint8_t* unit, uint32_t size, int fault) noexcept nogil:
    cdef News news
    cdef bint late = c.uplink.target_size != 0
    fault = send_after_all(&c.uplink, c.udp, e.now_us, unit, size, fault, &news)
    if late and not c.uplink.target_size:
        watch_upstream(e, c)
    c.uplink.refused_for = 0 if is_no_room(fault) or fault == posix.EMSGSIZE else fault
    if is_proof(&c.uplink, e.now_us, fault):
        on_upstream_gone(e, c, REASON_UPSTREAM_UNREACHABLE, fault)
    else:
        on_news(e, c, news)
    return fault


# ICMP has reported on an earlier datagram.
cdef inline void on_news(Engine* e, Connection* c, News news) noexcept nogil:
    if news == NEWS_OVERSIZE:
        # It was too long for a router on the way. The upstream is still there.
        c.counters.drops[DROP_UPLINK_OVERSIZE] += 1
    elif news == NEWS_DOUBT and not c.doubt_since_us and c.carrier != CARRIER_CONNECT_UDP:
        c.doubt_since_us = e.now_us
        arm(e, c)


# A session outlives its upstream: control moves it to another one.
cdef inline void on_upstream_gone(Engine* e, Connection* c, int reason, int fault) noexcept nogil:
    cdef uint32_t notice = NOTICE_SILENT if reason == REASON_UPSTREAM_SILENT else NOTICE_UNREACHABLE
    if c.carrier != CARRIER_SESSION:
        c.fault = fault
        end(e, c, reason)
        return
    leave_upstream(e, c)
    c.answer_due_us = e.now_us + e.bounds.control_timeout_us
    arm(e, c)
    post_message(e, c, notice, NULL, 0, c.carriage.moves, fault)


cdef inline void leave_upstream(Engine* e, Connection* c) noexcept nogil:
    if c.udp >= 0:
        watch(e, posix.EPOLL_CTL_DEL, c.udp, 0, 0)
        posix.close(c.udp)
        c.udp = -1
        count_live(LIVE_SOCKETS, -1)
    if c.tap != NULL:
        end_tap(c.tap)
        c.tap = NULL
    clear_transactions(c.transactions)
    c.transactions.answered_count = 0
    c.doubt_since_us = 0
    c.answer_due_us = 0
