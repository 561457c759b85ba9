# A client's connection: UDP, or TCP with TLS on it. Bytes go out at once or wait, and come in as they are.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport strerror

from loadtest.engine.addresses cimport family_of, write_address
from loadtest.engine.carriers cimport CARRIER_UDP, put_message, put_unit
from loadtest.engine.ending cimport end_client
from loadtest.engine.engine cimport (
    CAUSE_CLOSED, CAUSE_CONNECTION, CAUSE_RESOURCES, CAUSE_TLS, CAUSE_VERIFY, MAX_WAITING_OUT, ON_CLIENT, PHASE_ENDED,
    PHASE_TLS, SOCKADDR_BYTES, TEXT_SERVER_NAME, TEXT_SNI, Cause, Client, Endpoint, Engine, chance,
)
from loadtest.engine.kernel cimport (
    EINPROGRESS, SO_ERROR, SO_RCVBUF, SO_RCVBUFFORCE, SOCK_DGRAM, TCP_MAXSEG, bind_socket, recvfrom, sendto, socket,
)
from loadtest.engine.openssl cimport (
    SSL_get_verify_result, SSL_set1_host, SSL_set_connect_state, SSL_set_fd, SSL_set_tlsext_host_name, X509_V_OK,
    X509_verify_cert_error_string,
)
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport append, drop_front, front
from relay.plane.compiled.leaves.live cimport LIVE_SESSIONS, LIVE_SOCKETS, count_live
from relay.plane.compiled.leaves.openssl cimport (
    ERR_peek_error, ERR_reason_error_string, SSL_ERROR_SYSCALL, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN, SSL_get_error, SSL_new, SSL_read, SSL_write,
)

cdef enum:
    # Loopback would advertise 64 KB, and the server's kernel would then buffer as for no real client.
    ETHERNET_MSS = 1448
    # 200 ms of 1000 calls must fit while another process has the core.
    PEER_RECEIVE_BYTES = 8388608


cdef inline void watch(Engine* e, Client* c, int operation, bint waits_for_room) noexcept nogil:
    cdef posix.epoll_event event
    event.events = posix.EPOLLIN | (posix.EPOLLOUT if waits_for_room else 0)
    event.data.u64 = <uint64_t> ON_CLIENT << 56 | c.number
    c.waits_for_room = waits_for_room
    posix.epoll_ctl(e.epoll, operation, c.fd, &event)


cdef inline void wait_for_room(Engine* e, Client* c, bint wanted) noexcept nogil:
    if c.waits_for_room != wanted:
        watch(e, c, posix.EPOLL_CTL_MOD, wanted)


cdef inline void fail_errno(Engine* e, Client* c, Cause cause, int fault) noexcept nogil:
    end_client(e, c, cause, fault, strerror(fault))


# 1. A socket

cdef inline bint make_socket(Engine* e, Client* c, int kind) noexcept nogil:
    c.fd = socket(family_of(&c.plan.server), kind | posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC, 0)
    if c.fd < 0:
        fail_errno(e, c, CAUSE_RESOURCES, posix.errno)
        return False
    count_live(LIVE_SOCKETS, 1)
    return True


cdef inline bint open_socket(Engine* e, Client* c) noexcept nogil:
    cdef bint datagrams = c.plan.carrier == CARRIER_UDP
    cdef int on = 1, mss = ETHERNET_MSS
    if not make_socket(e, c, SOCK_DGRAM if datagrams else posix.SOCK_STREAM):
        return False
    if not datagrams:
        posix.setsockopt(c.fd, posix.IPPROTO_TCP, posix.TCP_NODELAY, &on, sizeof(int))
        posix.setsockopt(c.fd, posix.IPPROTO_TCP, TCP_MAXSEG, &mss, sizeof(int))
    if posix.connect(c.fd, <posix.sockaddr*> c.plan.server.octets, c.plan.server.size) < 0 and (
        posix.errno != EINPROGRESS
    ):
        fail_errno(e, c, CAUSE_CONNECTION, posix.errno)
        return False
    watch(e, c, posix.EPOLL_CTL_ADD, not datagrams)
    return True


