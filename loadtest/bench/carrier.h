/* How units travel on the connection: as the stream of TURN (RFC 8656), in WebSocket messages (RFC 6455), as a session's
 * channel data, or in capsules (RFC 9297, 9298), all over TLS; or each in a UDP datagram. Those between the first and the
 * last begin with an HTTP request. */
#ifndef BENCH_CARRIER_H
#define BENCH_CARRIER_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum carrier { CARRIER_TURN, CARRIER_WEBSOCKET, CARRIER_SESSION, CARRIER_CONNECT_UDP, CARRIER_TURN_UDP, CARRIERS };

/* Header, mask and padding: no carrier puts more around a unit. */
#define CARRIER_OVERHEAD_BYTES 16u
/* As long as any request that is built here. */
#define CARRIER_REQUEST_BYTES 512u

enum frame_kind {
    FRAME_UNIT,  /* a STUN or ChannelData message; of a session: channel number and data */
    FRAME_TEXT,  /* of a session */
    FRAME_OTHER, /* pings, and capsules of another kind */
};

struct frame {
    enum frame_kind kind;
    const uint8_t *payload;
    size_t size;
    size_t stream_size; /* with all that is around it */
};

/* The carrier of this name; CARRIERS if there is none. */
enum carrier carrier_named(const char *name);

/* The HTTP request that begins it, and its size: 0 for TURN, which needs none. */
size_t carrier_request(enum carrier carrier, char *out, const char *server_name, const struct sockaddr_in *target);

/* Puts a payload on the wire at ``out``, as a client does; gives how many bytes it has become. */
size_t carrier_put(enum carrier carrier, uint8_t *out, enum frame_kind kind, const uint8_t *payload, size_t size);

/* Finds the first frame of what a server has sent. 1 found, 0 needs more, -1 broken. */
int carrier_take(enum carrier carrier, const uint8_t *at, size_t available, struct frame *frame);

#endif
