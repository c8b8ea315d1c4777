#pragma once

/*
 * Lane: one execution slot, and the record that outlives whoever runs it.
 *
 * mq_receive() removes the message; if the process dies then, a naive worker
 * loses it. A lane receives straight into its record. Everything the next
 * worker must know to go on is the *progress*, kept twice and flipped by one
 * atomic store, so that every step happened or did not:
 *
 *        +----------- receive <-----------------------------+
 *        v                                                  |
 *     RECEIVING --claim--> HAVE --run--> running --commit--+-+--> (next job)
 *                            |                              |
 *                            +--share (later half, when others idle)
 *     beside it, for each output frame:  send: SENDING --> (empty)
 *
 * There is one path: a worker that starts does what the record says, and a
 * worker that has run for weeks does the same. The steps, and what a
 * resume does when a process died after each, are the table LANE_STEPS; the
 * decisions are lane_receive_table and lane_send_table in lane.c.
 *
 * This module works on memory only. The calls on queues are the worker's
 * (worker/), which asks the lane what to do before and tells it after.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame/frame.h"
#include "lane/board.h"

#define LANE_MAGIC UINT64_C(0x31454e414c434c53) /* "SLCLANE1" */
#define LANE_LAYOUT 1
#define LANE_OUTPUTS_MAX 8
#define LANE_POSITION_BYTES 64
#define LANE_MEMORY_BYTES 65536
#define LANE_SPILL_BYTES (UINT64_C(64) << 20)
#define LANE_CACHE_LINE 64

/*
 * Every store of the protocol, in order. A build with crash points can kill
 * the process right after each; what resume does is said beside it.
 */
#define LANE_STEPS(X)                                                                                        \
        /* id, name, what was stored, what resume finds and does if the process dies right after it */       \
        X(RECEIVE_ARM, "receive.arm", "priority word all ones, buffer's start zeroed", "the step before")    \
        X(RECEIVE_FLIP, "receive.flip", "flip: RECEIVING(n)", "priority word untouched: nothing came")       \
        X(RECEIVE_CALL, "receive.call", "mq_receive into the record", "a whole message: claim it")           \
        X(CLAIM_TICKET, "claim.ticket", "ticket OPEN -> CLAIMED(lane, n)", "claimed by this receive: have")  \
        X(CLAIM_FLIP, "claim.flip", "flip: HAVE", "still CLAIMED by this receive: free it, go on")           \
        X(CLAIM_FREE, "claim.free", "ticket := FREE", "run the jobs")                                        \
        X(RUN_FLIP, "run.flip", "flip: running", "attempt + 1, running cleared, the job runs again")         \
        X(RUN_HANDLER, "run.handler", "the handler's results, uncommitted",                                  \
          "the same; its results are void")                                                                  \
        X(COMMIT_FLIP, "commit.flip", "flip: cursor + 1, output lengths", "the next job")                    \
        X(REFILL_FLIP, "refill.flip", "flip: output frame filled from the spill", "send it")                 \
        X(SEND_FLIP, "send.flip", "flip: SENDING(ticket, sequence)", "another sequence: open, send")         \
        X(SEND_OPEN, "send.open", "ticket := OPEN(sequence)", "OPEN: send again without storing")            \
        X(SEND_CALL, "send.call", "mq_send", "OPEN: send a copy; CLAIMED or FREE: it has arrived")           \
        X(SEND_SENT, "send.sent", "flip: sent, output emptied", "the next step")                             \
        X(SHARE_FLIP, "share.flip", "flip: end := middle, SHARING(ticket, sequence)",                        \
          "as send, never blocking")                                                                         \
        X(SHARE_OPEN, "share.open", "ticket := OPEN(sequence)", "as send, never blocking")                   \
        X(SHARE_CALL, "share.call", "mq_send without waiting", "as send, never blocking")                    \
        X(SHARE_REVOKE, "share.revoke", "ticket OPEN -> REVOKED", "REVOKED: flip back")                      \
        X(SHARE_BACK, "share.back", "flip: end as before", "the next step")                                  \
        X(SHARE_SENT, "share.sent", "flip: given away", "the next step")                                     \
        X(FINISH_FLIP, "finish.flip", "flip: finished in this generation", "nothing: the lane is done")      \
        X(PRODUCE_FLIP, "produce.flip", "flip: a source's jobs and position", "produce on from there")

typedef enum LaneStep {
#define X(id, name, stored, resume) LANE_##id,
        LANE_STEPS(X)
#undef X
                _LANE_STEP_MAX,
} LaneStep;

