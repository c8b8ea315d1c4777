/*
 * Lanes: nothing is lost and nothing counts twice, whoever dies where.
 *
 * A small world in memory: two sources, a stage of two lanes, two readers of
 * its results, the queues between them. Turns are taken one at a time, so a
 * run is repeatable; a "process" is a Lane, and it dies by a long jump out of
 * lane_point(), or, in the last test, at any instruction. The queues are
 * arrays here: what the kernel does is one step for whoever watches.
 *
 * SLUICE_TEST_SEED repeats a randomised run.
 */

/* lane.c is compiled into this file, with a lane_point() of our own. */
#ifndef SLUICE_CRASH_POINTS
#define SLUICE_CRASH_POINTS 1
#endif
#include "lane/lane.h"
#undef SLUICE_CRASH_POINTS
#include "lane/lane.c" /* NOLINT */

#include <check.h>
#include <inttypes.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#define MESSAGE_BYTES 256
#define QUEUE_DEPTH 2
#define N_TICKETS 6 /* depth, the lanes that receive, one more; and one to spare */
#define LIFE UINT64_C(0x1111)
#define KEY UINT64_C(0x2222)

#define N_SOURCES 2
#define N_MIDDLE 2
#define N_READERS 2
#define N_LANES (N_SOURCES + N_MIDDLE + N_READERS)
#define JOBS_MAX 64 /* of one source */
#define RESULTS_MAX 12

/* As much of records and boards as is touched here: little of a spill, the first rows of two groups. */
#define RECORD_BYTES 16384
#define N_ROWS (BOARD_LANES_MAX + 4)
#define BOARD_BYTES (BOARD_HEADER_BYTES + N_ROWS * N_TICKETS * sizeof(Ticket))

typedef struct Message {
        uint32_t length;
        uint32_t priority;
        uint8_t data[MESSAGE_BYTES];
} Message;

typedef struct Kernel {
        uint32_t n;
        Message messages[QUEUE_DEPTH];
} Kernel;

/* Everything that outlives a process. No pointers: it is copied while somebody runs in it. */
typedef struct World {
        _Atomic uint32_t atomically; /* inside what counts as one step */
        uint32_t n_jobs;             /* of each source */
        Kernel queues[2];
        uint8_t accepted[N_SOURCES][JOBS_MAX][RESULTS_MAX];
        _Alignas(4096) uint8_t boards[2][BOARD_BYTES];
        _Alignas(4096) uint8_t records[N_LANES][RECORD_BYTES];
} World;

static World *world;
static Lane lanes[N_LANES];
static uint64_t random_state;

static uint64_t random_next(void) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        return random_state;
}

static bool one_in(uint32_t n) {
        return random_next() % n == 0;
}

