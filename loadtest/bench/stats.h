/* A log-linear histogram of microseconds, and how it is printed.
 *
 * Exact below 128 us; above, each power of two is cut into 128 equal parts, so that a value is known to better than
 * 1 %, in 32 KB whatever is recorded. A percentile is the upper edge of its part: it never flatters. */
#ifndef BENCH_STATS_H
#define BENCH_STATS_H

#include <stdint.h>
#include <stdio.h>

enum { PART_BITS = 7, PARTS = 1 << PART_BITS, OCTAVES = 32 };
/* Longer than an hour is an hour and ten minutes: 2^32 us. */
#define LONGEST_US ((1ull << 32) - 1)

struct histogram {
    uint64_t total;
    uint64_t max_us;
    uint64_t counts[OCTAVES * PARTS];
};

static inline uint32_t part_of(uint64_t us)
{
    if (us < PARTS)
        return (uint32_t)us;
    uint32_t octave = 63 - PART_BITS - (uint32_t)__builtin_clzll(us);
    return (octave + 1) * PARTS + (uint32_t)(us >> octave) - PARTS;
}

static inline uint64_t upper_edge(uint32_t part)
{
    if (part < PARTS)
        return part;
    uint32_t octave = part / PARTS - 1;
    return ((uint64_t)(part % PARTS + PARTS + 1) << octave) - 1;
}

static inline void record_us(struct histogram *of, uint64_t us)
{
    if (us > LONGEST_US)
        us = LONGEST_US;
    of->counts[part_of(us)]++;
    of->total++;
    if (us > of->max_us)
        of->max_us = us;
}

/* The smallest value that so many per mille do not exceed; 0 if nothing was recorded. */
static inline uint64_t percentile_us(const struct histogram *of, uint64_t per_mille)
{
    uint64_t wanted = (of->total * per_mille + 999) / 1000, seen = 0;
    if (!of->total)
        return 0;
    for (uint32_t part = 0; part < OCTAVES * PARTS; part++) {
        seen += of->counts[part];
        if (seen >= wanted) {
            uint64_t edge = upper_edge(part);
            return edge < of->max_us ? edge : of->max_us;
        }
    }
    return of->max_us;
}

/* As a JSON object; without measurements there are no percentiles to be mistaken for good ones. */
static inline void print_percentiles(const char *name, const struct histogram *of)
{
    if (!of->total) {
        printf("\"%s\": null", name);
        return;
    }
    printf("\"%s\": {\"p50\": %ju, \"p90\": %ju, \"p99\": %ju, \"p999\": %ju, \"max\": %ju}", name,
           (uintmax_t)percentile_us(of, 500), (uintmax_t)percentile_us(of, 900), (uintmax_t)percentile_us(of, 990),
           (uintmax_t)percentile_us(of, 999), (uintmax_t)of->max_us);
}

#endif