# A socket of its own address, which is not connected: anyone who sends to it is heard.
cdef inline bint open_peer_socket(Engine* e, Client* c) noexcept nogil:
    cdef Endpoint own
    cdef posix.socklen_t size = SOCKADDR_BYTES
    cdef int room = PEER_RECEIVE_BYTES
    if not make_socket(e, c, SOCK_DGRAM):
        return False
    # Only root may have more than the system's maximum.
    if posix.setsockopt(c.fd, posix.SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(int)) < 0:
        posix.setsockopt(c.fd, posix.SOL_SOCKET, SO_RCVBUF, &room, sizeof(int))
    if bind_socket(c.fd, <posix.sockaddr*> c.plan.server.octets, c.plan.server.size) < 0 or (
        posix.getsockname(c.fd, <posix.sockaddr*> own.octets, &size) < 0
    ):
        fail_errno(e, c, CAUSE_RESOURCES, posix.errno)
        return False
    own.size = size
    write_address(&own, c.relayed)
    watch(e, c, posix.EPOLL_CTL_ADD, False)
    return True


# Of a socket that has connected or has failed to.
cdef inline int connection_fault(int fd) noexcept nogil:
    cdef int fault = 0
    cdef posix.socklen_t size = sizeof(int)
    posix.getsockopt(fd, posix.SOL_SOCKET, SO_ERROR, &fault, &size)
    return fault


# 2. TLS

cdef inline bint lay_tls(Engine* e, Client* c) noexcept nogil:
    cdef const char* name = c.plan.texts[<int> TEXT_SNI]
    c.tls = SSL_new(c.plan.context)
    if c.tls == NULL:
        end_client(e, c, CAUSE_RESOURCES, 0, b"no memory for TLS")
        return False
    count_live(LIVE_SESSIONS, 1)
    # Its writes may raise SIGPIPE, which Python ignores in every process.
    SSL_set_fd(c.tls, c.fd)
    if name[0]:
        SSL_set_tlsext_host_name(c.tls, name)
    if c.plan.verifies:
        SSL_set1_host(c.tls, c.plan.texts[<int> TEXT_SERVER_NAME])
    SSL_set_connect_state(c.tls)
    return True


# What OpenSSL says when it has not done what it was asked to.
cdef inline void on_tls_pause(Engine* e, Client* c, int result) noexcept nogil:
    cdef int error = SSL_get_error(c.tls, result), fault = posix.errno
    cdef const char* reason
    cdef long verdict
    if error == SSL_ERROR_WANT_READ:
        return
    if error == SSL_ERROR_WANT_WRITE:
        wait_for_room(e, c, True)
        return
    verdict = SSL_get_verify_result(c.tls)
    reason = ERR_reason_error_string(ERR_peek_error())
    if error == SSL_ERROR_ZERO_RETURN:
        end_client(e, c, CAUSE_CLOSED, 0, NULL)
    elif c.phase == PHASE_TLS and c.plan.verifies and verdict != X509_V_OK:
        end_client(e, c, CAUSE_VERIFY, <int32_t> verdict, X509_verify_cert_error_string(verdict))
    elif error == SSL_ERROR_SYSCALL and reason == NULL and fault:
        fail_errno(e, c, CAUSE_CONNECTION, fault)
    else:
        end_client(e, c, CAUSE_TLS, 0, reason)


# 3. Out

