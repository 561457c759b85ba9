# WebSocket frames (RFC 6455 section 5) as a server reads and writes them: the compiled twin of relay.wire.websocket,
# where the rules and the limits stand. A frame is unmasked where it lies; only the fragments of a message are copied.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from relay.plane.compiled.leaves.buffer cimport Buffer, append, front

cdef enum Opcode:
    WEB_CONTINUATION = 0
    WEB_TEXT = 1
    WEB_BINARY = 2
    WEB_CLOSE = 8
    WEB_PING = 9
    WEB_PONG = 10

cdef enum:
    WEB_FINAL = 0x80
    WEB_MAX_CONTROL_BYTES = 125
    WEB_MAX_BINARY_BYTES = 2048
    WEB_MAX_TEXT_BYTES = 65536
    WEB_MAX_HEAD_BYTES = 10         # of a server's frame
    # Before the payload of a message there are always so many bytes that may be written to: a ChannelData header begins
    # two bytes before the channel number.
    WEB_ROOM = 2
    WEB_WORDS_BYTES = 64            # of a fault's text, and the zero behind it

cdef enum Read:
    WEB_NEEDS_MORE = 0
    WEB_WHOLE = 1                   # a message, or a control frame
    WEB_PART = 2                    # a fragment; it is kept
    WEB_RESERVED_BITS = -1
    WEB_RESERVED_OPCODE = -2
    WEB_FRAGMENTED_CONTROL = -3
    WEB_CONTINUATION_OF_NOTHING = -4
    WEB_MESSAGE_WITHIN = -5
    WEB_TEXT_MESSAGE = -6
    WEB_UNMASKED = -7
    WEB_LONG_CONTROL = -8
    WEB_LENGTH_64 = -9
    WEB_LENGTH_FORM = -10
    WEB_TOO_BIG = -11
    WEB_NOT_UTF8 = -12
    WEB_CLOSE_OF_ONE = -13
    WEB_CLOSE_CODE = -14
    WEB_CLOSE_NOT_UTF8 = -15
    # What is wrong with a message, for who carries it to say.
    WEB_NO_TURN_MESSAGE = -16
    WEB_NO_CHANNEL_NUMBER = -17
    WEB_TOO_MANY_TEXTS = -18
    WEB_NO_MEMORY = -19

cdef struct WebSocket:
    bint takes_text
    uint8_t opcode                  # of the message whose fragments come, 0 if there is none
    uint32_t number                 # in the text of a fault
    Buffer message                  # its fragments so far, behind WEB_ROOM bytes

cdef struct Message:
    uint8_t opcode
    uint8_t* payload
    uint32_t size
    uint32_t used                   # bytes of the stream that are done with

cdef struct Head:
    uint8_t opcode
    bint final
    uint32_t start                  # of the payload
    uint32_t size                   # of it


cdef inline int measure_start(WebSocket* web, uint8_t first) noexcept nogil:
    cdef uint8_t opcode = first & 0x0F
    if first & 0x70:
        return WEB_RESERVED_BITS
    if 3 <= opcode <= 7 or opcode > WEB_PONG:
        web.number = opcode
        return WEB_RESERVED_OPCODE
    if opcode >= WEB_CLOSE:
        return WEB_WHOLE if first & WEB_FINAL else WEB_FRAGMENTED_CONTROL
    if opcode == WEB_CONTINUATION:
        return WEB_WHOLE if web.opcode else WEB_CONTINUATION_OF_NOTHING
    if web.opcode:
        return WEB_MESSAGE_WITHIN
    return WEB_TEXT_MESSAGE if opcode == WEB_TEXT and not web.takes_text else WEB_WHOLE


