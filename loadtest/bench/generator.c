/* The clients of the benchmark: opens TURN/TLS connections, sends voice on an open-loop clock, checks every echo, and
 * prints one JSON object. Status: 0 measured (whatever the figures), 1 could not connect, 2 wrong options.
 *
 *   1. options      2. connections are opened      3. voice, or idle      4. JSON */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "client.h"
#include "clock.h"
#include "process.h"
#include "stamp.h"
#include "storm.h"
#include "voice.h"

/* So many handshakes under way at once: enough to keep a server busy, fewer than any listen queue. */
#define AT_ONCE 32u
/* If not one connection gets ready in this time, none will. */
#define SETUP_PATIENCE_NS (10 * NS_PER_S)
/* Between the last handshake and the first packet; and before memory is looked at. */
#define SETTLE_NS (300 * NS_PER_MS)
/* An echo that takes longer than this after the last packet is lost. */
#define DRAIN_NS NS_PER_S
/* A quarter of the 20 ms between packets: beyond it the load was not the one that was asked for. */
#define MAX_LATE_P99_US 5000u
/* Made before --idle begins to count: buffers and caches that a server has once, not for each connection. */
#define IDLE_NOT_COUNTED 20u
/* Between two looks at the sockets: half a millisecond of sending, at the most. */
#define SENDS_AT_ONCE 64u
#define EVENTS 256
/* ChannelBind's permission lapses after 300 s, and nothing here refreshes it. */
#define MAX_SECONDS 240.0
#define MAX_CALLS 20000u
#define RELEASES_AT_ONCE 16u
#define RELEASE_PAUSE_US 5000u
#define MAX_USER_BYTES 64u

struct options {
    struct sockaddr_in server, peer, upstream;
    enum carrier carrier;
    const char *server_name, *username, *password;
    uint32_t calls, payload_bytes, pps, storm_rate;
    double seconds, warmup;
    int tls;
    bool idle;
    struct processes servers;
    uint64_t tick_us;
};

/* Readings of the clocks that a measurement is a difference of. */
struct reading {
    uint64_t at_ns, server_ns, self_ns, rss_kb;
};

struct run {
    const struct options *options;
    struct client_settings clients;
    struct voice voice;
    uint32_t ready, failed; /* how setting up has ended; a call that is cut off later was ready */
    struct reading before, after;
    struct storm *storm;
};

static const char usage[] =
    "usage: generator --port PORT [options]\n"
    "  --host IPV4          where the TURN/TLS server listens (127.0.0.1)\n"
    "  --peer IPV4:PORT     the peer of the channels: behind coturn the upstream (127.0.0.1:9)\n"
    "  --carrier NAME       turn, websocket, session or connect-udp over TLS; turn-udp without (turn)\n"
    "  --user NAME          of a long-term credential, with\n"
    "  --password TEXT      for a server that asks for it (none)\n"
    "  --upstream IPV4:PORT the relay's TURN server, whom connect-udp names (127.0.0.1:3478)\n"
    "  --server-name NAME   sent as SNI (bench.test)\n"
    "  --calls N            connections (100)\n"
    "  --seconds S          measured time (5), after\n"
    "  --warmup S           time that is not measured (1)\n"
    "  --payload BYTES      of each packet, 36 to 1400 (182: SRTP G.711)\n"
    "  --pps N              packets a second and call (50)\n"
    "  --tls 1.2|1.3        (either)\n"
    "  --server-pid PID,... whose CPU time and memory are measured\n"
    "  --storm RATE         beside the calls, log in so often a second\n"
    "  --idle               only open the connections; memory and CPU for each\n"
    "  --tick-us US         how often it looks (200)\n";

/* 1. Options */

static bool parse_peer(const char *text, struct sockaddr_in *peer)
{
    char host[16];
    unsigned port;
    if (sscanf(text, "%15[0-9.]:%u", host, &port) != 2 || port > 65535)
        return false;
    peer->sin_port = htons((uint16_t)port);
    return inet_aton(host, &peer->sin_addr);
}

