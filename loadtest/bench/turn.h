/* STUN and TURN messages, as much of them as the upstream needs (RFC 8489, 8656).
 * Byte-wise loads and stores: a message may start at any address. */
#ifndef BENCH_TURN_H
#define BENCH_TURN_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MAGIC_COOKIE 0x2112A442u
#define STUN_HEADER_BYTES 20u
#define TRANSACTION_ID_BYTES 12u
#define CHANNEL_BYTES 2u
#define CHANNEL_HEADER_BYTES 4u
#define FIRST_CHANNEL 0x4000u
#define CHANNELS 0x1000u
/* Room for the largest message that is built here. */
#define STUN_MAX_BYTES 512u

/* Message types: the method, with the class in bits 4 and 8. */
enum { CLASS_BITS = 0x0110, SUCCESS_BITS = 0x0100, ERROR_BITS = 0x0110 };
enum { BINDING = 0x0001, ALLOCATE = 0x0003, REFRESH = 0x0004, CREATE_PERMISSION = 0x0008, CHANNEL_BIND = 0x0009 };

enum {
    USERNAME = 0x0006,
    MESSAGE_INTEGRITY = 0x0008,
    ERROR_CODE = 0x0009,
    CHANNEL_NUMBER = 0x000C,
    LIFETIME = 0x000D,
    XOR_PEER_ADDRESS = 0x0012,
    REALM = 0x0014,
    NONCE = 0x0015,
    XOR_RELAYED_ADDRESS = 0x0016,
    REQUESTED_TRANSPORT = 0x0019,
    XOR_MAPPED_ADDRESS = 0x0020,
};

static inline uint32_t load16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static inline uint32_t load32(const uint8_t *at)
{
    return load16(at) << 16 | load16(at + 2);
}

static inline void store16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void store32(uint8_t *at, uint32_t value)
{
    store16(at, value >> 16);
    store16(at + 2, value);
}

/* What a length takes on a stream: padded to four bytes. In size_t, where it cannot wrap. */
static inline size_t padded(size_t size)
{
    return (size + 3) & ~(size_t)3;
}

static inline size_t stun_size(const uint8_t *message)
{
    return STUN_HEADER_BYTES + load16(message + 2);
}

static inline bool is_stun(const uint8_t *data, size_t size)
{
    return size >= STUN_HEADER_BYTES && data[0] < 4 && load32(data + 4) == MAGIC_COOKIE && stun_size(data) == size;
}

static inline void stun_begin(uint8_t *message, uint32_t type, const uint8_t *transaction_id)
{
    store16(message, type);
    store16(message + 2, 0);
    store32(message + 4, MAGIC_COOKIE);
    memcpy(message + 8, transaction_id, TRANSACTION_ID_BYTES);
}

/* Appends an attribute, with zero padding. The caller has the room. */
static inline void stun_add(uint8_t *message, uint32_t type, const uint8_t *value, size_t size)
{
    uint8_t *at = message + stun_size(message);
    store16(at, type);
    store16(at + 2, (uint32_t)size);
    memcpy(at + 4, value, size);
    memset(at + 4 + size, 0, padded(size) - size);
    store16(message + 2, load16(message + 2) + 4 + (uint32_t)padded(size));
}

static inline void stun_add32(uint8_t *message, uint32_t type, uint32_t value)
{
    uint8_t bytes[4];
    store32(bytes, value);
    stun_add(message, type, bytes, sizeof bytes);
}

/* RFC 8489 section 14.2, IPv4 only: port and address are XORed with the cookie. */
static inline void stun_add_address(uint8_t *message, uint32_t type, const struct sockaddr_in *address)
{
    uint8_t value[8] = {0, 1};
    store16(value + 2, ntohs(address->sin_port) ^ MAGIC_COOKIE >> 16);
    store32(value + 4, ntohl(address->sin_addr.s_addr) ^ MAGIC_COOKIE);
    stun_add(message, type, value, sizeof value);
}

/* The value of the first attribute of a type that has four bytes, or ``otherwise``. The message is whole. */
static inline uint32_t stun_find32(const uint8_t *message, uint32_t type, uint32_t otherwise)
{
    size_t end = stun_size(message);
    for (size_t at = STUN_HEADER_BYTES; at + 4 <= end; at += 4 + padded(load16(message + at + 2))) {
        if (load16(message + at) == type && load16(message + at + 2) == 4 && at + 8 <= end)
            return load32(message + at + 4);
    }
    return otherwise;
}

#endif
