# What happens when a connection's deadline comes: in the handshake, before the first bytes, while it waits for control,
# and in a flow.

from libc.stdint cimport int64_t, uint8_t

from relay.plane.compiled.engine cimport (
    REASON_CLIENT_LOST, REASON_CONTROL_TIMEOUT, REASON_FIRST_BYTES_TIMEOUT, REASON_HANDSHAKE_FAILED,
    REASON_NO_ALLOCATION, REASON_UPSTREAM_SILENT, STATE_CLOSING, STATE_DECIDING, STATE_HANDSHAKE, STATE_MEDIA,
    STATE_WAITING, WHEEL_SLOTS, WHEEL_TICK_US, Connection, Engine,
)
from relay.plane.compiled.counting cimport copy_datagram
from relay.plane.compiled.wheel cimport arm, clear_deadline, quiet_since_us
from relay.plane.compiled.ending cimport end, finish
from relay.plane.compiled.delivery cimport send_own
from relay.plane.compiled.upstream cimport on_upstream_gone, send_up_again, settle
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.carriage cimport write_ping
from relay.plane.compiled.leaves.question cimport (
    JUDGEMENT_ASK, JUDGEMENT_GONE, QUESTION_BYTES, Judgement, judge, write_question,
)
from relay.plane.compiled.leaves.tap cimport TAP_UPLINK
from relay.plane.compiled.leaves.transactions cimport Pending, take_due

cdef enum:
    MEDIA_IDLE_US = 120000000       # RFC 9298 section 3.1: a proxy keeps a flow for two minutes at least


# Goes through the slots of the wheel whose time has come. A deadline of a later round stays in its slot.
cdef inline void turn_wheel(Engine* e) noexcept nogil:
    cdef int64_t tick = e.now_us // WHEEL_TICK_US
    cdef Connection* c
    cdef Connection* due
    if tick - e.wheel_tick > WHEEL_SLOTS:
        e.wheel_tick = tick - WHEEL_SLOTS
    while e.wheel_tick < tick:
        c = e.wheel[e.wheel_tick % WHEEL_SLOTS]
        e.wheel_tick += 1
        while c != NULL:
            due = c
            c = c.wheel_next
            if due.deadline_us <= e.now_us:
                clear_deadline(e, due)
                on_deadline(e, due)


cdef inline void on_deadline(Engine* e, Connection* c) noexcept nogil:
    if c.state == STATE_HANDSHAKE:
        c.failure = b"timeout"
        end(e, c, REASON_HANDSHAKE_FAILED)
    elif c.state == STATE_DECIDING:
        end(e, c, REASON_FIRST_BYTES_TIMEOUT)
    elif c.state == STATE_WAITING:
        end(e, c, REASON_CONTROL_TIMEOUT)
    elif c.state == STATE_CLOSING:
        finish(e, c)
    elif c.state == STATE_MEDIA:
        on_flow_deadline(e, c)


# One deadline stands for everything that a flow waits for, so each of these is looked at.
cdef inline void on_flow_deadline(Engine* e, Connection* c) noexcept nogil:
    cdef Pending* pending
    if c.answer_due_us and e.now_us >= c.answer_due_us:
        end(e, c, REASON_CONTROL_TIMEOUT)
        return
    if c.allocation_due_us and e.now_us >= c.allocation_due_us and not may_stay(e, c):
        return
    if c.carriage != NULL and c.carriage.ping_due_us and e.now_us >= c.carriage.ping_due_us:
        ping(e, c)
        if c.state != STATE_MEDIA:
            return
    if quiet_since_us(c) and not is_there(e, c):
        return
    pending = take_due(c.transactions, e.now_us)
    while pending != NULL:
        send_up_again(e, c, pending.message, pending.size)
        if c.state != STATE_MEDIA or c.udp < 0:
            return
        pending = take_due(c.transactions, e.now_us)
    arm(e, c)


# Returns True if the flow may go on, and sets when to look again.
cdef inline bint may_stay(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t due = allocation_wanted_us(e, c), whole_by = c.first_byte_us + e.bounds.first_bytes_timeout_us
    cdef bint begins = c.first_byte_us and c.held.size and not c.counters.uplink_packets and c.admission.asked == NULL
    if begins and e.now_us >= whole_by:
        end(e, c, REASON_FIRST_BYTES_TIMEOUT)
        return False
    if e.now_us >= due:
        end(e, c, REASON_NO_ALLOCATION)
        return False
    # A Refresh may give the allocation up long before its time.
    c.allocation_due_us = min(due, e.now_us + e.bounds.allocation_timeout_us)
    if begins:
        c.allocation_due_us = min(c.allocation_due_us, whole_by)
    return True


# Returns the time by which the flow must have an allocation; without one it ends.
cdef inline int64_t allocation_wanted_us(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t since = c.allocated_until_us if c.allocated_until_us else c.idle_since_us
    cdef int64_t due = since + e.bounds.allocation_timeout_us
    # A peer that is not a TURN server knows no allocations: there media keeps the flow for two minutes.
    return max(due, c.heard_media_us + MEDIA_IDLE_US) if c.heard_media_us else due


# Keeps a WebSocket alive in proxies, and ends one whose client answers no pings.
cdef inline void ping(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t[2] frame
    if c.admission.asked != NULL:
        # We do not read from it, so we could not hear a pong.
        c.carriage.heard_us = e.now_us
    if write_ping(c.carriage, e.now_us, e.bounds.websocket_ping_us, frame):
        send_own(e, c, frame, 2)
    else:
        c.failure = b"no pong"
        end(e, c, REASON_CLIENT_LOST)


# Asks a silent upstream whether it is there. Returns False if it is not, or if the flow has ended.
cdef inline bint is_there(Engine* e, Connection* c) noexcept nogil:
    cdef Judgement judgement = judge(
        &c.question, e.now_us, quiet_since_us(c), e.bounds.upstream_silence_us, c.transactions.rto_us)
    if judgement == JUDGEMENT_GONE:
        on_upstream_gone(e, c, REASON_UPSTREAM_SILENT, c.uplink.refused_for)
        return False
    if judgement == JUDGEMENT_ASK:
        ask(e, c)
    return c.state == STATE_MEDIA and c.udp >= 0


# Our own question is not counted, but a tap sees it, as it sees everything that leaves.
cdef inline void ask(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t[QUESTION_BYTES] message
    write_question(&c.question, message)
    if posix.send(c.udp, message, QUESTION_BYTES, posix.MSG_DONTWAIT) >= 0:
        c.uplink.refused_for = 0
    elif settle(e, c, message, QUESTION_BYTES, posix.errno):
        return
    if c.tap != NULL:
        copy_datagram(c, TAP_UPLINK, message, QUESTION_BYTES)
