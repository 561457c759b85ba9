# How many connections each source address has: one table for all workers, under a lock that is taken when a connection
# comes and when it goes, and only where connections for each source are bounded.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from relay.plane.compiled.leaves.live cimport calloc

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

cdef enum:
    SOURCE_BYTES = 16           # an IPv6 address, or an IPv4 one mapped
    # A power of two. A slot keeps its address when the count is back at zero, so the table fills with the addresses
    # ever seen: a firm's LAN has fewer than half as many. Beyond that new sources are not bounded.
    SOURCE_SLOTS = 65536

cdef struct Source:
    uint8_t[SOURCE_BYTES] address
    bint taken
    uint32_t count

cdef struct Sources:
    pthread_mutex_t mutex
    Source* slots
    uint32_t filled


cdef inline int open_sources(Sources* sources) noexcept nogil:
    sources.filled = 0
    sources.slots = <Source*> calloc(SOURCE_SLOTS, sizeof(Source))
    return -1 if sources.slots == NULL else pthread_mutex_init(&sources.mutex, NULL)


cdef inline Source* find_source(Sources* sources, const uint8_t* address) noexcept nogil:
    cdef uint64_t hashed = 1469598103934665603u         # FNV-1a: no peer gains by a collision but a shared bound
    cdef uint32_t i
    cdef int byte
    for byte in range(SOURCE_BYTES):
        hashed = (hashed ^ address[byte]) * 1099511628211u
    i = <uint32_t> (hashed >> 24) & (SOURCE_SLOTS - 1)
    while sources.slots[i].taken and memcmp(sources.slots[i].address, address, SOURCE_BYTES) != 0:
        i = (i + 1) & (SOURCE_SLOTS - 1)
    return &sources.slots[i]


# Counts one more connection of a source; False if it has as many as it may.
cdef inline bint enter_source(Sources* sources, const uint8_t* address, uint32_t bound) noexcept nogil:
    cdef Source* source
    cdef bint admitted = True
    pthread_mutex_lock(&sources.mutex)
    source = find_source(sources, address)
    if not source.taken and sources.filled < SOURCE_SLOTS // 2:
        source.taken = True
        sources.filled += 1
        memcpy(source.address, address, SOURCE_BYTES)
    if source.taken:
        admitted = source.count < bound
        source.count += admitted
    pthread_mutex_unlock(&sources.mutex)
    return admitted


cdef inline void leave_source(Sources* sources, const uint8_t* address) noexcept nogil:
    cdef Source* source
    pthread_mutex_lock(&sources.mutex)
    source = find_source(sources, address)
    if source.taken and source.count:
        source.count -= 1
    pthread_mutex_unlock(&sources.mutex)