static bool parse_option(struct options *to, int option, const char *text)
{
    uint32_t number = text ? (uint32_t)strtoul(text, NULL, 10) : 0;
    switch (option) {
    case 'h': return inet_aton(text, &to->server.sin_addr);
    case 'p': to->server.sin_port = htons((uint16_t)number); return number > 0 && number < 65536;
    case 'P': return parse_peer(text, &to->peer);
    case 'C': to->carrier = carrier_named(text); return to->carrier != CARRIERS;
    case 'u': return parse_peer(text, &to->upstream);
    case 'n': to->server_name = text; return true;
    case 'U': to->username = text; return strlen(text) <= MAX_USER_BYTES;
    case 'W': to->password = text; return true;
    case 'c': to->calls = number; return number > 0 && number <= MAX_CALLS;
    case 's': to->seconds = strtod(text, NULL); return to->seconds > 0;
    case 'w': to->warmup = strtod(text, NULL); return to->warmup >= 0;
    case 'b': to->payload_bytes = number; return number >= MIN_PAYLOAD_BYTES && number <= MAX_PAYLOAD_BYTES;
    case 'r': to->pps = number; return number > 0 && number <= 10000;
    case 'v': to->tls = !strcmp(text, "1.2") ? 12 : 13; return to->tls == 12 || !strcmp(text, "1.3");
    case 'i': return processes_add(&to->servers, text);
    case 'S': to->storm_rate = number; return number > 0 && number <= 1000;
    case 'I': to->idle = true; return true;
    case 't': to->tick_us = number; return number > 0;
    default: return false;
    }
}

static bool parse_options(struct options *to, int argc, char **argv)
{
    static const struct option names[] = {
        {"host", required_argument, NULL, 'h'},       {"port", required_argument, NULL, 'p'},
        {"peer", required_argument, NULL, 'P'},       {"server-name", required_argument, NULL, 'n'},
        {"calls", required_argument, NULL, 'c'},      {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},     {"payload", required_argument, NULL, 'b'},
        {"pps", required_argument, NULL, 'r'},        {"tls", required_argument, NULL, 'v'},
        {"server-pid", required_argument, NULL, 'i'}, {"storm", required_argument, NULL, 'S'},
        {"idle", no_argument, NULL, 'I'},             {"tick-us", required_argument, NULL, 't'},
        {"carrier", required_argument, NULL, 'C'},    {"upstream", required_argument, NULL, 'u'},
        {"user", required_argument, NULL, 'U'},       {"password", required_argument, NULL, 'W'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (!parse_option(to, option, optarg))
            return false;
    }
    return optind == argc && to->server.sin_port && !to->username == !to->password && to->seconds + to->warmup <= MAX_SECONDS;
}

static void read_clocks(const struct options *options, struct reading *reading)
{
    struct timespec self;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &self);
    reading->at_ns = now_ns();
    reading->self_ns = (uint64_t)self.tv_sec * NS_PER_S + (uint64_t)self.tv_nsec;
    reading->server_ns = processes_cpu_ns(&options->servers);
}

/* 2. Connections are opened, AT_ONCE at a time */

/* Reads what has come. True if there may be more. */
static bool serve_events(struct run *run)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(run->clients.epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        enum client_state before = client->state;
        if (before == CLIENT_DEAD)
            continue;
        client_on_events(client, events[i].events);
        run->ready += before != CLIENT_READY && client->state == CLIENT_READY;
        run->failed += before != CLIENT_READY && client->state == CLIENT_DEAD;
    }
    return count == EVENTS;
}

static void open_calls(struct run *run, uint32_t from, uint32_t to)
{
    uint64_t deadline = now_ns() + SETUP_PATIENCE_NS;
    while (run->ready + run->failed < to && now_ns() < deadline) {
        uint32_t before = run->ready + run->failed;
        for (; from < to && from < before + AT_ONCE; from++) {
            struct client *client = &run->voice.calls[from].client;
            client_open(client, &run->clients, from);
            run->failed += client->state == CLIENT_DEAD;
        }
        if (!serve_events(run))
            sleep_tick(run->options->tick_us);
        if (run->ready + run->failed > before)
            deadline = now_ns() + SETUP_PATIENCE_NS;
    }
}

static void close_calls(struct run *run)
{
    for (uint32_t i = 0; i < run->voice.settings.calls; i++) {
        client_close(&run->voice.calls[i].client);
        /* Over UDP each says so with a request, which may get lost if all come at once. */
        if (run->options->carrier == CARRIER_TURN_UDP && i % RELEASES_AT_ONCE == 0)
            sleep_tick(RELEASE_PAUSE_US);
    }
}

/* 3. Idle: what a connection costs. Voice: what a packet costs, and how long it takes. */

