#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stamp.h"
#include "turn.h"

/* Loopback would advertise 64 KB, and the server's kernel would then buffer as for no real client. */
#define ETHERNET_MSS 1448
#define UDP_PROTOCOL 17u
/* As long as anything that is said of a session. */
#define SAYING_BYTES 160u
#define UNAUTHORIZED 401u
#define STALE_NONCE 438u
/* One for the nonce, one for a nonce that became stale. More mean a wrong password. */
#define MAX_CHALLENGES 2u
#define INTEGRITY_BYTES 20u
#define ALLOCATION_MISMATCH 437u
/* The kernel gives a port again, and a server may remember it from an earlier run. */
#define MAX_MOVES 16u

SSL_CTX *client_context(int version)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (!context)
        return NULL;
    SSL_CTX_set_min_proto_version(context, version == 13 ? TLS1_3_VERSION : TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(context, version == 12 ? TLS1_2_VERSION : 0);
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    /* One read call takes all that has come, not a header and then a record. */
    SSL_CTX_set_read_ahead(context, 1);
    return context;
}

/* 1. The end, whatever the reason */

static void fail(struct client *client, const char *why)
{
    struct client_settings *settings = client->settings;
    static const char *const doing[] = {"", "connecting", "shaking hands", "upgrading",
                                        "allocating", "binding", "ready"};
    if (!settings->first_error[0])
        snprintf(settings->first_error, sizeof settings->first_error, "%s (%s)", why, doing[client->state]);
    client->state = CLIENT_DEAD;
    epoll_ctl(settings->epoll, EPOLL_CTL_DEL, client->fd, NULL);
}

static void release(struct client *client);

void client_close(struct client *client)
{
    if (client->state == CLIENT_NEW)
        return;
    if (client->settings->carrier == CARRIER_TURN_UDP && client->state > CLIENT_ALLOCATING)
        release(client);
    /* The close_notify is one more record; nothing waits for the server's. A dead session may not be shut down. */
    if (client->tls && client->state >= CLIENT_UPGRADING && client->state <= CLIENT_READY)
        SSL_shutdown(client->tls);
    ERR_clear_error();
    SSL_free(client->tls);
    close(client->fd);
    client->tls = NULL;
    client->state = CLIENT_NEW;
}

/* 2. TCP */

static void watch(struct client *client, int operation, bool waits_for_room)
{
    struct epoll_event event = {.events = EPOLLIN | (waits_for_room ? EPOLLOUT : 0u), .data.ptr = client};
    client->waits_for_room = waits_for_room;
    epoll_ctl(client->settings->epoll, operation, client->fd, &event);
}

static void wait_for_room(struct client *client, bool wanted)
{
    if (client->waits_for_room != wanted)
        watch(client, EPOLL_CTL_MOD, wanted);
}

static void begin(struct client *client);

static void open_udp(struct client *client)
{
    const struct sockaddr_in *server = &client->settings->server;
    client->challenges = 0;
    client->nonce_size = 0;
    client->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || connect(client->fd, (const struct sockaddr *)server, sizeof *server) < 0) {
        fail(client, strerror(errno));
        return;
    }
    watch(client, EPOLL_CTL_ADD, false);
    begin(client);
}

void client_open(struct client *client, struct client_settings *settings, uint32_t number)
{
    int on = 1, mss = ETHERNET_MSS;
    client->settings = settings;
    client->number = number;
    client->in_size = client->out_size = 0;
    client->moves = 0;
    client->state = CLIENT_CONNECTING;
    if (settings->carrier == CARRIER_TURN_UDP) {
        open_udp(client);
        return;
    }
    client->tls = SSL_new(settings->tls);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || !client->tls) {
        fail(client, "no socket or TLS session");
        return;
    }
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(client->fd, IPPROTO_TCP, TCP_MAXSEG, &mss, sizeof mss);
    SSL_set_fd(client->tls, client->fd);
    SSL_set_tlsext_host_name(client->tls, settings->server_name);
    SSL_set_connect_state(client->tls);
    watch(client, EPOLL_CTL_ADD, true);
    if (connect(client->fd, (struct sockaddr *)&settings->server, sizeof settings->server) < 0 && errno != EINPROGRESS)
        fail(client, strerror(errno));
}

static void on_connected(struct client *client)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        fail(client, strerror(error));
    else
        client->state = CLIENT_HANDSHAKING;
}

/* 3. TLS: what OpenSSL says when it has not done what it was asked to */

static void on_tls_pause(struct client *client, int result)
{
    switch (SSL_get_error(client->tls, result)) {
    case SSL_ERROR_WANT_READ:
        break;
    case SSL_ERROR_WANT_WRITE:
        wait_for_room(client, true);
        break;
    case SSL_ERROR_ZERO_RETURN:
        fail(client, "closed by the server");
        break;
    default: {
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        fail(client, reason ? reason : strerror(errno));
        /* The next call for another client must not find it. */
        ERR_clear_error();
    }
    }
}

