# cython: auto_pickle=False, autotestdict=False
"""The header-only parts of the packet engine as Python sees them. It is built for the tests only, and is in no wheel."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from loadtest.engine cimport carriers
from loadtest.engine cimport heap as heaps
from loadtest.engine cimport srtp as srtps
from loadtest.engine.openssl cimport EVP_MAC, EVP_MAC_fetch, EVP_MAC_free
from relay.plane.compiled.leaves.capsule cimport Capsules
from relay.plane.compiled.leaves.live cimport LIVE_BUFFERS, alive
from relay.plane.compiled.leaves.websocket cimport WEB_TEXT


def live_buffers():
    return alive(LIVE_BUFFERS)


# A copy in a block of just its size and what may be written around it: a sanitizer sees what goes beyond.
cdef uint8_t* copied(bytes data, size_t before, size_t after) except NULL:
    cdef uint8_t* copy = <uint8_t*> malloc(before + len(data) + after + 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy + before, <const uint8_t*> data, len(data))
    return copy


cdef class Srtp:
    cdef srtps.Srtp srtp
    cdef EVP_MAC* hmac

    def __cinit__(self, bytes master):
        cdef const uint8_t* octets = master
        assert len(master) == srtps.SRTP_MASTER_BYTES
        self.hmac = EVP_MAC_fetch(NULL, b"HMAC", NULL)
        if not srtps.open_srtp(&self.srtp, self.hmac, octets):
            raise MemoryError

    def __dealloc__(self):
        srtps.close_srtp(&self.srtp)
        EVP_MAC_free(self.hmac)

    def protect(self, bytes packet, uint64_t index):
        cdef uint8_t* copy = copied(packet, 0, srtps.SRTP_TAG_BYTES)
        cdef uint32_t size = <uint32_t> len(packet)
        size = srtps.protect(&self.srtp, copy, size, index)
        try:
            return (<char*> copy)[:size] if size else None
        finally:
            free(copy)

    def unprotect(self, bytes packet):
        cdef uint8_t* copy = copied(packet, 0, 0)
        cdef uint32_t given = <uint32_t> len(packet)
        cdef int size = srtps.unprotect(&self.srtp, copy, given)
        try:
            return (<char*> copy)[:size] if size >= 0 else size
        finally:
            free(copy)


cdef class Heap:
    cdef heaps.Heap heap

    def __cinit__(self, uint32_t room):
        if not heaps.open_heap(&self.heap, room):
            raise MemoryError

    def __dealloc__(self):
        heaps.close_heap(&self.heap)

    def __len__(self):
        return self.heap.count

    def set_due(self, uint32_t number, int64_t us):
        heaps.set_due(&self.heap, number, us)

    def clear_due(self, uint32_t number):
        heaps.clear_due(&self.heap, number)

    def first(self):
        assert self.heap.count
        return self.heap.items[0].us, self.heap.items[0].number


def put_unit(int carrier, bytes unit, uint32_t mask):
    cdef uint32_t framed, size = <uint32_t> len(unit)
    cdef uint8_t* copy = copied(unit, carriers.FRAME_ROOM, 3)
    cdef uint8_t* frame = carriers.put_unit(
        <carriers.Carrier> carrier, copy + carriers.FRAME_ROOM, size, mask, &framed)
    try:
        return (<char*> frame)[:framed]
    finally:
        free(copy)


def put_text(bytes text, uint32_t mask):
    cdef uint32_t framed, size = <uint32_t> len(text)
    cdef uint8_t* copy = copied(text, carriers.FRAME_ROOM, 0)
    cdef uint8_t* frame = carriers.put_message(
        WEB_TEXT, copy + carriers.FRAME_ROOM, size, mask, &framed)
    try:
        return (<char*> frame)[:framed]
    finally:
        free(copy)


cdef class Taker:
    cdef readonly bint broken
    cdef carriers.Carrier carrier
    cdef Capsules capsules
    cdef bytes rest

    def __cinit__(self, int carrier):
        self.carrier = <carriers.Carrier> carrier
        self.rest = b""
        memset(&self.capsules, 0, sizeof(self.capsules))

    def feed(self, bytes data):
        cdef carriers.Frame frame
        cdef list frames = []
        cdef uint32_t at = 0, size
        cdef int taken = carriers.TAKEN_FRAME
        cdef uint8_t* copy
        self.rest += data
        size = <uint32_t> len(self.rest)
        copy = copied(self.rest, 0, 0)
        while taken == carriers.TAKEN_FRAME:
            taken = carriers.take_frame(self.carrier, &self.capsules, copy + at, size - at, &frame)
            if taken == carriers.TAKEN_FRAME:
                at += frame.used
                if frame.kind != carriers.FRAME_OTHER:
                    frames.append((<int> frame.kind, (<char*> frame.data)[:frame.size]))
        self.broken = taken == carriers.TAKEN_BROKEN
        self.rest = (<char*> copy)[at:size]
        free(copy)
        return frames
