# Newcomers: how many connections each source has, and how fast they come, from each source and in total. One table for
# all workers, under a lock that is taken when a connection comes and when it goes, and only where this is bounded.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
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
    # A power of two. A source without a connection keeps its slot until another one wants it. Half of the slots stay
    # free, so that all are found quickly. Where all the others are in use, new sources are not bounded.
    SOURCE_SLOTS = 65536
    SECOND_US = 1000000

# What becomes of a newcomer.
cdef enum Entry:
    ENTRY_GOOD
    ENTRY_TOO_MANY              # its source has as many connections as it may
    ENTRY_TOO_FAST              # its source has opened as many in this second as it may

cdef struct Source:
    uint8_t[SOURCE_BYTES] address
    bint taken
    uint32_t count
    int64_t earned_us           # when all its newcomers so far are earned, at the rate that it may have

cdef struct Sources:
    pthread_mutex_t mutex
    Source* slots
    uint32_t filled
    int64_t earned_us           # the same for newcomers of all sources


cdef inline int open_sources(Sources* sources) noexcept nogil:
    sources.filled = 0
    sources.earned_us = 0
    sources.slots = <Source*> calloc(SOURCE_SLOTS, sizeof(Source))
    return -1 if sources.slots == NULL else pthread_mutex_init(&sources.mutex, NULL)


# Returns the slot of a source. Without one it is the slot to take: one on the way that nobody needs, or else a free one.
cdef inline Source* find_source(Sources* sources, const uint8_t* address, int64_t now_us) noexcept nogil:
    cdef uint64_t hashed = 1469598103934665603u         # FNV-1a: no peer gains by a collision but a shared bound
    cdef uint32_t i
    cdef int byte
    cdef Source* unused = NULL
    for byte in range(SOURCE_BYTES):
        hashed = (hashed ^ address[byte]) * 1099511628211u
    i = <uint32_t> (hashed >> 24) & (SOURCE_SLOTS - 1)
    while sources.slots[i].taken:
        if memcmp(sources.slots[i].address, address, SOURCE_BYTES) == 0:
            return &sources.slots[i]
        if unused == NULL and not sources.slots[i].count and sources.slots[i].earned_us <= now_us:
            unused = &sources.slots[i]
        i = (i + 1) & (SOURCE_SLOTS - 1)
    return unused if unused != NULL else &sources.slots[i]


# Makes a found slot that of this source. Returns False if too few are left.
cdef inline bint claim(Sources* sources, Source* source, const uint8_t* address) noexcept nogil:
    if source.taken and memcmp(source.address, address, SOURCE_BYTES) == 0:
        return True
    if not source.taken and sources.filled >= SOURCE_SLOTS // 2:
        return False
    sources.filled += not source.taken
    source.taken = True
    source.count = 0
    source.earned_us = 0
    memcpy(source.address, address, SOURCE_BYTES)
    return True


# Takes one of so many a second, of which as many may come at once. Returns False if there is none left now.
cdef inline bint take_one(int64_t* earned_us, int64_t now_us, int64_t per_second) noexcept nogil:
    cdef int64_t begin = earned_us[0] if earned_us[0] > now_us else now_us
    if begin + SECOND_US // per_second > now_us + SECOND_US:
        return False
    earned_us[0] = begin + SECOND_US // per_second
    return True


# Counts one more connection of a source, if the bounds allow it; 0 is no bound. ``counted`` says whether it is to leave.
cdef inline Entry enter_source(
    Sources* sources, const uint8_t* address, int64_t now_us, int64_t bound, int64_t per_second, bint* counted
) noexcept nogil:
    cdef Entry entry = ENTRY_GOOD
    cdef Source* source
    pthread_mutex_lock(&sources.mutex)
    source = find_source(sources, address, now_us)
    if claim(sources, source, address):
        if bound and source.count >= bound:
            entry = ENTRY_TOO_MANY
        elif per_second and not take_one(&source.earned_us, now_us, per_second):
            entry = ENTRY_TOO_FAST
        else:
            source.count += 1
            counted[0] = True
    pthread_mutex_unlock(&sources.mutex)
    return entry


cdef inline void leave_source(Sources* sources, const uint8_t* address) noexcept nogil:
    cdef Source* source
    pthread_mutex_lock(&sources.mutex)
    # At a time before all others no slot is unused: this finds the source itself, or a free slot.
    source = find_source(sources, address, -1)
    if source.taken and source.count:
        source.count -= 1
    pthread_mutex_unlock(&sources.mutex)


# Takes one of the handshakes that all sources may begin in a second. Returns False if there is none left now.
cdef inline bint take_handshake(Sources* sources, int64_t now_us, int64_t per_second) noexcept nogil:
    cdef bint taken
    pthread_mutex_lock(&sources.mutex)
    taken = take_one(&sources.earned_us, now_us, per_second)
    pthread_mutex_unlock(&sources.mutex)
    return taken


# Returns when the next one can be taken.
cdef inline int64_t next_handshake_us(Sources* sources, int64_t per_second) noexcept nogil:
    cdef int64_t next_us
    pthread_mutex_lock(&sources.mutex)
    next_us = sources.earned_us + SECOND_US // per_second - SECOND_US
    pthread_mutex_unlock(&sources.mutex)
    return next_us
