# Copies of the datagrams of one flow, on their way from its worker to Python: a ring of bytes between two threads,
# without a lock.
#
# Three may hold a tap: the worker while it copies, Python's reader, and a command between them. Each counts as an owner,
# and who leaves last frees it; so nobody waits for anybody.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay.plane.compiled.leaves.live cimport calloc, free
from relay.plane.compiled.leaves.ring cimport relay_add, relay_load, relay_store

cdef enum:
    # A second of 8 Mbit/s, or a minute of voice: control takes what is there ten times a second.
    TAP_BYTES = 1 << 20

cdef enum TapKind:
    TAP_UPLINK                  # sent to the upstream
    TAP_DOWNLINK                # received from it
    TAP_LOCAL                   # no datagram: the flow's own address from here on, a sockaddr

# Before the bytes of each.
cdef struct TapRecord:
    int64_t at_us               # of the monotonic clock
    uint64_t missed             # datagrams that found no room since the one before
    uint32_t size
    uint32_t kind

cdef struct Tap:
    int64_t owners              # atomic
    uint32_t head               # next byte to take; written by Python alone
    uint32_t tail               # next byte to put; written by the worker alone
    uint32_t ended              # the worker puts nothing more
    bint placed                 # the flow's own address has been told
    uint64_t missed             # from the start
    uint64_t missed_told        # of these
    uint8_t[TAP_BYTES] ring


# With two owners: Python's reader, and the command that brings it to the worker. NULL without memory.
cdef inline Tap* open_tap() noexcept nogil:
    cdef Tap* tap = <Tap*> calloc(1, sizeof(Tap))
    if tap != NULL:
        tap.owners = 2
    return tap


cdef inline void leave_tap(Tap* tap) noexcept nogil:
    if relay_add(&tap.owners, -1) == 0:
        free(tap)


# The worker's end of it.
cdef inline void end_tap(Tap* tap) noexcept nogil:
    relay_store(&tap.ended, 1)
    leave_tap(tap)


cdef inline void copy_in(Tap* tap, uint32_t at, const void* data, uint32_t size) noexcept nogil:
    cdef uint32_t start = at & (TAP_BYTES - 1)
    cdef uint32_t first = size if size < TAP_BYTES - start else TAP_BYTES - start
    memcpy(tap.ring + start, data, first)
    memcpy(tap.ring, <const uint8_t*> data + first, size - first)


cdef inline void copy_out(Tap* tap, uint32_t at, void* data, uint32_t size) noexcept nogil:
    cdef uint32_t start = at & (TAP_BYTES - 1)
    cdef uint32_t first = size if size < TAP_BYTES - start else TAP_BYTES - start
    memcpy(data, tap.ring + start, first)
    memcpy(<uint8_t*> data + first, tap.ring, size - first)


# False if there is no room.
cdef inline bint put_tapped(Tap* tap, TapKind kind, int64_t at_us, const void* data, uint32_t size) noexcept nogil:
    cdef TapRecord record
    cdef uint32_t tail = tap.tail
    if sizeof(TapRecord) + size > TAP_BYTES - (tail - relay_load(&tap.head)):
        return False
    record.at_us, record.size, record.kind = at_us, size, kind
    record.missed = 0
    if kind != TAP_LOCAL:
        record.missed = tap.missed - tap.missed_told
        tap.missed_told = tap.missed
    copy_in(tap, tail, &record, sizeof(TapRecord))
    copy_in(tap, tail + <uint32_t> sizeof(TapRecord), data, size)
    relay_store(&tap.tail, tail + <uint32_t> sizeof(TapRecord) + size)
    return True


# True if there is one more; its bytes lie at ``head`` plus sizeof(TapRecord), until ``drop_tapped``.
cdef inline bint peek_tapped(Tap* tap, TapRecord* record) noexcept nogil:
    if tap.head == relay_load(&tap.tail):
        return False
    copy_out(tap, tap.head, record, sizeof(TapRecord))
    return True


cdef inline void drop_tapped(Tap* tap, const TapRecord* record) noexcept nogil:
    relay_store(&tap.head, tap.head + <uint32_t> sizeof(TapRecord) + record.size)
