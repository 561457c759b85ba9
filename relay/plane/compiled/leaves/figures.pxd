# Figures of the compiled plane as Python reads them, with the GIL, while the worker goes on.

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

from relay.plane.compiled.leaves.delays cimport DELAY_BUCKETS, DELAY_FIRST_POWER, Delays
from relay.plane.compiled.leaves.histogram cimport HISTOGRAM_BUCKETS, Histogram, bucket_end
from relay.plane.compiled.leaves.meter cimport PAUSE_BUCKETS, Meter, Stream, jitter_us, pause_bucket_end_us


cdef inline tuple histogram_of(Histogram* histogram):
    cdef int bucket
    cdef list counts = []
    for bucket in range(HISTOGRAM_BUCKETS):
        if histogram.counts[bucket]:
            counts.append((bucket_end(bucket), histogram.counts[bucket]))
    return counts, histogram.sum_us


cdef inline tuple delays_of(Delays* delays):
    cdef int bucket
    counts = [(1 << (DELAY_FIRST_POWER + bucket), delays.counts[bucket]) for bucket in range(DELAY_BUCKETS)]
    return [one for one in counts if one[1]], delays.sum_us


cdef inline list streams_of(Meter* kept, int64_t now_us):
    cdef uint32_t i
    cdef int bucket
    # One copy of each: the worker goes on meanwhile, and a clock that was looked at must not be 0 when it divides.
    cdef Stream copied
    cdef Stream* stream = &copied
    cdef list streams = []
    if kept == NULL:
        return streams
    for i in range(kept.count):
        memcpy(stream, &kept.streams[i], sizeof(Stream))
        streams.append((
            kept.ssrcs[i], stream.payload_type, stream.clock_hz, stream.packets, stream.duplicates, stream.reordered,
            stream.restarts, stream.expected, stream.late, stream.missing_runs, jitter_us(stream), stream.stalls,
            stream.longest_pause_us, max(0, now_us - stream.last_us),
            tuple([
                (pause_bucket_end_us(bucket), stream.pauses[bucket])
                for bucket in range(PAUSE_BUCKETS) if stream.pauses[bucket]
            ]),
        ))
    return streams
