# What control hears: a message at once, with its bytes; notices, which are facts about a connection, once in a turn.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from relay.plane.compiled.engine cimport (
    MESSAGES_BYTES, NOTICE_LAST, NOTICE_PAUSED, NOTICE_TEXT, REASON_CONTROL_TIMEOUT, REASON_NO_DESCRIPTORS, Connection,
    Engine, Event,
)
from relay.plane.compiled.ending cimport end
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.live cimport free, malloc
from relay.plane.compiled.leaves.ring cimport is_half_full, put, relay_add

cdef enum:
    PAUSES_TOLD_US = 100000         # for this long nothing more is told of pauses


# Puts a message with its bytes in the ring. If there is no room, Python hangs, and the connection ends.
cdef inline void post_message(
    Engine* e, Connection* c, uint32_t notice, const uint8_t* data, uint32_t size, int number, int fault
) noexcept nogil:
    cdef Event event
    cdef uint64_t one = 1
    cdef int64_t max_bytes = MESSAGES_BYTES // 2 if notice == NOTICE_TEXT else MESSAGES_BYTES
    event.identity = <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index
    event.notice, event.number, event.fault, event.size, event.data = notice, number, fault, size, NULL
    if size:
        event.data = malloc(size)
        if event.data == NULL:
            end(e, c, REASON_NO_DESCRIPTORS)
            return
        memcpy(event.data, data, size)
    # Any client may send texts. They leave half of the room to the messages of upstreams, and to what clients ask of
    # control.
    if notice == NOTICE_TEXT and is_half_full(&e.events):
        max_bytes = 0
    if relay_add(&e.message_bytes, size) > max_bytes or not put(&e.events, &event):
        relay_add(&e.message_bytes, -<int64_t> size)
        free(event.data)
        end(e, c, REASON_CONTROL_TIMEOUT)
        return
    posix.write(e.event_fd, &one, sizeof(one))


# Tells that newcomers wait, unless that was told just now. If there is no room, the next pause is told.
cdef inline void post_pause(Engine* e, int fault) noexcept nogil:
    cdef Event event
    cdef uint64_t one = 1
    if e.now_us - e.pause_told_us < PAUSES_TOLD_US:
        return
    memset(&event, 0, sizeof(event))
    event.notice, event.fault = NOTICE_PAUSED, fault
    if put(&e.events, &event):
        e.pause_told_us = e.now_us
        posix.write(e.event_fd, &one, sizeof(one))


# Puts all queued notices in the ring. Those that find it full wait for the next turn, so none is lost while Python
# hangs.
cdef inline void flush_notices(Engine* e) noexcept nogil:
    cdef Connection* c = e.noticed
    cdef Connection* following
    cdef Event event
    cdef uint64_t one = 1
    cdef uint32_t bit
    cdef bint flushed = False
    memset(&event, 0, sizeof(event))
    e.noticed = NULL
    e.flushed_us = e.now_us
    while c != NULL:
        event.identity = <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index
        bit = 1
        while bit <= NOTICE_LAST:
            if c.notices & bit:
                event.notice = bit
                if not put(&e.events, &event):
                    break
                flushed = True
                c.notices &= ~bit
            bit *= 2
        following = c.noticed_next
        if c.notices:
            c.noticed_next = e.noticed
            e.noticed = c
        c = following
    if flushed:
        posix.write(e.event_fd, &one, sizeof(one))