static void settle(struct run *run)
{
    for (uint64_t end = now_ns() + SETTLE_NS; now_ns() < end; sleep_tick(run->options->tick_us))
        serve_events(run);
}

static void run_idle(struct run *run)
{
    uint32_t calls = run->voice.settings.calls;
    open_calls(run, 0, IDLE_NOT_COUNTED);
    settle(run);
    read_clocks(run->options, &run->before);
    run->before.rss_kb = processes_rss_kb(&run->options->servers);
    open_calls(run, IDLE_NOT_COUNTED, calls);
    read_clocks(run->options, &run->after);
    settle(run);
    run->after.rss_kb = processes_rss_kb(&run->options->servers);
}

static void set_times(struct run *run)
{
    struct voice *voice = &run->voice;
    voice->start_ns = now_ns() + SETTLE_NS;
    if (run->storm) {
        run->storm->end_ns = voice_due_ns(voice, voice->settings.end);
        run->storm->start_ns = voice_due_ns(voice, voice->settings.first_counted);
    }
}

static void run_voice(struct run *run)
{
    struct voice *voice = &run->voice;
    set_times(run);
    uint64_t counted = voice_due_ns(voice, voice->settings.first_counted);
    uint64_t end = voice_due_ns(voice, voice->settings.end);
    for (uint64_t now = 0; now < end + DRAIN_NS && !(now >= end && voice_all_sent(voice) && voice_all_received(voice));) {
        now = now_ns();
        if (!run->before.at_ns && now >= counted)
            read_clocks(run->options, &run->before);
        if (!run->after.at_ns && now >= end)
            read_clocks(run->options, &run->after);
        bool busy = voice_send_due(voice, now, SENDS_AT_ONCE);
        if (!(serve_events(run) | busy))
            sleep_tick(run->options->tick_us);
    }
}

/* 4. JSON */

static void print_text(const char *name, const char *text)
{
    printf("\"%s\": \"", name);
    for (; *text; text++)
        putchar(*text < ' ' || *text == '"' || *text == '\\' ? '?' : *text);
    printf("\", ");
}

/* A figure that cannot be had is null, never 0. */
static void print_quotient(const char *name, double above, double below, const char *after)
{
    if (below > 0 && above >= 0)
        printf("\"%s\": %.6g%s", name, above / below, after);
    else
        printf("\"%s\": null%s", name, after);
}

/* How many are connected now; ``one`` is one of them. */
static uint32_t connected(const struct run *run, const struct client **one)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < run->voice.settings.calls; i++) {
        if (run->voice.calls[i].client.state == CLIENT_READY) {
            *one = &run->voice.calls[i].client;
            count++;
        }
    }
    return count;
}

static void print_connections(const struct run *run)
{
    const struct client *one = NULL;
    uint32_t disconnected = run->ready - connected(run, &one);
    printf("{\"mode\": \"%s\", \"calls\": %u, \"ready\": %u, \"failed\": %u, \"disconnected\": %u, ",
           run->options->idle ? "idle" : "voice", run->voice.settings.calls, run->ready,
           run->voice.settings.calls - run->ready, disconnected);
    print_text("first_error", run->clients.first_error);
    print_text("tls", one && one->tls ? SSL_get_version(one->tls) : "");
    print_text("cipher", one && one->tls ? SSL_get_cipher_name(one->tls) : "");
}

/* Microseconds of the server, or -1: not asked for, or a process is gone. */
static double server_us(const struct run *run)
{
    if (!run->before.server_ns || !run->after.server_ns)
        return -1;
    return (double)(run->after.server_ns - run->before.server_ns) / NS_PER_US;
}

static void print_idle(const struct run *run)
{
    double counted = (double)run->ready - IDLE_NOT_COUNTED;
    bool measured = run->before.rss_kb && run->after.rss_kb;
    double grown_kb = (double)run->after.rss_kb - (double)run->before.rss_kb;
    print_quotient("rss_kb_per_connection", measured && grown_kb > 0 ? grown_kb : -1, counted, ", ");
    print_quotient("setup_cpu_us", server_us(run), counted, "}\n");
}

static void print_storm(const struct run *run)
{
    printf("\"storm\": {\"rate\": %u, \"begun\": %ju, \"done\": %ju, \"failed\": %ju, ", run->options->storm_rate,
           (uintmax_t)run->storm->begun, (uintmax_t)run->storm->done, (uintmax_t)run->storm->failed);
    print_percentiles("login_us", &run->storm->login);
    printf("}, ");
}