static uint64_t seed_for_today(void) {
        const char *given = getenv("SLUICE_TEST_SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * UINT64_C(2654435761) + 1;

        printf("SLUICE_TEST_SEED=%" PRIu64 "\n", seed);
        return seed;
}

/* ---- dying ---- */

static jmp_buf death;
static uint64_t points_passed, die_at[2];
static uint32_t die_one_in; /* 0: only where told */
static uint64_t step_hits[_LANE_STEP_MAX];
static LaneStep died_at;
static bool may_die;

void lane_point(LaneStep step) {
        step_hits[step]++;
        if (!may_die)
                return;
        points_passed++;
        if (points_passed == die_at[0] || points_passed == die_at[1] ||
            (die_one_in > 0 && one_in(die_one_in))) {
                died_at = step;
                longjmp(death, 1);
        }
}

/* The library's assertions write to a pipe even when all is well: too slow where worlds are run by the thousand. */
#define MUST_SAY(condition, ...)                                                                             \
        do {                                                                                                 \
                if (!(condition))                                                                            \
                        ck_abort_msg(__VA_ARGS__);                                                           \
        } while (0)
#define MUST(condition) MUST_SAY(condition, "%s", #condition)

/* ---- the world ---- */

static bool is_source(unsigned lane) {
        return lane < N_SOURCES;
}

static bool is_reader(unsigned lane) {
        return lane >= N_SOURCES + N_MIDDLE;
}

static LaneRecord *record_of(unsigned lane) {
        return (LaneRecord *)world->records[lane];
}

static Board *board_of(unsigned queue) {
        return (Board *)world->boards[queue];
}

static void board_make(Board *board, bool client_writable, const char *own, const char *feeder) {
        board_init(board, LIFE, KEY, QUEUE_DEPTH, MESSAGE_BYTES, client_writable, own);
        board->n_tickets = N_TICKETS; /* fewer lanes than there could be, so a smaller table */
        MUST(board_group(board, feeder) == 1);
}

static LaneGeometry geometry_of(unsigned lane) {
        LaneGeometry g = { .life = LIFE };

        if (is_source(lane)) {
                g.stage = "source";
                g.lane = lane;
                g.n_outputs = 1;
        } else if (!is_reader(lane)) {
                g.stage = "middle";
                g.lane = lane - N_SOURCES;
                g.input_bytes = MESSAGE_BYTES;
                g.n_outputs = 1;
        } else {
                g.stage = "reader";
                g.lane = lane - N_SOURCES - N_MIDDLE;
                g.input_bytes = MESSAGE_BYTES;
        }
        if (g.n_outputs > 0) {
                (void)snprintf(g.destinations[0].stage, sizeof(g.destinations[0].stage), "next");
                g.destinations[0].message_bytes = MESSAGE_BYTES;
        }
        return g;
}

static void attach(unsigned lane) {
        LaneBoards boards = {};

        if (!is_source(lane))
                boards.input = board_of(is_reader(lane));
        if (!is_reader(lane)) {
                boards.outputs[0] = board_of(!is_source(lane));
                boards.groups[0] = 1;
        }
        lane_attach(&lanes[lane], record_of(lane), &boards);
}

static uint64_t first_id(unsigned source) {
        return (uint64_t)(source + 1) << 20;
}

static World *world_map(int flags) {
        World *w = mmap(NULL, sizeof(World), PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

        MUST(w != MAP_FAILED);
        return w;
}

static void world_make(uint32_t n_jobs) {
        if (!world)
                world = world_map(MAP_PRIVATE);
        memset(world, 0, sizeof(*world));
        world->n_jobs = n_jobs;
        board_make(board_of(0), false, "middle", "source");
        board_make(board_of(1), false, "reader", "middle");
        for (unsigned i = 0; i < N_LANES; i++) {
                LaneGeometry g = geometry_of(i);

                lane_record_init(record_of(i), &g);
                MUST(record_of(i)->n_populate + (is_source(i) ? 0 : 4096) <= RECORD_BYTES);
                if (is_source(i))
                        record_of(i)->progress[0].last_id = first_id(i) - 1;
        }
        may_die = false;
        for (unsigned i = 0; i < N_LANES; i++)
                attach(i);
}

/* ---- the kernel ---- */

static bool kernel_send(unsigned queue, const void *data, size_t n, unsigned priority) {
        Kernel *k = &world->queues[queue];

        MUST(n <= MESSAGE_BYTES);
        if (k->n == QUEUE_DEPTH)
                return false;
        atomic_store(&world->atomically, 1);
        k->messages[k->n].length = (uint32_t)n;
        k->messages[k->n].priority = priority;
        memcpy(k->messages[k->n].data, data, n);
        k->n++;
        atomic_store(&world->atomically, 0);
        return true;
}

static bool kernel_receive(unsigned queue, void *buffer, uint32_t *priority) {
        Kernel *k = &world->queues[queue];
        uint32_t best = 0;

        if (k->n == 0)
                return false;
        for (uint32_t i = 1; i < k->n; i++)
                if (k->messages[i].priority > k->messages[best].priority)
                        best = i;
        atomic_store(&world->atomically, 1);
        *priority = k->messages[best].priority;
        memcpy(buffer, k->messages[best].data, k->messages[best].length);
        k->n--;
        for (uint32_t i = best; i < k->n; i++)
                k->messages[i] = k->messages[i + 1];
        atomic_store(&world->atomically, 0);
        return true;
}

/* ---- jobs and results ---- */

/* Some jobs have more results than a frame holds. */
static uint32_t results_of(uint64_t id) {
        return id % 7 == 3 ? RESULTS_MAX : id % 5 == 1 ? 2 : 1;
}

static uint32_t result_write(uint64_t id, uint32_t k, uint8_t *buffer) {
        uint32_t size = 10 + (uint32_t)(id + k) % 13;

        memcpy(buffer, &id, sizeof(id));
        buffer[8] = (uint8_t)k;
        memset(buffer + 9, (int)(id * 31 + k), size - 9);
        return size;
}

static void accept(const FrameJob *job) {
        uint8_t wanted[64];
        uint32_t source = (uint32_t)(job->id >> 20) - 1, i = (uint32_t)(job->id & 0xfffff), k;

        MUST(source < N_SOURCES);
        MUST(i < world->n_jobs);
        MUST(job->size >= 10);
        k = job->data[8];
        MUST(k < results_of(job->id));
        MUST(job->size == result_write(job->id, k, wanted));
        MUST(memcmp(job->data, wanted, job->size) == 0);
        MUST_SAY(world->accepted[source][i][k] == 0, "result %u of job %" PRIu64 " arrived twice", k,
                 job->id);
        world->accepted[source][i][k]++;
}

/* ---- a worker: the loop around a lane, one turn at a time ---- */

static uint32_t share_one_in = 2;

static void begin_send(Lane *lane) {
        MUST(lane_send_begin(lane, 0) == 0);
}

/* True if an intent was open; `moved` says whether that went on. */
static bool settle(unsigned i, bool *moved) {
        Lane *lane = &lanes[i];
        LaneIntent intent = (LaneIntent)lane->now->intent;
        LaneFrame frame;

        *moved = true;
        switch (lane_intent(lane, &frame)) {
        case LANE_SEND_MESSAGE:
                *moved = kernel_send(!is_source(i), frame.data, frame.n_data, frame.priority);
                if (!*moved)
                        return true;
                lane_point(LANE_SEND_CALL);
                lane_send_end(lane);
                return true;
        case LANE_SEND_TRY:
                if (!kernel_send(is_reader(i), frame.data, frame.n_data, frame.priority)) {
                        lane_share_refused(lane);
                        return true;
                }
                lane_point(LANE_SHARE_CALL);
                lane_send_end(lane);
                return true;
        case LANE_SEND_NOTHING:
        default:
                return intent != LANE_INTENT_NONE;
        }
}

static void begin_frame(Lane *lane, uint64_t id, unsigned priority) {
        FrameHeader header = { .base_id = id, .time_usec = 1, .priority = (uint16_t)priority };

        memcpy(lane->outs[0].buffer, &header, sizeof(header));
        lane->outs[0].last_id = id - 1;
}

/* Appends behind what is committed; what does not fit goes to the spill. */
static void emit(Lane *lane, uint64_t id, LaneOutput *at) {
        LaneOut *out = &lane->outs[0];
        uint32_t n_in_frame = 0, n_spilled = 0;

        for (uint32_t k = 0; k < results_of(id); k++) {
                uint8_t payload[64];
                JobSpec spec = { .data = payload, .size = result_write(id, k, payload), .id = id };

                if (n_in_frame + n_spilled > 0)
                        spec.flags = JOB_SAME_ID;
                else
                        spec.explicit_id = id != out->last_id + 1;
                if (n_spilled == 0 && job_bytes(&spec) <= out->capacity - at->length) {
                        uint8_t *p = out->buffer + FRAME_HEADER_BYTES + at->length;

                        at->length += (uint32_t)(job_write(p, &spec) - p);
                        n_in_frame++;
                        continue;
                }
                spec.flags = JOB_SAME_ID;
                spec.explicit_id = false;
                at->spill_end += (uint64_t)(job_write(out->spill + at->spill_end, &spec) -
                                            (out->spill + at->spill_end));
                n_spilled++;
        }
        at->count += n_in_frame;
}

static void run_job(unsigned i) {
        Lane *lane = &lanes[i];
        LaneOutput at = lane->now->first;
        LaneProgress *p;
        FrameJob job;

        lane_job(lane, &job);
        if (!lane->now->running) {
                p = lane_edit_hot(lane);
                p->running = 1;
                lane_flip(lane);
                lane_point(LANE_RUN_FLIP);
        }
        if (lane->n_outs > 0) {
                if (at.count == 0)
                        begin_frame(lane, job.id, lane->record->priority);
                emit(lane, job.id, &at);
        }
        lane_point(LANE_RUN_HANDLER);

        p = at.spill_end > 0 ? lane_edit(lane) : lane_edit_hot(lane);
        p->first = at;
        if (at.spill_end > 0)
                p->spill_id = job.id;
        lane_step_past(p, &job);
        p->n_done++;
        atomic_store(&world->atomically, 1);
        lane_flip(lane);
        if (is_reader(i))
                accept(&job);
        atomic_store(&world->atomically, 0);
        if (lane->n_outs > 0 && at.count > 0)
                lane->outs[0].last_id = job.id;
        lane_point(LANE_COMMIT_FLIP);
}

static bool turn_source(unsigned i) {
        Lane *lane = &lanes[i];
        const LaneProgress *now = lane->now;
        LaneOutput at = now->first;
        uint32_t n = (uint32_t)random_next() % 9 + 1, made = (uint32_t)(now->last_id + 1 - first_id(i));
        LaneProgress *p;

        if (now->finished == LANE_SOURCE_ENDED)
                return false;
        if (now->first.count > 0) {
                begin_send(lane);
                return true;
        }
        if (made == world->n_jobs) {
                lane_finish(lane, LANE_SOURCE_ENDED);
                return true;
        }
        n = MIN(n, world->n_jobs - made);
        begin_frame(lane, now->last_id + 1, 16 + made % 2);
        for (uint32_t k = 0; k < n; k++) {
                JobSpec spec = { .data = "payload of a job", .size = 1 + k };
                uint8_t *from = lane->outs[0].buffer + FRAME_HEADER_BYTES + at.length;

                at.length += (uint32_t)(job_write(from, &spec) - from);
                at.count++;
        }
        p = lane_edit(lane);
        p->first = at;
        p->last_id += n;
        p->n_done += n;
        memcpy(p->position, &p->last_id, sizeof(p->last_id));
        p->position_size = sizeof(p->last_id);
        lane_flip(lane);
        lane->outs[0].last_id = p->last_id;
        lane_point(LANE_PRODUCE_FLIP);
        return true;
}

/* One step of a worker; false if it would block. */
static bool turn(unsigned i) {
        Lane *lane = &lanes[i];
        bool moved;

        if (settle(i, &moved))
                return moved;
        if (is_source(i))
                return turn_source(i);
        if (lane->n_outs > 0 && lane->now->first.spill_end > lane->now->first.spill_begin) {
                begin_send(lane);
                return true;
        }
        if (lane->now->input == LANE_RECEIVING && lane_receive_end(lane) != LANE_MESSAGE_NONE)
                return true;
        if (lane_has_job(lane)) {
                uint32_t n = lane->now->end - lane->now->cursor;

                /* Who drains does not share: it could go to a lane that has finished. */
                if (n > 1 && atomic_load(&lane->record->generation) == 0 && one_in(share_one_in)) {
                        MUST(lane_share_begin(lane, lane->now->cursor + 1 +
                                                            (uint32_t)random_next() % (n - 1)) == 0);
                        return true;
                }
                run_job(i);
                return true;
        }
        if (lane_output_pending(lane, 0)) {
                begin_send(lane);
                return true;
        }
        if (lane->now->input == LANE_SENTINEL) {
                lane_finish(lane, atomic_load(&lane->record->generation));
                return true;
        }
        if (lane->now->finished != 0 && lane->now->finished == atomic_load(&lane->record->generation))
                return false;
        lane_receive_begin(lane);
        return kernel_receive(is_reader(i), lane->input, &lane->record->priority);
}

/* A turn that its worker may not survive; the next one takes up the record, if it lives that long. */
static bool mortal_turn(unsigned i) {
        volatile bool died = false;
        bool moved = true;

        if (setjmp(death) != 0)
                died = true;
        may_die = true;
        if (died)
                attach(i);
        else
                moved = turn(i);
        may_die = false;
        return moved;
}

/* Turns until nobody can go on. */
static void run_until_quiet(bool mortal) {
        uint32_t quiet = 0;

        for (uint32_t n = 0; quiet < 200; n++) {
                unsigned i = (unsigned)random_next() % N_LANES;
                bool moved = mortal ? mortal_turn(i) : turn(i);

                quiet = moved ? 0 : quiet + 1;
                MUST_SAY(n < 1000000, "it never comes to rest");
        }
        for (unsigned i = 0; i < N_LANES; i++)
                while (mortal ? mortal_turn(i) : turn(i))
                        quiet = 0;
        if (quiet == 0)
                run_until_quiet(mortal);
}

static uint8_t *sentinel(uint32_t generation, uint8_t frame[FRAME_OVERHEAD_BYTES]) {
        FrameHeader header = {
                .kind = FRAME_SENTINEL,
                .sequence = generation,
                .ticket = FRAME_NO_TICKET,
                .key = KEY,
                .generation = generation,
        };

        (void)frame_seal(frame, &header, 0);
        return frame;
}

/* Every job's results once, nothing else, and everything at rest. */
static void check_end(void) {
        for (unsigned s = 0; s < N_SOURCES; s++)
                for (uint32_t j = 0; j < world->n_jobs; j++)
                        for (uint32_t k = 0; k < RESULTS_MAX; k++)
                                MUST_SAY(world->accepted[s][j][k] == (k < results_of(first_id(s) + j)),
                                         "result %u of job %u of source %u: %u times", k, j, s,
                                         world->accepted[s][j][k]);
        for (unsigned i = 0; i < N_LANES; i++) {
                MUST(lane_record_held(record_of(i)) == 0);
                MUST(lanes[i].now->intent == LANE_INTENT_NONE);
        }
        for (unsigned q = 0; q < 2; q++) {
                MUST(world->queues[q].n == 0);
                MUST(atomic_load(&board_of(q)->n_garbage) == 0);
                for (uint32_t row = 0; row < N_ROWS; row++)
                        for (uint32_t t = 0; t < N_TICKETS; t++) {
                                TicketState state =
                                        ticket_state(atomic_load(board_ticket(board_of(q), row, t)));

                                MUST_SAY(state == TICKET_FREE || state == TICKET_REVOKED,
                                         "ticket %u of row %u is left %d", t, row, (int)state);
                        }
        }
}

/* A drain as the supervisor does it: a stage's feeders are through, then one sentinel for each of its lanes; again
 * while there is something in the queue, if only copies. */
static void drain(unsigned queue, unsigned first, unsigned n, uint32_t generation, bool mortal) {
        uint8_t frame[FRAME_OVERHEAD_BYTES];

        for (unsigned i = first; i < first + n; i++)
                atomic_store(&record_of(i)->generation, generation);
        for (unsigned i = 0; i < n; i++) {
                while (!kernel_send(queue, sentinel(generation, frame), sizeof(frame), 0))
                        run_until_quiet(mortal);
                run_until_quiet(mortal);
        }
        for (unsigned i = first; i < first + n; i++)
                MUST(lane_record_progress(record_of(i))->finished == generation);
        if (world->queues[queue].n > 0)
                drain(queue, first, n, generation + 2, mortal);
}

static void run_world(uint64_t seed, uint32_t n_jobs, bool mortal) {
        random_state = seed | 1;
        points_passed = 0;
        world_make(n_jobs);
        run_until_quiet(mortal);
        drain(0, N_SOURCES, N_MIDDLE, 7, mortal);
        drain(1, N_SOURCES + N_MIDDLE, N_READERS, 8, mortal);
        check_end();
}

/* ---- the whole ---- */

START_TEST(without_deaths_every_job_arrives_once) {
        die_at[0] = die_at[1] = die_one_in = 0;
        for (uint64_t seed = 1; seed < 200; seed++)
                run_world(seed, JOBS_MAX, false);
}
END_TEST

/* Seeds whose runs, between them, pass every step of the table. */
static uint64_t chosen_seeds[_LANE_STEP_MAX + 1];
static size_t n_chosen;

static void choose_seeds(uint32_t n_jobs) {
        bool covered[_LANE_STEP_MAX] = {};

        n_chosen = 0;
        for (uint64_t seed = 1; seed < 5000; seed++) {
                bool more = false;

                memset(step_hits, 0, sizeof(step_hits));
                die_at[0] = die_at[1] = die_one_in = 0;
                run_world(seed, n_jobs, true);
                for (int step = 0; step < _LANE_STEP_MAX; step++) {
                        more = more || (step_hits[step] > 0 && !covered[step]);
                        covered[step] = covered[step] || step_hits[step] > 0;
                }
                if (more)
                        chosen_seeds[n_chosen++] = seed;
        }
        for (int step = 0; step < _LANE_STEP_MAX; step++)
                MUST_SAY(covered[step], "no run passes %s", lane_step_name((LaneStep)step));
}

START_TEST(a_death_after_any_step_loses_and_repeats_nothing) {
        choose_seeds(6);
        for (size_t s = 0; s < n_chosen; s++) {
                uint64_t n_points;

                die_at[0] = die_at[1] = 0;
                run_world(chosen_seeds[s], 6, true);
                n_points = points_passed;
                for (uint64_t k = 1; k <= n_points; k++) {
                        die_at[0] = k;
                        run_world(chosen_seeds[s], 6, true);
                }
        }
}
END_TEST

START_TEST(another_death_at_any_step_of_the_resume_does_not_either) {
        uint64_t n_points;

        choose_seeds(3);
        for (size_t s = 0; s < n_chosen; s++) {
                die_at[0] = die_at[1] = 0;
                run_world(chosen_seeds[s], 3, true);
                n_points = points_passed;
                for (uint64_t k = 1; k <= n_points; k++)
                        for (uint64_t next = k + 1; next <= n_points + 8; next++) {
                                die_at[0] = k;
                                die_at[1] = next;
                                run_world(chosen_seeds[s], 3, true);
                        }
        }
}
END_TEST

START_TEST(random_deaths_lose_and_repeat_nothing) {
        static const uint32_t rates[] = { 200, 40, 10, 4 };
        uint64_t seed = seed_for_today(), duplicates = 0;

        die_at[0] = die_at[1] = 0;
        for (uint64_t round = 0; round < 6000; round++) {
                die_one_in = rates[round % ELEMENTSOF(rates)];
                share_one_in = round % 3 ? 2 : 20;
                run_world(seed + round * 2, JOBS_MAX / 2, true);
                for (unsigned q = 0; q < 2; q++)
                        duplicates += atomic_load(&board_of(q)->n_duplicates);
        }
        MUST(duplicates > 0); /* or it has not been tried at all */
}
END_TEST

/* ---- at any instruction ---- */

/*
 * A child runs the world step by step under ptrace. Whenever an instruction
 * has changed anything in the shared memory, everybody in it could have died
 * right there: a copy is taken up by new workers and run to its end.
 */
static World *shared_world;

#define TRACED_JOBS 3
#define TRACED_TURNS 500

/* Deaths on the way, one in so many steps, so that the resume is watched like everything else. Not with AddressSanitizer,
 * where a long jump sweeps the shadow of the whole stack, one instruction after the other. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(WITH_ASAN)
#define TRACED_DEATHS 0
#else
#define TRACED_DEATHS 16
#endif

static void traced_begin(uint64_t seed) {
        random_state = seed | 1;
        die_at[0] = die_at[1] = 0;
        die_one_in = TRACED_DEATHS;
        share_one_in = 2;
        world_make(TRACED_JOBS);
}

static void traced_turn(void) {
        (void)mortal_turn((unsigned)random_next() % N_LANES);
}

/* The seed that passes every step of the table in the fewest turns: each instruction costs a good 10 us. */
static uint64_t choose_traced(unsigned *ret_turns) {
        unsigned best = TRACED_TURNS;
        uint64_t chosen = 0;

        for (uint64_t seed = 1; seed < 4000; seed += 2) {
                unsigned n_covered = 0, n = 0;

                memset(step_hits, 0, sizeof(step_hits));
                traced_begin(seed);
                /* A finished lane of the inner stages needs a drain; the sources finish by themselves. */
                while (n_covered < _LANE_STEP_MAX && n++ < best) {
                        traced_turn();
                        n_covered = 0;
                        for (int step = 0; step < _LANE_STEP_MAX; step++)
                                n_covered += step_hits[step] > 0;
                }
                if (n_covered == _LANE_STEP_MAX && n < best) {
                        best = n;
                        chosen = seed;
                }
        }
        MUST_SAY(chosen != 0, "no seed passes every step in %d turns", TRACED_TURNS);
        *ret_turns = best;
        return chosen;
}

static void trace_child(uint64_t seed, unsigned n_turns) {
        world = shared_world;
        traced_begin(seed);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
                _exit(77);
        (void)raise(SIGSTOP);
        for (unsigned n = 0; n < n_turns; n++)
                traced_turn();
        _exit(0);
}

/* Whether anything has changed that workers store; queues change in steps of their own, and most of a board is unused. */
static bool has_changed(const World *now, const World *before) {
        for (unsigned q = 0; q < 2; q++)
                for (unsigned group = 0; group < 2; group++) {
                        size_t row =
                                BOARD_HEADER_BYTES + group * BOARD_LANES_MAX * N_TICKETS * sizeof(Ticket);

                        if (memcmp(now->boards[q] + row, before->boards[q] + row,
                                   2 * N_TICKETS * sizeof(Ticket)) != 0)
                                return true;
                }
        if (memcmp(now->queues, before->queues, sizeof(now->queues)) != 0)
                return true;
        for (unsigned i = 0; i < N_LANES; i++) {
                size_t n = ((const LaneRecord *)before->records[i])->n_populate;

                if (memcmp(now->records[i], before->records[i], is_source(i) ? n : n + 1024) != 0)
                        return true;
        }
        return false;
}

/* New workers for all lanes, and on to the end. */
static void check_copy(World *copy, const World *original) {
        uint64_t kept = random_state;

        memcpy(copy, original, sizeof(*copy));
        world = copy;
        random_state = 99;
        for (unsigned i = 0; i < N_LANES; i++)
                attach(i);
        run_until_quiet(false);
        check_end();
        random_state = kept;
}

START_TEST(a_death_at_any_instruction_loses_and_repeats_nothing) {
        World *last = world_map(MAP_PRIVATE), *copy = world_map(MAP_PRIVATE);
        uint64_t n_states = 0, n_steps = 0, seed;
        unsigned n_turns;
        int status;
        pid_t pid;

        seed = choose_traced(&n_turns);
        shared_world = world_map(MAP_SHARED);
        pid = fork();
        MUST(pid >= 0);
        if (pid == 0)
                trace_child(seed, n_turns);

        MUST(waitpid(pid, &status, 0) == pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
                printf("no ptrace here: deaths at any instruction are not tried\n");
                return;
        }
        memcpy(last, shared_world, sizeof(*last));
        while (WIFSTOPPED(status)) {
                int sig = WSTOPSIG(status);

                MUST_SAY(sig == SIGTRAP || sig == SIGSTOP, "the child got signal %d", sig);
                if (atomic_load(&shared_world->atomically) == 0 && has_changed(shared_world, last)) {
                        memcpy(last, shared_world, sizeof(*last));
                        check_copy(copy, last);
                        n_states++;
                }
                n_steps++;
                MUST(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
                MUST(waitpid(pid, &status, 0) == pid);
        }
        MUST(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        printf("seed %" PRIu64 ", %u turns, %" PRIu64 " instructions, %" PRIu64 " states\n", seed, n_turns,
               n_steps, n_states);
        MUST(n_states > 200);
}
END_TEST

/* ---- the two tables of decisions, cell by cell ---- */

/* The lane under test is the first of the middle; the board it reads is the sources'. */
#define LANE N_SOURCES
#define ROW (BOARD_LANES_MAX + 1)
#define TICKET 4
#define SEQUENCE UINT64_C(1000)

static Ticket *row_ticket(unsigned queue, uint32_t row, uint32_t ticket) {
        return board_ticket(board_of(queue), row, ticket);
}

static FrameHeader frame_header(void) {
        return (FrameHeader){
                .kind = FRAME_JOBS,
                .base_id = 10,
                .sequence = SEQUENCE,
                .producer = ROW,
                .ticket = TICKET,
                .key = KEY,
        };
}

/* A frame of `n` jobs whose payload is a letter each, in memory of zeroes. */
static size_t frame_of(uint8_t *buffer, FrameHeader header, const JobSpec *jobs, uint32_t n) {
        uint8_t *p = buffer + FRAME_HEADER_BYTES;

        memset(buffer, 0, MESSAGE_BYTES);
        header.count = n;
        for (uint32_t i = 0; i < n; i++) {
                JobSpec job = jobs ? jobs[i] : (JobSpec){};
                char letter = (char)('a' + i);

                job.data = &letter;
                job.size = 1;
                p = job_write(p, &job);
        }
        return frame_seal(buffer, &header, (size_t)(p - buffer) - FRAME_HEADER_BYTES);
}

/* As if mq_receive() had been called and this had been in the queue. */
static void arrives(const void *message, size_t n, uint32_t priority) {
        Lane *lane = &lanes[LANE];

        lane_receive_begin(lane);
        ck_assert_int_eq(lane->now->input, LANE_RECEIVING);
        ck_assert_uint_eq(lane->record->priority, UINT32_MAX);
        lane->record->priority = priority;
        memcpy(lane->input, message, n);
}

/* The process dies; the next one takes up the record. */
static void dies(void) {
        memset(&lanes[LANE], 0xa5, sizeof(lanes[LANE]));
        attach(LANE);
}

START_TEST(a_frame_is_taken_only_if_its_ticket_is_open_or_ours) {
        enum { THIS_N = 1 };
        const struct {
                const char *what;
                uint64_t word;
                LaneMessage expected;
        } cells[] = {
                { "never used", 0, LANE_MESSAGE_DUPLICATE },
                { "open with an older sequence", ticket_word(TICKET_OPEN, SEQUENCE - 1, 0, 0),
                  LANE_MESSAGE_DUPLICATE },
                { "open with a newer one", ticket_word(TICKET_OPEN, SEQUENCE + 1, 0, 0),
                  LANE_MESSAGE_DUPLICATE },
                { "claimed by us, another sequence", ticket_word(TICKET_CLAIMED, SEQUENCE + 1, 0, THIS_N),
                  LANE_MESSAGE_DUPLICATE },
                { "free with another sequence", ticket_word(TICKET_FREE, SEQUENCE - 1, 0, 0),
                  LANE_MESSAGE_DUPLICATE },
                { "open", ticket_word(TICKET_OPEN, SEQUENCE, 0, 0), LANE_MESSAGE_JOBS },
                { "claimed by this receive", ticket_word(TICKET_CLAIMED, SEQUENCE, 0, THIS_N),
                  LANE_MESSAGE_JOBS },
                { "claimed by another receive of ours", ticket_word(TICKET_CLAIMED, SEQUENCE, 0, THIS_N + 1),
                  LANE_MESSAGE_DUPLICATE },
                { "claimed by another lane", ticket_word(TICKET_CLAIMED, SEQUENCE, 1, THIS_N),
                  LANE_MESSAGE_DUPLICATE },
                { "free: taken", ticket_word(TICKET_FREE, SEQUENCE, 0, 0), LANE_MESSAGE_DUPLICATE },
                { "revoked", ticket_word(TICKET_REVOKED, SEQUENCE, 0, 0), LANE_MESSAGE_DUPLICATE },
        };

        for (size_t i = 0; i < ELEMENTSOF(cells); i++)
                for (int resumed = 0; resumed < 2; resumed++) {
                        uint8_t frame[MESSAGE_BYTES];
                        bool taken = cells[i].expected == LANE_MESSAGE_JOBS;
                        size_t n;

                        world_make(1);
                        n = frame_of(frame, frame_header(), NULL, 2);
                        atomic_store(row_ticket(0, ROW, TICKET), cells[i].word);
                        arrives(frame, n, 16);
                        ck_assert_uint_eq(lanes[LANE].now->n, THIS_N);
                        if (resumed)
                                dies();
                        ck_assert_msg(lane_receive_end(&lanes[LANE]) == cells[i].expected, "%s",
                                      cells[i].what);
                        ck_assert_int_eq(lane_has_job(&lanes[LANE]), taken);
                        ck_assert_uint_eq(atomic_load(&board_of(0)->n_duplicates), !taken);
                        ck_assert_uint_eq(atomic_load(row_ticket(0, ROW, TICKET)),
                                          taken ? ticket_word(TICKET_FREE, SEQUENCE, 0, 0) : cells[i].word);
                        /* What was dropped is not found again. */
                        if (!taken)
                                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_NONE);
                }
}
END_TEST

START_TEST(without_a_message_nothing_is_taken_whatever_the_buffer_holds) {
        uint8_t frame[MESSAGE_BYTES];
        size_t n;

        world_make(1);
        n = frame_of(frame, frame_header(), NULL, 2);
        atomic_store(row_ticket(0, ROW, TICKET), ticket_word(TICKET_OPEN, SEQUENCE, 0, 0));
        lane_receive_begin(&lanes[LANE]);
        memcpy(lanes[LANE].input, frame, n);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_NONE);
        dies();
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_NONE);
        ck_assert_uint_eq(atomic_load(row_ticket(0, ROW, TICKET)), ticket_word(TICKET_OPEN, SEQUENCE, 0, 0));
}
END_TEST

START_TEST(a_frame_without_ticket_is_taken_whatever_the_tickets_say) {
        for (TicketState state = TICKET_FREE; state <= TICKET_REVOKED; state++) {
                uint8_t frame[MESSAGE_BYTES];
                FrameHeader header = frame_header();
                size_t n;

                world_make(1);
                header.ticket = FRAME_NO_TICKET;
                n = frame_of(frame, header, NULL, 2);
                for (uint32_t t = 0; t < N_TICKETS; t++)
                        atomic_store(row_ticket(0, ROW, t), ticket_word(state, SEQUENCE, 0, 1));
                arrives(frame, n, 16);
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
                for (uint32_t t = 0; t < N_TICKETS; t++)
                        ck_assert_uint_eq(atomic_load(row_ticket(0, ROW, t)),
                                          ticket_word(state, SEQUENCE, 0, 1));
        }
}
END_TEST

START_TEST(a_ticket_that_the_board_does_not_have_is_refused) {
        static const struct {
                uint32_t row, ticket;
        } cases[] = {
                { ROW, N_TICKETS },
                { ROW, FRAME_NO_TICKET - 1 },
                { BOARD_GROUPS_MAX * BOARD_LANES_MAX, 0 },
                { UINT32_MAX, 0 },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                uint8_t frame[MESSAGE_BYTES];
                FrameHeader header = frame_header();
                size_t n;

                world_make(1);
                header.producer = cases[i].row;
                header.ticket = cases[i].ticket;
                n = frame_of(frame, header, NULL, 2);
                arrives(frame, n, 16);
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_GARBAGE);
                ck_assert_uint_eq(atomic_load(&board_of(0)->n_garbage), 1);
        }
}
END_TEST

