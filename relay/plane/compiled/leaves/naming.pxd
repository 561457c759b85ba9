# The users whom a flow's Allocates name, until the upstream answers: only its answer proves who it is. The compiled twin
# of relay.plane.reference.naming.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove

from relay.plane.compiled.leaves.live cimport free, malloc
from relay.plane.compiled.leaves.stun cimport TRANSACTION_ID_BYTES

cdef enum:
    # With the reasons in relay.plane.reference.naming.
    MAX_NAMED = 8
    MAX_NAME_BYTES = 508
    NAMED_US = 60000000

cdef struct Named:
    uint8_t[TRANSACTION_ID_BYTES] identity
    int64_t asked_us
    uint8_t* name               # owned
    uint32_t size

cdef struct Naming:
    int count
    Named[MAX_NAMED] named      # the oldest first


cdef inline void remove_named(Naming* naming, int position) noexcept nogil:
    naming.count -= 1
    memmove(&naming.named[position], &naming.named[position + 1], (naming.count - position) * sizeof(Named))


# Returns False if this Allocate must not go on: too many wait for their answer, or its id stands for another name.
cdef inline bint note_named(
    Naming* naming, int64_t now_us, const uint8_t* identity, const uint8_t* name, uint32_t size
) noexcept nogil:
    cdef Named* one
    cdef int i
    size = size if size < MAX_NAME_BYTES else MAX_NAME_BYTES
    while naming.count and now_us - naming.named[0].asked_us >= NAMED_US:
        free(naming.named[0].name)
        remove_named(naming, 0)
    for i in range(naming.count):
        one = &naming.named[i]
        if memcmp(one.identity, identity, TRANSACTION_ID_BYTES) == 0:
            return one.size == size and memcmp(one.name, name, size) == 0
    if naming.count == MAX_NAMED:
        return False
    one = &naming.named[naming.count]
    one.name = <uint8_t*> malloc(size)
    if one.name == NULL:
        return False
    memcpy(one.name, name, size)
    memcpy(one.identity, identity, TRANSACTION_ID_BYTES)
    one.size, one.asked_us = size, now_us
    naming.count += 1
    return True


# Returns True if the request with this id named somebody. The caller owns the name.
cdef inline bint take_named(Naming* naming, const uint8_t* identity, Named* taken) noexcept nogil:
    cdef int i
    for i in range(naming.count):
        if memcmp(naming.named[i].identity, identity, TRANSACTION_ID_BYTES) == 0:
            taken[0] = naming.named[i]
            remove_named(naming, i)
            return True
    return False


cdef inline void clear_naming(Naming** naming) noexcept nogil:
    if naming[0] == NULL:
        return
    while naming[0].count:
        naming[0].count -= 1
        free(naming[0].named[naming[0].count].name)
    free(naming[0])
    naming[0] = NULL
