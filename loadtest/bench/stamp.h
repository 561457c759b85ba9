/* What a packet carries so that its echo proves itself: whose it is, which one, when it left, and bytes that follow
 * from these and from nothing else.
 *
 *   0   RTP header (12): version 2, PCMU, sequence number, timestamp, SSRC; relays that look at RTP find a voice stream
 *  12   connection (4), sequence (4), send time in ns (8)
 *  28   filler: a generator's output, seeded with all of the above and a key of this run
 *
 * A byte that changed in the stamp changes the filler that is expected, so every byte is covered. The run's key keeps
 * stragglers of an earlier run from being taken for ours. */
#ifndef BENCH_STAMP_H
#define BENCH_STAMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "turn.h"

#define STAMP_AT 12u
#define FILLER_AT 28u
/* Eight bytes of filler at least: fewer might agree by chance. */
#define MIN_PAYLOAD_BYTES 36u
/* As much as one datagram carries across an Ethernet. */
#define MAX_PAYLOAD_BYTES 1400u
#define G711_SAMPLES 160u

struct stamp {
    uint32_t connection;
    uint32_t sequence;
    uint64_t sent_ns;
};

/* SplitMix64 (Steele, Lea, Flood 2014): one multiplication chain for eight bytes. */
static inline uint64_t mix64(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

static inline void build_payload(uint8_t *payload, size_t size, struct stamp stamp, uint64_t run_key)
{
    payload[0] = 0x80;
    payload[1] = 0;
    store16(payload + 2, stamp.sequence);
    store32(payload + 4, stamp.sequence * G711_SAMPLES);
    store32(payload + 8, stamp.connection + 1);
    store32(payload + STAMP_AT, stamp.connection);
    store32(payload + STAMP_AT + 4, stamp.sequence);
    store64(payload + STAMP_AT + 8, stamp.sent_ns);
    uint64_t state = run_key ^ stamp.sent_ns;
    state = mix64(&state) ^ ((uint64_t)stamp.connection << 32 | stamp.sequence);
    for (size_t at = FILLER_AT; at < size; at += 8) {
        uint64_t filler = mix64(&state);
        memcpy(payload + at, &filler, size - at < 8 ? size - at : 8);
    }
}

/* True if the payload is, byte for byte, one that was built with this key and size. */
static inline bool parse_payload(const uint8_t *payload, size_t size, size_t expected, uint64_t run_key,
                                 struct stamp *stamp)
{
    uint8_t rebuilt[MAX_PAYLOAD_BYTES];
    if (size != expected)
        return false;
    stamp->connection = load32(payload + STAMP_AT);
    stamp->sequence = load32(payload + STAMP_AT + 4);
    stamp->sent_ns = load64(payload + STAMP_AT + 8);
    build_payload(rebuilt, size, *stamp, run_key);
    return memcmp(payload, rebuilt, size) == 0;
}

#endif
