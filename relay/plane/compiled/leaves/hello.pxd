# What a client may say before its handshake is done, judged on the wire, before TLS takes memory or time for it: the
# compiled twin of relay.plane.reference.hello.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from relay.plane.compiled.leaves.first_bytes cimport (
    FIRST_BYTES_HTTP, FIRST_BYTES_NEED_MORE, FIRST_BYTES_TURN, FirstBytes, decide,
)

cdef enum HelloFault:
    HELLO_GOOD
    HELLO_NOT_TLS
    HELLO_PLAIN_HTTP
    HELLO_PLAIN_STUN
    HELLO_PROXY_HEADER
    HELLO_TOO_LONG
    HELLO_TOO_MANY_RECORDS
    HELLO_CHAIN_TOO_LONG

cdef enum:
    # A ClientHello has 2 KB, 4 KB with tickets and keys of every kind. OpenSSL begins with this much memory for a
    # message, and takes what the client announces beyond that, up to 128 KiB, before it has come.
    MAX_HELLO_BYTES = 16384
    # Of a client's certificate and those above it. A leaf and three authorities with RSA 4096 have 8 KB. It fits into
    # the memory that OpenSSL has for a message anyway. A session ticket holds the leaf, and with it a ClientHello must
    # still be short enough.
    MAX_CLIENT_CHAIN_BYTES = 12288
    # A handshake takes four records of the client; some clients cut their first in pieces. Each one costs a turn's time.
    MAX_HELLO_RECORDS = 64
    PROXY_PREFIX_BYTES = 6
    PROXY_SIGNATURE_BYTES = 12
    RECORD_HEAD_BYTES = 5
    MESSAGE_HEAD_BYTES = 4
    RECORD_CHANGE_CIPHER_SPEC = 20
    RECORD_HANDSHAKE = 22
    RECORD_APPLICATION_DATA = 23
    MESSAGE_CERTIFICATE = 11    # in clear only in TLS 1.2
    # In what we send first: the record's head, the message's head, its version; then 32 random bytes.
    SERVER_RANDOM_OFFSET = 11
    RANDOM_BYTES = 32

cdef struct Hello:
    bint done                   # what follows is encrypted, and not looked at
    bint begun
    bint whole                  # the first message is, or TLS must say what is wrong with it
    bint answered               # we have said something
    bint retried                # and it was a HelloRetryRequest: a second ClientHello comes
    uint8_t kind                # of the record
    uint8_t[RECORD_HEAD_BYTES] record_head
    uint32_t record_head_size
    uint32_t record_left
    uint8_t[MESSAGE_HEAD_BYTES] message_head
    uint32_t message_head_size
    uint32_t message_left
    uint32_t records
    HelloFault fault


# A balancer's word about its client, as relay.wire.proxy_header has it.
cdef inline bint is_proxy_header(const uint8_t* data, uint32_t size) noexcept nogil:
    if size >= PROXY_PREFIX_BYTES and memcmp(data, b"PROXY ", PROXY_PREFIX_BYTES) == 0:
        return True
    return size >= PROXY_SIGNATURE_BYTES and memcmp(data, b"\r\n\r\n\x00\r\nQUIT\n", PROXY_SIGNATURE_BYTES) == 0


# What a client speaks that does not begin with a record of a handshake.
cdef inline HelloFault fault_of(const uint8_t* data, uint32_t size) noexcept nogil:
    cdef FirstBytes spoken = decide(data, size)
    if is_proxy_header(data, size):
        return HELLO_PROXY_HEADER
    if spoken == FIRST_BYTES_TURN:
        return HELLO_PLAIN_STUN
    if spoken == FIRST_BYTES_HTTP or (spoken == FIRST_BYTES_NEED_MORE and data[0] >= 0x40):
        return HELLO_PLAIN_HTTP
    return HELLO_NOT_TLS


