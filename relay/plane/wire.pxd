# What lies under TLS: a client's socket, and before it the bytes that somebody has read from it already.
#
# OpenSSL's own socket BIO would do, but for two things: it cannot begin with bytes out of memory, and it does not tell
# whether a read has left something in the socket, so that one had to ask the kernel again.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from relay.plane.live cimport free
from relay.plane.openssl cimport (
    BIO, BIO_CTRL_EOF, BIO_CTRL_FLUSH, BIO_METHOD, BIO_TYPE_SOURCE_SINK, BIO_clear_retry_flags, BIO_get_data,
    BIO_get_new_index, BIO_meth_new, BIO_meth_set_ctrl, BIO_meth_set_read, BIO_meth_set_write, BIO_new, BIO_set_data,
    BIO_set_init, BIO_set_retry_read, BIO_set_retry_write, SSL, SSL_set_bio,
)
from relay.plane.posix cimport EAGAIN, EINTR, MSG_DONTWAIT, MSG_NOSIGNAL, errno, recv, send

cdef struct Wire:
    int fd
    bint drained                # the last read took all that the socket had
    bint ended                  # the client has closed its side
    uint32_t given              # bytes that the kernel has taken; it wraps
    uint8_t* preread            # owned
    uint32_t preread_size
    uint32_t preread_used


cdef inline int read_wire(BIO* bio, char* data, int size) noexcept nogil:
    cdef Wire* wire = <Wire*> BIO_get_data(bio)
    cdef ssize_t got
    BIO_clear_retry_flags(bio)
    if wire.preread != NULL:
        got = wire.preread_size - wire.preread_used
        got = got if got < size else size
        memcpy(data, wire.preread + wire.preread_used, got)
        wire.preread_used += <uint32_t> got
        if wire.preread_used == wire.preread_size:
            clear_wire(wire)
        wire.drained = False
        return <int> got
    got = recv(wire.fd, data, size, MSG_DONTWAIT)
    # A stream socket that gives less than it was asked for has no more (epoll(7)).
    wire.drained = got < size
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        BIO_set_retry_read(bio)
    wire.ended = got == 0
    return <int> got


cdef inline int write_wire(BIO* bio, const char* data, int size) noexcept nogil:
    cdef Wire* wire = <Wire*> BIO_get_data(bio)
    cdef ssize_t sent = send(wire.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    BIO_clear_retry_flags(bio)
    if sent < 0 and (errno == EAGAIN or errno == EINTR):
        BIO_set_retry_write(bio)
    elif sent > 0:
        wire.given += <uint32_t> sent
    return <int> sent


cdef inline long control_wire(BIO* bio, int command, long argument, void* pointer) noexcept nogil:
    if command == BIO_CTRL_EOF:
        return (<Wire*> BIO_get_data(bio)).ended
    return command == BIO_CTRL_FLUSH


# The methods of all wires, or NULL; to be made once.
cdef inline BIO_METHOD* new_wire_method() noexcept nogil:
    cdef BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"relay wire")
    if method != NULL:
        BIO_meth_set_read(method, read_wire)
        BIO_meth_set_write(method, write_wire)
        BIO_meth_set_ctrl(method, control_wire)
    return method


# Puts TLS on a wire, which must outlive it; False without memory.
cdef inline bint lay_wire(const BIO_METHOD* method, SSL* ssl, Wire* wire, int fd) noexcept nogil:
    cdef BIO* bio = BIO_new(method)
    if bio == NULL:
        return False
    wire.fd = fd
    BIO_set_data(bio, wire)
    BIO_set_init(bio, 1)
    SSL_set_bio(ssl, bio, bio)
    return True


cdef inline void clear_wire(Wire* wire) noexcept nogil:
    free(wire.preread)
    wire.preread = NULL
