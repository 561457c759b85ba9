# What is due next: a binary heap of numbers by their time, in which each number is at most once. The engine has one for
# streams and one for clients.

from libc.stdint cimport int32_t, int64_t, uint32_t

from relay.plane.compiled.leaves.live cimport calloc, free

cdef enum:
    NOWHERE = -1

cdef struct Due:
    int64_t us
    uint32_t number

cdef struct Heap:
    Due* items
    int32_t* places             # of each number, NOWHERE if nothing of it is due
    uint32_t count
    uint32_t room


# For the numbers below ``room``. False without memory.
cdef inline bint open_heap(Heap* heap, uint32_t room) noexcept nogil:
    cdef uint32_t i
    heap.items = <Due*> calloc(room, sizeof(Due))
    heap.places = <int32_t*> calloc(room, sizeof(int32_t))
    heap.count, heap.room = 0, room
    if heap.items == NULL or heap.places == NULL:
        return False
    for i in range(room):
        heap.places[i] = NOWHERE
    return True


cdef inline void close_heap(Heap* heap) noexcept nogil:
    free(heap.items)
    free(heap.places)
    heap.items = NULL
    heap.places = NULL
    heap.count = 0


cdef inline void settle(Heap* heap, uint32_t place, Due item) noexcept nogil:
    heap.items[place] = item
    heap.places[item.number] = <int32_t> place


cdef inline void sift_up(Heap* heap, uint32_t place, Due item) noexcept nogil:
    cdef uint32_t above
    while place:
        above = (place - 1) // 2
        if heap.items[above].us <= item.us:
            break
        settle(heap, place, heap.items[above])
        place = above
    settle(heap, place, item)


cdef inline void sift_down(Heap* heap, uint32_t place, Due item) noexcept nogil:
    cdef uint32_t below = 2 * place + 1
    while below < heap.count:
        if below + 1 < heap.count and heap.items[below + 1].us < heap.items[below].us:
            below += 1
        if item.us <= heap.items[below].us:
            break
        settle(heap, place, heap.items[below])
        place, below = below, 2 * below + 1
    settle(heap, place, item)


cdef inline void sift(Heap* heap, uint32_t place, Due item) noexcept nogil:
    if place and item.us < heap.items[(place - 1) // 2].us:
        sift_up(heap, place, item)
    else:
        sift_down(heap, place, item)


# This number is due at this time, and not when it was before.
cdef inline void set_due(Heap* heap, uint32_t number, int64_t us) noexcept nogil:
    cdef Due item = Due(us, number)
    cdef int32_t place = heap.places[number]
    if place == NOWHERE:
        heap.count += 1
        sift_up(heap, heap.count - 1, item)
    else:
        sift(heap, <uint32_t> place, item)


cdef inline void clear_due(Heap* heap, uint32_t number) noexcept nogil:
    cdef int32_t place = heap.places[number]
    if place == NOWHERE:
        return
    heap.places[number] = NOWHERE
    heap.count -= 1
    if <uint32_t> place < heap.count:
        sift(heap, <uint32_t> place, heap.items[heap.count])
