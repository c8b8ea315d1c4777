#include "worker/handler_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

/* Jobs that are not to be run: notes on the way to the reader, and those that used up their attempts. True if
 * the job was dealt with. */
static bool handler_pass_over(Handler *h) {
        char text[HANDLER_EXPLANATION_BYTES];

        if (h->job.flags & JOB_MARKER) {
                size_t max = h->lane->n_outs > 0
                                     ? frame_payload_max(h->lane->outs[0].capacity + FRAME_OVERHEAD_BYTES)
                                     : 0;
                JobSpec note = {
                        .data = h->job.data,
                        .size = (uint32_t)MIN((size_t)h->job.size,
                                              max), /* the next queue's frames may be smaller */
                        .flags = JOB_MARKER,
                        .id = h->job.id,
                        .credit = h->job.credit,
                };

                handler_prepare(h);
                if (h->lane->n_outs > 0) {
                        int r = handler_append(h, &note);

                        assert(r == 0);
                }
                handler_commit(h, false);
                return true;
        }

        if (h->job.attempts >= h->spec->retry_attempts)
                (void)snprintf(text, sizeof(text), "its worker died %" PRIu32 " times while running it",
                               h->job.attempts);
        else if (h->job.interruptions >= HANDLER_INTERRUPTIONS_MAX)
                (void)snprintf(text, sizeof(text),
                               "it was interrupted %" PRIu32 " times by the end of the service",
                               h->job.interruptions);
        else
                return false;
        handler_prepare(h);
        handler_fail(h, text);
        return true;
}

static HandlerState handler_run_one(Handler *h, bool run_next) {
        SluiceAnswer answer;
        SluiceJob job;

        handler_prepare(h);
        handler_mark_running(h);
        handler_export(&h->job, &job);
        answer = h->stage->run(&h->ctx, h->state, &job);
        lane_point(LANE_RUN_HANDLER);
        if (!handler_answer(h, answer, run_next))
                return HANDLER_WAIT;
        return handler_must_flush(h) ? HANDLER_FLUSH : HANDLER_GO;
}

/*
 * Plain jobs: run for the first time, in a frame, with nothing said about them
 * but their size. Nearly all are, so this loop does with a few stores what
 * handler_run_one() does for any; whatever is unusual goes there.
 *
 * What one job leaves for the next is kept in variables: read back from the
 * record, it would make each job wait for the stores of the one before.
 */
/* Runs and commits plain jobs until one is unusual or `n` are done. Returns how many. */
static uint32_t handler_run_plain(Handler *h, uint32_t n) {
        Lane *lane = h->lane;
        LaneOut *out = &lane->outs[0];
        LaneProgress *now = lane->now, *next;
        bool transform = h->stage->kind == SLUICE_TRANSFORM && lane->n_outs > 0;
        uint8_t *jobs_begin = transform ? out->buffer + FRAME_HEADER_BYTES : NULL;
        uint32_t cursor = now->cursor, end = now->end, offset = now->cursor_offset;
        uint32_t length = now->first.length, count = now->first.count, done = 0;
        uint64_t last_id = now->last_id, n_done = now->n_done, out_last_id = transform ? out->last_id : 0;
        uint32_t capacity = transform ? out->capacity : 0;
        bool running = now->running, full = false;

        if (lane->raw || (lane->n_outs > 0 && !transform) || now->attempts > 0 || now->interruptions > 0 ||
            now->first.spill_end > 0)
                return 0;

        handler_prepare_context(h);
        h->job = (FrameJob){ .credit = JOB_CREDIT_WHOLE };

        while (done < n && !full && cursor < end && is_plain(lane->input + offset)) {
                const uint8_t *header = lane->input + offset;
                SluiceJob job = {
                        .data = header + JOB_HEADER_BYTES,
                        .size = load_u32(header),
                        .id = last_id + 1,
                        .attempt = 1,
                };
                SluiceAnswer answer;

                if (transform) {
                        if (count == 0) {
                                handler_begin_frame(h, job.id);
                                out_last_id = job.id - 1;
                        }
                        if (out_last_id + 1 != job.id)
                                break; /* its id must be spelled out */
                        h->ctx.out = jobs_begin + length;
                        h->quick_given = h->ctx.quick = 1;
                }
                offset += JOB_HEADER_BYTES + (uint32_t)job.size;
                h->job.id = job.id;
                h->job.data = job.data;
                h->job.size = (uint32_t)job.size;
                h->job.next = offset;
                h->explained = false;
                if (!running || !lane->same_cold)
                        handler_mark_running(h);
                answer = h->stage->run(&h->ctx, h->state, &job);
                lane_point(LANE_RUN_HANDLER);

                if (__builtin_expect(answer != SLUICE_DONE || h->n_written > 0 || h->n_spilled > 0 ||
                                             h->position_set || (h->tracked && h->ctx.quick > 0) ||
                                             !lane->same_cold,
                                     false)) {
                        h->plain_answer = answer;
                        h->plain_pending = true;
                        break;
                }

                if (transform && h->ctx.quick == 0) {
                        h->last_bytes = (uint32_t)(h->ctx.out - jobs_begin) - length;
                        length += h->last_bytes;
                        count++;
                        out->last_id = out_last_id = job.id;
                }
                done++;
                cursor++;
                last_id = job.id;
                n_done++;
                full = transform && capacity - length < h->last_bytes;
                running = done < n && !full && cursor < end && is_plain(lane->input + offset) &&
                          (!transform || count == 0 || out_last_id == job.id);

                next = lane->next;
                next->cursor = cursor;
                next->cursor_offset = offset;
                next->last_id = last_id;
                next->n_done = n_done;
                next->running = running;
                next->attempts = 0;
                next->interruptions = 0;
                next->first.length = length;
                next->first.count = count;
                lane_flip(lane);
                lane_point(LANE_COMMIT_FLIP);
                if (running)
                        lane_point(LANE_RUN_FLIP);
        }
        return done;
}

