# Networks that clients come from: which of them are served, and for which the bounds on one source do not count. A
# worker looks through the lists when a client comes.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

# In the order of relay.plane.networks.NetworkKind.
cdef enum:
    NETWORK_ALLOWED
    NETWORK_DENIED
    NETWORK_EXEMPT

cdef enum:
    # Of one entry: its kind, how many bits its prefix has, and an IPv6 address, or an IPv4 one mapped. Those that are
    # allowed come first.
    ENTRY_BYTES = 18
    MAPPED_BITS = 96            # of the prefix of all IPv4 addresses


# True for a client that is not served: it is denied, or others are allowed and it is not.
cdef inline bint is_refused(const uint8_t* entries, uint32_t size, const uint8_t* address) noexcept nogil:
    if not size:
        return False
    if is_listed(entries, size, NETWORK_DENIED, address):
        return True
    return entries[0] == NETWORK_ALLOWED and not is_listed(entries, size, NETWORK_ALLOWED, address)


cdef inline bint is_listed(const uint8_t* entries, uint32_t size, int kind, const uint8_t* address) noexcept nogil:
    cdef uint32_t at = 0
    while at + ENTRY_BYTES <= size:
        if entries[at] == kind and is_within(entries + at + 2, entries[at + 1], address):
            return True
        at += ENTRY_BYTES
    return False


# True for an address in this network. A short prefix of IPv6, such as ::/0, has no IPv4 addresses in it.
cdef inline bint is_within(const uint8_t* prefix, int bits, const uint8_t* address) noexcept nogil:
    cdef int whole = bits >> 3, rest = bits & 7
    if bits < MAPPED_BITS and is_mapped(address):
        return False
    if memcmp(prefix, address, <size_t> whole) != 0:
        return False
    return not rest or (prefix[whole] ^ address[whole]) >> (8 - rest) == 0


# True for an IPv4 address.
cdef inline bint is_mapped(const uint8_t* address) noexcept nogil:
    cdef int i
    for i in range(10):
        if address[i]:
            return False
    return address[10] == 0xFF and address[11] == 0xFF
