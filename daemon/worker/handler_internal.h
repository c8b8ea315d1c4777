#pragma once

/*
 * Handler, inside: what its parts need of each other.
 *
 *     handler.c         runs jobs, produces
 *     handler_batch.c   runs them several at once
 *     handler_emit.c    what they emit
 *     handler_answer.c  what becomes of them
 *     handler_host.c    loading, and the rest of the host side of stage.h
 *
 * A job's way: handler_prepare(), handler_mark_running(), the plugin (which
 * comes back through handler_host_emit()), handler_answer().
 */

#include "worker/handler.h"

static inline Handler *handler_of(SluiceContext *ctx) {
        return (Handler *)ctx;
}

static inline bool handler_is_source(const Handler *h) {
        return h->stage->kind == SLUICE_SOURCE;
}

/* True of a job about which nothing is said but its size; `header` is where it begins. */
static inline bool is_plain(const uint8_t *header) {
        return load_u32(header) <= JOB_SIZE_MAX;
}

static inline void handler_export(const FrameJob *job, SluiceJob *ret) {
        *ret = (SluiceJob){
                .data = job->data,
                .size = job->size,
                .id = job->id,
                .attempt = job->attempts + 1,
        };
}

/* ---- handler_emit.c ---- */

/* An empty output takes the id, time and priority of the job that fills it. */
void handler_begin_frame(Handler *h, uint64_t id);

/* Points the context at the room behind the committed results. */
void handler_prepare_context(Handler *h);

/* The same for the job at hand, which may append its first result unasked if nothing has to be said about it. */
void handler_prepare(Handler *h);

/* Results of the job at hand that went into the frame. */
uint32_t handler_n_in_frame(const Handler *h);

/* Writes a result or note of the job at hand. Returns 0, or -ENOSPC. */
int handler_append(Handler *h, JobSpec *job);

/* Shares the job's credit out among its results, all of which are in the spill. */
void handler_split_credit(Handler *h);

/* True if an output must be sent before the next job. */
bool handler_must_flush(const Handler *h);

int handler_host_emit(SluiceContext *ctx, const void *data, size_t size);

/* ---- handler_answer.c ---- */

void handler_mark_running(Handler *h);
void handler_unmark_running(Handler *h);

/* Answers the job at hand. False if it stays at the cursor, to be tried again. `run_next`: mark the one after it as
 * running in the same flip, since it is about to be. */
bool handler_answer(Handler *h, SluiceAnswer answer, bool run_next);

/* One flip: the job at hand is answered, what it emitted counts. */
void handler_commit(Handler *h, bool run_next);
void handler_commit_position(Handler *h, LaneProgress *p);

/* A note in the place of a result, if jobs are tracked. */
void handler_mark(Handler *h, JobMarker kind, const char *text);
void handler_fail(Handler *h, const char *why);
const char *handler_why(const Handler *h);

/* ---- handler_batch.c ---- */

HandlerState handler_run_batch(Handler *h, uint32_t n, uint32_t *ret_n);
void handler_host_commit(SluiceContext *ctx, size_t n, SluiceAnswer answer);
