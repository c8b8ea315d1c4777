#pragma once

/*
 * Feed: standard input to the first queue, a line a job, in a thread of its
 * own. Job ids are line numbers.
 *
 * Frames are sent as soon as no further complete line is at hand, so a lone
 * line typed at a terminal is not held back.
 */

#include <mqueue.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "ctl/collect.h"

typedef struct Feeder Feeder;

typedef struct FeedOptions {
        int in_fd;
        mqd_t queue;
        uint64_t key;
        char delimiter;
        Collector *collector; /* whose window is kept to */
        /* Called in the feeder's thread when there is no more to come; 0 or a negative errno. Once. */
        void (*on_end)(void *userdata, int error);
        void *userdata;
} FeedOptions;

typedef struct FeedCounts {
        _Atomic uint64_t n_lines;
        _Atomic uint64_t n_bytes;
} FeedCounts;

int feeder_start(const FeedOptions *options, Feeder **ret);

const FeedCounts *feeder_counts(const Feeder *feeder);

/* Reads no further; what was read is still submitted. on_end() follows. From any thread. */
void feeder_stop(Feeder *feeder);

void feeder_join(Feeder *feeder);
void feeder_free(Feeder *feeder);
DEFINE_CLEANUP(Feeder, feeder_free)