# Measures the frame at data. A fault is seen with the first byte that shows it, however the stream was split.
cdef inline int measure_frame(WebSocket* web, const uint8_t* data, size_t available, Head* head) noexcept nogil:
    cdef uint64_t length
    cdef uint32_t limit, extended = 0, i
    cdef int verdict
    if available == 0:
        return WEB_NEEDS_MORE
    verdict = measure_start(web, data[0])
    if verdict != WEB_WHOLE or available < 2:
        return verdict if verdict != WEB_WHOLE else WEB_NEEDS_MORE
    head.opcode, head.final = data[0] & 0x0F, data[0] & WEB_FINAL
    if not data[1] & 0x80:
        return WEB_UNMASKED
    length = data[1] & 0x7F
    if head.opcode >= WEB_CLOSE and length > WEB_MAX_CONTROL_BYTES:
        return WEB_LONG_CONTROL
    if length >= 126:
        extended = 2 if length == 126 else 8
        if available < 2 + extended:
            return WEB_NEEDS_MORE
        length = 0
        for i in range(extended):
            length = length << 8 | data[2 + i]
        if length >> 63:
            return WEB_LENGTH_64
        if length < (126 if extended == 2 else 65536):
            return WEB_LENGTH_FORM
    if head.opcode < WEB_CLOSE:
        limit = WEB_MAX_TEXT_BYTES if (web.opcode or head.opcode) == WEB_TEXT else WEB_MAX_BINARY_BYTES
        if length + (web.message.size - WEB_ROOM if web.message.size else 0) > limit:
            web.number = limit
            return WEB_TOO_BIG
    head.start = 6 + extended
    head.size = <uint32_t> length
    return WEB_WHOLE if available >= head.start + head.size else WEB_NEEDS_MORE


# Unmasks where it lies, with the four bytes before it.
cdef inline void unmask(uint8_t* payload, uint32_t size) noexcept nogil:
    cdef uint64_t key, word
    cdef uint8_t[8] mask
    cdef uint32_t i = 0
    memcpy(mask, payload - 4, 4)
    memcpy(mask + 4, payload - 4, 4)
    memcpy(&key, mask, 8)
    while i + 8 <= size:
        memcpy(&word, payload + i, 8)
        word ^= key
        memcpy(payload + i, &word, 8)
        i += 8
    while i < size:
        payload[i] ^= mask[i & 3]
        i += 1