/* Has the lane emit one job and open the intent to send it. */
static void open_send(void) {
        Lane *lane = &lanes[LANE];
        LaneOutput at = {};
        LaneProgress *p;

        world_make(1);
        begin_frame(lane, first_id(0), 16);
        emit(lane, first_id(0) + 2, &at);
        p = lane_edit(lane);
        p->first = at;
        p->next_sequence = SEQUENCE;
        lane_flip(lane);
        ck_assert_int_eq(lane_send_begin(lane, 0), 0);
        ck_assert_uint_eq(lane->now->ticket, 0);
        ck_assert_uint_eq(lane->now->sequence, SEQUENCE);
}

START_TEST(an_open_send_does_what_its_ticket_says) {
        const uint64_t open = ticket_word(TICKET_OPEN, SEQUENCE, 0, 0);
        const struct {
                const char *what;
                uint64_t word, after;
                bool send;
        } cells[] = {
                { "never used", 0, open, true },
                { "free with another sequence", ticket_word(TICKET_FREE, SEQUENCE - 1, 0, 0), open, true },
                { "revoked with another sequence", ticket_word(TICKET_REVOKED, SEQUENCE - 1, 0, 0), open,
                  true },
                { "open", open, open, true },
                { "claimed", ticket_word(TICKET_CLAIMED, SEQUENCE, 1, 9),
                  ticket_word(TICKET_CLAIMED, SEQUENCE, 1, 9), false },
                { "free: taken", ticket_word(TICKET_FREE, SEQUENCE, 0, 0),
                  ticket_word(TICKET_FREE, SEQUENCE, 0, 0), false },
        };

        for (size_t i = 0; i < ELEMENTSOF(cells); i++) {
                LaneFrame frame;
                FrameHeader header;
                LaneSend expected = cells[i].send ? LANE_SEND_MESSAGE : LANE_SEND_NOTHING;

                open_send();
                atomic_store(row_ticket(1, BOARD_LANES_MAX, 0), cells[i].word);
                dies();
                for (int again = 0; again < 2; again++)
                        ck_assert_msg(lane_intent(&lanes[LANE], &frame) == expected, "%s", cells[i].what);
                ck_assert_uint_eq(atomic_load(row_ticket(1, BOARD_LANES_MAX, 0)), cells[i].after);
                ck_assert_int_eq(lane_output_pending(&lanes[LANE], 0), cells[i].send);
                if (!cells[i].send)
                        continue;
                ck_assert_int_eq(frame_decode(frame.data, frame.n_data, &header), 0);
                ck_assert_int_eq(frame_check_jobs(frame.data, &header), 0);
                ck_assert_uint_eq(header.sequence, SEQUENCE);
                ck_assert_uint_eq(header.producer, BOARD_LANES_MAX);
                ck_assert_uint_eq(header.ticket, 0);
                ck_assert_uint_eq(header.key, KEY);
                ck_assert_uint_eq(frame.priority, 16);
                lane_send_end(&lanes[LANE]);
                ck_assert(!lane_output_pending(&lanes[LANE], 0));
        }
}
END_TEST

