/* SPDX-License-Identifier: MIT */
#pragma once

/*
 * Gauge: what a measured pipeline writes down while it runs.
 *
 * One file, mapped by the process that makes the jobs and by the one that
 * ends them, and read by run-bench afterwards. bench-raw and the two bench
 * plugins make their jobs, take their times and sum up what arrived with the
 * functions below, so both sides are measured with the same ruler.
 *
 * The first `n_pings` jobs travel alone: the next one is made when the one
 * before has arrived (a futex word in the gauge says so). They measure the
 * latency, and in a throughput run they see to it that every process is up
 * before the clock starts. All later jobs are made as fast as they are taken.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GAUGE_SAMPLES_MAX 65536
#define GAUGE_JOB_BYTES_MAX 8000

/* Offsets are known to run-bench. Each writer has cache lines of its own. */
typedef struct Gauge {
        /* by the source */
        _Alignas(64) _Atomic uint64_t n_jobs; /* how many there will be, pings included */
        _Atomic uint64_t n_pings;
        _Atomic uint64_t start_nsec; /* the first job after the pings was made */
        _Atomic uint64_t n_samples;

        /* by the sink */
        _Alignas(64) _Atomic uint64_t end_nsec; /* the last job arrived */
        _Atomic uint64_t n_arrived;
        _Atomic uint64_t checksum; /* of all that arrived, in any order */

        /* by the sink, waited for by the source: pings that arrived */
        _Alignas(64) _Atomic uint32_t n_acked;

        /* by the source */
        _Alignas(64) uint32_t sample_nsec[GAUGE_SAMPLES_MAX]; /* round trips of the pings */
} Gauge;

_Static_assert(offsetof(Gauge, end_nsec) == 64, "run-bench reads the gauge by offset");
_Static_assert(offsetof(Gauge, n_acked) == 128, "run-bench reads the gauge by offset");
_Static_assert(offsetof(Gauge, sample_nsec) == 192, "run-bench reads the gauge by offset");

static inline uint64_t gauge_now_nsec(void) {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Maps the gauge in `path`, made if it is missing; without a path, one for this process and its children. */
static inline int gauge_map(const char *path, Gauge **ret) {
        int fd = -1, r = 0;
        void *p;

        if (path) {
                fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
                if (fd < 0 || ftruncate(fd, sizeof(Gauge)) < 0) {
                        r = -errno;
                        if (fd >= 0)
                                close(fd);
                        return r;
                }
        }

        p = mmap(NULL, sizeof(Gauge), PROT_READ | PROT_WRITE, path ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS,
                 fd, 0);
        if (p == MAP_FAILED)
                r = -errno;
        if (fd >= 0)
                close(fd);
        if (r < 0)
                return r;

        *ret = p;
        return 0;
}

/* Source: waits until `n` pings have arrived. Returns 0 or -EINTR. Never spins. */
static inline int gauge_wait(Gauge *gauge, uint64_t n) {
        uint32_t acked;

        while ((acked = atomic_load(&gauge->n_acked)) < n)
                if (syscall(SYS_futex, &gauge->n_acked, FUTEX_WAIT, acked, NULL, NULL, 0) < 0 &&
                    errno == EINTR)
                        return -EINTR;
        return 0;
}

static inline void gauge_sample(Gauge *gauge, uint64_t round_trip_nsec) {
        uint64_t n = atomic_load_explicit(&gauge->n_samples, memory_order_relaxed);

        if (n >= GAUGE_SAMPLES_MAX)
                return;
        gauge->sample_nsec[n] = round_trip_nsec > UINT32_MAX ? UINT32_MAX : (uint32_t)round_trip_nsec;
        atomic_store_explicit(&gauge->n_samples, n + 1, memory_order_relaxed);
}

/* Sink: all that has arrived so far, after each frame or message. */
static inline void gauge_arrived(Gauge *gauge, uint64_t n_before, uint64_t n_arrived, uint64_t checksum) {
        atomic_store_explicit(&gauge->n_arrived, n_arrived, memory_order_relaxed);
        atomic_store_explicit(&gauge->checksum, checksum, memory_order_relaxed);

        if (n_arrived >= atomic_load_explicit(&gauge->n_jobs, memory_order_relaxed))
                atomic_store_explicit(&gauge->end_nsec, gauge_now_nsec(), memory_order_relaxed);

        if (n_before < atomic_load_explicit(&gauge->n_pings, memory_order_relaxed)) {
                atomic_fetch_add(&gauge->n_acked, (uint32_t)(n_arrived - n_before));
                (void)syscall(SYS_futex, &gauge->n_acked, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        }
}

/* A sum over jobs that comes out the same in any order, and differently if one is lost, doubled or changed at
 * either end. */
static inline uint64_t gauge_check(const void *data, size_t size) {
        const uint8_t *p = data;
        uint64_t first = 0, last = 0, h;

        if (size >= 8) {
                memcpy(&first, p, 8);
                memcpy(&last, p + size - 8, 8);
        } else if (size >= 4) {
                memcpy(&first, p, 4);
                memcpy(&last, p + size - 4, 4);
        } else {
                for (size_t i = 0; i < size; i++)
                        first = first << 8 | p[i];
        }

        h = (first + size) * 0x9e3779b97f4a7c15u;
        return (h ^ h >> 29) + last * 0xd6e8feb86659fd93u;
}

/* The payload of the job at hand. With a size: the job's number in the first 8 bytes, the same bytes behind it
 * in every job. Without: the number as decimal text. */
typedef struct Load {
        uint64_t number;
        bool text;
        size_t size;
        char *data; /* into `bytes` */
        char bytes[GAUGE_JOB_BYTES_MAX];
} Load;

static inline void load_set(Load *load, uint64_t number) {
        load->number = number;
        if (!load->text) {
                memcpy(load->data, &number, sizeof(number));
                return;
        }

        /* Right-aligned, so that the text can grow to the left. */
        load->data = load->bytes + 24;
        do {
                *--load->data = (char)('0' + number % 10);
                number /= 10;
        } while (number > 0);
        load->size = (size_t)(load->bytes + 24 - load->data);
}

/* size 0: decimal text. Otherwise 8 to GAUGE_JOB_BYTES_MAX. */
static inline void load_init(Load *load, size_t size, uint64_t number) {
        memset(load->bytes, '.', sizeof(load->bytes));
        load->text = size == 0;
        load->size = size;
        load->data = load->bytes;
        load_set(load, number);
}

static inline void load_next(Load *load) {
        load->number++;
        if (!load->text) {
                memcpy(load->data, &load->number, sizeof(load->number));
                return;
        }

        for (char *p = load->bytes + 23; p >= load->data; p--) {
                if (*p != '9') {
                        (*p)++;
                        return;
                }
                *p = '0';
        }
        *--load->data = '1';
        load->size++;
}
