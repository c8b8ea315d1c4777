/* SPDX-License-Identifier: MIT */

/*
 * bench-raw: the yardstick. The same jobs through the same number of
 * processes and POSIX message queues as a sluice pipeline
 * `source -> identity (or prime) -> sink`, and nothing else: no records, no
 * tickets, nothing that would survive a crash.
 *
 *     producer -> [queue] -> worker(s) -> [queue] -> consumer
 *
 *   --batch=one     a message is a job: what a program does that has heard of
 *                   mq_send() and nothing more
 *   --batch=frames  a message is a frame of many jobs, laid out to cost the
 *                   same bytes as sluice's. Every job is touched in every
 *                   process: written by the producer, read and copied (or
 *                   answered) by the worker, looked at by the consumer
 *
 * Jobs, times and sums are made by stages/gauge.h, as in the bench plugins; the
 * test for primality is that of the stage `prime`, so transports are compared.
 * Nobody spins. The queues have no name once they are open, and the children
 * die with their parent, so nothing is left behind by any exit.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <mqueue.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "prime/primality.h"
#include "stages/gauge.h"

enum {
        HEADER_BYTES = 64,
        TRAILER_BYTES = 8,
        JOB_HEADER_BYTES = 4,
        MESSAGE_BYTES_MAX = 1 << 20,
        SLACK_BYTES = 64, /* short jobs are copied as 16 bytes */
        WORKERS_MAX = 64,
        ANSWER_BYTES_MAX = 20 + 10, /* the digits of the largest number, " composite" */
};

typedef enum Batch {
        BATCH_ONE,
        BATCH_FRAMES,
} Batch;

typedef enum Work {
        WORK_IDENTITY,
        WORK_PRIME,
} Work;

typedef struct Options {
        Batch batch;
        Work work;
        uint64_t n_jobs; /* pings included */
        uint64_t n_pings;
        size_t size; /* of a job's payload; 0 for decimal text */
        unsigned n_workers;
        long depth;
        size_t message_bytes;
        const char *gauge;
        bool verify;
} Options;

typedef struct Bench {
        Options options;
        Gauge *gauge;
        mqd_t jobs;
        mqd_t results;
} Bench;

/* The 64 bytes that any frame format spends on saying what it is. */
typedef struct FrameHeader {
        uint32_t magic;
        uint32_t n_bytes; /* of all jobs */
        uint32_t n_jobs;
        uint32_t reserved;
        uint64_t base_id;
        uint64_t sequence;
        uint64_t filler[4];
} FrameHeader;

_Static_assert(sizeof(FrameHeader) == HEADER_BYTES, "a frame must cost what sluice's costs");

#define FRAME_MAGIC 0x31776172u

typedef struct Frame {
        size_t capacity; /* of a message */
        size_t used;     /* header and jobs */
        uint32_t n_jobs;
        uint64_t n_sent;
        _Alignas(64) uint8_t bytes[MESSAGE_BYTES_MAX + SLACK_BYTES];
} Frame;

/* One of each per process; zero pages until used. */
static Frame frame_in, frame_out;

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
        va_list ap;

        va_start(ap, format);
        fputs("bench-raw: ", stderr);
        vfprintf(stderr, format, ap);
        fputc('\n', stderr);
        va_end(ap);
        exit(EXIT_FAILURE);
}

/*
 * Messages
 */

static void message_send(mqd_t queue, const void *data, size_t size) {
        if (mq_send(queue, data, size, 0) < 0)
                die("mq_send: %s", strerror(errno));
}

/* An empty message is the sentinel: size 0. */
static size_t message_receive(mqd_t queue, void *data, size_t size) {
        ssize_t n = mq_receive(queue, data, size, NULL);

        if (n < 0)
                die("mq_receive: %s", strerror(errno));
        return (size_t)n;
}

/* False if there is nothing to receive right now. A deadline in the past is a try, without a second open file
 * description for O_NONBLOCK. */
static bool message_try_receive(mqd_t queue, void *data, size_t size, size_t *ret_size) {
        static const struct timespec past = { 0 };
        ssize_t n = mq_timedreceive(queue, data, size, NULL, &past);

        if (n < 0) {
                if (errno != ETIMEDOUT)
                        die("mq_timedreceive: %s", strerror(errno));
                return false;
        }

        *ret_size = (size_t)n;
        return true;
}

/*
 * Frames
 */

static void frame_reset(Frame *frame) {
        frame->used = HEADER_BYTES;
        frame->n_jobs = 0;
}

