# How long packets waited: the compiled twin of relay.plane.reference.delays.

from libc.stdint cimport int64_t, uint64_t

from relay.plane.compiled.leaves.histogram cimport relay_highest_bit

cdef enum:
    DELAY_BUCKETS = 18
    DELAY_FIRST_POWER = 7       # the first bucket ends at 128 us

cdef struct Delays:
    uint64_t sum_us
    uint64_t[DELAY_BUCKETS] counts


cdef inline void record_delay(Delays* delays, int64_t us) noexcept nogil:
    cdef int bucket = 0
    if us >> DELAY_FIRST_POWER:
        bucket = relay_highest_bit(<uint64_t> us) - DELAY_FIRST_POWER + 1 if us > 0 else 0
    delays.counts[bucket if bucket < DELAY_BUCKETS else DELAY_BUCKETS - 1] += 1
    delays.sum_us += <uint64_t> us if us > 0 else 0


cdef inline void add_delays(Delays* delays, const Delays* more) noexcept nogil:
    cdef int bucket
    delays.sum_us += more.sum_us
    for bucket in range(DELAY_BUCKETS):
        delays.counts[bucket] += more.counts[bucket]
