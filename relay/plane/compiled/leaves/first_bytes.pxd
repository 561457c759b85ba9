# The first bytes behind TLS decide what a connection carries: the compiled twin of relay.plane.reference.first_bytes.

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from relay.plane.compiled.leaves.framing cimport Unit, measure_unit

cdef enum FirstBytes:
    FIRST_BYTES_NEED_MORE
    FIRST_BYTES_TURN
    FIRST_BYTES_HTTP
    FIRST_BYTES_UNKNOWN

cdef enum:
    METHOD_BYTES = 18           # the longest registered method, and the space behind it


cdef inline FirstBytes decide_http(const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(METHOD_BYTES if size > METHOD_BYTES else size):
        if data[i] == 32:
            # "PRI * HTTP/2.0" is the preface of HTTP/2, which is not offered.
            return FIRST_BYTES_HTTP if i >= 3 and memcmp(data, b"PRI ", 4) != 0 else FIRST_BYTES_UNKNOWN
        if not 65 <= data[i] <= 90:
            return FIRST_BYTES_UNKNOWN
    return FIRST_BYTES_NEED_MORE if size < METHOD_BYTES else FIRST_BYTES_UNKNOWN


cdef inline FirstBytes decide(const uint8_t* data, size_t size) noexcept nogil:
    cdef Unit unit
    if size == 0:
        return FIRST_BYTES_NEED_MORE
    if data[0] >= 0x40:
        return decide_http(data, size)
    if measure_unit(data, 8 if size > 8 else size, &unit) < 0:
        return FIRST_BYTES_UNKNOWN
    return FIRST_BYTES_TURN if size >= 8 else FIRST_BYTES_NEED_MORE