static void frame_init(Frame *frame, size_t message_bytes) {
        frame->capacity = message_bytes;
        frame->n_sent = 0;
        frame_reset(frame);
}

static inline bool frame_has_room(const Frame *frame, size_t size) {
        return frame->used + JOB_HEADER_BYTES + size + TRAILER_BYTES <= frame->capacity;
}

/* Where the payload of the next job goes; the caller saw that there is room. */
static inline uint8_t *frame_append(Frame *frame, size_t size) {
        uint32_t header = (uint32_t)size;
        uint8_t *p = frame->bytes + frame->used;

        memcpy(p, &header, sizeof(header));
        frame->used += JOB_HEADER_BYTES + size;
        frame->n_jobs++;
        return p + JOB_HEADER_BYTES;
}

/* A call of memcpy() is worth it for more than a register holds. Both buffers have SLACK_BYTES behind them. */
static inline void copy_payload(uint8_t *to, const uint8_t *from, size_t size) {
        if (size == 8)
                memcpy(to, from, 8);
        else if (size <= 16)
                memcpy(to, from, 16);
        else
                memcpy(to, from, size);
}

static void frame_send(Frame *frame, mqd_t queue) {
        FrameHeader header = {
                .magic = FRAME_MAGIC,
                .n_bytes = (uint32_t)(frame->used - HEADER_BYTES),
                .n_jobs = frame->n_jobs,
                .sequence = ++frame->n_sent,
        };

        memcpy(frame->bytes, &header, sizeof(header));
        memcpy(frame->bytes + frame->used, &header.sequence, TRAILER_BYTES);
        message_send(queue, frame->bytes, frame->used + TRAILER_BYTES);
        frame_reset(frame);
}

/* The number of jobs in a received frame. */
static uint32_t frame_open(const Frame *frame, size_t n_received) {
        FrameHeader header;

        memcpy(&header, frame->bytes, sizeof(header));
        if (header.magic != FRAME_MAGIC || header.n_bytes + HEADER_BYTES + TRAILER_BYTES != n_received)
                die("a frame of %zu bytes is not one of ours", n_received);
        return header.n_jobs;
}

static inline const uint8_t *frame_next(const uint8_t *p, size_t *ret_size) {
        uint32_t header;

        memcpy(&header, p, sizeof(header));
        *ret_size = header;
        return p + JOB_HEADER_BYTES;
}

/*
 * Work
 */

static inline uint64_t number_of(const uint8_t *text, size_t size) {
        uint64_t n = 0;

        for (size_t i = 0; i < size; i++)
                n = n * 10 + (uint64_t)(text[i] - '0');
        return n;
}

/* What the stage `prime` says of a number. `to` has room for SLACK_BYTES more than the answer. */
static inline size_t answer_prime(uint8_t *to, const uint8_t *text, size_t size) {
        uint64_t number = number_of(text, size);

        copy_payload(to, text, size);
        if (primality_is_prime(number)) {
                memcpy(to + size, " prime", 6);
                return size + 6;
        }
        if (number > 1) {
                memcpy(to + size, " composite", 10);
                return size + 10;
        }
        memcpy(to + size, " neither", 8);
        return size + 8;
}

/*
 * The processes
 */

typedef void (*Role)(const Bench *bench);

static void produce_ping(const Bench *bench, const Load *load) {
        if (bench->options.batch == BATCH_ONE) {
                message_send(bench->jobs, load->data, load->size);
                return;
        }

        copy_payload(frame_append(&frame_out, load->size), (const uint8_t *)load->data, load->size);
        frame_send(&frame_out, bench->jobs);
}

static void produce_pings(const Bench *bench, Load *load) {
        for (uint64_t n = 1; n <= bench->options.n_pings; n++, load_next(load)) {
                uint64_t start_nsec = gauge_now_nsec();

                produce_ping(bench, load);
                while (gauge_wait(bench->gauge, n) < 0)
                        ;
                gauge_sample(bench->gauge, gauge_now_nsec() - start_nsec);
        }
}

static void produce_ones(const Bench *bench, Load *load) {
        for (uint64_t n = bench->options.n_pings; n < bench->options.n_jobs; n++, load_next(load))
                message_send(bench->jobs, load->data, load->size);
}

static void produce_frames(const Bench *bench, Load *load) {
        for (uint64_t n = bench->options.n_pings; n < bench->options.n_jobs; n++, load_next(load)) {
                if (!frame_has_room(&frame_out, load->size))
                        frame_send(&frame_out, bench->jobs);
                copy_payload(frame_append(&frame_out, load->size), (const uint8_t *)load->data, load->size);
        }

        if (frame_out.n_jobs > 0)
                frame_send(&frame_out, bench->jobs);
}