const char *lane_step_name(LaneStep step);
const char *lane_step_stored(LaneStep step);
const char *lane_step_resume(LaneStep step);

/* Called right after each step's store. Does nothing unless built with crash points. */
#ifdef SLUICE_CRASH_POINTS
/* Kills the process (SIGKILL) if SLUICE_CRASH names this step: NAME or NAME:K for the K-th time it is passed; with
 * SLUICE_CRASH_ONCE=FILE only if FILE does not exist, and makes it. */
void lane_point(LaneStep step);
#else
static inline void lane_point(LaneStep step) {
        (void)step;
}
#endif

typedef enum LaneInput {
        LANE_EMPTY,
        LANE_RECEIVING, /* the n-th receive: a message may have come */
        LANE_HAVE,      /* jobs [cursor, end) are ours */
        LANE_SENTINEL,  /* told to finish: sends what it has, then it is done */
} LaneInput;

typedef enum LaneIntent {
        LANE_INTENT_NONE,
        LANE_INTENT_SEND,  /* an output frame */
        LANE_INTENT_SHARE, /* the later part of the input frame, back to its own queue */
} LaneIntent;

typedef struct LaneOutput {
        uint32_t length;      /* bytes of committed jobs in the frame buffer */
        uint32_t count;       /* how many jobs */
        uint64_t spill_begin; /* committed results that did not fit: [begin, end) in the spill */
        uint64_t spill_end;
} LaneOutput;

/* What the next worker must know. Kept twice; see lane_edit() and lane_flip(). */
typedef struct LaneProgress {
        /* Changed by every job: one cache line, see lane_edit_hot(). The spill's bounds and n_failed are not. */
        uint32_t cursor;        /* index of the first job not answered */
        uint32_t cursor_offset; /* of its header, in the input frame */
        uint64_t last_id;       /* id of the job before it, or base_id - 1; a source: the last id given */
        uint64_t n_done;        /* jobs answered since the record was made; a source: made */
        uint16_t running;       /* 1: its handler may be at work */
        uint16_t attempts;      /* runs of the job at the cursor beyond those its header tells of */
        uint32_t interruptions; /* likewise */
        LaneOutput first;       /* outputs[0] */
        uint64_t n_failed;

        _Alignas(LANE_CACHE_LINE) uint32_t input; /* LaneInput */
        uint32_t n;                               /* number of the receive */
        uint32_t end;                             /* index after the last of our jobs */
        uint32_t finished; /* drain generation this lane has finished; a source: SOURCE_ENDED when it has */
        uint32_t intent;   /* LaneIntent */
        uint32_t destination; /* index of the output */
        uint32_t ticket;
        uint32_t share_end; /* SHARE: what end was before */
        uint64_t sequence;  /* of the intent */
        uint64_t next_sequence;
        uint64_t spill_id; /* id of the job whose results are in the spill */
        uint64_t n_retried;
        uint64_t n_dropped;
        uint64_t n_frames; /* received */
        uint64_t n_shared;
        uint32_t position_size;
        uint32_t intent_priority;
        uint8_t position[LANE_POSITION_BYTES];
        LaneOutput others[LANE_OUTPUTS_MAX - 1];
} LaneProgress;

_Static_assert(offsetof(LaneProgress, input) == LANE_CACHE_LINE,
               "what changes with every job is one cache line");

/* What a lane is asked to do, by its supervisor. */
enum {
        LANE_CONTROL_PARK = 1 << 0,   /* stop after the current job, leave the rest where it is */
        LANE_CONTROL_RETIRE = 1 << 1, /* receive no more, finish what is here, then stop for good */
        LANE_CONTROL_FINISH =
                1
                << 2, /* work until the queue is empty, then stop (client-writable queues; sources: stop making jobs) */
        LANE_CONTROL_REOPEN = 1 << 3, /* reopen files; cleared by the lane */
};

#define LANE_SOURCE_ENDED UINT32_MAX

typedef struct LaneDestination {
        char stage[BOARD_NAME_MAX];
        uint32_t message_bytes;
        uint32_t reserved;
} LaneDestination;

