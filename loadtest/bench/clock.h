/* The one clock of the benchmark, and sleeping by it. Times are nanoseconds of CLOCK_MONOTONIC. */
#ifndef BENCH_CLOCK_H
#define BENCH_CLOCK_H

#include <stdint.h>
#include <sys/prctl.h>
#include <time.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull

/* Both programs sleep for a tick and then look, instead of waiting in the kernel to be woken: a packet for a sleeper
 * makes the *server's* system call wake it up, and that would be on the server's bill. Remote clients cost it nothing.
 * The price is a floor under the round-trip time, of about one tick. */
#define DEFAULT_TICK_US 200

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static inline void sleep_until(uint64_t when_ns)
{
    struct timespec when = {.tv_sec = (time_t)(when_ns / NS_PER_S), .tv_nsec = (long)(when_ns % NS_PER_S)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
}

static inline void sleep_tick(uint64_t tick_us)
{
    sleep_until(now_ns() + tick_us * NS_PER_US);
}

/* The kernel may round a sleep up by the timer slack, 50 us by default: a quarter of a tick. */
static inline void sleep_precisely(void)
{
    prctl(PR_SET_TIMERSLACK, 1);
}

#endif