/* What is put is one datagram. A full socket loses it, as a network would. */
static void flush_udp(struct client *client)
{
    if (send(client->fd, client->out, client->out_size, 0) < 0 && errno != EAGAIN)
        fail(client, strerror(errno));
    client->out_size = 0;
}

static void flush(struct client *client)
{
    if (client->settings->carrier == CARRIER_TURN_UDP) {
        flush_udp(client);
        return;
    }
    size_t done = 0;
    while (done < client->out_size) {
        int written = SSL_write(client->tls, client->out + done, (int)(client->out_size - done));
        if (written <= 0) {
            on_tls_pause(client, written);
            break;
        }
        done += (size_t)written;
    }
    client->out_size -= done;
    memmove(client->out, client->out + done, client->out_size);
    if (!client->out_size && client->state != CLIENT_DEAD)
        wait_for_room(client, false);
}

/* 4. The carrier: an HTTP request and its 101, where it is not TURN itself */

static void put(struct client *client, enum frame_kind kind, const uint8_t *payload, size_t size)
{
    client->out_size += carrier_put(client->settings->carrier, client->out + client->out_size, kind, payload, size);
}

static void upgrade(struct client *client)
{
    const struct client_settings *settings = client->settings;
    char *request = (char *)client->out + client->out_size;
    client->out_size += carrier_request(settings->carrier, request, settings->server_name, &settings->upstream);
    client->state = CLIENT_UPGRADING;
    flush(client);
}

/* Takes the response's head. False if it is not all there, or not what was asked for. */
static bool take_head(struct client *client)
{
    static const char switching[] = "HTTP/1.1 101 ", end[] = "\r\n\r\n";
    const uint8_t *found = memmem(client->in, client->in_size, end, sizeof end - 1);
    if (!found)
        return false;
    if (memcmp(client->in, switching, sizeof switching - 1)) {
        fail(client, "the carrier was refused");
        return false;
    }
    size_t size = (size_t)(found - client->in) + sizeof end - 1;
    client->in_size -= size;
    memmove(client->in, client->in + size, client->in_size);
    return true;
}

/* 5. TURN: Allocate, ChannelBind; or what a session says instead of it */

static uint32_t channel_of(const struct client *client)
{
    return FIRST_CHANNEL + client->number % CHANNELS;
}

/* Credentials, in their order: user name, realm, nonce, and what proves the password (RFC 8489 section 9.2). */
static void sign(struct client *client, uint8_t *message)
{
    const struct client_settings *settings = client->settings;
    uint8_t digest[INTEGRITY_BYTES];
    stun_add(message, USERNAME, (const uint8_t *)settings->username, strlen(settings->username));
    stun_add(message, REALM, settings->realm, settings->realm_size);
    stun_add(message, NONCE, client->nonce, client->nonce_size);
    size_t size = stun_size(message);
    /* The length counts the attribute already. */
    store16(message + 2, load16(message + 2) + 4 + INTEGRITY_BYTES);
    HMAC(EVP_sha1(), settings->key, KEY_BYTES, message, size, digest, NULL);
    store16(message + 2, load16(message + 2) - 4 - INTEGRITY_BYTES);
    stun_add(message, MESSAGE_INTEGRITY, digest, sizeof digest);
}

static void request(struct client *client, uint32_t method)
{
    uint8_t message[STUN_MAX_BYTES];
    uint8_t transaction_id[TRANSACTION_ID_BYTES] = "bench";
    transaction_id[5] = client->challenges;
    store16(transaction_id + 6, method);
    store32(transaction_id + 8, client->number);
    stun_begin(message, method, transaction_id);
    if (method == ALLOCATE) {
        stun_add32(message, REQUESTED_TRANSPORT, UDP_PROTOCOL << 24);
        client->state = CLIENT_ALLOCATING;
    } else {
        stun_add32(message, CHANNEL_NUMBER, channel_of(client) << 16);
        stun_add_address(message, XOR_PEER_ADDRESS, &client->settings->peer);
        client->state = CLIENT_BINDING;
    }
    if (client->nonce_size)
        sign(client, message);
    put(client, FRAME_UNIT, message, stun_size(message));
    flush(client);
}

/* Over UDP a server keeps an allocation until it expires, and refuses the next client that gets this port. Nobody waits
 * for the answer. */
static void release(struct client *client)
{
    uint8_t message[STUN_MAX_BYTES];
    uint8_t transaction_id[TRANSACTION_ID_BYTES] = "release";
    if (client->state == CLIENT_DEAD)
        return;
    store32(transaction_id + 8, client->number);
    stun_begin(message, REFRESH, transaction_id);
    stun_add32(message, LIFETIME, 0);
    if (client->nonce_size)
        sign(client, message);
    put(client, FRAME_UNIT, message, stun_size(message));
    flush(client);
}

