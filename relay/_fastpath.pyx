# cython: auto_pickle=False, autotestdict=False
"""The compiled part of the data plane. So far: the stream cutter."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from relay.plane.framing cimport UNIT_NEEDS_MORE, UNIT_WHOLE, Unit, measure_unit

from relay.wire.stream import FramingFault

# In the order of the fault codes of framing.pxd: -1, -2, -3.
cdef tuple FAULTS = (FramingFault.FIRST_BYTE, FramingFault.STUN_LENGTH, FramingFault.MAGIC_COOKIE)


cdef class StreamCutter:
    """Collects bytes and gives whole units. It holds at most one unit that is not whole yet."""

    cdef readonly object fault      # FramingFault behind which nothing is cut, or None
    cdef bytearray rest             # the beginning of a unit that is not whole yet

    def __cinit__(self):
        self.fault = None
        self.rest = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their unit."""
        return len(self.rest)

    def feed(self, bytes data not None) -> list:
        """Take bytes of the stream, give the units that are whole, ChannelData without padding."""
        cdef list units = []
        cdef Py_ssize_t used
        if self.fault is not None:
            return units
        if PyByteArray_GET_SIZE(self.rest) == 0:
            used = self.cut(<const uint8_t*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), units)
            if self.fault is None and used < PyBytes_GET_SIZE(data):
                self.rest += data[used:]
        else:
            self.rest += data
            used = self.cut(<const uint8_t*> PyByteArray_AS_STRING(self.rest), PyByteArray_GET_SIZE(self.rest), units)
            if used:
                del self.rest[:used]
        if self.fault is not None:
            self.rest.clear()
        return units

    cdef Py_ssize_t cut(self, const uint8_t* data, Py_ssize_t available, list units) except -1:
        cdef Py_ssize_t offset = 0
        cdef Unit unit
        cdef int measured
        while True:
            measured = measure_unit(data + offset, available - offset, &unit)
            if measured == UNIT_WHOLE:
                units.append(PyBytes_FromStringAndSize(<const char*> data + offset, unit.size))
                offset += unit.stream_size
            elif measured == UNIT_NEEDS_MORE:
                return offset
            else:
                self.fault = FAULTS[-measured - 1]
                return offset
