# How a connection begins: it is accepted and does its TLS handshake. If ALPN says that it speaks TURN, it then waits
# for control, which gives it an upstream.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strcmp

from relay.plane.compiled.engine cimport (
    NOTICE_CERTIFICATE, NOTICE_TURN_OPENED, PLAIN_BYTES, REASON_HANDSHAKE_FAILED, REASON_NETWORK_REFUSED,
    REASON_NO_DESCRIPTORS, REASON_TOO_MANY_CONNECTIONS, REASON_TOO_MANY_HANDSHAKES, STATE_DECIDING, STATE_HANDSHAKE,
    STATE_WAITING, Connection, Engine,
)
from relay.plane.compiled.slots cimport (
    ON_LISTENER, ON_TCP, mark, queue_notice, run_again, take_slot, unread, watch, watch_client,
)
from relay.plane.compiled.wheel cimport set_deadline
from relay.plane.compiled.ending cimport end, leave_contexts
from relay.plane.compiled.messages cimport post_message, post_pause
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport append
from relay.plane.compiled.leaves.contexts cimport ask_for_certificate, lower
from relay.plane.compiled.leaves.hello cimport HELLO_CHAIN_TOO_LONG, HELLO_GOOD, take_hello, words_of
from relay.plane.compiled.leaves.live cimport LIVE_CONNECTIONS, LIVE_SESSIONS, LIVE_SOCKETS, count_live
from relay.plane.compiled.leaves.networks cimport NETWORK_EXEMPT, is_listed, is_mapped, is_refused
from relay.plane.compiled.leaves.reserve cimport RESERVED_DESCRIPTORS, fill, give_up, hand_on
from relay.plane.compiled.leaves.ring cimport relay_add
from relay.plane.compiled.leaves.sources cimport (
    ENTRY_TOO_FAST, ENTRY_TOO_MANY, SOURCE_BYTES, Entry, enter_source, next_handshake_us, pthread_mutex_trylock,
    pthread_mutex_unlock, take_handshake,
)
from relay.plane.compiled.leaves.wire cimport end_hello, lay_wire

cdef enum:
    ACCEPTS_A_TURN = 16
    ACCEPT_PAUSE_US = 100000        # when descriptors have run out, or memory is short
    SUBNET_BYTES = 8                # of an IPv6 address: a client can use any number of addresses within its network
    KEEPALIVE_IDLE_S = 60
    KEEPALIVE_INTERVAL_S = 10
    KEEPALIVE_PROBES = 3
    USER_TIMEOUT_MS = 30000
    # For a client that does not read, the kernel would buffer minutes of voice. It takes no more than this.
    NOTSENT_LOWAT_BYTES = 16384


# Stops accepting, or starts again. Meanwhile newcomers wait in the kernel's queue.
cdef inline void watch_listeners(Engine* e, bint accepting) noexcept nogil:
    cdef uint32_t wanted = posix.EPOLLIN if accepting else 0
    cdef int i
    if e.accepting == accepting:
        return
    e.accepting = accepting
    for i in range(e.listener_count):
        watch(e, posix.EPOLL_CTL_MOD, e.listeners[i], wanted, <uint64_t> ON_LISTENER << 56 | i)


# Lets newcomers wait, because of an errno, or 0 if they come too fast.
cdef inline void pause_listeners(Engine* e, int64_t until_us, int fault) noexcept nogil:
    watch_listeners(e, False)
    e.accept_again_us = until_us
    post_pause(e, fault)


# A newcomer is accepted only with all the descriptors that it will need. Until then it waits in the kernel's queue, and
# running calls go on. If control or another worker holds the lock, this worker does not wait: epoll reports the
# listener again in the next turn.
cdef inline void on_listener(Engine* e, uint32_t listener) noexcept nogil:
    if pthread_mutex_trylock(&e.shared.descriptors) != 0:
        return
    for _ in range(ACCEPTS_A_TURN):
        if not accept_one(e, listener):
            break
    pthread_mutex_unlock(&e.shared.descriptors)


