# UDP payloads in DATAGRAM capsules (RFC 9297, RFC 9298): the compiled twin of relay.wire.capsule, where the rules and
# the limits stand. What is not wanted is skipped as it comes, and never kept.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_PAYLOAD_BYTES = 2048
    MAX_UDP_PAYLOAD_BYTES = 65527
    CAPSULE_ROOM = 6                # what may stand before a payload: type, length, context id

cdef enum ReadCapsule:
    CAPSULE_NEEDS_MORE = 0
    CAPSULE_PAYLOAD = 1
    CAPSULE_SKIPPED = 2
    CAPSULE_OVERSIZE = 3            # a payload that is skipped
    CAPSULE_NO_CONTEXT = -1
    CAPSULE_TOO_LONG = -2           # for UDP

cdef struct Capsules:
    uint64_t skip                   # bytes still to come of what is not wanted
    uint64_t number                 # in the text of a fault

cdef struct Payload:
    const uint8_t* data
    uint32_t size
    uint32_t used                   # bytes of the stream that are done with


# A variable-length integer (RFC 9000 section 16), in any of its lengths: how long it is, 0 for "need more".
cdef inline uint32_t read_varint(const uint8_t* data, size_t available, uint64_t* value) noexcept nogil:
    cdef uint32_t length, i
    if available == 0:
        return 0
    length = <uint32_t> 1 << (data[0] >> 6)
    if available < length:
        return 0
    value[0] = data[0] & 0x3F
    for i in range(1, length):
        value[0] = value[0] << 8 | data[i]
    return length


# Passes over what is to be skipped, as far as it is there.
cdef inline int skip_bytes(Capsules* capsules, uint32_t available, Payload* payload) noexcept nogil:
    payload.used = available if capsules.skip > available else <uint32_t> capsules.skip
    capsules.skip -= payload.used
    return CAPSULE_SKIPPED if payload.used else CAPSULE_NEEDS_MORE


# Reads one capsule, or what is there of one that is skipped.
cdef inline int read_capsule(
    Capsules* capsules, const uint8_t* data, uint32_t available, Payload* payload
) noexcept nogil:
    cdef uint64_t kind, length, context, size
    cdef uint32_t start, more
    if capsules.skip:
        return skip_bytes(capsules, available, payload)
    start = read_varint(data, available, &kind)
    if not start:
        return CAPSULE_NEEDS_MORE
    more = read_varint(data + start, available - start, &length)
    if not more:
        return CAPSULE_NEEDS_MORE
    start += more
    capsules.skip = start + length
    if kind != 0:
        return skip_bytes(capsules, available, payload)
    if not length or (available > start and length < <uint64_t> 1 << (data[start] >> 6)):
        return CAPSULE_NO_CONTEXT
    more = read_varint(data + start, available - start, &context)
    if more and context != 0:
        return skip_bytes(capsules, available, payload)
    capsules.skip = 0
    if not more:
        return CAPSULE_NEEDS_MORE
    start += more
    size = length - more
    if size > MAX_UDP_PAYLOAD_BYTES:
        capsules.number = size
        return CAPSULE_TOO_LONG
    if size > MAX_PAYLOAD_BYTES:
        capsules.skip = start + size
        skip_bytes(capsules, available, payload)
        return CAPSULE_OVERSIZE
    if available < start + size:
        return CAPSULE_NEEDS_MORE
    payload.data, payload.size, payload.used = data + start, <uint32_t> size, start + <uint32_t> size
    return CAPSULE_PAYLOAD


# Writes type, length and context id in front of a payload of less than 2^29 bytes; how long they are.
cdef inline uint32_t write_capsule_head(uint8_t* payload, uint32_t size) noexcept nogil:
    cdef uint32_t length = size + 1, bytes = 1 if size < 63 else 2 if size < 16383 else 4, i
    cdef uint8_t* head = payload - 2 - bytes
    head[0] = 0
    for i in range(bytes):
        head[1 + i] = <uint8_t> (length >> (8 * (bytes - 1 - i)))
    head[1] |= 0 if bytes == 1 else 0x40 if bytes == 2 else 0x80
    head[1 + bytes] = 0
    return 2 + bytes
