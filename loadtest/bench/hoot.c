/* Talkers and subscribers of a hoot: sends packets on an open-loop clock, checks every copy, and prints one JSON object.
 *
 * The sockets are the caller's, bound and known to the SFU, and so are the packets: SRTP that was made beforehand, so
 * that none of it is made while the clock runs. A copy belongs to a talker by its SSRC, which is the talker's number,
 * and to a packet by its sequence number, which counts from 0. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "clock.h"
#include "process.h"
#include "stats.h"
#include "turn.h"

#define MAX_TALKERS 12u
#define MAX_SUBSCRIBERS 800u
#define MAX_BYTES 1500u
/* A copy that takes longer than this after the last packet is lost. */
#define DRAIN_NS NS_PER_S
#define SETTLE_NS (100 * NS_PER_MS)
#define EVENTS 256
/* A sequence number has 16 bits. */
#define MAX_PACKETS 65535u

struct options {
    struct sockaddr_in server;
    int talkers[MAX_TALKERS], subscribers[MAX_SUBSCRIBERS];
    uint32_t talker_count, subscriber_count;
    uint32_t bytes, packets, first_counted, pps;
    const char *file;
    bool unchanged; /* copies are what was sent, byte for byte */
    struct processes servers;
};

struct run {
    struct options options;
    uint8_t *sent;     /* by talker, then packet */
    uint64_t *sent_ns; /* the same */
    uint8_t *heard;    /* one bit by subscriber, talker, packet */
    uint64_t start_ns, tick;
    uint64_t due, received, duplicate, corrupt, unsent;
    struct histogram delay, late;
    uint64_t before_ns, after_ns, before_server_ns, after_server_ns;
    int epoll;
};

static bool parse_descriptors(const char *text, int *to, uint32_t limit, uint32_t *count)
{
    char *end = (char *)text;
    do {
        if (*count == limit)
            return false;
        to[(*count)++] = (int)strtol(end, &end, 10);
    } while (*end++ == ',');
    return end[-1] == 0;
}

static bool parse_server(const char *text, struct sockaddr_in *server)
{
    char host[16];
    unsigned port;
    if (sscanf(text, "%15[0-9.]:%u", host, &port) != 2 || port > 65535)
        return false;
    *server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    return inet_aton(host, &server->sin_addr);
}

static bool parse_option(struct options *to, int option, const char *text)
{
    uint32_t number = text ? (uint32_t)strtoul(text, NULL, 10) : 0;
    switch (option) {
    case 's': return parse_server(text, &to->server);
    case 't': return parse_descriptors(text, to->talkers, MAX_TALKERS, &to->talker_count);
    case 'l': return parse_descriptors(text, to->subscribers, MAX_SUBSCRIBERS, &to->subscriber_count);
    case 'f': to->file = text; return true;
    case 'b': to->bytes = number; return number >= 22 && number <= MAX_BYTES;
    case 'n': to->packets = number; return number > 0 && number <= MAX_PACKETS;
    case 'c': to->first_counted = number; return true;
    case 'r': to->pps = number; return number > 0 && number <= 1000;
    case 'u': to->unchanged = true; return true;
    case 'i': return processes_add(&to->servers, text);
    default: return false;
    }
}

static bool parse_options(struct options *to, int argc, char **argv)
{
    static const struct option names[] = {
        {"server", required_argument, NULL, 's'},  {"talkers", required_argument, NULL, 't'},
        {"listeners", required_argument, NULL, 'l'}, {"file", required_argument, NULL, 'f'},
        {"bytes", required_argument, NULL, 'b'},   {"packets", required_argument, NULL, 'n'},
        {"first", required_argument, NULL, 'c'},   {"pps", required_argument, NULL, 'r'},
        {"unchanged", no_argument, NULL, 'u'},     {"server-pid", required_argument, NULL, 'i'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (!parse_option(to, option, optarg))
            return false;
    }
    return optind == argc && to->file && to->bytes && to->pps && to->talker_count && to->subscriber_count &&
           to->first_counted < to->packets && to->server.sin_port && to->servers.count;
}

static bool read_packets(struct run *run)
{
    size_t count = (size_t)run->options.talker_count * run->options.packets, size = run->options.bytes;
    run->sent = malloc(count * size);
    run->sent_ns = calloc(count, sizeof *run->sent_ns);
    run->heard = calloc(count * run->options.subscriber_count / 8 + 1, 1);
    FILE *file = fopen(run->options.file, "rb");
    bool whole = run->sent && run->sent_ns && run->heard && file && fread(run->sent, size, count, file) == count;
    if (file)
        fclose(file);
    return whole;
}

static bool watch(struct run *run)
{
    run->epoll = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < run->options.subscriber_count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(run->epoll, EPOLL_CTL_ADD, run->options.subscribers[i], &event))
            return false;
    }
    return true;
}

/* Packets of all talkers in turn: tick k is packet k / talkers of talker k % talkers, so that the phases are spread. */
static uint64_t due_ns(const struct run *run, uint64_t tick)
{
    return run->start_ns + tick * NS_PER_S / ((uint64_t)run->options.talker_count * run->options.pps);
}

