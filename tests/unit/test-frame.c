/*
 * Frames: bytes in, header and jobs out, and back.
 *
 * The golden frames in tests/vectors/ were written by make-vectors.py from
 * the byte table, not by the code under test. SLUICE_TEST_VECTORS names their
 * folder, SLUICE_TEST_SEED repeats a run of the mutations.
 */

#include "frame/frame.h"

#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"

#define BUFFER_BYTES 8192

static const char *const vectors[] = {
        "example",     "empty-job", "client",  "same-id",  "first-same-id",
        "explicit-id", "extended",  "markers", "sentinel", "widest",
};

static uint64_t random_state;

static uint64_t random_next(void) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        return random_state;
}

static void *copy_of(const void *data, size_t n) {
        /* An exact-size heap copy lets ASan see a read past its end. */
        void *p = malloc(n ?: 1);

        ck_assert_ptr_nonnull(p);
        if (n > 0)
                memcpy(p, data, n);
        return p;
}

static size_t read_vector(const char *name, uint8_t *buffer) {
        const char *folder = getenv("SLUICE_TEST_VECTORS");
        _cleanup_fclose_ FILE *f = NULL;
        char path[4096];

        if (folder)
                (void)snprintf(path, sizeof(path), "%s/%s.frame", folder, name);
        else
                (void)snprintf(path, sizeof(path), "%.*s/../vectors/%s.frame",
                               (int)(strrchr(__FILE__, '/') - __FILE__), __FILE__, name);
        f = fopen(path, "re");
        ck_assert_msg(f, "cannot open %s", path);
        return fread(buffer, 1, BUFFER_BYTES, f);
}

/* Reads all jobs of a good frame; returns how many. */
static uint32_t read_jobs(const uint8_t *frame, const FrameHeader *header, FrameJob *jobs) {
        uint32_t offset = FRAME_HEADER_BYTES;
        uint64_t id = header->base_id - 1;

        for (uint32_t i = 0; i < header->count; i++) {
                frame_job_read(frame, offset, id, i == 0, &jobs[i]);
                offset = jobs[i].next;
                id = jobs[i].id;
        }
        ck_assert_uint_eq(offset, header->length - FRAME_TRAILER_BYTES);
        return header->count;
}

/* What job_write() has to be told to write the same bytes again. */
static JobSpec spec_of(const FrameJob *job, const uint8_t *frame) {
        JobSpec spec = {
                .data = job->data,
                .size = job->size,
                .attempts = job->attempts,
                .flags = job->flags & ~(uint32_t)JOB_EXTENDED,
                .id = job->id,
                .credit = job->credit,
                .time_usec = job->time_usec,
                .interruptions = job->interruptions,
        };

        if (job->flags & JOB_EXTENDED)
                spec.explicit_id = (load_u32(frame + job->offset + JOB_HEADER_BYTES) & JOB_EXT_ID) != 0;
        return spec;
}

static size_t seal_jobs(uint8_t *buffer, const FrameHeader *header, const JobSpec *jobs, uint32_t n) {
        FrameHeader h = *header;
        uint8_t *p = buffer + FRAME_HEADER_BYTES;

        h.count = n;
        for (uint32_t i = 0; i < n; i++) {
                uint8_t *next = job_write(p, &jobs[i]);

                ck_assert_uint_eq((size_t)(next - p), job_bytes(&jobs[i]));
                p = next;
        }
        return frame_seal(buffer, &h, (size_t)(p - buffer) - FRAME_HEADER_BYTES);
}

/* ---- golden frames ---- */

START_TEST(a_golden_frame_is_read_and_written_again_byte_for_byte) {
        uint8_t golden[BUFFER_BYTES], again[BUFFER_BYTES] = {};
        size_t n = read_vector(vectors[_i], golden), length;
        FrameHeader header;
        FrameJob jobs[16];
        JobSpec specs[16];

        ck_assert_int_eq(frame_decode(golden, n, &header), 0);
        ck_assert_int_eq(frame_check_jobs(golden, &header), 0);
        ck_assert_uint_eq(header.length, n);
        ck_assert_uint_le(header.count, 16);
        for (uint32_t i = 0, count = read_jobs(golden, &header, jobs); i < count; i++)
                specs[i] = spec_of(&jobs[i], golden);

        length = seal_jobs(again, &header, specs, header.count);
        ck_assert_uint_eq(length, n);
        ck_assert_mem_eq(again, golden, n);
}
END_TEST

