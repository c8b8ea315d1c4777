#include "submit/submit.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sluice/sluice.h>

#include "ctl/lines.h"
#include "frame/frame.h"
#include "lane/lane.h"
#include "lane/memory.h"
#include "queue/queue.h"

#define DEPTH 4
#define FRAME_BYTES 512
#define NOBODY 65534

static mqd_t queue = -1;
static Submitter *submitter;
static char instance[64];
static char queue_name[SUBMIT_QUEUE_NAME_MAX];

static void set_up(void) {
        const QueueShape shape = { .depth = DEPTH, .message_bytes = FRAME_BYTES };

        ck_assert_int_eq(queue_create_anonymous(&shape, &queue), 0);
        ck_assert_int_eq(submitter_new(queue, 0, &submitter), 0);
        (void)snprintf(instance, sizeof(instance), "test-submit-%d", (int)getpid());
        ck_assert_int_eq(submit_queue_name(instance, queue_name), 0);
}

static void tear_down(void) {
        submitter_free(submitter);
        submitter = NULL;
        queue = close_fd(queue);
        (void)mq_unlink(queue_name);
}

/* A queue like a service's ingress, for opening by name. */
static mqd_t create_named_queue(mode_t mode) {
        const QueueShape shape = { .depth = DEPTH, .message_bytes = FRAME_BYTES };
        mqd_t named;

        ck_assert_int_eq(queue_create(queue_name, &shape, mode, &named), 0);
        return named;
}

/* The same, where only its name matters. */
static void create_queue(mode_t mode) {
        (void)close_fd(create_named_queue(mode));
}

/* ---- what came out ---- */

typedef struct Received {
        FrameHeader header;
        size_t length;
        unsigned priority;
        uint8_t frame[8192];
} Received;

static bool receive(mqd_t from, Received *ret) {
        ssize_t n = queue_try_receive(from, ret->frame, sizeof(ret->frame), &ret->priority);

        if (n == -EAGAIN)
                return false;
        ck_assert_int_gt(n, 0);
        ret->length = (size_t)n;
        ck_assert_int_eq(frame_decode(ret->frame, ret->length, &ret->header), 0);
        ck_assert_int_eq(frame_check_jobs(ret->frame, &ret->header), 0);
        ck_assert_uint_eq(ret->header.length, ret->length);
        return true;
}

/* The index-th job of a frame. */
static void job_at(const Received *r, uint32_t index, FrameJob *ret) {
        uint64_t id = r->header.base_id - 1;
        uint32_t offset = FRAME_HEADER_BYTES;

        ck_assert_uint_lt(index, r->header.count);
        for (uint32_t i = 0; i <= index; i++) {
                frame_job_read(r->frame, offset, id, i == 0, ret);
                id = ret->id;
                offset = ret->next;
        }
}

/* Bytes nobody could confuse with those of another job. */
static void fill(uint8_t *data, size_t size, uint64_t id) {
        for (size_t i = 0; i < size; i++)
                data[i] = (uint8_t)(id * 31 + i);
}

static void check_job(const FrameJob *job, uint64_t id, size_t size) {
        uint8_t expected[8192];

        fill(expected, size, id);
        ck_assert_uint_eq(job->id, id);
        ck_assert_uint_eq(job->size, size);
        ck_assert_mem_eq(job->data, expected, size);
        ck_assert_uint_eq(job->attempts, 0);
        ck_assert_uint_eq(job->credit, JOB_CREDIT_WHOLE);
}

static int add(uint64_t id, size_t size) {
        uint8_t data[8192] = {};

        fill(data, size, id);
        return submitter_try_add(submitter, data, size, id);
}

static void fill_queue(void) {
        uint64_t id = 1 << 20;

        for (int i = 0; i < DEPTH; i++) {
                ck_assert_int_eq(add(id++, 1), 0);
                ck_assert_int_eq(submitter_try_flush(submitter), 0);
        }
        ck_assert_int_eq(queue_depth(queue), DEPTH);
}

/* ---- frames ---- */

