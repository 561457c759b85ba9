#include "carrier.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "stamp.h"
#include "turn.h"

/* A frame's first byte: whole, and a text, binary or other message. Its second: masked, as all of a client's are. */
enum { FINAL = 0x80, OPCODE_BITS = 0x0F, TEXT = 1, BINARY = 2, FIRST_CONTROL = 8, MASKED = 0x80 };
#define MASK_BYTES 4u
#define SHORT_MESSAGE_BYTES 125u
#define LENGTH16 126u

static const char *const names[CARRIERS] = {"turn", "websocket", "session", "connect-udp", "turn-udp"};

enum carrier carrier_named(const char *name)
{
    enum carrier carrier = CARRIER_TURN;
    while (carrier < CARRIERS && strcmp(name, names[carrier]))
        carrier++;
    return carrier;
}

size_t carrier_request(enum carrier carrier, char *out, const char *server_name, const struct sockaddr_in *target)
{
    static const char websocket[] = "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                                    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bG9hZCBnZW5lcmF0b3IhIQ==\r\n"
                                    "Sec-WebSocket-Protocol: %s\r\n\r\n";
    static const char capsules[] = "GET /.well-known/masque/udp/%s/%u/ HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\n"
                                   "Upgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n";
    int size = 0;
    if (carrier == CARRIER_WEBSOCKET)
        size = snprintf(out, CARRIER_REQUEST_BYTES, websocket, "/turn", server_name, "turn");
    else if (carrier == CARRIER_SESSION)
        size = snprintf(out, CARRIER_REQUEST_BYTES, websocket, "/media", server_name, "media.v1");
    else if (carrier == CARRIER_CONNECT_UDP)
        size = snprintf(out, CARRIER_REQUEST_BYTES, capsules, inet_ntoa(target->sin_addr), ntohs(target->sin_port),
                        server_name);
    return (size_t)size;
}

/* 1. WebSocket */

static size_t put_message(uint8_t *out, enum frame_kind kind, const uint8_t *payload, size_t size)
{
    /* Unpredictable to no attacker, but different each time, as a client's must be. */
    static uint64_t state = 1;
    uint64_t key = mix64(&state), wide = (key & 0xFFFFFFFFu) << 32 | (key & 0xFFFFFFFFu);
    size_t at = 2;
    out[0] = FINAL | (kind == FRAME_TEXT ? TEXT : BINARY);
    if (size <= SHORT_MESSAGE_BYTES) {
        out[1] = (uint8_t)(MASKED | size);
    } else {
        out[1] = MASKED | LENGTH16;
        store16(out + 2, (uint32_t)size);
        at = 4;
    }
    memcpy(out + at, &wide, MASK_BYTES);
    at += MASK_BYTES;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        size_t part = size - i < 8 ? size - i : 8;
        memcpy(&word, payload + i, part);
        word ^= wide;
        memcpy(out + at + i, &word, part);
    }
    return at + size;
}

static int take_message(const uint8_t *at, size_t available, struct frame *frame)
{
    size_t header = 2, size;
    if (available < 2)
        return 0;
    size = at[1];
    if (!(at[0] & FINAL) || size > LENGTH16)
        return -1; /* a relay neither masks nor splits what it sends, nor sends more than 64 KiB */
    if (size == LENGTH16) {
        header = 4;
        if (available < 4)
            return 0;
        size = load16(at + 2);
    }
    uint8_t opcode = at[0] & OPCODE_BITS;
    *frame = (struct frame){
        .kind = opcode == BINARY ? FRAME_UNIT : opcode == TEXT ? FRAME_TEXT : FRAME_OTHER,
        .payload = at + header,
        .size = size,
        .stream_size = header + size,
    };
    return available >= frame->stream_size;
}

/* 2. Capsules: type DATAGRAM, length, context 0, payload; each number of a length that its first bits tell (RFC 9000) */

static size_t put_capsule(uint8_t *out, const uint8_t *payload, size_t size)
{
    size_t at = 1, value = size + 1;
    out[0] = 0;
    if (value < 0x40) {
        out[at++] = (uint8_t)value;
    } else {
        store16(out + at, 0x4000u | (uint32_t)value);
        at += 2;
    }
    out[at++] = 0;
    memcpy(out + at, payload, size);
    return at + size;
}

/* Gives the number's size, or 0 if there is not all of it. */
static size_t take_number(const uint8_t *at, size_t available, uint64_t *number)
{
    size_t size = available ? (size_t)1 << (at[0] >> 6) : 1;
    if (available < size)
        return 0;
    *number = at[0] & 0x3F;
    for (size_t i = 1; i < size; i++)
        *number = *number << 8 | at[i];
    return size;
}

static int take_capsule(const uint8_t *at, size_t available, struct frame *frame)
{
    uint64_t type, size, context;
    size_t header = take_number(at, available, &type);
    size_t length = header ? take_number(at + header, available - header, &size) : 0;
    if (!length)
        return 0;
    header += length;
    if (size > 0xFFFF)
        return -1;
    *frame = (struct frame){.kind = FRAME_OTHER, .stream_size = header + size};
    if (available < frame->stream_size)
        return 0;
    if (type == 0) {
        length = take_number(at + header, size, &context);
        if (!length)
            return -1;
        frame->kind = context == 0 ? FRAME_UNIT : FRAME_OTHER;
        frame->payload = at + header + length;
        frame->size = size - length;
    }
    return 1;
}

/* 3. TURN */

static size_t put_unit(uint8_t *out, const uint8_t *unit, size_t size)
{
    memcpy(out, unit, size);
    memset(out + size, 0, padded(size) - size);
    return padded(size);
}

static int take_unit(const uint8_t *at, size_t available, struct frame *frame)
{
    if (available < CHANNEL_HEADER_BYTES)
        return 0;
    if (at[0] & 0x80)
        return -1;
    size_t size = at[0] & 0x40 ? CHANNEL_HEADER_BYTES + load16(at + 2) : stun_size(at);
    *frame = (struct frame){.kind = FRAME_UNIT, .payload = at, .size = size, .stream_size = padded(size)};
    return available >= frame->stream_size;
}

/* A datagram is one unit, padded or not. */
static int take_datagram(const uint8_t *at, size_t available, struct frame *frame)
{
    if (!available)
        return 0;
    if (available < CHANNEL_HEADER_BYTES || at[0] & 0x80)
        return -1;
    size_t size = at[0] & 0x40 ? CHANNEL_HEADER_BYTES + load16(at + 2) : stun_size(at);
    *frame = (struct frame){.kind = FRAME_UNIT, .payload = at, .size = size, .stream_size = available};
    return size <= available ? 1 : -1;
}

/* 4. Whichever it is */

size_t carrier_put(enum carrier carrier, uint8_t *out, enum frame_kind kind, const uint8_t *payload, size_t size)
{
    if (carrier == CARRIER_TURN)
        return put_unit(out, payload, size);
    if (carrier == CARRIER_TURN_UDP) {
        memcpy(out, payload, size);
        return size;
    }
    return carrier == CARRIER_CONNECT_UDP ? put_capsule(out, payload, size) : put_message(out, kind, payload, size);
}

int carrier_take(enum carrier carrier, const uint8_t *at, size_t available, struct frame *frame)
{
    if (carrier == CARRIER_TURN)
        return take_unit(at, available, frame);
    if (carrier == CARRIER_TURN_UDP)
        return take_datagram(at, available, frame);
    return carrier == CARRIER_CONNECT_UDP ? take_capsule(at, available, frame) : take_message(at, available, frame);
}
