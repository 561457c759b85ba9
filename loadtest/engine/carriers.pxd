# How a client puts units on the wire and takes them from it, for each carrier. A unit is a STUN or ChannelData message. On a
# session, which is JSON and media, it is a channel number and data; here it has ChannelData's head all the same, of which
# the length is left out.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from relay.plane.compiled.leaves.capsule cimport (
    CAPSULE_NEEDS_MORE, CAPSULE_PAYLOAD, Capsules, Payload, read_capsule, write_capsule_head,
)
from relay.plane.compiled.leaves.framing cimport UNIT_NEEDS_MORE, UNIT_WHOLE, Unit, measure_unit
from relay.plane.compiled.leaves.stun cimport datagram_unit, load16
from relay.plane.compiled.leaves.websocket cimport (
    WEB_BINARY, WEB_CLOSE, WEB_FINAL, WEB_PING, WEB_TEXT, unmask, write_head,
)

# In the order of loadtest.engine.plans.Carrier. Those between TLS and UDP begin with an HTTP request.
cdef enum Carrier:
    CARRIER_TLS
    CARRIER_WEBSOCKET
    CARRIER_SESSION
    CARRIER_CONNECT_UDP
    CARRIER_UDP
    CARRIER_PEER                # no TURN at all: RTP in datagrams, as the far end has it
    CARRIERS

cdef enum:
    # What is put in front of a unit: head and mask of a WebSocket frame. After it there is room for padding.
    FRAME_ROOM = 16
    MASK_BYTES = 4

cdef enum FrameKind:
    FRAME_UNIT
    FRAME_TEXT
    FRAME_PING
    FRAME_CLOSE
    FRAME_OTHER

cdef enum Taken:
    TAKEN_NEEDS_MORE = 0
    TAKEN_FRAME = 1
    TAKEN_BROKEN = -1

cdef struct Frame:
    FrameKind kind
    uint8_t* data
    uint32_t size
    uint32_t used               # bytes of the stream that are done with


# True for carriers without a connection, and so without TLS.
cdef inline bint is_datagram(Carrier carrier) noexcept nogil:
    return carrier == CARRIER_UDP or carrier == CARRIER_PEER


# True for carriers that begin with an HTTP request.
cdef inline bint is_upgraded(Carrier carrier) noexcept nogil:
    return CARRIER_WEBSOCKET <= carrier <= CARRIER_CONNECT_UDP


# True where a request may get lost on its way, so that the client sends it again (RFC 8489 section 6.2.1).
cdef inline bint is_lossy(Carrier carrier) noexcept nogil:
    return carrier == CARRIER_UDP or carrier == CARRIER_CONNECT_UDP


# 1. Putting. The frame is built around its payload; where it begins is returned.

# ``mask`` is to be different each time.
cdef inline uint8_t* put_message(
    uint8_t opcode, uint8_t* payload, uint32_t size, uint32_t mask, uint32_t* framed
) noexcept nogil:
    cdef uint32_t head
    memcpy(payload - MASK_BYTES, &mask, MASK_BYTES)
    unmask(payload, size)
    # The head is written where it ends before the mask.
    head = write_head(payload - MASK_BYTES, opcode, size)
    payload[1 - MASK_BYTES - <int> head] |= 0x80
    framed[0] = head + MASK_BYTES + size
    return payload - MASK_BYTES - head


cdef inline uint8_t* put_unit(
    Carrier carrier, uint8_t* unit, uint32_t size, uint32_t mask, uint32_t* framed
) noexcept nogil:
    cdef uint32_t head
    framed[0] = size
    if carrier == CARRIER_UDP:
        return unit
    if carrier == CARRIER_TLS:
        framed[0] = (size + 3) & ~<uint32_t> 3
        memset(unit + size, 0, framed[0] - size)
        return unit
    if carrier == CARRIER_CONNECT_UDP:
        head = write_capsule_head(unit, size)
        framed[0] = head + size
        return unit - head
    if carrier == CARRIER_SESSION:
        unit[2], unit[3] = unit[0], unit[1]
        unit += 2
        size -= 2
    return put_message(WEB_BINARY, unit, size, mask, framed)


# 2. Taking. A server neither masks its messages nor splits them, and sends at most 64 KiB.

cdef inline FrameKind kind_of(uint8_t opcode) noexcept nogil:
    if opcode == WEB_BINARY:
        return FRAME_UNIT
    if opcode == WEB_TEXT:
        return FRAME_TEXT
    if opcode == WEB_PING:
        return FRAME_PING
    return FRAME_CLOSE if opcode == WEB_CLOSE else FRAME_OTHER


cdef inline int take_message(uint8_t* data, uint32_t available, Frame* frame) noexcept nogil:
    cdef uint32_t head = 2, size
    if available < 2:
        return TAKEN_NEEDS_MORE
    size = data[1]
    if not data[0] & WEB_FINAL or data[0] & 0x70 or size > 126:
        return TAKEN_BROKEN
    if size == 126:
        if available < 4:
            return TAKEN_NEEDS_MORE
        size, head = load16(data + 2), 4
    if available < head + size:
        return TAKEN_NEEDS_MORE
    frame.kind, frame.data, frame.size, frame.used = kind_of(data[0] & 0x0F), data + head, size, head + size
    return TAKEN_FRAME


cdef inline int take_capsule(Capsules* capsules, uint8_t* data, uint32_t available, Frame* frame) noexcept nogil:
    cdef Payload payload
    cdef int taken = read_capsule(capsules, data, available, &payload)
    if taken == CAPSULE_NEEDS_MORE:
        return TAKEN_NEEDS_MORE
    if taken < 0:
        return TAKEN_BROKEN
    frame.kind, frame.used = FRAME_OTHER, payload.used
    if taken == CAPSULE_PAYLOAD:
        frame.kind, frame.data, frame.size = FRAME_UNIT, <uint8_t*> payload.data, payload.size
    return TAKEN_FRAME


cdef inline int take_stream(uint8_t* data, uint32_t available, Frame* frame) noexcept nogil:
    cdef Unit unit
    cdef int measured = measure_unit(data, available, &unit)
    if measured != UNIT_WHOLE:
        return TAKEN_NEEDS_MORE if measured == UNIT_NEEDS_MORE else TAKEN_BROKEN
    frame.kind, frame.data, frame.size, frame.used = FRAME_UNIT, data, unit.size, unit.stream_size
    return TAKEN_FRAME


# Padding of ChannelData on a stream is to be ignored (RFC 8656 section 12.5); an honest server sends zeros.
cdef inline bint has_dirty_padding(const Frame* frame) noexcept nogil:
    cdef uint32_t i
    for i in range(frame.size, frame.used):
        if frame.data[i]:
            return True
    return False


# Takes the first frame of what a server has sent. Of datagrams, each is one frame, or broken.
cdef inline int take_frame(
    Carrier carrier, Capsules* capsules, uint8_t* data, uint32_t available, Frame* frame
) noexcept nogil:
    if not available:
        return TAKEN_NEEDS_MORE
    if carrier == CARRIER_TLS:
        return take_stream(data, available, frame)
    if carrier == CARRIER_CONNECT_UDP:
        return take_capsule(capsules, data, available, frame)
    if carrier != CARRIER_UDP:
        return take_message(data, available, frame)
    frame.kind, frame.data, frame.used = FRAME_UNIT, data, available
    frame.size = <uint32_t> datagram_unit(data, available)
    return TAKEN_FRAME if frame.size else TAKEN_BROKEN