# Takes bytes of a record's head; how many. Once it is whole, the record counts.
cdef inline uint32_t take_record_head(Hello* hello, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t used = 0
    while used < size and hello.record_head_size < RECORD_HEAD_BYTES:
        hello.record_head[hello.record_head_size] = data[used]
        hello.record_head_size += 1
        used += 1
    if hello.record_head_size < RECORD_HEAD_BYTES:
        return used
    hello.record_head_size = 0
    hello.kind = hello.record_head[0]
    hello.record_left = <uint32_t> hello.record_head[3] << 8 | hello.record_head[4]
    # From its ChangeCipherSpec on a client's messages are encrypted, but for a second ClientHello of TLS 1.3.
    hello.done = hello.kind == RECORD_CHANGE_CIPHER_SPEC and hello.answered and not hello.retried
    if hello.kind != RECORD_HANDSHAKE:
        hello.whole = True
    if hello.kind != RECORD_APPLICATION_DATA:
        hello.records += 1
        if hello.records > MAX_HELLO_RECORDS:
            hello.fault = HELLO_TOO_MANY_RECORDS
    return used


# Takes bytes of a handshake record.
cdef inline void take_messages(Hello* hello, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t used = 0, skipped
    while used < size and not hello.fault:
        if hello.message_left:
            skipped = hello.message_left if hello.message_left < size - used else size - used
            hello.message_left -= skipped
            used += skipped
            hello.whole = hello.whole or not hello.message_left
            continue
        hello.message_head[hello.message_head_size] = data[used]
        hello.message_head_size += 1
        used += 1
        if hello.message_head_size == MESSAGE_HEAD_BYTES:
            hello.message_head_size = 0
            hello.message_left = (
                <uint32_t> hello.message_head[1] << 16 | <uint32_t> hello.message_head[2] << 8 | hello.message_head[3]
            )
            hello.whole = hello.whole or not hello.message_left
            if hello.message_left > MAX_HELLO_BYTES - MESSAGE_HEAD_BYTES:
                hello.fault = (
                    HELLO_CHAIN_TOO_LONG if hello.message_head[0] == MESSAGE_CERTIFICATE else HELLO_TOO_LONG
                )


# Looks at what the client has sent, however it was split; False if it must not go on.
cdef inline bint take_hello(Hello* hello, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t offset = 0, used
    if not hello.begun and size:
        hello.begun = True
        if data[0] != RECORD_HANDSHAKE:
            hello.fault = fault_of(data, size)
    while offset < size and not hello.done and not hello.fault:
        if not hello.record_left:
            offset += take_record_head(hello, data + offset, size - offset)
            continue
        used = hello.record_left if hello.record_left < size - offset else size - offset
        if hello.kind == RECORD_HANDSHAKE:
            take_messages(hello, data + offset, used)
        hello.record_left -= used
        offset += used
    return hello.fault == HELLO_GOOD


# Looks at what we send. A HelloRetryRequest has this instead of random bytes (RFC 8446 section 4.1.3).
cdef inline void note_answer(Hello* hello, const uint8_t* data, uint32_t size) noexcept nogil:
    if hello.answered:
        return
    hello.answered = True
    hello.retried = size >= SERVER_RANDOM_OFFSET + RANDOM_BYTES and memcmp(
        data + SERVER_RANDOM_OFFSET,
        b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91"
        b"\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c",
        RANDOM_BYTES,
    ) == 0


# For the log, and the names of relay.plane.certificates.HANDSHAKE_FAILURES.
cdef inline const char* words_of(HelloFault fault) noexcept nogil:
    if fault == HELLO_PLAIN_HTTP:
        return b"http request"
    if fault == HELLO_PLAIN_STUN:
        return b"stun in clear"
    if fault == HELLO_PROXY_HEADER:
        return b"proxy header"
    if fault == HELLO_TOO_LONG:
        return b"client hello too long"
    if fault == HELLO_CHAIN_TOO_LONG:
        return b"client certificate chain too long"
    if fault == HELLO_TOO_MANY_RECORDS:
        return b"client hello in too many records"
    return b"wrong version number"