START_TEST(a_frame_is_a_clients_and_says_nothing_but_its_jobs) {
        Received a, b;

        ck_assert_int_eq(add(7, 3), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert_int_eq(add(8, 3), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);

        ck_assert(receive(queue, &a) && receive(queue, &b));
        ck_assert_uint_eq(a.header.kind, FRAME_JOBS);
        ck_assert_uint_eq(a.header.key, 0);
        ck_assert_uint_eq(a.header.ticket, FRAME_NO_TICKET);
        ck_assert_uint_eq(a.header.producer, 0);
        ck_assert_uint_eq(a.header.generation, 0);
        ck_assert_uint_eq(a.header.priority, FRAME_PRIORITY_DEFAULT);
        ck_assert_uint_eq(a.priority, FRAME_PRIORITY_DEFAULT);
        ck_assert_uint_gt(a.header.time_usec, 0);
        ck_assert_uint_ge(b.header.time_usec, a.header.time_usec);
        ck_assert_uint_ne(a.header.sequence, b.header.sequence);
}
END_TEST

START_TEST(two_submitters_begin_at_sequences_of_their_own) {
        _cleanup_(submitter_freep) Submitter *other = NULL;
        Received a, b;

        ck_assert_int_eq(submitter_new(queue, 0, &other), 0);
        ck_assert_int_eq(add(1, 1), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert_int_eq(submitter_add(other, "x", 1, 1), 0);
        ck_assert_int_eq(submitter_flush(other), 0);
        ck_assert(receive(queue, &a) && receive(queue, &b));
        ck_assert_uint_ne(a.header.sequence, b.header.sequence);
}
END_TEST

START_TEST(a_key_is_carried_by_every_frame) {
        _cleanup_(submitter_freep) Submitter *inside = NULL;
        Received r;

        ck_assert_int_eq(submitter_new(queue, 0x0123456789abcdef, &inside), 0);
        for (int i = 0; i < 2; i++) {
                ck_assert_int_eq(submitter_add(inside, "x", 1, (uint64_t)i), 0);
                ck_assert_int_eq(submitter_flush(inside), 0);
                ck_assert(receive(queue, &r));
                ck_assert_uint_eq(r.header.key, 0x0123456789abcdef);
        }
}
END_TEST

START_TEST(jobs_come_out_as_they_went_in_and_in_order) {
        uint64_t added = 0, taken = 0, jobs = 5000;
        Received r;

        while (taken < jobs) {
                /* 13 is coprime to the sizes' range, so each size meets each place in a frame. */
                int result = added < jobs ? add(added, added * 13 % 120) : submitter_try_flush(submitter);

                if (result == 0 && added < jobs) {
                        added++;
                        continue;
                }
                ck_assert(result == 0 || result == SUBMIT_E_AGAIN);
                while (receive(queue, &r)) {
                        for (uint32_t i = 0; i < r.header.count; i++, taken++) {
                                FrameJob job;

                                job_at(&r, i, &job);
                                check_job(&job, taken, taken * 13 % 120);
                        }
                }
        }
        ck_assert_uint_eq(taken, jobs);
        ck_assert_uint_eq(submitter_n_sent(submitter), jobs);
        ck_assert_uint_eq(submitter_n_pending(submitter), 0);
        ck_assert(!receive(queue, &r));
}
END_TEST

START_TEST(nothing_is_sent_before_a_frame_is_full_or_flushed) {
        size_t room = FRAME_BYTES - FRAME_OVERHEAD_BYTES, jobs = room / (JOB_HEADER_BYTES + 4);
        Received r;

        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert_int_eq(queue_depth(queue), 0);
        for (size_t i = 0; i < jobs; i++)
                ck_assert_int_eq(add(i, 4), 0);
        ck_assert_int_eq(queue_depth(queue), 0);
        ck_assert_uint_eq(submitter_n_pending(submitter), jobs);
        ck_assert_uint_eq(submitter_n_sent(submitter), 0);

        ck_assert_int_eq(add(jobs, 4), 0);
        ck_assert_int_eq(queue_depth(queue), 1);
        ck_assert_uint_eq(submitter_n_pending(submitter), 1);
        ck_assert_uint_eq(submitter_n_sent(submitter), jobs);
        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.length, FRAME_BYTES);
        ck_assert_uint_eq(r.header.count, jobs);
}
END_TEST

/* ---- ids ---- */

START_TEST(ids_that_count_up_take_no_bytes) {
        Received r;

        for (uint64_t id = 100; id < 103; id++)
                ck_assert_int_eq(add(id, 5), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.header.base_id, 100);
        ck_assert_uint_eq(r.length, FRAME_OVERHEAD_BYTES + 3 * (JOB_HEADER_BYTES + 5));
}
END_TEST

START_TEST(ids_that_jump_are_kept) {
        static const uint64_t ids[] = { 100, 102, 103, 50, 50, UINT64_MAX, 0, 1 };
        Received r;

        for (size_t i = 0; i < ELEMENTSOF(ids); i++)
                ck_assert_int_eq(add(ids[i], 5), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.header.count, ELEMENTSOF(ids));
        for (uint32_t i = 0; i < ELEMENTSOF(ids); i++) {
                FrameJob job;

                job_at(&r, i, &job);
                check_job(&job, ids[i], 5);
        }
        /* 102, 50, 50 and UINT64_MAX do not follow from the job before. */
        ck_assert_uint_eq(r.length, FRAME_OVERHEAD_BYTES + ELEMENTSOF(ids) * (JOB_HEADER_BYTES + 5) + 4 * 12);
}
END_TEST

START_TEST(a_jump_into_a_new_frame_takes_no_bytes) {
        Received r;

        ck_assert_int_eq(add(1, 50), 0);
        ck_assert_int_eq(add(9, submitter_job_max(submitter)), 0); /* does not fit beside it */
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert(receive(queue, &r) && receive(queue, &r));
        ck_assert_uint_eq(r.header.base_id, 9);
        ck_assert_uint_eq(r.length, FRAME_OVERHEAD_BYTES + JOB_HEADER_BYTES + submitter_job_max(submitter));
}
END_TEST

START_TEST(clients_draw_different_ids_with_room_to_count) {
        uint64_t ids[16];

        for (size_t i = 0; i < ELEMENTSOF(ids); i++) {
                ck_assert_int_eq(submit_draw_id(&ids[i]), 0);
                ck_assert_uint_eq(ids[i] & UINT32_MAX, 0);
                ck_assert_uint_eq(ids[i] >> 63, 0);
        }
        for (size_t i = 1; i < ELEMENTSOF(ids); i++)
                if (ids[i] != ids[0])
                        return;
        ck_abort_msg("16 times the same id");
}
END_TEST

START_TEST(a_job_that_failed_before_it_was_submitted_leaves_a_note_in_its_place) {
        char text[2 * SUBMIT_NOTE_MAX];
        Received r;
        FrameJob job;

        memset(text, 'x', sizeof(text) - 1);
        text[sizeof(text) - 1] = '\0';
        ck_assert_int_eq(add(1, 5), 0);
        ck_assert_int_eq(submitter_add_failed(submitter, "too large", 2), 0);
        ck_assert_int_eq(add(3, 5), 0);
        ck_assert_int_eq(submitter_add_failed(submitter, text, 4), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);

        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.header.count, 4);
        job_at(&r, 1, &job);
        ck_assert_uint_eq(job.id, 2);
        ck_assert_uint_eq(job.flags, JOB_MARKER);
        ck_assert_uint_eq(job.size, 1 + strlen("too large"));
        ck_assert_uint_eq(job.data[0], JOB_MARKER_FAILED);
        ck_assert_mem_eq(job.data + 1, "too large", strlen("too large"));
        job_at(&r, 2, &job);
        check_job(&job, 3, 5);
        job_at(&r, 3, &job);
        ck_assert_uint_eq(job.id, 4);
        ck_assert_uint_eq(job.size, SUBMIT_NOTE_MAX - 1);
        ck_assert_mem_eq(job.data + 1, text, SUBMIT_NOTE_MAX - 2);
}
END_TEST

