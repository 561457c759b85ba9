# What Python is told, and the end of clients and streams, whatever the reason.

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset, strlen

from loadtest.engine.engine cimport (
    CAUSE_NONE, ENDED, PHASE_ENDED, PHASE_UPGRADE, SILENCED, SPARE_HAPPENINGS, VALUES, WORDS_BYTES, Cause, Client,
    Engine, Happening, HappeningKind, Plan, Stream,
)
from loadtest.engine.heap cimport clear_due
from loadtest.engine.srtp cimport close_srtp
from loadtest.engine.windows cimport COUNT_UNTOLD, count
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport clear_buffer
from relay.plane.compiled.leaves.live cimport LIVE_SESSIONS, LIVE_SOCKETS, count_live, free
from relay.plane.compiled.leaves.openssl cimport ERR_clear_error, SSL_CTX_free, SSL_free, SSL_shutdown
from relay.plane.compiled.leaves.ring cimport put, relay_load


cdef inline void begin_happening(Happening* happening, HappeningKind kind, uint32_t number) noexcept nogil:
    memset(happening, 0, sizeof(Happening))
    happening.kind, happening.number = kind, number


# The ring has room for the two happenings of each client and the one of each stream, which Python takes before it gives
# their numbers again, and SPARE_HAPPENINGS.
cdef inline void tell(Engine* e, Happening* happening) noexcept nogil:
    if not put(&e.happenings, happening):
        count(e.window, COUNT_UNTOLD)
    e.asked = True


# What may happen to a client more than once has no place of its own: Python may not hear of it, if it is slow.
cdef inline void tell_if_room(Engine* e, Happening* happening) noexcept nogil:
    if e.happenings.tail - relay_load(&e.happenings.head) < SPARE_HAPPENINGS:
        tell(e, happening)
    else:
        count(e.window, COUNT_UNTOLD)


cdef inline void say(char* words, uint32_t room, const uint8_t* text, uint32_t size) noexcept nogil:
    size = size if size < room - 1 else room - 1
    memcpy(words, text, size)
    words[size] = 0


cdef inline void close_connection(Client* c) noexcept nogil:
    if c.tls != NULL:
        SSL_free(c.tls)
        count_live(LIVE_SESSIONS, -1)
    if c.fd >= 0:
        posix.close(c.fd)
        count_live(LIVE_SOCKETS, -1)
    c.tls = NULL
    c.fd = -1


cdef inline void free_plan(Plan* plan) noexcept nogil:
    if plan != NULL:
        SSL_CTX_free(plan.context)
    free(plan)


cdef inline void free_client(Client* c) noexcept nogil:
    close_connection(c)
    clear_buffer(&c.waiting_in)
    clear_buffer(&c.waiting_out)
    free_plan(c.plan)
    free(c)


# From here it has no connection and is in no table. Who still holds it sees its phase; it is freed at the end of the turn.
cdef inline void end_client(Engine* e, Client* c, Cause cause, int32_t code, const char* words) noexcept nogil:
    cdef Happening happening
    if c.phase == PHASE_ENDED:
        return
    begin_happening(&happening, ENDED, c.number)
    happening.phase, happening.cause, happening.code = c.phase, cause, code
    if words != NULL:
        say(happening.words, WORDS_BYTES, <const uint8_t*> words, <uint32_t> strlen(words))
    # The close_notify is one more record; nothing waits for the server's. A dead session may not be shut down.
    if c.tls != NULL and cause == CAUSE_NONE and c.phase >= PHASE_UPGRADE:
        SSL_shutdown(c.tls)
    # The next call for another client must not find what this one has left.
    ERR_clear_error()
    e.clients[c.number] = NULL
    clear_due(&e.due_clients, c.number)
    close_connection(c)
    c.phase = PHASE_ENDED
    c.next_ended, e.ended = e.ended, c
    tell(e, &happening)


cdef inline void free_ended(Engine* e) noexcept nogil:
    cdef Client* c
    while e.ended != NULL:
        c = e.ended
        e.ended = c.next_ended
        free_client(c)


cdef inline void free_stream(Stream* s) noexcept nogil:
    close_srtp(&s.sending)
    close_srtp(&s.receiving)
    free(s)


# All its packets are judged.
cdef inline void end_stream(Engine* e, Stream* s) noexcept nogil:
    cdef Happening happening
    begin_happening(&happening, SILENCED, s.number)
    memcpy(happening.values, &s.totals, sizeof(s.totals))
    happening.values[VALUES - 1] = s.jitter_16us >> 4
    e.streams[s.number] = NULL
    clear_due(&e.due_streams, s.number)
    free_stream(s)
    tell(e, &happening)
