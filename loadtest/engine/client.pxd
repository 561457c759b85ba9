# A TURN client that never blocks, in the order of its life: it connects, through a web proxy if there is one, shakes hands,
# leaves HTTP, allocates, binds its peers, keeps all that alive for hours, and says when it goes.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtol
from libc.string cimport memcpy, memset, strlen

from loadtest.engine.addresses cimport is_same_host, write_address
from loadtest.engine.carriers cimport (
    CARRIER_PEER, CARRIER_SESSION, CARRIER_TLS, CARRIER_UDP, FRAME_CLOSE, FRAME_PING, FRAME_ROOM, FRAME_TEXT, FRAME_UNIT, TAKEN_BROKEN,
    TAKEN_FRAME, Frame, has_dirty_padding, is_lossy, is_upgraded, take_frame,
)
from loadtest.engine.ending cimport begin_happening, end_client, say, tell, tell_if_room
from loadtest.engine.engine cimport (
    ADDRESS_BYTES, CAUSE_BROKEN, CAUSE_CLOSED, CAUSE_CONNECTION, CAUSE_NONE, CAUSE_PROXY, CAUSE_RESOURCES,
    CAUSE_SESSION, CAUSE_STUN, CAUSE_TIMEOUT, CAUSE_UPGRADE, FIRST_CHANNEL, MAX_HEAD_BYTES, MAX_PEERS, MAX_WAITING_IN,
    MOVED, OPENED, PHASE_ALLOCATE, PHASE_BIND, PHASE_CONNECTING, PHASE_ENDED, PHASE_ENDING, PHASE_PROXY, PHASE_READY,
    PHASE_TLS, PHASE_UPGRADE, SCRATCH_BYTES, TEXT_OPEN, TEXT_PROXY, TEXT_UPGRADE, WORDS_BYTES, Cause, Client, Endpoint,
    Engine, Happening, Peer, Phase, Text, chance,
)
from loadtest.engine.heap cimport set_due
from loadtest.engine.kernel cimport find_word
from loadtest.engine.openssl cimport SSL_get_cipher_name
from loadtest.engine.requests cimport (
    answers, build_request, is_proven, lifetime_of, take_challenge, take_relayed,
)
from loadtest.engine.streams cimport MIN_PACKET_BYTES, on_media
from loadtest.engine.transport cimport (
    connection_fault, fail_errno, flush, lay_tls, on_tls_pause, open_peer_socket, open_socket, read_some, receive_from,
    send_message, send_stream, send_to, send_unit, wait_for_room,
)
from loadtest.engine.windows cimport COUNT_DIRTY, COUNT_FOREIGN, COUNT_FORGED, COUNT_REFLECTED, count
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.buffer cimport append, clear_buffer, drop_front, front
from relay.plane.compiled.leaves.live cimport LIVE_SOCKETS, count_live
from relay.plane.compiled.leaves.openssl cimport SSL_do_handshake, SSL_get_version, SSL_has_pending
from relay.plane.compiled.leaves.posix cimport monotonic_us
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_REQUEST, ATTRIBUTE_MESSAGE_INTEGRITY, CHANNEL_BIND_REQUEST, CLASS_BITS, REFRESH_REQUEST, RESPONSE_BIT,
    error_code, find_attribute, load16,
)
from relay.plane.compiled.leaves.websocket cimport WEB_PONG, WEB_TEXT

cdef enum:
    # RFC 8489 section 6.2.1: 500 ms and twice as much each time, seven requests, and 16 times the first at the end.
    RTO_US = 500000
    MAX_TRIES = 7
    LAST_WAIT = 16
    # Over what loses nothing, as long as all of that.
    RELIABLE_WAIT_US = 39500000
    # Nobody waits long for one who goes.
    ENDING_TRIES = 3
    ENDING_WAIT_US = 2000000
    # One for the nonce, one for a nonce that became stale meanwhile. More mean a wrong password.
    MAX_CHALLENGES = 2
    # The kernel gives a port again, and a server may remember it from an earlier client.
    MAX_MOVES = 16
    # An allocation is refreshed a minute before it expires, or at half of its life if that is shorter.
    SPARE_S = 60
    UNAUTHORIZED = 401
    ALLOCATION_MISMATCH = 437
    STALE_NONCE = 438
    SAYING_BYTES = 128
    NUMBER_BYTES = 12
    # A peer has the packets of many calls.
    DATAGRAMS_A_TURN = 256