# Takes what it can of bytes; -1 if the connection is dead.
cdef inline int write_some(Engine* e, Client* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int written
    if c.tls != NULL:
        written = SSL_write(c.tls, data, <int> size)
        if written <= 0:
            on_tls_pause(e, c, written)
    else:
        written = <int> posix.send(c.fd, data, size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL)
        if written < 0 and posix.errno == posix.EAGAIN:
            wait_for_room(e, c, True)
        elif written < 0:
            fail_errno(e, c, CAUSE_CONNECTION, posix.errno)
    if c.phase == PHASE_ENDED:
        return -1
    return written if written > 0 else 0


# Sends what waits. True if nothing waits any longer.
cdef inline bint flush(Engine* e, Client* c) noexcept nogil:
    cdef int written
    while c.waiting_out.size:
        written = write_some(e, c, front(&c.waiting_out), c.waiting_out.size)
        if written <= 0:
            return False
        drop_front(&c.waiting_out, <uint32_t> written)
    wait_for_room(e, c, False)
    return True


# What is put on a stream: at once, or after what waits. False if there is no room, or no connection.
cdef inline bint send_stream(Engine* e, Client* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int written = 0
    if c.waiting_out.size + size > MAX_WAITING_OUT:
        return False
    while not c.waiting_out.size and size:
        written = write_some(e, c, data, size)
        if written < 0:
            return False
        if not written:
            break
        data += written
        size -= <uint32_t> written
    # Without memory half a frame would be on its way.
    if size and not append(&c.waiting_out, data, size):
        end_client(e, c, CAUSE_RESOURCES, posix.ENOMEM, b"no memory for what waits")
        return False
    return True


# A full socket loses a datagram, as a network would.
cdef inline bint send_datagram(Engine* e, Client* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int fault
    if posix.send(c.fd, data, size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL) >= 0:
        return True
    fault = posix.errno
    if fault != posix.EAGAIN and fault != posix.ENOBUFS:
        fail_errno(e, c, CAUSE_CONNECTION, fault)
    return False


# A datagram of a socket that is not connected. Nothing that is wrong with one address ends it.
cdef inline bint send_to(Client* c, const Endpoint* to, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef const posix.sockaddr* address = <const posix.sockaddr*> to.octets
    return sendto(c.fd, data, size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL, address, to.size) >= 0


# Sends a unit, around which there is room. It is changed where it lies.
cdef inline bint send_unit(Engine* e, Client* c, uint8_t* unit, uint32_t size) noexcept nogil:
    cdef uint32_t framed
    cdef uint8_t* frame = put_unit(c.plan.carrier, unit, size, <uint32_t> chance(e), &framed)
    if c.plan.carrier == CARRIER_UDP:
        return send_datagram(e, c, frame, framed)
    return send_stream(e, c, frame, framed)


# A message of a WebSocket, around which there is room.
cdef inline bint send_message(Engine* e, Client* c, uint8_t opcode, uint8_t* payload, uint32_t size) noexcept nogil:
    cdef uint32_t framed
    cdef uint8_t* frame = put_message(opcode, payload, size, <uint32_t> chance(e), &framed)
    return send_stream(e, c, frame, framed)


# 4. In

# A datagram of a socket that is not connected: its size, or 0 if there is none.
cdef inline uint32_t receive_from(Client* c, uint8_t* data, uint32_t room, Endpoint* sender) noexcept nogil:
    cdef posix.socklen_t size = SOCKADDR_BYTES
    cdef ssize_t got = recvfrom(c.fd, data, room, posix.MSG_DONTWAIT, <posix.sockaddr*> sender.octets, &size)
    sender.size = size
    return <uint32_t> got if got > 0 else 0


# Reads into ``room`` bytes; 0 if there is nothing, or no connection any longer.
cdef inline uint32_t read_some(Engine* e, Client* c, uint8_t* data, uint32_t room) noexcept nogil:
    cdef int got
    if c.tls != NULL:
        got = SSL_read(c.tls, data, <int> room)
        if got <= 0:
            on_tls_pause(e, c, got)
        return <uint32_t> got if got > 0 else 0
    got = <int> posix.recv(c.fd, data, room, posix.MSG_DONTWAIT)
    if got < 0 and posix.errno != posix.EAGAIN and posix.errno != posix.EINTR:
        fail_errno(e, c, CAUSE_CONNECTION, posix.errno)
    elif got == 0 and c.plan.carrier != CARRIER_UDP:
        end_client(e, c, CAUSE_CLOSED, 0, NULL)
    return <uint32_t> got if got > 0 else 0
