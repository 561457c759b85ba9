/* Logins beside running calls: TCP, TLS and Allocate so many times a second, each closed when it is answered. */
#ifndef BENCH_STORM_H
#define BENCH_STORM_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/types.h>

#include "stats.h"

struct storm_settings {
    uint32_t rate;
    int tls;
    struct sockaddr_in server;
    const char *server_name;
    uint64_t tick_us;
};

/* Shared by the two processes. */
struct storm {
    _Atomic uint64_t start_ns, end_ns; /* set by the calls' process, the end first; start 0 is "not yet" */
    uint64_t begun, done, failed;
    struct histogram login; /* from the instant a login was due until its Allocate was answered */
};

/* Starts the process that will log in when start_ns has come. It must be started before there are connections that it
 * could inherit. Gives NULL if it cannot. */
struct storm *storm_start(const struct storm_settings *settings, pid_t *process);

#endif
