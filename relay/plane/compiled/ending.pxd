# Writing to the client, and the end of a connection. They share a layer because they call each other: a failed write
# ends the connection, and the end of a WebSocket writes a farewell.

from libc.stdint cimport uint8_t, uint32_t

from relay.plane.compiled.engine cimport (
    NOTICE_CLOSED, PLAIN_BYTES, REASON_BROKEN_FRAME, REASON_CLIENT_LOST, REASON_HTTP_CLOSED, REASON_SLOW_CLIENT,
    REASON_TLS_BROKEN, REASON_TLS_FLOOD, STATE_CLOSING, STATE_DEAD, STATE_FREE, Connection, Engine,
)
from relay.plane.compiled.slots cimport ON_TCP, forget_behind, free_slot, mark, queue_notice, watch, watch_client
from relay.plane.compiled.counting cimport add_counters
from relay.plane.compiled.wheel cimport clear_deadline, set_deadline
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.admission cimport clear_admission
from relay.plane.compiled.leaves.allowance cimport leave_user_allowance
from relay.plane.compiled.leaves.buffer cimport append, clear_buffer
from relay.plane.compiled.leaves.carriage cimport CARRIER_CONNECT_UDP, FAREWELL_BYTES, write_farewell
from relay.plane.compiled.leaves.contexts cimport free_contexts
from relay.plane.compiled.leaves.delays cimport add_delays
from relay.plane.compiled.leaves.live cimport LIVE_CONNECTIONS, LIVE_SESSIONS, LIVE_SOCKETS, count_live, free
from relay.plane.compiled.leaves.naming cimport clear_naming
from relay.plane.compiled.leaves.pace cimport note_write
from relay.plane.compiled.leaves.reserve cimport give_up
from relay.plane.compiled.leaves.ring cimport relay_add
from relay.plane.compiled.leaves.schedule cimport clear_schedule
from relay.plane.compiled.leaves.sources cimport leave_source
from relay.plane.compiled.leaves.tap cimport end_tap
from relay.plane.compiled.leaves.transactions cimport clear_transactions
from relay.plane.compiled.leaves.wire cimport clear_wire

cdef enum:
    CLOSE_US = 2000000              # what is written when a connection closes has this long to leave
    WARM_AFTER = 16                 # records written: a call has begun


