#pragma once

/*
 * Time, in whole units named by the function.
 *
 * clock_monotonic_nsec() is for measuring; clock_coarse_nsec() is several
 * times cheaper and only as fine as the kernel's tick (1 to 10 ms), enough to
 * notice that a job took long; clock_realtime_usec() is for stamps that leave
 * the process. All are safe from any thread and from signal handlers.
 */

#include <stdint.h>
#include <time.h>

#define NSEC_PER_USEC UINT64_C(1000)
#define NSEC_PER_MSEC UINT64_C(1000000)
#define NSEC_PER_SEC UINT64_C(1000000000)
#define USEC_PER_MSEC UINT64_C(1000)
#define USEC_PER_SEC UINT64_C(1000000)

static inline uint64_t clock_nsec(clockid_t id) {
        struct timespec ts;

        (void)clock_gettime(id, &ts);
        return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

static inline uint64_t clock_monotonic_nsec(void) {
        return clock_nsec(CLOCK_MONOTONIC);
}

static inline uint64_t clock_coarse_nsec(void) {
        return clock_nsec(CLOCK_MONOTONIC_COARSE);
}

static inline uint64_t clock_realtime_usec(void) {
        return clock_nsec(CLOCK_REALTIME) / NSEC_PER_USEC;
}
