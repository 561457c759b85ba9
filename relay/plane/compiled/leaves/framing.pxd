# Measures one unit of a TURN stream: STUN (RFC 8489 section 6.2.2) or ChannelData (RFC 8656 section 12.5).
# Stateless byte work over pointer and length. Byte-wise loads: a unit may start at any address. Lengths are summed
# in 32 bits: real servers wrapped at 16, with STUN lengths 65520 to 65532.

from libc.stdint cimport uint8_t, uint32_t

cdef enum Measured:
    UNIT_WHOLE = 1              # size and stream_size are set, and all its bytes are there
    UNIT_NEEDS_MORE = 0
    FAULT_FIRST_BYTE = -1       # top bit set: neither STUN nor ChannelData
    FAULT_STUN_LENGTH = -2      # not a multiple of four
    FAULT_MAGIC_COOKIE = -3

cdef struct Unit:
    uint32_t size               # bytes of the unit, without padding
    uint32_t stream_size        # bytes it takes on the stream, with padding


cdef inline int measure_stun(const uint8_t* data, size_t available, Unit* unit) noexcept nogil:
    cdef uint8_t[4] cookie = [0x21, 0x12, 0xA4, 0x42]
    cdef size_t i
    if available >= 4 and data[3] & 3:
        return FAULT_STUN_LENGTH
    for i in range(4):
        if available <= 4 + i:
            return UNIT_NEEDS_MORE
        if data[4 + i] != cookie[i]:
            return FAULT_MAGIC_COOKIE
    unit.size = 20 + (<uint32_t> data[2] << 8 | data[3])
    unit.stream_size = unit.size
    return UNIT_WHOLE if available >= unit.stream_size else UNIT_NEEDS_MORE


cdef inline int measure_channel_data(const uint8_t* data, size_t available, Unit* unit) noexcept nogil:
    if available < 4:
        return UNIT_NEEDS_MORE
    unit.size = 4 + (<uint32_t> data[2] << 8 | data[3])
    unit.stream_size = (unit.size + 3) & ~<uint32_t> 3
    return UNIT_WHOLE if available >= unit.stream_size else UNIT_NEEDS_MORE


# Measures the unit at data. A fault is seen with the first byte that shows it, however the stream was split.
cdef inline int measure_unit(const uint8_t* data, size_t available, Unit* unit) noexcept nogil:
    if available == 0:
        return UNIT_NEEDS_MORE
    if data[0] & 0x80:
        return FAULT_FIRST_BYTE
    if data[0] & 0x40:
        return measure_channel_data(data, available, unit)
    return measure_stun(data, available, unit)
