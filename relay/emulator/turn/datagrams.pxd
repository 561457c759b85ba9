# Datagrams with addresses, beyond what the compiled plane asks of the kernel.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from relay.plane.compiled.leaves.posix cimport AF_INET, sockaddr, sockaddr_in, socklen_t

cdef extern from "<sys/socket.h>" nogil:
    ssize_t sendto(int fd, const void* data, size_t size, int flags, const sockaddr* to, socklen_t to_size)


# Address and port stay in network order: they are compared and copied, never computed with.
cdef inline void set_address(sockaddr_in* address, uint32_t ip, uint16_t port) noexcept nogil:
    memset(address, 0, sizeof(sockaddr_in))
    address.sin_family = AF_INET
    address.sin_addr.s_addr = ip
    address.sin_port = port


cdef inline void store16(uint8_t* data, uint32_t value) noexcept nogil:
    data[0] = <uint8_t> (value >> 8)
    data[1] = <uint8_t> value
