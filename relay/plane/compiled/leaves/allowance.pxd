# How many packets and bytes a flow may carry in a second, one way, counted anew in each second. 0 means that there is no
# bound. And the same for all flows of a user together.

from libc.stdint cimport int64_t, uint32_t

from relay.plane.compiled.leaves.live cimport calloc, free
from relay.plane.compiled.leaves.ring cimport relay_add, relay_peek, relay_poke, relay_replace

cdef enum:
    ALLOWANCE_US = 1000000

cdef struct Allowance:
    int64_t since_us
    int64_t packets
    int64_t bytes

# Of one user. Its flows may be on several workers, so the numbers in it are atomic. Each flow has a share of it, and so
# have Python and each command that brings it to a worker; who leaves last frees it.
cdef struct UserAllowance:
    int64_t owners
    Allowance sent
    Allowance received


# Counts a packet, unless there have been too many. STUN has the same room once more: over TCP no client sends it again.
cdef inline bint takes(
    Allowance* allowance, int64_t now_us, uint32_t size, int64_t max_packets, int64_t max_bytes, bint is_stun
) noexcept nogil:
    if now_us - allowance.since_us >= ALLOWANCE_US:
        allowance.since_us = now_us
        allowance.packets = allowance.bytes = 0
    if max_packets and allowance.packets >= max_packets << is_stun:
        return False
    if max_bytes and allowance.bytes + size > max_bytes << is_stun:
        return False
    allowance.packets += 1
    allowance.bytes += size
    return True


# The same where other workers count at the same time. It takes no lock and tries nothing twice. Two workers that look at
# the same moment may both see the last free place, so each worker may pass one packet too many in a second. What one
# counts while another begins the next second may not be counted.
cdef inline bint takes_shared(
    Allowance* allowance, int64_t now_us, uint32_t size, int64_t max_packets, int64_t max_bytes, bint is_stun
) noexcept nogil:
    cdef int64_t since_us = relay_peek(&allowance.since_us)
    if now_us - since_us >= ALLOWANCE_US and relay_replace(&allowance.since_us, since_us, now_us):
        relay_poke(&allowance.packets, 0)
        relay_poke(&allowance.bytes, 0)
    if max_packets and relay_peek(&allowance.packets) >= max_packets << is_stun:
        return False
    if max_bytes and relay_peek(&allowance.bytes) + size > max_bytes << is_stun:
        return False
    relay_add(&allowance.packets, 1)
    relay_add(&allowance.bytes, size)
    return True


# With one owner. NULL without memory.
cdef inline UserAllowance* open_user_allowance() noexcept nogil:
    cdef UserAllowance* user = <UserAllowance*> calloc(1, sizeof(UserAllowance))
    if user != NULL:
        user.owners = 1
    return user


cdef inline void leave_user_allowance(UserAllowance* user) noexcept nogil:
    if user != NULL and relay_add(&user.owners, -1) == 0:
        free(user)