/* The lane has a frame of these jobs, in priority `priority`. */
static void has_frame(const JobSpec *jobs, uint32_t n_jobs, uint32_t priority) {
        uint8_t frame[MESSAGE_BYTES];
        size_t n;

        world_make(1);
        n = frame_of(frame, frame_header(), jobs, n_jobs);
        atomic_store(row_ticket(0, ROW, TICKET), ticket_word(TICKET_OPEN, SEQUENCE, 0, 0));
        arrives(frame, n, priority);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
}

START_TEST(an_open_share_does_what_its_ticket_says) {
        const uint64_t open = ticket_word(TICKET_OPEN, 1, 0, 0);
        const struct {
                const char *what;
                uint64_t word, after;
                bool send;
                uint32_t end;
        } cells[] = {
                { "never used", 0, open, true, 2 },
                { "revoked with another sequence", ticket_word(TICKET_REVOKED, 9, 0, 0), open, true, 2 },
                { "open", open, open, true, 2 },
                { "claimed", ticket_word(TICKET_CLAIMED, 1, 1, 9), ticket_word(TICKET_CLAIMED, 1, 1, 9),
                  false, 2 },
                { "free: taken", ticket_word(TICKET_FREE, 1, 0, 0), ticket_word(TICKET_FREE, 1, 0, 0), false,
                  2 },
                { "revoked", ticket_word(TICKET_REVOKED, 1, 0, 0), ticket_word(TICKET_REVOKED, 1, 0, 0),
                  false, 4 },
        };

        for (size_t i = 0; i < ELEMENTSOF(cells); i++) {
                LaneFrame frame;
                LaneSend expected = cells[i].send ? LANE_SEND_TRY : LANE_SEND_NOTHING;

                has_frame(NULL, 4, 16);
                ck_assert_int_eq(lane_share_begin(&lanes[LANE], 2), 0);
                ck_assert_uint_eq(lane_record_held(lanes[LANE].record), 4);
                atomic_store(row_ticket(0, 0, 0), cells[i].word);
                dies();
                for (int again = 0; again < 2; again++)
                        ck_assert_msg(lane_intent(&lanes[LANE], &frame) == expected, "%s", cells[i].what);
                ck_assert_uint_eq(atomic_load(row_ticket(0, 0, 0)), cells[i].after);
                ck_assert_uint_eq(lanes[LANE].now->end, cells[i].end);
                ck_assert_uint_eq(lanes[LANE].now->n_shared, !cells[i].send && cells[i].end == 2 ? 2 : 0);
        }
}
END_TEST

