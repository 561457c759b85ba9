#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "turn.h"

/* Loopback would advertise 64 KB, and the server's kernel would then buffer as for no real client. */
#define ETHERNET_MSS 1448
#define UDP_PROTOCOL 17u

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
    static const char *const doing[] = {"", "connecting", "shaking hands", "allocating", "binding", "ready"};
    if (!settings->first_error[0])
        snprintf(settings->first_error, sizeof settings->first_error, "%s (%s)", why, doing[client->state]);
    client->state = CLIENT_DEAD;
    epoll_ctl(settings->epoll, EPOLL_CTL_DEL, client->fd, NULL);
}

void client_close(struct client *client)
{
    if (client->state == CLIENT_NEW)
        return;
    /* The close_notify is one more record; nothing waits for the server's. A dead session may not be shut down. */
    if (client->state >= CLIENT_ALLOCATING && client->state <= CLIENT_READY)
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

void client_open(struct client *client, struct client_settings *settings, uint32_t number)
{
    int on = 1, mss = ETHERNET_MSS;
    client->settings = settings;
    client->number = number;
    client->in_size = client->out_size = 0;
    client->state = CLIENT_CONNECTING;
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

static void flush(struct client *client)
{
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

/* 4. TURN: Allocate, ChannelBind */

static uint32_t channel_of(const struct client *client)
{
    return FIRST_CHANNEL + client->number % CHANNELS;
}

static void request(struct client *client, uint32_t method)
{
    uint8_t *message = client->out + client->out_size;
    uint8_t transaction_id[TRANSACTION_ID_BYTES] = "bench";
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
    client->out_size += stun_size(message);
    flush(client);
}

static void on_stun(struct client *client, const uint8_t *message)
{
    uint32_t type = load16(message);
    if ((type & CLASS_BITS) == ERROR_BITS)
        fail(client, "error response");
    else if (client->state == CLIENT_ALLOCATING && type == (ALLOCATE | SUCCESS_BITS) && client->settings->binds_channel)
        request(client, CHANNEL_BIND);
    else if (client->state == CLIENT_ALLOCATING && type == (ALLOCATE | SUCCESS_BITS))
        client->state = CLIENT_READY;
    else if (client->state == CLIENT_BINDING && type == (CHANNEL_BIND | SUCCESS_BITS))
        client->state = CLIENT_READY;
}

/* 5. Media */

bool client_send_data(struct client *client, const uint8_t *payload, size_t size)
{
    size_t frame_size = CHANNEL_HEADER_BYTES + padded(size);
    if (client->state != CLIENT_READY || client->out_size + frame_size > CLIENT_OUT_BYTES)
        return false;
    uint8_t *frame = client->out + client->out_size;
    memset(frame + frame_size - 4, 0, 4); /* the padding; what is payload of it is written next */
    store16(frame, channel_of(client));
    store16(frame + 2, (uint32_t)size);
    memcpy(frame + CHANNEL_HEADER_BYTES, payload, size);
    client->out_size += frame_size;
    if (!client->waits_for_room)
        flush(client);
    return true;
}

static void on_channel_data(struct client *client, const uint8_t *frame, size_t size)
{
    static const uint8_t zeros[3];
    const uint8_t *payload = frame + CHANNEL_HEADER_BYTES;
    client->settings->dirty_padding += memcmp(payload + size, zeros, padded(size) - size) != 0;
    if (load16(frame) == channel_of(client))
        client->settings->on_data(client, payload, size);
    else
        client->settings->foreign++;
}

/* Gives the size on the stream of the unit at ``at``; 0 for "need more", or if the stream is broken. */
static size_t measure_unit(struct client *client, const uint8_t *at, size_t available)
{
    if (available < CHANNEL_HEADER_BYTES)
        return 0;
    size_t size = at[0] & 0x40 ? CHANNEL_HEADER_BYTES + padded(load16(at + 2)) : stun_size(at);
    if (at[0] & 0x80 || size > CLIENT_IN_BYTES) {
        fail(client, "broken frame");
        return 0;
    }
    return size <= available ? size : 0;
}

static void take_units(struct client *client)
{
    size_t at = 0, size;
    while (client->state != CLIENT_DEAD && (size = measure_unit(client, client->in + at, client->in_size - at))) {
        const uint8_t *unit = client->in + at;
        if (unit[0] & 0x40)
            on_channel_data(client, unit, load16(unit + 2));
        else if (is_stun(unit, size))
            on_stun(client, unit);
        else
            fail(client, "broken STUN message");
        at += size;
    }
    client->in_size -= at;
    memmove(client->in, client->in + at, client->in_size);
}

static void read_units(struct client *client)
{
    while (client->state != CLIENT_DEAD) {
        int room = (int)(CLIENT_IN_BYTES - client->in_size);
        int read = SSL_read(client->tls, client->in + client->in_size, room);
        if (read <= 0) {
            on_tls_pause(client, read);
            return;
        }
        client->in_size += (size_t)read;
        take_units(client);
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
            request(client, ALLOCATE);
        } else {
            wait_for_room(client, false);
            on_tls_pause(client, result);
        }
    }
    if (client->state >= CLIENT_ALLOCATING && client->state <= CLIENT_READY) {
        if (events & EPOLLOUT)
            flush(client);
        read_units(client);
    }
}
