/* A process of its own: a handshake costs a client half a millisecond of computing, which would make the voice clock
 * late. It is also nicer than the calls, so that it yields to them on their common core. */
#define _GNU_SOURCE
#include "storm.h"

#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"

#define NICENESS 10
/* A browser's patience with a TURN server is about that long. */
#define LOGIN_TIMEOUT_NS (5 * NS_PER_S)
#define WAITING_TICK_US 1000u
#define EVENTS 64

struct login {
    struct client client; /* first: a client's pointer is its login's */
    uint64_t due_ns;
};

/* A ring: a login has its place until it has timed out, and then the next one takes it. So nothing is searched. */
struct pool {
    struct login *logins;
    uint32_t size;
};

/* Closes a login that has come to its end, well or not; a late one has failed as well. */
static void judge(struct storm *storm, struct login *login, uint64_t now)
{
    bool ready = login->client.state == CLIENT_READY;
    if (!ready && login->client.state != CLIENT_DEAD && now < login->due_ns + LOGIN_TIMEOUT_NS)
        return;
    if (ready)
        record_us(&storm->login, (now - login->due_ns) / NS_PER_US);
    storm->done += ready;
    storm->failed += !ready;
    client_close(&login->client);
}

static void begin(struct storm *storm, struct pool *pool, struct client_settings *clients, uint64_t due)
{
    struct login *login = &pool->logins[storm->begun % pool->size];
    if (login->client.state != CLIENT_NEW)
        judge(storm, login, due);
    login->due_ns = due;
    client_open(&login->client, clients, (uint32_t)storm->begun++);
}

static void serve_events(struct storm *storm, int epoll)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        client_on_events(events[i].data.ptr, events[i].events);
        judge(storm, events[i].data.ptr, now_ns());
    }
}

static void run(struct storm *storm, const struct storm_settings *settings, struct pool *pool,
                struct client_settings *clients)
{
    while (!storm->start_ns)
        sleep_tick(WAITING_TICK_US);
    uint64_t now = now_ns(), end = storm->end_ns;
    for (; now < end + LOGIN_TIMEOUT_NS && (now < end || storm->done + storm->failed < storm->begun); now = now_ns()) {
        for (;;) {
            uint64_t due = storm->start_ns + storm->begun * NS_PER_S / settings->rate;
            if (due > now || due >= end)
                break;
            begin(storm, pool, clients, due);
        }
        serve_events(storm, clients->epoll);
        sleep_tick(settings->tick_us);
    }
    storm->failed = storm->begun - storm->done; /* with those that never ended */
}

static void in_the_child(struct storm *storm, const struct storm_settings *settings)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sleep_precisely();
    /* Niceness counts for nothing under the real-time scheduling that the calls may have been given. */
    sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
    setpriority(PRIO_PROCESS, 0, NICENESS);
    struct client_settings clients = {
        .epoll = epoll_create1(EPOLL_CLOEXEC),
        .tls = client_context(settings->tls),
        .server = settings->server,
        .server_name = settings->server_name,
    };
    struct pool pool = {.size = settings->rate * (uint32_t)(LOGIN_TIMEOUT_NS / NS_PER_S) + 1};
    pool.logins = calloc(pool.size, sizeof *pool.logins);
    if (clients.tls && pool.logins)
        run(storm, settings, &pool, &clients);
}

struct storm *storm_start(const struct storm_settings *settings, pid_t *process)
{
    struct storm *storm = mmap(NULL, sizeof *storm, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (storm == MAP_FAILED)
        return NULL;
    *process = fork();
    if (*process == 0) {
        in_the_child(storm, settings);
        _exit(0);
    }
    return *process < 0 ? NULL : storm;
}
