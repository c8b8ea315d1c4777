#include "lane/lane.h"

#include <assert.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

static const struct {
        const char *name, *stored, *resume;
} lane_steps[_LANE_STEP_MAX] = {
#define X(id, name, stored, resume) [LANE_##id] = { name, stored, resume },
        LANE_STEPS(X)
#undef X
};

const char *lane_step_name(LaneStep step) {
        return lane_steps[step].name;
}

const char *lane_step_stored(LaneStep step) {
        return lane_steps[step].stored;
}

const char *lane_step_resume(LaneStep step) {
        return lane_steps[step].resume;
}

#ifdef SLUICE_CRASH_POINTS
/* With SLUICE_CRASH_ONCE=FILE one process dies, the one that makes the file. */
static bool lane_may_crash(void) {
        const char *file = getenv("SLUICE_CRASH_ONCE");

        return !file || open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) >= 0;
}

void lane_point(LaneStep step) {
        static const char *wanted = (const char *)-1;
        static unsigned long countdown = 1;

        if (wanted == (const char *)-1) {
                const char *colon;

                wanted = getenv("SLUICE_CRASH");
                colon = wanted ? strchr(wanted, ':') : NULL;
                if (colon)
                        countdown = strtoul(colon + 1, NULL, 10);
        }
        if (!wanted)
                return;

        size_t n = strcspn(wanted, ":");
        const char *name = lane_step_name(step);

        if (strlen(name) == n && strncmp(name, wanted, n) == 0 && --countdown == 0 && lane_may_crash())
                (void)kill(getpid(), SIGKILL);
}
#endif

/* ---- the record ---- */

static uint64_t align_up(uint64_t n, uint64_t to) {
        return (n + to - 1) / to * to;
}

/*
 * Processors tell a load from the stores before it by the low 12 bits of the
 * address at first. Input and output are walked side by side, so they are laid
 * half a page apart, or every load of a job would wait for a store that has
 * nothing to do with it.
 */
static uint64_t avoid_aliasing(uint64_t at, uint64_t other) {
        return at + (other + 2048 - at) % 4096;
}

/* Buffers follow the record's head; each begins on a cache line of its own. */
static void lane_record_layout(const LaneGeometry *g, LaneRecord *ret) {
        uint64_t at = align_up(sizeof(LaneRecord), LANE_CACHE_LINE);

        ret->input_offset = at;
        if (g->input_bytes > 0) {
                /* One byte more: a raw message without a NUL ends there. */
                at = align_up(at + g->input_bytes + 1, LANE_CACHE_LINE);
                ret->share_offset = at;
                at = align_up(at + g->input_bytes, LANE_CACHE_LINE);
        }
        for (uint32_t i = 0; i < g->n_outputs; i++) {
                at = avoid_aliasing(at, ret->input_offset);
                ret->output_offsets[i] = at;
                at = align_up(at + g->destinations[i].message_bytes, LANE_CACHE_LINE);
        }
        at = align_up(at, 4096);
        ret->n_populate = at;
        ret->memory_offset = at;
        if (g->input_bytes == 0)
                at += LANE_MEMORY_BYTES;
        ret->spill_offset = at;
        ret->n_bytes = at + g->n_outputs * LANE_SPILL_BYTES;
}

size_t lane_record_bytes(const LaneGeometry *geometry) {
        LaneRecord r;

        lane_record_layout(geometry, &r);
        return r.n_bytes;
}

void lane_record_init(LaneRecord *record, const LaneGeometry *geometry) {
        assert(geometry->n_outputs <= LANE_OUTPUTS_MAX);

        lane_record_layout(geometry, record);
        record->layout = LANE_LAYOUT;
        record->lane = geometry->lane;
        record->life = geometry->life;
        (void)snprintf(record->stage, sizeof(record->stage), "%s", geometry->stage);
        record->input_bytes = geometry->input_bytes;
        record->n_outputs = geometry->n_outputs;
        memcpy(record->destinations, geometry->destinations, sizeof(record->destinations));
        record->progress[0].next_sequence = 1;
        atomic_thread_fence(memory_order_release);
        record->magic = LANE_MAGIC;
}

