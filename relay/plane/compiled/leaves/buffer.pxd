# Bytes that wait: appended at the end, taken from the front. An empty one holds no memory.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memmove

from relay.plane.compiled.leaves.live cimport free, realloc

cdef enum:
    MIN_BUFFER_BYTES = 512

cdef struct Buffer:
    uint8_t* memory
    uint32_t start              # of what waits
    uint32_t size
    uint32_t room


cdef inline uint8_t* front(Buffer* buffer) noexcept nogil:
    return buffer.memory + buffer.start


# False without memory; then the buffer is as it was.
cdef inline bint append(Buffer* buffer, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t room = buffer.room
    cdef uint8_t* larger
    if buffer.start and buffer.start + buffer.size + size > room:
        memmove(buffer.memory, front(buffer), buffer.size)
        buffer.start = 0
    if buffer.size + size > room:
        room = room if room else MIN_BUFFER_BYTES
        while room < buffer.size + size:
            room *= 2
        larger = <uint8_t*> realloc(buffer.memory, room)
        if larger == NULL:
            return False
        buffer.memory, buffer.room = larger, room
    memcpy(front(buffer) + buffer.size, data, size)
    buffer.size += size
    return True


cdef inline void clear_buffer(Buffer* buffer) noexcept nogil:
    free(buffer.memory)
    buffer.memory = NULL
    buffer.start = buffer.size = buffer.room = 0


cdef inline void drop_front(Buffer* buffer, uint32_t used) noexcept nogil:
    buffer.start += used
    buffer.size -= used
    if not buffer.size:
        clear_buffer(buffer)


# Makes a block be these bytes, of which there is at least one; without memory it stays what it was.
cdef inline void keep_bytes(uint8_t** kept, uint32_t* kept_size, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint8_t* copy = <uint8_t*> realloc(kept[0], size)
    if copy != NULL:
        memcpy(copy, data, size)
        kept[0], kept_size[0] = copy, size
