# What the data plane asks of the kernel, beyond what Cython declares itself.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN, EWOULDBLOCK, EINTR, ECONNREFUSED, ECONNRESET, EMSGSIZE, ENOBUFS, ENOMEM, EMFILE, ENFILE, EPERM

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void* data, size_t size)
    ssize_t write(int fd, const void* data, size_t size)
    int usleep(unsigned int us)

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_DUPFD_CLOEXEC
    int fcntl(int fd, int command, ...)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        pass
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    enum:
        AF_UNIX, AF_INET, AF_INET6, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_KEEPALIVE, SO_DOMAIN
        MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, SHUT_WR
    int accept4(int fd, sockaddr* address, socklen_t* size, int flags)
    int socketpair(int domain, int kind, int protocol, int* fds)
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size)
    int getsockopt(int fd, int level, int name, void* value, socklen_t* size)
    int getpeername(int fd, sockaddr* address, socklen_t* size)
    int getsockname(int fd, sockaddr* address, socklen_t* size)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    ssize_t recv(int fd, void* data, size_t size, int flags)
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)
    int connect(int fd, const sockaddr* address, socklen_t size)
    int shutdown(int fd, int how)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr         # in network byte order, like the port
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    enum:
        IPPROTO_TCP, IPPROTO_IP, IPPROTO_IPV6
        IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, IPV6_MTU_DISCOVER

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT, TCP_INFO

# Where the fields of struct tcp_info lie (linux/tcp.h, which does not go together with netinet/tcp.h).
cdef enum:
    TCP_INFO_RTT = 68
    TCP_INFO_RTTVAR = 72
    TCP_INFO_TOTAL_RETRANS = 100
    TCP_INFO_NOTSENT_BYTES = 144
    TCP_INFO_MIN_RTT = 148
    TCP_INFO_BYTES = 152        # up to there; since Linux 4.6

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLOUT
    int poll(pollfd* watched, unsigned long count, int timeout_ms)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum:
        EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLET
        EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int max_events, int timeout_ms)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void* data, size_t size, unsigned int flags)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, void* argument)

cdef extern from "<linux/sockios.h>" nogil:
    enum:
        SIOCOUTQ                # bytes that the other side has not acknowledged

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int initial, int flags)


# Microseconds of the monotonic clock, which is also asyncio's.
cdef inline int64_t monotonic_us() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000 + now.tv_nsec // 1000