void lane_record_succeed(LaneRecord *record, const LaneRecord *from) {
        const LaneProgress *old = lane_record_progress(from);
        LaneProgress *p = &record->progress[0];

        p->next_sequence = old->next_sequence;
        p->n_done = old->n_done;
        p->n_failed = old->n_failed;
        p->n_retried = old->n_retried;
        p->n_dropped = old->n_dropped;
        p->n_frames = old->n_frames;
        p->n_shared = old->n_shared;
        p->position_size = old->position_size;
        memcpy(p->position, old->position, sizeof(p->position));
        if (record->input_bytes > 0 || from->input_bytes > 0)
                return;
        p->last_id = old->last_id;
        p->finished = old->finished;
        memcpy((uint8_t *)record + record->memory_offset, (const uint8_t *)from + from->memory_offset,
               LANE_MEMORY_BYTES);
}

bool lane_record_is_valid(const LaneRecord *record, size_t n_data) {
        return n_data >= sizeof(*record) && record->magic == LANE_MAGIC && record->layout == LANE_LAYOUT &&
               record->n_outputs <= LANE_OUTPUTS_MAX && n_data >= record->n_bytes;
}

bool lane_record_matches(const LaneRecord *record, const LaneGeometry *g) {
        if (record->life != g->life || record->lane != g->lane || strcmp(record->stage, g->stage) != 0 ||
            record->input_bytes != g->input_bytes || record->n_outputs != g->n_outputs)
                return false;
        for (uint32_t i = 0; i < g->n_outputs; i++)
                if (strcmp(record->destinations[i].stage, g->destinations[i].stage) != 0 ||
                    record->destinations[i].message_bytes != g->destinations[i].message_bytes)
                        return false;
        return true;
}

uint64_t lane_record_held(const LaneRecord *record) {
        LaneProgress p = *lane_record_progress(record);
        uint64_t held = 0;

        if (p.input == LANE_HAVE)
                held += p.end - p.cursor;
        else if (p.input == LANE_RECEIVING && record->priority != UINT32_MAX)
                held++; /* a message nobody has looked at: at least one job */
        for (uint32_t i = 0; i < record->n_outputs; i++) {
                LaneOutput *o = lane_output(&p, i);

                held += o->count + (o->spill_end > o->spill_begin);
        }
        if (p.intent == LANE_INTENT_SHARE)
                held += p.share_end - p.end;
        return held;
}

/* ---- receive and claim ---- */

/* What came into the buffer. */
typedef enum Arrival {
        ARRIVAL_NONE,   /* the priority word is untouched */
        ARRIVAL_PLAIN,  /* a job or sentinel without a ticket */
        ARRIVAL_TICKET, /* a frame with one */
        ARRIVAL_BAD,
        _ARRIVAL_MAX,
} Arrival;

/* What its ticket says, seen from this very receive. */
typedef enum Relation {
        RELATION_OTHER,   /* another sequence, or claimed by another receive */
        RELATION_OPEN,    /* OPEN(seq) */
        RELATION_MINE,    /* CLAIMED(seq) by this receive */
        RELATION_GONE,    /* CLAIMED(seq) by another, or FREE(seq) */
        RELATION_REVOKED, /* REVOKED(seq) */
        _RELATION_MAX,
} Relation;

typedef enum ReceiveAction {
        RECEIVE_WAIT,  /* nothing came */
        RECEIVE_HAVE,  /* flip to HAVE */
        RECEIVE_CLAIM, /* compare-and-swap the ticket, look again */
        RECEIVE_DROP,  /* a duplicate */
        RECEIVE_REFUSE,
} ReceiveAction;

/*
 * Everything but OPEN and "mine" is a duplicate: the frame was taken before,
 * here or elsewhere, or its producer has taken it back. Without a ticket there
 * is only one copy, since only its one sender could have made another.
 */
