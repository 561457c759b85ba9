# What the data plane reads of STUN messages (RFC 8489 section 5): type, class, a number in an attribute. Byte-wise
# loads, because a message may start at any address; every walk is bounded by the length that framing has checked.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

cdef enum:
    STUN_HEADER_BYTES = 20
    TRANSACTION_ID_OFFSET = 8
    TRANSACTION_ID_BYTES = 12
    # Types with their class (figure 3).
    ALLOCATE_REQUEST = 0x0003
    ALLOCATE_SUCCESS = 0x0103
    ALLOCATE_ERROR = 0x0113
    REFRESH_REQUEST = 0x0004
    REFRESH_SUCCESS = 0x0104
    CREATE_PERMISSION_REQUEST = 0x0008
    CHANNEL_BIND_REQUEST = 0x0009
    BINDING_REQUEST = 0x0001
    DATA_INDICATION = 0x0017
    CLASS_BITS = 0x0110
    RESPONSE_BIT = 0x0100
    ATTRIBUTE_ERROR_CODE = 0x0009
    ATTRIBUTE_LIFETIME = 0x000D
    ATTRIBUTE_ALTERNATE_SERVER = 0x8023
    ATTRIBUTE_DATA = 0x0013
    ATTRIBUTE_XOR_RELAYED_ADDRESS = 0x0016
    ATTRIBUTE_USERNAME = 0x0006
    ATTRIBUTE_MESSAGE_INTEGRITY = 0x0008
    ATTRIBUTE_MESSAGE_INTEGRITY_SHA256 = 0x001C
    ATTRIBUTE_USERHASH = 0x001E
    ATTRIBUTE_MOBILITY_TICKET = 0x8030


cdef inline uint16_t load16(const uint8_t* data) noexcept nogil:
    return <uint16_t> (data[0] << 8 | data[1])


cdef inline uint32_t load32(const uint8_t* data) noexcept nogil:
    return <uint32_t> data[0] << 24 | <uint32_t> data[1] << 16 | <uint32_t> data[2] << 8 | data[3]


# Size of the message in a datagram, padding left out, or 0 if it is neither STUN nor ChannelData.
cdef inline size_t datagram_unit(const uint8_t* data, size_t size) noexcept nogil:
    cdef uint8_t[4] cookie = [0x21, 0x12, 0xA4, 0x42]
    cdef size_t length
    if size < 4:
        return 0
    length = load16(data + 2)
    if data[0] & 0xC0 == 0x40:
        return 4 + length if 4 + length <= size else 0
    if data[0] & 0xC0 or size < STUN_HEADER_BYTES or length & 3 or size != STUN_HEADER_BYTES + length:
        return 0
    return size if memcmp(data + 4, cookie, 4) == 0 else 0


# The first attribute of a type: its value of at least so many bytes, or NULL. Its length stands two bytes before it.
cdef inline const uint8_t* find_attribute(
    const uint8_t* message, size_t size, uint16_t kind, size_t min_bytes
) noexcept nogil:
    cdef size_t offset = STUN_HEADER_BYTES
    cdef size_t length
    while offset + 4 <= size:
        length = load16(message + offset + 2)
        if offset + 4 + length > size:
            return NULL
        if load16(message + offset) == kind:
            return message + offset + 4 if length >= min_bytes else NULL
        offset += 4 + ((length + 3) & ~<size_t> 3)
    return NULL


# How many attributes of a type a message has.
cdef inline int count_attributes(const uint8_t* message, size_t size, uint16_t kind) noexcept nogil:
    cdef size_t offset = STUN_HEADER_BYTES
    cdef int count = 0
    while offset + 4 <= size:
        count += load16(message + offset) == kind
        offset += 4 + ((load16(message + offset + 2) + 3) & ~<size_t> 3)
    return count


# True if a request without USERNAME is authenticated all the same, or tries to be.
cdef inline bint has_credentials(const uint8_t* message, size_t size) noexcept nogil:
    return (
        find_attribute(message, size, ATTRIBUTE_MESSAGE_INTEGRITY, 0) != NULL
        or find_attribute(message, size, ATTRIBUTE_MESSAGE_INTEGRITY_SHA256, 0) != NULL
        or find_attribute(message, size, ATTRIBUTE_USERHASH, 0) != NULL
    )


# ERROR-CODE as a number, 0 if there is none.
cdef inline int error_code(const uint8_t* message, size_t size) noexcept nogil:
    cdef const uint8_t* value = find_attribute(message, size, ATTRIBUTE_ERROR_CODE, 4)
    return 0 if value == NULL else (value[2] & 7) * 100 + value[3]
