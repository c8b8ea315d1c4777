#include "worker/handler.h"

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

static Handler *handler_of(SluiceContext *ctx) {
        return (Handler *)ctx;
}

static bool handler_is_source(const Handler *h) {
        return h->stage->kind == SLUICE_SOURCE;
}

/* ---- what a job emits ---- */

/* An empty output takes the id, time and priority of the job that fills it. */
static void handler_begin_frame(Handler *h, uint64_t id) {
        LaneOut *out = &h->lane->outs[0];
        uint32_t priority = h->lane->record->priority;
        FrameHeader header = {
                .base_id = id,
                .time_usec = clock_realtime_usec(),
                .priority = FRAME_PRIORITY_DEFAULT,
        };

        if (h->lane->board)
                header.priority = (uint16_t)(priority == 0 ? 1 : MIN(priority, (uint32_t)UINT16_MAX));
        memcpy(out->buffer, &header, sizeof(header));
        out->last_id = id - 1;
}

/* Points the context at the room behind the committed results. */
static void handler_prepare_context(Handler *h) {
        const LaneOut *out = &h->lane->outs[0];
        const LaneOutput *o = &h->lane->now->first;

        h->n_written = 0;
        h->n_spilled = 0;
        h->explained = false;
        h->quick_given = h->ctx.quick = 0;
        if (h->lane->n_outs == 0)
                return;

        h->ctx.out = out->buffer + FRAME_HEADER_BYTES + o->length;
        h->ctx.out_end = out->buffer + FRAME_HEADER_BYTES + out->capacity - JOB_HEADER_BYTES;
        h->ctx.quick_max = (uint32_t)frame_payload_max(out->capacity + FRAME_OVERHEAD_BYTES);
        h->spill_at = o->spill_end;
}

static void handler_prepare(Handler *h) {
        const LaneOut *out = &h->lane->outs[0];

        handler_prepare_context(h);
        if (h->lane->n_outs == 0)
                return;

        if (h->lane->now->first.count == 0)
                handler_begin_frame(h, h->job.id);
        if (h->stage->kind == SLUICE_TRANSFORM && h->job.credit == JOB_CREDIT_WHOLE &&
            h->job.id == out->last_id + 1)
                h->quick_given = h->ctx.quick = 1;
}

static uint32_t handler_n_in_frame(const Handler *h) {
        return h->quick_given - h->ctx.quick + h->n_written;
}

static bool handler_fits(const Handler *h, size_t n_bytes) {
        return (ptrdiff_t)n_bytes <= h->ctx.out_end + JOB_HEADER_BYTES - h->ctx.out;
}

static int handler_spill(Handler *h, JobSpec *job) {
        LaneOut *out = &h->lane->outs[0];

        /* In a frame of their own the first gets its id from the header, see lane_refill(). */
        job->flags |= JOB_SAME_ID;
        job->explicit_id = false;
        if (h->spill_at + job_bytes(job) > LANE_SPILL_BYTES)
                return -ENOSPC;
        /* What follows must not overtake it into the frame. */
        h->n_written = handler_n_in_frame(h);
        h->quick_given = h->ctx.quick = 0;
        h->spill_at = (uint64_t)(job_write(out->spill + h->spill_at, job) - out->spill);
        h->n_spilled++;
        return 0;
}

/*
 * Tracked jobs with several results: each result carries its share of the
 * job's credit, known only when the handler is through. So from the second
 * result on all of them go to the spill, and what is there has room for the
 * share.
 */
#define CREDIT_PENDING 1

static int handler_append(Handler *h, JobSpec *job) {
        uint32_t n = handler_n_in_frame(h);

        if (n > 0)
                job->flags |= JOB_SAME_ID;
        else if (h->job.id != h->lane->outs[0].last_id + 1)
                job->explicit_id = true;
        if (h->n_spilled > 0 || !handler_fits(h, job_bytes(job))) {
                if (h->tracked && !(job->flags & JOB_MARKER))
                        job->credit = CREDIT_PENDING;
                return handler_spill(h, job);
        }
        h->ctx.out = job_write(h->ctx.out, job);
        h->ctx.quick = 0;
        h->quick_given = 0;
        h->n_written = n + 1;
        return 0;
}