/* Between the look and the store a receiver may claim and free the ticket; a second OPEN would let in a second copy. */
START_TEST(an_open_ticket_is_not_stored_again) {
        uintptr_t page;
        LaneFrame frame;

        open_send();
        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_MESSAGE);
        page = (uintptr_t)row_ticket(1, BOARD_LANES_MAX, 0) & ~(uintptr_t)4095;
        ck_assert_int_eq(mprotect((void *)page, 4096, PROT_READ), 0);
        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_MESSAGE); /* or SIGSEGV */
        ck_assert_int_eq(mprotect((void *)page, 4096, PROT_READ | PROT_WRITE), 0);

        has_frame(NULL, 4, 16);
        ck_assert_int_eq(lane_share_begin(&lanes[LANE], 2), 0);
        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_TRY);
        page = (uintptr_t)row_ticket(0, 0, 0) & ~(uintptr_t)4095;
        ck_assert_int_eq(mprotect((void *)page, 4096, PROT_READ), 0);
        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_TRY);
}
END_TEST

START_TEST(a_refused_share_is_taken_back_unless_a_copy_was_taken) {
        for (TicketState state = TICKET_FREE; state <= TICKET_REVOKED; state++) {
                LaneFrame frame;

                if (state == TICKET_REVOKED)
                        continue; /* only its own lane stores that */
                has_frame(NULL, 4, 16);
                ck_assert_int_eq(lane_share_begin(&lanes[LANE], 2), 0);
                ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_TRY);
                atomic_store(row_ticket(0, 0, 0), ticket_word(state, 1, state == TICKET_CLAIMED, 0));
                lane_share_refused(&lanes[LANE]);
                ck_assert_uint_eq(lanes[LANE].now->end, state == TICKET_OPEN ? 4 : 2);
                ck_assert_int_eq(lanes[LANE].now->intent, LANE_INTENT_NONE);
                ck_assert_int_eq(ticket_state(atomic_load(row_ticket(0, 0, 0))),
                                 state == TICKET_OPEN ? TICKET_REVOKED : state);
        }
}
END_TEST

/* ---- sharing: what the pieces hold ---- */

static void step_past(const FrameJob *job) {
        LaneProgress *p = lane_edit_hot(&lanes[LANE]);

        lane_step_past(p, job);
        lane_flip(&lanes[LANE]);
}