START_TEST(the_worked_example_says_what_the_documentation_says) {
        static const uint8_t first_bytes[] = { 0x89, 'S', 'L', 'C', 1, 1, 16, 0 };
        uint8_t frame[BUFFER_BYTES];
        size_t n = read_vector("example", frame);
        FrameHeader h;
        FrameJob jobs[3];

        ck_assert_mem_eq(frame, first_bytes, sizeof(first_bytes));
        ck_assert_int_eq(frame_decode(frame, n, &h), 0);
        ck_assert_uint_eq(h.magic, FRAME_MAGIC);
        ck_assert_uint_eq(h.version, 1);
        ck_assert_uint_eq(h.kind, FRAME_JOBS);
        ck_assert_uint_eq(h.priority, 16);
        ck_assert_uint_eq(h.length, 89);
        ck_assert_uint_eq(h.count, 3);
        ck_assert_uint_eq(h.base_id, 40);
        ck_assert_uint_eq(h.time_usec, UINT64_C(1700000000000000));
        ck_assert_uint_eq(h.sequence, UINT64_C(0x0102030405));
        ck_assert_uint_eq(h.producer, 1026);
        ck_assert_uint_eq(h.ticket, 3);
        ck_assert_uint_eq(h.key, UINT64_C(0x1122334455667788));
        ck_assert_uint_eq(h.generation, 0);

        read_jobs(frame, &h, jobs);
        ck_assert_mem_eq(jobs[0].data, "7", 1);
        ck_assert_mem_eq(jobs[1].data, "11", 2);
        ck_assert_mem_eq(jobs[2].data, "13", 2);
        ck_assert_uint_eq(jobs[0].id, 40);
        ck_assert_uint_eq(jobs[2].id, 42);
        ck_assert_uint_eq(jobs[1].attempts, 0);
        ck_assert_uint_eq(jobs[2].attempts, 1);
}
END_TEST

/* ---- what is not a whole frame ---- */

START_TEST(a_truncated_frame_is_reported_and_touches_nothing) {
        uint8_t whole[BUFFER_BYTES];
        size_t n = read_vector(vectors[_i], whole);

        for (size_t cut = 0; cut < n; cut++) {
                _cleanup_free_ uint8_t *part = copy_of(whole, cut);
                FrameHeader out, before;
                int r;

                memset(&out, 0xa5, sizeof(out));
                before = out;
                r = frame_decode(part, cut, &out);
                ck_assert_msg(r == (cut < 4 ? FRAME_E_RAW : FRAME_E_TRUNCATED), "%s cut at %zu: %d",
                              vectors[_i], cut, r);
                ck_assert_mem_eq(&out, &before, sizeof(out));
                ck_assert_mem_eq(part, whole, cut);
        }
}
END_TEST

START_TEST(a_frame_copied_only_in_part_is_never_whole) {
        uint8_t whole[BUFFER_BYTES];
        size_t n = read_vector(vectors[_i], whole);

        /* What a receive buffer looks like: the front of the message, then the zeroes that were there before. */
        for (size_t cut = 0; cut < n; cut++) {
                _cleanup_free_ uint8_t *buffer = calloc(1, BUFFER_BYTES);
                FrameHeader out;
                int r;

                ck_assert_ptr_nonnull(buffer);
                memcpy(buffer, whole, cut);
                r = frame_decode(buffer, BUFFER_BYTES, &out);
                if (r == 0) /* only if what is missing was zero anyway */
                        ck_assert_mem_eq(buffer, whole, n);
        }
}
END_TEST

START_TEST(memory_of_zeroes_is_no_trailer) {
        uint8_t buffer[BUFFER_BYTES] = {};
        FrameHeader header = {
                .magic = FRAME_MAGIC,
                .version = FRAME_VERSION,
                .kind = FRAME_JOBS,
                .length = 4096,
                .count = 1,
        };
        FrameHeader out;

        memcpy(buffer, &header, sizeof(header));
        ck_assert_int_eq(frame_decode(buffer, sizeof(buffer), &out), FRAME_E_INVALID);
        header.sequence = 1;
        memcpy(buffer, &header, sizeof(header));
        ck_assert_int_eq(frame_decode(buffer, sizeof(buffer), &out), FRAME_E_TRUNCATED);
}
END_TEST

