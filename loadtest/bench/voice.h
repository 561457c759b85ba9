/* Calls: packets on an absolute clock, and the judgement of their echoes. */
#ifndef BENCH_VOICE_H
#define BENCH_VOICE_H

#include <stdbool.h>
#include <stdint.h>

#include "client.h"
#include "stats.h"

struct call {
    struct client client; /* first: a client's pointer is its call's */
    uint8_t *heard;       /* one bit for each sequence number */
    uint32_t next;        /* one more than the highest sequence number heard */
};

struct voice_settings {
    uint32_t calls, pps, payload_bytes;
    /* Sequence numbers of one call: those below ``first_counted`` are warm-up. */
    uint32_t first_counted, end;
};

/* Of the packets that count, unless it says otherwise. */
struct voice_result {
    uint64_t due, unsent, received;
    uint64_t corrupt, duplicate, reordered, misrouted; /* of all packets */
    uint64_t frames;                                   /* sent and received while the server's CPU time was measured */
    struct histogram rtt, late;
};

struct voice {
    struct voice_settings settings;
    struct voice_result result;
    struct call *calls;
    uint64_t run_key, start_ns, tick;
};

/* Makes the calls, without connections. False without memory. */
bool voice_prepare(struct voice *voice, struct voice_settings settings);
void voice_on_data(struct client *client, const uint8_t *payload, size_t size);

/* When packet ``sequence`` of call 0 is due. */
uint64_t voice_due_ns(const struct voice *voice, uint32_t sequence);
/* Sends what is due at ``now``, at most ``limit`` packets. True if there may be more. */
bool voice_send_due(struct voice *voice, uint64_t now, uint32_t limit);
bool voice_all_sent(const struct voice *voice);
bool voice_all_received(const struct voice *voice);

#endif