/* ---- sizes ---- */

START_TEST(every_size_is_taken_up_to_the_limit_and_none_beyond) {
        size_t max = submitter_job_max(submitter);
        Received r;

        ck_assert_uint_eq(max, frame_payload_max(FRAME_BYTES));
        for (size_t size = 0; size <= max; size++) {
                FrameJob job;

                ck_assert_int_eq(add(size, size), 0);
                ck_assert_int_eq(submitter_try_flush(submitter), 0);
                ck_assert(receive(queue, &r));
                ck_assert_uint_eq(r.header.count, 1);
                job_at(&r, 0, &job);
                check_job(&job, size, size);
        }
        for (size_t size = max + 1; size <= FRAME_BYTES + 1; size++)
                ck_assert_int_eq(add(size, size), SUBMIT_E_TOO_LARGE);
        ck_assert_int_eq(submitter_add(submitter, "", SIZE_MAX, 0), SUBMIT_E_TOO_LARGE);
        ck_assert_uint_eq(submitter_n_pending(submitter), 0);
        ck_assert_int_eq(queue_depth(queue), 0);
}
END_TEST

/* A pair shares a frame exactly if it fits, down to the last byte, with an extended header or without. */
START_TEST(a_frame_is_filled_to_its_last_byte_and_not_beyond) {
        size_t max = submitter_job_max(submitter), room = FRAME_BYTES - FRAME_OVERHEAD_BYTES;

        for (size_t first = 0; first <= max; first++) {
                for (unsigned jump = 0; jump <= 1; jump++) {
                        size_t header = JOB_HEADER_BYTES + (jump ? 12 : 0);
                        size_t used = JOB_HEADER_BYTES + first + header;
                        size_t fitting = used < room ? room - used : 0;

                        for (size_t second = fitting > 2 ? fitting - 2 : 0;
                             second <= fitting + 2 && second <= max; second++) {
                                uint32_t frames = 0, jobs = 0;
                                Received r;

                                ck_assert_int_eq(add(1, first), 0);
                                ck_assert_int_eq(add(2 + jump, second), 0);
                                ck_assert_int_eq(submitter_try_flush(submitter), 0);
                                while (receive(queue, &r)) {
                                        frames++;
                                        jobs += r.header.count;
                                }
                                ck_assert_uint_eq(jobs, 2);
                                ck_assert_msg(frames == (used + second <= room ? 1 : 2),
                                              "%zu and %zu bytes: %u frames", first, second, frames);
                        }
                }
        }
}
END_TEST

START_TEST(a_job_too_large_leaves_the_frame_as_it_was) {
        Received r;
        FrameJob job;

        ck_assert_int_eq(add(1, 5), 0);
        ck_assert_int_eq(add(2, submitter_job_max(submitter) + 1), SUBMIT_E_TOO_LARGE);
        ck_assert_int_eq(add(2, 5), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.header.count, 2);
        job_at(&r, 1, &job);
        check_job(&job, 2, 5);
}
END_TEST

START_TEST(a_queue_of_messages_too_small_for_frames_is_refused) {
        const QueueShape small = { .depth = 2, .message_bytes = FRAME_MIN_BYTES - 1 };
        const QueueShape smallest = { .depth = 2, .message_bytes = FRAME_MIN_BYTES };
        _cleanup_close_ int refused = -1, taken = -1;
        _cleanup_(submitter_freep) Submitter *s = NULL;

        ck_assert_int_eq(queue_create_anonymous(&small, &refused), 0);
        ck_assert_int_eq(submitter_new(refused, 0, &s), SUBMIT_E_UNSUITABLE);
        ck_assert_ptr_null(s);

        ck_assert_int_eq(queue_create_anonymous(&smallest, &taken), 0);
        ck_assert_int_eq(submitter_new(taken, 0, &s), 0);
        ck_assert_int_eq(submitter_add(s, "job", 3, 1), 0);
}
END_TEST

/* ---- a full queue ---- */

START_TEST(a_full_queue_refuses_and_keeps_the_frame) {
        uint32_t pending;
        Received r;
        FrameJob job;

        fill_queue();
        ck_assert_int_eq(add(1, 100), 0);
        ck_assert_int_eq(submitter_try_flush(submitter), SUBMIT_E_AGAIN);
        ck_assert_int_eq(add(2, 300), 0);
        pending = submitter_n_pending(submitter);
        ck_assert_uint_eq(pending, 2);
        for (int i = 0; i < 3; i++) {
                ck_assert_int_eq(add(3, 100), SUBMIT_E_AGAIN); /* needs a new frame */
                ck_assert_uint_eq(submitter_n_pending(submitter), pending);
                ck_assert_uint_eq(submitter_n_sent(submitter), DEPTH);
        }

        ck_assert(receive(queue, &r));
        ck_assert_int_eq(add(3, 100), 0);
        ck_assert_uint_eq(submitter_n_sent(submitter), DEPTH + 2);
        for (int i = 1; i < DEPTH; i++)
                ck_assert(receive(queue, &r));
        ck_assert_int_eq(submitter_try_flush(submitter), 0);

        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.header.count, 2);
        job_at(&r, 0, &job);
        check_job(&job, 1, 100);
        job_at(&r, 1, &job);
        check_job(&job, 2, 300);
        ck_assert(receive(queue, &r));
        ck_assert_uint_eq(r.header.count, 1);
        job_at(&r, 0, &job);
        check_job(&job, 3, 100);
        ck_assert(!receive(queue, &r));
}
END_TEST

typedef struct Pelting {
        pthread_t target;
        atomic_bool done;
} Pelting;

static atomic_uint n_signals;

static void on_signal(int sig) {
        atomic_fetch_add(&n_signals, 1);
}