/* What handler_run_plain() left half done: the job has run, its answer is not taken. */
static HandlerState handler_finish_plain(Handler *h) {
        h->plain_pending = false;
        if (!handler_answer(h, h->plain_answer, false))
                return HANDLER_WAIT;
        return handler_must_flush(h) ? HANDLER_FLUSH : HANDLER_GO;
}

/* One job, or several in a stage that takes them so. */
static HandlerState handler_run_some(Handler *h, uint32_t n, uint32_t *ret_n) {
        *ret_n = 1;
        lane_job(h->lane, &h->job);
        if (__builtin_expect((h->job.flags & JOB_MARKER) || h->job.attempts > 0 || h->job.interruptions > 0,
                             false) &&
            handler_pass_over(h))
                return handler_must_flush(h) ? HANDLER_FLUSH : HANDLER_GO;
        if (h->stage->run_batch)
                return handler_run_batch(h, n, ret_n);
        return handler_run_one(h, false);
}

/* A few times the coarsest tick (10 ms at HZ=100) would be late; one tick and a half of the usual 4 ms is not. */
#define SLOW_NSEC (6 * NSEC_PER_MSEC)

/* Plain jobs between two looks at the coarse clock, which costs as much as one of them. */
#define PLAIN_STRIDE 16

HandlerState handler_run(Handler *h, uint32_t n, uint32_t *ret_n) {
        uint64_t start = n > 1 ? clock_coarse_nsec() : 0;
        HandlerState state = HANDLER_GO;
        uint32_t done = 0, count;

        h->retrying = false;
        while (done < n && lane_has_job(h->lane) && state == HANDLER_GO) {
                count = h->stage->run_batch ? 0 : handler_run_plain(h, MIN(n - done, (uint32_t)PLAIN_STRIDE));
                if (h->plain_pending) {
                        state = handler_finish_plain(h);
                        count++;
                } else if (count == 0)
                        state = handler_run_some(h, n - done, &count);
                else if (handler_must_flush(h))
                        state = HANDLER_FLUSH;
                done += count;
                if (n > 1 && clock_coarse_nsec() - start > SLOW_NSEC)
                        break;
        }
        *ret_n = done;
        return state;
}

HandlerState handler_produce(Handler *h) {
        Lane *lane = h->lane;
        LaneOut *out = &lane->outs[0];
        SluiceProduced produced;
        LaneProgress *p;
        uint32_t n;

        h->job = (FrameJob){ .id = lane->now->last_id + 1, .credit = JOB_CREDIT_WHOLE };
        handler_prepare(h);
        h->quick_given = h->ctx.quick = lane->n_outs > 0 ? UINT32_MAX : 0;

        produced = h->stage->produce(&h->ctx, h->state);
        if (produced == SLUICE_BROKEN) {
                log_error("The source cannot go on: %s", handler_why(h));
                return HANDLER_BROKEN;
        }

        n = handler_n_in_frame(h);
        if (n > 0 || h->position_set) {
                p = lane_edit(lane);
                p->first.length = (uint32_t)(h->ctx.out - out->buffer) - FRAME_HEADER_BYTES;
                p->first.count += n;
                p->last_id += n;
                p->n_done += n;
                if (h->position_set)
                        handler_commit_position(h, p);
                lane_flip(lane);
                out->last_id = p->last_id;
                lane_point(LANE_PRODUCE_FLIP);
        }
        return produced == SLUICE_END ? HANDLER_END : HANDLER_GO;
}

int handler_reopen(Handler *h) {
        int r;

        if (!h->stage->reopen)
                return 0;
        h->position_now = true;
        r = h->stage->reopen(&h->ctx, h->state);
        h->position_now = false;
        if (r < 0)
                log_error("Cannot reopen: %s", h->explained ? h->explanation : strerror(-r));
        return r;
}
