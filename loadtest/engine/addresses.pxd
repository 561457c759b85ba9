# Addresses of IPv4 and IPv6: as the kernel has them, as STUN has them, and in words.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from loadtest.engine.engine cimport ADDRESS_BYTES, SOCKADDR_BYTES, Endpoint
from loadtest.engine.kernel cimport inet_ntop
from relay.plane.compiled.leaves.posix cimport AF_INET, AF_INET6
from relay.plane.compiled.leaves.stun cimport load16

cdef enum:
    IPV4_BYTES = 4
    IPV6_BYTES = 16
    PORT_AT = 2                 # of sockaddr_in and sockaddr_in6
    IPV4_AT = 4
    IPV6_AT = 8
    SOCKADDR_IN_BYTES = 16
    # RFC 8489 section 14.1.
    STUN_IPV4 = 1
    STUN_IPV6 = 2
    STUN_HEAD_BYTES = 4         # of an address: a zero, the family, the port
    COOKIE_AT = 4               # of a message: cookie and transaction are what addresses are XORed with
    MAX_XOR_ADDRESS_BYTES = 20


cdef inline bint is_ipv6(const Endpoint* address) noexcept nogil:
    return address.size == SOCKADDR_BYTES


cdef inline int family_of(const Endpoint* address) noexcept nogil:
    return AF_INET6 if is_ipv6(address) else AF_INET


cdef inline const uint8_t* ip_of(const Endpoint* address) noexcept nogil:
    return address.octets + (IPV6_AT if is_ipv6(address) else IPV4_AT)


# Whatever the port.
cdef inline bint is_same_host(const Endpoint* one, const Endpoint* other) noexcept nogil:
    cdef const uint8_t* ip = ip_of(one)
    cdef size_t size = IPV6_BYTES if is_ipv6(one) else IPV4_BYTES
    return one.size == other.size and memcmp(ip, ip_of(other), size) == 0


cdef inline void xor_address(uint8_t* value, uint32_t size, const uint8_t* message) noexcept nogil:
    cdef uint32_t i
    value[2] ^= message[COOKIE_AT]
    value[3] ^= message[COOKIE_AT + 1]
    for i in range(size - STUN_HEAD_BYTES):
        value[STUN_HEAD_BYTES + i] ^= message[COOKIE_AT + i]


# RFC 8489 section 14.2: the value of an XOR attribute of this message, and its size.
cdef inline uint32_t build_xor_address(const Endpoint* address, const uint8_t* message, uint8_t* value) noexcept nogil:
    cdef uint32_t size = IPV6_BYTES if is_ipv6(address) else IPV4_BYTES
    value[0], value[1] = 0, STUN_IPV6 if is_ipv6(address) else STUN_IPV4
    memcpy(value + 2, address.octets + PORT_AT, 2)
    memcpy(value + STUN_HEAD_BYTES, ip_of(address), size)
    xor_address(value, STUN_HEAD_BYTES + size, message)
    return STUN_HEAD_BYTES + size


# Reads such a value; False if it is neither family's, or its size is another.
cdef inline bint parse_xor_address(
    const uint8_t* value, uint32_t size, const uint8_t* message, Endpoint* address
) noexcept nogil:
    cdef uint8_t[MAX_XOR_ADDRESS_BYTES] plain
    cdef uint16_t family
    cdef bint ipv6 = value[1] == STUN_IPV6
    if not ipv6 and value[1] != STUN_IPV4:
        return False
    if size != STUN_HEAD_BYTES + <uint32_t> (IPV6_BYTES if ipv6 else IPV4_BYTES):
        return False
    memcpy(plain, value, size)
    xor_address(plain, size, message)
    memset(address, 0, sizeof(Endpoint))
    address.size = SOCKADDR_BYTES if ipv6 else SOCKADDR_IN_BYTES
    family = <uint16_t> family_of(address)
    memcpy(address.octets, &family, 2)
    memcpy(address.octets + PORT_AT, plain + 2, 2)
    memcpy(<uint8_t*> ip_of(address), plain + STUN_HEAD_BYTES, size - STUN_HEAD_BYTES)
    return True


# ``words`` has ADDRESS_BYTES.
cdef inline void write_address(const Endpoint* address, char* words) noexcept nogil:
    cdef char[ADDRESS_BYTES] ip
    cdef const char* form = b"[%s]:%d" if is_ipv6(address) else b"%s:%d"
    words[0] = 0
    if inet_ntop(family_of(address), ip_of(address), ip, ADDRESS_BYTES) != NULL:
        snprintf(words, ADDRESS_BYTES, form, ip, load16(address.octets + PORT_AT))
