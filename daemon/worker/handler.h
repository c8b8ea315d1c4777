#pragma once

/*
 * Handler: a plugin at work on a lane.
 *
 * The host side of include/sluice/stage.h: loads the plugin, hands it jobs,
 * writes what it emits behind the committed results, and turns its answers
 * into one flip of the lane's record each. Nothing here touches a queue.
 */

#include <sluice/stage.h>
#include <stdbool.h>
#include <stdint.h>

#include "lane/lane.h"
#include "worker/worker_proto.h"

#define HANDLER_BATCH 64
#define HANDLER_EXPLANATION_BYTES 512
#define HANDLER_INTERRUPTIONS_MAX 10

typedef struct Handler {
        SluiceContext ctx; /* first: a plugin's pointer to it is a pointer to us */
        const SluiceStage *stage;
        void *state;
        void *library;
        Lane *lane;
        const WorkerSpec *spec;
        volatile const bool *stopping;
        int carry[2];

        /* The job at hand. */
        FrameJob job;
        uint32_t quick_given;
        uint32_t n_written; /* results appended to the frame by handler_emit() */
        uint32_t n_spilled; /* results in the spill */
        uint64_t spill_at;  /* end of what is in the spill, uncommitted results included */
        bool tracked;
        bool explained;
        char explanation[HANDLER_EXPLANATION_BYTES];

        /* A position that becomes true with the next commit. */
        bool position_set;
        bool position_now; /* init() and reopen(): at once */
        uint32_t position_size;
        uint8_t position[LANE_POSITION_BYTES];

        enum {
                HANDLER_ENDED_DONE,
                HANDLER_ENDED_FAILED,
                HANDLER_ENDED_DROPPED,
        } ending;            /* of the job that is committed next, for the counters */
        uint32_t last_bytes; /* what the last job added to the frame */
        bool plain_pending;  /* a plain job has run and was answered in an unusual way */
        SluiceAnswer plain_answer;
        const SluiceJob *batch; /* what run_batch() was handed */
        uint32_t n_batch;       /* jobs handed to run_batch() */
        uint32_t n_answered;    /* of them */
        bool retrying;          /* the job at the cursor is to run again ... */
        uint64_t retry_usec;    /* ... after this long */
} Handler;

/*
 * Loads the plugin of `spec` and runs its init(). `stopping` is read by
 * sluice_stopping(). Returns 0, or a negative errno after logging why.
 */
int handler_open(Handler *h, Lane *lane, const WorkerSpec *spec, const int carry[2],
                 volatile const bool *stopping);

/* Orderly end: runs fini(). */
void handler_close(Handler *h);

typedef enum HandlerState {
        HANDLER_GO,     /* the jobs it was asked for are answered, or the input is used up */
        HANDLER_FLUSH,  /* an output must be sent before the next job */
        HANDLER_WAIT,   /* the job at the cursor is to be retried after h->retry_usec */
        HANDLER_BROKEN, /* the plugin cannot go on; logged */
        HANDLER_END,    /* a source that has ended */
} HandlerState;

/*
 * Answers up to `n` jobs of the lane's input, fewer if one took much longer
 * than the clock's tick. `ret_n` says how many.
 */
HandlerState handler_run(Handler *h, uint32_t n, uint32_t *ret_n);

/* Sources: makes jobs once. HANDLER_GO: call again, after sending if the output is pending. */
HandlerState handler_produce(Handler *h);

/* Between jobs: the plugin's reopen(). */
int handler_reopen(Handler *h);
