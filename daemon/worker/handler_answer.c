/* What becomes of a job: each answer is one flip of the lane's record. */

#include "worker/handler_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/log.h"

/* Marked as running in its own flip, unless the commit before did it. */
void handler_mark_running(Handler *h) {
        LaneProgress *p;

        if (h->lane->now->running)
                return;
        p = lane_edit_hot(h->lane);
        p->running = 1;
        lane_flip(h->lane);
        lane_point(LANE_RUN_FLIP);
}

/* The stage has stopped by itself, so nothing that it was doing is charged. */
void handler_unmark_running(Handler *h) {
        LaneProgress *p;

        if (!h->lane->now->running)
                return;
        p = lane_edit_hot(h->lane);
        p->running = 0;
        lane_flip(h->lane);
}

void handler_commit_position(Handler *h, LaneProgress *p) {
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
void handler_commit(Handler *h, bool run_next) {
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
void handler_mark(Handler *h, JobMarker kind, const char *text) {
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

void handler_fail(Handler *h, const char *why) {
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

const char *handler_why(const Handler *h) {
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
bool handler_answer(Handler *h, SluiceAnswer answer, bool run_next) {
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
