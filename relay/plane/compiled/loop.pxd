# A worker's loop. Each turn waits for epoll, carries media first, then serves newcomers and commands, then what is due.

from libc.stdint cimport uint32_t, uint64_t

from relay.plane.compiled.engine cimport (
    EVENTS_A_TURN, REASON_CLIENT_LOST, STATE_CLOSING, STATE_DEAD, STATE_FREE, STATE_HANDSHAKE, STATE_HTTP,
    STATE_MEDIA, WHEEL_TICK_US, Connection, Engine,
)
from relay.plane.compiled.slots cimport ON_COMMAND, ON_LISTENER, ON_PIPE, ON_TCP, ON_UDP, at, find
from relay.plane.compiled.counting cimport note_time
from relay.plane.compiled.ending cimport end, finish, on_lingering
from relay.plane.compiled.messages cimport flush_notices
from relay.plane.compiled.arrival cimport on_handshake, on_listener, watch_listeners
from relay.plane.compiled.delivery cimport on_writable, ask_those_behind
from relay.plane.compiled.downlink cimport on_upstream
from relay.plane.compiled.http cimport on_pipe_readable, on_pipe_writable
from relay.plane.compiled.reading cimport on_client
from relay.plane.compiled.deadlines cimport turn_wheel
from relay.plane.compiled.commands cimport on_commands
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.schedule cimport is_waiting

# A handshake takes half a millisecond. With one a turn, running calls wait no longer than for a burst of media.
cdef enum:
    HANDSHAKES_A_TURN = 1
    PACKETS_A_CLOCK = 8             # packets whose time in the relay is noted together
    FLUSH_EVERY_US = 2000
    BEHIND_EVERY_MS = 5             # a jitter buffer does not notice
    BEHIND_EVERY_US = 5000
    SWEEP_MS = 1000
    SWEEP_US = 1000000              # a call sends fifty packets a second: after one without any it is silent


# Turns until the worker is to stop, the last connection has ended, and control has heard of it.
cdef inline void run(Engine* e) noexcept nogil:
    cdef int timeout_ms
    while not (e.stopping and not e.live and e.noticed == NULL):
        timeout_ms = 0 if e.again != NULL else (
            1 if e.noticed != NULL else BEHIND_EVERY_MS if e.behind != NULL
            else 8 if e.armed or e.accept_again_us else SWEEP_MS
        )
        turn(e, timeout_ms)


cdef inline void turn(Engine* e, int timeout_ms) noexcept nogil:
    cdef int i, handshakes = 0, count = posix.epoll_wait(e.epoll, e.epoll_events, EVENTS_A_TURN, timeout_ms)
    cdef uint64_t number, source
    cdef Connection* c
    e.now_us = posix.monotonic_us()
    e.looked_us = e.now_us
    e.turns += 1
    for i in range(count):
        number = e.epoll_events[i].data.u64
        source = number >> 56
        if source <= ON_PIPE:
            c = find(e, number)
            if c != NULL and c.state != STATE_HANDSHAKE:
                on_media(e, c, source, e.epoll_events[i].events)
                if e.sent_up + e.sent_down >= PACKETS_A_CLOCK:
                    note_time(e)
    if e.behind != NULL and e.now_us - e.behind_seen_us >= BEHIND_EVERY_US:
        ask_those_behind(e)
    if e.again != NULL:
        run_those_again(e)
    if e.sent_up + e.sent_down:
        note_time(e)
    for i in range(count):
        number = e.epoll_events[i].data.u64
        source = number >> 56
        if source == ON_COMMAND:
            on_commands(e)
        elif source == ON_LISTENER and <uint32_t> number < <uint32_t> e.listener_count:
            on_listener(e, <uint32_t> number)
        elif source == ON_TCP and handshakes < HANDSHAKES_A_TURN:
            c = find(e, number)
            if c != NULL and c.state == STATE_HANDSHAKE:
                # epoll reports the others again in the next turn.
                handshakes += 1
                on_handshake(e, c)
    if e.armed:
        turn_wheel(e)
    else:
        e.wheel_tick = e.now_us // WHEEL_TICK_US
    if e.accept_again_us and e.now_us >= e.accept_again_us:
        e.accept_again_us = 0
        watch_listeners(e, True)
    # While clients connect one after the other, Python is woken once for several of them.
    if e.noticed != NULL and e.now_us - e.flushed_us > FLUSH_EVERY_US:
        flush_notices(e)
    if e.now_us - e.swept_us > SWEEP_US:
        sweep(e)


# An event of a connection whose handshake is done.
cdef inline void on_media(Engine* e, Connection* c, uint64_t source, uint32_t events) noexcept nogil:
    if source == ON_UDP:
        if c.state == STATE_MEDIA and c.udp >= 0:
            on_upstream(e, c)
    elif source == ON_PIPE:
        if events & posix.EPOLLOUT and c.state == STATE_HTTP:
            on_pipe_writable(e, c)
        if events & (posix.EPOLLIN | posix.EPOLLHUP | posix.EPOLLERR) and c.state == STATE_HTTP and not c.out.size:
            on_pipe_readable(e, c)
    else:
        if c.lingering and c.state == STATE_CLOSING:
            on_lingering(e, c)
            return
        if events & (posix.EPOLLOUT | posix.EPOLLERR) and (c.out.size or (is_waiting(&c.schedule) and not c.behind)):
            on_writable(e, c)
        if c.state in (STATE_CLOSING, STATE_DEAD):
            if c.state == STATE_CLOSING and events & (posix.EPOLLHUP | posix.EPOLLERR):
                finish(e, c)
        elif c.readable and not c.ended:
            on_client(e, c)
        elif events & (posix.EPOLLHUP | posix.EPOLLERR):
            end(e, c, REASON_CLIENT_LOST)


# Those that were not finished, or that hold bytes for which there will be no event.
cdef inline void run_those_again(Engine* e) noexcept nogil:
    cdef Connection* c = e.again
    cdef Connection* following
    e.again = NULL
    while c != NULL:
        following = c.again_next
        c.again = False
        if c.state == STATE_HANDSHAKE:
            on_handshake(e, c)
        elif c.state != STATE_FREE:
            on_client(e, c)
        c = following


# A connection that has fallen silent gives back its TLS buffers, 32 KiB.
cdef inline void sweep(Engine* e) noexcept nogil:
    cdef uint32_t i
    cdef Connection* c
    e.swept_us = e.now_us
    for i in range(e.slots):
        c = at(e, i)
        if c.buffered and c.ssl != NULL and e.now_us - c.spoken_us > SWEEP_US and tls.SSL_free_buffers(c.ssl):
            tls.SSL_set_mode(c.ssl, tls.SSL_MODE_RELEASE_BUFFERS)
            c.buffered = False
            c.warmth = 0