START_TEST(text_is_never_taken_for_a_frame) {
        static const char *const texts[] = { "", "7", "{\"id\": 1}", "SLC\x89 and so on",
                                             "\xef\xbb\xbfwith a mark" };
        FrameHeader out;

        for (size_t i = 0; i < ELEMENTSOF(texts); i++) {
                _cleanup_free_ char *text = copy_of(texts[i], strlen(texts[i]));

                ck_assert_int_eq(frame_decode(text, strlen(texts[i]), &out), FRAME_E_RAW);
        }
}
END_TEST

START_TEST(another_version_is_told_apart_from_garbage) {
        uint8_t frame[BUFFER_BYTES];
        size_t n = read_vector("example", frame);
        FrameHeader out;

        for (unsigned version = 0; version < 256; version++) {
                frame[4] = (uint8_t)version;
                ck_assert_int_eq(frame_decode(frame, n, &out),
                                 version == FRAME_VERSION ? 0 : FRAME_E_VERSION);
        }
}
END_TEST

static int decode_with(size_t offset, size_t size, uint64_t value) {
        uint8_t frame[BUFFER_BYTES];
        size_t n = read_vector("example", frame);
        _cleanup_free_ uint8_t *exact = NULL;
        FrameHeader out;
        int r;

        memcpy(frame + offset, &value, size);
        exact = copy_of(frame, n);
        r = frame_decode(exact, n, &out);
        return r != 0 ? r : frame_check_jobs(exact, &out);
}

START_TEST(a_header_that_lies_is_refused) {
        static const uint32_t lengths[] = { 0, 1, 71, 88, 90, 256, 1 << 30, UINT32_MAX };
        static const uint32_t counts[] = { 0, 2, 4, 5, 1000, 1 << 30, UINT32_MAX };

        ck_assert_int_eq(decode_with(8, 4, 89), 0);
        for (size_t i = 0; i < ELEMENTSOF(lengths); i++)
                ck_assert_int_eq(decode_with(8, 4, lengths[i]),
                                 lengths[i] < FRAME_OVERHEAD_BYTES ? FRAME_E_INVALID : FRAME_E_TRUNCATED);

        ck_assert_int_eq(decode_with(12, 4, 3), 0);
        for (size_t i = 0; i < ELEMENTSOF(counts); i++)
                ck_assert_int_eq(decode_with(12, 4, counts[i]), FRAME_E_INVALID);

        for (unsigned kind = 0; kind < 256; kind++)
                if (kind != FRAME_JOBS)
                        ck_assert_int_eq(decode_with(5, 1, kind), FRAME_E_INVALID);
        ck_assert_int_eq(decode_with(24 + 8, 8, 7),
                         FRAME_E_TRUNCATED); /* the trailer says another sequence */
}
END_TEST

START_TEST(a_frame_of_jobs_has_some_and_a_sentinel_has_none) {
        uint8_t buffer[BUFFER_BYTES] = {};
        FrameHeader header = { .kind = FRAME_JOBS, .sequence = 1 }, out;
        size_t n = seal_jobs(buffer, &header, NULL, 0);
        JobSpec job = { .data = "x", .size = 1 };

        ck_assert_int_eq(frame_decode(buffer, n, &out), FRAME_E_INVALID);
        header.kind = FRAME_SENTINEL;
        n = seal_jobs(buffer, &header, NULL, 0);
        ck_assert_int_eq(frame_decode(buffer, n, &out), 0);
        n = seal_jobs(buffer, &header, &job, 1);
        ck_assert_int_eq(frame_decode(buffer, n, &out), FRAME_E_INVALID);
}
END_TEST