static void producer(const Bench *bench) {
        static Load load;

        load_init(&load, bench->options.size, 0);
        frame_init(&frame_out, bench->options.message_bytes);
        produce_pings(bench, &load);

        atomic_store(&bench->gauge->start_nsec, gauge_now_nsec());
        if (bench->options.batch == BATCH_ONE)
                produce_ones(bench, &load);
        else
                produce_frames(bench, &load);

        for (unsigned i = 0; i < bench->options.n_workers; i++)
                message_send(bench->jobs, "", 0);
}

static void worker_of_ones(const Bench *bench) {
        uint8_t *in = frame_in.bytes, *out = frame_out.bytes;
        size_t n;

        while ((n = message_receive(bench->jobs, in, bench->options.message_bytes)) > 0)
                if (bench->options.work == WORK_PRIME)
                        message_send(bench->results, out, answer_prime(out, in, n));
                else
                        message_send(bench->results, in, n);

        message_send(bench->results, "", 0);
}

static void copy_jobs(const Bench *bench, uint32_t n_jobs) {
        const uint8_t *p = frame_in.bytes + HEADER_BYTES;
        size_t size;

        for (uint32_t i = 0; i < n_jobs; i++, p += size) {
                p = frame_next(p, &size);
                if (!frame_has_room(&frame_out, size))
                        frame_send(&frame_out, bench->results);
                copy_payload(frame_append(&frame_out, size), p, size);
        }
}

/* Answers go straight into the frame, which is sent when the longest one might not fit. */
static void answer_jobs(const Bench *bench, uint32_t n_jobs) {
        const uint8_t *p = frame_in.bytes + HEADER_BYTES;
        size_t size;

        for (uint32_t i = 0; i < n_jobs; i++, p += size) {
                uint8_t *answer;

                p = frame_next(p, &size);
                if (!frame_has_room(&frame_out, ANSWER_BYTES_MAX))
                        frame_send(&frame_out, bench->results);
                answer = frame_out.bytes + frame_out.used + JOB_HEADER_BYTES;
                frame_append(&frame_out, answer_prime(answer, p, size));
        }
}

/* What is in the output frame goes out if it is worth a message, if the producer does not keep up (its frame
 * was nearly empty), or if there is nothing else to do. */
static size_t receive_next(const Bench *bench, size_t n_last) {
        size_t n;

        if (frame_out.n_jobs > 0) {
                if (n_last >= frame_in.capacity / 4 && frame_out.used < frame_out.capacity / 2 &&
                    message_try_receive(bench->jobs, frame_in.bytes, frame_in.capacity, &n))
                        return n;
                frame_send(&frame_out, bench->results);
        }

        return message_receive(bench->jobs, frame_in.bytes, frame_in.capacity);
}

static void worker_of_frames(const Bench *bench) {
        size_t n = 0;

        frame_init(&frame_in, bench->options.message_bytes);
        frame_init(&frame_out, bench->options.message_bytes);

        while ((n = receive_next(bench, n)) > 0)
                if (bench->options.work == WORK_PRIME)
                        answer_jobs(bench, frame_open(&frame_in, n));
                else
                        copy_jobs(bench, frame_open(&frame_in, n));

        if (frame_out.n_jobs > 0)
                frame_send(&frame_out, bench->results);
        message_send(bench->results, "", 0);
}

static void worker(const Bench *bench) {
        if (bench->options.batch == BATCH_ONE)
                worker_of_ones(bench);
        else
                worker_of_frames(bench);
}

static uint64_t checksum_of_frame(uint32_t n_jobs) {
        const uint8_t *p = frame_in.bytes + HEADER_BYTES;
        uint64_t checksum = 0;
        size_t size;

        for (uint32_t i = 0; i < n_jobs; i++, p += size) {
                p = frame_next(p, &size);
                checksum += gauge_check(p, size);
        }
        return checksum;
}

static void consumer(const Bench *bench) {
        uint64_t n_arrived = 0, checksum = 0;
        unsigned n_sentinels = 0;

        while (n_sentinels < bench->options.n_workers) {
                size_t n = message_receive(bench->results, frame_in.bytes, bench->options.message_bytes);
                uint64_t n_before = n_arrived;

                if (n == 0) {
                        n_sentinels++;
                        continue;
                }

                if (bench->options.batch == BATCH_ONE) {
                        checksum += gauge_check(frame_in.bytes, n);
                        n_arrived++;
                } else {
                        uint32_t n_jobs = frame_open(&frame_in, n);

                        checksum += checksum_of_frame(n_jobs);
                        n_arrived += n_jobs;
                }
                gauge_arrived(bench->gauge, n_before, n_arrived, checksum);
        }
}