static void catch_signals(void) {
        const struct sigaction action = { .sa_handler = on_signal }; /* no SA_RESTART */

        ck_assert_int_eq(sigaction(SIGUSR1, &action, NULL), 0);
}

/* A signal that comes before the target sleeps in the kernel is no interruption: send until told that one was. */
static void *pelt(void *userdata) {
        Pelting *p = userdata;

        while (!atomic_load(&p->done)) {
                (void)pthread_kill(p->target, SIGUSR1);
                (void)usleep(1000);
        }
        return NULL;
}

static void pelt_begin(Pelting *p, pthread_t *ret_thread) {
        catch_signals();
        *p = (Pelting){ .target = pthread_self() };
        ck_assert_int_eq(pthread_create(ret_thread, NULL, pelt, p), 0);
}

static void pelt_end(Pelting *p, pthread_t thread) {
        atomic_store(&p->done, true);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
}

START_TEST(a_signal_ends_the_waiting_and_loses_nothing) {
        size_t max = submitter_job_max(submitter);
        uint8_t data[FRAME_BYTES];
        pthread_t thread;
        Pelting pelting;
        Received r;
        FrameJob job;

        fill_queue();
        ck_assert_int_eq(add(1, max), 0);
        fill(data, sizeof(data), 2);

        pelt_begin(&pelting, &thread);
        ck_assert_int_eq(submitter_flush(submitter), -EINTR);
        ck_assert_int_eq(submitter_add(submitter, data, 200, 2), -EINTR);
        pelt_end(&pelting, thread);

        ck_assert_uint_eq(submitter_n_pending(submitter), 1);
        ck_assert_uint_eq(submitter_n_sent(submitter), DEPTH);
        while (receive(queue, &r))
                ck_assert_uint_eq(r.header.count, 1);
        ck_assert_int_eq(submitter_add(submitter, data, 200, 2), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);

        ck_assert(receive(queue, &r));
        job_at(&r, 0, &job);
        check_job(&job, 1, max);
        ck_assert(receive(queue, &r));
        job_at(&r, 0, &job);
        check_job(&job, 2, 200);
        ck_assert(!receive(queue, &r));
}
END_TEST

static void *take_one(void *userdata) {
        Received *r = userdata;

        ck_assert_int_gt(queue_receive(queue, r->frame, sizeof(r->frame), &r->priority), 0);
        return NULL;
}