static const ReceiveAction lane_receive_table[_ARRIVAL_MAX][_RELATION_MAX] = {
        [ARRIVAL_NONE] = { RECEIVE_WAIT, RECEIVE_WAIT, RECEIVE_WAIT, RECEIVE_WAIT, RECEIVE_WAIT },
        [ARRIVAL_PLAIN] = { RECEIVE_HAVE, RECEIVE_HAVE, RECEIVE_HAVE, RECEIVE_HAVE, RECEIVE_HAVE },
        [ARRIVAL_TICKET] = {
                [RELATION_OTHER] = RECEIVE_DROP,
                [RELATION_OPEN] = RECEIVE_CLAIM,
                [RELATION_MINE] = RECEIVE_HAVE,
                [RELATION_GONE] = RECEIVE_DROP,
                [RELATION_REVOKED] = RECEIVE_DROP,
        },
        [ARRIVAL_BAD] = { RECEIVE_REFUSE, RECEIVE_REFUSE, RECEIVE_REFUSE, RECEIVE_REFUSE, RECEIVE_REFUSE },
};

static Ticket *lane_input_ticket(const Lane *lane, const FrameHeader *header) {
        return board_ticket(lane->board, header->producer, header->ticket);
}

static Relation lane_input_relation(const Lane *lane, const FrameHeader *header, uint64_t word) {
        if (!ticket_has_sequence(word, header->sequence))
                return RELATION_OTHER;

        switch (ticket_state(word)) {
        case TICKET_OPEN:
                return RELATION_OPEN;
        case TICKET_REVOKED:
                return RELATION_REVOKED;
        case TICKET_CLAIMED:
                if (word == ticket_word(TICKET_CLAIMED, header->sequence, lane->record->lane, lane->now->n))
                        return RELATION_MINE;
                return RELATION_GONE;
        case TICKET_FREE:
        default:
                return RELATION_GONE;
        }
}

/* A message that does not begin with the magic, on a queue clients may write to: one job, up to its first NUL (its
 * length is lost when a receiver dies, and both paths must agree). */
static Arrival lane_look_raw(Lane *lane, FrameHeader *ret) {
        if (!lane->board->client_writable)
                return ARRIVAL_BAD;

        /* Ids of raw jobs: this lane's, apart from those clients choose. */
        *ret = (FrameHeader){
                .kind = FRAME_JOBS,
                .length = (uint32_t)strnlen((const char *)lane->input, lane->record->input_bytes),
                .count = 1,
                .base_id = UINT64_C(1) << 63 | (uint64_t)lane->record->lane << 40 | lane->now->n,
                .ticket = FRAME_NO_TICKET,
        };
        return ARRIVAL_PLAIN;
}

/* Jobs from a client need no key, but nothing else they may contain is believed. */
static Arrival lane_look_foreign(const Lane *lane, FrameHeader *header) {
        if (header->kind != FRAME_JOBS || frame_check_jobs(lane->input, header) != 0)
                return ARRIVAL_BAD;

        for (uint32_t i = 0, offset = FRAME_HEADER_BYTES; i < header->count; i++) {
                FrameJob job;

                frame_job_read(lane->input, offset, 0, i == 0, &job);
                if (job.flags & (JOB_MARKER | JOB_REFERENCE) || job.credit > JOB_CREDIT_WHOLE)
                        return ARRIVAL_BAD;
                offset = job.next;
        }
        header->ticket = FRAME_NO_TICKET;
        return ARRIVAL_PLAIN;
}