static int handler_unframe(Handler *h) {
        uint8_t *start = h->lane->outs[0].buffer + FRAME_HEADER_BYTES + h->lane->now->first.length;
        FrameJob first;
        JobSpec job;
        int r;

        frame_job_read(h->lane->outs[0].buffer, (uint32_t)(start - h->lane->outs[0].buffer), 0, false,
                       &first);
        job = (JobSpec){ .data = first.data, .size = first.size, .id = h->job.id, .credit = CREDIT_PENDING };
        r = handler_spill(h, &job);
        if (r < 0)
                return r;

        h->ctx.out = start;
        h->n_written = h->quick_given = h->ctx.quick = 0;
        return 0;
}

static void handler_split_credit(Handler *h) {
        uint8_t *spill = h->lane->outs[0].spill;
        uint64_t share = h->job.credit / h->n_spilled;
        uint32_t offset = (uint32_t)h->lane->now->first.spill_end;

        for (uint32_t i = 0; i < h->n_spilled; i++) {
                uint64_t credit = i + 1 < h->n_spilled ? share : h->job.credit - share * (h->n_spilled - 1);
                FrameJob job;

                frame_job_read(spill, offset, 0, false, &job);
                store_u64(spill + offset + JOB_HEADER_BYTES + 4, credit);
                offset = job.next;
        }
}

static int handler_emit_result(Handler *h, const void *data, size_t size) {
        JobSpec job = {
                .data = data,
                .size = (uint32_t)size,
                .id = h->job.id,
                .credit = h->job.credit,
        };
        int r;

        if (h->tracked && handler_n_in_frame(h) + h->n_spilled > 0) {
                if (h->n_spilled == 0) {
                        r = handler_unframe(h);
                        if (r < 0)
                                return r;
                }
                job.credit = CREDIT_PENDING;
                return handler_spill(h, &job);
        }
        return handler_append(h, &job);
}

static int handler_emit_new(Handler *h, const void *data, size_t size) {
        JobSpec job = { .data = data, .size = (uint32_t)size };

        if (!handler_fits(h, JOB_HEADER_BYTES + size))
                return SLUICE_FULL;
        h->ctx.out = job_write(h->ctx.out, &job);
        h->n_written++;
        return 0;
}

static int host_emit(SluiceContext *ctx, const void *data, size_t size) {
        Handler *h = handler_of(ctx);

        if (h->stage->kind == SLUICE_SINK || h->position_now)
                return -EPERM;
        if (h->lane->n_outs == 0)
                return 0; /* results = "none": nobody wants them */
        if (size > frame_payload_max(h->lane->outs[0].capacity + FRAME_OVERHEAD_BYTES))
                return -EMSGSIZE;
        return handler_is_source(h) ? handler_emit_new(h, data, size) : handler_emit_result(h, data, size);
}

/* ---- answers ---- */

static void handler_commit_position(Handler *h, LaneProgress *p) {
        memcpy(p->position, h->position, h->position_size);
        p->position_size = h->position_size;
        h->position_set = false;
}

/* Whether the job after the one being committed may be marked as running in the same flip. */
static bool handler_may_run_next(const Handler *h, const LaneProgress *p) {
        return p->cursor < p->end && p->first.spill_end == p->first.spill_begin &&
               load_u32(h->lane->input + p->cursor_offset) >> 20 == 0;
}