START_TEST(a_full_queue_is_waited_for) {
        pthread_t thread;
        Received r;

        fill_queue();
        ck_assert_int_eq(add(1, 1), 0);
        ck_assert_int_eq(submitter_try_flush(submitter), SUBMIT_E_AGAIN);
        ck_assert_int_eq(pthread_create(&thread, NULL, take_one, &r), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
        ck_assert_int_eq(queue_depth(queue), DEPTH);
}
END_TEST

/* ---- the receiver ---- */

typedef struct Receiver {
        Memory record, board;
        Lane lane;
} Receiver;

#define KEY 0x5eedULL

static void receiver_init(Receiver *r, bool client_writable) {
        const LaneGeometry geometry = { .life = 1, .stage = "first", .input_bytes = FRAME_BYTES };

        ck_assert_int_eq(memory_create_anonymous("board", board_bytes(DEPTH), &r->board), 0);
        board_init((Board *)(void *)r->board.data, 1, KEY, DEPTH, FRAME_BYTES, client_writable, "first");
        ck_assert_int_eq(memory_create_anonymous("lane", lane_record_bytes(&geometry), &r->record), 0);
        lane_record_init((LaneRecord *)(void *)r->record.data, &geometry);

        const LaneBoards boards = { .input = (Board *)(void *)r->board.data };

        lane_attach(&r->lane, (LaneRecord *)(void *)r->record.data, &boards);
}

static void receiver_done(Receiver *r) {
        memory_done(&r->record);
        memory_done(&r->board);
}

static LaneMessage receiver_take(Receiver *r) {
        lane_receive_begin(&r->lane);
        ck_assert_int_gt(queue_try_receive(queue, r->lane.input, FRAME_BYTES, &r->lane.record->priority), 0);
        return lane_receive_end(&r->lane);
}

START_TEST(an_ingress_lane_takes_a_clients_jobs) {
        Receiver receiver;

        receiver_init(&receiver, true);
        ck_assert_int_eq(add(7, 20), 0);
        ck_assert_int_eq(add(11, 30), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert_int_eq(receiver_take(&receiver), LANE_MESSAGE_JOBS);

        static const struct {
                uint64_t id;
                size_t size;
        } expected[] = { { 7, 20 }, { 11, 30 } };

        for (size_t i = 0; i < ELEMENTSOF(expected); i++) {
                FrameJob job;

                ck_assert(lane_has_job(&receiver.lane));
                lane_job(&receiver.lane, &job);
                check_job(&job, expected[i].id, expected[i].size);
                lane_step_past(lane_edit(&receiver.lane), &job);
                lane_flip(&receiver.lane);
        }
        ck_assert(!lane_has_job(&receiver.lane));
        receiver_done(&receiver);
}
END_TEST

START_TEST(a_private_queues_lane_takes_frames_with_its_key_only) {
        _cleanup_(submitter_freep) Submitter *inside = NULL;
        Receiver receiver;

        receiver_init(&receiver, false);
        ck_assert_int_eq(add(1, 1), 0);
        ck_assert_int_eq(submitter_flush(submitter), 0);
        ck_assert_int_eq(receiver_take(&receiver), LANE_MESSAGE_GARBAGE);

        ck_assert_int_eq(submitter_new(queue, KEY, &inside), 0);
        ck_assert_int_eq(submitter_add(inside, "x", 1, 1), 0);
        ck_assert_int_eq(submitter_flush(inside), 0);
        ck_assert_int_eq(receiver_take(&receiver), LANE_MESSAGE_JOBS);
        receiver_done(&receiver);
}
END_TEST

/* ---- opening ---- */

START_TEST(an_instance_without_a_queue_is_absent) {
        mqd_t opened = -1;

        ck_assert_int_eq(submit_open(instance, &opened), SUBMIT_E_ABSENT);
        ck_assert_int_eq(opened, -1);
}
END_TEST

START_TEST(what_cannot_be_a_name_is_refused) {
        static const char *const names[] = { "", "-x", "A", "a.b", "../a", "a/b", "a b" };
        char long_name[80];
        mqd_t opened = -1;

        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                ck_assert_int_eq(submit_open(names[i], &opened), -EINVAL);
        memset(long_name, 'a', sizeof(long_name) - 1);
        long_name[sizeof(long_name) - 1] = '\0';
        ck_assert_int_eq(submit_open(long_name, &opened), -EINVAL);
        ck_assert_int_eq(opened, -1);
}
END_TEST

START_TEST(a_service_queue_is_opened_for_writing_only) {
        _cleanup_close_ int opened = -1;

        create_queue(0620);

        ck_assert_int_eq(submit_open(instance, &opened), 0);
        ck_assert_int_eq(fcntl(opened, F_GETFL) & O_ACCMODE, O_WRONLY);
        ck_assert_int_eq(fcntl(opened, F_GETFL) & O_NONBLOCK, 0);
        ck_assert_int_eq(fcntl(opened, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}
END_TEST

START_TEST(a_queue_open_to_everybody_is_not_a_services) {
        static const mode_t modes[] = { 0622, 0626, 0604, 0601 };

        for (size_t i = 0; i < ELEMENTSOF(modes); i++) {
                mqd_t opened = -1;

                create_queue(modes[i]);

                ck_assert_int_eq(submit_open(instance, &opened), SUBMIT_E_UNSUITABLE);
                ck_assert_int_eq(opened, -1);
                ck_assert_int_eq(mq_unlink(queue_name), 0);
        }
}
END_TEST

START_TEST(a_queue_that_is_not_for_this_user_is_denied) {
        int status;
        pid_t pid;

        /* Root may open anything, so it becomes nobody; others lock themselves out. */
        create_queue(geteuid() == 0 ? 0600 : 0000);
        pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                mqd_t opened;

                if (geteuid() == 0 && setresuid(NOBODY, NOBODY, NOBODY) < 0)
                        _exit(100);
                _exit(submit_open(instance, &opened));
        }
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), SUBMIT_E_DENIED);
}
END_TEST

/* ---- the library ---- */

START_TEST(a_client_submits_jobs_under_consecutive_ids) {
        _cleanup_close_ int named = create_named_queue(0620);
        SluiceClient *client;
        uint64_t first, second;
        Received r;
        FrameJob job;

        ck_assert_int_eq(sluice_open(instance, &client), 0);
        ck_assert_uint_eq(sluice_job_max(client), frame_payload_max(FRAME_BYTES));
        ck_assert_int_eq(sluice_submit(client, "one", 3, &first), 0);
        ck_assert_int_eq(sluice_submit(client, "", 500, NULL), SLUICE_E_TOO_LARGE);
        ck_assert_int_eq(sluice_try_submit(client, "three", 5, &second), 0);
        ck_assert_uint_eq(second, first + 1);
        ck_assert_uint_eq(sluice_accepted(client), 0);
        ck_assert_int_eq(sluice_flush(client), 0);
        ck_assert_uint_eq(sluice_accepted(client), 2);

        ck_assert(receive(named, &r));
        ck_assert_uint_eq(r.header.count, 2);
        job_at(&r, 0, &job);
        ck_assert_uint_eq(job.id, first);
        ck_assert_mem_eq(job.data, "one", 3);
        job_at(&r, 1, &job);
        ck_assert_uint_eq(job.id, second);
        ck_assert_mem_eq(job.data, "three", 5);
        ck_assert_int_eq(sluice_close(client), 0);
}
END_TEST

START_TEST(closing_a_client_sends_what_is_left_and_abandoning_does_not) {
        _cleanup_close_ int named = create_named_queue(0620);
        SluiceClient *client;
        Received r;

        ck_assert_int_eq(sluice_open(instance, &client), 0);
        ck_assert_int_eq(sluice_submit(client, "left", 4, NULL), 0);
        sluice_abandon(client);
        ck_assert(!receive(named, &r));

        ck_assert_int_eq(sluice_open(instance, &client), 0);
        ck_assert_int_eq(sluice_submit(client, "sent", 4, NULL), 0);
        ck_assert_int_eq(sluice_close(client), 0);
        ck_assert(receive(named, &r));
        ck_assert_int_eq(sluice_close(NULL), 0);
        sluice_abandon(NULL);
}
END_TEST

START_TEST(a_client_that_does_not_wait_is_told) {
        _cleanup_close_ int named = create_named_queue(0620);
        SluiceClient *client;
        Received r;

        ck_assert_int_eq(sluice_open(instance, &client), 0);
        for (int i = 0; i < DEPTH; i++) {
                ck_assert_int_eq(sluice_try_submit(client, "x", 1, NULL), 0);
                ck_assert_int_eq(sluice_try_flush(client), 0);
        }
        ck_assert_int_eq(sluice_try_submit(client, "x", 1, NULL), 0);
        ck_assert_int_eq(sluice_try_flush(client), SLUICE_E_AGAIN);
        ck_assert(receive(named, &r));
        ck_assert_int_eq(sluice_try_flush(client), 0);
        ck_assert_int_eq(sluice_close(client), 0);
}
END_TEST

START_TEST(what_went_wrong_has_words) {
        SluiceClient *client = NULL;

        ck_assert_int_eq(sluice_open(instance, &client), SLUICE_E_ABSENT);
        ck_assert_int_eq(sluice_open("No Name", &client), -EINVAL);
        ck_assert_ptr_null(client);
        for (int error = SLUICE_E_TOO_LARGE; error <= SLUICE_E_UNSUITABLE; error++)
                ck_assert_str_ne(sluice_error_text(error), sluice_error_text(SLUICE_E_UNSUITABLE + 1));
        ck_assert_str_eq(sluice_error_text(-EINVAL), strerror(EINVAL));
}
END_TEST

/* ---- lines ---- */

static Lines *lines_on(int fd, char delimiter, int stop_fd, size_t line_max) {
        const LinesOptions options = { .delimiter = delimiter,
                                       .stop_fd = stop_fd,
                                       .line_max_bytes = line_max };
        Lines *lines;

        ck_assert_int_eq(lines_new(fd, &options, &lines), 0);
        return lines;
}

/* A file with these bytes, to be read from its start. */
static int file_of(const void *data, size_t size) {
        int fd = memfd_create("lines", MFD_CLOEXEC);

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, data, size), (ssize_t)size);
        ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
        return fd;
}