cdef extern from "<stdint.h>" nogil:
    const int64_t INT64_MAX


# 1. Time

cdef inline int64_t earlier(int64_t one, int64_t other) noexcept nogil:
    return other if not one or (other and other < one) else one


# When the client has something to do, if nothing comes: 0 for never.
cdef inline int64_t next_due(const Client* c) noexcept nogil:
    cdef int64_t due = 0
    cdef uint32_t i
    if c.phase < PHASE_READY:
        due = c.began_us[<int> PHASE_CONNECTING] + c.plan.patience_us
    if c.phase == PHASE_ENDING:
        due = c.began_us[<int> PHASE_ENDING] + ENDING_WAIT_US
    if c.method or c.binding:
        return earlier(due, c.retry_us)
    if c.phase == PHASE_READY:
        due = c.refresh_us
        for i in range(c.peer_count):
            due = earlier(due, c.peers[i].due_us)
    return due


cdef inline void schedule(Engine* e, Client* c) noexcept nogil:
    cdef int64_t due
    if c.phase == PHASE_ENDED:
        return
    due = next_due(c)
    due = due if due else INT64_MAX
    set_due(&e.due_clients, c.number, due)


cdef inline void enter(Client* c, Phase phase) noexcept nogil:
    c.phase = phase
    c.began_us[<int> phase] = monotonic_us()


# 2. TCP, web proxy, TLS, HTTP

cdef inline void open_client(Engine* e, Client* c) noexcept nogil:
    e.clients[c.number] = c
    e.last_serial += 1
    c.serial = e.last_serial
    enter(c, PHASE_CONNECTING)
    if not (open_peer_socket(e, c) if c.plan.carrier == CARRIER_PEER else open_socket(e, c)):
        return
    if c.plan.carrier == CARRIER_UDP:
        begin_turn(e, c)
    elif c.plan.carrier == CARRIER_PEER:
        bind_next(e, c)
    schedule(e, c)


cdef inline void send_text(Engine* e, Client* c, Text text) noexcept nogil:
    send_stream(e, c, <const uint8_t*> c.plan.texts[<int> text], c.plan.sizes[<int> text])


cdef inline void on_connected(Engine* e, Client* c) noexcept nogil:
    cdef int fault = connection_fault(c.fd)
    if fault:
        fail_errno(e, c, CAUSE_CONNECTION, fault)
        return
    wait_for_room(e, c, False)
    if c.plan.sizes[<int> TEXT_PROXY]:
        enter(c, PHASE_PROXY)
        send_text(e, c, TEXT_PROXY)
    else:
        begin_tls(e, c)


cdef inline void begin_tls(Engine* e, Client* c) noexcept nogil:
    enter(c, PHASE_TLS)
    if lay_tls(e, c):
        shake_hands(e, c)


cdef inline void shake_hands(Engine* e, Client* c) noexcept nogil:
    cdef int result = SSL_do_handshake(c.tls)
    if result != 1:
        wait_for_room(e, c, False)
        on_tls_pause(e, c, result)
    elif is_upgraded(c.plan.carrier):
        enter(c, PHASE_UPGRADE)
        send_text(e, c, TEXT_UPGRADE)
    else:
        begin_turn(e, c)


# The size of a response's head that is there, or 0.
cdef inline uint32_t head_bytes(const uint8_t* data, uint32_t size) noexcept nogil:
    cdef const uint8_t* end = <const uint8_t*> find_word(data, size, b"\r\n\r\n")
    return 0 if end == NULL else <uint32_t> (end - data) + 4


# The status of a whole head; 0 if it is not HTTP.
cdef inline int32_t status_of(const uint8_t* head) noexcept nogil:
    if find_word(head, 7, b"HTTP/1.") == NULL:
        return 0
    return <int32_t> strtol(<const char*> head + 9, NULL, 10)


