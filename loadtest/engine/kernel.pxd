# What the engine asks of the kernel, beyond what the data plane does.

from libc.stdint cimport int64_t
from posix.time cimport timespec

from relay.plane.compiled.leaves.posix cimport pollfd, sockaddr, socklen_t

cdef extern from "<errno.h>" nogil:
    enum:
        EINPROGRESS

cdef extern from "<sys/socket.h>" nogil:
    enum:
        SOCK_DGRAM, SO_ERROR, SO_RCVBUF, SO_RCVBUFFORCE
    int socket(int domain, int kind, int protocol)
    int bind_socket "bind"(int fd, const sockaddr* address, socklen_t size)
    ssize_t sendto(int fd, const void* data, size_t size, int flags, const sockaddr* to, socklen_t to_size)
    ssize_t recvfrom(int fd, void* data, size_t size, int flags, sockaddr* sender, socklen_t* sender_size)

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int family, const void* address, char* words, socklen_t room)

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_MAXSEG

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
    int ppoll(pollfd* watched, unsigned long count, const timespec* timeout, const void* mask)

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_TIMERSLACK
    int prctl(int option, unsigned long argument)

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec* now)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <string.h>
    #define engine_find(data, size, word) memmem(data, size, word, strlen(word))
    #define engine_take_all(list) __atomic_exchange_n(list, NULL, __ATOMIC_ACQUIRE)
    static inline int engine_push(void **list, void *node, void **next) {
        void *head = __atomic_load_n(list, __ATOMIC_RELAXED);
        do *next = head;
        while (!__atomic_compare_exchange_n(list, &head, node, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
        return head == NULL;
    }
    """
    void* find_word "engine_find"(const void* data, size_t size, const char* word) noexcept nogil
    void* take_all "engine_take_all"(void** list) noexcept nogil
    # True if the list was empty.
    bint push "engine_push"(void** list, void* node, void** next) noexcept nogil


# CPU time of the calling thread.
cdef inline int64_t thread_us() noexcept nogil:
    cdef timespec spent
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent)
    return <int64_t> spent.tv_sec * 1000000 + spent.tv_nsec // 1000


# Waits until a descriptor can be read or this time has passed.
cdef inline void wait_readable(int fd, int64_t us) noexcept nogil:
    cdef pollfd watched = pollfd(fd, POLLIN, 0)
    cdef timespec timeout
    timeout.tv_sec, timeout.tv_nsec = us // 1000000, us % 1000000 * 1000
    ppoll(&watched, 1, &timeout, NULL)
