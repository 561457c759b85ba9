# A ring between two threads, one that puts and one that takes, without a lock. Capacity is a power of two.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from relay.plane.compiled.leaves.live cimport calloc, free

cdef extern from *:
    """
    static inline uint32_t relay_load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void relay_store(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline int64_t relay_add(int64_t *p, int64_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
    static inline int64_t relay_peek(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void relay_poke(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline int relay_replace(int64_t *p, int64_t old, int64_t v) {
        return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    """
    uint32_t relay_load(const uint32_t* value) noexcept nogil
    void relay_store(uint32_t* value, uint32_t new) noexcept nogil
    int64_t relay_add(int64_t* value, int64_t more) noexcept nogil
    # For numbers that several threads count, where nothing else depends on them.
    int64_t relay_peek(const int64_t* value) noexcept nogil
    void relay_poke(int64_t* value, int64_t new) noexcept nogil
    # False if it was not ``old`` any longer.
    bint relay_replace(int64_t* value, int64_t old, int64_t new) noexcept nogil

cdef struct Ring:
    uint8_t* items
    uint32_t item_bytes
    uint32_t capacity
    uint32_t head               # next to take; written by the taker alone
    uint32_t tail               # next to put; written by the putter alone


cdef inline int open_ring(Ring* ring, uint32_t item_bytes, uint32_t capacity) noexcept nogil:
    ring.items = <uint8_t*> calloc(capacity, item_bytes)
    ring.item_bytes = item_bytes
    ring.capacity = capacity
    ring.head = ring.tail = 0
    return 0 if ring.items != NULL else -1


cdef inline void close_ring(Ring* ring) noexcept nogil:
    free(ring.items)
    ring.items = NULL


# False if the ring is full.
cdef inline bint put(Ring* ring, const void* item) noexcept nogil:
    cdef uint32_t tail = ring.tail
    if tail - relay_load(&ring.head) == ring.capacity:
        return False
    memcpy(ring.items + (tail & (ring.capacity - 1)) * ring.item_bytes, item, ring.item_bytes)
    relay_store(&ring.tail, tail + 1)
    return True


cdef inline bint is_half_full(Ring* ring) noexcept nogil:
    return ring.tail - relay_load(&ring.head) >= ring.capacity // 2


# False if the ring is empty.
cdef inline bint take(Ring* ring, void* item) noexcept nogil:
    cdef uint32_t head = ring.head
    if head == relay_load(&ring.tail):
        return False
    memcpy(item, ring.items + (head & (ring.capacity - 1)) * ring.item_bytes, ring.item_bytes)
    relay_store(&ring.head, head + 1)
    return True