static pid_t spawn(const Bench *bench, Role role) {
        pid_t parent = getpid(), pid = fork();

        if (pid < 0)
                die("fork: %s", strerror(errno));
        if (pid > 0)
                return pid;

        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
                _exit(EXIT_FAILURE);
        role(bench);
        _exit(EXIT_SUCCESS);
}

/* Waits for all children. The first that fails ends the run: the others would wait for it. */
static void wait_for_all(void) {
        int status;
        pid_t pid;

        while ((pid = wait(&status)) > 0)
                if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_SUCCESS)
                        die("process %d failed", (int)pid);
}

static mqd_t queue_open(const Options *options, const char *what) {
        struct mq_attr attr = { .mq_maxmsg = options->depth, .mq_msgsize = (long)options->message_bytes };
        sigset_t all, old;
        char name[64];
        mqd_t queue;
        int r;

        /* No signal may come between the making and the unlinking of the name. */
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, &old);
        snprintf(name, sizeof(name), "/bench-raw.%d.%s", (int)getpid(), what);
        queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attr);
        r = errno;
        if (queue >= 0)
                mq_unlink(name);
        sigprocmask(SIG_SETMASK, &old, NULL);

        if (queue < 0 && r == EINVAL)
                die("a queue of %ld x %zu is beyond /proc/sys/fs/mqueue/msg_max or msgsize_max",
                    options->depth, options->message_bytes);
        if (queue < 0 && r == EMFILE)
                die("no room for a queue: see ulimit -q, and what else this user's queues hold");
        if (queue < 0)
                die("mq_open: %s", strerror(r));
        return queue;
}

/* What must arrive, made again one job after the other. */
static uint64_t expected_checksum(const Options *options) {
        static Load load;
        uint8_t answer[256];
        uint64_t checksum = 0;

        load_init(&load, options->size, 0);
        for (uint64_t n = 0; n < options->n_jobs; n++, load_next(&load))
                if (options->work == WORK_PRIME)
                        checksum +=
                                gauge_check(answer, answer_prime(answer, (uint8_t *)load.data, load.size));
                else
                        checksum += gauge_check(load.data, load.size);
        return checksum;
}

static int compare_samples(const void *a, const void *b) {
        const uint32_t *x = a, *y = b;

        return (*x > *y) - (*x < *y);
}

static void report(const Bench *bench) {
        Gauge *gauge = bench->gauge;
        uint64_t n_flood = bench->options.n_jobs - bench->options.n_pings, n_samples = gauge->n_samples;

        if (gauge->n_arrived != bench->options.n_jobs)
                die("%" PRIu64 " jobs arrived of %" PRIu64, gauge->n_arrived, bench->options.n_jobs);
        if (bench->options.verify && gauge->checksum != expected_checksum(&bench->options))
                die("all jobs arrived, but not all of them as they should be");

        if (n_flood > 0) {
                uint64_t nsec = gauge->end_nsec - gauge->start_nsec;

                printf("%" PRIu64 " jobs in %.3f s: %.0f jobs/s\n", n_flood, (double)nsec / 1e9,
                       (double)n_flood * 1e9 / (double)nsec);
        } else if (n_samples > 0) {
                qsort(gauge->sample_nsec, n_samples, sizeof(gauge->sample_nsec[0]), compare_samples);
                printf("%" PRIu64 " round trips: p50 %.2f us, p99 %.2f us\n", n_samples,
                       gauge->sample_nsec[n_samples / 2] / 1e3,
                       gauge->sample_nsec[n_samples * 99 / 100] / 1e3);
        }
}

/*
 * The command line
 */

static const char usage[] =
        "usage: bench-raw [OPTION...]\n"
        "  --batch=one|frames   one job per message, or frames of many (default one)\n"
        "  --work=identity|prime\n"
        "  --size=BYTES         of a job, at least 8 (default 8; prime: always decimal numbers)\n"
        "  --count=N            jobs, pings included (default 200000)\n"
        "  --pings=N            jobs that go one at a time, before the others (default 200)\n"
        "  --workers=N          (default 2)\n"
        "  --depth=N            messages a queue holds (default 10)\n"
        "  --message=BYTES      (default 8192)\n"
        "  --gauge=FILE         note times and sums in FILE\n"
        "  --verify             compute afterwards what should have arrived, and compare\n";