/* The record's first part. The frame buffers follow at the offsets named. */
typedef struct LaneRecord {
        uint64_t magic;
        uint32_t layout;
        uint32_t lane;
        uint64_t life;
        char stage[BOARD_NAME_MAX];
        uint32_t input_bytes; /* message size of the job queue; 0: a source */
        uint32_t n_outputs;
        LaneDestination destinations[LANE_OUTPUTS_MAX];
        uint64_t input_offset;
        uint64_t share_offset;
        uint64_t output_offsets[LANE_OUTPUTS_MAX];
        uint64_t memory_offset; /* a source's memory */
        uint64_t spill_offset;  /* LANE_SPILL_BYTES for each output */
        uint64_t n_populate;    /* what must be present: all before the spill */
        uint64_t n_bytes;

        _Alignas(LANE_CACHE_LINE) _Atomic uint32_t control;
        _Atomic uint32_t generation; /* of the drain that is going on; a sentinel of another stops nobody */
        _Atomic uint32_t
                interrupted; /* what was running was stopped with its supervisor: no failed attempt */

        _Alignas(LANE_CACHE_LINE) _Atomic uint32_t current; /* which progress counts */
        uint32_t priority;                                  /* written by the kernel before the message */
        LaneProgress progress[2];
} LaneRecord;

/* What a record must look like. */
typedef struct LaneGeometry {
        uint64_t life;
        uint32_t lane;
        const char *stage;
        uint32_t input_bytes; /* 0: a source */
        uint32_t n_outputs;
        LaneDestination destinations[LANE_OUTPUTS_MAX];
} LaneGeometry;

/* Size of such a record. */
size_t lane_record_bytes(const LaneGeometry *geometry);

/* Initialises a record in memory of zeroes. */
void lane_record_init(LaneRecord *record, const LaneGeometry *geometry);

/*
 * Hands on what a lane knows beyond the jobs it holds, when its record is made
 * anew in another shape: positions, a source's memory and ids, counters.
 * `from` holds no jobs.
 */
void lane_record_succeed(LaneRecord *record, const LaneRecord *from);

/* True if the memory holds a whole record of this layout version. */
bool lane_record_is_valid(const LaneRecord *record, size_t n_data);
bool lane_record_matches(const LaneRecord *record, const LaneGeometry *geometry);

static inline const LaneProgress *lane_record_progress(const LaneRecord *record) {
        return &record->progress[atomic_load_explicit(&record->current, memory_order_acquire) & 1];
}

/* Jobs a record holds: input not answered plus output not sent. For supervisors; nobody may be running the lane. */
uint64_t lane_record_held(const LaneRecord *record);

/* One output, as this process sees it. */
typedef struct LaneOut {
        uint8_t *buffer;   /* a frame: header, jobs, trailer */
        uint32_t capacity; /* bytes for jobs */
        Board *board;
        uint32_t row;     /* of the board's tickets */
        uint64_t last_id; /* of the last committed job in the buffer */
        uint8_t *spill;
} LaneOut;

/* A process' view of a record. */
typedef struct Lane {
        LaneRecord *record;
        LaneProgress *now;  /* what counts */
        LaneProgress *next; /* the other copy, for the step being prepared */
        bool same_cold;     /* both copies agree in all but the hot part */

        uint8_t *input;
        uint8_t *share;
        Board *board;       /* of the job queue; NULL: a source */
        FrameHeader header; /* of the input frame, while there are jobs in it */
        bool raw;           /* the input is one job without frame */

        LaneOut outs[LANE_OUTPUTS_MAX];
        uint32_t n_outs;
} Lane;

/* The boards of a lane's queues, with the group this stage has on those it sends to. */
typedef struct LaneBoards {
        Board *input;
        Board *outputs[LANE_OUTPUTS_MAX];
        uint32_t groups[LANE_OUTPUTS_MAX];
} LaneBoards;

/*
 * Takes up a record; the caller holds its lock, so nobody else is running
 * it. Settles what a dead worker left: an interrupted job is charged, a claim
 * completed. Everything else is found by lane_intent() and the input's state.
 */
void lane_attach(Lane *lane, LaneRecord *record, const LaneBoards *boards);

/* ---- steps: prepare with lane_edit(), then lane_flip() ---- */

static inline LaneOutput *lane_output(LaneProgress *p, uint32_t output) {
        return output == 0 ? &p->first : &p->others[output - 1];
}

/* A copy of the progress to change. */
static inline LaneProgress *lane_edit(Lane *lane) {
        *lane->next = *lane->now;
        lane->same_cold = false;
        return lane->next;
}

/*
 * The same for steps that change the hot part only. Copied word by word: a
 * wider load of what the flip before has just stored in words would have to
 * wait until it has left the store buffer, three times as long as the job.
 */