/* Judges the buffer; `ret` is written for ARRIVAL_PLAIN and ARRIVAL_TICKET. */
static Arrival lane_look(Lane *lane, FrameHeader *ret, bool *ret_raw) {
        int r;

        if (lane->record->priority == UINT32_MAX)
                return ARRIVAL_NONE;

        *ret_raw = false;
        r = frame_decode(lane->input, lane->record->input_bytes, ret);
        if (r == FRAME_E_RAW) {
                *ret_raw = true;
                return lane_look_raw(lane, ret);
        }
        if (r != 0)
                return ARRIVAL_BAD;
        if (ret->key != lane->board->key)
                return lane->board->client_writable ? lane_look_foreign(lane, ret) : ARRIVAL_BAD;
        if (ret->ticket == FRAME_NO_TICKET)
                return ARRIVAL_PLAIN;
        return lane_input_ticket(lane, ret) ? ARRIVAL_TICKET : ARRIVAL_BAD;
}

/*
 * For whole frames a cleared header is enough. A client's message may be of any length and say nothing true about it
 * (bytes behind a NUL, or behind a frame's trailer), and what is left of it would continue a shorter one: all of it.
 */
static void lane_clear_buffer(Lane *lane) {
        uint32_t n = lane->record->input_bytes;

        memset(lane->input, 0, lane->board->client_writable ? n : MIN(n, (uint32_t)FRAME_HEADER_BYTES));
}

void lane_receive_begin(Lane *lane) {
        LaneProgress *p;

        if (lane->now->input == LANE_RECEIVING && lane->record->priority == UINT32_MAX)
                return; /* armed, and nothing has come */

        /* The priority word first: while it is set, an emptied buffer would read as an empty raw message. */
        lane->record->priority = UINT32_MAX;
        atomic_signal_fence(memory_order_seq_cst);
        lane_clear_buffer(lane);
        atomic_signal_fence(memory_order_seq_cst);
        lane_point(LANE_RECEIVE_ARM);

        p = lane_edit(lane);
        p->input = LANE_RECEIVING;
        p->n++;
        p->cursor = p->end = 0;
        p->running = 0;
        p->attempts = 0;
        p->interruptions = 0;
        lane_flip(lane);
        lane_point(LANE_RECEIVE_FLIP);
}

static void lane_have(Lane *lane, const FrameHeader *header, bool raw) {
        LaneProgress *p = lane_edit(lane);

        lane->header = *header;
        lane->raw = raw;
        p->input = header->kind == FRAME_SENTINEL ? LANE_SENTINEL : LANE_HAVE;
        p->cursor = 0;
        p->cursor_offset = FRAME_HEADER_BYTES;
        p->end = header->count;
        p->last_id = header->base_id - 1;
        p->attempts = 0;
        p->interruptions = 0;
        p->running = 0;
        p->n_frames++;
        lane_flip(lane);
        lane_point(LANE_CLAIM_FLIP);
}

/* In HAVE the frame is ours for good, so its ticket may be used again. */
static void lane_free_claim(Lane *lane) {
        Ticket *ticket;
        uint64_t mine;

        if (lane->raw || lane->header.ticket == FRAME_NO_TICKET)
                return;

        ticket = lane_input_ticket(lane, &lane->header);
        mine = ticket_word(TICKET_CLAIMED, lane->header.sequence, lane->record->lane, lane->now->n);
        if (atomic_load_explicit(ticket, memory_order_acquire) == mine)
                atomic_store_explicit(ticket, ticket_word(TICKET_FREE, lane->header.sequence, 0, 0),
                                      memory_order_release);
        lane_point(LANE_CLAIM_FREE);
}

/* A message that is not taken leaves nothing behind: the buffer is armed again under a new number. */
static LaneMessage lane_discard(Lane *lane, LaneMessage what) {
        lane_receive_begin(lane);
        return what;
}

