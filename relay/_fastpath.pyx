# cython: auto_pickle=False, autotestdict=False
"""The compiled data plane: workers, each one thread with its own epoll, that never wait for Python.

Life of a connection, which is also the order of this file:

 1  accept           a socket and a slot of the slab
 2  handshake        TLS; a few each turn, so that media goes first
 3  first bytes      TURN or HTTP; control is told, and answers with a command
 4  uplink           recv → decrypt → cut one unit, as its carrier frames it → remember a STUN request → send it by UDP
 5  downlink         recvmmsg → match a STUN answer → frame → encrypt, or drop where the client does not read
 6  HTTP             plain bytes over a pair of sockets to control, and back
 7  time             one deadline each: handshake, first bytes, control's answer, STUN sent again, a silent upstream
 8  the end          close_notify, descriptors, the slot once Python has read it
 9  commands         what control has decided
10  a turn           epoll, media first, then newcomers, then what is due
11  Python's face    Worker: start it in a thread, put commands, take events, read snapshots

Nothing between 1 and 10 holds the GIL, takes a lock, or is called once per packet by Python.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memmove, memset, strcmp

from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.admission cimport MAX_ASKED_BYTES, clear_admission, is_to_ask, is_turn_datagram, is_waiting_for_control, take_asked
from relay.plane.compiled.leaves.buffer cimport append, clear_buffer, drop_front, front, keep_bytes
from relay.plane.compiled.leaves.capsule cimport CAPSULE_NEEDS_MORE, CAPSULE_OVERSIZE, CAPSULE_PAYLOAD, Payload, read_capsule
from relay.plane.compiled.leaves.carriage cimport (
    CARRIER_CONNECT_UDP, CARRIER_SESSION, CARRIER_TURN, FAREWELL_BYTES, Carriage, admit_text, admit_unasked,
    frame_unit, is_from_peer, note_capsule_fault, note_close, note_web_fault, open_carriage, write_farewell, write_ping,
)
from relay.plane.compiled.leaves.contexts cimport Contexts, TicketKey, build_contexts, free_contexts, lower, text_of
from relay.plane.compiled.leaves.first_bytes cimport FIRST_BYTES_HTTP, FIRST_BYTES_NEED_MORE, FIRST_BYTES_TURN, FirstBytes, decide
from relay.plane.compiled.leaves.framing cimport UNIT_NEEDS_MORE, UNIT_WHOLE, Unit, measure_unit
from relay.plane.compiled.leaves.delays cimport Delays, add_delays, record_delay
from relay.plane.compiled.leaves.figures cimport delays_of, histogram_of, streams_of
from relay.plane.compiled.leaves.hello cimport HELLO_GOOD, take_hello, words_of
from relay.plane.compiled.leaves.histogram cimport record_many_us
from relay.plane.compiled.leaves.live cimport (
    LIVE_BUFFERS, LIVE_CONNECTIONS, LIVE_CONTEXTS, LIVE_SESSIONS, LIVE_SOCKETS, RELAY_COUNTS, alive, calloc, count_live,
    free, malloc, realloc,
)
from relay.plane.compiled.leaves.meter cimport PAYLOAD_TYPES, Meter, meter_packet
from relay.plane.compiled.leaves.pace cimport is_behind, note_write
from relay.plane.compiled.leaves.question cimport (
    JUDGEMENT_ASK, JUDGEMENT_GONE, QUESTION_BYTES, Judgement, answers_question, judge, next_question_us,
    write_question,
)
from relay.plane.compiled.leaves.reserve cimport (
    RESERVED_DESCRIPTORS, clear_reserve, fill, give_up, hand_on,
)
from relay.plane.compiled.leaves.ring cimport close_ring, is_half_full, open_ring, put, relay_add, relay_load, relay_store, take
from relay.plane.compiled.leaves.schedule cimport (
    NO_UNIT, PUT_DONE, PUT_REFUSED, TRAFFIC_CONTROL, TRAFFIC_DATA, TRAFFICS, Frame, Put, Rules, clear_schedule, expire,
    first_frame, is_media_datagram, is_urgent, is_waiting, judge_peer, next_class, note_oldest, pop_frame, put_frame,
    traffic_of, waiting_bytes,
)
from relay.plane.compiled.leaves.sources cimport (
    enter_source, leave_source, open_sources, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_ERROR, ALLOCATE_REQUEST, ALLOCATE_SUCCESS, ATTRIBUTE_ALTERNATE_SERVER, ATTRIBUTE_LIFETIME,
    ATTRIBUTE_USERNAME, ATTRIBUTE_XOR_RELAYED_ADDRESS, CLASS_BITS, REFRESH_REQUEST, REFRESH_SUCCESS, RESPONSE_BIT,
    STUN_HEADER_BYTES, TRANSACTION_ID_BYTES, TRANSACTION_ID_OFFSET, count_attributes, datagram_unit, error_code, find_attribute, load16, load32,
)
from relay.plane.compiled.leaves.tap cimport (
    TAP_DOWNLINK, TAP_LOCAL, TAP_UPLINK, Tap, TapKind, TapRecord, copy_out, drop_tapped, end_tap, leave_tap, open_tap,
    peek_tapped, put_tapped,
)
from relay.plane.compiled.leaves.transactions cimport (
    ANSWER_DUPLICATE, ANSWER_FIRST, ANSWER_UNKNOWN, Answer, Pending, Transactions,
    clear_transactions, find_pending, next_due_us, on_request, on_response, take_due, waiting_since_us,
)
from relay.plane.compiled.leaves.uplink cimport (
    NEWS_DOUBT, NEWS_NONE, NEWS_OVERSIZE, SOCKADDR_BYTES, News, is_no_room, is_proof, is_unsure, news_of, send_after_all,
    send_in_fragments,
)
from relay.plane.compiled.leaves.websocket cimport (
    WEB_BINARY, WEB_CLOSE, WEB_MAX_HEAD_BYTES, WEB_NEEDS_MORE, WEB_NO_CHANNEL_NUMBER, WEB_NO_TURN_MESSAGE, WEB_PART,
    WEB_PING, WEB_PONG, WEB_ROOM, WEB_TEXT, WEB_TOO_MANY_TEXTS, WEB_WHOLE, Message, read_message, write_control_head,
    write_head,
)
from relay.plane.compiled.leaves.wire cimport (
    clear_wire, end_hello, forgive, is_flooded, lay_wire, new_wire_method, note_data,
)

from relay.wire.stream import FramingFault

# What a WebSocket client is told at the end, by reason: a code, 0 for nothing, and the reason's word.
cdef uint16_t[REASONS] CLOSE_CODE_OF
cdef char[REASONS][32] CLOSE_WORD_OF


cdef int learn_close_codes() except -1:
    from relay.plane.api import CLOSE_CODES, CloseReason
    cdef int number
    cdef bytes word
    if len(CloseReason) != REASONS:
        raise ImportError("relay._fastpath was built for other reasons to close: build it again")
    for number, reason in enumerate(CloseReason):
        CLOSE_CODE_OF[number] = CLOSE_CODES.get(reason, 0)
        word = reason.encode()
        snprintf(CLOSE_WORD_OF[number], 32, b"%s", <const char*> word)
    return 0


learn_close_codes()

cdef tls.BIO_METHOD* WIRES = new_wire_method()
if WIRES == NULL:
    raise MemoryError

# Handshakes cost half a millisecond each: so many a turn, and running calls wait no longer than for a burst of media.
cdef enum:
    HANDSHAKES_A_TURN = 1
    ACCEPTS_A_TURN = 16
    RECORD_BYTES = 1024             # of what has waited: at 64 kbit/s an eighth of a second until it can be read
    LINK_US = 1000000               # TCP_INFO once a second
    UNITS_A_TURN = 256              # units of one client before others have their turn: one record may bring 4,000
    READS_A_TURN = 8                # TLS reads of one client before others have their turn
    CLOSE_US = 2000000              # what is written when a connection closes has this long to leave
    ACCEPT_PAUSE_US = 100000        # when descriptors have run out
    ALLOCATION_LIFETIME_US = 600000000
    MEDIA_IDLE_US = 120000000       # RFC 9298 section 3.1: a proxy keeps a flow for two minutes at least
    PACKETS_A_CLOCK = 8             # packets whose time in the relay is noted together
    WARM_AFTER = 16                 # records written: a call has begun
    TELL_EVERY_US = 2000
    BEHIND_EVERY_MS = 5             # a jitter buffer does not notice
    BEHIND_EVERY_US = 5000
    SWEEP_MS = 1000
    SWEEP_US = 1000000              # a call speaks fifty times a second: after one it is silent
    READ_TRIES = 20                 # of a snapshot, while flows end
    COMMAND_RING = 4096
    EVENT_RING = 16384
    KEEPALIVE_IDLE_S = 60
    KEEPALIVE_INTERVAL_S = 10
    KEEPALIVE_PROBES = 3
    USER_TIMEOUT_MS = 30000
    # The kernel would take minutes of voice from us for a client that does not read; so it takes no more than this.
    NOTSENT_LOWAT_BYTES = 16384

# The earlier of two times, of which 0 is none.
cdef inline int64_t sooner(int64_t one, int64_t other) noexcept nogil:
    return one if not other or (one and one < other) else other


# What an epoll event is about: the top byte of its number, above generation and index.
cdef enum Source:
    ON_TCP
    ON_UDP
    ON_PIPE
    ON_LISTENER
    ON_COMMAND


cdef inline void close_open(int fd) noexcept nogil:
    if fd >= 0:
        posix.close(fd)


cdef inline uint64_t mark(Source source, Connection* c) noexcept nogil:
    return <uint64_t> source << 56 | <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index


cdef inline Connection* at(Engine* e, uint32_t index) noexcept nogil:
    return &e.chunks[index // CHUNK][index % CHUNK]


# The connection that a number means, or NULL if it has gone.
cdef inline Connection* find(Engine* e, uint64_t number) noexcept nogil:
    cdef uint32_t index = <uint32_t> number
    cdef Connection* c
    if index >= e.slots:
        return NULL
    c = at(e, index)
    return c if c.state != STATE_FREE and (c.generation & 0xFFFFFF) == ((number >> 32) & 0xFFFFFF) else NULL


cdef inline int watch(Engine* e, int operation, int fd, uint32_t events, uint64_t number) noexcept nogil:
    cdef posix.epoll_event event
    event.events = events
    event.data.u64 = number
    return posix.epoll_ctl(e.epoll, operation, fd, &event)


# True if something waits that TCP may be given, as far as is known; or else it is asked again.
cdef inline bint may_write_waiting(Connection* c) noexcept nogil:
    if not is_waiting(&c.schedule) or c.pace.behind:
        return False
    return not c.pace.holds_data or is_urgent(&c.schedule)


# What epoll should tell of the client's socket, from what the connection waits for.
cdef void watch_client(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t wanted = 0
    if c.fd < 0:
        return
    if c.readable and not c.ended:
        wanted |= posix.EPOLLIN
    if c.out.size or c.retry or may_write_waiting(c):
        wanted |= posix.EPOLLOUT
    if wanted != c.interest:
        c.interest = wanted
        watch(e, posix.EPOLL_CTL_MOD, c.fd, wanted, mark(ON_TCP, c))


cdef inline void owe(Engine* e, Connection* c, uint32_t notice) noexcept nogil:
    if not c.owed:
        c.owed_next = e.owed
        e.owed = c
    c.owed |= notice


cdef inline void see_again(Engine* e, Connection* c) noexcept nogil:
    if not c.again:
        c.again = True
        c.again_next = e.again
        e.again = c


# ---- The wheel: one deadline a connection


cdef void clear_deadline(Engine* e, Connection* c) noexcept nogil:
    if not c.deadline_us:
        return
    if c.wheel_previous != NULL:
        c.wheel_previous.wheel_next = c.wheel_next
    else:
        e.wheel[(c.deadline_us // WHEEL_TICK_US) % WHEEL_SLOTS] = c.wheel_next
    if c.wheel_next != NULL:
        c.wheel_next.wheel_previous = c.wheel_previous
    c.deadline_us = 0
    e.armed -= 1


cdef void set_deadline(Engine* e, Connection* c, int64_t when_us) noexcept nogil:
    cdef Connection** slot
    clear_deadline(e, c)
    # Never in a slot that has been passed this round.
    c.deadline_us = when_us if when_us > e.wheel_tick * WHEEL_TICK_US else e.wheel_tick * WHEEL_TICK_US + 1
    slot = &e.wheel[(c.deadline_us // WHEEL_TICK_US) % WHEEL_SLOTS]
    c.wheel_previous = NULL
    c.wheel_next = slot[0]
    if slot[0] != NULL:
        slot[0].wheel_previous = c
    slot[0] = c
    e.armed += 1


# ---- 1 accept


cdef Connection* take_slot(Engine* e) noexcept nogil:
    cdef Connection* c
    cdef Connection* chunk
    cdef uint32_t generation, index
    cdef int i
    if e.free_slots == NULL:
        if e.slots // CHUNK == MAX_CHUNKS:
            return NULL
        chunk = <Connection*> calloc(CHUNK, sizeof(Connection))
        if chunk == NULL:
            return NULL
        e.chunks[e.slots // CHUNK] = chunk
        for i in range(CHUNK):
            chunk[i].index = e.slots + i
            chunk[i].generation = 1
            chunk[i].free_next = e.free_slots
            e.free_slots = &chunk[i]
        # Python counts them and looks at each: they are there first.
        relay_store(&e.slots, e.slots + CHUNK)
    c = e.free_slots
    e.free_slots = c.free_next
    generation, index = c.generation, c.index
    memset(c, 0, sizeof(Connection))
    c.generation, c.index = generation, index
    c.fd = c.udp = c.pipe = c.their_pipe = -1
    clear_reserve(&c.reserve)
    e.used += 1
    return c


cdef void free_slot(Engine* e, Connection* c) noexcept nogil:
    c.state = STATE_FREE
    c.generation += 1
    if not c.generation & 0xFFFFFF:
        c.generation = 1
    c.free_next = e.free_slots
    e.free_slots = c
    e.used -= 1


cdef void read_source(Connection* c) noexcept nogil:
    cdef const uint8_t* address = <const uint8_t*> &c.client
    cdef uint16_t family = (<uint16_t*> address)[0]
    memset(c.source, 0, SOURCE_BYTES)
    if family == posix.AF_INET6:
        memcpy(c.source, address + 8, 16)
    else:
        c.source[10] = c.source[11] = 0xFF
        memcpy(c.source + 12, address + 4, 4)


cdef void configure_socket(int fd) noexcept nogil:
    cdef int on = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S, probes = KEEPALIVE_PROBES
    cdef int patience = USER_TIMEOUT_MS, unsent = NOTSENT_LOWAT_BYTES
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_NODELAY, &on, sizeof(int))
    posix.setsockopt(fd, posix.SOL_SOCKET, posix.SO_KEEPALIVE, &on, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_KEEPIDLE, &idle, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_KEEPINTVL, &interval, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_KEEPCNT, &probes, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_USER_TIMEOUT, &patience, sizeof(int))
    posix.setsockopt(fd, posix.IPPROTO_TCP, posix.TCP_NOTSENT_LOWAT, &unsent, sizeof(int))


# A socket becomes a connection; it is closed again at once where there is no room. NULL without a slot.
cdef Connection* welcome(Engine* e, int fd) noexcept nogil:
    cdef posix.socklen_t size = sizeof(posix.sockaddr_storage)
    cdef Connection* c = take_slot(e)
    cdef bint room
    if c == NULL:
        posix.close(fd)
        return NULL
    c.fd = fd
    c.state = STATE_HANDSHAKE
    c.readable = True
    c.opened_us = e.now_us
    e.accepted += 1
    e.live += 1
    count_live(LIVE_CONNECTIONS, 1)
    count_live(LIVE_SOCKETS, 1)
    posix.getpeername(fd, <posix.sockaddr*> &c.client, &size)
    read_source(c)
    room = relay_add(&e.shared.connections, 1) <= e.bounds.connections or e.bounds.connections == 0
    if room and e.bounds.connections_per_source:
        c.counted = enter_source(&e.shared.sources, c.source, <uint32_t> e.bounds.connections_per_source)
        room = c.counted
    if not room:
        end(e, c, REASON_TOO_MANY_CONNECTIONS)
        return c
    c.contexts = e.contexts
    c.contexts.references += 1
    configure_socket(fd)
    c.interest = posix.EPOLLIN
    if watch(e, posix.EPOLL_CTL_ADD, fd, posix.EPOLLIN, mark(ON_TCP, c)) < 0:
        end(e, c, REASON_NO_DESCRIPTORS)
        return c
    # From now: the turn may have begun before the client came, if the machine stood still in between.
    set_deadline(e, c, posix.monotonic_us() + e.bounds.handshake_us)
    return c


cdef void watch_listeners(Engine* e, bint accepting) noexcept nogil:
    cdef uint32_t wanted = posix.EPOLLIN if accepting else 0
    cdef int i
    if e.accepting == accepting:
        return
    e.accepting = accepting
    for i in range(e.listener_count):
        watch(e, posix.EPOLL_CTL_MOD, e.listeners[i], wanted, <uint64_t> ON_LISTENER << 56 | i)


# A newcomer is accepted with all the descriptors that it will need, or waits in the kernel's queue; running calls go on.
cdef void on_listener(Engine* e, int listener) noexcept nogil:
    if pthread_mutex_trylock(&e.shared.descriptors) != 0:
        return
    for _ in range(ACCEPTS_A_TURN):
        if not accept_one(e, listener):
            break
    pthread_mutex_unlock(&e.shared.descriptors)


cdef bint accept_one(Engine* e, int listener) noexcept nogil:
    cdef int fd = -1
    cdef Connection* c
    if fill(&e.reserve, e.command_fd, RESERVED_DESCRIPTORS):
        fd = posix.accept4(listener, NULL, NULL, posix.SOCK_NONBLOCK | posix.SOCK_CLOEXEC)
    if fd < 0:
        if posix.errno in (posix.EMFILE, posix.ENFILE, posix.ENOBUFS, posix.ENOMEM):
            give_up(&e.reserve)
            watch_listeners(e, False)
            e.accept_again_us = e.now_us + ACCEPT_PAUSE_US
        return False
    c = welcome(e, fd)
    if c != NULL and c.state == STATE_HANDSHAKE:
        hand_on(&e.reserve, &c.reserve)
    return True


# ---- 2 handshake


cdef void leave_contexts(Engine* e, Connection* c) noexcept nogil:
    if c.contexts != NULL:
        c.contexts.references -= 1
        if c.contexts.retired and not c.contexts.references:
            free_contexts(c.contexts)
        c.contexts = NULL


# Takes what a client says first; False if that ends it.
cdef bint take_first(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not take_hello(&c.wire.hello, data, size):
        c.failure = words_of(c.wire.hello.fault)
        end(e, c, REASON_HANDSHAKE_FAILED)
        return False
    if not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
        return False
    return True


# Reads until the ClientHello is whole, and only then makes a session of TLS: it takes 40 KiB, and who begins a hello and
# does not end it must not have them. True once there is one.
cdef bint begin_tls(Engine* e, Connection* c) noexcept nogil:
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
    if c.ssl == NULL or not lay_wire(WIRES, c.ssl, &c.wire, c.fd, &c.held):
        end(e, c, REASON_NO_DESCRIPTORS)
        return False
    tls.SSL_set_accept_state(c.ssl)
    return True


cdef void on_handshake(Engine* e, Connection* c) noexcept nogil:
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
        c.failure = failure_words()
    end(e, c, REASON_HANDSHAKE_FAILED)


# OpenSSL's words for what went wrong, or NULL: OpenSSL 3 calls a bare end of the stream an error too.
cdef const char* failure_words() noexcept nogil:
    cdef const char* words = tls.ERR_reason_error_string(tls.ERR_get_error())
    if words != NULL and strcmp(words, b"unexpected eof while reading") == 0:
        return NULL
    return words


cdef void on_established(Engine* e, Connection* c) noexcept nogil:
    cdef const unsigned char* chosen = NULL
    cdef unsigned int size = 0
    cdef const char* asked = tls.SSL_get_servername(c.ssl, tls.TLSEXT_NAMETYPE_host_name)
    if asked != NULL:
        lower(asked, c.server_name)
    c.version = tls.SSL_get_version(c.ssl)
    tls.SSL_get0_alpn_selected(c.ssl, &chosen, &size)
    c.alpn = 0 if not size else 1 if size == 8 else 2 if size == 9 else 3
    leave_contexts(e, c)
    end_hello(&c.wire)
    c.retry = 0
    c.state = STATE_DECIDING
    set_deadline(e, c, e.now_us + e.bounds.first_bytes_us)
    watch_client(e, c)
    if c.alpn >= 2:
        on_turn(e, c)
    elif unread(c):
        see_again(e, c)


# ---- 3 first bytes


cdef void on_decide(Engine* e, Connection* c) noexcept nogil:
    cdef FirstBytes verdict = decide(front(&c.held), c.held.size)
    cdef uint32_t shown = c.held.size if c.held.size < 8 else 8
    if verdict == FIRST_BYTES_NEED_MORE:
        return
    if verdict == FIRST_BYTES_TURN:
        on_turn(e, c)
    elif verdict == FIRST_BYTES_HTTP:
        on_http(e, c)
    else:
        memcpy(c.first_bytes, front(&c.held), shown)
        c.fault = shown
        end(e, c, REASON_FIRST_BYTES_UNKNOWN)


cdef void on_turn(Engine* e, Connection* c) noexcept nogil:
    c.state = STATE_WAITING
    # What has been read stays small: one read waits for control.
    c.readable = False
    watch_client(e, c)
    set_deadline(e, c, e.now_us + e.bounds.attach_us)
    owe(e, c, NOTICE_TURN_OPENED)


# ---- 4 uplink


# True while a read would give something. With read-ahead all of the socket's bytes are in TLS already, unless there were
# more than it takes at once: asking the kernel again would find nothing.
cdef inline bint unread(Connection* c) noexcept nogil:
    return not c.wire.drained or tls.SSL_has_pending(c.ssl)


# Reads what TLS has, until it has no more or others are due.
cdef void on_client(Engine* e, Connection* c) noexcept nogil:
    cdef int size
    if c.more:
        c.more = False
        on_stream(e, c, NULL, 0)
        if c.more:
            see_again(e, c)
            return
    for _ in range(READS_A_TURN):
        if not c.readable or c.state in (STATE_CLOSING, STATE_DEAD):
            return
        tls.ERR_clear_error()
        if c.wire.silent:
            forgive(&c.wire, e.now_us)
        size = tls.SSL_read(c.ssl, e.plain, PLAIN_BYTES)
        c.spoken_us = e.now_us
        if size <= 0:
            on_read_error(e, c, tls.SSL_get_error(c.ssl, size))
            return
        note_data(&c.wire)
        on_plain(e, c, e.plain, size)
        if c.state in (STATE_CLOSING, STATE_DEAD):
            return
        if c.more:
            break
        if not unread(c):
            return
    see_again(e, c)


cdef void on_read_error(Engine* e, Connection* c, int error) noexcept nogil:
    if is_flooded(&c.wire):
        end(e, c, REASON_TLS_FLOOD)
    elif error == tls.SSL_ERROR_WANT_READ:
        return
    elif error == tls.SSL_ERROR_WANT_WRITE:
        # The client has TLS itself answer (KeyUpdate), again and again, and reads none of the answers.
        end(e, c, REASON_SLOW_CLIENT)
    elif error == tls.SSL_ERROR_ZERO_RETURN:
        on_client_end(e, c)
    elif error == tls.SSL_ERROR_SYSCALL:
        # An alert that could not be written says EAGAIN: that client does not read its answers either.
        c.fault = posix.errno
        end(e, c, REASON_SLOW_CLIENT if c.fault == posix.EAGAIN else REASON_CLIENT_LOST)
    else:
        on_tls_error(e, c)


cdef void on_tls_error(Engine* e, Connection* c) noexcept nogil:
    c.failure = failure_words()
    if c.failure == NULL:
        on_client_end(e, c)
    else:
        end(e, c, REASON_TLS_BROKEN)


cdef void on_client_end(Engine* e, Connection* c) noexcept nogil:
    c.ended = True
    if c.state == STATE_HTTP and c.pipe >= 0:
        watch_client(e, c)
        if not c.held.size:
            posix.shutdown(c.pipe, posix.SHUT_WR)
    else:
        if c.carrier == CARRIER_CONNECT_UDP and c.state == STATE_MEDIA and (c.held.size or c.carriage.capsules.skip):
            c.failure = b"within a capsule"
        end(e, c, REASON_CLIENT_CLOSED)


cdef void on_plain(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
    if c.state == STATE_MEDIA:
        on_stream(e, c, data, size)
    elif c.state == STATE_HTTP:
        on_request_bytes(e, c, data, size)
    elif not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
    elif c.state == STATE_DECIDING:
        on_decide(e, c)


# Cuts units out of what is held and what is new; without a rest nothing is copied.
cdef void on_stream(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t used
    if not c.held.size:
        used = cut(e, c, data, size)
        if c.state == STATE_MEDIA and used < size:
            if append(&c.held, data + used, size - used):
                note_part(e, c)
            else:
                end(e, c, REASON_NO_DESCRIPTORS)
        return
    if size and not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    used = cut(e, c, front(&c.held), c.held.size)
    if c.state == STATE_MEDIA and used:
        drop_front(&c.held, used)
    note_part(e, c)


# A part of a unit waits. The first unit of a flow has a deadline.
cdef inline void note_part(Engine* e, Connection* c) noexcept nogil:
    if not c.counters.uplink_packets and not c.first_byte_us and c.held.size and c.allocation_due_us:
        c.first_byte_us = e.now_us
        c.allocation_due_us = sooner(c.allocation_due_us, e.now_us + e.bounds.first_bytes_us)
        arm(e, c)


# Sends what is whole; how many bytes are done with.
cdef uint32_t cut(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
    if c.carrier == CARRIER_TURN:
        return send_units(e, c, data, size)
    if c.carrier == CARRIER_CONNECT_UDP:
        return send_payloads(e, c, data, size)
    return send_messages(e, c, data, size)


cdef uint32_t send_units(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t offset = 0
    cdef Unit unit
    cdef int measured, sent = 0
    while c.state == STATE_MEDIA:
        if sent == UNITS_A_TURN:
            c.more = True
            break
        sent += 1
        measured = measure_unit(data + offset, size - offset, &unit)
        if measured == UNIT_WHOLE:
            forward(e, c, data + offset, unit.size)
            offset += unit.stream_size
            if c.admission.asked != NULL:
                break
        elif measured == UNIT_NEEDS_MORE:
            break
        else:
            c.fault = measured
            end(e, c, REASON_BROKEN_FRAME)
    return offset


# One STUN or ChannelData message on its way up, unless control is asked first.
cdef inline void forward(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if unit[0] < 0x40:
        if c.admission.asks and must_ask(e, c, unit, size):
            return
        remember(e, c, unit, size)
    else:
        meter(e, &c.uplink_meter, unit + 4, size - 4)
    send_up(e, c, unit, size)


# WebSocket: media, and what the protocol itself wants answered.
cdef uint32_t send_messages(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
    cdef Carriage* carriage = c.carriage
    cdef uint32_t offset = 0
    cdef int got, frames = 0
    cdef Message message
    carriage.heard_us = e.now_us
    while c.state == STATE_MEDIA and c.admission.asked == NULL:
        if frames == UNITS_A_TURN:
            c.more = True
            break
        frames += 1
        got = read_message(&carriage.web, data + offset, size - offset, &message)
        if got == WEB_NEEDS_MORE:
            break
        if got > 0:
            offset += message.used
        if got == WEB_WHOLE:
            got = on_message(e, c, &message)
            if carriage.web.message.size and not carriage.web.opcode:
                clear_buffer(&carriage.web.message)
        if got < 0:
            break_web(e, c, got)
    send_pongs(e, c)
    return offset


# 0, or what is wrong with it.
cdef int on_message(Engine* e, Connection* c, Message* message) noexcept nogil:
    if message.opcode == WEB_BINARY:
        if c.carrier == CARRIER_SESSION:
            return send_channel(e, c, message.payload, message.size)
        return send_message(e, c, message.payload, message.size)
    if message.opcode == WEB_TEXT:
        if not admit_text(c.carriage):
            return WEB_TOO_MANY_TEXTS
        report(e, c, NOTICE_TEXT, message.payload, message.size, 0, 0)
    elif message.opcode == WEB_PING:
        add_pong(e, c, message.payload, message.size)
    elif message.opcode == WEB_CLOSE:
        on_close_frame(e, c, message.payload, message.size)
    return 0


cdef int send_message(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint32_t unit = <uint32_t> datagram_unit(message, size)
    if not unit or (unit != size and ((unit + 3) & ~<uint32_t> 3) != size):
        return WEB_NO_TURN_MESSAGE
    forward(e, c, message, unit)
    return 0


# A channel number with what follows becomes ChannelData where it lies.
cdef int send_channel(Engine* e, Connection* c, uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint8_t* unit = message - WEB_ROOM
    if size < 2 or message[0] & 0xC0 != 0x40:
        return WEB_NO_CHANNEL_NUMBER
    if c.udp >= 0:
        unit[0], unit[1] = message[0], message[1]
        unit[2], unit[3] = <uint8_t> ((size - 2) >> 8), <uint8_t> (size - 2)
        forward(e, c, unit, size + 2)
    return 0


# The pongs of one read leave together.
cdef void add_pong(Engine* e, Connection* c, const uint8_t* payload, uint32_t size) noexcept nogil:
    if e.said + 2 + size > PLAIN_BYTES:
        send_pongs(e, c)
    write_control_head(e.record + e.said, WEB_PONG, size)
    memcpy(e.record + e.said + 2, payload, size)
    e.said += 2 + size


cdef void send_pongs(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t size = e.said
    e.said = 0
    if size and c.state == STATE_MEDIA:
        say(e, c, e.record, size)


# The client closes: it gets its code back.
cdef void on_close_frame(Engine* e, Connection* c, const uint8_t* payload, uint32_t size) noexcept nogil:
    send_pongs(e, c)
    note_close(c.carriage, payload, size)
    c.failure = c.carriage.words
    end(e, c, REASON_CLIENT_CLOSED)


cdef void break_web(Engine* e, Connection* c, int fault) noexcept nogil:
    send_pongs(e, c)
    if c.state != STATE_MEDIA:
        return
    note_web_fault(c.carriage, fault)
    c.failure = c.carriage.words
    end(e, c, REASON_BROKEN_FRAME)


# CONNECT-UDP: datagrams as they are.
cdef uint32_t send_payloads(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t offset = 0
    cdef int got, capsules = 0
    cdef Payload payload
    while c.state == STATE_MEDIA and c.admission.asked == NULL:
        if capsules == UNITS_A_TURN:
            c.more = True
            break
        capsules += 1
        got = read_capsule(&c.carriage.capsules, data + offset, size - offset, &payload)
        if got == CAPSULE_NEEDS_MORE:
            break
        if got < 0:
            note_capsule_fault(c.carriage, got)
            c.failure = c.carriage.words
            end(e, c, REASON_BROKEN_FRAME)
            break
        offset += payload.used
        if got == CAPSULE_PAYLOAD:
            send_payload(e, c, payload.data, payload.size)
        elif got == CAPSULE_OVERSIZE:
            c.counters.drops[DROP_UPLINK_OVERSIZE] += 1
    return offset


# The client believes that this is UDP, and sends again itself.
cdef void send_payload(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not is_media_datagram(data, size) or (c.admission.asks and not is_turn_datagram(data, size)):
        c.counters.drops[DROP_UPLINK_MALFORMED] += 1
        return
    if size >= STUN_HEADER_BYTES and data[0] <= 3:
        if c.admission.asks and must_ask(e, c, data, size):
            return
        if datagram_unit(data, size):
            remember(e, c, data, size)
    else:
        meter_datagram(e, &c.uplink_meter, data, size)
    send_up(e, c, data, size)


# True if the message is an Allocate of a user, or one of its kind: it waits for control's word, and so does what the client says after it;
# one that is too long to wait is dropped.
cdef bint must_ask(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    if not is_to_ask(message, size):
        return False
    if size > MAX_ASKED_BYTES:
        drop(c, DROP_UPLINK_OVERSIZE, TRAFFIC_CONTROL)
        return True
    keep_bytes(&c.admission.asked, &c.admission.asked_size, message, size)
    if c.admission.asked == NULL:
        end(e, c, REASON_NO_DESCRIPTORS)
        return True
    c.readable = False
    watch_client(e, c)
    c.answer_due_us = e.now_us + e.bounds.attach_us
    arm(e, c)
    report(e, c, NOTICE_ALLOCATE, message, size, 0, 0)
    return True


# True if the message grants an allocation, or brings one back: control answers in its place. One at a time waits, and
# no server grants two.
cdef bint must_wait_for_control(Engine* e, Connection* c, const uint8_t* message, uint32_t size, bint back) noexcept nogil:
    if load16(message) != ALLOCATE_SUCCESS and not back:
        return False
    if c.admission.granted:
        drop(c, DROP_DOWNLINK_DUPLICATE, TRAFFIC_CONTROL)
        return True
    c.admission.granted = True
    c.answer_due_us = e.now_us + e.bounds.attach_us
    arm(e, c)
    report(e, c, NOTICE_GRANTED, message, size, 0, 0)
    return True


cdef void on_control_spoke(Connection* c) noexcept nogil:
    if not is_waiting_for_control(&c.admission):
        c.answer_due_us = 0


# Tells Python something with its bytes. Where it does not take what it is told, the connection ends.
cdef void report(
    Engine* e, Connection* c, uint32_t notice, const uint8_t* data, uint32_t size, int number, int fault
) noexcept nogil:
    cdef Event event
    cdef uint64_t one = 1
    cdef int64_t most = MESSAGES_BYTES // 2 if notice == NOTICE_TEXT else MESSAGES_BYTES
    event.identity = <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index
    event.notice, event.number, event.fault, event.size, event.data = notice, number, fault, size, NULL
    if size:
        event.data = malloc(size)
        if event.data == NULL:
            end(e, c, REASON_NO_DESCRIPTORS)
            return
        memcpy(event.data, data, size)
    # Anyone may send texts. They leave half of the room to what upstreams say and what clients ask of control.
    if notice == NOTICE_TEXT and is_half_full(&e.events):
        most = 0
    if relay_add(&e.message_bytes, size) > most or not put(&e.events, &event):
        relay_add(&e.message_bytes, -<int64_t> size)
        free(event.data)
        end(e, c, REASON_CONTROL_TIMEOUT)
        return
    posix.write(e.event_fd, &one, sizeof(one))


# A STUN message on its way up: a request is sent again until it is answered, but for those who do that themselves.
cdef void remember(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t kind = load16(message)
    if kind & CLASS_BITS:
        return
    if kind == ALLOCATE_REQUEST:
        c.allocating = True
        remember_name(c, message, size)
    if c.releases and size <= MAX_KEPT_REQUEST_BYTES and (kind == ALLOCATE_REQUEST or kind == REFRESH_REQUEST):
        keep_bytes(&c.request, &c.request_size, message, size)
    if c.carrier != CARRIER_CONNECT_UDP:
        on_request(c.transactions, e.now_us, message, size)
        arm(e, c)


# The name of the last Allocate that had one. Python may read it meanwhile, so it never moves.
cdef void remember_name(Connection* c, const uint8_t* request, uint32_t size) noexcept nogil:
    cdef const uint8_t* name = find_attribute(request, size, ATTRIBUTE_USERNAME, 1)
    cdef uint32_t length
    if name == NULL:
        return
    if c.username == NULL:
        c.username = <char*> calloc(1, USERNAME_BYTES + 1)
    if c.username != NULL:
        length = load16(name - 2)
        length = length if length < USERNAME_BYTES else USERNAME_BYTES
        memcpy(c.username, name, length)
        c.username[length] = 0
        c.username_size = length


# Counts an RTP packet. A meter is made for a flow's first one; without memory there is none.
cdef void meter(Engine* e, Meter** kept, const uint8_t* packet, uint32_t size) noexcept nogil:
    if not size or packet[0] >> 6 != 2:
        return
    if kept[0] == NULL:
        kept[0] = <Meter*> calloc(1, sizeof(Meter))
        if kept[0] == NULL:
            return
    meter_packet(kept[0], e.now_us, packet, size, e.bounds.playout_us, e.bounds.clocks)


# RTP in ChannelData, or bare.
cdef void meter_datagram(Engine* e, Meter** kept, const uint8_t* data, uint32_t size) noexcept nogil:
    if not size or data[0] & 0xC0 != 0x40:
        meter(e, kept, data, size)
        return
    size = <uint32_t> datagram_unit(data, size)
    if size:
        meter(e, kept, data + 4, size - 4)


cdef inline void drop(Connection* c, int reason, int traffic) noexcept nogil:
    c.counters.drops[reason] += 1
    c.counters.dropped[traffic] += 1


# Copies a datagram for whoever has asked for it. The flow's own address goes before its first one, and before the first
# from a fresh port.
cdef void copy_datagram(Connection* c, TapKind kind, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef Tap* tap = c.tap
    cdef posix.sockaddr_storage local
    cdef posix.socklen_t length = sizeof(local)
    cdef int64_t now = posix.monotonic_us()
    if not tap.placed and posix.getsockname(c.udp, <posix.sockaddr*> &local, &length) == 0:
        tap.placed = put_tapped(tap, TAP_LOCAL, now, &local, length)
    if not tap.placed or not put_tapped(tap, kind, now, data, size):
        tap.missed += 1


cdef void send_up(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if posix.send(c.udp, unit, size, posix.MSG_DONTWAIT) >= 0:
        count_up(e, c, unit, size)
    else:
        on_send_error(e, c, unit, size, posix.errno)


cdef inline void count_up(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if c.tap != NULL:
        copy_datagram(c, TAP_UPLINK, unit, size)
    c.counters.uplink_packets += 1
    c.counters.uplink_bytes += size
    e.sent_up += 1


# A request that control or a timer sends. What control asks for a session is in no count, as its answers are not; a
# tap sees it like all that leaves.
cdef void send_request(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    if posix.send(c.udp, message, size, posix.MSG_DONTWAIT) >= 0:
        count_sent(e, c, message, size)
    else:
        on_send_error(e, c, message, size, posix.errno)


# For the slow ways up. Of a session only media counts; send_up, which each packet takes, is given nothing else of one.
cdef void count_sent(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if c.carrier != CARRIER_SESSION or unit[0] >= 0x40:
        count_up(e, c, unit, size)
    elif c.tap != NULL:
        copy_datagram(c, TAP_UPLINK, unit, size)


# The same for a copy of a request. A long one may have met a router that drops it and says nothing: it goes in fragments.
cdef void send_up_again(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    cdef int fault
    c.counters.retransmissions += 1
    if not is_unsure(unit, size) or c.uplink.target_size:
        send_request(e, c, unit, size)
        return
    fault = send_in_fragments(c.udp, unit, size)
    if fault:
        on_send_error(e, c, unit, size, fault)
    else:
        count_sent(e, c, unit, size)


cdef void on_send_error(Engine* e, Connection* c, const uint8_t* unit, uint32_t size, int fault) noexcept nogil:
    fault = settle(e, c, unit, size, fault)
    if not fault:
        count_sent(e, c, unit, size)
    elif is_no_room(fault):
        drop(c, DROP_UPLINK_FULL, traffic_of(unit, size))
    elif fault == posix.EMSGSIZE:
        drop(c, DROP_UPLINK_OVERSIZE, traffic_of(unit, size))
    elif c.udp >= 0 and c.state == STATE_MEDIA:
        drop(c, DROP_UPLINK_REFUSED, traffic_of(unit, size))


# What an error of ``send`` comes to: 0 if the datagram has gone in the end, or why it has not. If nobody listens at the
# upstream, that is acted upon.
cdef int settle(Engine* e, Connection* c, const uint8_t* unit, uint32_t size, int fault) noexcept nogil:
    cdef News news
    cdef bint late = c.uplink.target_size != 0
    fault = send_after_all(&c.uplink, c.udp, e.now_us, unit, size, fault, &news)
    if late and not c.uplink.target_size:
        watch_upstream(e, c)
    c.uplink.refused_for = 0 if is_no_room(fault) or fault == posix.EMSGSIZE else fault
    if is_proof(&c.uplink, e.now_us, fault):
        on_upstream_gone(e, c, REASON_UPSTREAM_UNREACHABLE, fault)
    else:
        on_news(e, c, news)
    return fault


# ICMP has said something of an earlier datagram.
cdef void on_news(Engine* e, Connection* c, News news) noexcept nogil:
    if news == NEWS_OVERSIZE:
        # A router further on says that it was too long; the upstream is still there.
        c.counters.drops[DROP_UPLINK_OVERSIZE] += 1
    elif news == NEWS_DOUBT and not c.doubt_since_us and c.carrier != CARRIER_CONNECT_UDP:
        c.doubt_since_us = e.now_us
        arm(e, c)


# A session outlives its upstream: control moves it to another one.
cdef void on_upstream_gone(Engine* e, Connection* c, int reason, int fault) noexcept nogil:
    cdef uint32_t notice = NOTICE_SILENT if reason == REASON_UPSTREAM_SILENT else NOTICE_UNREACHABLE
    if c.carrier != CARRIER_SESSION:
        c.fault = fault
        end(e, c, reason)
        return
    leave_upstream(e, c)
    c.answer_due_us = e.now_us + e.bounds.attach_us
    arm(e, c)
    report(e, c, notice, NULL, 0, c.carriage.moves, fault)


cdef void leave_upstream(Engine* e, Connection* c) noexcept nogil:
    if c.udp >= 0:
        watch(e, posix.EPOLL_CTL_DEL, c.udp, 0, 0)
        posix.close(c.udp)
        c.udp = -1
        count_live(LIVE_SOCKETS, -1)
    if c.tap != NULL:
        end_tap(c.tap)
        c.tap = NULL
    clear_transactions(c.transactions)
    c.transactions.answered_count = 0
    c.doubt_since_us = 0
    c.answer_due_us = 0


# ---- 5 downlink


# Voice comes one packet at a time, so one is taken. A flow that was heard in the turn before has more of them coming
# than that: then several are, and what is left is told of again.
cdef void on_upstream(Engine* e, Connection* c) noexcept nogil:
    cdef bint often = e.turns - c.heard_turn <= 1
    cdef ssize_t size
    c.heard_turn = e.turns
    if often:
        take_datagrams(e, c)
        return
    size = posix.recv(c.udp, e.vectors[0].iov_base, e.vectors[0].iov_len, posix.MSG_DONTWAIT)
    if size < 0:
        on_upstream_error(e, c)
        return
    c.heard_us = e.now_us
    size = take_datagram(e, c, <uint8_t*> e.vectors[0].iov_base, <uint32_t> size, 0)
    if size and c.state == STATE_MEDIA:
        write_client(e, c, e.record, <uint32_t> size)


cdef void take_datagrams(Engine* e, Connection* c) noexcept nogil:
    cdef int i, got
    cdef uint32_t filled = 0
    got = posix.recvmmsg(c.udp, e.messages, DATAGRAMS_A_TURN, posix.MSG_DONTWAIT, NULL)
    if got < 0:
        on_upstream_error(e, c)
        return
    c.heard_us = e.now_us
    for i in range(got):
        filled = take_datagram(e, c, <uint8_t*> e.vectors[i].iov_base, e.messages[i].msg_len, filled)
        if c.state != STATE_MEDIA:
            return
    if filled:
        write_client(e, c, e.record, filled)


cdef void on_upstream_error(Engine* e, Connection* c) noexcept nogil:
    cdef int fault = posix.errno
    if is_proof(&c.uplink, e.now_us, fault):
        on_upstream_gone(e, c, REASON_UPSTREAM_UNREACHABLE, fault)
    elif fault != posix.EAGAIN and fault != posix.EINTR:
        on_news(e, c, news_of(fault))


# Puts what a datagram brings into the record of this turn, of which ``filled`` bytes are; how many are then.
cdef uint32_t take_datagram(Engine* e, Connection* c, uint8_t* data, uint32_t size, uint32_t filled) noexcept nogil:
    if c.tap != NULL:
        copy_datagram(c, TAP_DOWNLINK, data, size)
    if c.carrier == CARRIER_CONNECT_UDP:
        return take_payload(e, c, data, size, filled)
    size = <uint32_t> datagram_unit(data, size)
    if not size:
        c.counters.drops[DROP_DOWNLINK_MALFORMED] += 1
    elif data[0] >= 0x40 or on_stun(e, c, data, size):
        return deliver(e, c, data, size, filled)
    return filled


cdef uint32_t take_payload(Engine* e, Connection* c, uint8_t* data, uint32_t size, uint32_t filled) noexcept nogil:
    cdef bint back = False
    if not is_media_datagram(data, size):
        c.counters.drops[DROP_DOWNLINK_MALFORMED] += 1
        return filled
    if size >= STUN_HEADER_BYTES and data[0] <= 3:
        if datagram_unit(data, size):
            if load16(data) == ALLOCATE_ERROR and is_redirected(e, c, data, size):
                return filled       # the client sends its request again, as one does over UDP
            back = brings_back(e, c, data, size)
            note_allocation(e, c, data, size)
        else:
            c.heard_media_us = e.now_us
        if c.admission.asks and must_wait_for_control(e, c, data, size, back):
            return filled
    else:
        c.heard_media_us = e.now_us
    return deliver(e, c, data, size, filled)


# Matches an answer with its request; False if it must not reach the client.
cdef bint on_stun(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t kind = load16(message)
    cdef Answer answer = ANSWER_UNKNOWN
    cdef bint back
    if kind == ALLOCATE_ERROR and c.carrier != CARRIER_SESSION and not c.allocated_until_us:
        if is_stale(e, c, message, size) or is_redirected(e, c, message, size):
            return False
    if kind & RESPONSE_BIT:
        if answers_question(&c.question, message):
            return False        # a sign of life, like any datagram; nobody else has asked
        answer = on_response(c.transactions, message + TRANSACTION_ID_OFFSET)
    if answer == ANSWER_DUPLICATE:
        if kind == ALLOCATE_ERROR:
            note_allocation(e, c, message, size)
        drop(c, DROP_DOWNLINK_DUPLICATE, TRAFFIC_CONTROL)
        return False
    if c.carrier == CARRIER_SESSION:
        if answer == ANSWER_FIRST or admit_unasked(c.carriage):
            report(e, c, NOTICE_STUN, message, size, c.carriage.moves, 0)
        else:
            drop(c, DROP_DOWNLINK_FULL, traffic_of(message, size))
        return False
    back = brings_back(e, c, message, size)
    note_allocation(e, c, message, size)
    return not (c.admission.asks and must_wait_for_control(e, c, message, size, back))


# True for a Refresh that gives a lifetime to an allocation which had ended as far as we knew. coturn keeps one that was
# given up for a second, and one that has run out may have been refreshed just before.
cdef bint brings_back(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* value
    if load16(message) != REFRESH_SUCCESS or c.allocated_until_us > e.now_us:
        return False
    value = find_attribute(message, size, ATTRIBUTE_LIFETIME, 4)
    return value == NULL or load32(value) != 0


# How long the client's allocation lives, for whoever may have to release it.
cdef void note_allocation(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t kind = load16(message)
    cdef const uint8_t* value
    if kind == ALLOCATE_ERROR:
        # A port where another client's allocation is rests like one that has an allocation of its own.
        c.allocating = error_code(message, size) == ALLOCATION_MISMATCH
    elif kind == ALLOCATE_SUCCESS or kind == REFRESH_SUCCESS:
        value = find_attribute(message, size, ATTRIBUTE_LIFETIME, 4)
        c.allocating = False
        if kind == ALLOCATE_SUCCESS:
            c.both_families = count_attributes(message, size, ATTRIBUTE_XOR_RELAYED_ADDRESS) > 1
        elif c.both_families and value != NULL and not load32(value):
            return      # one address may have been given up, and the other lives (RFC 8656 section 7.2)
        if value == NULL:
            c.allocated_until_us = e.now_us + ALLOCATION_LIFETIME_US
        else:
            c.allocated_until_us = e.now_us + <int64_t> load32(value) * 1000000 if load32(value) else 0
            c.idle_since_us = e.now_us


# An Allocate met another client's stale allocation (437): control is asked for a socket on a fresh port, and the
# request goes out again from there. The answer is kept, in case there is none.
cdef bint is_stale(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef int position = find_pending(c.transactions, message + TRANSACTION_ID_OFFSET)
    if position < 0 or error_code(message, size) != ALLOCATION_MISMATCH or c.stale_answer != NULL:
        return False
    if c.fresh_ports >= MAX_FRESH_PORTS or e.now_us - c.transactions.pending[position].first_sent_us >= FRESH_PORTS_US:
        return False
    keep_bytes(&c.stale_answer, &c.stale_size, message, size)
    if c.stale_answer == NULL:
        return False
    c.fresh_ports += 1
    owe(e, c, NOTICE_STALE)
    return True


# The upstream names another server (300): control is asked for a socket to there, if that may be. Over a stream the
# request goes out again from it. A copy of the answer, meanwhile, is nobody's.
cdef bint is_redirected(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* identity = message + TRANSACTION_ID_OFFSET
    if not c.follows or c.allocated_until_us or error_code(message, size) != TRY_ALTERNATE:
        return False
    if c.stale_answer != NULL:
        return memcmp(c.stale_answer + TRANSACTION_ID_OFFSET, identity, TRANSACTION_ID_BYTES) == 0
    if c.hops >= MAX_HOPS or find_attribute(message, size, ATTRIBUTE_ALTERNATE_SERVER, 8) == NULL:
        return False
    if c.carrier != CARRIER_CONNECT_UDP and find_pending(c.transactions, identity) < 0:
        return False
    keep_bytes(&c.stale_answer, &c.stale_size, message, size)
    if c.stale_answer == NULL:
        return False
    c.hops += 1
    report(e, c, NOTICE_ALTERNATE, message, size, 0, 0)
    return True


# Puts one unit into the record of this turn, framed; or lets it wait, where the client takes less than comes.
cdef uint32_t deliver(Engine* e, Connection* c, uint8_t* unit, uint32_t size, uint32_t filled) noexcept nogil:
    cdef uint32_t framed
    cdef uint8_t* frame
    cdef int traffic
    cdef bint from_peer
    if must_wait(e, c) or (
        (c.pace.holds_data or c.schedule.data_bytes) and traffic_of(unit, size) == TRAFFIC_DATA
    ):
        traffic, from_peer = traffic_of(unit, size), is_from_peer(c.carrier, unit)
        frame = frame_unit(c.carrier, unit, size, &framed)
        let_wait(e, c, traffic, from_peer, frame, size, framed)
        return filled
    frame = frame_unit(c.carrier, unit, size, &framed)
    hand_over(e, c, unit, size, e.now_us)
    if filled and filled + framed > PLAIN_BYTES:
        write_client(e, c, e.record, filled)
        filled = 0
        if c.state != STATE_MEDIA:
            return 0
    if framed > PLAIN_BYTES:
        write_client(e, c, frame, framed)
        return 0
    memcpy(e.record + filled, frame, framed)
    return filled + framed


# A message of ours among those of the upstream.
cdef void reply(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    memcpy(e.vectors[0].iov_base, message, size)
    size = deliver(e, c, <uint8_t*> e.vectors[0].iov_base, size, 0)
    if size and c.state == STATE_MEDIA:
        write_client(e, c, e.record, size)


# Whole frames that are no units: first of what waits, and in no count.
cdef void say(Engine* e, Connection* c, const uint8_t* frames, uint32_t size) noexcept nogil:
    if must_wait(e, c):
        let_wait(e, c, TRAFFIC_CONTROL, False, frames, NO_UNIT, size)
    else:
        write_client(e, c, frames, size)


# Data waits in more cases than these.
cdef inline bint must_wait(Engine* e, Connection* c) noexcept nogil:
    return c.out.size != 0 or is_urgent(&c.schedule) or falls_behind(e, c)


cdef void set_rules(Engine* e, Connection* c, Rules* rules) noexcept nogil:
    rules.max_age_us, rules.data_age_us = c.max_age_us, e.bounds.data_age_us
    rules.media_bytes, rules.control_bytes = e.bounds.media_bytes, e.bounds.control_bytes
    rules.data_bytes = e.bounds.data_bytes
    memset(rules.old, 0, sizeof(rules.old))
    memset(rules.full, 0, sizeof(rules.full))


cdef void count_drops(Connection* c, const Rules* rules) noexcept nogil:
    cdef int traffic
    for traffic in range(TRAFFICS):
        c.counters.drops[DROP_DOWNLINK_OLD] += rules.old[traffic]
        c.counters.drops[DROP_DOWNLINK_FULL] += rules.full[traffic]
        c.counters.dropped[traffic] += rules.old[traffic] + rules.full[traffic]


cdef void let_wait(
    Engine* e, Connection* c, int traffic, bint from_peer, const uint8_t* frame, uint32_t size, uint32_t framed
) noexcept nogil:
    cdef Rules rules
    cdef Put put
    set_rules(e, c, &rules)
    if traffic == TRAFFIC_CONTROL and from_peer:
        traffic = judge_peer(&c.schedule, &rules, e.now_us, framed)
    put = put_frame(&c.schedule, &rules, e.now_us, traffic, frame, size, framed)
    count_drops(c, &rules)
    if put == PUT_REFUSED and from_peer:
        # There was no memory: a peer must not end the connection.
        drop(c, DROP_DOWNLINK_FULL, traffic)
    elif put == PUT_REFUSED:
        end(e, c, REASON_SLOW_CLIENT)
    elif put == PUT_DONE:
        if traffic == TRAFFIC_DATA and c.pace.holds_data:
            ask_again(e, c)
        watch_client(e, c)


# TCP has taken what it does not deliver: more would only grow old there, where nothing can be dropped.
cdef bint falls_behind(Engine* e, Connection* c) noexcept nogil:
    if is_behind(&c.pace, c.fd, c.wire.given, c.link.least_rtt_us, e.now_us, c.schedule.data_bytes != 0):
        ask_again(e, c)
        return True
    if c.pace.holds_data and c.schedule.data_bytes:
        ask_again(e, c)
    return False


cdef inline void ask_again(Engine* e, Connection* c) noexcept nogil:
    if not c.behind:
        c.behind = True
        c.behind_next = e.behind
        e.behind = c


# Nothing tells when TCP has caught up, so it is asked.
cdef void see_those_behind(Engine* e) noexcept nogil:
    cdef Connection* c = e.behind
    cdef Connection* following
    e.behind = NULL
    e.behind_seen_us = e.now_us
    while c != NULL:
        following = c.behind_next
        c.behind = False
        if not falls_behind(e, c):
            if not c.out.size:
                write_waiting(e, c)
            if c.state == STATE_MEDIA:
                watch_client(e, c)
        c = following


cdef void forget_behind(Engine* e, Connection* c) noexcept nogil:
    cdef Connection** link = &e.behind
    if not c.behind:
        return
    while link[0] != c:
        link = &link[0].behind_next
    link[0] = c.behind_next
    c.behind = False


# A unit goes to TLS, and can be dropped no more: it is counted, and metered as the client will see it. Of a session
# media is all that comes here, and the first four bytes are no header any more.
cdef void hand_over(Engine* e, Connection* c, const uint8_t* unit, uint32_t size, int64_t arrived_us) noexcept nogil:
    cdef int64_t delay_us = e.now_us - arrived_us
    c.counters.downlink_packets += 1
    c.counters.downlink_bytes += size
    record_delay(&c.delays, delay_us)
    if c.carrier == CARRIER_CONNECT_UDP:
        meter_datagram(e, &c.downlink_meter, unit, size)
    elif size > 4 and (unit[0] >= 0x40 or c.carrier == CARRIER_SESSION):
        meter(e, &c.downlink_meter, unit + 4, size - 4)
    if e.now_us >= c.link_due_us:
        read_link(e, c)


cdef void read_link(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t[posix.TCP_INFO_BYTES] info
    cdef posix.socklen_t size = posix.TCP_INFO_BYTES
    c.link_due_us = e.now_us + LINK_US
    if posix.getsockopt(c.fd, posix.IPPROTO_TCP, posix.TCP_INFO, info, &size) == 0 and size == posix.TCP_INFO_BYTES:
        memcpy(&c.link.rtt_us, info + posix.TCP_INFO_RTT, 4)
        memcpy(&c.link.rtt_variation_us, info + posix.TCP_INFO_RTTVAR, 4)
        memcpy(&c.link.retransmits, info + posix.TCP_INFO_TOTAL_RETRANS, 4)
        memcpy(&c.link.unsent_bytes, info + posix.TCP_INFO_NOTSENT_BYTES, 4)
        memcpy(&c.link.least_rtt_us, info + posix.TCP_INFO_MIN_RTT, 4)
        c.link.known = True


# Encrypts and sends. What TLS cannot send now it has all the same: it is kept, to be offered again just as it was.
cdef void write_client(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int written
    if c.out.size:
        queue(e, c, data, size)
        return
    tls.ERR_clear_error()
    written = tls.SSL_write(c.ssl, data, size)
    c.spoken_us = e.now_us
    if written > 0:
        note_write(&c.pace, c.wire.given, e.now_us, c.link.least_rtt_us)
        if not c.buffered:
            warm(c)
        e.sent_down += 1
    elif is_refused_for_now(e, c, written):
        queue(e, c, data, size)
        c.retry = size
        watch_client(e, c)


# True if TLS will take the same bytes later; the connection is at its end otherwise.
cdef bint is_refused_for_now(Engine* e, Connection* c, int written) noexcept nogil:
    cdef int error = tls.SSL_get_error(c.ssl, written)
    if error == tls.SSL_ERROR_WANT_WRITE:
        return True
    clear_buffer(&c.out)
    c.retry = 0
    if c.state == STATE_CLOSING:
        finish(e, c)
    elif error == tls.SSL_ERROR_WANT_READ:
        # The client has begun a TLS message and does not end it: nothing can be written until it does.
        end(e, c, REASON_TLS_BROKEN)
    else:
        c.fault = posix.errno
        end(e, c, REASON_CLIENT_LOST)
    return False


# A connection that speaks often keeps the TLS buffers that others take and give with every record.
cdef void warm(Connection* c) noexcept nogil:
    c.warmth += 1
    if c.warmth == WARM_AFTER:
        tls.SSL_clear_mode(c.ssl, tls.SSL_MODE_RELEASE_BUFFERS)
        c.buffered = True


cdef void queue(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not append(&c.out, data, size):
        end(e, c, REASON_SLOW_CLIENT)


# The client reads again: what was refused is written first, just as it was; then one record of what waits.
cdef void on_writable(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t size
    cdef int written
    while c.out.size:
        size = c.retry if c.retry else PLAIN_BYTES if c.out.size > PLAIN_BYTES else c.out.size
        tls.ERR_clear_error()
        written = tls.SSL_write(c.ssl, front(&c.out), size)
        if written <= 0:
            if is_refused_for_now(e, c, written):
                c.retry = size
            return
        c.retry = 0
        drop_front(&c.out, written)
        note_write(&c.pace, c.wire.given, e.now_us, c.link.least_rtt_us)
    if c.state == STATE_CLOSING:
        finish(e, c)
        return
    if is_waiting(&c.schedule) and not falls_behind(e, c):
        write_waiting(e, c)
    if c.state in (STATE_CLOSING, STATE_DEAD):
        return
    watch_client(e, c)
    if c.state == STATE_HTTP and c.pipe >= 0:
        watch_pipe(e, c)


# One record of what has waited, in the order of its class. A first unit that is longer is a record of its own, or several.
cdef void write_waiting(Engine* e, Connection* c) noexcept nogil:
    cdef Rules rules
    cdef Frame frame
    cdef uint8_t* unit
    cdef int traffic
    cdef uint32_t filled = 0
    set_rules(e, c, &rules)
    expire(&c.schedule, &rules, e.now_us)
    count_drops(c, &rules)
    traffic = next_class(&c.schedule)
    while traffic != TRAFFICS and not (traffic == TRAFFIC_DATA and c.pace.holds_data):
        frame = first_frame(&c.schedule.queues[traffic])[0]
        if filled and filled + frame.padded > RECORD_BYTES:
            break
        # It lies in the first of the buffers for datagrams, which has room for the longest.
        pop_frame(&c.schedule, traffic, e.datagrams + filled)
        unit = e.datagrams + filled
        filled += frame.padded
        if c.carrier != CARRIER_TURN:
            unit += frame.padded - frame.size
        if frame.size != NO_UNIT:
            hand_over(e, c, unit, frame.size, frame.arrived_us)
        traffic = next_class(&c.schedule)
    note_oldest(&c.schedule)
    if filled:
        write_client(e, c, e.datagrams, filled)


# ---- 6 HTTP


cdef void watch_pipe(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t wanted = 0
    if not c.out.size:
        wanted |= posix.EPOLLIN
    if c.held.size:
        wanted |= posix.EPOLLOUT
    # Nothing wanted is not watched at all: epoll would tell of a hang-up again and again.
    if wanted and not c.pipe_watched:
        watch(e, posix.EPOLL_CTL_ADD, c.pipe, wanted, mark(ON_PIPE, c))
    elif wanted:
        watch(e, posix.EPOLL_CTL_MOD, c.pipe, wanted, mark(ON_PIPE, c))
    elif c.pipe_watched:
        watch(e, posix.EPOLL_CTL_DEL, c.pipe, 0, 0)
    c.pipe_watched = wanted != 0


cdef void on_http(Engine* e, Connection* c) noexcept nogil:
    cdef int[2] pair
    clear_deadline(e, c)
    give_up(&c.reserve)
    if posix.socketpair(posix.AF_UNIX, posix.SOCK_STREAM | posix.SOCK_CLOEXEC | posix.SOCK_NONBLOCK, 0, pair) < 0:
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    c.pipe, c.their_pipe = pair[0], pair[1]
    # An upgrade wants a UDP socket, and may do without one more than others have.
    fill(&c.reserve, e.command_fd, 1)
    count_live(LIVE_SOCKETS, 2)
    c.state = STATE_HTTP
    owe(e, c, NOTICE_HTTP_OPENED)
    on_pipe_writable(e, c)


# The client is not read while control does not take what it has said.
cdef void on_request_bytes(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not append(&c.held, data, size):
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    on_pipe_writable(e, c)


cdef void on_pipe_writable(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t written = 0
    if c.held.size:
        written = posix.send(c.pipe, front(&c.held), c.held.size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL)
        if written < 0 and posix.errno != posix.EAGAIN:
            # Control has closed its end: reading it will say so.
            written = c.held.size
        if written > 0:
            drop_front(&c.held, <uint32_t> written)
    watch_pipe(e, c)
    if c.readable == (c.held.size > 0):
        c.readable = not c.held.size
        watch_client(e, c)
        if c.readable:
            see_again(e, c)
    if c.ended and not c.held.size:
        posix.shutdown(c.pipe, posix.SHUT_WR)


cdef void on_pipe_readable(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t size = posix.recv(c.pipe, e.record, PLAIN_BYTES, posix.MSG_DONTWAIT)
    if size < 0 and posix.errno == posix.ECONNRESET:
        # Control closed its end and left something of the request unread: that is said before the rest of the response.
        size = posix.recv(c.pipe, e.record, PLAIN_BYTES, posix.MSG_DONTWAIT)
    if size > 0:
        write_client(e, c, e.record, <uint32_t> size)
        if c.state == STATE_HTTP and c.out.size:
            watch_pipe(e, c)
    elif size == 0 or posix.errno not in (posix.EAGAIN, posix.EINTR):
        end(e, c, REASON_HTTP_CLOSED)


# ---- 7 time


# When the silence began that may mean that the upstream is gone; 0 while nothing makes that likely.
cdef inline int64_t quiet_since_us(Connection* c) noexcept nogil:
    cdef int64_t since
    if c.doubt_since_us and c.heard_us > c.doubt_since_us:
        c.doubt_since_us = 0
    since = sooner(waiting_since_us(c.transactions), c.doubt_since_us)
    return c.heard_us if since and c.heard_us > since else since


# The next moment a flow must be looked at: a request is due, the upstream has been silent for too long, control has not
# answered, or the client is to be pinged.
cdef void arm(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t quiet_us = quiet_since_us(c), due = next_due_us(c.transactions)
    if quiet_us:
        due = sooner(due, next_question_us(&c.question, quiet_us, e.bounds.silence_us))
    due = sooner(sooner(due, c.answer_due_us), c.allocation_due_us)
    if c.carriage != NULL:
        due = sooner(due, c.carriage.ping_due_us)
    if not due:
        clear_deadline(e, c)
        return
    if not c.deadline_us or due < c.deadline_us:
        set_deadline(e, c, due)


cdef void on_deadline(Engine* e, Connection* c) noexcept nogil:
    if c.state == STATE_HANDSHAKE:
        c.failure = b"timeout"
        end(e, c, REASON_HANDSHAKE_FAILED)
    elif c.state == STATE_DECIDING:
        end(e, c, REASON_FIRST_BYTES_TIMEOUT)
    elif c.state == STATE_WAITING:
        end(e, c, REASON_CONTROL_TIMEOUT)
    elif c.state == STATE_CLOSING:
        finish(e, c)
    elif c.state == STATE_MEDIA:
        on_flow_deadline(e, c)


cdef void on_flow_deadline(Engine* e, Connection* c) noexcept nogil:
    cdef Pending* pending
    if c.answer_due_us and e.now_us >= c.answer_due_us:
        end(e, c, REASON_CONTROL_TIMEOUT)
        return
    if c.allocation_due_us and e.now_us >= c.allocation_due_us and not may_stay(e, c):
        return
    if c.carriage != NULL and c.carriage.ping_due_us and e.now_us >= c.carriage.ping_due_us:
        ping(e, c)
        if c.state != STATE_MEDIA:
            return
    if quiet_since_us(c) and not is_there(e, c):
        return
    pending = take_due(c.transactions, e.now_us)
    while pending != NULL:
        send_up_again(e, c, pending.message, pending.size)
        if c.state != STATE_MEDIA or c.udp < 0:
            return
        pending = take_due(c.transactions, e.now_us)
    arm(e, c)


# Asks an upstream that says nothing whether it is there. False if it is not, which is acted upon.
cdef bint is_there(Engine* e, Connection* c) noexcept nogil:
    cdef Judgement judgement = judge(
        &c.question, e.now_us, quiet_since_us(c), e.bounds.silence_us, c.transactions.rto_us)
    if judgement == JUDGEMENT_GONE:
        on_upstream_gone(e, c, REASON_UPSTREAM_SILENT, c.uplink.refused_for)
        return False
    if judgement == JUDGEMENT_ASK:
        ask(e, c)
    return c.state == STATE_MEDIA and c.udp >= 0


# A question of our own is in no count, but a tap sees it like all that leaves.
cdef void ask(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t[QUESTION_BYTES] message
    write_question(&c.question, message)
    if posix.send(c.udp, message, QUESTION_BYTES, posix.MSG_DONTWAIT) >= 0:
        c.uplink.refused_for = 0
    elif settle(e, c, message, QUESTION_BYTES, posix.errno):
        return
    if c.tap != NULL:
        copy_datagram(c, TAP_UPLINK, message, QUESTION_BYTES)


# When a flow has been without an allocation for too long, if it gets none until then.
cdef inline int64_t allocation_wanted_us(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t since = c.allocated_until_us if c.allocated_until_us else c.idle_since_us
    cdef int64_t due = since + e.bounds.allocation_us
    # Whoever is not a TURN server says nothing of allocations.
    return max(due, c.heard_media_us + MEDIA_IDLE_US) if c.heard_media_us else due


# True if the flow goes on; when it must be looked at again.
cdef bint may_stay(Engine* e, Connection* c) noexcept nogil:
    cdef int64_t due = allocation_wanted_us(e, c), whole_by = c.first_byte_us + e.bounds.first_bytes_us
    cdef bint begins = c.first_byte_us and c.held.size and not c.counters.uplink_packets and c.admission.asked == NULL
    if begins and e.now_us >= whole_by:
        end(e, c, REASON_FIRST_BYTES_TIMEOUT)
        return False
    if e.now_us >= due:
        end(e, c, REASON_NO_ALLOCATION)
        return False
    # A Refresh may give the allocation up long before its time.
    c.allocation_due_us = min(due, e.now_us + e.bounds.allocation_us)
    if begins:
        c.allocation_due_us = min(c.allocation_due_us, whole_by)
    return True


cdef void ping(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t[2] frame
    if c.admission.asked != NULL:
        # It is not read, so nothing can be heard.
        c.carriage.heard_us = e.now_us
    if write_ping(c.carriage, e.now_us, e.bounds.ping_us, frame):
        say(e, c, frame, 2)
    else:
        c.failure = b"no pong"
        end(e, c, REASON_CLIENT_LOST)


cdef void turn_wheel(Engine* e) noexcept nogil:
    cdef int64_t tick = e.now_us // WHEEL_TICK_US
    cdef Connection* c
    cdef Connection* due
    if tick - e.wheel_tick > WHEEL_SLOTS:
        e.wheel_tick = tick - WHEEL_SLOTS
    while e.wheel_tick < tick:
        c = e.wheel[e.wheel_tick % WHEEL_SLOTS]
        e.wheel_tick += 1
        while c != NULL:
            due = c
            c = c.wheel_next
            if due.deadline_us <= e.now_us:
                clear_deadline(e, due)
                on_deadline(e, due)


# ---- 8 the end


cdef void add_counters(Counters* totals, const Counters* more) noexcept nogil:
    cdef int number
    totals.uplink_packets += more.uplink_packets
    totals.uplink_bytes += more.uplink_bytes
    totals.downlink_packets += more.downlink_packets
    totals.downlink_bytes += more.downlink_bytes
    totals.retransmissions += more.retransmissions
    for number in range(DROPS):
        totals.drops[number] += more.drops[number]
    for number in range(TRAFFICS):
        totals.dropped[number] += more.dropped[number]


# Ends a connection; only the first reason counts. What is written already still leaves.
cdef void end(Engine* e, Connection* c, int reason) noexcept nogil:
    cdef uint8_t[FAREWELL_BYTES] farewell
    cdef uint32_t size
    if c.state in (STATE_FREE, STATE_CLOSING, STATE_DEAD):
        return
    clear_deadline(e, c)
    give_up(&c.reserve)
    c.reason = reason
    e.closed[reason] += 1
    if c.udp >= 0:
        watch(e, posix.EPOLL_CTL_DEL, c.udp, 0, 0)
    if c.pipe >= 0:
        posix.close(c.pipe)
        c.pipe = -1
        count_live(LIVE_SOCKETS, -1)
    clear_buffer(&c.held)
    clear_schedule(&c.schedule)
    forget_behind(e, c)
    if c.transactions != NULL:
        clear_transactions(c.transactions)
        free(c.transactions)
        c.transactions = NULL
    free(c.stale_answer)
    c.stale_answer = NULL
    clear_admission(&c.admission)
    if c.carriage != NULL:
        clear_buffer(&c.carriage.web.message)
    if c.tap != NULL:
        end_tap(c.tap)
        c.tap = NULL
    c.readable = False
    # Who reads both in between would count it twice, or not at all.
    relay_add(&e.ends, 1)
    add_counters(&e.ended, &c.counters)
    add_delays(&e.ended_delays, &c.delays)
    c.state = STATE_CLOSING
    relay_add(&e.ends, 1)
    owe(e, c, NOTICE_CLOSED)
    if c.carriage != NULL and c.carrier != CARRIER_CONNECT_UDP:
        size = write_farewell(
            c.carriage, reason == REASON_BROKEN_FRAME, CLOSE_CODE_OF[reason], CLOSE_WORD_OF[reason], farewell)
        if size:
            write_client(e, c, farewell, size)
        if c.state == STATE_DEAD:
            return
    if c.out.size and reason not in (REASON_CLIENT_LOST, REASON_SLOW_CLIENT):
        set_deadline(e, c, e.now_us + CLOSE_US)
        watch_client(e, c)
    else:
        finish(e, c)


# close_notify, and the descriptors are gone.
cdef void finish(Engine* e, Connection* c) noexcept nogil:
    clear_deadline(e, c)
    leave_contexts(e, c)
    if not c.lingering and c.ssl != NULL and not e.stopping and (
        c.reason == REASON_HTTP_CLOSED or (c.carriage != NULL and c.carriage.closing)
    ):
        linger(e, c)
        return
    if c.ssl != NULL:
        if not c.lingering and tls.SSL_is_init_finished(c.ssl) and is_to_be_told(c):
            tls.ERR_clear_error()
            tls.SSL_shutdown(c.ssl)
        tls.SSL_free(c.ssl)
        c.ssl = NULL
        count_live(LIVE_SESSIONS, -1)
    clear_wire(&c.wire)
    clear_buffer(&c.out)
    posix.close(c.fd)
    c.fd = -1
    c.state = STATE_DEAD
    e.live -= 1
    count_live(LIVE_CONNECTIONS, -1)
    count_live(LIVE_SOCKETS, -1)
    relay_add(&e.shared.connections, -1)
    if c.counted:
        leave_source(&e.shared.sources, c.source)
    if c.released:
        release(e, c)


# Who only said nothing may hear that we have gone.
cdef inline bint is_to_be_told(Connection* c) noexcept nogil:
    return c.reason not in (REASON_TLS_BROKEN, REASON_TLS_FLOOD) and (c.reason != REASON_CLIENT_LOST or c.failure != NULL)


# To close a socket with something unread resets the connection, and the client would lose the end of its response: what
# it still sends is read and forgotten, until it has seen our end, or the deadline has come.
cdef void linger(Engine* e, Connection* c) noexcept nogil:
    c.lingering = True
    tls.ERR_clear_error()
    tls.SSL_shutdown(c.ssl)
    posix.shutdown(c.fd, posix.SHUT_WR)
    c.interest = posix.EPOLLIN
    watch(e, posix.EPOLL_CTL_MOD, c.fd, posix.EPOLLIN, mark(ON_TCP, c))
    set_deadline(e, c, e.now_us + CLOSE_US)


cdef void on_lingering(Engine* e, Connection* c) noexcept nogil:
    cdef ssize_t size = posix.recv(c.fd, e.plain, PLAIN_BYTES, posix.MSG_DONTWAIT)
    if size == 0 or (size < 0 and posix.errno != posix.EAGAIN):
        finish(e, c)


# Python has read all there is to read.
cdef void release(Engine* e, Connection* c) noexcept nogil:
    c.released = True
    if c.state == STATE_DEAD:
        free_what_is_read(c)
        free_slot(e, c)


# What Python may look at until it has said that it has read the end.
cdef void free_what_is_read(Connection* c) noexcept nogil:
    free(c.request)
    free(c.username)
    free(c.uplink_meter)
    free(c.downlink_meter)
    # Its words may be those of the failure.
    free(c.carriage)
    c.failure = NULL
    c.request, c.username, c.uplink_meter, c.downlink_meter, c.carriage = NULL, NULL, NULL, NULL, NULL


# ---- 9 commands


cdef void on_commands(Engine* e) noexcept nogil:
    cdef uint64_t rung
    cdef Command command
    posix.read(e.command_fd, &rung, sizeof(rung))
    while take(&e.commands, &command):
        on_command(e, &command)


cdef void on_command(Engine* e, Command* command) noexcept nogil:
    cdef Connection* c
    if command.op == OP_LISTEN:
        add_listener(e, command.number)
    elif command.op == OP_UNLISTEN:
        close_listeners(e)
    elif command.op == OP_CERTIFICATES:
        use_contexts(e, <Contexts*> command.data)
        return
    elif command.op == OP_CONFIGURE:
        memcpy(&e.bounds, command.data, sizeof(Bounds))
    elif command.op == OP_TICKET_KEY:
        e.ticket_keys.has_previous = e.ticket_keys.has_current
        e.ticket_keys.has_current = True
        e.ticket_keys.previous = e.ticket_keys.current
        memcpy(&e.ticket_keys.current, command.data, sizeof(TicketKey))
    elif command.op == OP_ADOPT:
        adopt(e, command)
    elif command.op == OP_STOP:
        stop(e)
    else:
        c = find(e, command.identity)
        if command.op in (OP_TAP, OP_UNTAP):
            on_tap(c, <Tap*> command.data, command.op == OP_TAP)
            return
        if c != NULL:
            on_connection_command(e, c, command)
        elif command.op in (OP_ATTACH, OP_REPLACE, OP_UPGRADE, OP_MOVE) and command.number >= 0:
            posix.close(command.number)
    free(command.data)


cdef void on_connection_command(Engine* e, Connection* c, Command* command) noexcept nogil:
    if command.op == OP_RELEASE:
        release(e, c)
    elif command.op == OP_CLOSE:
        end(e, c, command.number)
    elif command.op == OP_ATTACH and c.state == STATE_WAITING:
        attach(e, c, command)
    elif command.op == OP_UPGRADE and c.state == STATE_HTTP:
        upgrade(e, c, command)
    elif command.op == OP_REPLACE and c.state == STATE_MEDIA:
        replace(e, c, command)
    elif c.state == STATE_MEDIA and on_flow_command(e, c, command):
        return
    elif command.number >= 0:
        posix.close(command.number)


# True if it was one that the carrier and its state have.
cdef bint on_flow_command(Engine* e, Connection* c, Command* command) noexcept nogil:
    if command.op == OP_ADMIT and c.admission.asked != NULL:
        admit(e, c)
    elif command.op == OP_REFUSE and c.admission.asked != NULL:
        free(take_asked(&c.admission))
        on_control_spoke(c)
        reply(e, c, <const uint8_t*> command.data, command.size)
        read_on(e, c)
    elif command.op == OP_ANSWER and c.admission.granted:
        c.admission.granted = False
        on_control_spoke(c)
        reply(e, c, <const uint8_t*> command.data, command.size)
    elif c.carrier != CARRIER_SESSION:
        return False
    elif command.op == OP_MOVE:
        move(e, c, command)
    elif command.op == OP_TELL:
        say(e, c, <const uint8_t*> command.data, command.size)
    elif command.op == OP_REQUEST:
        if c.udp >= 0:
            remember(e, c, <const uint8_t*> command.data, command.size)
            send_request(e, c, <const uint8_t*> command.data, command.size)
    else:
        return False
    return True


# The command's share of the tap becomes the connection's, which ends the one it had; or it is given up.
cdef void on_tap(Connection* c, Tap* tap, bint wanted) noexcept nogil:
    if wanted and (c == NULL or c.state != STATE_MEDIA or c.udp < 0):
        end_tap(tap)
        return
    if c != NULL and c.tap != NULL and (wanted or c.tap == tap):
        end_tap(c.tap)
        c.tap = NULL
    if wanted:
        c.tap = tap
    else:
        leave_tap(tap)


cdef void add_listener(Engine* e, int fd) noexcept nogil:
    if e.listener_count == 16 or watch(
        e, posix.EPOLL_CTL_ADD, fd, posix.EPOLLIN, <uint64_t> ON_LISTENER << 56 | e.listener_count
    ) < 0:
        posix.close(fd)
        return
    e.listeners[e.listener_count] = fd
    e.listener_count += 1
    e.accepting = True
    fill(&e.reserve, e.command_fd, RESERVED_DESCRIPTORS)


cdef void close_listeners(Engine* e) noexcept nogil:
    while e.listener_count:
        e.listener_count -= 1
        posix.close(e.listeners[e.listener_count])
    give_up(&e.reserve)


cdef void use_contexts(Engine* e, Contexts* contexts) noexcept nogil:
    cdef Contexts* old = e.contexts
    e.contexts = contexts
    if old != NULL:
        old.retired = True
        if not old.references:
            free_contexts(old)


cdef void adopt(Engine* e, Command* command) noexcept nogil:
    cdef Connection* c = welcome(e, command.number)
    if c == NULL:
        return
    c.ticket = command.identity
    owe(e, c, NOTICE_ADOPTED)
    if command.size and c.state == STATE_HANDSHAKE and take_first(
        e, c, <const uint8_t*> command.data, command.size
    ) and c.wire.hello.whole:
        # No event will tell of what has been read already.
        see_again(e, c)


cdef void attach(Engine* e, Connection* c, Command* command) noexcept nogil:
    use_socket(c, command)
    count_live(LIVE_SOCKETS, c.udp >= 0)
    c.releases = command.flag & FLOW_RELEASES
    c.admission.asks = command.flag & FLOW_ASKS
    c.follows = command.flag & FLOW_FOLLOWS
    c.carrier = <uint8_t> (command.flag >> FLOW_CARRIER_SHIFT)
    c.max_age_us = command.age_us if command.age_us >= 0 else e.bounds.max_age_us
    c.transactions = <Transactions*> calloc(1, sizeof(Transactions))
    c.heard_us = c.opened_us = e.now_us
    clear_deadline(e, c)
    if c.carrier != CARRIER_TURN:
        c.carriage = open_carriage(c.carrier, e.now_us, e.bounds.ping_us)
    if c.transactions == NULL or (c.carriage == NULL and c.carrier != CARRIER_TURN) or not watch_upstream(e, c):
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    c.transactions.rto_us = e.bounds.rto_us
    c.state = STATE_MEDIA
    c.idle_since_us = e.now_us
    if c.carrier != CARRIER_SESSION:
        c.allocation_due_us = e.now_us + e.bounds.allocation_us
    arm(e, c)
    read_on(e, c)


cdef void use_socket(Connection* c, const Command* command) noexcept nogil:
    c.udp = command.number
    memset(&c.uplink, 0, sizeof(Uplink))
    c.uplink.target_size = command.target_size
    memcpy(c.uplink.target, command.target, command.target_size)


# True without an upstream, too. Before a socket is connected it would hear anybody.
cdef bint watch_upstream(Engine* e, Connection* c) noexcept nogil:
    return c.udp < 0 or c.uplink.target_size or watch(e, posix.EPOLL_CTL_ADD, c.udp, posix.EPOLLIN, mark(ON_UDP, c)) == 0


# The client is read again, from what has been read already.
cdef void read_on(Engine* e, Connection* c) noexcept nogil:
    if c.state != STATE_MEDIA:
        return
    c.readable = True
    watch_client(e, c)
    on_stream(e, c, NULL, 0)
    if c.state == STATE_MEDIA and (c.more or unread(c)):
        see_again(e, c)


cdef void admit(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t* request = take_asked(&c.admission)
    cdef uint32_t size = c.admission.asked_size
    on_control_spoke(c)
    # Over CONNECT-UDP it may be none that is whole.
    if datagram_unit(request, size):
        remember(e, c, request, size)
    send_up(e, c, request, size)
    free(request)
    read_on(e, c)


# A session goes on at another upstream, or learns that there is no way to it. What it counted and metered stays.
cdef void move(Engine* e, Connection* c, Command* command) noexcept nogil:
    if not c.carriage.moves:
        c.opened_us = e.now_us
    c.carriage.moves = command.moves
    leave_upstream(e, c)
    if command.number < 0:
        on_upstream_gone(e, c, REASON_UPSTREAM_UNREACHABLE, command.flag)
        return
    use_socket(c, command)
    count_live(LIVE_SOCKETS, 1)
    c.max_age_us = command.age_us if command.age_us >= 0 else e.bounds.max_age_us
    c.heard_us = e.now_us
    if not watch_upstream(e, c):
        end(e, c, REASON_NO_DESCRIPTORS)


cdef void upgrade(Engine* e, Connection* c, Command* command) noexcept nogil:
    if c.ended:
        close_open(command.number)
        end(e, c, REASON_CLIENT_CLOSED)
        return
    posix.close(c.pipe)
    c.pipe = -1
    count_live(LIVE_SOCKETS, -1)
    clear_buffer(&c.held)
    if command.size:
        write_client(e, c, <const uint8_t*> command.data, command.size)
    if c.state == STATE_HTTP:
        attach(e, c, command)
    else:
        close_open(command.number)


# A socket on a fresh port, or -1: then the client gets the answer that it would have got.
cdef void replace(Engine* e, Connection* c, const Command* command) noexcept nogil:
    cdef int fd = command.number
    cdef uint8_t* answer = c.stale_answer
    cdef uint32_t size = c.stale_size
    cdef int position
    c.stale_answer = NULL
    if fd < 0 and answer != NULL:
        on_response(c.transactions, answer + TRANSACTION_ID_OFFSET)
        reply(e, c, answer, size)
    elif fd >= 0:
        watch(e, posix.EPOLL_CTL_DEL, c.udp, 0, 0)
        posix.close(c.udp)
        use_socket(c, command)
        if c.tap != NULL:
            c.tap.placed = False
        watch_upstream(e, c)
        position = find_pending(c.transactions, answer + TRANSACTION_ID_OFFSET) if answer != NULL else -1
        if position >= 0:
            send_up(e, c, c.transactions.pending[position].message, c.transactions.pending[position].size)
    free(answer)


cdef void stop(Engine* e) noexcept nogil:
    cdef uint32_t i
    close_listeners(e)
    e.stopping = True
    for i in range(e.slots):
        if at(e, i).state != STATE_FREE:
            end(e, at(e, i), REASON_STOPPED)


# ---- 10 a turn


# Puts notices in the ring. What finds it full waits for the next turn: nothing is lost while Python hangs.
cdef void tell(Engine* e) noexcept nogil:
    cdef Connection* c = e.owed
    cdef Connection* following
    cdef Event event
    cdef uint64_t one = 1
    cdef uint32_t bit
    cdef bint told = False
    memset(&event, 0, sizeof(event))
    e.owed = NULL
    e.told_us = e.now_us
    while c != NULL:
        event.identity = <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index
        bit = 1
        while bit <= NOTICE_LAST:
            if c.owed & bit:
                event.notice = bit
                if not put(&e.events, &event):
                    break
                told = True
                c.owed &= ~bit
            bit *= 2
        following = c.owed_next
        if c.owed:
            c.owed_next = e.owed
            e.owed = c
        c = following
    if told:
        posix.write(e.event_fd, &one, sizeof(one))


# Notes how long the packets sent since the last call were here. One look at the clock serves several of them, and says of
# each at most what it took.
cdef void note_time(Engine* e) noexcept nogil:
    cdef int64_t us = posix.monotonic_us() - e.looked_us
    if e.sent_up:
        record_many_us(&e.uplink_us, us, e.sent_up)
    if e.sent_down:
        record_many_us(&e.downlink_us, us, e.sent_down)
    e.sent_up = e.sent_down = 0


cdef void see_those_again(Engine* e) noexcept nogil:
    cdef Connection* c = e.again
    cdef Connection* following
    e.again = NULL
    while c != NULL:
        following = c.again_next
        c.again = False
        if c.state == STATE_HANDSHAKE:
            on_handshake(e, c)
        elif c.state != STATE_FREE:
            on_client(e, c)
        c = following


cdef void on_media(Engine* e, Connection* c, uint64_t source, uint32_t events) noexcept nogil:
    if source == ON_UDP:
        if c.state == STATE_MEDIA and c.udp >= 0:
            on_upstream(e, c)
    elif source == ON_PIPE:
        if events & posix.EPOLLOUT and c.state == STATE_HTTP:
            on_pipe_writable(e, c)
        if events & (posix.EPOLLIN | posix.EPOLLHUP | posix.EPOLLERR) and c.state == STATE_HTTP and not c.out.size:
            on_pipe_readable(e, c)
    else:
        if c.lingering and c.state == STATE_CLOSING:
            on_lingering(e, c)
            return
        if events & (posix.EPOLLOUT | posix.EPOLLERR) and (c.out.size or (is_waiting(&c.schedule) and not c.behind)):
            on_writable(e, c)
        if c.state in (STATE_CLOSING, STATE_DEAD):
            if c.state == STATE_CLOSING and events & (posix.EPOLLHUP | posix.EPOLLERR):
                finish(e, c)
        elif c.readable and not c.ended:
            on_client(e, c)
        elif events & (posix.EPOLLHUP | posix.EPOLLERR):
            end(e, c, REASON_CLIENT_LOST)


cdef void turn(Engine* e, int timeout_ms) noexcept nogil:
    cdef int i, handshakes = 0, count = posix.epoll_wait(e.epoll, e.epoll_events, EVENTS_A_TURN, timeout_ms)
    cdef uint64_t number, source
    cdef Connection* c
    e.now_us = posix.monotonic_us()
    e.looked_us = e.now_us
    e.turns += 1
    for i in range(count):
        number = e.epoll_events[i].data.u64
        source = number >> 56
        if source <= ON_PIPE:
            c = find(e, number)
            if c != NULL and c.state != STATE_HANDSHAKE:
                on_media(e, c, source, e.epoll_events[i].events)
                if e.sent_up + e.sent_down >= PACKETS_A_CLOCK:
                    note_time(e)
    if e.behind != NULL and e.now_us - e.behind_seen_us >= BEHIND_EVERY_US:
        see_those_behind(e)
    if e.again != NULL:
        see_those_again(e)
    if e.sent_up + e.sent_down:
        note_time(e)
    for i in range(count):
        number = e.epoll_events[i].data.u64
        source = number >> 56
        if source == ON_COMMAND:
            on_commands(e)
        elif source == ON_LISTENER and <uint32_t> number < <uint32_t> e.listener_count:
            on_listener(e, e.listeners[<uint32_t> number])
        elif source == ON_TCP and handshakes < HANDSHAKES_A_TURN:
            c = find(e, number)
            if c != NULL and c.state == STATE_HANDSHAKE:
                # Those that are not reached are reported again: epoll forgets nobody.
                handshakes += 1
                on_handshake(e, c)
    if e.armed:
        turn_wheel(e)
    else:
        e.wheel_tick = e.now_us // WHEEL_TICK_US
    if e.accept_again_us and e.now_us >= e.accept_again_us:
        e.accept_again_us = 0
        watch_listeners(e, True)
    # While clients log in one after the other, Python is woken for several of them at a time.
    if e.owed != NULL and e.now_us - e.told_us > TELL_EVERY_US:
        tell(e)
    if e.now_us - e.swept_us > SWEEP_US:
        sweep(e)


# A connection that has fallen silent gives its TLS buffers back, which are 32 KiB.
cdef void sweep(Engine* e) noexcept nogil:
    cdef uint32_t i
    cdef Connection* c
    e.swept_us = e.now_us
    for i in range(e.slots):
        c = at(e, i)
        if c.buffered and c.ssl != NULL and e.now_us - c.spoken_us > SWEEP_US and tls.SSL_free_buffers(c.ssl):
            tls.SSL_set_mode(c.ssl, tls.SSL_MODE_RELEASE_BUFFERS)
            c.buffered = False
            c.warmth = 0


cdef void run(Engine* e) noexcept nogil:
    cdef int timeout_ms
    while not (e.stopping and not e.live and e.owed == NULL):
        timeout_ms = 0 if e.again != NULL else (
            1 if e.owed != NULL else BEHIND_EVERY_MS if e.behind != NULL else 8 if e.armed or e.accept_again_us else SWEEP_MS
        )
        turn(e, timeout_ms)


# ---- 11 Python's face


cdef class SharedState:
    """What the workers of one plane share: how many connections there are, in total and from each source."""

    def __cinit__(self):
        self.shared = <Shared*> calloc(1, sizeof(Shared))
        if self.shared == NULL or open_sources(&self.shared.sources) < 0:
            raise MemoryError
        pthread_mutex_init(&self.shared.descriptors, NULL)

    def __enter__(self) -> None:
        """Nobody is accepted inside the block: what is given up there can be had there."""
        pthread_mutex_lock(&self.shared.descriptors)

    def __exit__(self, *_) -> None:
        pthread_mutex_unlock(&self.shared.descriptors)

    def __dealloc__(self):
        if self.shared != NULL:
            free(self.shared.sources.slots)
            free(self.shared)


cdef tuple counters_of(Counters* counters):
    cdef int traffic
    return (
        counters.uplink_packets, counters.uplink_bytes, counters.downlink_packets, counters.downlink_bytes,
        counters.retransmissions, *[counters.drops[drop] for drop in range(DROPS)],
        *[counters.dropped[traffic] for traffic in range(TRAFFICS)],
    )


# Reads all flows, and what they and those before them have counted.
cdef uint32_t copy_flows(
    Engine* e, uint32_t slots, FlowRecord* records, Counters* totals, Delays* delays
) noexcept nogil:
    cdef uint32_t i, count = 0
    cdef Connection* c
    cdef int64_t now = posix.monotonic_us()
    totals[0] = e.ended
    delays[0] = e.ended_delays
    for i in range(slots):
        c = at(e, i)
        if c.state == STATE_MEDIA:
            add_counters(totals, &c.counters)
            add_delays(delays, &c.delays)
            write_record(e, c, &records[count], now)
            count += 1
    return count


cdef void write_record(Engine* e, Connection* c, FlowRecord* record, int64_t now) noexcept nogil:
    record.identity = <uint64_t> e.number << 56 | <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index
    # The worker goes on: what it heard after ``now`` was heard just now.
    record.age_us = now - c.opened_us if now > c.opened_us else 0
    record.heard_us = now - c.heard_us if now > c.heard_us else 0
    record.allocated_us = c.allocated_until_us - now if c.allocated_until_us > now else 0
    record.counters = c.counters


def live_objects() -> dict:
    """How many of each kind are alive in the process; empty but in a debug build."""
    if not RELAY_COUNTS:
        return {}
    return {
        "connections": alive(LIVE_CONNECTIONS), "sessions": alive(LIVE_SESSIONS), "contexts": alive(LIVE_CONTEXTS),
        "sockets": alive(LIVE_SOCKETS), "buffers": alive(LIVE_BUFFERS),
    }


cdef inline int flow_flags(int carrier, bint releases, bint asks, bint follows) noexcept nogil:
    return (
        carrier << FLOW_CARRIER_SHIFT | (FLOW_RELEASES if releases else 0) | (FLOW_ASKS if asks else 0)
        | (FLOW_FOLLOWS if follows else 0)
    )


cdef int require_stun(bytes message) except -1:
    cdef const uint8_t* data = <const uint8_t*> <char*> message
    if not 0 < len(message) <= 65535 or data[0] >= 0x40 or not datagram_unit(data, len(message)):
        raise ValueError("expected a STUN message")
    return 0


cdef class Worker:
    """One data-plane thread: ``run`` it in a thread of its own; every other method is called with the GIL.

    Numbers of connections are those of ``relay.plane.api.ConnectionId``, with the worker's number on top.
    """

    def __cinit__(self, int number, SharedState owner not None):
        cdef Engine* e = <Engine*> calloc(1, sizeof(Engine))
        cdef int i
        if e == NULL:
            raise MemoryError
        self.engine = e
        self.owner = owner
        e.number = number
        e.shared = owner.shared
        e.epoll = e.command_fd = e.event_fd = -1
        clear_reserve(&e.reserve)
        e.datagrams = <uint8_t*> malloc(DATAGRAMS_A_TURN * DATAGRAM_BYTES)
        if (
            e.datagrams == NULL
            or open_ring(&e.commands, sizeof(Command), COMMAND_RING) < 0
            or open_ring(&e.events, sizeof(Event), EVENT_RING) < 0
        ):
            raise MemoryError
        for i in range(DATAGRAMS_A_TURN):
            e.vectors[i].iov_base = e.datagrams + i * DATAGRAM_BYTES + DATAGRAM_ROOM
            e.vectors[i].iov_len = DATAGRAM_BYTES - DATAGRAM_ROOM - 4
            e.messages[i].msg_hdr.msg_iov = &e.vectors[i]
            e.messages[i].msg_hdr.msg_iovlen = 1
        e.epoll = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        e.command_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        e.event_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        if e.epoll < 0 or e.command_fd < 0 or e.event_fd < 0:
            raise OSError(posix.errno, "no descriptors for a data-plane worker")
        watch(e, posix.EPOLL_CTL_ADD, e.command_fd, posix.EPOLLIN, <uint64_t> ON_COMMAND << 56)

    def __dealloc__(self):
        cdef Engine* e = self.engine
        cdef Event event
        cdef uint32_t i
        if e == NULL:
            return
        on_commands(e)              # what was said after the last turn
        while e.events.items != NULL and take(&e.events, &event):
            free(event.data)
        close_listeners(e)
        close_open(e.epoll)
        close_open(e.command_fd)
        close_open(e.event_fd)
        if e.contexts != NULL:
            free_contexts(e.contexts)
        for i in range(e.slots):
            free_what_is_read(at(e, i))
        for i in range(e.slots // CHUNK):
            free(e.chunks[i])
        close_ring(&e.commands)
        close_ring(&e.events)
        free(e.datagrams)
        free(e)

    @property
    def event_fd(self) -> int:
        """Readable when there are events to take."""
        return self.engine.event_fd

    def run(self) -> None:
        """Carry packets until ``stop`` was said and the last connection has ended."""
        self.engine.now_us = posix.monotonic_us()
        with nogil:
            run(self.engine)

    # Commands

    cdef int send(self, int op, uint64_t identity, int number, int flag, bytes data) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        self.fill(&command, op, identity, number, flag, data)
        return self.push(&command)

    cdef int send_flow(
        self, int op, uint64_t identity, int udp, bytes target, int flag, int64_t age_us, int moves, bytes data
    ) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.age_us, command.moves = age_us, moves
        if len(target) > SOCKADDR_BYTES:
            raise ValueError("expected a sockaddr_in, a sockaddr_in6 or nothing")
        command.target_size = <uint32_t> len(target)
        memcpy(command.target, <char*> target, command.target_size)
        self.fill(&command, op, identity, udp, flag, data)
        return self.push(&command)

    cdef int fill(
        self, Command* command, int op, uint64_t identity, int number, int flag, bytes data
    ) except -1:
        command.op, command.identity, command.number, command.flag = op, identity, number, flag
        if data is not None and len(data):
            command.size = <uint32_t> len(data)
            command.data = malloc(command.size)
            if command.data == NULL:
                raise MemoryError
            memcpy(command.data, <char*> data, command.size)
        return 0

    cdef int push(self, Command* command) except -1:
        cdef uint64_t one = 1
        for _ in range(10000):
            if put(&self.engine.commands, command):
                posix.write(self.engine.command_fd, &one, sizeof(one))
                return 0
            with nogil:
                posix.usleep(100)   # the worker takes them as fast as it turns; a second means that it hangs
        raise RuntimeError("the data-plane worker takes no commands")

    def set_certificates(self, list groups not None) -> None:
        """Groups of (names, [(chain, key), …]), all bytes. Raises ValueError with OpenSSL's words."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = OP_CERTIFICATES
        command.data = build_contexts(groups, &self.engine.ticket_keys)
        self.push(&command)

    def use_ticket_key(self, bytes key not None) -> None:
        """Make session tickets with these 80 random bytes; the key before opens them still, the one before it not."""
        if len(key) != sizeof(TicketKey):
            raise ValueError("a ticket key has 80 bytes")
        self.send(OP_TICKET_KEY, 0, -1, 0, key)

    def configure(
        self, int64_t handshake_us, int64_t first_bytes_us, int64_t allocation_us, int64_t attach_us,
        int64_t silence_us, int64_t rto_us,
        int64_t connections, int64_t connections_per_source, int64_t max_age_us, uint32_t media_bytes,
        uint32_t control_bytes, int64_t data_age_us, uint32_t data_bytes, int64_t playout_us, int64_t ping_us,
        list clocks not None,
    ) -> None:
        """Use these bounds; ``clocks`` are those of relay.quality.meter.clock_table."""
        cdef Bounds bounds
        cdef int payload_type
        if len(clocks) != PAYLOAD_TYPES:
            raise ValueError("there are 128 payload types")
        for payload_type in range(PAYLOAD_TYPES):
            bounds.clocks[payload_type] = clocks[payload_type]
        bounds.handshake_us, bounds.first_bytes_us, bounds.attach_us = handshake_us, first_bytes_us, attach_us
        bounds.allocation_us = allocation_us
        bounds.silence_us, bounds.rto_us, bounds.connections = silence_us, rto_us, connections
        bounds.connections_per_source = connections_per_source
        bounds.max_age_us, bounds.playout_us, bounds.ping_us = max_age_us, playout_us, ping_us
        bounds.media_bytes, bounds.control_bytes = media_bytes, control_bytes
        bounds.data_age_us, bounds.data_bytes = data_age_us, data_bytes
        cdef bytes copied = (<char*> &bounds)[:sizeof(bounds)]
        self.send(OP_CONFIGURE, 0, -1, 0, copied)

    def listen(self, int fd) -> None:
        """Accept on a listening socket, which is the worker's from here."""
        self.send(OP_LISTEN, 0, fd, 0, None)

    def unlisten(self) -> None:
        """Close the listening sockets."""
        self.send(OP_UNLISTEN, 0, -1, 0, None)

    def adopt(self, int fd, bytes preread not None, uint64_t ticket) -> None:
        """Take over a connection; the ADOPTED event tells its number."""
        self.send(OP_ADOPT, ticket, fd, 0, preread)

    def attach(
        self, uint64_t identity, int udp, bytes target not None, bint releases, bint asks, bint follows, int64_t age_us
    ) -> None:
        """Start the flow on a UDP socket, which is the worker's while the flow lives.

        ``target`` is where to connect the socket to before it first sends, as a sockaddr; empty if it is connected.
        ``asks`` to have users reported; ``follows`` to have a 300 reported; ``age_us`` is how old its media may grow
        here, -1 for what the bounds say.
        """
        self.send_flow(OP_ATTACH, identity, udp, target, flow_flags(0, releases, asks, follows), age_us, 0, None)

    def replace(self, uint64_t identity, int udp, bytes target not None) -> None:
        """Go on from another socket, or with -1 give the client its 437 or 300. ``target`` as for ``attach``."""
        self.send_flow(OP_REPLACE, identity, udp, target, 0, 0, 0, None)

    def upgrade(
        self, uint64_t identity, bytes response not None, int carrier, int udp, bytes target not None, bint releases,
        bint asks, bint follows, int64_t age_us
    ) -> None:
        """Leave HTTP with this response; the rest as for ``attach``. ``carrier`` is its place in the enumeration."""
        cdef int flags = flow_flags(carrier, releases, asks, follows)
        self.send_flow(OP_UPGRADE, identity, udp, target, flags, age_us, 0, response)

    def move(self, uint64_t identity, int udp, bytes target not None, int error, int64_t age_us, int moves) -> None:
        """Have a session go on from this socket, the worker's from here; -1 and an errno where there is none.

        ``target`` as for ``attach``; ``moves`` counts the session's moves, this one included.
        """
        self.send_flow(OP_MOVE, identity, udp, target, error, age_us, moves, None)

    def tell(self, uint64_t identity, bytes text not None) -> None:
        """Send the client of a session a text message, in UTF-8."""
        cdef uint8_t[WEB_MAX_HEAD_BYTES] head
        cdef uint64_t length = len(text)
        cdef uint32_t size = write_head(head + WEB_MAX_HEAD_BYTES, WEB_TEXT, length)
        cdef bytes frame = (<char*> head)[WEB_MAX_HEAD_BYTES - size:WEB_MAX_HEAD_BYTES] + text
        self.send(OP_TELL, identity, -1, 0, frame)

    def request(self, uint64_t identity, bytes message not None) -> None:
        """Send the upstream of a session a STUN message. Raises ValueError if it is none."""
        require_stun(message)
        self.send(OP_REQUEST, identity, -1, 0, message)

    def admit(self, uint64_t identity) -> None:
        """Forward the Allocate that waits."""
        self.send(OP_ADMIT, identity, -1, 0, None)

    def refuse(self, uint64_t identity, bytes response not None) -> None:
        """Answer the Allocate that waits with this STUN message. Raises ValueError if it is none."""
        require_stun(response)
        self.send(OP_REFUSE, identity, -1, 0, response)

    def answer(self, uint64_t identity, bytes response not None) -> None:
        """Give the client this STUN message for the grant that waits. Raises ValueError if it is not one."""
        require_stun(response)
        self.send(OP_ANSWER, identity, -1, 0, response)

    def close(self, uint64_t identity, int reason) -> None:
        """End a connection."""
        self.send(OP_CLOSE, identity, reason, 0, None)

    def tap(self, uint64_t identity) -> TapReader:
        """Copy the datagrams of a flow from now on, instead of for the reader before; the caller closes the reader."""
        cdef TapReader reader = TapReader.__new__(TapReader)
        reader.worker, reader.identity = self, identity
        reader.tap = open_tap()
        if reader.tap == NULL:
            raise MemoryError
        self.send_tap(OP_TAP, identity, reader.tap)
        return reader

    # The owner that comes with the command leaves, if the command cannot.
    cdef int send_tap(self, int op, uint64_t identity, Tap* tap) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op, command.identity, command.number, command.data = op, identity, -1, tap
        try:
            return self.push(&command)
        except BaseException:
            end_tap(tap)
            raise

    def release(self, uint64_t identity) -> None:
        """What a closed connection had to say has been read."""
        self.send(OP_RELEASE, identity, -1, 0, None)

    def stop(self) -> None:
        """End all connections; ``run`` returns when the last has ended."""
        self.send(OP_STOP, 0, -1, 0, None)

    def let_go(self) -> None:
        """Close what is in commands that came too late. Call it once ``run`` has returned."""
        on_commands(self.engine)

    # Events and figures

    def take_events(self) -> list:
        """(notice, number, message, move, errno) of each event since the last call, in order."""
        cdef uint64_t rung
        cdef Event event
        cdef bytes data
        cdef list events = []
        posix.read(self.engine.event_fd, &rung, sizeof(rung))
        while take(&self.engine.events, &event):
            data = (<char*> event.data)[:event.size] if event.data != NULL else b""
            relay_add(&self.engine.message_bytes, -<int64_t> event.size)
            free(event.data)
            events.append((
                event.notice, event.identity | <uint64_t> self.engine.number << 56, data, event.number, event.fault))
        return events

    cdef Connection* slot(self, object identity) except NULL:
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        if c == NULL:
            raise KeyError(identity)
        return c

    def client(self, identity) -> tuple:
        """(family, port, packed address) of the client."""
        cdef Connection* c = self.slot(identity)
        cdef const uint8_t* address = <const uint8_t*> &c.client
        cdef bint ipv6 = (<uint16_t*> address)[0] == posix.AF_INET6
        return ipv6, load16(address + 2), address[8:24] if ipv6 else address[4:8]

    def opened(self, identity) -> tuple:
        """(server name, number of the ALPN protocol, TLS version) of a connection whose handshake is done."""
        cdef Connection* c = self.slot(identity)
        return text_of(c.server_name), c.alpn, text_of(c.version)

    def take_pipe(self, identity) -> int:
        """Control's end of an HTTP connection; the caller owns it."""
        cdef Connection* c = self.slot(identity)
        count_live(LIVE_SOCKETS, -(c.their_pipe >= 0))
        fd, c.their_pipe = c.their_pipe, -1
        return fd

    def give_up_reserve(self, identity) -> None:
        """Close the descriptors that are kept free for a connection; may be repeated."""
        give_up(&self.slot(identity).reserve)

    def awaits(self, identity, bint http) -> bool:
        """True for a connection that may become a flow: TURN that waits for attach, or HTTP."""
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        return c != NULL and c.state == (STATE_HTTP if http else STATE_WAITING)

    def allocated(self, identity) -> bool:
        """True while the flow has an allocation; False also for a connection that is gone."""
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        return c != NULL and c.state == STATE_MEDIA and c.allocated_until_us > posix.monotonic_us()

    def moves(self, identity) -> int:
        """How often a session has moved, as far as its worker has come."""
        cdef Connection* c = self.slot(identity)
        return c.carriage.moves if c.carriage != NULL else 0

    def ticket(self, identity) -> int:
        """The number under which Python adopted a connection."""
        return self.slot(identity).ticket

    def counters(self, identity) -> tuple:
        """Counters of a connection."""
        return counters_of(&self.slot(identity).counters)

    def record(self, identity) -> bytes:
        """The FlowRecord of a connection, also of one that has ended."""
        cdef FlowRecord record
        cdef int64_t now = posix.monotonic_us()
        cdef Connection* c = self.slot(identity)
        write_record(self.engine, c, &record, now)
        return (<char*> &record)[:sizeof(record)]

    def flow(self, identity) -> tuple | None:
        """What is known of a flow now, or was at its end; None if it is gone for good.

        (username, queued bytes, age of the oldest of them in us, delays, (rtt, variation, retransmits, unsent) or None,
        RTCP packets and streams of the uplink, the same of the downlink)
        """
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        cdef int64_t now = posix.monotonic_us(), oldest
        if c == NULL:
            return None
        oldest = c.schedule.oldest_us
        link = c.link
        return (
            (<char*> c.username)[:c.username_size] if c.username != NULL else b"",
            waiting_bytes(&c.schedule),
            max(0, now - oldest) if oldest else 0,
            delays_of(&c.delays),
            (link.rtt_us, link.rtt_variation_us, link.retransmits, link.unsent_bytes) if link.known else None,
            c.uplink_meter.rtcp if c.uplink_meter != NULL else 0,
            streams_of(c.uplink_meter, now),
            c.downlink_meter.rtcp if c.downlink_meter != NULL else 0,
            streams_of(c.downlink_meter, now),
        )

    def closed(self, identity) -> tuple:
        """(reason, fault, OpenSSL's words, first bytes) of a connection that has ended."""
        cdef Connection* c = self.slot(identity)
        return c.reason, c.fault, text_of(c.failure), (<char*> c.first_bytes)[:8]

    def take_flow(self, identity) -> tuple:
        """What an ended flow leaves behind.

        (UDP socket, microseconds until its allocation ends, allocating, last authenticated request, moves of a session)

        The caller owns the socket, which is -1 if there was no flow.
        """
        cdef Connection* c = self.slot(identity)
        cdef bytes request = (<char*> c.request)[:c.request_size] if c.request != NULL else b""
        cdef int64_t left = c.allocated_until_us - posix.monotonic_us() if c.allocated_until_us else 0
        count_live(LIVE_SOCKETS, -(c.udp >= 0))
        fd, c.udp = c.udp, -1
        return fd, left, bool(c.allocating), request, c.carriage.moves if c.carriage != NULL else 0

    def flows(self) -> tuple:
        """(records, counters from the start, delays from the start): a FlowRecord for each flow.

        All is copied while the worker goes on.
        """
        cdef uint32_t slots = relay_load(&self.engine.slots), count = 0
        cdef FlowRecord* records = <FlowRecord*> malloc((slots + 1) * sizeof(FlowRecord))
        cdef Counters totals
        cdef Delays delays
        cdef int64_t ends
        if records == NULL:
            raise MemoryError
        with nogil:
            for _ in range(READ_TRIES):
                ends = relay_add(&self.engine.ends, 0)
                count = copy_flows(self.engine, slots, records, &totals, &delays)
                if not ends & 1 and relay_add(&self.engine.ends, 0) == ends:
                    break
        try:
            return (<char*> records)[:count * sizeof(FlowRecord)], counters_of(&totals), delays_of(&delays)
        finally:
            free(records)

    def histograms(self) -> tuple:
        """Uplink and downlink time in the relay: ([(end of the bucket in us, count)], sum in us) of each."""
        return histogram_of(&self.engine.uplink_us), histogram_of(&self.engine.downlink_us)

    def figures(self) -> tuple:
        """(open connections, accepted, closed by reason)."""
        cdef Engine* e = self.engine
        return e.live, e.accepted, [e.closed[reason] for reason in range(REASONS)]


