# Descriptors that are kept free for a newcomer, from before it is accepted: for its UDP socket, or for the pair of sockets
# that takes it to control. Where they are not to be had, newcomers wait in the kernel's queue, where nobody has shaken
# hands with them yet.

from libc.stdint cimport int64_t
from relay.plane.compiled.leaves.posix cimport EMFILE, F_DUPFD_CLOEXEC, close, errno, fcntl

cdef extern from *:
    """
    static inline int relay_take_fd(int *fd) { return __atomic_exchange_n(fd, -1, __ATOMIC_ACQ_REL); }
    """
    int relay_take_fd(int* fd) noexcept nogil

cdef enum:
    RESERVED_DESCRIPTORS = 2

# Each is a copy of some descriptor, or -1. Control's thread may give them up, too.
cdef struct Reserve:
    int[RESERVED_DESCRIPTORS] kept


cdef inline void clear_reserve(Reserve* reserve) noexcept nogil:
    cdef int i
    for i in range(RESERVED_DESCRIPTORS):
        reserve.kept[i] = -1


cdef inline void give_up(Reserve* reserve) noexcept nogil:
    cdef int i, fd
    for i in range(RESERVED_DESCRIPTORS):
        fd = relay_take_fd(&reserve.kept[i])
        if fd >= 0:
            close(fd)


# Makes it hold so many, copies of ``model``. Returns 0, or an errno if there are not so many, or if as many as ``bound``
# are in use, unless it is 0. The kernel gives the lowest number that is free.
cdef inline int fill(Reserve* reserve, int model, int count, int64_t bound) noexcept nogil:
    cdef int i
    for i in range(count):
        if reserve.kept[i] < 0:
            reserve.kept[i] = fcntl(model, F_DUPFD_CLOEXEC, 0)
            if reserve.kept[i] < 0:
                return errno
        if 0 < bound <= reserve.kept[i]:
            close(relay_take_fd(&reserve.kept[i]))
            return EMFILE
    return 0


cdef inline void hand_on(Reserve* reserve, Reserve* to) noexcept nogil:
    to[0] = reserve[0]
    clear_reserve(reserve)