# Returns False if nobody else waits, or newcomers are to wait for a while.
cdef inline bint accept_one(Engine* e, uint32_t listener) noexcept nogil:
    cdef int fd = -1, fault
    cdef int64_t next_us = 0
    # Once the client has reset the connection, nobody but accept4 knows its address.
    cdef posix.sockaddr_storage client
    cdef posix.socklen_t size = sizeof(client)
    cdef Connection* c
    if e.held:
        pause_listeners(e, e.now_us + ACCEPT_PAUSE_US, posix.ENOMEM)
        return False
    if e.bounds.handshakes_per_second:
        next_us = next_handshake_us(&e.shared.sources, e.bounds.handshakes_per_second)
    if next_us > e.now_us:
        pause_listeners(e, next_us, 0)
        return False
    fault = fill(&e.reserve, e.command_fd, RESERVED_DESCRIPTORS, e.bounds.max_descriptors)
    if not fault:
        fd = posix.accept4(
            e.listeners[listener], <posix.sockaddr*> &client, &size, posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC)
        fault = posix.errno if fd < 0 else 0
    if fd < 0:
        if fault in (posix.EMFILE, posix.ENFILE, posix.ENOBUFS, posix.ENOMEM):
            give_up(&e.reserve)
            pause_listeners(e, e.now_us + ACCEPT_PAUSE_US, fault)
        return False
    c = welcome(e, fd, <const uint8_t*> &client, <uint32_t> size, e.listeners_ask[listener])
    if c != NULL and c.state == STATE_HANDSHAKE:
        hand_on(&e.reserve, &c.reserve)
    return True


# Makes a connection of a socket, and ends it at once if it is refused. Returns NULL if there is no slot. The client is
# whom control names, as a sockaddr, or else the other end of the socket.
cdef inline Connection* welcome(
    Engine* e, int fd, const uint8_t* client, uint32_t client_size, uint8_t asks
) noexcept nogil:
    cdef posix.socklen_t size = sizeof(posix.sockaddr_storage)
    cdef Connection* c = take_slot(e)
    cdef int refused
    if c == NULL:
        posix.close(fd)
        return NULL
    c.fd = fd
    c.state = STATE_HANDSHAKE
    c.readable = True
    c.opened_us = e.now_us
    c.asks = asks
    e.accepted += 1
    e.live += 1
    count_live(LIVE_CONNECTIONS, 1)
    count_live(LIVE_SOCKETS, 1)
    if client_size:
        memcpy(&c.client, client, client_size)
    else:
        posix.getpeername(fd, <posix.sockaddr*> &c.client, &size)
    refused = judge_newcomer(e, c, relay_add(&e.shared.connections, 1))
    if refused >= 0:
        end(e, c, refused)
        return c
    c.contexts = e.contexts
    c.contexts.references += 1
    configure_socket(fd)
    c.interest = posix.EPOLLIN
    if watch(e, posix.EPOLL_CTL_ADD, fd, posix.EPOLLIN, mark(ON_TCP, c)) < 0:
        end(e, c, REASON_NO_DESCRIPTORS)
        return c
    # Reads the clock again: if the machine stood still, the turn may have begun long before the client came.
    set_deadline(e, c, posix.monotonic_us() + e.bounds.handshake_timeout_us)
    return c


# Returns why a newcomer is refused, or -1. It is one of so many connections, itself included.
cdef inline int judge_newcomer(Engine* e, Connection* c, int64_t connections) noexcept nogil:
    cdef uint8_t[SOURCE_BYTES] address
    read_address(c, address)
    memcpy(c.source, address, SOURCE_BYTES)
    if not is_mapped(address):
        memset(c.source + SUBNET_BYTES, 0, SOURCE_BYTES - SUBNET_BYTES)
    if is_refused(e.networks, e.networks_size, address):
        return REASON_NETWORK_REFUSED
    if 0 < e.bounds.max_connections < connections:
        return REASON_TOO_MANY_CONNECTIONS
    if not is_listed(e.networks, e.networks_size, NETWORK_EXEMPT, address):
        return judge_source(e, c)
    return judge_pace(e)