static void expect_line(Lines *lines, const char *text, size_t size) {
        uint64_t number = lines_number(lines) + 1;
        Line line;

        ck_assert_int_eq(lines_next(lines, &line), 0);
        ck_assert_uint_eq(line.size, size);
        ck_assert_mem_eq(line.data, text, size);
        ck_assert_uint_eq(line.number, number);
        ck_assert_uint_eq(lines_number(lines), number);
}

static void expect_end(Lines *lines) {
        Line line;

        for (int i = 0; i < 2; i++) {
                ck_assert(lines_ready(lines) || i == 0);
                ck_assert_int_eq(lines_next(lines, &line), LINES_E_END);
        }
}

#define EXPECT_LINE(lines, text) expect_line((lines), (text), sizeof(text) - 1)

START_TEST(lines_are_split_at_newlines_and_nothing_else) {
        static const char text[] = "one\n\ntwo \r\n\0three\n \nlast";
        _cleanup_close_ int fd = file_of(text, sizeof(text) - 1);
        _cleanup_(lines_freep) Lines *lines = lines_on(fd, '\n', -1, 0);

        EXPECT_LINE(lines, "one");
        EXPECT_LINE(lines, "");
        EXPECT_LINE(lines, "two \r");
        EXPECT_LINE(lines, "\0three");
        EXPECT_LINE(lines, " ");
        EXPECT_LINE(lines, "last");
        expect_end(lines);
}
END_TEST

START_TEST(records_are_split_at_nuls_and_nothing_else) {
        static const char text[] = "one\ntwo\0\0three"; /* and the NUL of the string */
        _cleanup_close_ int fd = file_of(text, sizeof(text));
        _cleanup_(lines_freep) Lines *lines = lines_on(fd, '\0', -1, 0);

        EXPECT_LINE(lines, "one\ntwo");
        EXPECT_LINE(lines, "");
        EXPECT_LINE(lines, "three");
        expect_end(lines);
}
END_TEST

START_TEST(a_last_newline_begins_no_line) {
        _cleanup_close_ int with = file_of("a\nb\n", 4), without = file_of("a\nb", 3);
        const int fds[] = { with, without };

        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                _cleanup_(lines_freep) Lines *lines = lines_on(fds[i], '\n', -1, 0);

                EXPECT_LINE(lines, "a");
                EXPECT_LINE(lines, "b");
                expect_end(lines);
        }
}
END_TEST

START_TEST(no_input_is_no_line) {
        _cleanup_close_ int fd = file_of("", 0);
        _cleanup_(lines_freep) Lines *lines = lines_on(fd, '\n', -1, 0);

        ck_assert_uint_eq(lines_number(lines), 0);
        expect_end(lines);
        ck_assert_uint_eq(lines_number(lines), 0);
}
END_TEST

static void make_pipe(int *ret_read, int *ret_write) {
        int fds[2];

        ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
        *ret_read = fds[0];
        *ret_write = fds[1];
}

static void put(int fd, const char *text) {
        ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

START_TEST(ready_says_whether_a_whole_line_is_here) {
        _cleanup_close_ int in = -1, out = -1;
        _cleanup_(lines_freep) Lines *lines = NULL;

        make_pipe(&in, &out);
        lines = lines_on(in, '\n', -1, 0);
        ck_assert(!lines_ready(lines)); /* it reads nothing by itself */
        put(out, "one\ntwo\nthr");
        ck_assert(!lines_ready(lines));
        EXPECT_LINE(lines, "one");
        ck_assert(lines_ready(lines));
        EXPECT_LINE(lines, "two");
        ck_assert(!lines_ready(lines));
        put(out, "ee\nfour");
        EXPECT_LINE(lines, "three");
        ck_assert(!lines_ready(lines));
        out = close_fd(out);
        EXPECT_LINE(lines, "four");
        expect_end(lines);
}
END_TEST

START_TEST(long_lines_are_whole) {
        static const size_t sizes[] = { LINES_BUFFER_BYTES - 1,
                                        LINES_BUFFER_BYTES,
                                        LINES_BUFFER_BYTES + 1,
                                        1,
                                        4 * LINES_BUFFER_BYTES - 1,
                                        5 * LINES_BUFFER_BYTES,
                                        0,
                                        LINES_BUFFER_BYTES - 2 };
        _cleanup_close_ int fd = memfd_create("lines", MFD_CLOEXEC);
        _cleanup_free_ char *text = malloc(5 * LINES_BUFFER_BYTES + 1);
        _cleanup_(lines_freep) Lines *lines = NULL;

        ck_assert_ptr_nonnull(text);
        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                memset(text, 'a' + (int)i, sizes[i]);
                text[sizes[i]] = '\n';
                ck_assert_int_eq(write(fd, text, sizes[i] + 1), (ssize_t)sizes[i] + 1);
        }
        ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);

        lines = lines_on(fd, '\n', -1, 0);
        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                memset(text, 'a' + (int)i, sizes[i]);
                expect_line(lines, text, sizes[i]);
        }
        expect_end(lines);
}
END_TEST

static void expect_too_long(Lines *lines, uint64_t number) {
        Line line = { .number = UINT64_MAX };

        ck_assert_int_eq(lines_next(lines, &line), LINES_E_TOO_LONG);
        ck_assert_uint_eq(line.number, UINT64_MAX);
        ck_assert_uint_eq(lines_number(lines), number);
}

