/* The upstream of the benchmark: one UDP socket that says yes to TURN requests and sends everything else back.
 *
 * Behind a relay it is the TURN server: ChannelData comes back as it came. Behind a TURN server such as coturn it is
 * the peer: bare payloads come back as they came. It keeps no state, asks for no credentials, never times out: it
 * measures speed, not TURN. Prints "ready HOST:PORT", ends with SIGTERM, and then prints what it has seen. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "clock.h"
#include "turn.h"

/* One batch: what 600 calls send in about 2 ms. */
#define BATCH 64u
/* Longer datagrams than an Ethernet's are nobody's here: they are counted, not answered. */
#define MAX_DATAGRAM_BYTES 2048u
#define LIFETIME_S 600u
/* 200 ms of 1000 calls must fit while another process has the core. */
#define RECEIVE_BUFFER_BYTES (8 << 20)

struct batch {
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    struct sockaddr_in senders[BATCH];
    uint8_t data[BATCH][MAX_DATAGRAM_BYTES];
};

struct counters {
    uintmax_t answered, echoed, ignored, not_sent;
};

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
    (void)number;
    stopped = 1;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Replaces a request by its success response. False for what is not answered. */
static bool answer(uint8_t *message, size_t *size, const struct sockaddr_in *sender, const struct sockaddr_in *self)
{
    uint8_t response[STUN_MAX_BYTES];
    uint32_t method = load16(message);
    stun_begin(response, method | SUCCESS_BITS, message + 8);
    switch (method) {
    case BINDING:
        stun_add_address(response, XOR_MAPPED_ADDRESS, sender);
        break;
    case ALLOCATE:
        /* Nothing is relayed: any address does, and this one at least exists. */
        stun_add_address(response, XOR_RELAYED_ADDRESS, self);
        stun_add_address(response, XOR_MAPPED_ADDRESS, sender);
        stun_add32(response, LIFETIME, LIFETIME_S);
        break;
    case REFRESH:
        stun_add32(response, LIFETIME, stun_find32(message, LIFETIME, LIFETIME_S) ? LIFETIME_S : 0);
        break;
    case CREATE_PERMISSION:
    case CHANNEL_BIND:
        break;
    default:
        return false;
    }
    *size = stun_size(response);
    memcpy(message, response, *size);
    return true;
}

/* Turns message ``from`` of the batch into its reply, moved to place ``to``. False if it has none. */
static bool reply(struct batch *batch, size_t from, size_t to, const struct sockaddr_in *self, struct counters *count)
{
    size_t size = batch->messages[from].msg_len;
    uint8_t *data = batch->data[from];
    bool truncated = batch->messages[from].msg_hdr.msg_flags & MSG_TRUNC;
    bool request = !truncated && is_stun(data, size);
    if (truncated || (request && !answer(data, &size, &batch->senders[from], self))) {
        count->ignored++;
        return false;
    }
    *(request ? &count->answered : &count->echoed) += 1;
    batch->parts[to] = (struct iovec){.iov_base = data, .iov_len = size};
    batch->messages[to].msg_hdr.msg_name = &batch->senders[from];
    return true;
}

static void prepare_receive(struct batch *batch)
{
    for (size_t i = 0; i < BATCH; i++) {
        batch->parts[i] = (struct iovec){.iov_base = batch->data[i], .iov_len = MAX_DATAGRAM_BYTES};
        batch->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &batch->senders[i],
            .msg_namelen = sizeof batch->senders[i],
            .msg_iov = &batch->parts[i],
            .msg_iovlen = 1,
        };
    }
}

static void send_all(int fd, struct batch *batch, size_t replies, struct counters *count)
{
    size_t done = 0;
    while (done < replies) {
        int sent = sendmmsg(fd, batch->messages + done, (unsigned)(replies - done), 0);
        if (sent > 0) {
            done += (size_t)sent;
        } else if (errno != EINTR) { /* the first one cannot be sent: leave it out, go on with the next */
            count->not_sent++;
            done++;
        }
    }
}

/* One turn: everything that one recvmmsg finds is answered. False if it found nothing. */
static bool serve_batch(int fd, struct batch *batch, const struct sockaddr_in *self, struct counters *count, int flags)
{
    prepare_receive(batch);
    int received = recvmmsg(fd, batch->messages, BATCH, flags, NULL);
    if (received < 0) {
        if (errno != EAGAIN && errno != EINTR)
            die("recvmmsg");
        return false;
    }
    size_t replies = 0;
    for (size_t i = 0; i < (size_t)received; i++)
        replies += reply(batch, i, replies, self, count);
    send_all(fd, batch, replies, count);
    return true;
}

static int open_socket(struct sockaddr_in *self)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), bytes = RECEIVE_BUFFER_BYTES;
    if (fd < 0)
        die("socket");
    /* FORCE goes beyond the system's bound and is for root; the other does what it may. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    socklen_t size = sizeof *self;
    if (bind(fd, (struct sockaddr *)self, size) < 0 || getsockname(fd, (struct sockaddr *)self, &size) < 0)
        die("bind");
    return fd;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", required_argument, NULL, 'h'},
        {"port", required_argument, NULL, 'p'},
        {"tick-us", required_argument, NULL, 't'},
        {NULL, 0, NULL, 0},
    };
    static struct batch batch;
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct counters count = {0};
    uint64_t tick_us = DEFAULT_TICK_US;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'p') {
            self.sin_port = htons((uint16_t)atoi(optarg));
        } else if (option == 't') {
            tick_us = strtoull(optarg, NULL, 10);
        } else if (option != 'h' || !inet_aton(optarg, &self.sin_addr)) {
            fprintf(stderr, "usage: upstream [--host IPV4] [--port PORT] [--tick-us US, 0 waits for each packet]\n");
            return 2;
        }
    }
    int fd = open_socket(&self);
    /* Without SA_RESTART: a blocking recvmmsg must come back. */
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sleep_precisely();
    printf("ready %s:%d\n", inet_ntoa(self.sin_addr), ntohs(self.sin_port));
    fflush(stdout);
    while (!stopped) {
        if (!serve_batch(fd, &batch, &self, &count, tick_us ? MSG_DONTWAIT : MSG_WAITFORONE) && tick_us)
            sleep_tick(tick_us);
    }
    printf("{\"answered\": %ju, \"echoed\": %ju, \"ignored\": %ju, \"not_sent\": %ju}\n", count.answered, count.echoed,
           count.ignored, count.not_sent);
    return 0;
}