__attribute__((noreturn)) static void wrong_usage(void) {
        fputs(usage, stderr);
        exit(2);
}

static uint64_t parse_number(const char *text, uint64_t min, uint64_t max) {
        unsigned long long n;
        char *end;

        errno = 0;
        n = strtoull(text, &end, 10);
        if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || n < min || n > max)
                wrong_usage();
        return n;
}

static unsigned parse_word(const char *text, const char *first, const char *second) {
        if (strcmp(text, first) == 0)
                return 0;
        if (strcmp(text, second) == 0)
                return 1;
        wrong_usage();
}

static Options options_parse(int argc, char **argv) {
        enum { BATCH, WORK, SIZE, COUNT, PINGS, WORKERS, DEPTH, MESSAGE, GAUGE, VERIFY, HELP };
        static const struct option names[] = {
                { "batch", required_argument, NULL, BATCH }, { "work", required_argument, NULL, WORK },
                { "size", required_argument, NULL, SIZE },   { "count", required_argument, NULL, COUNT },
                { "pings", required_argument, NULL, PINGS }, { "workers", required_argument, NULL, WORKERS },
                { "depth", required_argument, NULL, DEPTH }, { "message", required_argument, NULL, MESSAGE },
                { "gauge", required_argument, NULL, GAUGE }, { "verify", no_argument, NULL, VERIFY },
                { "help", no_argument, NULL, HELP },         { NULL },
        };
        Options o = {
                .n_jobs = 200000,
                .n_pings = 200,
                .size = 8,
                .n_workers = 2,
                .depth = 10,
                .message_bytes = 8192,
        };
        int c;

        while ((c = getopt_long(argc, argv, "", names, NULL)) >= 0)
                switch (c) {
                case BATCH:
                        o.batch = parse_word(optarg, "one", "frames") == 0 ? BATCH_ONE : BATCH_FRAMES;
                        break;
                case WORK:
                        o.work = parse_word(optarg, "identity", "prime") == 0 ? WORK_IDENTITY : WORK_PRIME;
                        break;
                case SIZE:
                        o.size = parse_number(optarg, 8, GAUGE_JOB_BYTES_MAX);
                        break;
                case COUNT:
                        o.n_jobs = parse_number(optarg, 1, INT64_MAX);
                        break;
                case PINGS:
                        o.n_pings = parse_number(optarg, 0, GAUGE_SAMPLES_MAX);
                        break;
                case WORKERS:
                        o.n_workers = (unsigned)parse_number(optarg, 1, WORKERS_MAX);
                        break;
                case DEPTH:
                        o.depth = (long)parse_number(optarg, 1, 65536);
                        break;
                case MESSAGE:
                        o.message_bytes = parse_number(optarg, 256, MESSAGE_BYTES_MAX);
                        break;
                case GAUGE:
                        o.gauge = optarg;
                        break;
                case VERIFY:
                        o.verify = true;
                        break;
                case HELP:
                        fputs(usage, stdout);
                        exit(EXIT_SUCCESS);
                default:
                        wrong_usage();
                }
        if (optind < argc)
                wrong_usage();

        if (o.n_pings > o.n_jobs)
                o.n_pings = o.n_jobs;
        if (o.work == WORK_PRIME)
                o.size = 0;
        if (o.size + HEADER_BYTES + JOB_HEADER_BYTES + TRAILER_BYTES > o.message_bytes)
                die("a job of %zu bytes does not fit a message of %zu", o.size, o.message_bytes);
        return o;
}

int main(int argc, char **argv) {
        Bench bench = { .options = options_parse(argc, argv) };
        int r;

        r = gauge_map(bench.options.gauge, &bench.gauge);
        if (r < 0)
                die("cannot map the gauge: %s", strerror(-r));
        atomic_store(&bench.gauge->n_jobs, bench.options.n_jobs);
        atomic_store(&bench.gauge->n_pings, bench.options.n_pings);

        if (bench.options.work == WORK_PRIME)
                primality_prepare();
        bench.jobs = queue_open(&bench.options, "jobs");
        bench.results = queue_open(&bench.options, "results");

        spawn(&bench, consumer);
        for (unsigned i = 0; i < bench.options.n_workers; i++)
                spawn(&bench, worker);
        spawn(&bench, producer);
        wait_for_all();

        report(&bench);
        return EXIT_SUCCESS;
}