# The same for the bounds on one source.
cdef inline int judge_source(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t bound = e.bounds.max_connections_per_source, per_second = e.bounds.handshakes_per_second_per_source
    cdef Entry entry
    if bound or per_second:
        entry = enter_source(&e.shared.sources, c.source, e.now_us, bound, per_second, &c.counted)
        if entry == ENTRY_TOO_MANY:
            return REASON_TOO_MANY_CONNECTIONS
        if entry == ENTRY_TOO_FAST:
            return REASON_TOO_MANY_HANDSHAKES
    return judge_pace(e)


# The same for the handshakes of all. Those that are accepted here have waited for theirs already.
cdef inline int judge_pace(Engine* e) noexcept nogil:
    cdef int64_t per_second = e.bounds.handshakes_per_second
    if per_second and not take_handshake(&e.shared.sources, e.now_us, per_second):
        return REASON_TOO_MANY_HANDSHAKES
    return -1


# The client's address; IPv4 is mapped into IPv6.
cdef inline void read_address(Connection* c, uint8_t* address) noexcept nogil:
    cdef const uint8_t* given = <const uint8_t*> &c.client
    cdef uint16_t family = (<uint16_t*> given)[0]
    memset(address, 0, SOURCE_BYTES)
    if family == posix.AF_INET6:
        memcpy(address, given + 8, 16)
    else:
        address[10] = address[11] = 0xFF
        memcpy(address + 12, given + 4, 4)


cdef inline void configure_socket(int fd) noexcept nogil:
    cdef int on = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S, probes = KEEPALIVE_PROBES
    cdef int patience = USER_TIMEOUT_MS, unsent = NOTSENT_LOWAT_BYTES
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_NODELAY, &on, sizeof(int))
    posix.setsockopt(fd, posix.SOL_SOCKET, posix.SO_KEEPALIVE, &on, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_KEEPIDLE, &idle, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_KEEPINTVL, &interval, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_KEEPCNT, &probes, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_USER_TIMEOUT, &patience, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_NOTSENT_LOWAT, &unsent, sizeof(int))


cdef inline void on_handshake(Engine* e, Connection* c) noexcept nogil:
    cdef int result, error
    if c.ssl == NULL and not begin_tls(e, c):
        return
    tls.ERR_clear_error()
    result = tls.SSL_do_handshake(c.ssl)
    if result == 1:
        on_established(e, c)
        return
    error = tls.SSL_get_error(c.ssl, result)
    if error == tls.SSL_ERROR_WANT_READ or error == tls.SSL_ERROR_WANT_WRITE:
        c.retry = error == tls.SSL_ERROR_WANT_WRITE
        watch_client(e, c)
        return
    if c.wire.hello.fault != HELLO_GOOD:
        c.failure = words_of(c.wire.hello.fault)
    elif error == tls.SSL_ERROR_SSL:
        note_failure(c)
    end(e, c, REASON_HANDSHAKE_FAILED)


# Keeps OpenSSL's words for what went wrong; for a certificate that is not accepted, why, and the number for it.
cdef inline void note_failure(Connection* c) noexcept nogil:
    cdef unsigned long last = tls.ERR_peek_last_error()
    cdef int reason = tls.ERR_GET_REASON(last) if tls.ERR_GET_LIB(last) == tls.ERR_LIB_SSL else 0
    c.failure = failure_words()
    if c.asks and reason == tls.SSL_R_CERTIFICATE_VERIFY_FAILED:
        c.fault = <int> tls.SSL_get_verify_result(c.ssl)
        c.failure = tls.X509_verify_cert_error_string(c.fault)
    elif c.asks and reason == tls.SSL_R_EXCESSIVE_MESSAGE_SIZE:
        c.failure = words_of(HELLO_CHAIN_TOO_LONG)