LaneMessage lane_receive_end(Lane *lane) {
        FrameHeader header;
        bool raw = false;
        Arrival arrival = lane_look(lane, &header, &raw);

        if (arrival != ARRIVAL_NONE)
                lane_point(LANE_RECEIVE_CALL);

        for (;;) {
                Relation relation = RELATION_OTHER;
                uint64_t word = 0;

                if (arrival == ARRIVAL_TICKET) {
                        word = atomic_load_explicit(lane_input_ticket(lane, &header), memory_order_acquire);
                        relation = lane_input_relation(lane, &header, word);
                }

                switch (lane_receive_table[arrival][relation]) {
                case RECEIVE_WAIT:
                        return LANE_MESSAGE_NONE;
                case RECEIVE_CLAIM:
                        /* Whatever the outcome, the next look sees it. */
                        (void)atomic_compare_exchange_strong(lane_input_ticket(lane, &header), &word,
                                                             ticket_word(TICKET_CLAIMED, header.sequence,
                                                                         lane->record->lane, lane->now->n));
                        lane_point(LANE_CLAIM_TICKET);
                        continue;
                case RECEIVE_DROP:
                        atomic_fetch_add_explicit(&lane->board->n_duplicates, 1, memory_order_relaxed);
                        return lane_discard(lane, LANE_MESSAGE_DUPLICATE);
                case RECEIVE_REFUSE:
                        atomic_fetch_add_explicit(&lane->board->n_garbage, 1, memory_order_relaxed);
                        return lane_discard(lane, LANE_MESSAGE_GARBAGE);
                case RECEIVE_HAVE:
                        break;
                }

                if (header.kind == FRAME_SENTINEL &&
                    header.generation !=
                            atomic_load_explicit(&lane->record->generation, memory_order_acquire))
                        return lane_discard(lane, LANE_MESSAGE_STALE);

                lane_have(lane, &header, raw);
                lane_free_claim(lane);
                return header.kind == FRAME_SENTINEL ? LANE_MESSAGE_SENTINEL : LANE_MESSAGE_JOBS;
        }
}

/* ---- send ---- */

/*
 * Above all that this lane has used and all that the ticket has carried: a ticket outlives the records of its lane (one
 * that was retired and is wanted again starts with a new one), and a sequence it had before would read as arrived.
 */
static uint64_t lane_sequence_for(const Lane *lane, Board *board, uint32_t row, uint32_t ticket) {
        uint64_t word = atomic_load_explicit(board_ticket(board, row, ticket), memory_order_acquire);

        return MAX(lane->now->next_sequence, ticket_sequence(word) + 1);
}

static uint32_t lane_last_output_id(const Lane *lane, uint32_t output, uint64_t *ret_id) {
        const LaneOut *out = &lane->outs[output];
        const LaneOutput *o = lane_output(lane->now, output);
        uint32_t offset = FRAME_HEADER_BYTES;
        FrameHeader header;
        uint64_t id;

        memcpy(&header, out->buffer, sizeof(header));
        id = header.base_id - 1;
        for (uint32_t i = 0; i < o->count; i++) {
                FrameJob job;

                frame_job_read(out->buffer, offset, id, i == 0, &job);
                id = job.id;
                offset = job.next;
        }
        *ret_id = id;
        return offset;
}

bool lane_output_pending(const Lane *lane, uint32_t output) {
        const LaneOutput *o = lane_output(lane->now, output);

        return o->count > 0 || o->spill_end > o->spill_begin;
}

/* Moves as many whole results as fit from the spill into the empty frame buffer. */
static void lane_refill(Lane *lane, uint32_t output) {
        LaneOut *out = &lane->outs[output];
        const LaneOutput *o = lane_output(lane->now, output);
        const uint8_t *from = out->spill + o->spill_begin;
        FrameHeader header;
        uint32_t length = 0, count = 0;
        LaneProgress *p;

        while (o->spill_begin + length < o->spill_end) {
                FrameJob job;

                frame_job_read(from, length, 0, false, &job);
                if (job.next > out->capacity)
                        break;
                length = job.next;
                count++;
        }
        assert(count > 0);
        memcpy(out->buffer + FRAME_HEADER_BYTES, from, length);
        memcpy(&header, out->buffer, sizeof(header));
        header.base_id = lane->now->spill_id; /* they are all results of one job */
        header.time_usec = clock_realtime_usec();
        memcpy(out->buffer, &header, sizeof(header));

        p = lane_edit(lane);
        *lane_output(p, output) = (LaneOutput){
                .length = length,
                .count = count,
                .spill_begin = o->spill_begin + length,
                .spill_end = o->spill_end,
        };
        if (lane_output(p, output)->spill_begin == o->spill_end)
                lane_output(p, output)->spill_begin = lane_output(p, output)->spill_end = 0;
        lane_flip(lane);
        out->last_id = p->spill_id;
        lane_point(LANE_REFILL_FLIP);
}

