# Requests that wait for their response over UDP, and when they are sent again (RFC 8489 section 6.2.1): the compiled
# twin of relay.turn.transactions. Memory is taken for a request when it comes, and only for requests: media needs none.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove

from relay.plane.compiled.leaves.live cimport free, malloc
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_REQUEST, CHANNEL_BIND_REQUEST, CREATE_PERMISSION_REQUEST, REFRESH_REQUEST, TRANSACTION_ID_BYTES,
    TRANSACTION_ID_OFFSET, load16,
)

cdef enum:
    # Fixed by the RFC: Rc sends, the last of which waits Rm times the first interval.
    SENDS = 7
    LAST_WAIT_FACTOR = 16
    # Ours, with the reasons in relay.turn.transactions.
    MAX_PENDING = 32
    MAX_ANSWERED = 64
    MAX_REQUEST_BYTES = 65507
    MAX_PENDING_BYTES = 65536

cdef enum Answer:
    ANSWER_FIRST
    ANSWER_DUPLICATE
    ANSWER_UNKNOWN

cdef struct Pending:
    uint8_t* message            # owned; NULL behind the last one
    uint32_t size
    int sends
    int64_t first_sent_us
    int64_t wait_us
    int64_t due_us

cdef struct Transactions:
    int64_t rto_us              # the first interval; set before the first request
    int count                   # pending requests, in the order they came
    uint32_t bytes              # of their messages
    Pending[MAX_PENDING] pending
    int answered_count          # of the ids below, the oldest first
    uint8_t[MAX_ANSWERED][TRANSACTION_ID_BYTES] answered


cdef inline int find_pending(Transactions* table, const uint8_t* identity) noexcept nogil:
    cdef int i
    for i in range(table.count):
        if memcmp(table.pending[i].message + TRANSACTION_ID_OFFSET, identity, TRANSACTION_ID_BYTES) == 0:
            return i
    return -1


cdef inline void remove_pending(Transactions* table, int position) noexcept nogil:
    table.bytes -= table.pending[position].size
    free(table.pending[position].message)
    table.count -= 1
    memmove(&table.pending[position], &table.pending[position + 1], (table.count - position) * sizeof(Pending))


cdef inline int find_answered(Transactions* table, const uint8_t* identity) noexcept nogil:
    cdef int i
    for i in range(table.answered_count):
        if memcmp(table.answered[i], identity, TRANSACTION_ID_BYTES) == 0:
            return i
    return -1


cdef inline void forget_answered(Transactions* table, int position) noexcept nogil:
    table.answered_count -= 1
    memmove(
        table.answered[position], table.answered[position + 1],
        (table.answered_count - position) * TRANSACTION_ID_BYTES)


# A request was sent. A copy that the requester itself sends again changes nothing; without memory it is not sent again.
cdef inline void on_request(Transactions* table, int64_t now_us, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef Pending* pending
    cdef int position
    if size > MAX_REQUEST_BYTES or find_pending(table, message + TRANSACTION_ID_OFFSET) >= 0:
        return
    position = find_answered(table, message + TRANSACTION_ID_OFFSET)
    if position >= 0:
        # The id is used again: its answer is a first one again.
        forget_answered(table, position)
    while table.count == MAX_PENDING or table.bytes + size > MAX_PENDING_BYTES:
        remove_pending(table, 0)
    pending = &table.pending[table.count]
    pending.message = <uint8_t*> malloc(size)
    if pending.message == NULL:
        return
    memcpy(pending.message, message, size)
    pending.size = size
    pending.sends = 1
    pending.first_sent_us = now_us
    pending.wait_us = table.rto_us
    pending.due_us = now_us + table.rto_us
    table.count += 1
    table.bytes += size


# A response came; it ends the retransmission of its request.
cdef inline Answer on_response(Transactions* table, const uint8_t* identity) noexcept nogil:
    cdef int position = find_pending(table, identity)
    if position < 0:
        return ANSWER_DUPLICATE if find_answered(table, identity) >= 0 else ANSWER_UNKNOWN
    remove_pending(table, position)
    if table.answered_count == MAX_ANSWERED:
        forget_answered(table, 0)
    memcpy(table.answered[table.answered_count], identity, TRANSACTION_ID_BYTES)
    table.answered_count += 1
    return ANSWER_FIRST


# True for a request that a TURN server answers whatever it says.
cdef inline bint is_telling(const uint8_t* message) noexcept nogil:
    return load16(message) in (ALLOCATE_REQUEST, REFRESH_REQUEST, CREATE_PERMISSION_REQUEST, CHANNEL_BIND_REQUEST)


# When the oldest unanswered request was first sent whose silence says something of the server, or 0.
cdef inline int64_t waiting_since_us(Transactions* table) noexcept nogil:
    cdef int i
    for i in range(table.count):
        if is_telling(table.pending[i].message):
            return table.pending[i].first_sent_us
    return 0


cdef inline int64_t next_due_us(Transactions* table) noexcept nogil:
    cdef int64_t due = 0
    cdef int i
    for i in range(table.count):
        if due == 0 or table.pending[i].due_us < due:
            due = table.pending[i].due_us
    return due


# The next request to send again, or NULL; one that has been sent often enough is let go. Call until it gives NULL.
cdef inline Pending* take_due(Transactions* table, int64_t now_us) noexcept nogil:
    cdef Pending* pending
    cdef int i = 0
    while i < table.count:
        pending = &table.pending[i]
        if pending.due_us > now_us:
            i += 1
        elif pending.sends >= SENDS:
            remove_pending(table, i)
        else:
            pending.sends += 1
            pending.wait_us *= 2
            pending.due_us = now_us + (LAST_WAIT_FACTOR * table.rto_us if pending.sends == SENDS else pending.wait_us)
            return pending
    return NULL


cdef inline void clear_transactions(Transactions* table) noexcept nogil:
    while table.count:
        remove_pending(table, table.count - 1)