__attribute__((format(printf, 2, 3))) static void say(struct client *client, const char *format, ...)
{
    char text[SAYING_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    put(client, FRAME_TEXT, (const uint8_t *)text, (size_t)size);
    flush(client);
}

static void open_session(struct client *client)
{
    client->state = CLIENT_ALLOCATING;
    say(client, "{\"type\": \"open\", \"username\": \"bench\", \"password\": \"bench\"}");
}

static void bind_session(struct client *client)
{
    const struct sockaddr_in *peer = &client->settings->peer;
    client->state = CLIENT_BINDING;
    say(client, "{\"type\": \"bind\", \"peer\": \"%s:%u\", \"channel\": %u}", inet_ntoa(peer->sin_addr),
        ntohs(peer->sin_port), channel_of(client));
}

static bool says(const struct frame *frame, const char *word)
{
    return memmem(frame->payload, frame->size, word, strlen(word)) != NULL;
}

static void on_text(struct client *client, const struct frame *frame)
{
    if (says(frame, "\"error\""))
        fail(client, "error message");
    else if (client->state == CLIENT_ALLOCATING && says(frame, "\"opened\"") && client->settings->binds_channel)
        bind_session(client);
    else if (client->state == CLIENT_ALLOCATING && says(frame, "\"opened\""))
        client->state = CLIENT_READY;
    else if (client->state == CLIENT_BINDING && says(frame, "\"bound\""))
        client->state = CLIENT_READY;
}

static void begin(struct client *client)
{
    if (client->settings->carrier == CARRIER_SESSION)
        open_session(client);
    else
        request(client, ALLOCATE);
}

static uint32_t code_of(const uint8_t *message)
{
    size_t size;
    const uint8_t *code = stun_find(message, ERROR_CODE, &size);
    return code && size >= 4 ? (code[2] & 7u) * 100 + code[3] : 0;
}

/* The server has another allocation under this port: tries another one. False if it is another error, or one too many. */
static bool move(struct client *client, const uint8_t *message)
{
    int before = client->fd;
    if (client->settings->carrier != CARRIER_TURN_UDP || code_of(message) != ALLOCATION_MISMATCH ||
        client->moves == MAX_MOVES)
        return false;
    client->moves++;
    /* While the old socket is open, the kernel gives another port. */
    open_udp(client);
    close(before);
    return true;
}

/* Takes realm and nonce from an error. False if it is another error, or one too many. */
static bool take_challenge(struct client *client, const uint8_t *message)
{
    struct client_settings *settings = client->settings;
    size_t realm_size, nonce_size;
    const uint8_t *realm = stun_find(message, REALM, &realm_size), *nonce = stun_find(message, NONCE, &nonce_size);
    uint32_t code = code_of(message);
    if (!settings->username || (code != UNAUTHORIZED && code != STALE_NONCE) || !realm || realm_size > REALM_BYTES ||
        !nonce || nonce_size > NONCE_BYTES || client->challenges == MAX_CHALLENGES)
        return false;
    client->challenges++;
    memcpy(client->nonce, nonce, nonce_size);
    client->nonce_size = nonce_size;
    if (!settings->realm_size) {
        char text[512];
        memcpy(settings->realm, realm, realm_size);
        settings->realm_size = realm_size;
        int size = snprintf(text, sizeof text, "%s:%.*s:%s", settings->username, (int)realm_size, (const char *)realm,
                            settings->password);
        return size < (int)sizeof text && EVP_Digest(text, (size_t)size, settings->key, NULL, EVP_md5(), NULL);
    }
    return true;
}

static void on_stun(struct client *client, const uint8_t *message)
{
    uint32_t type = load16(message);
    if (client->state == CLIENT_ALLOCATING && type == (ALLOCATE | ERROR_BITS) && take_challenge(client, message))
        request(client, ALLOCATE);
    else if (client->state == CLIENT_ALLOCATING && type == (ALLOCATE | ERROR_BITS) && move(client, message))
        return;
    else if ((type & CLASS_BITS) == ERROR_BITS)
        fail(client, "error response");
    else if (client->state == CLIENT_ALLOCATING && type == (ALLOCATE | SUCCESS_BITS) && client->settings->binds_channel)
        request(client, CHANNEL_BIND);
    else if (client->state == CLIENT_ALLOCATING && type == (ALLOCATE | SUCCESS_BITS))
        client->state = CLIENT_READY;
    else if (client->state == CLIENT_BINDING && type == (CHANNEL_BIND | SUCCESS_BITS))
        client->state = CLIENT_READY;
}

/* 6. Media */

bool client_send_data(struct client *client, const uint8_t *payload, size_t size)
{
    uint8_t unit[CHANNEL_HEADER_BYTES + MAX_PAYLOAD_BYTES];
    size_t header = client->settings->carrier == CARRIER_SESSION ? CHANNEL_BYTES : CHANNEL_HEADER_BYTES;
    size_t most = header + size + CARRIER_OVERHEAD_BYTES;
    if (client->state != CLIENT_READY || client->out_size + most > CLIENT_OUT_BYTES)
        return false;
    store16(unit, channel_of(client));
    store16(unit + CHANNEL_BYTES, (uint32_t)size); /* a session's data begins here instead */
    memcpy(unit + header, payload, size);
    put(client, FRAME_UNIT, unit, header + size);
    if (!client->waits_for_room)
        flush(client);
    return true;
}

static void on_data(struct client *client, uint32_t channel, const uint8_t *payload, size_t size)
{
    if (channel == channel_of(client))
        client->settings->on_data(client, payload, size);
    else
        client->settings->foreign++;
}

static void on_channel_data(struct client *client, const struct frame *frame)
{
    static const uint8_t zeros[3];
    const uint8_t *unit = frame->payload, *payload = unit + CHANNEL_HEADER_BYTES;
    size_t size = load16(unit + CHANNEL_BYTES);
    if (CHANNEL_HEADER_BYTES + size != frame->size) {
        fail(client, "broken ChannelData");
        return;
    }
    if (client->settings->carrier == CARRIER_TURN)
        client->settings->dirty_padding += memcmp(payload + size, zeros, padded(size) - size) != 0;
    on_data(client, load16(unit), payload, size);
}

static void on_unit(struct client *client, const struct frame *frame)
{
    const uint8_t *unit = frame->payload;
    if (client->settings->carrier == CARRIER_SESSION && frame->size >= CHANNEL_BYTES)
        on_data(client, load16(unit), unit + CHANNEL_BYTES, frame->size - CHANNEL_BYTES);
    else if (frame->size >= CHANNEL_HEADER_BYTES && unit[0] & 0x40)
        on_channel_data(client, frame);
    else if (is_stun(unit, frame->size))
        on_stun(client, unit);
    else
        fail(client, "broken STUN message");
}

static void take_frames(struct client *client)
{
    struct frame frame;
    size_t at = 0;
    int taken = 0;
    if (client->state == CLIENT_UPGRADING) {
        if (!take_head(client))
            return;
        begin(client);
    }
    while (client->state != CLIENT_DEAD) {
        taken = carrier_take(client->settings->carrier, client->in + at, client->in_size - at, &frame);
        if (taken <= 0)
            break;
        if (frame.kind == FRAME_UNIT)
            on_unit(client, &frame);
        else if (frame.kind == FRAME_TEXT)
            on_text(client, &frame);
        at += frame.stream_size;
    }
    client->in_size -= at;
    memmove(client->in, client->in + at, client->in_size);
    if (taken < 0 || client->in_size == CLIENT_IN_BYTES)
        fail(client, "broken frame");
}

/* One datagram: another one shows at the next look. */
static void read_datagram(struct client *client)
{
    ssize_t size = recv(client->fd, client->in, CLIENT_IN_BYTES, 0);
    if (size < 0 && errno != EAGAIN)
        fail(client, strerror(errno));
    if (size <= 0)
        return;
    client->in_size = (size_t)size;
    take_frames(client);
    client->in_size = 0;
}

static void read_frames(struct client *client)
{
    if (client->settings->carrier == CARRIER_TURN_UDP) {
        read_datagram(client);
        return;
    }
    while (client->state != CLIENT_DEAD) {
        int room = (int)(CLIENT_IN_BYTES - client->in_size);
        int read = SSL_read(client->tls, client->in + client->in_size, room);
        if (read <= 0) {
            on_tls_pause(client, read);
            return;
        }
        client->in_size += (size_t)read;
        take_frames(client);
        /* Asking once more only to hear "nothing there" would be one more system call for each packet. */
        if (!SSL_has_pending(client->tls))
            return;
    }
}

void client_on_events(struct client *client, uint32_t events)
{
    if (client->state == CLIENT_CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        on_connected(client);
    if (client->state == CLIENT_HANDSHAKING) {
        int result = SSL_do_handshake(client->tls);
        if (result == 1) {
            client->settings->carrier == CARRIER_TURN ? begin(client) : upgrade(client);
        } else {
            wait_for_room(client, false);
            on_tls_pause(client, result);
        }
    }
    if (client->state >= CLIENT_UPGRADING && client->state <= CLIENT_READY) {
        if (events & EPOLLOUT)
            flush(client);
        read_frames(client);
    }
}