static inline LaneProgress *lane_edit_hot(Lane *lane) {
        const LaneProgress *now = lane->now;
        LaneProgress *next = lane->next;

        if (__builtin_expect(!lane->same_cold, false)) {
                *next = *now;
                lane->same_cold = true;
                return next;
        }
        next->cursor = now->cursor;
        next->cursor_offset = now->cursor_offset;
        next->last_id = now->last_id;
        next->n_done = now->n_done;
        next->running = now->running;
        next->attempts = now->attempts;
        next->interruptions = now->interruptions;
        next->first.length = now->first.length;
        next->first.count = now->first.count;
        return next;
}

/* The one store that makes a step true. */
static inline void lane_flip(Lane *lane) {
        LaneProgress *old = lane->now;

        lane->now = lane->next;
        lane->next = old;
        atomic_store_explicit(&lane->record->current, (uint32_t)(lane->now - lane->record->progress),
                              memory_order_release);
}

/* ---- receive and claim ---- */

/* Gets ready for mq_receive() into lane->input with &lane->record->priority. Repeating it before a message came
 * is free. */
void lane_receive_begin(Lane *lane);

typedef enum LaneMessage {
        LANE_MESSAGE_NONE,      /* nothing came */
        LANE_MESSAGE_JOBS,      /* ours now: HAVE */
        LANE_MESSAGE_SENTINEL,  /* of the drain that is going on */
        LANE_MESSAGE_STALE,     /* a sentinel of another drain: dropped */
        LANE_MESSAGE_DUPLICATE, /* a copy of a frame that has been taken: dropped */
        LANE_MESSAGE_GARBAGE,   /* not ours and not a job: dropped, counted */
} LaneMessage;

/* Looks at what is in the buffer, claims it if it is ours to take. The same after a receive and after a crash. */
LaneMessage lane_receive_end(Lane *lane);

/* ---- jobs ---- */

static inline bool lane_has_job(const Lane *lane) {
        return lane->now->input == LANE_HAVE && lane->now->cursor < lane->now->end;
}

/* Reads the job at the cursor, with the attempts this lane added. */
static inline void lane_job(const Lane *lane, FrameJob *ret) {
        const LaneProgress *p = lane->now;

        if (__builtin_expect(lane->raw, false)) {
                *ret = (FrameJob){
                        .data = lane->input,
                        .size = lane->header.length,
                        .id = lane->header.base_id,
                        .credit = JOB_CREDIT_WHOLE,
                        .next = lane->header.length,
                };
        } else
                frame_job_read(lane->input, p->cursor_offset, p->last_id, p->cursor == 0, ret);
        ret->attempts += p->attempts;
        ret->interruptions += p->interruptions;
}

/* Moves `p`, a copy being prepared, past a job. */
static inline void lane_step_past(LaneProgress *p, const FrameJob *job) {
        p->cursor++;
        p->cursor_offset = job->next;
        p->last_id = job->id;
        p->attempts = 0;
        p->interruptions = 0;
        p->running = 0;
}

/* ---- send ---- */

typedef enum LaneSend {
        LANE_SEND_NOTHING, /* no intent is open */
        LANE_SEND_MESSAGE, /* mq_send() lane_send_frame(), then lane_send_end() */
        LANE_SEND_TRY,     /* the same without blocking; then lane_send_end() or lane_share_refused() */
} LaneSend;

typedef struct LaneFrame {
        const uint8_t *data;
        size_t n_data;
        uint32_t destination; /* index of the output; the own queue for LANE_SEND_TRY */
        unsigned priority;
} LaneFrame;

/* True if this output has something to send, in its frame or in the spill. */
bool lane_output_pending(const Lane *lane, uint32_t output);

/* Opens the intent to send an output's frame, refilled from the spill if it is empty.
 * Returns 0, or -EBUSY if no ticket is free: somebody took frames off the queue without claiming them. */
int lane_send_begin(Lane *lane, uint32_t output);

/* What the open intent asks for, now or after a crash, by its ticket. Opens the ticket where that was not done;
 * settles the intent where the frame has arrived. */
LaneSend lane_intent(Lane *lane, LaneFrame *ret);

/* The frame of the intent is in the queue. */
void lane_send_end(Lane *lane);

/*
 * Opens the intent to give jobs [middle, end) back to the own queue, where cursor < middle < end. Returns 0, -EBUSY
 * without a free ticket.
 */
int lane_share_begin(Lane *lane, uint32_t middle);

/* The queue had no room: takes the jobs back, unless a copy was taken meanwhile. */
void lane_share_refused(Lane *lane);

/* ---- the end ---- */

/* The lane has finished in this generation (or for good): its input is used up and everything sent. */
void lane_finish(Lane *lane, uint32_t generation);