static void print_voice(const struct run *run)
{
    const struct voice_result *result = &run->voice.result;
    double elapsed_us = (double)(run->after.at_ns - run->before.at_ns) / NS_PER_US;
    uint64_t late_p99 = percentile_us(&result->late, 990);
    printf("\"payload\": %u, \"pps\": %u, ", run->voice.settings.payload_bytes, run->voice.settings.pps);
    printf("\"due\": %ju, \"unsent\": %ju, \"received\": %ju, \"lost\": %ju, ", (uintmax_t)result->due,
           (uintmax_t)result->unsent, (uintmax_t)result->received, (uintmax_t)(result->due - result->received));
    print_quotient("loss", (double)(result->due - result->received), (double)result->due, ", ");
    printf("\"corrupt\": %ju, \"duplicate\": %ju, \"reordered\": %ju, ", (uintmax_t)result->corrupt,
           (uintmax_t)result->duplicate, (uintmax_t)result->reordered);
    printf("\"misrouted\": %ju, \"dirty_padding\": %ju, ", (uintmax_t)(result->misrouted + run->clients.foreign),
           (uintmax_t)run->clients.dirty_padding);
    print_percentiles("rtt_us", &result->rtt);
    printf(", ");
    print_percentiles("late_us", &result->late);
    printf(", \"valid\": %s, ", result->late.total && late_p99 <= MAX_LATE_P99_US ? "true" : "false");
    if (run->storm)
        print_storm(run);
    print_quotient("generator_cores", (double)(run->after.self_ns - run->before.self_ns) / NS_PER_US, elapsed_us, ", ");
    print_quotient("server_cores", server_us(run), elapsed_us, ", ");
    print_quotient("cpu_us_per_packet", server_us(run), (double)result->frames, "}\n");
}

static bool prepare(struct run *run)
{
    const struct options *options = run->options;
    uint32_t warmup = (uint32_t)(options->warmup * options->pps);
    run->clients = (struct client_settings){
        .epoll = epoll_create1(EPOLL_CLOEXEC),
        .tls = client_context(options->tls),
        .server = options->server,
        .peer = options->peer,
        .upstream = options->upstream,
        .carrier = options->carrier,
        .server_name = options->server_name,
        .username = options->username,
        .password = options->password,
        .binds_channel = true,
        .on_data = voice_on_data,
    };
    struct voice_settings settings = {
        .calls = options->calls + (options->idle ? IDLE_NOT_COUNTED : 0),
        .pps = options->pps,
        .payload_bytes = options->payload_bytes,
        .first_counted = warmup,
        .end = warmup + (uint32_t)(options->seconds * options->pps),
    };
    /* A descriptor for each connection, and some. */
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    sleep_precisely();
    return run->clients.tls && run->clients.epoll >= 0 && voice_prepare(&run->voice, settings);
}

/* Ends the storm's process: in its own time if it has stormed, else at once. */
static void end_storm(struct run *run, pid_t process)
{
    if (!run->storm->start_ns)
        kill(process, SIGKILL);
    waitpid(process, NULL, 0);
}

int main(int argc, char **argv)
{
    struct options options = {
        .server = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
        .peer = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(9)},
        .upstream = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(3478)},
        .server_name = "bench.test",
        .calls = 100,
        .payload_bytes = 182,
        .pps = 50,
        .seconds = 5,
        .warmup = 1,
        .tick_us = DEFAULT_TICK_US,
    };
    static struct run run;
    pid_t storm = 0;
    if (!parse_options(&options, argc, argv)) {
        fputs(usage, stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    run.options = &options;
    if (options.storm_rate && !options.idle) {
        struct storm_settings settings = {options.storm_rate, options.tls, options.server, options.server_name,
                                          options.tick_us};
        run.storm = storm_start(&settings, &storm);
    }
    if (!prepare(&run) || (options.storm_rate && !options.idle && !run.storm)) {
        fputs("generator: no memory, or no TLS\n", stderr);
        return 1;
    }
    if (options.idle) {
        run_idle(&run);
    } else {
        open_calls(&run, 0, options.calls);
        if (run.ready)
            run_voice(&run);
    }
    if (run.storm)
        end_storm(&run, storm);
    print_connections(&run);
    options.idle ? print_idle(&run) : print_voice(&run);
    close_calls(&run);
    return run.ready ? 0 : 1;
}