START_TEST(a_line_beyond_the_limit_is_named_and_passed_over) {
        static const char text[] = "12345678\n123456789\nshort\n1234567890123456789";
        _cleanup_close_ int fd = file_of(text, sizeof(text) - 1);
        _cleanup_(lines_freep) Lines *lines = lines_on(fd, '\n', -1, 8);

        EXPECT_LINE(lines, "12345678");
        expect_too_long(lines, 2);
        EXPECT_LINE(lines, "short");
        expect_too_long(lines, 4);
        expect_end(lines);
}
END_TEST

START_TEST(the_rest_of_a_line_that_is_passed_over_may_come_later) {
        _cleanup_close_ int in = -1, out = -1;
        _cleanup_(lines_freep) Lines *lines = NULL;

        make_pipe(&in, &out);
        lines = lines_on(in, '\n', -1, 8);
        put(out, "ok\n1234567890");
        EXPECT_LINE(lines, "ok");
        ck_assert(lines_ready(lines)); /* with the refusal */
        expect_too_long(lines, 2);
        ck_assert(!lines_ready(lines));
        put(out, "1234567890");
        put(out, "123\nthree\n");
        EXPECT_LINE(lines, "three");
        put(out, "1234567890");
        expect_too_long(lines, 4);
        out = close_fd(out);
        expect_end(lines);
}
END_TEST

START_TEST(stop_is_seen_where_reading_would_wait) {
        _cleanup_close_ int in = -1, out = -1, stop = eventfd(0, EFD_CLOEXEC);
        _cleanup_(lines_freep) Lines *lines = NULL;
        uint64_t value;
        Line line;

        make_pipe(&in, &out);
        lines = lines_on(in, '\n', stop, 0);
        put(out, "one\ntwo\nthr");
        EXPECT_LINE(lines, "one");

        ck_assert_int_eq(eventfd_write(stop, 1), 0);
        EXPECT_LINE(lines, "two"); /* it is here */
        ck_assert_int_eq(lines_next(lines, &line), LINES_E_STOP);
        ck_assert_int_eq(lines_next(lines, &line), LINES_E_STOP);

        ck_assert_int_eq(eventfd_read(stop, &value), 0);
        put(out, "ee\n");
        EXPECT_LINE(lines, "three");
}
END_TEST

static void *stop_reading(void *userdata) {
        ck_assert_int_eq(eventfd_write(*(int *)userdata, 1), 0);
        return NULL;
}

START_TEST(stop_ends_a_wait_for_input) {
        _cleanup_close_ int in = -1, out = -1, stop = eventfd(0, EFD_CLOEXEC);
        _cleanup_(lines_freep) Lines *lines = NULL;
        pthread_t thread;
        Line line;

        make_pipe(&in, &out);
        lines = lines_on(in, '\n', stop, 0);
        ck_assert_int_eq(pthread_create(&thread, NULL, stop_reading, &stop), 0);
        ck_assert_int_eq(lines_next(lines, &line), LINES_E_STOP);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
}
END_TEST

typedef struct Writing {
        int fd;
        pthread_t reader;
} Writing;

/* Interrupts the reader some times, then lets it have its line. */
static void *interrupt_then_write(void *userdata) {
        Writing *w = userdata;

        atomic_store(&n_signals, 0);
        while (atomic_load(&n_signals) < 20) {
                (void)pthread_kill(w->reader, SIGUSR1);
                (void)usleep(500);
        }
        put(w->fd, "line\n");
        return NULL;
}

START_TEST(signals_do_not_end_a_wait_for_input) {
        _cleanup_close_ int stop = eventfd(0, EFD_CLOEXEC);
        const int stop_fds[] = { -1, stop };

        catch_signals();
        for (size_t i = 0; i < 2 * ELEMENTSOF(stop_fds); i++) {
                _cleanup_close_ int in = -1, out = -1;
                _cleanup_(lines_freep) Lines *lines = NULL;
                pthread_t thread;

                make_pipe(&in, &out);
                if (i % 2)
                        ck_assert_int_eq(fcntl(in, F_SETFL, O_NONBLOCK), 0);
                lines = lines_on(in, '\n', stop_fds[i / 2], 0);

                Writing writing = { .fd = out, .reader = pthread_self() };

                ck_assert_int_eq(pthread_create(&thread, NULL, interrupt_then_write, &writing), 0);
                EXPECT_LINE(lines, "line");
                ck_assert_int_eq(pthread_join(thread, NULL), 0);
        }
}
END_TEST

START_TEST(a_read_that_fails_is_reported) {
        _cleanup_close_ int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        _cleanup_(lines_freep) Lines *lines = lines_on(fd, '\n', -1, 0);
        Line line;

        ck_assert_int_eq(lines_next(lines, &line), -EISDIR);
}
END_TEST

/*
 * Any text through a pipe in pieces of any size comes out as it would by
 * splitting it whole; and lines_ready() is true exactly if lines_next() does
 * not read, seen by a stop descriptor that is always readable.
 */
