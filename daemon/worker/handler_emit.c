/*
 * What a job emits: written behind the committed results of its output frame,
 * or past the frame into the lane's spill, and void until the job's commit.
 */

#include "worker/handler_internal.h"

#include <errno.h>

#include "base/cleanup.h"
#include "base/clock.h"

/* An empty output takes the id, time and priority of the job that fills it. */
void handler_begin_frame(Handler *h, uint64_t id) {
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
void handler_prepare_context(Handler *h) {
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

void handler_prepare(Handler *h) {
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

uint32_t handler_n_in_frame(const Handler *h) {
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

int handler_append(Handler *h, JobSpec *job) {
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

void handler_split_credit(Handler *h) {
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

int handler_host_emit(SluiceContext *ctx, const void *data, size_t size) {
        Handler *h = handler_of(ctx);

        if (h->stage->kind == SLUICE_SINK || h->position_now)
                return -EPERM;
        if (h->lane->n_outs == 0)
                return 0; /* results = "none": nobody wants them */
        if (size > frame_payload_max(h->lane->outs[0].capacity + FRAME_OVERHEAD_BYTES))
                return -EMSGSIZE;
        return handler_is_source(h) ? handler_emit_new(h, data, size) : handler_emit_result(h, data, size);
}

/* The spill must be empty when a job begins. A frame that would not hold another result like the last one is full:
 * sent now, it saves that result the way through the spill. */
bool handler_must_flush(const Handler *h) {
        const LaneOutput *o = &h->lane->now->first;

        return o->spill_end > o->spill_begin ||
               (o->count > 0 && h->lane->outs[0].capacity - o->length < h->last_bytes);
}
