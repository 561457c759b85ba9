# From the client to the upstream: units are cut out of the stream as the flow's carrier frames them, remembered if they
# are STUN requests, and sent.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from relay.plane.compiled.engine cimport (
    DROP_UPLINK_MALFORMED, DROP_UPLINK_OVERSIZE, DROP_UPLINK_RATE, DROP_UPLINK_USER_RATE, NOTICE_ALLOCATE, NOTICE_TEXT,
    PLAIN_BYTES, REASON_BROKEN_FRAME, REASON_CLIENT_CLOSED, REASON_NO_DESCRIPTORS, STATE_MEDIA, USERNAME_BYTES, Connection,
    Engine,
)
from relay.plane.compiled.slots cimport watch_client
from relay.plane.compiled.counting cimport drop, meter, meter_datagram
from relay.plane.compiled.wheel cimport arm, sooner
from relay.plane.compiled.ending cimport end
from relay.plane.compiled.messages cimport post_message
from relay.plane.compiled.delivery cimport send_own
from relay.plane.compiled.upstream cimport send_up
from relay.plane.compiled.leaves.admission cimport MAX_ASKED_BYTES, is_to_ask, is_turn_datagram
from relay.plane.compiled.leaves.allowance cimport takes, takes_shared
from relay.plane.compiled.leaves.buffer cimport append, clear_buffer, drop_front, front, keep_bytes
from relay.plane.compiled.leaves.capsule cimport (
    CAPSULE_NEEDS_MORE, CAPSULE_OVERSIZE, CAPSULE_PAYLOAD, Payload, read_capsule,
)
from relay.plane.compiled.leaves.carriage cimport (
    CARRIER_CONNECT_UDP, CARRIER_SESSION, CARRIER_TURN, Carriage, admit_text, note_capsule_fault, note_close,
    note_web_fault,
)
from relay.plane.compiled.leaves.framing cimport UNIT_NEEDS_MORE, UNIT_WHOLE, Unit, measure_unit
from relay.plane.compiled.leaves.live cimport calloc
from relay.plane.compiled.leaves.naming cimport Naming, note_named
from relay.plane.compiled.leaves.schedule cimport TRAFFIC_CONTROL, is_media_datagram, traffic_of
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_REQUEST, ATTRIBUTE_USERNAME, CLASS_BITS, REFRESH_REQUEST, STUN_HEADER_BYTES, TRANSACTION_ID_OFFSET,
    datagram_unit, find_attribute, load16,
)
from relay.plane.compiled.leaves.transactions cimport on_request
from relay.plane.compiled.leaves.websocket cimport (
    WEB_BINARY, WEB_CLOSE, WEB_NEEDS_MORE, WEB_NO_CHANNEL_NUMBER, WEB_NO_TURN_MESSAGE, WEB_PING, WEB_PONG, WEB_ROOM,
    WEB_TEXT, WEB_TOO_MANY_TEXTS, WEB_WHOLE, Message, read_message, write_control_head,
)

cdef enum:
    MAX_KEPT_REQUEST_BYTES = 4096   # with the reason in relay.plane.reference.flow
    UNITS_A_TURN = 256              # units of one client before others have their turn: one record may bring 4,000