START_TEST(a_shared_piece_keeps_every_id_whatever_it_followed) {
        static const JobSpec jobs[] = {
                { .flags = JOB_SAME_ID }, /* the first: no id to repeat */
                {},
                { .flags = JOB_SAME_ID },
                { .flags = JOB_SAME_ID, .credit = 77 },
                { .explicit_id = true, .id = 500, .interruptions = 3 },
                { .attempts = 2 },
                { .flags = JOB_SAME_ID },
                { .explicit_id = true, .id = 12, .time_usec = 5 },
        };
        static const uint64_t ids[] = { 10, 11, 11, 11, 500, 501, 501, 12 };

        for (uint32_t cursor = 0; cursor + 1 < ELEMENTSOF(jobs); cursor++)
                for (uint32_t middle = cursor + 1; middle < ELEMENTSOF(jobs); middle++) {
                        LaneFrame frame;
                        FrameHeader header;
                        FrameJob job;
                        uint32_t offset = FRAME_HEADER_BYTES;
                        uint64_t id;

                        has_frame(jobs, ELEMENTSOF(jobs), 3);
                        for (uint32_t i = 0; i < cursor; i++) {
                                lane_job(&lanes[LANE], &job);
                                step_past(&job);
                        }
                        ck_assert_int_eq(lane_share_begin(&lanes[LANE], middle), 0);
                        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_TRY);
                        ck_assert_uint_eq(frame.priority, 3);
                        ck_assert_int_eq(frame_decode(frame.data, frame.n_data, &header), 0);
                        ck_assert_int_eq(frame_check_jobs(frame.data, &header), 0);
                        ck_assert_uint_eq(header.count, ELEMENTSOF(jobs) - middle);
                        ck_assert_uint_eq(header.producer, 0);
                        id = header.base_id - 1;
                        for (uint32_t i = middle; i < ELEMENTSOF(jobs); i++) {
                                frame_job_read(frame.data, offset, id, i == middle, &job);
                                ck_assert_msg(job.id == ids[i], "split at %u: job %u has id %" PRIu64, middle,
                                              i, job.id);
                                ck_assert_uint_eq(job.data[0], 'a' + i);
                                ck_assert_uint_eq(job.attempts, jobs[i].attempts);
                                ck_assert_uint_eq(job.interruptions, jobs[i].interruptions);
                                ck_assert_uint_eq(job.credit, jobs[i].credit ?: JOB_CREDIT_WHOLE);
                                ck_assert_uint_eq(job.time_usec, jobs[i].time_usec);
                                id = job.id;
                                offset = job.next;
                        }
                        /* And what stays is as it was. */
                        lane_send_end(&lanes[LANE]);
                        dies();
                        for (uint32_t i = cursor; i < middle; i++) {
                                ck_assert(lane_has_job(&lanes[LANE]));
                                lane_job(&lanes[LANE], &job);
                                ck_assert_uint_eq(job.id, ids[i]);
                                ck_assert_uint_eq(job.data[0], 'a' + i);
                                step_past(&job);
                        }
                        ck_assert(!lane_has_job(&lanes[LANE]));
                }
}
END_TEST

START_TEST(a_share_without_a_free_ticket_changes_nothing) {
        has_frame(NULL, 4, 16);
        for (uint32_t t = 0; t < N_TICKETS; t++)
                atomic_store(row_ticket(0, 0, t), ticket_word(TICKET_OPEN, 5, 0, 0));
        ck_assert_int_eq(lane_share_begin(&lanes[LANE], 2), -EBUSY);
        ck_assert_uint_eq(lanes[LANE].now->end, 4);
        ck_assert_int_eq(lanes[LANE].now->intent, LANE_INTENT_NONE);
}
END_TEST

/* ---- raw messages and clients ---- */

static void world_with_clients(void) {
        world_make(1);
        board_of(0)->client_writable = true;
}

/* The text of the job the lane has now; "" and a length of 0 are a job, too. */
static void check_raw(const char *text) {
        FrameJob job;

        ck_assert(lanes[LANE].raw);
        ck_assert(lane_has_job(&lanes[LANE]));
        lane_job(&lanes[LANE], &job);
        ck_assert_msg(job.size == strlen(text), "%u bytes: %.*s", job.size, (int)job.size,
                      (const char *)job.data);
        ck_assert_mem_eq(job.data, text, job.size);
        ck_assert_uint_eq(job.credit, JOB_CREDIT_WHOLE);
}

static void answer_job(void) {
        FrameJob job;

        lane_job(&lanes[LANE], &job);
        step_past(&job);
        ck_assert(!lane_has_job(&lanes[LANE]));
}

START_TEST(a_raw_message_is_one_job_up_to_its_nul) {
        char full[MESSAGE_BYTES + 1];
        const struct {
                const char *data;
                size_t n;
                const char *text;
        } messages[] = {
                { "", 0, "" },
                { "7", 1, "7" },
                { "with its NUL", 13, "with its NUL" },
                { full, MESSAGE_BYTES, full }, /* as long as can be, and no NUL */
                { "x", 1, "x" },               /* nothing of the long one is behind it */
                { "short\0and what is behind the NUL, which nobody reads", 53, "short" },
                { "seven77", 7, "seven77" }, /* nor of what was behind that */
                { "\0", 1, "" },
                { "SLC", 3, "SLC" },
                { full, MESSAGE_BYTES - 1, full + 1 },
                { "\0hidden", 7, "" },
                { "", 0, "" },
                { "a", 1, "a" },
        };

        memset(full, 'f', MESSAGE_BYTES);
        full[MESSAGE_BYTES] = '\0';
        for (int resumed = 0; resumed < 2; resumed++) {
                uint64_t last = 0;

                world_with_clients();
                for (size_t i = 0; i < ELEMENTSOF(messages); i++) {
                        FrameJob job;

                        arrives(messages[i].data, messages[i].n, i % 2 ? 0 : 16);
                        if (resumed)
                                dies();
                        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
                        check_raw(messages[i].text);
                        if (resumed) {
                                dies();
                                check_raw(messages[i].text);
                        }
                        lane_job(&lanes[LANE], &job);
                        ck_assert_uint_gt(job.id, last); /* each its own id */
                        last = job.id;
                        answer_job();
                }
        }
}
END_TEST

START_TEST(what_followed_a_frame_in_its_message_is_not_read_as_the_next) {
        uint8_t message[MESSAGE_BYTES];
        FrameHeader header = frame_header();
        char text[101];
        size_t n;

        world_with_clients();
        header.key = 0;
        header.ticket = FRAME_NO_TICKET;
        n = frame_of(message, header, NULL, 1);
        memset(message + n, 'j', MESSAGE_BYTES - n);
        arrives(message, MESSAGE_BYTES, 16);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
        answer_job();

        memset(text, 't', 100);
        text[100] = '\0';
        arrives(text, 100, 16);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
        check_raw(text);
}
END_TEST

START_TEST(an_empty_raw_message_is_told_from_none_by_the_priority) {
        world_with_clients();
        lane_receive_begin(&lanes[LANE]);
        dies();
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_NONE);
        arrives("", 0, 0);
        dies();
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
        check_raw("");
}
END_TEST

START_TEST(a_raw_message_on_an_inner_queue_is_garbage) {
        world_make(1);
        arrives("text", 4, 16);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_GARBAGE);
        ck_assert_uint_eq(atomic_load(&board_of(0)->n_garbage), 1);
}
END_TEST

START_TEST(a_client_can_submit_jobs_and_nothing_else) {
        static const JobSpec plain[] = { {}, { .explicit_id = true, .id = 3 }, { .flags = JOB_SAME_ID } };
        static const JobSpec marker[] = { {}, { .flags = JOB_MARKER } };
        static const JobSpec reference[] = { { .flags = JOB_REFERENCE } };
        static const JobSpec credit[] = { { .credit = JOB_CREDIT_WHOLE + 1 } };
        static const struct {
                const char *what;
                const JobSpec *jobs;
                uint32_t n;
                FrameKind kind;
                uint64_t key;
                LaneMessage expected;
        } cases[] = {
                { "jobs", plain, 3, FRAME_JOBS, 0, LANE_MESSAGE_JOBS },
                { "jobs with a guessed key", plain, 3, FRAME_JOBS, KEY + 1, LANE_MESSAGE_JOBS },
                { "a marker", marker, 2, FRAME_JOBS, 0, LANE_MESSAGE_GARBAGE },
                { "a reference", reference, 1, FRAME_JOBS, 0, LANE_MESSAGE_GARBAGE },
                { "too much credit", credit, 1, FRAME_JOBS, 0, LANE_MESSAGE_GARBAGE },
                { "a sentinel", NULL, 0, FRAME_SENTINEL, 0, LANE_MESSAGE_GARBAGE },
                { "a sentinel with a guessed key", NULL, 0, FRAME_SENTINEL, KEY - 1, LANE_MESSAGE_GARBAGE },
                { "our own frame, for comparison", marker, 2, FRAME_JOBS, KEY, LANE_MESSAGE_JOBS },
                { "our own sentinel", NULL, 0, FRAME_SENTINEL, KEY, LANE_MESSAGE_SENTINEL },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                for (int ticket = 0; ticket < 2; ticket++)
                        for (int resumed = 0; resumed < 2; resumed++) {
                                uint8_t frame[MESSAGE_BYTES];
                                FrameHeader header = frame_header();
                                size_t n;

                                world_with_clients();
                                atomic_store(&record_of(LANE)->generation, 6);
                                header.kind = (uint8_t)cases[i].kind;
                                header.generation = 6;
                                header.key = cases[i].key;
                                if (!ticket || header.kind == FRAME_SENTINEL)
                                        header.ticket = FRAME_NO_TICKET;
                                n = frame_of(frame, header, cases[i].jobs, cases[i].n);
                                atomic_store(row_ticket(0, ROW, TICKET),
                                             ticket_word(TICKET_OPEN, SEQUENCE, 0, 0));
                                arrives(frame, n, 16);
                                if (resumed)
                                        dies();
                                ck_assert_msg(lane_receive_end(&lanes[LANE]) == cases[i].expected, "%s",
                                              cases[i].what);
                                ck_assert_uint_eq(atomic_load(&board_of(0)->n_garbage),
                                                  cases[i].expected == LANE_MESSAGE_GARBAGE);
                                /* A ticket a client names is neither looked at nor changed. */
                                if (cases[i].key != KEY)
                                        ck_assert_uint_eq(atomic_load(row_ticket(0, ROW, TICKET)),
                                                          ticket_word(TICKET_OPEN, SEQUENCE, 0, 0));
                        }
}
END_TEST

START_TEST(on_an_inner_queue_the_key_is_asked_of_everything) {
        uint8_t frame[MESSAGE_BYTES];
        FrameHeader header = frame_header();
        size_t n;

        world_make(1);
        header.key = 0;
        n = frame_of(frame, header, NULL, 2);
        atomic_store(row_ticket(0, ROW, TICKET), ticket_word(TICKET_OPEN, SEQUENCE, 0, 0));
        arrives(frame, n, 16);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_GARBAGE);
}
END_TEST