int lane_send_begin(Lane *lane, uint32_t output) {
        LaneOut *out = &lane->outs[output];
        const LaneOutput *o;
        FrameHeader header;
        uint32_t ticket;
        LaneProgress *p;

        assert(lane->now->intent == LANE_INTENT_NONE);
        if (lane_output(lane->now, output)->count == 0)
                lane_refill(lane, output);
        o = lane_output(lane->now, output);

        ticket = board_pick_ticket(out->board, out->row);
        if (ticket == FRAME_NO_TICKET)
                return -EBUSY;

        /* base_id, time and priority were written with the first job. */
        memcpy(&header, out->buffer, sizeof(header));
        header.kind = FRAME_JOBS;
        header.count = o->count;
        header.sequence = lane_sequence_for(lane, out->board, out->row, ticket);
        header.producer = out->row;
        header.ticket = ticket;
        header.key = out->board->key;
        header.generation = 0;
        (void)frame_seal(out->buffer, &header, o->length);

        p = lane_edit(lane);
        p->intent = LANE_INTENT_SEND;
        p->destination = output;
        p->ticket = ticket;
        p->sequence = header.sequence;
        p->next_sequence = header.sequence + 1;
        p->intent_priority = header.priority;
        lane_flip(lane);
        lane_point(LANE_SEND_FLIP);
        return 0;
}

int lane_share_begin(Lane *lane, uint32_t middle) {
        const LaneProgress *now = lane->now;
        uint32_t row = lane->record->lane, ticket, offset, end_offset; /* group 0 is the queue's own stage */
        uint64_t id = now->last_id;
        FrameHeader header = lane->header;
        FrameJob job;
        LaneProgress *p;

        assert(now->intent == LANE_INTENT_NONE && !lane->raw && now->cursor < middle && middle < now->end);

        ticket = board_pick_ticket(lane->board, row);
        if (ticket == FRAME_NO_TICKET)
                return -EBUSY;

        offset = now->cursor_offset;
        for (uint32_t i = now->cursor; i < middle; i++) {
                frame_job_read(lane->input, offset, id, i == 0, &job);
                id = job.id;
                offset = job.next;
        }
        /* The first job of a frame has its base_id, whatever it followed before. */
        frame_job_read(lane->input, offset, id, false, &job);
        header.base_id = job.id;
        end_offset = offset;
        for (uint32_t i = middle; i < now->end; i++) {
                frame_job_read(lane->input, end_offset, 0, false, &job);
                end_offset = job.next;
        }

        header.kind = FRAME_JOBS;
        header.count = now->end - middle;
        header.sequence = lane_sequence_for(lane, lane->board, row, ticket);
        header.producer = row;
        header.ticket = ticket;
        header.key = lane->board->key;
        header.priority = (uint16_t)(lane->record->priority ?: 1);
        memcpy(lane->share + FRAME_HEADER_BYTES, lane->input + offset, end_offset - offset);
        (void)frame_seal(lane->share, &header, end_offset - offset);

        p = lane_edit(lane);
        p->intent = LANE_INTENT_SHARE;
        p->ticket = ticket;
        p->sequence = header.sequence;
        p->next_sequence = header.sequence + 1;
        p->intent_priority = header.priority;
        p->share_end = p->end;
        p->end = middle;
        lane_flip(lane);
        lane_point(LANE_SHARE_FLIP);
        return 0;
}

typedef enum SendAction {
        SEND_OPEN,    /* store OPEN(seq), then send */
        SEND_AGAIN,   /* send, without storing */
        SEND_ARRIVED, /* flip to sent */
        SEND_BACK,    /* flip back */
} SendAction;

