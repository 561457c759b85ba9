# What lies under TLS: a client's socket, and before it the bytes that somebody has read from it already.
#
# OpenSSL's own socket BIO lacks three things: it cannot begin with bytes out of memory, it does not tell whether a read
# has left something in the socket, so that one had to ask the kernel again, and it bounds nothing. Here what is said
# before the handshake is done passes ``hello``, and afterwards records without data are counted: OpenSSL reads on
# behind one, for as long as they come.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from relay.plane.compiled.leaves.buffer cimport Buffer, clear_buffer
from relay.plane.compiled.leaves.hello cimport HELLO_TOO_MANY_RECORDS, MAX_HELLO_RECORDS, Hello, note_answer, take_hello
from relay.plane.compiled.leaves.live cimport free
from relay.plane.compiled.leaves.openssl cimport (
    BIO, BIO_CTRL_EOF, BIO_CTRL_FLUSH, BIO_METHOD, BIO_TYPE_SOURCE_SINK, BIO_clear_retry_flags, BIO_get_data,
    BIO_get_new_index, BIO_meth_new, BIO_meth_set_ctrl, BIO_meth_set_read, BIO_meth_set_write, BIO_new, BIO_set_data,
    BIO_set_init, BIO_set_retry_read, BIO_set_retry_write, SSL, SSL3_RT_HEADER, SSL_RECEIVED_SHUTDOWN, SSL_set_bio,
    SSL_set_msg_callback, SSL_set_msg_callback_arg, SSL_set_shutdown,
)
from relay.plane.compiled.leaves.posix cimport EAGAIN, EINTR, MSG_DONTWAIT, MSG_NOSIGNAL, errno, recv, send

cdef enum:
    # New keys after millions of records, an empty record before the first: a client needs one or two in an hour. Each
    # costs up to 20 us, and 16 no more than a handshake.
    MAX_SILENT_RECORDS = 16
    # Of a whole handshake. OpenSSL skips early data that it does not want, and never stops at empty records of it.
    MAX_HANDSHAKE_RECORDS = MAX_HELLO_RECORDS + MAX_SILENT_RECORDS
    FORGIVE_EVERY_US = 1000000

cdef struct Wire:
    int fd
    bint drained                # the last read took all that the socket had
    bint ended                  # the client has closed its side
    uint32_t given              # bytes that the kernel has taken; it wraps
    uint8_t* preread            # owned; ``hello`` has seen it
    uint32_t preread_size
    uint32_t preread_used
    Hello hello
    bint counts                 # the handshake is done
    uint32_t silent             # records that have begun and have given no data; one may be on its way. Of a handshake: all
    int64_t forgiven_us         # when one was last forgotten


cdef inline int read_wire(BIO* bio, char* data, int size) noexcept nogil:
    cdef Wire* wire = <Wire*> BIO_get_data(bio)
    cdef ssize_t got
    BIO_clear_retry_flags(bio)
    if is_lengthy(wire):
        wire.hello.fault = HELLO_TOO_MANY_RECORDS
        return -1
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
    return <int> got if may_pass(wire, data, got) else -1


# True once the handshake is done: then only TLS can tell what it is.
cdef inline bint may_pass(Wire* wire, const char* data, ssize_t got) noexcept nogil:
    return wire.hello.done or got <= 0 or take_hello(&wire.hello, <const uint8_t*> data, <uint32_t> got)


cdef inline int write_wire(BIO* bio, const char* data, int size) noexcept nogil:
    cdef Wire* wire = <Wire*> BIO_get_data(bio)
    cdef ssize_t sent = send(wire.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    BIO_clear_retry_flags(bio)
    if sent < 0 and (errno == EAGAIN or errno == EINTR):
        BIO_set_retry_write(bio)
    elif sent > 0:
        wire.given += <uint32_t> sent
        if not wire.hello.done:
            note_answer(&wire.hello, <const uint8_t*> data, <uint32_t> sent)
    return <int> sent


cdef inline long control_wire(BIO* bio, int command, long argument, void* pointer) noexcept nogil:
    if command == BIO_CTRL_EOF:
        return (<Wire*> BIO_get_data(bio)).ended
    return command == BIO_CTRL_FLUSH


# TLS has read the head of a record. Beyond the bound it is made to believe that the client has ended, so that it reads
# nothing further.
cdef inline void on_tls_message(
    int writing, int version, int kind, const void* data, size_t size, SSL* ssl, void* argument
) noexcept nogil:
    cdef Wire* wire = <Wire*> argument
    if writing or kind != SSL3_RT_HEADER:
        return
    wire.silent += 1
    if is_flooded(wire):
        SSL_set_shutdown(ssl, SSL_RECEIVED_SHUTDOWN)


cdef inline bint is_flooded(const Wire* wire) noexcept nogil:
    return wire.counts and wire.silent > MAX_SILENT_RECORDS + 1


# True for a handshake that takes more records than any does. OpenSSL is through with what it had, and has asked for more.
cdef inline bint is_lengthy(const Wire* wire) noexcept nogil:
    return not wire.counts and wire.silent > MAX_HANDSHAKE_RECORDS


# A record has given data.
cdef inline void note_data(Wire* wire) noexcept nogil:
    wire.silent -= wire.silent > 0


# Those of long ago do not count.
cdef inline void forgive(Wire* wire, int64_t now_us) noexcept nogil:
    cdef int64_t seconds = (now_us - wire.forgiven_us) // FORGIVE_EVERY_US
    if seconds > 0:
        wire.silent = 0 if seconds >= wire.silent else wire.silent - <uint32_t> seconds
        wire.forgiven_us = now_us


# What follows is records that only TLS can read.
cdef inline void end_hello(Wire* wire) noexcept nogil:
    wire.hello.done = wire.counts = True
    wire.silent = 0


# The methods of all wires, or NULL; to be made once.
cdef inline BIO_METHOD* new_wire_method() noexcept nogil:
    cdef BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"relay wire")
    if method != NULL:
        BIO_meth_set_read(method, read_wire)
        BIO_meth_set_write(method, write_wire)
        BIO_meth_set_ctrl(method, control_wire)
    return method


# Puts TLS on a wire, which must outlive it; False without memory. What has been read is the wire's from here.
cdef inline bint lay_wire(const BIO_METHOD* method, SSL* ssl, Wire* wire, int fd, Buffer* read) noexcept nogil:
    cdef BIO* bio = BIO_new(method)
    if bio == NULL:
        return False
    wire.fd = fd
    wire.preread, wire.preread_used, wire.preread_size = read.memory, read.start, read.start + read.size
    read.memory = NULL
    clear_buffer(read)
    BIO_set_data(bio, wire)
    BIO_set_init(bio, 1)
    SSL_set_bio(ssl, bio, bio)
    SSL_set_msg_callback(ssl, on_tls_message)
    SSL_set_msg_callback_arg(ssl, wire)
    return True


cdef inline void clear_wire(Wire* wire) noexcept nogil:
    free(wire.preread)
    wire.preread = NULL
