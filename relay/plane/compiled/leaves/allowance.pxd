# What a flow may carry in a second, one way: so many packets and bytes, counted anew in each second. 0 is no bound.

from libc.stdint cimport int64_t, uint32_t

cdef enum:
    ALLOWANCE_US = 1000000

cdef struct Allowance:
    int64_t since_us
    int64_t packets
    int64_t bytes


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