# Reads the head of a response to the end, and judges it. True if the server has agreed.
cdef inline bint take_head(Engine* e, Client* c, int32_t wanted, Cause cause) noexcept nogil:
    cdef const uint8_t* head = front(&c.waiting_in)
    cdef uint32_t size = head_bytes(head, c.waiting_in.size) if c.waiting_in.size else 0
    cdef const uint8_t* line_end
    cdef char[WORDS_BYTES] words
    if not size:
        if c.waiting_in.size > MAX_HEAD_BYTES:
            end_client(e, c, CAUSE_BROKEN, 0, b"a response with an endless head")
        return False
    if status_of(head) != wanted:
        line_end = <const uint8_t*> find_word(head, size, b"\r\n")
        say(words, WORDS_BYTES, head, <uint32_t> (line_end - head))
        end_client(e, c, cause, status_of(head), words)
        return False
    drop_front(&c.waiting_in, size)
    return True


# A proxy says nothing after its head before we do.
cdef inline void on_proxy(Engine* e, Client* c) noexcept nogil:
    cdef uint32_t got = read_some(e, c, e.coming, SCRATCH_BYTES)
    if not got:
        return
    if not append(&c.waiting_in, e.coming, got):
        end_client(e, c, CAUSE_RESOURCES, posix.ENOMEM, b"no memory for what came")
    elif take_head(e, c, 200, CAUSE_PROXY):
        clear_buffer(&c.waiting_in)
        begin_tls(e, c)


# 3. Requests

cdef inline void send_request(Engine* e, Client* c) noexcept nogil:
    cdef uint8_t* message = e.leaving + FRAME_ROOM
    cdef uint32_t size = build_request(e, c, c.phase == PHASE_ENDING, message)
    cdef int64_t wait_us = RELIABLE_WAIT_US
    if is_lossy(c.plan.carrier):
        wait_us = <int64_t> RTO_US * LAST_WAIT if c.tries == MAX_TRIES - 1 else <int64_t> RTO_US << c.tries
    c.tries += 1
    c.retry_us = monotonic_us() + wait_us
    send_unit(e, c, message, size)


cdef inline void ask(Engine* e, Client* c, uint16_t method) noexcept nogil:
    cdef uint64_t number = chance(e), more = chance(e)
    c.method, c.tries = method, 0
    memcpy(c.transaction, &number, 8)
    memcpy(c.transaction + 8, &more, 4)
    send_request(e, c)


cdef inline void say_session(Engine* e, Client* c, const char* text, uint32_t size) noexcept nogil:
    cdef uint8_t* payload = e.leaving + FRAME_ROOM
    memcpy(payload, text, size)
    send_message(e, c, WEB_TEXT, payload, size)


cdef inline void begin_turn(Engine* e, Client* c) noexcept nogil:
    enter(c, PHASE_ALLOCATE)
    if c.plan.carrier == CARRIER_SESSION:
        say_session(e, c, c.plan.texts[<int> TEXT_OPEN], c.plan.sizes[<int> TEXT_OPEN])
    else:
        ask(e, c, ALLOCATE_REQUEST)


# Peers are bound one after the other; then the client is ready. Without TURN there is nothing to bind.
cdef inline void bind_next(Engine* e, Client* c) noexcept nogil:
    cdef uint32_t i
    for i in range(c.peer_count):
        if c.plan.carrier == CARRIER_PEER:
            c.peers[i].bound = True
        elif not c.peers[i].bound:
            if c.phase == PHASE_ALLOCATE:
                enter(c, PHASE_BIND)
            bind_peer(e, c, i)
            return
    if c.phase < PHASE_READY:
        enter(c, PHASE_READY)
        tell_opened(e, c)


cdef inline void bind_peer(Engine* e, Client* c, uint32_t place) noexcept nogil:
    cdef char[SAYING_BYTES] text
    cdef char[ADDRESS_BYTES] peer
    cdef int size
    c.about = place
    if c.plan.carrier != CARRIER_SESSION:
        ask(e, c, CHANNEL_BIND_REQUEST)
        return
    c.binding = True
    c.retry_us = monotonic_us() + RELIABLE_WAIT_US
    write_address(&c.peers[place].address, peer)
    size = snprintf(
        text, SAYING_BYTES, b'{"type": "bind", "peer": "%s", "channel": %d}', peer, FIRST_CHANNEL + place)
    say_session(e, c, text, <uint32_t> size)