# Reads until the ClientHello is whole, and only then makes a TLS session. That takes 40 KiB, which a client must not
# get by beginning a hello and never ending it. Returns True once there is a session.
cdef inline bint begin_tls(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t size
    if not c.wire.hello.whole:
        size = posix.recv(c.fd, e.plain, PLAIN_BYTES, posix.MSG_DONTWAIT)
        if size < 0 and posix.errno in (posix.EAGAIN, posix.EINTR):
            return False
        if size <= 0:
            end(e, c, REASON_HANDSHAKE_FAILED)
            return False
        if not take_first(e, c, e.plain, <uint32_t> size) or not c.wire.hello.whole:
            return False
    c.ssl = tls.SSL_new(c.contexts.fallback)
    count_live(LIVE_SESSIONS, c.ssl != NULL)
    if c.ssl == NULL or not lay_wire(e.shared.wires, c.ssl, &c.wire, c.fd, &c.held) or not ask_for_certificate(
        c.ssl, c.contexts, c.asks
    ):
        end(e, c, REASON_NO_DESCRIPTORS)
        return False
    tls.SSL_set_accept_state(c.ssl)
    return True


# Keeps and judges the first bytes of a client. Returns False if they end the connection.
cdef inline bint take_first(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not take_hello(&c.wire.hello, data, size):
        c.failure = words_of(c.wire.hello.fault)
        end(e, c, REASON_HANDSHAKE_FAILED)
        return False
    if not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
        return False
    return True


# Returns OpenSSL's words for what went wrong; NULL for a stream that just ended, which OpenSSL 3 calls an error too.
cdef inline const char* failure_words() noexcept nogil:
    cdef const char* words = tls.ERR_reason_error_string(tls.ERR_get_error())
    if words != NULL and strcmp(words, b"unexpected eof while reading") == 0:
        return NULL
    return words


# Control hears whose certificate the client has shown, if it has one. TLS has verified it: now, or when the session
# began that goes on here.
cdef inline void tell_certificate(Engine* e, Connection* c) noexcept nogil:
    cdef const tls.X509* shown = tls.SSL_get0_peer_certificate(c.ssl)
    cdef unsigned char* out = <unsigned char*> e.plain
    cdef int size
    if shown == NULL:
        return
    size = tls.i2d_X509(shown, NULL)
    # The chain is bounded, and so this is shorter. Without memory there is no size.
    if size <= 0 or size > PLAIN_BYTES:
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    tls.i2d_X509(shown, &out)
    post_message(e, c, NOTICE_CERTIFICATE, e.plain, <uint32_t> size, 0, 0)


cdef inline void on_established(Engine* e, Connection* c) noexcept nogil:
    cdef const unsigned char* chosen = NULL
    cdef unsigned int size = 0
    cdef const char* asked = tls.SSL_get_servername(c.ssl, tls.TLSEXT_NAMETYPE_host_name)
    if asked != NULL:
        lower(asked, c.server_name)
    if c.asks:
        tell_certificate(e, c)
        if c.state != STATE_HANDSHAKE:
            return
    c.version = tls.SSL_get_version(c.ssl)
    tls.SSL_get0_alpn_selected(c.ssl, &chosen, &size)
    c.alpn = 0 if not size else 1 if size == 8 else 2 if size == 9 else 3
    leave_contexts(e, c)
    end_hello(&c.wire)
    c.retry = 0
    c.state = STATE_DECIDING
    set_deadline(e, c, e.now_us + e.bounds.first_bytes_timeout_us)
    watch_client(e, c)
    if c.alpn >= 2:
        on_turn(e, c)
    elif unread(c):
        run_again(e, c)


# The client speaks TURN: control is asked for an upstream.
cdef inline void on_turn(Engine* e, Connection* c) noexcept nogil:
    c.state = STATE_WAITING
    # Bytes that wait for control stay few: only one read is kept.
    c.readable = False
    watch_client(e, c)
    set_deadline(e, c, e.now_us + e.bounds.control_timeout_us)
    queue_notice(e, c, NOTICE_TURN_OPENED)