/*
 * A lane's own view of its ticket. OPEN must not be stored twice: between the
 * two stores a receiver may have claimed and freed the first copy, and a second
 * OPEN would let in the other one.
 */
static const SendAction lane_send_table[_RELATION_MAX] = {
        [RELATION_OTHER] = SEND_OPEN,   [RELATION_OPEN] = SEND_AGAIN,   [RELATION_MINE] = SEND_ARRIVED,
        [RELATION_GONE] = SEND_ARRIVED, [RELATION_REVOKED] = SEND_BACK,
};

static Relation lane_intent_relation(uint64_t word, uint64_t sequence) {
        if (!ticket_has_sequence(word, sequence))
                return RELATION_OTHER;

        switch (ticket_state(word)) {
        case TICKET_OPEN:
                return RELATION_OPEN;
        case TICKET_REVOKED:
                return RELATION_REVOKED;
        default:
                return RELATION_GONE;
        }
}

static Ticket *lane_intent_ticket(Lane *lane) {
        const LaneProgress *p = lane->now;

        if (p->intent == LANE_INTENT_SHARE)
                return board_ticket(lane->board, lane->record->lane, p->ticket);
        return board_ticket(lane->outs[p->destination].board, lane->outs[p->destination].row, p->ticket);
}

/* The jobs that were given away are ours again, or for good another's. */
static void lane_share_settle(Lane *lane, bool back) {
        LaneProgress *p = lane_edit(lane);

        if (back)
                p->end = p->share_end;
        else
                p->n_shared += p->share_end - p->end;
        p->intent = LANE_INTENT_NONE;
        lane_flip(lane);
        lane_point(back ? LANE_SHARE_BACK : LANE_SHARE_SENT);
}

void lane_send_end(Lane *lane) {
        LaneProgress *p;
        LaneOutput *o;

        assert(lane->now->intent != LANE_INTENT_NONE);
        if (lane->now->intent == LANE_INTENT_SHARE) {
                lane_share_settle(lane, false);
                return;
        }

        p = lane_edit(lane);
        o = lane_output(p, p->destination);
        o->length = 0;
        o->count = 0;
        p->intent = LANE_INTENT_NONE;
        lane_flip(lane);
        lane_point(LANE_SEND_SENT);
}

void lane_share_refused(Lane *lane) {
        const LaneProgress *p = lane->now;
        uint64_t word = ticket_word(TICKET_OPEN, p->sequence, 0, 0);
        bool back;

        assert(p->intent == LANE_INTENT_SHARE);

        /* Revoked first: an earlier copy, sent before a crash, may be in the queue. */
        back = atomic_compare_exchange_strong(lane_intent_ticket(lane), &word,
                                              ticket_word(TICKET_REVOKED, p->sequence, 0, 0));
        lane_point(LANE_SHARE_REVOKE);
        lane_share_settle(lane, back);
}

LaneSend lane_intent(Lane *lane, LaneFrame *ret) {
        const LaneProgress *p = lane->now;
        bool share = p->intent == LANE_INTENT_SHARE;
        const uint8_t *frame;
        FrameHeader header;
        Ticket *ticket;

        if (p->intent == LANE_INTENT_NONE)
                return LANE_SEND_NOTHING;

        ticket = lane_intent_ticket(lane);
        switch (lane_send_table[lane_intent_relation(atomic_load_explicit(ticket, memory_order_acquire),
                                                     p->sequence)]) {
        case SEND_OPEN:
                atomic_store_explicit(ticket, ticket_word(TICKET_OPEN, p->sequence, 0, 0),
                                      memory_order_release);
                lane_point(share ? LANE_SHARE_OPEN : LANE_SEND_OPEN);
                break;
        case SEND_AGAIN:
                break;
        case SEND_ARRIVED:
                lane_send_end(lane);
                return LANE_SEND_NOTHING;
        case SEND_BACK:
                assert(share); /* only a share is ever revoked */
                lane_share_settle(lane, true);
                return LANE_SEND_NOTHING;
        }

        frame = share ? lane->share : lane->outs[p->destination].buffer;
        memcpy(&header, frame, sizeof(header));
        *ret = (LaneFrame){
                .data = frame,
                .n_data = header.length,
                .destination = p->destination,
                .priority = p->intent_priority,
        };
        return share ? LANE_SEND_TRY : LANE_SEND_MESSAGE;
}