# Cuts units out of what is held and what is new. While no unit is cut in two, nothing is copied.
cdef inline void on_stream(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
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


# Part of a unit is held. The first unit of a flow must be whole by a deadline.
cdef inline void note_part(Engine* e, Connection* c) noexcept nogil:
    if not c.counters.uplink_packets and not c.first_byte_us and c.held.size and c.allocation_due_us:
        c.first_byte_us = e.now_us
        c.allocation_due_us = sooner(c.allocation_due_us, e.now_us + e.bounds.first_bytes_timeout_us)
        arm(e, c)


# Sends the units that are whole. Returns how many bytes they were.
cdef inline uint32_t cut(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
    if c.carrier == CARRIER_TURN:
        return send_units(e, c, data, size)
    if c.carrier == CARRIER_CONNECT_UDP:
        return send_payloads(e, c, data, size)
    return send_messages(e, c, data, size)


# The stream of TURN: units follow each other (RFC 8656 section 12.5).
cdef inline uint32_t send_units(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
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


# Sends one STUN or ChannelData message, unless control is asked first.
cdef inline void forward(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if not may_send(e, c, unit, size):
        return
    if unit[0] < 0x40:
        if c.admission.asks and must_ask(e, c, unit, size):
            return
        if not may_name(e, c, unit, size):
            return
        remember(e, c, unit, size)
    else:
        meter(e, &c.uplink_meter, unit + 4, size - 4)
    send_up(e, c, unit, size)


# Returns False for what a flow, or its user, may not send any more in this second: it is dropped.
cdef inline bint may_send(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef int64_t packets = e.bounds.packets_per_second_per_flow, octets = e.bounds.bytes_per_second_per_flow
    cdef bint is_stun = size > 0 and data[0] <= 3
    if not takes(&c.sent, e.now_us, size, packets, octets, is_stun):
        drop(c, DROP_UPLINK_RATE, traffic_of(data, size))
        return False
    packets, octets = e.bounds.packets_per_second_per_user, e.bounds.bytes_per_second_per_user
    if c.user != NULL and not takes_shared(&c.user.sent, e.now_us, size, packets, octets, is_stun):
        drop(c, DROP_UPLINK_USER_RATE, traffic_of(data, size))
        return False
    return True


# Returns False for an Allocate that must not go on, because it could hide who its user is: it is dropped. Where control is
# asked for users, control looks at that. Without bounds on users it does not matter.
cdef inline bint may_name(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* name
    if load16(message) != ALLOCATE_REQUEST or c.admission.asks:
        return True
    if not (e.bounds.packets_per_second_per_user or e.bounds.bytes_per_second_per_user):
        return True
    name = find_attribute(message, size, ATTRIBUTE_USERNAME, 1)
    if name == NULL:
        return True
    if c.naming == NULL:
        c.naming = <Naming*> calloc(1, sizeof(Naming))
    if c.naming != NULL and note_named(
        c.naming, e.now_us, message + TRANSACTION_ID_OFFSET, name, load16(name - 2)
    ):
        return True
    drop(c, DROP_UPLINK_RATE, TRAFFIC_CONTROL)
    return False


# Remembers a request, which is sent again until the upstream answers. A client over CONNECT-UDP does that itself.
cdef inline void remember(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
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


# Keeps the user name of the last Allocate that had one. Python may read it at the same time, so its memory never moves.
cdef inline void remember_name(Connection* c, const uint8_t* request, uint32_t size) noexcept nogil:
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


# Returns True if control decides on the message first: an Allocate of a user, or a request like it. It waits, and so
# does everything that the client sends after it. If it is too long to wait, it is dropped.
cdef inline bint must_ask(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
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
    c.answer_due_us = e.now_us + e.bounds.control_timeout_us
    arm(e, c)
    post_message(e, c, NOTICE_ALLOCATE, message, size, 0, 0)
    return True


# WebSocket: media, text, and frames that the protocol itself answers.
cdef inline uint32_t send_messages(Engine* e, Connection* c, uint8_t* data, uint32_t size) noexcept nogil:
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


# Returns 0, or what is wrong with the message.
cdef inline int on_message(Engine* e, Connection* c, Message* message) noexcept nogil:
    if message.opcode == WEB_BINARY:
        if c.carrier == CARRIER_SESSION:
            return send_channel(e, c, message.payload, message.size)
        return send_message(e, c, message.payload, message.size)
    if message.opcode == WEB_TEXT:
        if not admit_text(c.carriage):
            return WEB_TOO_MANY_TEXTS
        post_message(e, c, NOTICE_TEXT, message.payload, message.size, 0, 0)
    elif message.opcode == WEB_PING:
        add_pong(e, c, message.payload, message.size)
    elif message.opcode == WEB_CLOSE:
        on_close_frame(e, c, message.payload, message.size)
    return 0


# Sub-protocol turn: each message is one unit, with or without padding.
cdef inline int send_message(Engine* e, Connection* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint32_t unit = <uint32_t> datagram_unit(message, size)
    if not unit or (unit != size and ((unit + 3) & ~<uint32_t> 3) != size):
        return WEB_NO_TURN_MESSAGE
    forward(e, c, message, unit)
    return 0


# Sub-protocol media.v1: channel number and data become ChannelData in place; there is room in front of the message.
cdef inline int send_channel(Engine* e, Connection* c, uint8_t* message, uint32_t size) noexcept nogil:
    cdef uint8_t* unit = message - WEB_ROOM
    if size < 2 or message[0] & 0xC0 != 0x40:
        return WEB_NO_CHANNEL_NUMBER
    if c.udp >= 0:
        unit[0], unit[1] = message[0], message[1]
        unit[2], unit[3] = <uint8_t> ((size - 2) >> 8), <uint8_t> (size - 2)
        forward(e, c, unit, size + 2)
    return 0


# All pongs to one read leave together.
cdef inline void add_pong(Engine* e, Connection* c, const uint8_t* payload, uint32_t size) noexcept nogil:
    if e.pong_bytes + 2 + size > PLAIN_BYTES:
        send_pongs(e, c)
    write_control_head(e.record + e.pong_bytes, WEB_PONG, size)
    memcpy(e.record + e.pong_bytes + 2, payload, size)
    e.pong_bytes += 2 + size


cdef inline void send_pongs(Engine* e, Connection* c) noexcept nogil:
    cdef uint32_t size = e.pong_bytes
    e.pong_bytes = 0
    if size and c.state == STATE_MEDIA:
        send_own(e, c, e.record, size)


# The client closes, and gets its own code back.
cdef inline void on_close_frame(Engine* e, Connection* c, const uint8_t* payload, uint32_t size) noexcept nogil:
    send_pongs(e, c)
    note_close(c.carriage, payload, size)
    c.failure = c.carriage.words
    end(e, c, REASON_CLIENT_CLOSED)


cdef inline void break_web(Engine* e, Connection* c, int fault) noexcept nogil:
    send_pongs(e, c)
    if c.state != STATE_MEDIA:
        return
    note_web_fault(c.carriage, fault)
    c.failure = c.carriage.words
    end(e, c, REASON_BROKEN_FRAME)


# CONNECT-UDP: each capsule has one datagram, which goes on as it is (RFC 9298).
cdef inline uint32_t send_payloads(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
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


# The client thinks that it sends UDP, so it sends again itself what gets lost.
cdef inline void send_payload(Engine* e, Connection* c, const uint8_t* data, uint32_t size) noexcept nogil:
    if not is_media_datagram(data, size) or (c.admission.asks and not is_turn_datagram(data, size)):
        c.counters.drops[DROP_UPLINK_MALFORMED] += 1
        return
    if not may_send(e, c, data, size):
        return
    if size >= STUN_HEADER_BYTES and data[0] <= 3:
        if c.admission.asks and must_ask(e, c, data, size):
            return
        if datagram_unit(data, size):
            if not may_name(e, c, data, size):
                return
            remember(e, c, data, size)
    else:
        meter_datagram(e, &c.uplink_meter, data, size)
    send_up(e, c, data, size)