START_TEST(a_job_that_lies_is_refused) {
        static const struct {
                const char *what;
                uint32_t word, ext;
                bool extended;
        } cases[] = {
                { "one byte too long", 21, 0, false },
                { "the longest of all", JOB_SIZE_MAX, 0, false },
                { "an unknown extension", 8 | (uint32_t)JOB_EXTENDED << 28, 1 << 4, true },
                { "all extensions at once", 0 | (uint32_t)JOB_EXTENDED << 28, UINT32_MAX, true },
                { "extensions past the end", 0 | (uint32_t)JOB_EXTENDED << 28, _JOB_EXT_ALL, true },
                { "payload past the end behind an extension", 9 | (uint32_t)JOB_EXTENDED << 28, JOB_EXT_ID,
                  true },
                { "too short: bytes left over", 19, 0, false },
        };
        const JobSpec job = { .data = "twenty bytes of text", .size = 20 };
        const FrameHeader header = { .kind = FRAME_JOBS, .sequence = 1 };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                uint8_t buffer[BUFFER_BYTES] = {};
                _cleanup_free_ uint8_t *exact = NULL;
                size_t n = seal_jobs(buffer, &header, &job, 1);
                FrameHeader out;

                store_u32(buffer + FRAME_HEADER_BYTES, cases[i].word);
                if (cases[i].extended)
                        store_u32(buffer + FRAME_HEADER_BYTES + 4, cases[i].ext);
                exact = copy_of(buffer, n);
                ck_assert_int_eq(frame_decode(exact, n, &out), 0);
                ck_assert_msg(frame_check_jobs(exact, &out) == FRAME_E_INVALID, "%s", cases[i].what);
        }
}
END_TEST