/* ---- the end, and the beginning ---- */

void lane_finish(Lane *lane, uint32_t generation) {
        LaneProgress *p = lane_edit(lane);

        p->finished = generation;
        if (p->input == LANE_SENTINEL)
                p->input = LANE_EMPTY;
        lane_flip(lane);
        lane_point(LANE_FINISH_FLIP);
}

/* One flip: the charge, and running cleared, so that dying again before the job starts again charges nothing. The
 * supervisor's death is forgotten only after it: dying in between would turn it into a failed attempt. */
static void lane_charge_interrupted(Lane *lane) {
        if (lane->now->running) {
                LaneProgress *p = lane_edit(lane);

                p->running = 0;
                if (atomic_load_explicit(&lane->record->interrupted, memory_order_acquire) != 0)
                        p->interruptions++;
                else
                        p->attempts++;
                lane_flip(lane);
        }
        atomic_store_explicit(&lane->record->interrupted, 0, memory_order_release);
}

/* A worker died holding a sentinel. It counts if its drain is still the one that goes on; or else it stops nobody. */
static void lane_resume_sentinel(Lane *lane) {
        Arrival arrival = lane_look(lane, &lane->header, &lane->raw);
        LaneProgress *p;

        assert(arrival == ARRIVAL_PLAIN || arrival == ARRIVAL_TICKET);
        if (lane->header.generation == atomic_load_explicit(&lane->record->generation, memory_order_acquire))
                return;

        p = lane_edit(lane);
        p->input = LANE_EMPTY;
        lane_flip(lane);
}

void lane_attach(Lane *lane, LaneRecord *record, const LaneBoards *boards) {
        uint32_t current = atomic_load_explicit(&record->current, memory_order_acquire) & 1;

        *lane = (Lane){
                .record = record,
                .now = &record->progress[current],
                .next = &record->progress[!current],
                .board = boards->input,
                .n_outs = record->n_outputs,
        };
        if (record->input_bytes > 0) {
                lane->input = (uint8_t *)record + record->input_offset;
                lane->share = (uint8_t *)record + record->share_offset;
        }
        for (uint32_t i = 0; i < lane->n_outs; i++) {
                lane->outs[i] = (LaneOut){
                        .buffer = (uint8_t *)record + record->output_offsets[i],
                        .capacity = record->destinations[i].message_bytes - FRAME_OVERHEAD_BYTES,
                        .board = boards->outputs[i],
                        .row = boards->groups[i] * BOARD_LANES_MAX + record->lane,
                        .spill = (uint8_t *)record + record->spill_offset + i * LANE_SPILL_BYTES,
                };
                (void)lane_last_output_id(lane, i, &lane->outs[i].last_id);
        }

        lane_charge_interrupted(lane);
        if (lane->board)
                board_set_idle(lane->board, record->lane, false);

        switch (lane->now->input) {
        case LANE_RECEIVING:
                /* Died while arming: what the buffer holds is older than this receive. */
                if (record->priority == UINT32_MAX)
                        lane_clear_buffer(lane);
                break;
        case LANE_HAVE:
                if (lane_has_job(lane)) {
                        Arrival arrival = lane_look(lane, &lane->header, &lane->raw);

                        assert(arrival == ARRIVAL_PLAIN || arrival == ARRIVAL_TICKET);
                        lane_free_claim(lane);
                }
                break;
        case LANE_SENTINEL:
                lane_resume_sentinel(lane);
                break;
        default:
                break;
        }
}