START_TEST(pieces_of_any_size_make_the_same_lines) {
        enum { TEXT_BYTES = 20000, LINE_MAX_BYTES = 60 };
        _cleanup_close_ int stop = eventfd(1, EFD_CLOEXEC);
        unsigned seed = (unsigned)_i + 1;
        char text[TEXT_BYTES];

        for (size_t i = 0; i < sizeof(text); i++)
                text[i] = rand_r(&seed) % 25 == 0 ? '\n' : (char)('a' + rand_r(&seed) % 26);

        _cleanup_close_ int in = -1, out = -1;
        _cleanup_(lines_freep) Lines *lines = NULL;
        size_t fed = 0, at = 0;
        uint64_t value, number = 0;

        make_pipe(&in, &out);
        lines = lines_on(in, '\n', stop, LINE_MAX_BYTES);
        while (at < sizeof(text)) {
                const char *end = memchr(text + at, '\n', sizeof(text) - at) ?: text + sizeof(text);
                size_t size = (size_t)(end - (text + at)), next = at + size + 1;
                bool ready;
                Line line;
                int r;

                ready = lines_ready(lines);
                r = lines_next(lines, &line);
                ck_assert_msg(ready == (r != LINES_E_STOP), "seed %d: ready %d, then %d", _i + 1, ready, r);
                if (r == LINES_E_STOP) {
                        /* Let it read, up to the end of this line at least, so that it cannot wait for more. */
                        while (fed < sizeof(text) && fed < next) {
                                size_t piece = 1 + (size_t)rand_r(&seed) % 90;

                                piece = MIN(piece, sizeof(text) - fed);

                                ck_assert_int_eq(write(out, text + fed, piece), (ssize_t)piece);
                                fed += piece;
                        }
                        if (fed == sizeof(text))
                                out = close_fd(out);
                        ck_assert_int_eq(eventfd_read(stop, &value), 0);
                        r = lines_next(lines, &line);
                        ck_assert_int_eq(eventfd_write(stop, 1), 0);
                }

                number++;
                ck_assert_uint_eq(lines_number(lines), number);
                if (size > LINE_MAX_BYTES)
                        ck_assert_int_eq(r, LINES_E_TOO_LONG);
                else {
                        ck_assert_int_eq(r, 0);
                        ck_assert_uint_eq(line.size, size);
                        ck_assert_mem_eq(line.data, text + at, size);
                }
                at = next;
        }
        ck_assert_int_eq(eventfd_read(stop, &value), 0);
        expect_end(lines);
}
END_TEST

static TCase *new_case(Suite *suite, const char *name) {
        TCase *tc = tcase_create(name);

        suite_add_tcase(suite, tc);
        tcase_set_timeout(tc, 60);
        return tc;
}

static void add_submitter_tests(Suite *suite) {
        TCase *tc = new_case(suite, "submitter");

        tcase_add_checked_fixture(tc, set_up, tear_down);
        tcase_add_test(tc, a_frame_is_a_clients_and_says_nothing_but_its_jobs);
        tcase_add_test(tc, two_submitters_begin_at_sequences_of_their_own);
        tcase_add_test(tc, a_key_is_carried_by_every_frame);
        tcase_add_test(tc, jobs_come_out_as_they_went_in_and_in_order);
        tcase_add_test(tc, nothing_is_sent_before_a_frame_is_full_or_flushed);
        tcase_add_test(tc, ids_that_count_up_take_no_bytes);
        tcase_add_test(tc, ids_that_jump_are_kept);
        tcase_add_test(tc, a_jump_into_a_new_frame_takes_no_bytes);
        tcase_add_test(tc, a_job_that_failed_before_it_was_submitted_leaves_a_note_in_its_place);
        tcase_add_test(tc, clients_draw_different_ids_with_room_to_count);
        tcase_add_test(tc, every_size_is_taken_up_to_the_limit_and_none_beyond);
        tcase_add_test(tc, a_frame_is_filled_to_its_last_byte_and_not_beyond);
        tcase_add_test(tc, a_job_too_large_leaves_the_frame_as_it_was);
        tcase_add_test(tc, a_queue_of_messages_too_small_for_frames_is_refused);
        tcase_add_test(tc, a_full_queue_refuses_and_keeps_the_frame);
        tcase_add_test(tc, a_signal_ends_the_waiting_and_loses_nothing);
        tcase_add_test(tc, a_full_queue_is_waited_for);
        tcase_add_test(tc, an_ingress_lane_takes_a_clients_jobs);
        tcase_add_test(tc, a_private_queues_lane_takes_frames_with_its_key_only);
}

static void add_open_tests(Suite *suite) {
        TCase *tc = new_case(suite, "open");

        tcase_add_checked_fixture(tc, set_up, tear_down);
        tcase_add_test(tc, an_instance_without_a_queue_is_absent);
        tcase_add_test(tc, what_cannot_be_a_name_is_refused);
        tcase_add_test(tc, a_service_queue_is_opened_for_writing_only);
        tcase_add_test(tc, a_queue_open_to_everybody_is_not_a_services);
        tcase_add_test(tc, a_queue_that_is_not_for_this_user_is_denied);
        tcase_add_test(tc, a_client_submits_jobs_under_consecutive_ids);
        tcase_add_test(tc, closing_a_client_sends_what_is_left_and_abandoning_does_not);
        tcase_add_test(tc, a_client_that_does_not_wait_is_told);
        tcase_add_test(tc, what_went_wrong_has_words);
}

static void add_lines_tests(Suite *suite) {
        TCase *tc = new_case(suite, "lines");

        tcase_add_test(tc, lines_are_split_at_newlines_and_nothing_else);
        tcase_add_test(tc, records_are_split_at_nuls_and_nothing_else);
        tcase_add_test(tc, a_last_newline_begins_no_line);
        tcase_add_test(tc, no_input_is_no_line);
        tcase_add_test(tc, ready_says_whether_a_whole_line_is_here);
        tcase_add_test(tc, long_lines_are_whole);
        tcase_add_test(tc, a_line_beyond_the_limit_is_named_and_passed_over);
        tcase_add_test(tc, the_rest_of_a_line_that_is_passed_over_may_come_later);
        tcase_add_test(tc, stop_is_seen_where_reading_would_wait);
        tcase_add_test(tc, stop_ends_a_wait_for_input);
        tcase_add_test(tc, signals_do_not_end_a_wait_for_input);
        tcase_add_test(tc, a_read_that_fails_is_reported);
        tcase_add_loop_test(tc, pieces_of_any_size_make_the_same_lines, 0, 20);
}

int main(void) {
        Suite *suite = suite_create("submit");
        SRunner *runner;
        int n_failed;

        add_submitter_tests(suite);
        add_open_tests(suite);
        add_lines_tests(suite);
        runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