/* Whatever is accepted can be read without leaving the frame; ASan watches. */
START_TEST(mutated_frames_are_refused_or_stay_within_their_bytes) {
        const char *given = getenv("SLUICE_TEST_SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + 1;
        uint32_t n_accepted = 0;

        printf("mutations: SLUICE_TEST_SEED=%" PRIu64 "\n", seed);
        random_state = seed;
        for (unsigned round = 0; round < 20000; round++) {
                uint8_t frame[BUFFER_BYTES];
                size_t n = read_vector(vectors[random_next() % 9], frame); /* all but the long one */
                _cleanup_free_ uint8_t *exact = NULL;
                FrameHeader h;

                for (uint64_t i = random_next() % 4 + 1; i > 0; i--) {
                        size_t at = random_next() % 3
                                            ? FRAME_HEADER_BYTES + random_next() % (n - FRAME_HEADER_BYTES)
                                            : random_next() % n;

                        if (random_next() % 2)
                                frame[at] = (uint8_t)random_next();
                        else
                                frame[at] ^= (uint8_t)(1u << random_next() % 8);
                }
                exact = copy_of(frame, n);
                if (frame_decode(exact, n, &h) != 0 || frame_check_jobs(exact, &h) != 0)
                        continue;

                uint32_t offset = FRAME_HEADER_BYTES;

                for (uint32_t i = 0; i < h.count; i++) {
                        FrameJob job;

                        frame_job_read(exact, offset, 0, i == 0, &job);
                        ck_assert(job.data >= exact + offset + JOB_HEADER_BYTES);
                        ck_assert_uint_ge(job.next, offset + JOB_HEADER_BYTES);
                        ck_assert_uint_le(job.next, h.length - FRAME_TRAILER_BYTES);
                        ck_assert_uint_eq((size_t)(job.data - exact) + job.size, job.next);
                        offset = job.next;
                }
                ck_assert_uint_eq(offset, h.length - FRAME_TRAILER_BYTES);
                n_accepted++;
        }
        ck_assert_uint_gt(n_accepted, 100); /* payloads, ids and the like may be anything */
}
END_TEST

/* ---- jobs ---- */

START_TEST(ids_count_up_from_the_base_unless_a_job_says_otherwise) {
        static const struct {
                uint32_t flags;
                bool explicit_id;
                uint64_t id, expected;
        } cases[] = {
                { .flags = JOB_SAME_ID, .expected = 10 }, /* the first never repeats an id */
                { .expected = 11 },
                { .flags = JOB_SAME_ID, .expected = 11 },
                { .explicit_id = true, .id = 500, .expected = 500 },
                { .expected = 501 },
                { .flags = JOB_SAME_ID, .expected = 501 },
                { .flags = JOB_SAME_ID,
                  .explicit_id = true,
                  .id = 3,
                  .expected = 3 }, /* the explicit one wins */
                { .explicit_id = true, .id = UINT64_MAX, .expected = UINT64_MAX },
                { .expected = 0 },
        };
        const FrameHeader header = { .kind = FRAME_JOBS, .base_id = 10, .sequence = 1 };
        uint8_t buffer[BUFFER_BYTES] = {};
        JobSpec specs[ELEMENTSOF(cases)] = {};
        FrameJob jobs[ELEMENTSOF(cases)];
        FrameHeader out;
        size_t n;

        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                specs[i] = (JobSpec){
                        .data = "x",
                        .size = 1,
                        .flags = cases[i].flags,
                        .explicit_id = cases[i].explicit_id,
                        .id = cases[i].id,
                };
        n = seal_jobs(buffer, &header, specs, ELEMENTSOF(cases));
        ck_assert_int_eq(frame_decode(buffer, n, &out), 0);
        ck_assert_int_eq(frame_check_jobs(buffer, &out), 0);
        read_jobs(buffer, &out, jobs);
        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                ck_assert_msg(jobs[i].id == cases[i].expected, "job %zu has id %" PRIu64, i, jobs[i].id);
}
END_TEST

START_TEST(a_first_job_with_an_explicit_id_has_that) {
        const FrameHeader header = { .kind = FRAME_JOBS, .base_id = 10, .sequence = 1 };
        const JobSpec spec = { .data = "x", .size = 1, .explicit_id = true, .id = 99 };
        uint8_t buffer[BUFFER_BYTES] = {};
        FrameHeader out;
        FrameJob job;
        size_t n = seal_jobs(buffer, &header, &spec, 1);

        ck_assert_int_eq(frame_decode(buffer, n, &out), 0);
        read_jobs(buffer, &out, &job);
        ck_assert_uint_eq(job.id, 99);
}
END_TEST

START_TEST(what_a_job_does_not_need_takes_no_bytes) {
        const JobSpec plain = { .data = "abc", .size = 3, .attempts = 2, .credit = JOB_CREDIT_WHOLE };
        const JobSpec zero = { .data = "abc", .size = 3 };
        const JobSpec full = {
                .data = "abc", .size = 3, .explicit_id = true, .credit = 1, .time_usec = 1, .interruptions = 1
        };

        ck_assert_uint_eq(job_bytes(&plain), 4 + 3);
        ck_assert_uint_eq(job_bytes(&zero), 4 + 3);
        ck_assert_uint_eq(job_bytes(&full), 4 + 4 + 8 + 8 + 8 + 4 + 3);
}
END_TEST

START_TEST(every_job_field_survives_a_round_trip) {
        const FrameHeader header = { .kind = FRAME_JOBS, .base_id = 1, .sequence = 1 };

        for (unsigned mask = 0; mask < 16; mask++)
                for (uint32_t flags = 0; flags < 16; flags += 2) {
                        const JobSpec spec = {
                                .data = "payload",
                                .size = 7,
                                .attempts = mask * 17,
                                .flags = flags,
                                .explicit_id = mask & 1,
                                .id = UINT64_C(0x123456789abcdef0),
                                .credit = mask & 2 ? JOB_CREDIT_WHOLE / 3 : 0,
                                .time_usec = mask & 4 ? UINT64_MAX : 0,
                                .interruptions = mask & 8 ? 7 : 0,
                        };
                        uint8_t buffer[BUFFER_BYTES] = {};
                        size_t n = seal_jobs(buffer, &header, &spec, 1);
                        FrameHeader out;
                        FrameJob job;

                        ck_assert_int_eq(frame_decode(buffer, n, &out), 0);
                        ck_assert_int_eq(frame_check_jobs(buffer, &out), 0);
                        read_jobs(buffer, &out, &job);
                        ck_assert_uint_eq(job.size, 7);
                        ck_assert_mem_eq(job.data, "payload", 7);
                        ck_assert_uint_eq(job.attempts, mask * 17);
                        ck_assert_uint_eq(job.flags, flags | (mask ? JOB_EXTENDED : 0));
                        ck_assert_uint_eq(job.id, mask & 1 ? spec.id : 1);
                        ck_assert_uint_eq(job.credit, mask & 2 ? spec.credit : JOB_CREDIT_WHOLE);
                        ck_assert_uint_eq(job.time_usec, spec.time_usec);
                        ck_assert_uint_eq(job.interruptions, spec.interruptions);
                }
}
END_TEST

START_TEST(attempts_stop_counting_at_the_largest_that_fits) {
        const FrameHeader header = { .kind = FRAME_JOBS, .base_id = 1, .sequence = 1 };
        const JobSpec spec = { .data = "x", .size = 1, .attempts = 70000, .flags = JOB_MARKER };
        uint8_t buffer[BUFFER_BYTES] = {};
        FrameHeader out;
        FrameJob job;
        size_t n = seal_jobs(buffer, &header, &spec, 1);

        ck_assert_int_eq(frame_decode(buffer, n, &out), 0);
        read_jobs(buffer, &out, &job);
        ck_assert_uint_eq(job.attempts, JOB_ATTEMPTS_MAX);
        ck_assert_uint_eq(job.flags, JOB_MARKER);
        ck_assert_uint_eq(job.size, 1);
}
END_TEST

START_TEST(the_largest_payload_fits_its_frame_with_every_extension) {
        static const size_t sizes[] = { FRAME_MIN_BYTES, 8192, 65536, FRAME_MAX_BYTES };

        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                size_t max = frame_payload_max(sizes[i]);
                JobSpec spec = { .size = (uint32_t)max,
                                 .explicit_id = true,
                                 .credit = 1,
                                 .time_usec = 1,
                                 .interruptions = 1 };

                ck_assert_uint_gt(max, 0);
                ck_assert_uint_le(max, JOB_SIZE_MAX);
                ck_assert_uint_le(FRAME_OVERHEAD_BYTES + job_bytes(&spec), sizes[i]);
                if (max < JOB_SIZE_MAX)
                        ck_assert_uint_eq(FRAME_OVERHEAD_BYTES + job_bytes(&spec), sizes[i]);
        }
}
END_TEST