/* One flip: the job is answered, what it emitted counts. */
static void handler_commit(Handler *h, bool run_next) {
        Lane *lane = h->lane;
        bool cold = h->position_set || h->n_spilled > 0 || h->ending != HANDLER_ENDED_DONE;
        LaneProgress *p = cold ? lane_edit(lane) : lane_edit_hot(lane);

        if (lane->n_outs > 0) {
                LaneOut *out = &lane->outs[0];
                uint32_t n = handler_n_in_frame(h);

                p->first.length = (uint32_t)(h->ctx.out - out->buffer) - FRAME_HEADER_BYTES;
                p->first.count += n;
                p->first.spill_end = h->spill_at;
                h->last_bytes = p->first.length - lane->now->first.length;
                if (n > 0)
                        out->last_id = h->job.id;
        }
        if (cold) {
                if (h->position_set)
                        handler_commit_position(h, p);
                if (h->n_spilled > 0)
                        p->spill_id = h->job.id;
                p->n_failed += h->ending == HANDLER_ENDED_FAILED;
                p->n_dropped += h->ending == HANDLER_ENDED_DROPPED;
                h->ending = HANDLER_ENDED_DONE;
        }
        lane_step_past(p, &h->job);
        p->n_done++;
        if (run_next && handler_may_run_next(h, p))
                p->running = 1;
        lane_flip(lane);
        lane_point(LANE_COMMIT_FLIP);
        if (lane->now->running)
                lane_point(LANE_RUN_FLIP);
}

/* What the job emitted so far never was. */
static void handler_discard(Handler *h) {
        handler_prepare(h);
        h->position_set = false;
}

/* Tracked jobs that end without a result leave a note for whoever counts them. */
static void handler_mark(Handler *h, JobMarker kind, const char *text) {
        char note[1 + HANDLER_EXPLANATION_BYTES];
        size_t n = MIN(strlen(text), sizeof(note) - 1);
        JobSpec job = {
                .data = note,
                .flags = JOB_MARKER,
                .id = h->job.id,
                .credit = h->job.credit,
        };
        int r;

        if (!h->tracked || h->lane->n_outs == 0)
                return;

        n = MIN(n, frame_payload_max(h->lane->outs[0].capacity + FRAME_OVERHEAD_BYTES) - 1);
        note[0] = (char)kind;
        memcpy(note + 1, text, n);
        job.size = (uint32_t)n + 1;
        r = handler_append(h, &job);
        assert(r == 0); /* the spill is empty when a job begins */
}

static void handler_fail(Handler *h, const char *why) {
        LogFields fields = {
                .lane = -1,
                .has_job = true,
                .job = h->job.id,
                .attempt = h->job.attempts + 1,
        };
        char text[HANDLER_EXPLANATION_BYTES];

        (void)snprintf(text, sizeof(text), "%s", why);
        /* Where jobs are tracked, the submitter is told; otherwise the log is the only place that knows. */
        log_entry(h->tracked ? LOG_DEBUG : LOG_WARNING, &fields, "Job %" PRIu64 " failed: %s", h->job.id,
                  text);
        handler_discard(h);
        h->ending = HANDLER_ENDED_FAILED;
        handler_mark(h, JOB_MARKER_FAILED, text);
        handler_commit(h, false);
}

static void handler_drop(Handler *h) {
        handler_discard(h);
        h->ending = HANDLER_ENDED_DROPPED;
        handler_mark(h, JOB_MARKER_DROPPED, "");
        handler_commit(h, false);
}

static const char *handler_why(const Handler *h) {
        return h->explained ? h->explanation : "the handler did not say why";
}

/* False if the job was failed instead. */
static bool handler_retry(Handler *h) {
        uint64_t delay = h->spec->retry_backoff_usec;
        LaneProgress *p;

        if (h->job.attempts + 1 >= h->spec->retry_attempts) {
                char text[HANDLER_EXPLANATION_BYTES];

                (void)snprintf(text, sizeof(text), "%.400s (attempt %" PRIu32 " of %" PRIu32 ")",
                               handler_why(h), h->job.attempts + 1, h->spec->retry_attempts);
                handler_fail(h, text);
                return false;
        }

        p = lane_edit(h->lane);
        p->running = 0;
        p->attempts++;
        p->n_retried++;
        lane_flip(h->lane);
        h->position_set = false;
        for (uint32_t i = 0; i < h->job.attempts && delay < h->spec->retry_max_backoff_usec; i++)
                delay *= 2;
        h->retry_usec = MIN(delay, h->spec->retry_max_backoff_usec);
        h->retrying = true;
        return true;
}