START_TEST(damaged_frames_are_counted_and_leave_nothing_behind) {
        uint8_t frame[MESSAGE_BYTES];
        FrameHeader header = frame_header();
        size_t n;

        world_with_clients();
        header.key = 0;
        header.ticket = FRAME_NO_TICKET;
        header.sequence = UINT64_C(0x0102030405060708); /* no zeroes: every byte of the trailer is missed */
        n = frame_of(frame, header, NULL, 9);
        for (size_t cut = 4; cut < n; cut++) {
                uint64_t before = atomic_load(&board_of(0)->n_garbage);

                arrives(frame, cut, 16);
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_GARBAGE);
                ck_assert_uint_eq(atomic_load(&board_of(0)->n_garbage), before + 1);
                arrives("t", 1, 16);
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
                check_raw("t");
                answer_job();
        }
        frame[4]++; /* its version */
        arrives(frame, n, 16);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_GARBAGE);
}
END_TEST

START_TEST(what_a_client_sent_is_ours_once_it_is_shared) {
        static const JobSpec jobs[] = { {}, {}, {} };
        uint8_t frame[MESSAGE_BYTES];
        FrameHeader header = frame_header();
        LaneFrame shared;
        size_t n;

        world_with_clients();
        header.key = 0;
        n = frame_of(frame, header, jobs, 3);
        arrives(frame, n, 0);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_JOBS);
        ck_assert_int_eq(lane_share_begin(&lanes[LANE], 1), 0);
        dies();
        ck_assert_int_eq(lane_intent(&lanes[LANE], &shared), LANE_SEND_TRY);
        ck_assert_uint_ge(shared.priority, 1); /* 0 is the sentinels' */
        ck_assert_int_eq(frame_decode(shared.data, shared.n_data, &header), 0);
        ck_assert_uint_eq(header.key, KEY);
        ck_assert_uint_eq(header.producer, 0);
        ck_assert_uint_ne(header.ticket, FRAME_NO_TICKET);
}
END_TEST

/* ---- sentinels ---- */

START_TEST(a_sentinel_of_another_drain_stops_nobody) {
        uint8_t frame[FRAME_OVERHEAD_BYTES];

        for (int resumed = 0; resumed < 2; resumed++) {
                world_make(1);
                atomic_store(&record_of(LANE)->generation, 6);
                arrives(sentinel(5, frame), sizeof(frame), 0);
                if (resumed)
                        dies();
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_STALE);
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_NONE);
                arrives(sentinel(6, frame), sizeof(frame), 0);
                ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_SENTINEL);
                dies();
                ck_assert_int_eq(lanes[LANE].now->input, LANE_SENTINEL);
                lane_finish(&lanes[LANE], 6);
                ck_assert_int_eq(lanes[LANE].now->input, LANE_EMPTY);
                ck_assert_uint_eq(lanes[LANE].now->finished, 6);
        }
}
END_TEST

START_TEST(a_sentinel_held_since_an_earlier_drain_stops_nobody_either) {
        uint8_t frame[FRAME_OVERHEAD_BYTES];

        world_make(1);
        atomic_store(&record_of(LANE)->generation, 5);
        arrives(sentinel(5, frame), sizeof(frame), 0);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_SENTINEL);
        /* The worker dies before it has finished; the drain ends, and another one begins. */
        atomic_store(&record_of(LANE)->generation, 6);
        dies();
        ck_assert_int_ne(lanes[LANE].now->input, LANE_SENTINEL);
        arrives("", 0, 0);
        ck_assert_int_eq(lane_receive_end(&lanes[LANE]), LANE_MESSAGE_GARBAGE);
}
END_TEST

/* ---- charges ---- */

static void mark_running(void) {
        LaneProgress *p = lane_edit_hot(&lanes[LANE]);

        p->running = 1;
        lane_flip(&lanes[LANE]);
}

START_TEST(a_death_while_running_is_an_attempt_unless_the_supervisor_went_first) {
        FrameJob job;

        has_frame(NULL, 2, 16);
        dies(); /* not running: charges nothing */
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 0);

        mark_running();
        dies();
        dies(); /* again before it has started: charged once */
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 1);
        ck_assert_uint_eq(job.interruptions, 0);

        mark_running();
        atomic_store(&record_of(LANE)->interrupted, 1);
        dies();
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 1);
        ck_assert_uint_eq(job.interruptions, 1);

        mark_running();
        dies(); /* the supervisor's death counts for one life only */
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 2);
        ck_assert_uint_eq(job.interruptions, 1);

        step_past(&job);
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 0);
        ck_assert_uint_eq(job.interruptions, 0);
}
END_TEST

START_TEST(a_supervisors_death_while_nothing_ran_is_forgotten) {
        FrameJob job;

        has_frame(NULL, 2, 16);
        atomic_store(&record_of(LANE)->interrupted, 1);
        dies();
        mark_running();
        dies();
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 1);
        ck_assert_uint_eq(job.interruptions, 0);
}
END_TEST

START_TEST(attempts_of_an_earlier_worker_add_to_those_in_the_frame) {
        static const JobSpec jobs[] = { { .attempts = 2, .interruptions = 4 } };
        FrameJob job;

        has_frame(jobs, 1, 16);
        mark_running();
        dies();
        lane_job(&lanes[LANE], &job);
        ck_assert_uint_eq(job.attempts, 3);
        ck_assert_uint_eq(job.interruptions, 4);
}
END_TEST

/* ---- records and boards of different ages ---- */

START_TEST(a_new_record_repeats_no_sequence_of_the_old_one) {
        uint8_t old[MESSAGE_BYTES];
        LaneGeometry g = geometry_of(LANE);
        LaneFrame frame;
        size_t n;

        /* An old lane sent frames and had them taken; a late copy of the last is still about. */
        open_send();
        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_MESSAGE);
        n = frame.n_data;
        memcpy(old, frame.data, n);
        lane_send_end(&lanes[LANE]);
        atomic_store(row_ticket(1, BOARD_LANES_MAX, 0), ticket_word(TICKET_FREE, SEQUENCE, 0, 0));

        /* The lane was retired, its record removed, and is wanted again: a new record on the same board. */
        for (uint64_t sequence = SEQUENCE; sequence < SEQUENCE + 2; sequence++) {
                LaneOutput at = {};
                LaneProgress *p;

                memset(world->records[LANE], 0, RECORD_BYTES);
                lane_record_init(record_of(LANE), &g);
                record_of(LANE)->progress[0].next_sequence = sequence; /* what it would come to by counting */
                attach(LANE);
                begin_frame(&lanes[LANE], 1, 16);
                emit(&lanes[LANE], 1, &at);
                p = lane_edit(&lanes[LANE]);
                p->first = at;
                lane_flip(&lanes[LANE]);
                ck_assert_int_eq(lane_send_begin(&lanes[LANE], 0), 0);
                dies();
                /* It is really sent, and the old copy does not pass for it. */
                ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_MESSAGE);
                ck_assert_uint_gt(lanes[LANE].now->sequence, SEQUENCE);
                lane_send_end(&lanes[LANE]);
        }
        lane_receive_begin(&lanes[N_LANES - 1]);
        record_of(N_LANES - 1)->priority = 16;
        memcpy(lanes[N_LANES - 1].input, old, n);
        ck_assert_int_eq(lane_receive_end(&lanes[N_LANES - 1]), LANE_MESSAGE_DUPLICATE);
}
END_TEST

