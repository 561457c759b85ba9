# A log-linear histogram of microseconds (HDR-style): exact below 16, then sixteen steps to each power of two, so that a
# figure is at most a sixteenth off. Fixed memory, no allocation, one increment a value.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    HISTOGRAM_STEPS = 16
    HISTOGRAM_POWERS = 24       # up to 2^27 us, two minutes; what is longer counts as that
    HISTOGRAM_BUCKETS = 400     # HISTOGRAM_STEPS * (HISTOGRAM_POWERS + 1)

cdef extern from *:
    """
    static inline int relay_highest_bit(uint64_t value) { return 63 - __builtin_clzll(value); }
    """
    int relay_highest_bit(uint64_t value) noexcept nogil

cdef struct Histogram:
    uint64_t[HISTOGRAM_BUCKETS] counts
    uint64_t sum_us


cdef inline int bucket_of(int64_t us) noexcept nogil:
    cdef int power
    if us < HISTOGRAM_STEPS:
        return <int> us if us > 0 else 0
    power = relay_highest_bit(<uint64_t> us) - 4
    if power >= HISTOGRAM_POWERS:
        return HISTOGRAM_BUCKETS - 1
    # The four bits below the highest one choose the step.
    return HISTOGRAM_STEPS * (power + 1) + <int> ((us >> power) & (HISTOGRAM_STEPS - 1))


# The least value that falls into the next bucket.
cdef inline int64_t bucket_end(int bucket) noexcept nogil:
    cdef int power = bucket // HISTOGRAM_STEPS - 1
    if power < 0:
        return bucket + 1
    return <int64_t> (HISTOGRAM_STEPS + bucket % HISTOGRAM_STEPS + 1) << power


cdef inline void record_many_us(Histogram* histogram, int64_t us, uint64_t count) noexcept nogil:
    histogram.counts[bucket_of(us)] += count
    histogram.sum_us += <uint64_t> us * count if us > 0 else 0