/* Returns false if the job stays at the cursor. */
static bool handler_answer(Handler *h, SluiceAnswer answer, bool run_next) {
        switch (answer) {
        case SLUICE_DONE:
                if (__builtin_expect(h->tracked, false)) {
                        if (handler_n_in_frame(h) + h->n_spilled == 0)
                                handler_mark(h, JOB_MARKER_DROPPED, "");
                        else if (h->n_spilled > h->job.credit) {
                                handler_fail(h, "it split into more results than can be followed");
                                return true;
                        } else if (h->n_spilled > 0)
                                handler_split_credit(h);
                }
                handler_commit(h, run_next);
                return true;
        case SLUICE_DROP:
                handler_drop(h);
                return true;
        case SLUICE_RETRY:
                return !handler_retry(h);
        case SLUICE_FAIL:
                handler_fail(h, handler_why(h));
                return true;
        default: {
                char text[64];

                (void)snprintf(text, sizeof(text), "the handler gave an unknown answer (%d)", (int)answer);
                handler_fail(h, text);
                return true;
        }
        }
}

/* ---- running ---- */

static inline bool is_plain(const uint8_t *header) {
        return load_u32(header) <= JOB_SIZE_MAX;
}

/* Marked as running in its own flip, unless the commit before did it. */
static void handler_mark_running(Handler *h) {
        LaneProgress *p;

        if (h->lane->now->running)
                return;
        p = lane_edit_hot(h->lane);
        p->running = 1;
        lane_flip(h->lane);
        lane_point(LANE_RUN_FLIP);
}

/* The stage has stopped by itself, so nothing that it was doing is charged. */
static void handler_unmark_running(Handler *h) {
        LaneProgress *p;

        if (!h->lane->now->running)
                return;
        p = lane_edit_hot(h->lane);
        p->running = 0;
        lane_flip(h->lane);
}

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

static void handler_export(const FrameJob *job, SluiceJob *ret) {
        *ret = (SluiceJob){
                .data = job->data,
                .size = job->size,
                .id = job->id,
                .attempt = job->attempts + 1,
        };
}

/* The spill must be empty when a job begins. A frame that would not hold another result like the last one is full:
 * sent now, it saves that result the way through the spill. */