# Well-formed UTF-8 (Unicode table 3-7): no surrogates, nothing overlong, nothing beyond U+10FFFF.
cdef inline bint is_utf8(const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t i = 0, follow, j
    cdef uint64_t word
    cdef uint8_t first, lowest, highest
    while i < size:
        if size - i >= 8:
            memcpy(&word, data + i, 8)
            if not word & 0x8080808080808080u:
                i += 8
                continue
        first = data[i]
        if first < 0x80:
            i += 1
            continue
        if first < 0xC2 or first > 0xF4:
            return False
        follow = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        lowest = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        highest = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if size - i <= follow or not lowest <= data[i + 1] <= highest:
            return False
        for j in range(2, follow + 1):
            if data[i + j] & 0xC0 != 0x80:
                return False
        i += follow + 1
    return True


cdef inline bint is_sendable_code(uint32_t code) noexcept nogil:
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef inline int check_close(WebSocket* web, const uint8_t* payload, uint32_t size) noexcept nogil:
    cdef uint32_t code
    if size == 1:
        return WEB_CLOSE_OF_ONE
    if size:
        code = <uint32_t> payload[0] << 8 | payload[1]
        if not is_sendable_code(code):
            web.number = code
            return WEB_CLOSE_CODE
        if not is_utf8(payload + 2, size - 2):
            return WEB_CLOSE_NOT_UTF8
    return WEB_WHOLE


# Reads one frame. A whole message lies where its frame did, or in ``web.message`` if it came in fragments: that is
# to be cleared when it is done with.
cdef inline int read_message(WebSocket* web, uint8_t* data, uint32_t available, Message* message) noexcept nogil:
    cdef Head head
    cdef int measured = measure_frame(web, data, available, &head)
    if measured != WEB_WHOLE:
        return measured
    message.opcode, message.payload, message.size = head.opcode, data + head.start, head.size
    message.used = head.start + head.size
    unmask(message.payload, head.size)
    if head.opcode >= WEB_CLOSE:
        return check_close(web, message.payload, head.size) if head.opcode == WEB_CLOSE else WEB_WHOLE
    if not head.final or web.opcode:
        if not web.message.size and not append(&web.message, data, WEB_ROOM):
            return WEB_NO_MEMORY
        if not append(&web.message, message.payload, head.size):
            return WEB_NO_MEMORY
        if head.opcode != WEB_CONTINUATION:
            web.opcode = head.opcode
        if not head.final:
            return WEB_PART
        message.opcode = web.opcode
        message.payload = front(&web.message) + WEB_ROOM
        message.size = web.message.size - WEB_ROOM
        web.opcode = 0
    if message.opcode == WEB_TEXT and not is_utf8(message.payload, message.size):
        return WEB_NOT_UTF8
    return WEB_WHOLE


# Writes the head of an unmasked, unfragmented frame in front of its payload; how long it is.
cdef inline uint32_t write_head(uint8_t* payload, uint8_t opcode, uint64_t size) noexcept nogil:
    cdef uint32_t extended = 0 if size < 126 else 2 if size < 65536 else 8, i
    cdef uint8_t* head = payload - 2 - extended
    head[0] = WEB_FINAL | opcode
    head[1] = <uint8_t> size if not extended else 126 if extended == 2 else 127
    for i in range(extended):
        head[2 + i] = <uint8_t> (size >> (8 * (extended - 1 - i)))
    return 2 + extended


# That of a control frame, which has two bytes.
cdef inline void write_control_head(uint8_t* frame, uint8_t opcode, uint32_t size) noexcept nogil:
    frame[0], frame[1] = WEB_FINAL | opcode, <uint8_t> size


# The close code that says what is wrong.
cdef inline uint16_t close_code_of(int fault) noexcept nogil:
    if fault == WEB_TEXT_MESSAGE:
        return 1003
    if fault == WEB_TOO_BIG:
        return 1009
    if fault in (WEB_NOT_UTF8, WEB_CLOSE_NOT_UTF8, WEB_NO_TURN_MESSAGE, WEB_NO_CHANNEL_NUMBER):
        return 1007
    if fault == WEB_TOO_MANY_TEXTS:
        return 1008
    return 1011 if fault == WEB_NO_MEMORY else 1002


# And its text, in WEB_WORDS_BYTES.
cdef inline void describe_fault(int fault, uint32_t number, char* words) noexcept nogil:
    cdef const char* text = b"out of memory"
    if fault == WEB_RESERVED_BITS:
        text = b"reserved bits"
    elif fault == WEB_RESERVED_OPCODE:
        text = b"reserved opcode %u"
    elif fault == WEB_FRAGMENTED_CONTROL:
        text = b"fragmented control frame"
    elif fault == WEB_CONTINUATION_OF_NOTHING:
        text = b"continuation of nothing"
    elif fault == WEB_MESSAGE_WITHIN:
        text = b"message within a message"
    elif fault == WEB_TEXT_MESSAGE:
        text = b"text message"
    elif fault == WEB_UNMASKED:
        text = b"unmasked frame"
    elif fault == WEB_LONG_CONTROL:
        text = b"control frame of more than 125 bytes"
    elif fault == WEB_LENGTH_64:
        text = b"length of 64 bits"
    elif fault == WEB_LENGTH_FORM:
        text = b"length not in its shortest form"
    elif fault == WEB_TOO_BIG:
        text = b"message of more than %u bytes"
    elif fault == WEB_NOT_UTF8:
        text = b"text is not UTF-8"
    elif fault == WEB_CLOSE_OF_ONE:
        text = b"close frame of 1 byte"
    elif fault == WEB_CLOSE_CODE:
        text = b"close code %u"
    elif fault == WEB_CLOSE_NOT_UTF8:
        text = b"close reason is not UTF-8"
    elif fault == WEB_NO_TURN_MESSAGE:
        text = b"no TURN message"
    elif fault == WEB_NO_CHANNEL_NUMBER:
        text = b"no channel number"
    elif fault == WEB_TOO_MANY_TEXTS:
        text = b"too many text messages"
    snprintf(words, WEB_WORDS_BYTES, text, number)