static uint64_t ticks(const struct run *run, uint32_t packets)
{
    return (uint64_t)run->options.talker_count * packets;
}

static void send_due(struct run *run, uint64_t now)
{
    const struct options *options = &run->options;
    for (; run->tick < ticks(run, options->packets) && due_ns(run, run->tick) <= now; run->tick++) {
        uint32_t talker = (uint32_t)(run->tick % options->talker_count);
        uint32_t number = (uint32_t)(run->tick / options->talker_count);
        size_t at = (size_t)talker * options->packets + number;
        run->sent_ns[at] = now_ns();
        bool sent = sendto(options->talkers[talker], run->sent + at * options->bytes, options->bytes, MSG_DONTWAIT,
                           (const struct sockaddr *)&options->server, sizeof options->server) >= 0;
        if (number < options->first_counted)
            continue;
        run->due += options->subscriber_count;
        run->unsent += !sent;
        record_us(&run->late, (run->sent_ns[at] - due_ns(run, run->tick)) / NS_PER_US);
    }
}

static void on_copy(struct run *run, uint32_t subscriber, const uint8_t *data, size_t size)
{
    const struct options *options = &run->options;
    uint32_t talker = load32(data + 8), number = load16(data + 2);
    size_t at = (size_t)talker * options->packets + number;
    if (size != options->bytes || talker >= options->talker_count || number >= options->packets ||
        (options->unchanged && memcmp(data, run->sent + at * options->bytes, size))) {
        run->corrupt++;
        return;
    }
    size_t bit = (size_t)subscriber * ticks(run, options->packets) + at;
    if (run->heard[bit / 8] & 1u << bit % 8) {
        run->duplicate++;
        return;
    }
    run->heard[bit / 8] |= (uint8_t)(1u << bit % 8);
    if (number < options->first_counted)
        return;
    run->received++;
    record_us(&run->delay, (now_ns() - run->sent_ns[at]) / NS_PER_US);
}

/* True if there was something. */
static bool receive(struct run *run)
{
    struct epoll_event events[EVENTS];
    uint8_t data[MAX_BYTES + 1];
    int count = epoll_wait(run->epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        uint32_t subscriber = events[i].data.u32;
        ssize_t size;
        while ((size = recv(run->options.subscribers[subscriber], data, sizeof data, MSG_DONTWAIT)) >= 12)
            on_copy(run, subscriber, data, (size_t)size);
    }
    return count > 0;
}

static void carry(struct run *run)
{
    run->start_ns = now_ns() + SETTLE_NS;
    uint64_t counted = due_ns(run, ticks(run, run->options.first_counted));
    uint64_t end = due_ns(run, ticks(run, run->options.packets));
    for (uint64_t now = 0; now < end + DRAIN_NS && !(now >= end && run->received == run->due);) {
        now = now_ns();
        if (!run->before_ns && now >= counted) {
            run->before_ns = now;
            run->before_server_ns = processes_cpu_ns(&run->options.servers);
        }
        if (!run->after_ns && now >= end) {
            run->after_ns = now;
            run->after_server_ns = processes_cpu_ns(&run->options.servers);
        }
        send_due(run, now);
        if (!receive(run))
            sleep_tick(DEFAULT_TICK_US);
    }
}

static void print(const struct run *run)
{
    double server_us = (double)(run->after_server_ns - run->before_server_ns) / NS_PER_US;
    double elapsed_us = (double)(run->after_ns - run->before_ns) / NS_PER_US;
    bool measured = run->before_server_ns && run->after_server_ns && run->received;
    printf("{\"due\": %ju, \"received\": %ju, \"lost\": %ju, \"duplicate\": %ju, \"corrupt\": %ju, \"unsent\": %ju, ",
           (uintmax_t)run->due, (uintmax_t)run->received, (uintmax_t)(run->due - run->received),
           (uintmax_t)run->duplicate, (uintmax_t)run->corrupt, (uintmax_t)run->unsent);
    print_percentiles("delay_us", &run->delay);
    printf(", ");
    print_percentiles("late_us", &run->late);
    if (measured)
        printf(", \"copies_per_s\": %.0f, \"server_cores\": %.6g, \"cpu_us_per_copy\": %.6g}\n",
               (double)run->due * 1e6 / elapsed_us, server_us / elapsed_us, server_us / (double)run->received);
    else
        printf(", \"copies_per_s\": null, \"server_cores\": null, \"cpu_us_per_copy\": null}\n");
}

int main(int argc, char **argv)
{
    static struct run run;
    if (!parse_options(&run.options, argc, argv)) {
        fprintf(stderr, "usage: hoot --server IPV4:PORT --talkers FD,... --listeners FD,... --file PACKETS --bytes N\n"
                        "            --packets N --first N --pps N --server-pid PID,... [--unchanged]\n");
        return 2;
    }
    if (!read_packets(&run) || !watch(&run)) {
        perror("hoot");
        return 1;
    }
    sleep_precisely();
    carry(&run);
    print(&run);
    return 0;
}