static bool handler_must_flush(const Handler *h) {
        const LaneOutput *o = &h->lane->now->first;

        return o->spill_end > o->spill_begin ||
               (o->count > 0 && h->lane->outs[0].capacity - o->length < h->last_bytes);
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
static void host_commit(SluiceContext *ctx, size_t n, SluiceAnswer answer) {
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

static HandlerState handler_run_batch(Handler *h, uint32_t n, uint32_t *ret_n) {
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

/* ---- the rest of the host ---- */

__attribute__((format(printf, 2, 0))) static void host_explain(SluiceContext *ctx, const char *format,
                                                               va_list ap) {
        Handler *h = handler_of(ctx);

        (void)vsnprintf(h->explanation, sizeof(h->explanation), format, ap);
        h->explained = true;
}

__attribute__((format(printf, 3, 0))) static void host_log(SluiceContext *ctx, int level, const char *format,
                                                           va_list ap) {
        Handler *h = handler_of(ctx);
        LogFields fields = { .lane = -1 };
        char text[2048];

        if (level > log_level())
                return;
        if (!handler_is_source(h) && h->lane->now->running) {
                fields.has_job = true;
                fields.job = h->job.id;
                fields.attempt = h->job.attempts + 1;
        }
        (void)vsnprintf(text, sizeof(text), format, ap);
        log_entry(level, &fields, "%s", text);
}

static const WorkerSetting *handler_setting(Handler *h, const char *name) {
        const uint8_t *p = (const uint8_t *)(h->spec + 1);

        for (uint32_t i = 0; i < h->spec->n_settings; i++) {
                const WorkerSetting *s = (const WorkerSetting *)p;

                if (strcmp((const char *)(s + 1), name) == 0)
                        return s;
                p += s->n_bytes;
        }
        log_error("The handler asks for a setting that it has not declared: %s", name);
        return NULL;
}

static int64_t host_setting_int(SluiceContext *ctx, const char *name) {
        const WorkerSetting *s = handler_setting(handler_of(ctx), name);

        return s ? s->integer : 0;
}

static double host_setting_float(SluiceContext *ctx, const char *name) {
        const WorkerSetting *s = handler_setting(handler_of(ctx), name);

        return s ? s->real : 0;
}

static const char *host_setting_string(SluiceContext *ctx, const char *name) {
        const WorkerSetting *s = handler_setting(handler_of(ctx), name);

        return s ? (const char *)(s + 1) + s->n_name : "";
}

static const void *host_position(SluiceContext *ctx, size_t *ret_size) {
        Handler *h = handler_of(ctx);

        if (h->position_set) {
                *ret_size = h->position_size;
                return h->position;
        }
        *ret_size = h->lane->now->position_size;
        return h->lane->now->position;
}

static int host_set_position(SluiceContext *ctx, const void *position, size_t size) {
        Handler *h = handler_of(ctx);

        if (size > sizeof(h->position))
                return -EMSGSIZE;

        memcpy(h->position, position, size);
        h->position_size = (uint32_t)size;
        h->position_set = true;
        if (h->position_now) {
                handler_commit_position(h, lane_edit(h->lane));
                lane_flip(h->lane);
        }
        return 0;
}

static void *host_memory(SluiceContext *ctx) {
        Handler *h = handler_of(ctx);

        return h->lane->board ? NULL : (uint8_t *)h->lane->record + h->lane->record->memory_offset;
}

static int host_carry(SluiceContext *ctx, int ret_fds[2]) {
        Handler *h = handler_of(ctx);

        if (h->carry[0] < 0)
                return -EOPNOTSUPP;
        ret_fds[0] = h->carry[0];
        ret_fds[1] = h->carry[1];
        return 0;
}

static int host_stopping(SluiceContext *ctx) {
        Handler *h = handler_of(ctx);

        return *h->stopping || (atomic_load_explicit(&h->lane->record->control, memory_order_relaxed) &
                                ~(uint32_t)LANE_CONTROL_REOPEN) != 0;
}

static const SluiceHost handler_host = {
        .size = sizeof(SluiceHost),
        .emit = host_emit,
        .commit = host_commit,
        .explain = host_explain,
        .log = host_log,
        .setting_int = host_setting_int,
        .setting_float = host_setting_float,
        .setting_string = host_setting_string,
        .position = host_position,
        .set_position = host_set_position,
        .memory = host_memory,
        .carry = host_carry,
        .stopping = host_stopping,
};

int handler_open(Handler *h, Lane *lane, const WorkerSpec *spec, const int carry[2],
                 volatile const bool *stopping) {
        int r;

        *h = (Handler){
                .ctx = { .host = &handler_host },
                .lane = lane,
                .spec = spec,
                .stopping = stopping,
                .carry = { carry[0], carry[1] },
                .tracked = (spec->flags & WORKER_TRACK) != 0,
        };

        h->library = dlopen(spec->plugin, RTLD_NOW | RTLD_LOCAL);
        if (!h->library) {
                log_error("Cannot load the stage: %s", dlerror());
                return -ELIBACC;
        }
        h->stage = dlsym(h->library, "sluice_stage");
        if (!h->stage || h->stage->abi != SLUICE_STAGE_ABI) {
                log_error("%s is no stage for this sluice", spec->plugin);
                return -ELIBBAD;
        }
        if (!h->stage->init)
                return 0;

        h->position_now = true;
        r = h->stage->init(&h->ctx, &h->state);
        h->position_now = false;
        if (r < 0)
                log_error("The stage cannot start: %s", h->explained ? h->explanation : strerror(-r));
        return r;
}

void handler_close(Handler *h) {
        if (h->stage && h->stage->fini)
                h->stage->fini(h->state);
        /* The library stays mapped: its threads or atexit handlers may still be there. */
}