# Encrypts and sends. If TLS cannot send now, it must be offered the same bytes again, so they are kept.
cdef inline void write_client(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int written
    if c.out.size:
        queue(e, c, data, size)
        return
    tls.ERR_clear_error()
    written = tls.SSL_write(c.ssl, data, size)
    c.spoken_us = e.now_us
    if written > 0:
        note_write(&c.pace, c.wire.given, e.now_us, c.link.min_rtt_us)
        if not c.buffered:
            warm(c)
        e.sent_down += 1
    elif is_refused_for_now(e, c, written):
        queue(e, c, data, size)
        c.retry = size
        watch_client(e, c)


# Returns True if TLS will take the same bytes later. Otherwise the connection has ended.
cdef inline bint is_refused_for_now(Engine* e, Connection* c, int written) noexcept nogil:
    cdef int error = tls.SSL_get_error(c.ssl, written)
    if error == tls.SSL_ERROR_WANT_WRITE:
        return True
    clear_buffer(&c.out)
    c.retry = 0
    if c.state == STATE_CLOSING:
        finish(e, c)
    elif error == tls.SSL_ERROR_WANT_READ:
        # The client has begun a TLS message and not ended it. Nothing can be written until it does.
        end(e, c, REASON_TLS_BROKEN)
    else:
        c.fault = posix.errno
        end(e, c, REASON_CLIENT_LOST)
    return False


cdef inline void queue(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not append(&c.out, data, size):
        end(e, c, REASON_SLOW_CLIENT)


# A busy connection keeps its TLS buffers. The others allocate them for each record and free them again.
cdef inline void warm(Connection* c) noexcept nogil:
    c.warmth += 1
    if c.warmth == WARM_AFTER:
        tls.SSL_clear_mode(c.ssl, tls.SSL_MODE_RELEASE_BUFFERS)
        c.buffered = True


# Ends a connection. Only the first reason counts. What has been written still leaves.
cdef inline void end(Engine* e, Connection* c, int reason) noexcept nogil:
    cdef uint8_t[FAREWELL_BYTES] farewell
    cdef uint32_t size
    if c.state in (STATE_FREE, STATE_CLOSING, STATE_DEAD):
        return
    clear_deadline(e, c)
    give_up(&c.reserve)
    c.reason = reason
    e.closed[reason] += 1
    if c.udp >= 0:
        watch(e, posix.EPOLL_CTL_DEL, c.udp, 0, 0)
    if c.pipe >= 0:
        posix.close(c.pipe)
        c.pipe = -1
        count_live(LIVE_SOCKETS, -1)
    clear_buffer(&c.held)
    clear_schedule(&c.schedule)
    forget_behind(e, c)
    if c.transactions != NULL:
        clear_transactions(c.transactions)
        free(c.transactions)
        c.transactions = NULL
    free(c.stale_answer)
    c.stale_answer = NULL
    clear_admission(&c.admission)
    if c.carriage != NULL:
        clear_buffer(&c.carriage.web.message)
    if c.tap != NULL:
        end_tap(c.tap)
        c.tap = NULL
    leave_user_allowance(c.user)
    c.user = NULL
    clear_naming(&c.naming)
    c.readable = False
    # Python copies both sets of counters. While ``ends`` is odd it would count this flow twice, or not at all.
    relay_add(&e.ends, 1)
    add_counters(&e.ended, &c.counters)
    add_delays(&e.ended_delays, &c.delays)
    c.state = STATE_CLOSING
    relay_add(&e.ends, 1)
    queue_notice(e, c, NOTICE_CLOSED)
    if c.carriage != NULL and c.carrier != CARRIER_CONNECT_UDP:
        size = write_farewell(
            c.carriage, reason == REASON_BROKEN_FRAME, e.shared.close_codes[reason], e.shared.close_words[reason],
            farewell)
        if size:
            write_client(e, c, farewell, size)
        if c.state == STATE_DEAD:
            return
    if c.out.size and reason not in (REASON_CLIENT_LOST, REASON_SLOW_CLIENT):
        set_deadline(e, c, e.now_us + CLOSE_US)
        watch_client(e, c)
    else:
        finish(e, c)


# Sends close_notify and closes the socket. Its slot stays until Python has read the end.
cdef inline void finish(Engine* e, Connection* c) noexcept nogil:
    clear_deadline(e, c)
    leave_contexts(e, c)
    if not c.lingering and c.ssl != NULL and not e.stopping and (
        c.reason == REASON_HTTP_CLOSED or (c.carriage != NULL and c.carriage.closing)
    ):
        linger(e, c)
        return
    if c.ssl != NULL:
        if not c.lingering and tls.SSL_is_init_finished(c.ssl) and gets_close_notify(c):
            tls.ERR_clear_error()
            tls.SSL_shutdown(c.ssl)
        tls.SSL_free(c.ssl)
        c.ssl = NULL
        count_live(LIVE_SESSIONS, -1)
    clear_wire(&c.wire)
    clear_buffer(&c.out)
    posix.close(c.fd)
    c.fd = -1
    c.state = STATE_DEAD
    e.live -= 1
    count_live(LIVE_CONNECTIONS, -1)
    count_live(LIVE_SOCKETS, -1)
    relay_add(&e.shared.connections, -1)
    if c.counted:
        leave_source(&e.shared.sources, c.source)
    if c.released:
        release(e, c)


# A client that broke TLS, or that is lost, gets no close_notify. One that was only silent may still hear it.
cdef inline bint gets_close_notify(Connection* c) noexcept nogil:
    if c.reason == REASON_CLIENT_LOST:
        return c.failure != NULL
    return c.reason not in (REASON_TLS_BROKEN, REASON_TLS_FLOOD)


# Closing a socket with unread bytes resets the connection, and the client would lose the end of its response. So what
# it still sends is read and discarded, until it closes too, or the deadline comes.
cdef inline void linger(Engine* e, Connection* c) noexcept nogil:
    c.lingering = True
    tls.ERR_clear_error()
    tls.SSL_shutdown(c.ssl)
    posix.shutdown(c.fd, posix.SHUT_WR)
    c.interest = posix.EPOLLIN
    watch(e, posix.EPOLL_CTL_MOD, c.fd, posix.EPOLLIN, mark(ON_TCP, c))
    set_deadline(e, c, e.now_us + CLOSE_US)


cdef inline void on_lingering(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t size = posix.recv(c.fd, e.plain, PLAIN_BYTES, posix.MSG_DONTWAIT)
    if size == 0 or (size < 0 and posix.errno != posix.EAGAIN):
        finish(e, c)


# The last connection to leave retired contexts frees them.
cdef inline void leave_contexts(Engine* e, Connection* c) noexcept nogil:
    if c.contexts != NULL:
        c.contexts.references -= 1
        if c.contexts.retired and not c.contexts.references:
            free_contexts(c.contexts)
        c.contexts = NULL


# Python has read all that it wants of an ended connection.
cdef inline void release(Engine* e, Connection* c) noexcept nogil:
    c.released = True
    if c.state == STATE_DEAD:
        free_what_is_read(c)
        free_slot(e, c)


# Frees what Python may read until it releases the connection.
cdef inline void free_what_is_read(Connection* c) noexcept nogil:
    free(c.request)
    free(c.username)
    free(c.uplink_meter)
    free(c.downlink_meter)
    # ``failure`` may point into it.
    free(c.carriage)
    c.failure = NULL
    c.request, c.username, c.uplink_meter, c.downlink_meter, c.carriage = NULL, NULL, NULL, NULL, NULL
