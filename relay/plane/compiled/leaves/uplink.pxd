# The last step up, where ``send`` has failed: the compiled twin of relay.plane.uplink, where the rules and their reasons
# stand. What can be sent at once never comes here.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from relay.plane.compiled.leaves cimport posix

cdef enum:
    SURE_BYTES = 1232
    REJECTED_WITHIN_US = 1000000
    MAX_STRANGERS = 65536
    SOCKADDR_BYTES = 28         # of IPv6, the longest

# What ICMP has said of an earlier datagram.
cdef enum News:
    NEWS_NONE
    NEWS_OVERSIZE
    NEWS_DOUBT

cdef struct Uplink:
    int refused_for             # an errno of our own kernel for the last datagram that it did not send; 0: none since
    int64_t filtered_us         # when a packet filter of ours was last met, 0 for never
    uint32_t target_size        # 0 once the socket is connected
    uint8_t[SOCKADDR_BYTES] target


cdef inline bint is_no_room(int fault) noexcept nogil:
    return fault in (posix.EAGAIN, posix.ENOBUFS, posix.ENOMEM)


# True if nobody listens at the upstream: ICMP says so, and not in the name of our own packet filter.
cdef inline bint is_proof(const Uplink* uplink, int64_t now_us, int fault) noexcept nogil:
    return fault == posix.ECONNREFUSED and (
        not uplink.filtered_us or now_us - uplink.filtered_us >= REJECTED_WITHIN_US)


cdef inline News news_of(int fault) noexcept nogil:
    return NEWS_OVERSIZE if fault == posix.EMSGSIZE else NEWS_DOUBT


cdef inline bint is_request(const uint8_t* datagram, uint32_t size) noexcept nogil:
    return size >= 20 and datagram[0] & 0xC1 == 0 and datagram[1] & 0x10 == 0


# True for what is to be sent again in fragments.
cdef inline bint is_unsure(const uint8_t* datagram, uint32_t size) noexcept nogil:
    return size > SURE_BYTES and is_request(datagram, size)


# Sends; 0, or the errno.
cdef inline int try_send(int fd, const uint8_t* datagram, uint32_t size) noexcept nogil:
    return 0 if posix.send(fd, datagram, size, posix.MSG_DONTWAIT) >= 0 else posix.errno


cdef inline int send_in_fragments(int fd, const uint8_t* datagram, uint32_t size) noexcept nogil:
    cdef int level = posix.IPPROTO_IP, option = posix.IP_MTU_DISCOVER, family = 0
    cdef posix.socklen_t length = sizeof(int)
    cdef int allowed = posix.IP_PMTUDISC_DONT, forbidden = posix.IP_PMTUDISC_DO, fault
    posix.getsockopt(fd, posix.SOL_SOCKET, posix.SO_DOMAIN, &family, &length)
    if family == posix.AF_INET6:
        level, option = posix.IPPROTO_IPV6, posix.IPV6_MTU_DISCOVER
    posix.setsockopt(fd, level, option, &allowed, sizeof(int))
    fault = try_send(fd, datagram, size)
    posix.setsockopt(fd, level, option, &forbidden, sizeof(int))
    return fault


# Connects a socket that could not be when it was opened, and forgets what strangers have sent meanwhile; 0, or the errno.
cdef inline int connect_late(Uplink* uplink, int fd) noexcept nogil:
    cdef uint8_t[1] byte
    if posix.connect(fd, <posix.sockaddr*> uplink.target, uplink.target_size) < 0:
        return posix.errno
    uplink.target_size = 0
    for _ in range(MAX_STRANGERS):
        if posix.recv(fd, byte, 1, posix.MSG_DONTWAIT) < 0:
            break
    return 0


# A datagram could not be sent, for this reason: 0 if it could in the end, or the reason why not. The caller judges
# whether a reason is a proof; then nothing was tried.
cdef inline int send_after_all(
    Uplink* uplink, int fd, int64_t now_us, const uint8_t* datagram, uint32_t size, int first, News* news
) noexcept nogil:
    cdef int fault = first
    news[0] = NEWS_NONE
    if uplink.target_size:
        fault = connect_late(uplink, fd)
        if not fault:
            fault = try_send(fd, datagram, size)
    elif is_proof(uplink, now_us, first):
        return first
    elif not is_no_room(first) and first != posix.EPERM:
        fault = try_send(fd, datagram, size)
        if fault != first:
            news[0] = news_of(first)
    if fault == posix.EMSGSIZE and is_request(datagram, size):
        fault = send_in_fragments(fd, datagram, size)
    if fault == posix.EPERM:
        uplink.filtered_us = now_us
    return fault
