# HTTP is control's: the client's plain bytes go to it through a pair of sockets, and its response comes back the same
# way.

from libc.stdint cimport uint8_t, uint32_t

from relay.plane.compiled.engine cimport (
    NOTICE_HTTP_OPENED, PLAIN_BYTES, REASON_HTTP_CLOSED, REASON_NO_DESCRIPTORS, STATE_HTTP, Connection, Engine,
)
from relay.plane.compiled.slots cimport queue_notice, run_again, watch_client, watch_pipe
from relay.plane.compiled.wheel cimport clear_deadline
from relay.plane.compiled.ending cimport end, write_client
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport append, drop_front, front
from relay.plane.compiled.leaves.live cimport LIVE_SOCKETS, count_live
from relay.plane.compiled.leaves.reserve cimport fill, give_up


# The client speaks HTTP: control gets one end of a pair of sockets, and with it what has been read already.
cdef inline void on_http(Engine* e, Connection* c) noexcept nogil:
    cdef int[2] pair
    clear_deadline(e, c)
    give_up(&c.reserve)
    if posix.socketpair(posix.AF_UNIX, posix.SOCK_STREAM | posix.SOCK_CLOEXEC | posix.SOCK_NONBLOCK, 0, pair) < 0:
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    c.pipe, c.their_pipe = pair[0], pair[1]
    # An upgrade needs a UDP socket, so one descriptor stays reserved, if there is one.
    fill(&c.reserve, e.command_fd, 1, e.bounds.max_descriptors)
    count_live(LIVE_SOCKETS, 2)
    c.state = STATE_HTTP
    queue_notice(e, c, NOTICE_HTTP_OPENED)
    on_pipe_writable(e, c)


# The client's bytes go to control. While control does not take them, the client is not read.
cdef inline void on_request_bytes(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    on_pipe_writable(e, c)


cdef inline void on_pipe_writable(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t written = 0
    if c.held.size:
        written = posix.send(c.pipe, front(&c.held), c.held.size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL)
        if written < 0 and posix.errno != posix.EAGAIN:
            # Control has closed its end. The next read says so.
            written = c.held.size
        if written > 0:
            drop_front(&c.held, <uint32_t> written)
    watch_pipe(e, c)
    if c.readable == (c.held.size > 0):
        c.readable = not c.held.size
        watch_client(e, c)
        if c.readable:
            run_again(e, c)
    if c.ended and not c.held.size:
        posix.shutdown(c.pipe, posix.SHUT_WR)


cdef inline void on_pipe_readable(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t size = posix.recv(c.pipe, e.record, PLAIN_BYTES, posix.MSG_DONTWAIT)
    if size < 0 and posix.errno == posix.ECONNRESET:
        # Control closed its end without reading the whole request. The error comes before the rest of the response.
        size = posix.recv(c.pipe, e.record, PLAIN_BYTES, posix.MSG_DONTWAIT)
    if size > 0:
        write_client(e, c, e.record, <uint32_t> size)
        if c.state == STATE_HTTP and c.out.size:
            watch_pipe(e, c)
    elif size == 0 or posix.errno not in (posix.EAGAIN, posix.EINTR):
        end(e, c, REASON_HTTP_CLOSED)
