# What is counted in a window of time: counters, and log-linear histograms of microseconds.
#
# Exact below 128 us; above, each power of two is cut into 128 equal parts, so that a value is known to better than 1 %.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from relay.plane.compiled.leaves.histogram cimport relay_highest_bit

cdef enum:
    PART_BITS = 7
    PARTS = 128
    # Longer than an hour counts as an hour and ten minutes: 2^32 us.
    BUCKETS = 3328              # PARTS * (32 - PART_BITS + 1)
    MAX_US = 0xFFFFFFFF

# In the order of loadtest.engine.windows.COUNTERS.
cdef enum Counter:
    COUNT_SENT                  # packets that the client's transport has taken
    COUNT_UNSENT                # due, but the client was not there, or had no room
    COUNT_RECEIVED              # once, in time
    COUNT_LOST                  # not received in its patience
    COUNT_EXPIRED               # received after they were counted as lost
    COUNT_LATE                  # received, but later than their stream allows
    COUNT_DUPLICATE
    COUNT_REORDERED
    COUNT_CORRUPT               # of one of our streams by its SSRC, with a tag that is wrong
    COUNT_MISROUTED             # whole, but for another client
    COUNT_FOREIGN               # of no stream
    COUNT_STALLS                # a packet that took 200 ms longer than the one before it
    COUNT_RUNS                  # of packets in a row that were lost or late
    COUNT_REFLECTED             # by a peer that sends everything back
    COUNT_FORGED                # answers of a server that do not prove that it knows the password
    COUNT_DIRTY                 # of a stream, with padding that is not zero: no harm, but whose bytes are these?
    COUNT_UNTOLD                # happenings that Python did not take in time
    COUNTERS

cdef enum HistogramKind:
    OF_DELAY                    # from the stamp to the arrival
    OF_LATENESS                 # of the engine itself: from when a packet was due until it was stamped
    OF_JITTER                   # RFC 3550 section 6.4.1, at each packet
    HISTOGRAMS

cdef struct Window:
    int64_t begun_us
    int64_t ended_us
    int64_t cpu_us              # of the thread: at the beginning, and then what it has spent
    uint64_t[COUNTERS] counters
    uint32_t[HISTOGRAMS][BUCKETS] histograms


cdef inline uint32_t bucket_of(int64_t us) noexcept nogil:
    cdef uint32_t octave
    if us < PARTS:
        return <uint32_t> us if us > 0 else 0
    if us > MAX_US:
        us = MAX_US
    octave = <uint32_t> (relay_highest_bit(<uint64_t> us) - PART_BITS)
    return (octave + 1) * PARTS + <uint32_t> (us >> octave) - PARTS


# The greatest value of a bucket: a percentile never flatters.
cdef inline int64_t bucket_edge(uint32_t bucket) noexcept nogil:
    cdef uint32_t octave
    if bucket < PARTS:
        return bucket
    octave = bucket // PARTS - 1
    return (<int64_t> (bucket % PARTS + PARTS + 1) << octave) - 1


cdef inline void count(Window* window, Counter counter) noexcept nogil:
    window.counters[<int> counter] += 1


cdef inline void record(Window* window, HistogramKind kind, int64_t us) noexcept nogil:
    window.histograms[<int> kind][bucket_of(us)] += 1