# With the time that each phase has taken, and when the client was ready.
cdef inline void tell_opened(Engine* e, Client* c) noexcept nogil:
    cdef Happening happening
    cdef const char* version = b""
    cdef const char* cipher = b""
    cdef int64_t end_us = c.began_us[<int> PHASE_READY]
    cdef int phase
    begin_happening(&happening, OPENED, c.number)
    happening.phase = PHASE_READY
    for phase in reversed(range(<int> PHASE_READY)):
        if c.began_us[phase]:
            happening.values[phase] = end_us - c.began_us[phase]
            end_us = c.began_us[phase]
    happening.values[<int> PHASE_READY] = c.began_us[<int> PHASE_READY]
    if c.tls != NULL:
        version, cipher = SSL_get_version(c.tls), SSL_get_cipher_name(c.tls)
    snprintf(happening.words, WORDS_BYTES, b"%s\n%s\n%s", c.relayed, version, cipher)
    tell(e, &happening)


# 4. Answers

cdef inline void on_success(Engine* e, Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t method = c.method
    cdef uint32_t lifetime_s = lifetime_of(message, size)
    cdef int64_t now_us = monotonic_us()
    c.method = c.challenges = 0
    if c.phase == PHASE_ENDING:
        end_client(e, c, CAUSE_NONE, 0, NULL)
        return
    if method == CHANNEL_BIND_REQUEST:
        c.peers[c.about].bound = True
        c.peers[c.about].due_us = now_us + c.plan.rebind_us
    elif method == ALLOCATE_REQUEST and not take_relayed(c, message, size):
        end_client(e, c, CAUSE_BROKEN, 0, b"an allocation without a relayed address")
        return
    else:
        c.refresh_us = now_us + <int64_t> (
            lifetime_s - SPARE_S if lifetime_s > 2 * SPARE_S else (lifetime_s + 1) // 2) * 1000000
    bind_next(e, c)


# The server has another allocation under our port: takes another one. While the old socket is open, the kernel gives
# another port.
cdef inline void move(Engine* e, Client* c) noexcept nogil:
    cdef int before = c.fd
    c.moves += 1
    c.method = 0
    c.nonce_size = c.challenges = 0
    c.forged = False
    if open_socket(e, c):
        ask(e, c, ALLOCATE_REQUEST)
    posix.close(before)
    count_live(LIVE_SOCKETS, -1)


cdef inline void on_error(Engine* e, Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef int code = error_code(message, size)
    if c.phase == PHASE_ENDING and code != STALE_NONCE:
        end_client(e, c, CAUSE_NONE, 0, NULL)
    elif (code == UNAUTHORIZED or code == STALE_NONCE) and c.challenges < MAX_CHALLENGES and (
        take_challenge(c, message, size)
    ):
        c.challenges += 1
        ask(e, c, c.method)
    elif code == ALLOCATION_MISMATCH and c.phase == PHASE_ALLOCATE and c.plan.carrier == CARRIER_UDP and (
        c.moves < MAX_MOVES
    ):
        move(e, c)
    else:
        end_client(e, c, CAUSE_STUN, code, NULL)


# A success must prove itself, once the request did. An error may come from somebody who does not know the password, such as
# a relay on the way: then it proves nothing, but it does not lie about that.
cdef inline bint is_trusted(Engine* e, Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    if not c.nonce_size or is_proven(e.signer, c, message, size):
        return True
    return load16(message) & CLASS_BITS == CLASS_BITS and (
        find_attribute(message, size, ATTRIBUTE_MESSAGE_INTEGRITY, 0) == NULL)


cdef inline void on_stun(Engine* e, Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint16_t kind = load16(message)
    if not answers(c, message) or kind & ~<uint16_t> CLASS_BITS != c.method:
        return                  # an answer to an earlier try, or an indication
    if not is_trusted(e, c, message, size):
        c.forged = True
        count(e.window, COUNT_FORGED)
    elif kind & CLASS_BITS == RESPONSE_BIT:
        on_success(e, c, message, size)
    elif kind & CLASS_BITS == CLASS_BITS:
        on_error(e, c, message, size)


cdef inline bint says(const Frame* frame, const char* word) noexcept nogil:
    return find_word(frame.data, frame.size, word) != NULL


# The number that stands after a word, or 0.
cdef inline int32_t number_after(const Frame* frame, const char* word) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*> find_word(frame.data, frame.size, word)
    cdef char[NUMBER_BYTES] text
    if at == NULL:
        return 0
    at += strlen(word)
    say(text, NUMBER_BYTES, at, <uint32_t> (frame.data + frame.size - at))
    return <int32_t> strtol(text, NULL, 10)


# The relay has found the session another upstream.
cdef inline void tell_moved(Engine* e, Client* c) noexcept nogil:
    cdef Happening happening
    begin_happening(&happening, MOVED, c.number)
    happening.phase = c.phase
    memcpy(happening.words, c.relayed, ADDRESS_BYTES)
    tell_if_room(e, &happening)


# The relayed address that ``opened`` and ``moved`` name.
cdef inline void take_session_relayed(Client* c, const Frame* frame) noexcept nogil:
    cdef const uint8_t* end = frame.data + frame.size
    cdef const uint8_t* value = <const uint8_t*> find_word(frame.data, frame.size, b'"relayed"')
    cdef const uint8_t* after
    if value == NULL:
        return
    value += 9
    value = <const uint8_t*> find_word(value, end - value, b'"')
    if value == NULL:
        return
    after = <const uint8_t*> find_word(value + 1, end - value - 1, b'"')
    if after != NULL:
        say(c.relayed, ADDRESS_BYTES, value + 1, <uint32_t> (after - value - 1))


cdef inline void on_text(Engine* e, Client* c, const Frame* frame) noexcept nogil:
    cdef char[WORDS_BYTES] words
    if c.phase == PHASE_ENDING:
        if says(frame, b'"closed"'):
            end_client(e, c, CAUSE_NONE, 0, NULL)
    elif says(frame, b'"error"'):
        say(words, WORDS_BYTES, frame.data, frame.size)
        end_client(e, c, CAUSE_SESSION, number_after(frame, b'"code":'), words)
    elif says(frame, b'"moved"'):
        take_session_relayed(c, frame)
        tell_moved(e, c)
    elif c.phase == PHASE_ALLOCATE and says(frame, b'"opened"'):
        take_session_relayed(c, frame)
        bind_next(e, c)
    elif says(frame, b'"bound"') and c.binding:
        c.binding = False
        c.peers[c.about].bound = True
        bind_next(e, c)


# 5. What comes

# A session's media has the channel and no length.
cdef inline void on_unit(Engine* e, Client* c, Frame* frame) noexcept nogil:
    cdef uint32_t head = 2 if c.plan.carrier == CARRIER_SESSION else 4
    if frame.size >= head and frame.data[0] & 0xC0 == 0x40:
        if load16(frame.data) < FIRST_CHANNEL + c.peer_count:
            on_media(e, c, frame.data + head, frame.size - head)
        else:
            count(e.window, COUNT_FOREIGN)
    elif c.plan.carrier != CARRIER_SESSION and frame.size >= 20:
        on_stun(e, c, frame.data, frame.size)
    else:
        end_client(e, c, CAUSE_BROKEN, 0, b"neither STUN nor ChannelData")


cdef inline void on_close_frame(Engine* e, Client* c, const Frame* frame) noexcept nogil:
    cdef char[WORDS_BYTES] words
    cdef uint32_t size = frame.size - 2 if frame.size > 2 else 0
    cdef int32_t code = load16(frame.data) if frame.size >= 2 else 0
    say(words, WORDS_BYTES, frame.data + 2, size)
    end_client(e, c, CAUSE_CLOSED, code, words)


cdef inline void on_frame(Engine* e, Client* c, Frame* frame) noexcept nogil:
    cdef uint8_t* payload = e.leaving + FRAME_ROOM
    if frame.kind == FRAME_UNIT:
        on_unit(e, c, frame)
    elif frame.kind == FRAME_TEXT:
        on_text(e, c, frame)
    elif frame.kind == FRAME_PING and frame.size <= 125:
        memcpy(payload, frame.data, frame.size)
        send_message(e, c, WEB_PONG, payload, frame.size)
    elif frame.kind == FRAME_CLOSE:
        on_close_frame(e, c, frame)


# Takes the whole frames; how many bytes they were.
cdef inline uint32_t take_frames(Engine* e, Client* c, uint8_t* data, uint32_t size) noexcept nogil:
    cdef Frame frame
    cdef uint32_t used = 0
    cdef int taken
    while c.phase != PHASE_ENDED:
        taken = take_frame(c.plan.carrier, &c.capsules, data + used, size - used, &frame)
        if taken == TAKEN_FRAME:
            if c.plan.carrier == CARRIER_TLS and has_dirty_padding(&frame):
                count(e.window, COUNT_DIRTY)
            used += frame.used
            on_frame(e, c, &frame)
            continue
        if taken == TAKEN_BROKEN:
            end_client(e, c, CAUSE_BROKEN, 0, b"a frame that its carrier does not have")
        break
    return used


# What came after what waits.
cdef inline void on_bytes(Engine* e, Client* c, uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t used = 0
    if not c.waiting_in.size and c.phase != PHASE_UPGRADE:
        used = take_frames(e, c, data, size)
    if c.phase == PHASE_ENDED or used == size:
        return
    if c.waiting_in.size + size - used > MAX_WAITING_IN or not append(&c.waiting_in, data + used, size - used):
        end_client(e, c, CAUSE_RESOURCES, posix.ENOMEM, b"no room for what came")
        return
    if c.phase == PHASE_UPGRADE:
        if not take_head(e, c, 101, CAUSE_UPGRADE):
            return
        begin_turn(e, c)
    elif used:
        return
    if c.waiting_in.size:
        used = take_frames(e, c, front(&c.waiting_in), c.waiting_in.size)
        if c.phase != PHASE_ENDED and used:
            drop_front(&c.waiting_in, used)


# One datagram: another one shows at the next look. What is no unit is not ours.
cdef inline void on_datagram(Engine* e, Client* c) noexcept nogil:
    cdef uint32_t got = read_some(e, c, e.coming, SCRATCH_BYTES)
    cdef Frame frame
    if not got:
        return
    if take_frame(CARRIER_UDP, &c.capsules, e.coming, got, &frame) == TAKEN_FRAME:
        on_unit(e, c, &frame)
    else:
        count(e.window, COUNT_FOREIGN)


# What a peer may send back: only RTP, and only to those whom it knows, if it knows any. So nobody has it send packets to
# others under a forged address, and two services that answer everything do not answer each other for ever.
cdef inline bint may_reflect(const Client* c, const Endpoint* sender, const uint8_t* packet, uint32_t size) noexcept nogil:
    cdef uint32_t i
    if size < MIN_PACKET_BYTES or packet[0] & 0xC0 != 0x80:
        return False
    for i in range(c.peer_count):
        if is_same_host(&c.peers[i].address, sender):
            return True
    return c.peer_count == 0


# Of a peer: all that has come.
cdef inline void on_peer_datagrams(Engine* e, Client* c) noexcept nogil:
    cdef Endpoint sender
    cdef uint32_t got
    for _ in range(DATAGRAMS_A_TURN):
        got = receive_from(c, e.coming, SCRATCH_BYTES, &sender)
        if not got:
            return
        if not c.plan.reflects:
            on_media(e, c, e.coming, got)
        elif not may_reflect(c, &sender, e.coming, got):
            count(e.window, COUNT_FOREIGN)
        elif send_to(c, &sender, e.coming, got):
            e.carried = True
            count(e.window, COUNT_REFLECTED)


cdef inline void on_stream(Engine* e, Client* c) noexcept nogil:
    cdef uint32_t got
    while c.phase != PHASE_ENDED:
        got = read_some(e, c, e.coming, SCRATCH_BYTES)
        if not got:
            return
        on_bytes(e, c, e.coming, got)
        # Asking once more only to hear "nothing there" would be one more system call for each packet.
        if c.phase == PHASE_ENDED or not SSL_has_pending(c.tls):
            return


cdef inline void on_events(Engine* e, Client* c, uint32_t events) noexcept nogil:
    if c.phase == PHASE_CONNECTING:
        if events & (posix.EPOLLOUT | posix.EPOLLERR | posix.EPOLLHUP):
            on_connected(e, c)
    elif c.plan.carrier == CARRIER_UDP:
        on_datagram(e, c)
    elif c.plan.carrier == CARRIER_PEER:
        on_peer_datagrams(e, c)
    elif c.phase == PHASE_PROXY:
        if not events & posix.EPOLLOUT or flush(e, c):
            on_proxy(e, c)
    elif c.phase == PHASE_TLS:
        shake_hands(e, c)
    else:
        if events & posix.EPOLLOUT:
            flush(e, c)
        if c.phase != PHASE_ENDED:
            on_stream(e, c)
    schedule(e, c)


# 6. Keeping alive, and the end

cdef inline void time_out(Engine* e, Client* c, const char* words) noexcept nogil:
    if c.forged:
        words = b"no answer with the MESSAGE-INTEGRITY of the password"
    end_client(e, c, CAUSE_TIMEOUT, 0, words)


# The request that has had no answer: again, or no more.
cdef inline void retry(Engine* e, Client* c) noexcept nogil:
    cdef uint8_t most = ENDING_TRIES if c.phase == PHASE_ENDING else MAX_TRIES
    if is_lossy(c.plan.carrier) and c.tries < most:
        send_request(e, c)
    elif c.phase == PHASE_ENDING:
        end_client(e, c, CAUSE_NONE, 0, NULL)
    else:
        time_out(e, c, b"no answer to a request")


cdef inline void renew(Engine* e, Client* c, int64_t now_us) noexcept nogil:
    cdef uint32_t i
    if c.refresh_us and c.refresh_us <= now_us:
        ask(e, c, REFRESH_REQUEST)
        return
    for i in range(c.peer_count):
        if c.peers[i].due_us and c.peers[i].due_us <= now_us:
            bind_peer(e, c, i)
            return


cdef inline void on_client_due(Engine* e, Client* c) noexcept nogil:
    cdef int64_t now_us = e.now_us
    if c.phase < PHASE_READY and now_us >= c.began_us[<int> PHASE_CONNECTING] + c.plan.patience_us:
        time_out(e, c, b"not ready in time")
    elif c.phase == PHASE_ENDING and now_us >= c.began_us[<int> PHASE_ENDING] + ENDING_WAIT_US:
        end_client(e, c, CAUSE_NONE, 0, NULL)
    elif c.method:
        if c.retry_us <= now_us:
            retry(e, c)
    elif c.binding:
        if c.retry_us <= now_us:
            time_out(e, c, b"no answer to bind")
    elif c.phase == PHASE_READY:
        renew(e, c, now_us)
    schedule(e, c)


cdef inline void serve_clients(Engine* e) noexcept nogil:
    while e.due_clients.count and e.due_clients.items[0].us <= e.now_us:
        on_client_due(e, e.clients[e.due_clients.items[0].number])


# Over TCP a server ends the allocation with the connection. Over what has none, and with a session, which could come
# back, the client says that it goes.
cdef inline void close_client(Engine* e, Client* c) noexcept nogil:
    cdef const char* closing = b'{"type": "close"}'
    if c.phase == PHASE_ENDING:
        return
    if c.phase != PHASE_READY and c.phase != PHASE_BIND:
        end_client(e, c, CAUSE_NONE, 0, NULL)
        return
    enter(c, PHASE_ENDING)
    c.method = 0
    c.binding = False
    if c.plan.carrier == CARRIER_SESSION:
        say_session(e, c, closing, 17)
    elif is_lossy(c.plan.carrier):
        ask(e, c, REFRESH_REQUEST)
    else:
        end_client(e, c, CAUSE_NONE, 0, NULL)
    schedule(e, c)


# One more peer of a client that is ready; before that, those of its plan are bound.
cdef inline void add_peer(Engine* e, Client* c, const Endpoint* address) noexcept nogil:
    cdef Peer* peer
    if c.peer_count == MAX_PEERS or c.phase >= PHASE_ENDING:
        return
    peer = &c.peers[c.peer_count]
    memset(peer, 0, sizeof(Peer))
    peer.address = address[0]
    c.peer_count += 1
    if c.phase == PHASE_READY and not c.method and not c.binding:
        bind_next(e, c)
    schedule(e, c)
