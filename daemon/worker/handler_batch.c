/* Jobs handed over several at once, answered in order by sluice_commit(). */

#include "worker/handler_internal.h"

#include <assert.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"

/* Moves `p` past the next n jobs of the batch. */
static void handler_step_past_batch(const Handler *h, LaneProgress *p, size_t n) {
        const SluiceJob *last = &h->batch[h->n_answered + n - 1];
        FrameJob job = {
                .id = last->id,
                .next = (uint32_t)((const uint8_t *)last->data - h->lane->input + last->size),
        };

        p->cursor += (uint32_t)n - 1;
        lane_step_past(p, &job);
}

/*
 * Sinks: n answers and the position that goes with all of them, in one flip.
 * handler_gather() has seen to it that the notes of tracked jobs fit.
 */
static void handler_commit_group(Handler *h, size_t n) {
        Lane *lane = h->lane;
        LaneProgress *p = lane_edit(lane);
        uint32_t count = 0;

        for (size_t i = 0; h->tracked && lane->n_outs > 0 && i < n; i++) {
                h->job.id = h->batch[h->n_answered + i].id;
                if (i > 0)
                        h->job.credit = JOB_CREDIT_WHOLE; /* handler_gather() sees to it */
                h->n_written = 0;
                handler_mark(h, JOB_MARKER_DROPPED, "");
                assert(h->n_written == 1);
                lane->outs[0].last_id = h->job.id;
                count++;
        }
        handler_step_past_batch(h, p, n);
        if (count > 0) {
                p->first.length = (uint32_t)(h->ctx.out - lane->outs[0].buffer) - FRAME_HEADER_BYTES;
                p->first.count += count;
        }
        p->n_done += n;
        if (h->position_set)
                handler_commit_position(h, p);
        lane_flip(lane);
        lane_point(LANE_COMMIT_FLIP);
        h->n_answered += (uint32_t)n;
        if (h->n_answered < h->n_batch) {
                lane_job(lane, &h->job);
                handler_prepare(h);
                handler_mark_running(h);
        }
}

/* run_batch() only: answers jobs in order. */
void handler_host_commit(SluiceContext *ctx, size_t n, SluiceAnswer answer) {
        Handler *h = handler_of(ctx);

        if (h->stage->kind == SLUICE_SINK && answer == SLUICE_DONE && n > 0 && !h->retrying) {
                handler_commit_group(h, MIN(n, (size_t)(h->n_batch - h->n_answered)));
                return;
        }
        for (; n > 0 && h->n_answered < h->n_batch && !h->retrying; n--) {
                bool more = h->n_answered + 1 < h->n_batch;

                if (!handler_answer(h, answer, more))
                        return; /* this job stays; those after it are handed over again */
                h->n_answered++;
                if (more) {
                        lane_job(h->lane, &h->job);
                        /* What does not fit the frame has nowhere to go until the batch is over. */
                        if (handler_must_flush(h)) {
                                h->n_batch = h->n_answered;
                                return;
                        }
                        handler_prepare(h);
                        handler_mark_running(h);
                }
        }
}

/* The most a note that a job is done can take: header, extension word, id, credit, kind. */
#define DONE_NOTE_BYTES (JOB_HEADER_BYTES + 4 + 8 + 8 + 1)

/* Tracked sinks leave a note for each job: how many there is room for. */
static uint32_t handler_room_for_notes(const Handler *h) {
        if (h->stage->kind != SLUICE_SINK || !h->tracked || h->lane->n_outs == 0)
                return UINT32_MAX;
        return (h->lane->outs[0].capacity - h->lane->now->first.length) / DONE_NOTE_BYTES;
}

/* Jobs from the cursor on that can be handed over together. */
static uint32_t handler_gather(Handler *h, uint32_t n, SluiceJob *jobs) {
        uint32_t offset = h->lane->now->cursor_offset, count = 0;
        uint64_t id = h->lane->now->last_id;
        FrameJob job = h->job;

        n = MIN(n, MIN(h->lane->now->end - h->lane->now->cursor, handler_room_for_notes(h)));
        for (;;) {
                handler_export(&job, &jobs[count++]);
                offset = job.next;
                id = job.id;
                /* Nearly all: nothing is said about them but their size. */
                for (; count < n && !h->lane->raw && is_plain(h->lane->input + offset); count++) {
                        uint32_t size = load_u32(h->lane->input + offset);

                        jobs[count] = (SluiceJob){
                                .data = h->lane->input + offset + JOB_HEADER_BYTES,
                                .size = size,
                                .id = ++id,
                                .attempt = 1,
                        };
                        offset += JOB_HEADER_BYTES + size;
                }
                if (count >= n || h->lane->raw)
                        return count;
                frame_job_read(h->lane->input, offset, id, false, &job);
                if ((job.flags & JOB_MARKER) || job.attempts > 0 || job.interruptions > 0 ||
                    job.credit != JOB_CREDIT_WHOLE)
                        return count;
        }
}

HandlerState handler_run_batch(Handler *h, uint32_t n, uint32_t *ret_n) {
        SluiceJob jobs[HANDLER_BATCH];
        int r;

        *ret_n = 0;
        if (handler_room_for_notes(h) == 0)
                return HANDLER_FLUSH;
        h->batch = jobs;
        h->n_batch = handler_gather(h, MIN(n, (uint32_t)HANDLER_BATCH), jobs);
        h->n_answered = 0;
        handler_prepare(h);
        handler_mark_running(h);
        r = h->stage->run_batch(&h->ctx, h->state, jobs, h->n_batch);
        lane_point(LANE_RUN_HANDLER);
        handler_unmark_running(h); /* of a job it has left unanswered */
        *ret_n = h->n_answered;

        if (r < 0) {
                log_error("The handler cannot go on: %s", h->explained ? h->explanation : strerror(-r));
                return HANDLER_BROKEN;
        }
        if (h->retrying)
                return HANDLER_WAIT;
        if (h->n_answered == 0 && !handler_must_flush(h)) {
                handler_fail(h, "the handler gave no answer");
                *ret_n = 1;
        }
        return handler_must_flush(h) ? HANDLER_FLUSH : HANDLER_GO;
}
