#pragma once

/*
 * Collect: the reader of a run's result queue, a lane like any other.
 *
 * Every job comes back as results, or as a marker that says why there is
 * none. A job that split into several results has come back when their
 * credits add up. So the counts are exact with any number of results per job,
 * and --keep-order knows when a line is complete.
 *
 * Runs in a thread of its own: submitting and collecting in one would deadlock
 * on full queues.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "lane/lane.h"
#include "queue/queue.h"

/* Lines that may be under way ahead of the oldest one that is not complete, and what their results may take. */
#define COLLECT_WINDOW_LINES (1u << 18)
#define COLLECT_WINDOW_BYTES (UINT64_C(64) << 20)

/* The sentinel that ends the collector carries this generation. */
#define COLLECT_GENERATION 1

typedef struct Collector Collector;

typedef struct CollectOptions {
        mqd_t queue;
        QueueShape shape;
        Board *board;
        int out_fd;
        char separator; /* '\n' or '\0' */
        bool keep_order;
        const char *noun; /* "line" or "job": what an id counts */
        /* Called in the collector's thread. */
        void (*on_failure)(void *userdata, uint64_t id, const char *text, size_t n_text);
        void (*on_output_error)(void *userdata, int error); /* errno; EPIPE: nobody reads any more. Once */
        void *userdata;
} CollectOptions;

/* Counters, readable from any thread. */
typedef struct CollectCounts {
        _Atomic uint64_t n_complete; /* jobs that came back, in whatever way */
        _Atomic uint64_t n_results;
        _Atomic uint64_t n_failed;
        _Atomic uint64_t n_dropped;
} CollectCounts;

/* Starts the thread. Returns 0 or a negative errno. */
int collector_start(const CollectOptions *options, Collector **ret);

const CollectCounts *collector_counts(const Collector *c);

/* Blocks until the window has room for job `id` (ids begin at 1 and are submitted in order). Returns false if the
 * collector has stopped or collector_stop_waiting() was called. */
bool collector_wait_for_room(Collector *c, uint64_t id);
void collector_stop_waiting(Collector *c);

/* Waits for the end of the thread, which comes with the sentinel. */
void collector_join(Collector *c);
void collector_free(Collector *c);
DEFINE_CLEANUP(Collector, collector_free)