cdef class TapReader:
    """Python's end of a tap. What is not taken in time is missed: the ring holds 1 MiB, headers of 24 bytes included."""

    def __dealloc__(self):
        if self.tap != NULL:
            leave_tap(self.tap)

    @property
    def missed(self) -> int:
        """Datagrams that found no room."""
        return self.missed_before if self.tap == NULL else self.tap.missed

    @property
    def ended(self) -> bool:
        """True if nothing more will come: what there is can be taken still."""
        return self.tap == NULL or relay_load(&self.tap.ended) != 0

    def take(self, int most) -> list:
        """At most so many of what has come: (kind, monotonic time in us, missed just before it, bytes).

        Kind 0 is uplink, 1 downlink; 2 is the sockaddr of the flow's own address, for all that follow.
        """
        cdef TapRecord record
        cdef bytes data
        cdef list taken = []
        while self.tap != NULL and len(taken) < most and peek_tapped(self.tap, &record):
            data = PyBytes_FromStringAndSize(NULL, record.size)
            copy_out(self.tap, self.tap.head + <uint32_t> sizeof(TapRecord), PyBytes_AS_STRING(data), record.size)
            drop_tapped(self.tap, &record)
            taken.append((record.kind, record.at_us, record.missed, data))
        return taken

    def close(self) -> None:
        """Let the worker copy no more. May be repeated."""
        cdef Tap* tap = self.tap
        cdef Worker worker = self.worker
        if tap == NULL:
            return
        self.missed_before = tap.missed
        self.tap, self.worker = NULL, None
        worker.send_tap(OP_UNTAP, self.identity, tap)


# ---- The stream cutter, for whoever reads a TURN stream in Python

# In the order of the fault codes of framing.pxd: -1, -2, -3.
cdef tuple FAULTS = (FramingFault.FIRST_BYTE, FramingFault.STUN_LENGTH, FramingFault.MAGIC_COOKIE)


cdef class StreamCutter:
    """Collects bytes and gives whole units. It holds at most one unit that is not whole yet."""

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
