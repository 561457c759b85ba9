# How media is framed on the client's side, where that is not a TURN stream: the state of such a connection, a unit as
# each carrier sends it, and what a WebSocket is told at its end.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strlen

from relay.plane.compiled.leaves.capsule cimport CAPSULE_NO_CONTEXT, Capsules, write_capsule_head
from relay.plane.compiled.leaves.live cimport calloc
from relay.plane.compiled.leaves.websocket cimport (
    WEB_BINARY, WEB_CLOSE, WEB_MAX_CONTROL_BYTES, WEB_PING, WEB_WORDS_BYTES, WebSocket, close_code_of, describe_fault,
    write_control_head, write_head,
)

# In the order of relay.plane.api.Carrier.
cdef enum Carrier:
    CARRIER_TURN
    CARRIER_WEBSOCKET
    CARRIER_SESSION
    CARRIER_CONNECT_UDP

cdef enum:
    # What stands before a fault in the log; the client is told without.
    PREFIX_BYTES = 11
    FAREWELL_BYTES = 2 + WEB_MAX_CONTROL_BYTES
    # Between two pings, so that Python is not flooded. Text messages of the client: it opens, binds 64 channels, and
    # has as many left to bind anew where the other side has moved. STUN of a session's upstream that answers no request
    # of ours: peers without a channel could send such, packet by packet.
    MAX_TEXTS_A_PING = 128
    MAX_UNASKED_A_PING = 256

# Made when a connection leaves HTTP, gone when Python has read its end.
cdef struct Carriage:
    WebSocket web
    Capsules capsules
    bint closing                # a Close frame was sent: who still speaks is not listened to
    bint echoes                 # the code of the client's own Close frame goes back
    uint16_t close_code         # 0 for an empty Close frame
    uint32_t texts              # since the last ping, as that which follows
    uint32_t unasked
    int64_t heard_us            # from the client
    int64_t pinged_us
    int64_t pinged_before_us    # the ping before that; 0 if there was none
    int64_t ping_due_us         # 0: never
    int moves                   # how often the session has moved
    char[PREFIX_BYTES + WEB_WORDS_BYTES] words  # what went wrong


# NULL without memory.
cdef inline Carriage* open_carriage(int carrier, int64_t now_us, int64_t ping_us) noexcept nogil:
    cdef Carriage* carriage = <Carriage*> calloc(1, sizeof(Carriage))
    if carriage != NULL:
        carriage.web.takes_text = carrier == CARRIER_SESSION
        carriage.heard_us = now_us
        if carrier != CARRIER_CONNECT_UDP:
            carriage.ping_due_us = now_us + ping_us
    return carriage


# Makes of a unit what its carrier sends, where it lies: there is room before it, and behind it for padding. The unit's
# bytes from the fifth on stay what they are.
cdef inline uint8_t* frame_unit(int carrier, uint8_t* unit, uint32_t size, uint32_t* framed) noexcept nogil:
    cdef uint32_t head
    if carrier == CARRIER_TURN:
        framed[0] = (size + 3) & ~<uint32_t> 3
        memset(unit + size, 0, framed[0] - size)
        return unit
    if carrier == CARRIER_SESSION:
        # The channel number takes the place of the length.
        unit[2], unit[3] = unit[0], unit[1]
        unit += 2
        size -= 2
    head = write_capsule_head(unit, size) if carrier == CARRIER_CONNECT_UDP else write_head(unit, WEB_BINARY, size)
    framed[0] = head + size
    return unit - head


# True for what a far peer sends, False for a STUN message of the upstream's own.
cdef inline bint is_from_peer(int carrier, const uint8_t* unit) noexcept nogil:
    return carrier == CARRIER_CONNECT_UDP or unit[0] >= 0x40


# False for one more text message than a client may send.
cdef inline bint admit_text(Carriage* carriage) noexcept nogil:
    carriage.texts += 1
    return carriage.texts <= MAX_TEXTS_A_PING


# False for one more message than an upstream may send that nobody has asked for.
cdef inline bint admit_unasked(Carriage* carriage) noexcept nogil:
    carriage.unasked += 1
    return carriage.unasked <= MAX_UNASKED_A_PING


# Proxies cut tunnels that are idle. False for a client that has said nothing since the ping before the last.
cdef inline bint write_ping(Carriage* carriage, int64_t now_us, int64_t ping_us, uint8_t* frame) noexcept nogil:
    if carriage.pinged_before_us and carriage.heard_us <= carriage.pinged_before_us:
        return False
    carriage.pinged_before_us, carriage.pinged_us = carriage.pinged_us, now_us
    carriage.ping_due_us = now_us + ping_us
    carriage.texts = carriage.unasked = 0
    write_control_head(frame, WEB_PING, 0)
    return True


# ---- The end, in words for the log


# The client has closed, with this payload of its Close frame.
cdef inline void note_close(Carriage* carriage, const uint8_t* payload, uint32_t size) noexcept nogil:
    carriage.echoes = True
    if size:
        carriage.close_code = <uint16_t> (payload[0] << 8 | payload[1])
        snprintf(carriage.words, sizeof(carriage.words), b"websocket close %u", <unsigned int> carriage.close_code)
    else:
        snprintf(carriage.words, sizeof(carriage.words), b"websocket close")


cdef inline void note_web_fault(Carriage* carriage, int fault) noexcept nogil:
    carriage.close_code = close_code_of(fault)
    memcpy(carriage.words, b"websocket: ", PREFIX_BYTES)
    describe_fault(fault, carriage.web.number, carriage.words + PREFIX_BYTES)


cdef inline void note_capsule_fault(Carriage* carriage, int fault) noexcept nogil:
    cdef unsigned long long number = carriage.capsules.number
    if fault == CAPSULE_NO_CONTEXT:
        snprintf(carriage.words, sizeof(carriage.words), b"capsule: no context id")
    else:
        snprintf(carriage.words, sizeof(carriage.words), b"capsule: datagram of %llu bytes", number)


# The last frame of a WebSocket: the client's own code, what is wrong with its frame, or this code with this word, where
# there is one. How long it is, 0 if there is nothing to say.
cdef inline uint32_t write_farewell(
    Carriage* carriage, bint broken, uint16_t code, const char* word, uint8_t* frame
) noexcept nogil:
    cdef uint32_t size = 0
    if broken:
        code, word = carriage.close_code, carriage.words + PREFIX_BYTES
    elif carriage.echoes:
        code, word = carriage.close_code, b""
    elif not code:
        return 0
    if code:
        frame[2], frame[3] = <uint8_t> (code >> 8), <uint8_t> code
        size = 2 + <uint32_t> strlen(word)
        memcpy(frame + 4, word, size - 2)
    write_control_head(frame, WEB_CLOSE, size)
    carriage.closing = True
    return 2 + size
