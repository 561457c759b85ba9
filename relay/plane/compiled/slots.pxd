# A connection's slot in the slab, and the number by which epoll and Python know it; what epoll watches for it; and the
# lists in which it waits for another turn.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from relay.plane.compiled.engine cimport CHUNK, MAX_CHUNKS, STATE_FREE, Connection, Engine
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.live cimport calloc
from relay.plane.compiled.leaves.reserve cimport clear_reserve
from relay.plane.compiled.leaves.ring cimport relay_store
from relay.plane.compiled.leaves.schedule cimport is_urgent, is_waiting


# What an epoll event is about: the top byte of its number, above generation and index.
cdef enum Source:
    ON_TCP
    ON_UDP
    ON_PIPE
    ON_LISTENER
    ON_COMMAND


# What epoll keeps with a descriptor of this connection.
cdef inline uint64_t mark(Source source, Connection* c) noexcept nogil:
    return <uint64_t> source << 56 | <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index


cdef inline Connection* at(Engine* e, uint32_t index) noexcept nogil:
    return &e.chunks[index // CHUNK][index % CHUNK]


# Returns the connection with this number, or NULL if it has gone.
cdef inline Connection* find(Engine* e, uint64_t number) noexcept nogil:
    cdef uint32_t index = <uint32_t> number
    cdef Connection* c
    if index >= e.slots:
        return NULL
    c = at(e, index)
    return c if c.state != STATE_FREE and (c.generation & 0xFFFFFF) == ((number >> 32) & 0xFFFFFF) else NULL


# Returns a cleared slot, or NULL if there is no memory, or no room for another one.
cdef inline Connection* take_slot(Engine* e) noexcept nogil:
    cdef Connection* c
    cdef Connection* chunk
    cdef uint32_t generation, index
    cdef int i
    if e.free_slots == NULL:
        if e.slots // CHUNK == MAX_CHUNKS:
            return NULL
        chunk = <Connection*> calloc(CHUNK, sizeof(Connection))
        if chunk == NULL:
            return NULL
        e.chunks[e.slots // CHUNK] = chunk
        for i in range(CHUNK):
            chunk[i].index = e.slots + i
            chunk[i].generation = 1
            chunk[i].free_next = e.free_slots
            e.free_slots = &chunk[i]
        # Python reads this number and then looks at that many slots, so they must be there first.
        relay_store(&e.slots, e.slots + CHUNK)
    c = e.free_slots
    e.free_slots = c.free_next
    generation, index = c.generation, c.index
    memset(c, 0, sizeof(Connection))
    c.generation, c.index = generation, index
    c.fd = c.udp = c.pipe = c.their_pipe = -1
    clear_reserve(&c.reserve)
    e.used += 1
    return c


# From here the old number finds nothing: the generation has changed.
cdef inline void free_slot(Engine* e, Connection* c) noexcept nogil:
    c.state = STATE_FREE
    c.generation += 1
    if not c.generation & 0xFFFFFF:
        c.generation = 1
    c.free_next = e.free_slots
    e.free_slots = c
    e.used -= 1


cdef inline void close_open(int fd) noexcept nogil:
    if fd >= 0:
        posix.close(fd)


cdef inline int watch(Engine* e, int operation, int fd, uint32_t events, uint64_t number) noexcept nogil:
    cdef posix.epoll_event event
    event.events = events
    event.data.u64 = number
    return posix.epoll_ctl(e.epoll, operation, fd, &event)


# Has epoll watch the client's socket for what the connection waits for.
cdef inline void watch_client(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t wanted = 0
    if c.fd < 0:
        return
    if c.readable and not c.ended:
        wanted |= posix.EPOLLIN
    if c.out.size or c.retry or may_write_waiting(c):
        wanted |= posix.EPOLLOUT
    if wanted != c.interest:
        c.interest = wanted
        watch(e, posix.EPOLL_CTL_MOD, c.fd, wanted, mark(ON_TCP, c))


# Returns True if something waits that TCP may be given, as far as we know. Otherwise TCP is asked again later.
cdef inline bint may_write_waiting(Connection* c) noexcept nogil:
    if not is_waiting(&c.schedule) or c.pace.behind:
        return False
    return not c.pace.holds_data or is_urgent(&c.schedule)


# The same for the socket to control.
cdef inline void watch_pipe(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t wanted = 0
    if not c.out.size:
        wanted |= posix.EPOLLIN
    if c.held.size:
        wanted |= posix.EPOLLOUT
    # If nothing is wanted, epoll must not watch at all: it would report a hang-up again and again.
    if wanted and not c.pipe_watched:
        watch(e, posix.EPOLL_CTL_ADD, c.pipe, wanted, mark(ON_PIPE, c))
    elif wanted:
        watch(e, posix.EPOLL_CTL_MOD, c.pipe, wanted, mark(ON_PIPE, c))
    elif c.pipe_watched:
        watch(e, posix.EPOLL_CTL_DEL, c.pipe, 0, 0)
    c.pipe_watched = wanted != 0


# Returns True while a read would give something. TLS reads ahead, so it has all bytes of the socket unless there were
# more than it takes at once. Without this check each read would ask the kernel once more, and find nothing.
cdef inline bint unread(Connection* c) noexcept nogil:
    return not c.wire.drained or tls.SSL_has_pending(c.ssl)


# The client's turn comes again in this round, or the next, without an event.
cdef inline void run_again(Engine* e, Connection* c) noexcept nogil:
    if not c.again:
        c.again = True
        c.again_next = e.again
        e.again = c


# In a few milliseconds TCP is asked whether it has caught up.
cdef inline void ask_tcp_again(Engine* e, Connection* c) noexcept nogil:
    if not c.behind:
        c.behind = True
        c.behind_next = e.behind
        e.behind = c


cdef inline void forget_behind(Engine* e, Connection* c) noexcept nogil:
    cdef Connection** link = &e.behind
    if not c.behind:
        return
    while link[0] != c:
        link = &link[0].behind_next
    link[0] = c.behind_next
    c.behind = False


# Control hears of it at the end of a turn. A notice that waits already is not queued twice.
cdef inline void queue_notice(Engine* e, Connection* c, uint32_t notice) noexcept nogil:
    if not c.notices:
        c.noticed_next = e.noticed
        e.noticed = c
    c.notices |= notice