int main(void) {
        Suite *suite = suite_create("frame");
        TCase *golden = tcase_create("golden");
        TCase *bad = tcase_create("bad");
        TCase *jobs = tcase_create("jobs");
        SRunner *runner;
        int n_failed;

        tcase_add_loop_test(golden, a_golden_frame_is_read_and_written_again_byte_for_byte, 0,
                            (int)ELEMENTSOF(vectors));
        tcase_add_test(golden, the_worked_example_says_what_the_documentation_says);
        suite_add_tcase(suite, golden);

        tcase_add_loop_test(bad, a_truncated_frame_is_reported_and_touches_nothing, 0,
                            (int)ELEMENTSOF(vectors));
        tcase_add_loop_test(bad, a_frame_copied_only_in_part_is_never_whole, 0, (int)ELEMENTSOF(vectors));
        tcase_add_test(bad, memory_of_zeroes_is_no_trailer);
        tcase_add_test(bad, text_is_never_taken_for_a_frame);
        tcase_add_test(bad, another_version_is_told_apart_from_garbage);
        tcase_add_test(bad, a_header_that_lies_is_refused);
        tcase_add_test(bad, a_frame_of_jobs_has_some_and_a_sentinel_has_none);
        tcase_add_test(bad, a_job_that_lies_is_refused);
        tcase_add_test(bad, mutated_frames_are_refused_or_stay_within_their_bytes);
        tcase_set_timeout(bad, 60);
        suite_add_tcase(suite, bad);

        tcase_add_test(jobs, ids_count_up_from_the_base_unless_a_job_says_otherwise);
        tcase_add_test(jobs, a_first_job_with_an_explicit_id_has_that);
        tcase_add_test(jobs, what_a_job_does_not_need_takes_no_bytes);
        tcase_add_test(jobs, every_job_field_survives_a_round_trip);
        tcase_add_test(jobs, attempts_stop_counting_at_the_largest_that_fits);
        tcase_add_test(jobs, the_largest_payload_fits_its_frame_with_every_extension);
        suite_add_tcase(suite, jobs);

        runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
