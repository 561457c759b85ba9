# Reads what the client sends, through TLS. The first bytes decide whether it speaks TURN or HTTP; the rest goes to
# uplink or http.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from relay.plane.compiled.engine cimport (
    PLAIN_BYTES, REASON_CLIENT_CLOSED, REASON_CLIENT_LOST, REASON_FIRST_BYTES_UNKNOWN, REASON_NO_DESCRIPTORS,
    REASON_SLOW_CLIENT, REASON_TLS_BROKEN, REASON_TLS_FLOOD, STATE_CLOSING, STATE_DEAD, STATE_DECIDING, STATE_HTTP,
    STATE_MEDIA, Connection, Engine,
)
from relay.plane.compiled.slots cimport run_again, unread, watch_client
from relay.plane.compiled.ending cimport end
from relay.plane.compiled.arrival cimport failure_words, on_turn
from relay.plane.compiled.uplink cimport on_stream
from relay.plane.compiled.http cimport on_http, on_request_bytes
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport append, front
from relay.plane.compiled.leaves.carriage cimport CARRIER_CONNECT_UDP
from relay.plane.compiled.leaves.first_bytes cimport (
    FIRST_BYTES_HTTP, FIRST_BYTES_NEED_MORE, FIRST_BYTES_TURN, FirstBytes, decide,
)
from relay.plane.compiled.leaves.wire cimport forgive, is_flooded, note_data

cdef enum:
    READS_A_TURN = 8                # TLS reads of one client before others have their turn


# Reads until TLS has no more, or until it is the turn of others.
cdef inline void on_client(Engine* e, Connection* c) noexcept nogil:
    cdef int size
    if c.more:
        c.more = False
        on_stream(e, c, NULL, 0)
        if c.more:
            run_again(e, c)
            return
    for _ in range(READS_A_TURN):
        if not c.readable or c.state in (STATE_CLOSING, STATE_DEAD):
            return
        tls.ERR_clear_error()
        if c.wire.silent:
            forgive(&c.wire, e.now_us)
        size = tls.SSL_read(c.ssl, e.plain, PLAIN_BYTES)
        c.spoken_us = e.now_us
        if size <= 0:
            on_read_error(e, c, tls.SSL_get_error(c.ssl, size))
            return
        note_data(&c.wire)
        on_plain(e, c, e.plain, size)
        if c.state in (STATE_CLOSING, STATE_DEAD):
            return
        if c.more:
            break
        if not unread(c):
            return
    run_again(e, c)


cdef inline void on_read_error(Engine* e, Connection* c, int error) noexcept nogil:
    if is_flooded(&c.wire):
        end(e, c, REASON_TLS_FLOOD)
    elif error == tls.SSL_ERROR_WANT_READ:
        return
    elif error == tls.SSL_ERROR_WANT_WRITE:
        # The client makes TLS itself answer (KeyUpdate) again and again, and reads none of the answers.
        end(e, c, REASON_SLOW_CLIENT)
    elif error == tls.SSL_ERROR_ZERO_RETURN:
        on_client_end(e, c)
    elif error == tls.SSL_ERROR_SYSCALL:
        # EAGAIN means that TLS could not write an alert: this client does not read its answers either.
        c.fault = posix.errno
        end(e, c, REASON_SLOW_CLIENT if c.fault == posix.EAGAIN else REASON_CLIENT_LOST)
    else:
        on_tls_error(e, c)


cdef inline void on_tls_error(Engine* e, Connection* c) noexcept nogil:
    c.failure = failure_words()
    if c.failure == NULL:
        on_client_end(e, c)
    else:
        end(e, c, REASON_TLS_BROKEN)


# The client sends no more. Over HTTP it may still wait for its response; any other connection ends.
cdef inline void on_client_end(Engine* e, Connection* c) noexcept nogil:
    c.ended = True
    if c.state == STATE_HTTP and c.pipe >= 0:
        watch_client(e, c)
        if not c.held.size:
            posix.shutdown(c.pipe, posix.SHUT_WR)
    else:
        if c.carrier == CARRIER_CONNECT_UDP and c.state == STATE_MEDIA and (c.held.size or c.carriage.capsules.skip):
            c.failure = b"within a capsule"
        end(e, c, REASON_CLIENT_CLOSED)


# Bytes out of TLS go where the state says. While control decides, they are held.
cdef inline void on_plain(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
    if c.state == STATE_MEDIA:
        on_stream(e, c, data, size)
    elif c.state == STATE_HTTP:
        on_request_bytes(e, c, data, size)
    elif not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
    elif c.state == STATE_DECIDING:
        on_decide(e, c)


# Without ALPN the first bytes decide: TURN, HTTP, or the end.
cdef inline void on_decide(Engine* e, Connection* c) noexcept nogil:
    cdef FirstBytes verdict = decide(front(&c.held), c.held.size)
    cdef uint32_t shown = c.held.size if c.held.size < 8 else 8
    if verdict == FIRST_BYTES_NEED_MORE:
        return
    if verdict == FIRST_BYTES_TURN:
        on_turn(e, c)
    elif verdict == FIRST_BYTES_HTTP:
        on_http(e, c)
    else:
        memcpy(c.first_bytes, front(&c.held), shown)
        c.fault = shown
        end(e, c, REASON_FIRST_BYTES_UNKNOWN)


# Reads the client again, after a wait for control. What it had sent before comes first.
cdef inline void read_on(Engine* e, Connection* c) noexcept nogil:
    if c.state != STATE_MEDIA:
        return
    c.readable = True
    watch_client(e, c)
    on_stream(e, c, NULL, 0)
    if c.state == STATE_MEDIA and (c.more or unread(c)):
        run_again(e, c)