START_TEST(a_new_record_repeats_no_sequence_of_the_old_ones_shares) {
        LaneFrame frame;

        has_frame(NULL, 4, 16);
        for (uint32_t t = 0; t < N_TICKETS; t++)
                atomic_store(row_ticket(0, 0, t), ticket_word(TICKET_FREE, 1, 0, 0));
        ck_assert_int_eq(lane_share_begin(&lanes[LANE], 2), 0);
        ck_assert_int_eq(lane_intent(&lanes[LANE], &frame), LANE_SEND_TRY);
        ck_assert_uint_eq(lanes[LANE].now->end, 2);
}
END_TEST

START_TEST(a_send_without_a_free_ticket_changes_nothing) {
        LaneOutput at = {};
        LaneProgress *p;

        world_make(1);
        begin_frame(&lanes[LANE], 1, 16);
        emit(&lanes[LANE], 1, &at);
        p = lane_edit(&lanes[LANE]);
        p->first = at;
        lane_flip(&lanes[LANE]);
        for (uint32_t t = 0; t < N_TICKETS; t++)
                atomic_store(row_ticket(1, BOARD_LANES_MAX, t), ticket_word(TICKET_OPEN, 5, 0, 0));
        ck_assert_int_eq(lane_send_begin(&lanes[LANE], 0), -EBUSY);
        ck_assert_int_eq(lanes[LANE].now->intent, LANE_INTENT_NONE);
        atomic_store(row_ticket(1, BOARD_LANES_MAX, 3), ticket_word(TICKET_REVOKED, 5, 0, 0));
        ck_assert_int_eq(lane_send_begin(&lanes[LANE], 0), 0);
        ck_assert_uint_eq(lanes[LANE].now->ticket, 3);
}
END_TEST

START_TEST(a_record_says_what_it_is_for) {
        LaneGeometry g;

        world_make(1);
        g = geometry_of(LANE);
        ck_assert(lane_record_is_valid(record_of(LANE), lane_record_bytes(&g)));
        ck_assert(!lane_record_is_valid(record_of(LANE), lane_record_bytes(&g) - 1));
        ck_assert(!lane_record_is_valid(record_of(LANE), sizeof(LaneRecord) - 1));
        ck_assert(lane_record_matches(record_of(LANE), &g));

        for (unsigned change = 0; change < 7; change++) {
                LaneGeometry other = g;

                switch (change) {
                case 0:
                        other.life++;
                        break;
                case 1:
                        other.lane++;
                        break;
                case 2:
                        other.stage = "another";
                        break;
                case 3:
                        other.input_bytes *= 2;
                        break;
                case 4:
                        other.n_outputs = 0;
                        break;
                case 5:
                        other.destinations[0].stage[0] = 'X';
                        break;
                default:
                        other.destinations[0].message_bytes *= 2;
                        break;
                }
                ck_assert_msg(!lane_record_matches(record_of(LANE), &other), "change %u", change);
        }
        record_of(LANE)->layout++;
        ck_assert(!lane_record_is_valid(record_of(LANE), lane_record_bytes(&g)));
        record_of(LANE)->layout--;
        record_of(LANE)->magic++;
        ck_assert(!lane_record_is_valid(record_of(LANE), lane_record_bytes(&g)));
}
END_TEST

START_TEST(buffers_of_a_record_do_not_overlap) {
        LaneGeometry g = { .life = 1, .stage = "wide", .input_bytes = 1000, .n_outputs = LANE_OUTPUTS_MAX };
        LaneRecord r = {};
        uint64_t end;

        for (uint32_t i = 0; i < g.n_outputs; i++)
                g.destinations[i].message_bytes = 300 + i;
        lane_record_init(&r, &g);
        ck_assert_uint_ge(r.input_offset, sizeof(LaneRecord));
        end = r.input_offset + 1000;
        ck_assert_uint_ge(r.share_offset, end);
        end = r.share_offset + 1000;
        for (uint32_t i = 0; i < g.n_outputs; i++) {
                ck_assert_uint_ge(r.output_offsets[i], end);
                end = r.output_offsets[i] + g.destinations[i].message_bytes;
        }
        ck_assert_uint_ge(r.n_populate, end);
        ck_assert_uint_ge(r.memory_offset, r.n_populate);
        ck_assert_uint_ge(r.spill_offset, r.memory_offset);
        ck_assert_uint_eq(r.n_bytes, r.spill_offset + g.n_outputs * LANE_SPILL_BYTES);
        ck_assert_uint_eq(r.n_bytes, lane_record_bytes(&g));

        g.input_bytes = 0;
        lane_record_init(&r, &g);
        ck_assert_uint_ge(r.spill_offset, r.memory_offset + LANE_MEMORY_BYTES);
}
END_TEST

START_TEST(every_step_says_what_it_stores_and_what_a_resume_does) {
        for (int a = 0; a < _LANE_STEP_MAX; a++) {
                ck_assert_str_ne(lane_step_name((LaneStep)a), "");
                ck_assert_str_ne(lane_step_stored((LaneStep)a), "");
                ck_assert_str_ne(lane_step_resume((LaneStep)a), "");
                for (int b = 0; b < a; b++)
                        ck_assert_str_ne(lane_step_name((LaneStep)a), lane_step_name((LaneStep)b));
        }
}
END_TEST

int main(void) {
        Suite *suite = suite_create("lane");
        TCase *tables = tcase_create("tables");
        TCase *deaths = tcase_create("deaths");
        SRunner *runner;
        int n_failed;

        tcase_add_test(tables, a_frame_is_taken_only_if_its_ticket_is_open_or_ours);
        tcase_add_test(tables, without_a_message_nothing_is_taken_whatever_the_buffer_holds);
        tcase_add_test(tables, a_frame_without_ticket_is_taken_whatever_the_tickets_say);
        tcase_add_test(tables, a_ticket_that_the_board_does_not_have_is_refused);
        tcase_add_test(tables, an_open_send_does_what_its_ticket_says);
        tcase_add_test(tables, an_open_share_does_what_its_ticket_says);
        tcase_add_test(tables, an_open_ticket_is_not_stored_again);
        tcase_add_test(tables, a_refused_share_is_taken_back_unless_a_copy_was_taken);
        tcase_add_test(tables, a_shared_piece_keeps_every_id_whatever_it_followed);
        tcase_add_test(tables, a_share_without_a_free_ticket_changes_nothing);
        tcase_add_test(tables, a_raw_message_is_one_job_up_to_its_nul);
        tcase_add_test(tables, what_followed_a_frame_in_its_message_is_not_read_as_the_next);
        tcase_add_test(tables, an_empty_raw_message_is_told_from_none_by_the_priority);
        tcase_add_test(tables, a_raw_message_on_an_inner_queue_is_garbage);
        tcase_add_test(tables, a_client_can_submit_jobs_and_nothing_else);
        tcase_add_test(tables, on_an_inner_queue_the_key_is_asked_of_everything);
        tcase_add_test(tables, damaged_frames_are_counted_and_leave_nothing_behind);
        tcase_add_test(tables, what_a_client_sent_is_ours_once_it_is_shared);
        tcase_add_test(tables, a_sentinel_of_another_drain_stops_nobody);
        tcase_add_test(tables, a_sentinel_held_since_an_earlier_drain_stops_nobody_either);
        tcase_add_test(tables, a_death_while_running_is_an_attempt_unless_the_supervisor_went_first);
        tcase_add_test(tables, a_supervisors_death_while_nothing_ran_is_forgotten);
        tcase_add_test(tables, attempts_of_an_earlier_worker_add_to_those_in_the_frame);
        tcase_add_test(tables, a_new_record_repeats_no_sequence_of_the_old_one);
        tcase_add_test(tables, a_new_record_repeats_no_sequence_of_the_old_ones_shares);
        tcase_add_test(tables, a_send_without_a_free_ticket_changes_nothing);
        tcase_add_test(tables, a_record_says_what_it_is_for);
        tcase_add_test(tables, buffers_of_a_record_do_not_overlap);
        tcase_add_test(tables, every_step_says_what_it_stores_and_what_a_resume_does);
        suite_add_tcase(suite, tables);

        tcase_add_test(deaths, without_deaths_every_job_arrives_once);
        tcase_add_test(deaths, a_death_after_any_step_loses_and_repeats_nothing);
        tcase_add_test(deaths, another_death_at_any_step_of_the_resume_does_not_either);
        tcase_add_test(deaths, random_deaths_lose_and_repeat_nothing);
        tcase_add_test(deaths, a_death_at_any_instruction_loses_and_repeats_nothing);
        tcase_set_timeout(deaths, 120);
        suite_add_tcase(suite, deaths);

        runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
