/* One TURN client over TLS that never blocks: TCP, TLS, the carrier, Allocate, ChannelBind, then ChannelData both ways.
 * Over UDP it begins with Allocate, sends no request again, and fails if the server says that it cannot be reached.
 *
 * The owner waits on ``epoll``, calls client_on_events, and looks at ``state`` afterwards. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <netinet/in.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "carrier.h"

/* A unit must fit whole; the largest carries 1400 bytes. More is the kernel's to hold. */
#define CLIENT_IN_BYTES 4096u
/* What a client keeps while the server does not read: 1.7 s of G.711. After that packets are not sent, and are lost. */
#define CLIENT_OUT_BYTES 16384u
/* Longer than any server's. */
#define REALM_BYTES 64u
#define NONCE_BYTES 128u
#define KEY_BYTES 16u

enum client_state {
    CLIENT_NEW,
    CLIENT_CONNECTING,
    CLIENT_HANDSHAKING,
    CLIENT_UPGRADING, /* from HTTP, where the carrier asks for it */
    CLIENT_ALLOCATING,
    CLIENT_BINDING,
    CLIENT_READY, /* bound; or only allocated, where no channel is asked for */
    CLIENT_DEAD,  /* failed, or closed by the server; ``settings->first_error`` may say why */
};

struct client;

/* What all clients of a run have in common. */
struct client_settings {
    int epoll;
    SSL_CTX *tls;
    struct sockaddr_in server;
    struct sockaddr_in peer; /* what the channel is bound to: behind coturn the echo, behind a relay no matter */
    struct sockaddr_in upstream; /* whom CONNECT-UDP names */
    const char *server_name;
    enum carrier carrier;
    bool binds_channel;
    /* A long-term credential, used if the server asks for it; NULL: none. The key follows from it and the realm. */
    const char *username, *password;
    uint8_t realm[REALM_BYTES], key[KEY_BYTES];
    size_t realm_size;
    void (*on_data)(struct client *client, const uint8_t *payload, size_t size);
    uint64_t foreign;       /* frames on a channel that is not the connection's */
    uint64_t dirty_padding; /* frames whose padding is not zero: no harm to a client, but whose bytes are these? */
    char first_error[128];
};

struct client {
    struct client_settings *settings;
    SSL *tls;
    uint32_t number;
    int fd;
    enum client_state state;
    bool waits_for_room;
    uint8_t challenges; /* 401 and 438 */
    uint8_t moves;      /* to another port */
    uint8_t nonce[NONCE_BYTES];
    size_t nonce_size;
    size_t in_size, out_size;
    uint8_t in[CLIENT_IN_BYTES];
    uint8_t out[CLIENT_OUT_BYTES];
};

/* A context for TLS 1.2 or 1.3 (12, 13), or for either (0). It checks no certificate: the bench trusts itself. */
SSL_CTX *client_context(int version);

/* Starts to connect. ``client`` is zeroed memory, or one that was closed. */
void client_open(struct client *client, struct client_settings *settings, uint32_t number);
void client_on_events(struct client *client, uint32_t events);
/* Sends a payload on the channel. False if there is no connection, or no room. */
bool client_send_data(struct client *client, const uint8_t *payload, size_t size);
void client_close(struct client *client);

#endif
