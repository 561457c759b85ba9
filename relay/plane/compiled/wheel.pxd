# Each connection has one deadline, in a wheel of time. This layer sets it, and knows what a flow waits for next.

from libc.stdint cimport int64_t

from relay.plane.compiled.engine cimport WHEEL_SLOTS, WHEEL_TICK_US, Connection, Engine
from relay.plane.compiled.leaves.question cimport next_question_us
from relay.plane.compiled.leaves.transactions cimport next_due_us, waiting_since_us


cdef inline void set_deadline(Engine* e, Connection* c, int64_t when_us) noexcept nogil:
    cdef Connection** slot
    clear_deadline(e, c)
    # The wheel has passed earlier slots in this round already.
    c.deadline_us = when_us if when_us > e.wheel_tick * WHEEL_TICK_US else e.wheel_tick * WHEEL_TICK_US + 1
    slot = &e.wheel[(c.deadline_us // WHEEL_TICK_US) % WHEEL_SLOTS]
    c.wheel_previous = NULL
    c.wheel_next = slot[0]
    if slot[0] != NULL:
        slot[0].wheel_previous = c
    slot[0] = c
    e.armed += 1


cdef inline void clear_deadline(Engine* e, Connection* c) noexcept nogil:
    if not c.deadline_us:
        return
    if c.wheel_previous != NULL:
        c.wheel_previous.wheel_next = c.wheel_next
    else:
        e.wheel[(c.deadline_us // WHEEL_TICK_US) % WHEEL_SLOTS] = c.wheel_next
    if c.wheel_next != NULL:
        c.wheel_next.wheel_previous = c.wheel_previous
    c.deadline_us = 0
    e.armed -= 1


# Sets the next moment at which a flow needs a look: a request is due again, the upstream has been silent for too long,
# control has not answered, there is no allocation, or the client gets a ping.
cdef inline void arm(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t quiet_us = quiet_since_us(c), due = next_due_us(c.transactions)
    if quiet_us:
        due = sooner(due, next_question_us(&c.question, quiet_us, e.bounds.upstream_silence_us))
    due = sooner(sooner(due, c.answer_due_us), c.allocation_due_us)
    if c.carriage != NULL:
        due = sooner(due, c.carriage.ping_due_us)
    if not due:
        clear_deadline(e, c)
        return
    if not c.deadline_us or due < c.deadline_us:
        set_deadline(e, c, due)


# Returns when the silence began that may mean that the upstream is gone; 0 while nothing makes that likely.
cdef inline int64_t quiet_since_us(Connection* c) noexcept nogil:
    cdef int64_t since
    if c.doubt_since_us and c.heard_us > c.doubt_since_us:
        c.doubt_since_us = 0
    since = sooner(waiting_since_us(c.transactions), c.doubt_since_us)
    return c.heard_us if since and c.heard_us > since else since


# Returns the earlier of two times; 0 stands for never.
cdef inline int64_t sooner(int64_t one, int64_t other) noexcept nogil:
    return one if not other or (one and one < other) else other
