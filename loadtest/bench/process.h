/* What a server has used: CPU time and memory of a list of processes, as the kernel counts them. */
#ifndef BENCH_PROCESS_H
#define BENCH_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

#include "clock.h"

#define MAX_PROCESSES 16

struct processes {
    pid_t pids[MAX_PROCESSES];
    uint32_t count;
};

/* "12,34"; several calls add up. */
static inline bool processes_add(struct processes *of, const char *list)
{
    char *end = (char *)list;
    do {
        long pid = strtol(list, &end, 10);
        if (pid <= 0 || end == list || of->count == MAX_PROCESSES)
            return false;
        of->pids[of->count++] = (pid_t)pid;
        list = end + 1;
    } while (*end == ',');
    return !*end;
}

/* The processes' CPU clocks: nanoseconds, of all threads, ended ones included. /proc/PID/stat counts hundredths of a
 * second, and /proc/PID/task forgets threads that end. Children are not included: list them. A process that has ended
 * makes it 0, so that no difference of two readings looks like a measurement. */
static inline uint64_t processes_cpu_ns(const struct processes *of)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < of->count; i++) {
        clockid_t clock;
        struct timespec used;
        if (clock_getcpuclockid(of->pids[i], &clock) || clock_gettime(clock, &used))
            return 0;
        total += (uint64_t)used.tv_sec * NS_PER_S + (uint64_t)used.tv_nsec;
    }
    return total;
}

/* Resident memory. smaps_rollup counts pages; the numbers in status may lag behind by some for each thread. */
static inline uint64_t processes_rss_kb(const struct processes *of)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < of->count; i++) {
        char line[256];
        uintmax_t kb;
        snprintf(line, sizeof line, "/proc/%d/smaps_rollup", (int)of->pids[i]);
        FILE *file = fopen(line, "r");
        if (!file)
            return 0;
        while (fgets(line, sizeof line, file)) {
            if (sscanf(line, "Rss: %ju kB", &kb) == 1)
                total += kb;
        }
        fclose(file);
    }
    return total;
}

#endif
