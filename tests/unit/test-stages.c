/*
 * The built-in stages, called as a worker calls them, by a host that lives in
 * memory (fake_host.h).
 *
 * What is promised about kill -9 is tested twice: with a worker that is
 * stopped and killed at every single system call it makes (ptrace), and with
 * workers that are killed at any instruction, by chance. SLUICE_SEED=N repeats
 * a run of chance.
 */

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fake_host.h"

#define FRAME 512

#define _cleanup_host_ _cleanup_(fake_host_freep)
#define _cleanup_stdin_ _cleanup_(stdin_restore) __attribute__((unused)) /* by anything but its cleanup */

static char base[PATH_MAX - 64]; /* of this run; removed at its end, whatever became of the tests */
static char folder[PATH_MAX];    /* of this test */
static uint64_t seed;

/* ---- helpers ---- */

static uint64_t chance(uint64_t below) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        return seed % below;
}

static void begin_chance(void) {
        const char *given = getenv("SLUICE_SEED");

        seed = given ? strtoull(given, NULL, 10) : (uint64_t)getpid() << 20 ^ (uint64_t)time(NULL);
        printf("SLUICE_SEED=%" PRIu64 "\n", seed);
        fflush(stdout);
        seed = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1; /* near seeds, far beginnings */
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw) {
        return remove(path);
}

static void make_base(void) {
        const char *parent = getenv("TMPDIR");

        snprintf(base, sizeof(base), "%s/sluice-stages-XXXXXX", parent ? parent : "/tmp");
        if (!mkdtemp(base)) {
                perror(base);
                exit(1);
        }
}

static void make_folder(void) {
        snprintf(folder, sizeof(folder), "%s/test-XXXXXX", base);
        ck_assert_ptr_nonnull(mkdtemp(folder));
}

static const char *in_folder(const char *name) {
        static char path[PATH_MAX + 64];

        snprintf(path, sizeof(path), "%s/%s", folder, name);
        return path;
}

static void write_file(const char *name, const void *data, size_t size) {
        _cleanup_fclose_ FILE *f = fopen(in_folder(name), "we");

        ck_assert_ptr_nonnull(f);
        ck_assert_uint_eq(fwrite(data, 1, size, f), size);
}

static char *read_file(const char *name, size_t *ret_size) {
        _cleanup_fclose_ FILE *f = fopen(in_folder(name), "re");
        char *data = NULL;
        size_t n = 0;

        ck_assert_ptr_nonnull(f);
        ssize_t size = getdelim(&data, &n, EOF, f);
        if (ret_size)
                *ret_size = size < 0 ? 0 : (size_t)size;
        if (size < 0)
                data[0] = '\0';
        return data;
}

static void check_file(const char *name, const char *expected) {
        _cleanup_free_ char *got = read_file(name, NULL);

        ck_assert_str_eq(got, expected);
}

static void check_results(const FakeHost *h, const char *expected) {
        _cleanup_free_ char *got = fake_host_results(h, '\n', NULL);

        ck_assert_str_eq(got, expected);
}

/* "0\n1\n2\n..." */
static char *numbered(size_t first, size_t n, size_t *ret_size) {
        char *text = malloc(n * 24 + 1);
        size_t at = 0;

        ck_assert_ptr_nonnull(text);
        text[0] = '\0';
        for (size_t i = first; i < first + n; i++)
                at += (size_t)sprintf(text + at, "%zu\n", i);
        if (ret_size)
                *ret_size = at;
        return text;
}

static void write_pipe(int fd, const void *data, size_t size) {
        const char *p = data;

        while (size > 0) {
                ssize_t n = write(fd, p, size);

                ck_assert_msg(n > 0, "write: %m");
                p += n;
                size -= (size_t)n;
        }
}

static SluiceProduced produce_all(FakeHost *h) {
        SluiceProduced p;

        while ((p = fake_host_produce(h)) == SLUICE_MORE)
                ;
        return p;
}

static void produce_results(FakeHost *h, size_t n) {
        while (fake_host_n_results(h) < n)
                ck_assert_int_eq(fake_host_produce(h), SLUICE_MORE);
}

static bool logged(const FakeHost *h, const char *text) {
        return strstr(fake_host_logged(h), text) != NULL;
}

/* ---- killing ---- */

typedef struct Killing {
        FakeHost *host;
        int (*work)(FakeHost *host); /* in the child; its exit status */
        int input;                   /* becomes the child's standard input, or -1 */
} Killing;

static void child_run(const Killing *k) {
        if (k->input >= 0 && dup2(k->input, STDIN_FILENO) < 0)
                _exit(120);
        if (fake_host_start(k->host) < 0)
                _exit(121);
        _exit(k->work(k->host));
}

static int reap(pid_t pid) {
        int status;

        while (waitpid(pid, &status, 0) < 0)
                ck_assert_int_eq(errno, EINTR);
        return status;
}

static void check_finished(int status) {
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "worker ended with status %#x", status);
}

static void run_to_end(const Killing *k) {
        pid_t pid = fork();

        ck_assert_int_ge(pid, 0);
        if (pid == 0)
                child_run(k);
        check_finished(reap(pid));
}

/* Runs a worker and kills it as it enters or leaves its `stop`th system call. False: it finished before. */
static bool run_killed_at(const Killing *k, unsigned stop) {
        unsigned n_stops = 0;
        int status;
        pid_t pid = fork();

        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
                        _exit(122);
                raise(SIGSTOP);
                child_run(k);
        }

        status = reap(pid);
        ck_assert_msg(WIFSTOPPED(status), "cannot trace a child: status %#x", status);
        ck_assert_int_eq(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL), 0);

        while (n_stops < stop) {
                ck_assert_int_eq(ptrace(PTRACE_SYSCALL, pid, NULL, NULL), 0);
                status = reap(pid);
                if (!WIFSTOPPED(status)) {
                        check_finished(status);
                        return false;
                }
                if (WSTOPSIG(status) == (SIGTRAP | 0x80))
                        n_stops++;
        }

        kill(pid, SIGKILL);
        status = reap(pid);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        return true;
}

/* Runs a worker and kills it after a while. False: it finished before. */
static bool run_killed_after(const Killing *k, unsigned usec) {
        int status;
        pid_t pid = fork();

        ck_assert_int_ge(pid, 0);
        if (pid == 0)
                child_run(k);

        usleep(usec);
        kill(pid, SIGKILL);
        status = reap(pid);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
                return true;
        check_finished(status);
        return false;
}

static int work_produce(FakeHost *h) {
        return produce_all(h) == SLUICE_END ? 0 : 1;
}

/* ---- identity ---- */

START_TEST(identity_hands_on_every_payload_unchanged) {
        static const char bytes[] = "a\0b\n\xff";
        _cleanup_host_ FakeHost *h = fake_host_new("identity", FRAME);
        size_t cursor = 0, size;
        const void *p;

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, bytes, sizeof(bytes)), SLUICE_DONE);
        ck_assert_int_eq(fake_host_run(h, "", 0), SLUICE_DONE);

        p = fake_host_next_result(h, &cursor, &size);
        ck_assert_uint_eq(size, sizeof(bytes));
        ck_assert_mem_eq(p, bytes, size);
        ck_assert_ptr_nonnull(fake_host_next_result(h, &cursor, &size));
        ck_assert_uint_eq(size, 0);
        ck_assert_ptr_null(fake_host_next_result(h, &cursor, &size));
}
END_TEST

START_TEST(identity_fails_only_what_is_too_large) {
        static const char large[FRAME + 1];
        _cleanup_host_ FakeHost *h = fake_host_new("identity", FRAME);

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, "one", 3), SLUICE_DONE);
        ck_assert_int_eq(fake_host_run(h, large, sizeof(large)), SLUICE_FAIL);
        ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "513 bytes"));
        ck_assert_int_eq(fake_host_run(h, "two", 3), SLUICE_DONE);
        check_results(h, "one\ntwo\n");
}
END_TEST

/* ---- range ---- */

static FakeHost *range_new(const char *from, const char *to, const char *step) {
        FakeHost *h = fake_host_new("range", 64);

        if (from)
                fake_host_set(h, "from", from);
        fake_host_set(h, "to", to);
        if (step)
                fake_host_set(h, "step", step);
        return h;
}

static void check_range(const char *from, const char *to, const char *step, const char *expected) {
        _cleanup_host_ FakeHost *h = range_new(from, to, step);

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, expected);
}

START_TEST(range_makes_the_numbers_between_its_bounds) {
        check_range(NULL, "3", NULL, "0\n1\n2\n3\n");
        check_range("98", "101", "1", "98\n99\n100\n101\n");
        check_range("0", "0", "1", "0\n");
        check_range("-2", "2", "2", "-2\n0\n2\n");
        check_range("1", "10", "4", "1\n5\n9\n");
        check_range("1", "9", "4", "1\n5\n9\n");
        check_range("2", "-101", "-51", "2\n-49\n-100\n");
        check_range("-98", "-101", "-1", "-98\n-99\n-100\n-101\n");
        check_range("5", "1000", "300", "5\n305\n605\n905\n");
        check_range("1", "0", "1", "");
        check_range("0", "1", "-1", "");
}
END_TEST

START_TEST(range_reaches_the_ends_of_64_bits_and_stops_there) {
        check_range("9223372036854775805", "9223372036854775807", "1",
                    "9223372036854775805\n9223372036854775806\n9223372036854775807\n");
        check_range("-9223372036854775807", "-9223372036854775808", "-1",
                    "-9223372036854775807\n-9223372036854775808\n");
        check_range("9223372036854775800", "9223372036854775807", "5",
                    "9223372036854775800\n9223372036854775805\n");
        check_range("-9223372036854775808", "9223372036854775807", "9223372036854775807",
                    "-9223372036854775808\n-1\n9223372036854775806\n");
        check_range("9223372036854775807", "-9223372036854775808", "-9223372036854775808",
                    "9223372036854775807\n-1\n");
}
END_TEST

START_TEST(range_writes_numbers_as_printf_does) {
        begin_chance();
        for (int round = 0; round < 200; round++) {
                int64_t from = (int64_t)(chance(UINT64_MAX) >> chance(64)), step;
                _cleanup_host_ FakeHost *h = NULL;
                char a[24], b[24], c[24], expected[24];
                size_t cursor = 0, n;
                const char *p;

                if (chance(2))
                        from = -(from / 2);
                step = (int64_t)chance(1000) + 1;
                if (from > INT64_MAX - 40 * step)
                        from = INT64_MAX - 40 * step;
                snprintf(a, sizeof(a), "%" PRId64, from);
                snprintf(b, sizeof(b), "%" PRId64, from + 40 * step);
                snprintf(c, sizeof(c), "%" PRId64, step);
                h = range_new(a, b, c);
                ck_assert_int_eq(fake_host_start(h), 0);
                ck_assert_int_eq(produce_all(h), SLUICE_END);
                ck_assert_uint_eq(fake_host_n_results(h), 41);
                for (int64_t i = 0; (p = fake_host_next_result(h, &cursor, &n)); i++) {
                        snprintf(expected, sizeof(expected), "%" PRId64, from + i * step);
                        ck_assert_uint_eq(n, strlen(expected));
                        ck_assert_mem_eq(p, expected, n);
                }
        }
}
END_TEST

START_TEST(range_goes_on_after_every_restart_and_ends_only_once) {
        _cleanup_host_ FakeHost *h = range_new(NULL, "199", NULL);
        _cleanup_free_ char *expected = numbered(0, 200, NULL);
        SluiceProduced p;

        do {
                ck_assert_int_eq(fake_host_start(h), 0);
                p = fake_host_produce(h);
                fake_host_stop(h);
        } while (p == SLUICE_MORE);

        for (int again = 0; again < 2; again++) {
                ck_assert_int_eq(fake_host_start(h), 0);
                ck_assert_int_eq(fake_host_produce(h), SLUICE_END);
                fake_host_stop(h);
        }
        check_results(h, expected);
}
END_TEST

START_TEST(range_goes_on_when_its_end_is_raised_and_starts_anew_when_its_beginning_changes) {
        _cleanup_host_ FakeHost *h = range_new(NULL, "2", NULL);

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        fake_host_stop(h);

        fake_host_set(h, "to", "4");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        fake_host_stop(h);
        check_results(h, "0\n1\n2\n3\n4\n");
        ck_assert_str_eq(fake_host_logged(h), "");

        fake_host_set(h, "from", "3");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, "0\n1\n2\n3\n4\n3\n4\n");
        ck_assert(logged(h, "starting again from 3"));
}
END_TEST

START_TEST(range_refuses_a_step_of_zero) {
        _cleanup_host_ FakeHost *h = range_new(NULL, "2", "0");

        ck_assert_int_eq(fake_host_start(h), -EINVAL);
        ck_assert_str_eq(fake_host_explained(h), "step must not be 0");
}
END_TEST

/* ---- lines: what is a line ---- */

typedef enum LinesFrom {
        FROM_FILE,
        FROM_PIPE,
        FROM_PIPE_DIRECTLY, /* read(), as where splice() does not work */
        _LINES_FROM_MAX,
} LinesFrom;

typedef struct Stdin {
        int saved;
} Stdin;

static Stdin stdin_set(int fd) {
        Stdin s = { .saved = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3) };

        ck_assert_int_ge(dup2(fd, STDIN_FILENO), 0);
        return s;
}

static void stdin_restore(Stdin *s) {
        if (s->saved >= 0) {
                dup2(s->saved, STDIN_FILENO);
                close(s->saved);
        } else
                close(STDIN_FILENO);
}

/* Reads `text` as a whole and returns what became of it, each job followed by `end`. */
static char *lines_of(LinesFrom from, size_t n_frame, const void *text, size_t n, char end, size_t *ret_size,
                      char **ret_log) {
        _cleanup_host_ FakeHost *h = fake_host_new("lines", n_frame);
        pid_t writer = -1;
        int pipes[2];

        if (from == FROM_FILE) {
                write_file("in", text, n);
                fake_host_set(h, "path", in_folder("in"));
                ck_assert_int_eq(fake_host_start(h), 0);
                ck_assert_int_eq(produce_all(h), SLUICE_END);
        } else {
                if (from == FROM_PIPE_DIRECTLY)
                        fake_host_drop_carry(h);
                ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
                writer = fork();
                if (writer == 0) {
                        close(pipes[0]);
                        write_pipe(pipes[1], text, n);
                        _exit(0);
                }
                close(pipes[1]);
                _cleanup_stdin_ Stdin s = stdin_set(pipes[0]);
                close(pipes[0]);

                ck_assert_int_eq(fake_host_start(h), 0);
                ck_assert_int_eq(produce_all(h), SLUICE_END);
                check_finished(reap(writer));
        }
        if (ret_log)
                *ret_log = strdup(fake_host_logged(h));
        return fake_host_results(h, end, ret_size);
}

static void check_lines(const char *text, size_t n, const char *expected, size_t n_expected) {
        for (LinesFrom from = 0; from < _LINES_FROM_MAX; from++) {
                size_t size;
                _cleanup_free_ char *got = lines_of(from, FRAME, text, n, '|', &size, NULL);

                ck_assert_uint_eq(size, n_expected);
                ck_assert_mem_eq(got, expected, size);
        }
}

#define CHECK_LINES(text, expected) check_lines(text, sizeof(text) - 1, expected, sizeof(expected) - 1)

START_TEST(lines_makes_a_job_of_every_line) {
        CHECK_LINES("a\nbc\n", "a|bc|");
        CHECK_LINES("a\nno newline", "a|no newline|");
        CHECK_LINES("", "");
        CHECK_LINES("\n\na\n\n", "||a||");
        CHECK_LINES("dos\r\n\r\nunix\n", "dos\r|\r|unix|");
        CHECK_LINES("n\0u\0l\n\0\n", "n\0u\0l|\0|");
}
END_TEST

START_TEST(lines_survive_every_buffer_boundary) {
        enum { TEXT = 300000 };
        _cleanup_free_ char *text = malloc(TEXT);

        begin_chance();
        for (size_t i = 0; i < TEXT; i++)
                text[i] = (char)(chance(40) == 0 ? '\n' : 'a' + chance(26));
        text[TEXT - 1] = '\n';

        for (LinesFrom from = 0; from < _LINES_FROM_MAX; from++) {
                size_t size;
                _cleanup_free_ char *got = lines_of(from, 4096, text, TEXT, '\n', &size, NULL);

                ck_assert_uint_eq(size, TEXT);
                ck_assert_mem_eq(got, text, TEXT);
        }
}
END_TEST

START_TEST(a_line_longer_than_a_frame_is_reported_and_skipped) {
        static const size_t lengths[] = { FRAME - 3, 5000, 65535, 65536, 200000, 1048575, 1048576, 3000000 };

        for (size_t i = 0; i < ELEMENTSOF(lengths); i++) {
                size_t n = 6 + lengths[i] + 6;
                _cleanup_free_ char *text = malloc(n + 1);
                char expected[64];

                memcpy(text, "first\n", 6);
                memset(text + 6, 'x', lengths[i]);
                memcpy(text + 6 + lengths[i], "\nlast\n", 7);
                snprintf(expected, sizeof(expected), " has %zu bytes", lengths[i]);

                for (LinesFrom from = 0; from < _LINES_FROM_MAX; from++) {
                        _cleanup_free_ char *log = NULL;
                        _cleanup_free_ char *got = lines_of(from, FRAME, text, n, '|', NULL, &log);

                        ck_assert_str_eq(got, "first|last|");
                        ck_assert_msg(strstr(log, "<3>Line 2 of "), "%s", log);
                        ck_assert_msg(strstr(log, expected), "%s", log);
                }
        }
}
END_TEST

START_TEST(a_line_that_fills_a_frame_is_a_job) {
        static const size_t lengths[] = { FRAME - 4, 60000, 65535, 400000, 1000000 };

        for (size_t i = 0; i < ELEMENTSOF(lengths); i++) {
                _cleanup_free_ char *text = malloc(lengths[i] + 1);

                memset(text, 'x', lengths[i]);
                text[lengths[i]] = '\n';
                /* On a pipe, a line must fit the memory that outlives the worker. */
                for (LinesFrom from = 0; from < (lengths[i] < 65536 ? _LINES_FROM_MAX : FROM_PIPE); from++) {
                        size_t size;
                        _cleanup_free_ char *got =
                                lines_of(from, lengths[i] + 4, text, lengths[i] + 1, '\n', &size, NULL);

                        ck_assert_uint_eq(size, lengths[i] + 1);
                        ck_assert_mem_eq(got, text, size);
                }
        }
}
END_TEST

/* ---- lines: files ---- */

static FakeHost *lines_new(const char *name) {
        FakeHost *h = fake_host_new("lines", FRAME);

        fake_host_set(h, "path", in_folder(name));
        return h;
}

START_TEST(a_file_is_read_on_where_it_was_left) {
        _cleanup_free_ char *text = numbered(0, 1000, NULL);
        _cleanup_host_ FakeHost *h = NULL;
        SluiceProduced p;

        write_file("in", text, strlen(text));
        h = lines_new("in");
        do {
                ck_assert_int_eq(fake_host_start(h), 0);
                p = fake_host_produce(h);
                fake_host_stop(h);
        } while (p == SLUICE_MORE);
        check_results(h, text);

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_produce(h), SLUICE_END);
        check_results(h, text);
        ck_assert_str_eq(fake_host_logged(h), "");
}
END_TEST

START_TEST(a_replaced_or_truncated_file_is_read_from_its_beginning) {
        _cleanup_host_ FakeHost *h = NULL;
        char other[PATH_MAX + 64];

        write_file("in", "a\nb\n", 4);
        h = lines_new("in");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        fake_host_stop(h);

        write_file("other", "c\nd\ne\n", 6);
        snprintf(other, sizeof(other), "%s", in_folder("other"));
        ck_assert_int_eq(rename(other, in_folder("in")), 0);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        fake_host_stop(h);
        check_results(h, "a\nb\nc\nd\ne\n");
        ck_assert(logged(h, "<5>"));
        ck_assert(logged(h, "another file than before"));

        write_file("in", "f\n", 2); /* the same file, cut and written anew */
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, "a\nb\nc\nd\ne\nf\n");
        ck_assert(logged(h, "shorter than it was"));
}
END_TEST

START_TEST(a_file_that_inherits_an_inode_number_is_another_file) {
        _cleanup_host_ FakeHost *h = NULL;
        struct statx stx;

        write_file("in", "a\n", 2);
        ck_assert_int_eq(statx(AT_FDCWD, in_folder("in"), 0, STATX_BTIME, &stx), 0);
        if (!(stx.stx_mask & STATX_BTIME)) {
                printf("%s does not know when a file was born: nothing to see here\n", folder);
                return;
        }

        h = lines_new("in");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        fake_host_stop(h);

        ck_assert_int_eq(unlink(in_folder("in")), 0);
        write_file("in", "new\nfile\n", 9);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, "a\nnew\nfile\n");
}
END_TEST

START_TEST(a_file_on_standard_input_is_read_from_where_it_stands) {
        _cleanup_host_ FakeHost *h = fake_host_new("lines", FRAME);
        _cleanup_close_ int fd = -1;

        write_file("in", "a\nb\nc\n", 6);
        fd = open(in_folder("in"), O_RDONLY | O_CLOEXEC);
        ck_assert_int_eq(lseek(fd, 2, SEEK_SET), 2);
        _cleanup_stdin_ Stdin s = stdin_set(fd);

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        fake_host_stop(h);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, "b\nc\n");
}
END_TEST

START_TEST(a_missing_file_or_a_folder_is_explained) {
        _cleanup_host_ FakeHost *h = lines_new("missing");

        ck_assert_int_eq(fake_host_start(h), -ENOENT);
        ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "missing: No such file"));
        fake_host_set(h, "path", folder);
        ck_assert_int_eq(fake_host_start(h), -EISDIR);
}
END_TEST

START_TEST(a_file_killed_at_every_system_call_gives_every_line_once) {
        size_t n;
        _cleanup_free_ char *text = numbered(0, 1500, &n);

        write_file("in", text, n);
        for (unsigned stop = 1;; stop++) {
                _cleanup_host_ FakeHost *h = lines_new("in");
                const Killing k = { .host = h, .work = work_produce, .input = -1 };
                bool killed = run_killed_at(&k, stop);

                if (killed)
                        run_to_end(&k);
                check_results(h, text);
                if (!killed)
                        break;
        }
}
END_TEST

/* ---- lines: pipes ---- */

START_TEST(jobs_are_not_kept_while_waiting_for_more_input) {
        _cleanup_host_ FakeHost *h = fake_host_new("lines", FRAME);
        int pipes[2];

        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        _cleanup_stdin_ Stdin s = stdin_set(pipes[0]);

        ck_assert_int_eq(fake_host_start(h), 0);
        /* No end comes: to block with a job in hand would be for ever. */
        for (size_t i = 0; i < 5; i++) {
                write_pipe(pipes[1], "x\nbeginning of ", 15);
                produce_results(h, 2 * i + 1);
                write_pipe(pipes[1], "y\n", 2);
                produce_results(h, 2 * i + 2);
        }
        close(pipes[0]);
        close(pipes[1]);
}
END_TEST

static void on_signal(int sig) {
}

START_TEST(a_signal_ends_the_wait_for_input) {
        _cleanup_host_ FakeHost *h = fake_host_new("lines", FRAME);
        struct sigaction act = { .sa_handler = on_signal }, old;
        pid_t parent = getpid(), pid;
        int pipes[2];

        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        _cleanup_stdin_ Stdin s = stdin_set(pipes[0]);
        sigaction(SIGUSR1, &act, &old);
        ck_assert_int_eq(fake_host_start(h), 0);

        pid = fork();
        if (pid == 0)
                for (;;) { /* again and again, as the service does: one may come before the wait begins */
                        kill(parent, SIGUSR1);
                        usleep(1000);
                }
        ck_assert_int_eq(fake_host_produce(h), SLUICE_MORE);
        ck_assert_uint_eq(fake_host_n_results(h), 0);
        kill(pid, SIGKILL);
        (void)reap(pid);

        /* Asked to stop, it does not begin to wait. */
        fake_host_set_stopping(h, true);
        ck_assert_int_eq(fake_host_produce(h), SLUICE_MORE);
        sigaction(SIGUSR1, &old, NULL);
        close(pipes[0]);
        close(pipes[1]);
}
END_TEST

START_TEST(the_beginning_of_a_line_survives_a_restart) {
        _cleanup_host_ FakeHost *h = fake_host_new("lines", FRAME);
        int pipes[2];

        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        _cleanup_stdin_ Stdin s = stdin_set(pipes[0]);

        write_pipe(pipes[1], "a\nbegin", 7);
        ck_assert_int_eq(fake_host_start(h), 0);
        produce_results(h, 1);
        fake_host_stop(h);

        write_pipe(pipes[1], "ning\nc", 6);
        ck_assert_int_eq(fake_host_start(h), 0);
        produce_results(h, 2);
        fake_host_stop(h);

        close(pipes[1]);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, "a\nbeginning\nc\n");
        close(pipes[0]);
}
END_TEST

START_TEST(what_was_taken_from_a_pipe_is_finished_before_another_input) {
        _cleanup_host_ FakeHost *h = fake_host_new("lines", FRAME);
        int pipes[2];

        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        _cleanup_stdin_ Stdin s = stdin_set(pipes[0]);
        write_pipe(pipes[1], "a\nold rest", 10);
        ck_assert_int_eq(fake_host_start(h), 0);
        produce_results(h, 1);
        fake_host_stop(h);

        write_file("in", "new\n", 4);
        fake_host_set(h, "path", in_folder("in"));
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(produce_all(h), SLUICE_END);
        check_results(h, "a\nold rest\nnew\n");
        close(pipes[0]);
        close(pipes[1]);
}
END_TEST

/* A pipe that holds `text` and has no writer any more. */
static int pipe_with(const void *text, size_t n) {
        int pipes[2];

        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        write_pipe(pipes[1], text, n);
        close(pipes[1]);
        return pipes[0];
}

/* A small carry pipe takes a page at a time, so that the protocol goes round several times. */
static FakeHost *lines_with_small_carry(size_t n_frame) {
        FakeHost *h = fake_host_new("lines", n_frame);

        ck_assert_int_gt(fcntl(fake_host_carry(h)[1], F_SETPIPE_SZ, 4096), 0);
        return h;
}

/* The loop's frames: smaller than the carry pipe, so that several go out before it is filled again, and larger, so
 * that the next call finds nothing but the pipe to empty. */
START_TEST(a_pipe_killed_at_every_system_call_gives_every_line_once) {
        size_t n, n_frame = _i == 0 ? 2048 : 16384;
        _cleanup_free_ char *text = numbered(0, 2000, &n);

        for (unsigned stop = 1;; stop++) {
                _cleanup_close_ int input = pipe_with(text, n - 1); /* the last line has no newline */
                _cleanup_host_ FakeHost *h = lines_with_small_carry(n_frame);
                const Killing k = { .host = h, .work = work_produce, .input = input };
                bool killed = run_killed_at(&k, stop);

                if (killed)
                        run_to_end(&k);
                check_results(h, text);
                if (!killed) {
                        ck_assert_uint_gt(stop, 40); /* or this was no test */
                        break;
                }
        }
}
END_TEST

START_TEST(a_pipe_killed_again_and_again_gives_every_line_once) {
        size_t n;
        _cleanup_free_ char *text = numbered(0, 2000, &n);

        begin_chance();
        for (int round = 0; round < 25; round++) {
                _cleanup_close_ int input = pipe_with(text, n);
                _cleanup_host_ FakeHost *h = lines_with_small_carry(round % 2 == 0 ? 2048 : 16384);
                const Killing k = { .host = h, .work = work_produce, .input = input };

                for (unsigned most = 100; run_killed_at(&k, 1 + (unsigned)chance(most)); most++)
                        ;
                check_results(h, text);
        }
}
END_TEST

START_TEST(more_in_the_carry_pipe_than_memory_holds_is_taken_piece_by_piece) {
        size_t n;
        _cleanup_free_ char *text = numbered(0, 25000, &n);

        begin_chance();
        for (int round = 0; round < 10; round++) {
                _cleanup_close_ int input = pipe_with("end\n", 4);
                _cleanup_host_ FakeHost *h = fake_host_new("lines", 8192);
                const Killing k = { .host = h, .work = work_produce, .input = input };
                _cleanup_free_ char *got = NULL;

                ck_assert_int_gt(fcntl(fake_host_carry(h)[1], F_SETPIPE_SZ, 1 << 18), 0);
                { /* as a predecessor with a larger pipe would leave it */
                        _cleanup_stdin_ Stdin s = stdin_set(input);

                        ck_assert_int_eq(fake_host_start(h), 0);
                        fake_host_stop(h);
                        write_pipe(fake_host_carry(h)[1], text, n);
                }
                for (unsigned most = 120; run_killed_at(&k, 1 + (unsigned)chance(most)); most++)
                        ;
                got = fake_host_results(h, '\n', NULL);
                ck_assert_mem_eq(got, text, n);
                ck_assert_str_eq(got + n, "end\n");
        }
}
END_TEST

START_TEST(a_pipe_killed_at_any_instruction_gives_every_line_once) {
        enum { N_LINES = 400000 };
        unsigned n_kills = 0;
        pid_t writer;
        int pipes[2];

        begin_chance();
        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        writer = fork();
        if (writer == 0) {
                size_t n, step;
                char *text = numbered(0, N_LINES, &n);

                close(pipes[0]);
                for (size_t at = 0; at < n; at += step) {
                        step = 1 + chance(100);
                        if (step > n - at)
                                step = n - at;
                        write_pipe(pipes[1], text + at, step);
                }
                _exit(0);
        }
        close(pipes[1]);

        _cleanup_host_ FakeHost *h = fake_host_new("lines", 2048);
        const Killing k = { .host = h, .work = work_produce, .input = pipes[0] };
        _cleanup_free_ char *expected = numbered(0, N_LINES, NULL);

        while (run_killed_after(&k, (unsigned)chance(600 + 20 * n_kills)))
                n_kills++;
        check_finished(reap(writer));
        close(pipes[0]);
        check_results(h, expected);
        printf("%u workers killed\n", n_kills);
}
END_TEST

/* ---- lines: FIFOs ---- */

static FakeHost *lines_of_fifo(void) {
        ck_assert_int_eq(mkfifo(in_folder("fifo"), 0600), 0);
        return lines_new("fifo");
}

static int fifo_writer(void) {
        int fd = open(in_folder("fifo"), O_WRONLY | O_NONBLOCK | O_CLOEXEC);

        ck_assert_msg(fd >= 0, "nobody reads the FIFO: %m");
        return fd;
}

START_TEST(a_fifo_outlives_its_writers) {
        _cleanup_host_ FakeHost *h = lines_of_fifo();
        int fd;

        ck_assert_int_eq(fake_host_start(h), 0);
        fd = fifo_writer();
        write_pipe(fd, "a\nb", 3);
        close(fd);
        produce_results(h, 2); /* the end of a writer ends its last line */

        fd = fifo_writer();
        write_pipe(fd, "c\nd\n", 4);
        produce_results(h, 4);
        close(fd);

        fd = fifo_writer();
        write_pipe(fd, "e\n", 2);
        close(fd);
        produce_results(h, 5);
        check_results(h, "a\nb\nc\nd\ne\n");
}
END_TEST

START_TEST(a_fifo_without_writers_is_waited_for_without_spinning) {
        _cleanup_host_ FakeHost *h = lines_of_fifo();
        unsigned n_calls = 0;
        pid_t pid;
        int fd;

        ck_assert_int_eq(fake_host_start(h), 0);
        fd = fifo_writer();
        write_pipe(fd, "a\n", 2);
        close(fd);
        produce_results(h, 1);

        pid = fork();
        if (pid == 0) {
                usleep(100000); /* thousands of calls, if they do not block */
                fd = open(in_folder("fifo"), O_WRONLY | O_CLOEXEC);
                write_pipe(fd, "b\n", 2);
                _exit(0);
        }
        for (; fake_host_n_results(h) < 2; n_calls++)
                ck_assert_int_eq(fake_host_produce(h), SLUICE_MORE);
        check_finished(reap(pid));
        ck_assert_uint_le(n_calls, 10);
}
END_TEST

START_TEST(the_beginning_of_a_line_in_a_fifo_survives_a_restart_and_ends_with_its_writer) {
        _cleanup_host_ FakeHost *h = lines_of_fifo();
        int fd;

        ck_assert_int_eq(fake_host_start(h), 0);
        fd = fifo_writer();
        write_pipe(fd, "a\nbegin", 7);
        produce_results(h, 1);
        fake_host_stop(h);

        ck_assert_int_eq(fake_host_start(h), 0);
        write_pipe(fd, "ning\nrest", 9);
        produce_results(h, 2);
        fake_host_stop(h);

        close(fd); /* while nobody looks */
        ck_assert_int_eq(fake_host_start(h), 0);
        produce_results(h, 3);
        check_results(h, "a\nbeginning\nrest\n");
}
END_TEST

START_TEST(a_fifo_killed_at_any_instruction_gives_every_line_once) {
        enum { N_LINES = 400000 };
        _cleanup_host_ FakeHost *h = lines_of_fifo();
        const Killing k = { .host = h, .work = work_produce, .input = -1 };
        _cleanup_free_ char *expected = numbered(0, N_LINES, NULL);
        _cleanup_close_ int held = -1; /* a FIFO that nobody has open forgets what it holds */
        unsigned n_kills = 0;
        pid_t writer;

        begin_chance();
        held = open(in_folder("fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        writer = fork();
        if (writer == 0) {
                _cleanup_free_ char *text = numbered(0, N_LINES, NULL);
                size_t n = strlen(text), step;
                int fd = open(in_folder("fifo"), O_WRONLY | O_CLOEXEC);

                for (size_t at = 0; at < n; at += step) {
                        step = 1 + chance(100);
                        if (step > n - at)
                                step = n - at;
                        write_pipe(fd, text + at, step);
                }
                free(TAKE_PTR(text));
                _exit(0);
        }

        while (fake_host_n_results(h) < N_LINES) {
                ck_assert(run_killed_after(&k, (unsigned)chance(600 + 20 * n_kills)));
                n_kills++;
        }
        check_finished(reap(writer));
        check_results(h, expected);
        printf("%u workers killed\n", n_kills);
}
END_TEST

/* ---- log ---- */

static void check_logged(const char *payload, size_t n, const char *expected) {
        _cleanup_host_ FakeHost *h = fake_host_new("log", FRAME);

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, payload, n), SLUICE_DONE);
        ck_assert_str_eq(fake_host_logged(h), expected);
        ck_assert_uint_eq(fake_host_n_results(h), 0);
}

#define CHECK_LOGGED(payload, expected) check_logged(payload, sizeof(payload) - 1, "<6>" expected "\n")

START_TEST(log_escapes_what_is_not_printable) {
        CHECK_LOGGED("hello", "hello");
        CHECK_LOGGED("", "");
        CHECK_LOGGED("100%s %n", "100%s %n");
        CHECK_LOGGED("a\nb\tc\rd\\e", "a\\nb\\tc\\rd\\\\e");
        CHECK_LOGGED("\0\x1b[2J\x7f", "\\x00\\x1b[2J\\x7f");
        CHECK_LOGGED("gr\u00fc\u00df \u4e16 \U0001f600", "gr\u00fc\u00df \u4e16 \U0001f600");
        CHECK_LOGGED("\xc3", "\\xc3");          /* cut short */
        CHECK_LOGGED("\xff\x80", "\\xff\\x80"); /* no UTF-8 */
        CHECK_LOGGED("\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf",
                     "\\xc0\\xaf\\xe0\\x80\\xaf\\xf0\\x80\\x80\\xaf"); /* longer than needed */
        CHECK_LOGGED("\xed\xa0\x80\xf4\x90\x80\x80", "\\xed\\xa0\\x80\\xf4\\x90\\x80\\x80");
        CHECK_LOGGED("\xc2\x9b", "\\xc2\\x9b");          /* a control character of C1 */
        CHECK_LOGGED("\xe2\x80\xae", "\\xe2\\x80\\xae"); /* turns the text around */
}
END_TEST

START_TEST(log_cuts_long_payloads_and_says_so) {
        char payload[3000], expected[1100];

        memset(payload, 'x', sizeof(payload));
        memcpy(expected, "<6>", 3);
        memset(expected + 3, 'x', 1024);
        strcpy(expected + 1027, "\n");
        check_logged(payload, 1024, expected);
        strcpy(expected + 1027, "... (1025 bytes)\n");
        check_logged(payload, 1025, expected);
        strcpy(expected + 1027, "... (3000 bytes)\n");
        check_logged(payload, 3000, expected);

        /* Nothing is cut in two. */
        memcpy(payload + 1023, "\u00fc", 2);
        strcpy(expected + 1026, "... (1025 bytes)\n");
        check_logged(payload, 1025, expected);
}
END_TEST

START_TEST(log_has_a_level_and_a_prefix) {
        _cleanup_host_ FakeHost *h = fake_host_new("log", FRAME);

        fake_host_set(h, "level", "notice");
        fake_host_set(h, "prefix", "result: %d ");
        ck_assert_int_eq(fake_host_start(h), 0);
        fake_host_run(h, "7", 1);
        ck_assert_str_eq(fake_host_logged(h), "<5>result: %d 7\n");
        fake_host_stop(h);

        fake_host_set(h, "level", "loud");
        ck_assert_int_eq(fake_host_start(h), -EINVAL);
        ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "\"loud\" is none of debug, info"));
}
END_TEST

/* ---- file ---- */

static FakeHost *file_new(const char *name) {
        FakeHost *h = fake_host_new("file", FRAME);

        fake_host_set(h, "path", in_folder(name));
        return h;
}

START_TEST(file_appends_a_line_per_job) {
        _cleanup_host_ FakeHost *h = file_new("out");

        write_file("out", "before\n", 7);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, "a", 1), SLUICE_DONE);
        ck_assert_int_eq(fake_host_run(h, "", 0), SLUICE_DONE);
        ck_assert_int_eq(fake_host_run(h, "bc", 2), SLUICE_DONE);
        check_file("out", "before\na\n\nbc\n");
        ck_assert_str_eq(fake_host_logged(h), "");
}
END_TEST

START_TEST(file_can_do_without_newlines) {
        _cleanup_host_ FakeHost *h = file_new("out");

        fake_host_set(h, "newline", "false");
        fake_host_set(h, "sync", "true");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, "", 0), SLUICE_DONE);
        ck_assert_int_eq(fake_host_run(h, "a", 1), SLUICE_DONE);
        ck_assert_int_eq(fake_host_run(h, "b\n", 2), SLUICE_DONE);
        check_file("out", "ab\n");
}
END_TEST

START_TEST(file_commits_a_batch_and_its_position_in_one_step) {
        _cleanup_host_ FakeHost *h = file_new("out");
        const SluiceJob jobs[] = { { .data = "a", .size = 1 }, { .data = "b", .size = 1 } };
        size_t n_before;

        ck_assert_int_eq(fake_host_start(h), 0);
        n_before = fake_host_n_commits(h);
        ck_assert_int_eq(fake_host_run_batch(h, jobs, 2), 0);
        ck_assert_uint_eq(fake_host_n_commits(h), n_before + 1);
        ck_assert_uint_eq(fake_host_n_answers(h), 2);
        check_file("out", "a\nb\n");
}
END_TEST

START_TEST(file_creates_with_the_mode_asked_for) {
        static const char *const wrong[] = { "", "rw", "0x1ff", "649", "17777", "-1", "0644 " };
        _cleanup_host_ FakeHost *h = file_new("out");
        struct stat st;
        mode_t mask = umask(022);

        fake_host_set(h, "permissions", "0660");
        ck_assert_int_eq(fake_host_start(h), 0);
        umask(mask);
        ck_assert_int_eq(stat(in_folder("out"), &st), 0);
        ck_assert_uint_eq(st.st_mode & 07777, 0640);
        fake_host_stop(h);

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                fake_host_set(h, "permissions", wrong[i]);
                ck_assert_int_eq(fake_host_start(h), -EINVAL);
                ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "octal"));
        }
}
END_TEST

START_TEST(what_was_written_but_not_committed_is_cut_off) {
        _cleanup_host_ FakeHost *h = file_new("out");

        ck_assert_int_eq(fake_host_start(h), 0);
        fake_host_run(h, "a", 1);
        fake_host_stop(h);
        write_file("out", "a\nb\nc", 5); /* the same file: as if killed in the middle of "b\nc\n" */

        ck_assert_int_eq(fake_host_start(h), 0);
        check_file("out", "a\n");
        ck_assert(logged(h, "Cut 3 bytes"));
        fake_host_run(h, "b", 1);
        check_file("out", "a\nb\n");
}
END_TEST

START_TEST(another_or_a_shorter_file_is_appended_to_and_never_cut) {
        _cleanup_host_ FakeHost *h = file_new("out");
        char other[PATH_MAX + 64];

        ck_assert_int_eq(fake_host_start(h), 0);
        fake_host_run(h, "aaaa", 4);
        fake_host_stop(h);

        write_file("other", "somebody else's file\n", 21);
        snprintf(other, sizeof(other), "%s", in_folder("other"));
        ck_assert_int_eq(rename(other, in_folder("out")), 0);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert(logged(h, "<5>"));
        ck_assert(logged(h, "another file than before"));
        fake_host_run(h, "b", 1);
        fake_host_stop(h);
        check_file("out", "somebody else's file\nb\n");

        write_file("out", "new\n", 4);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert(logged(h, "has 4 bytes but had 23"));
        fake_host_run(h, "c", 1);
        check_file("out", "new\nc\n");
}
END_TEST

START_TEST(file_goes_on_in_a_new_file_when_asked_to_reopen) {
        _cleanup_host_ FakeHost *h = file_new("out");
        char old[PATH_MAX + 64];

        ck_assert_int_eq(fake_host_start(h), 0);
        fake_host_run(h, "a", 1);
        snprintf(old, sizeof(old), "%s", in_folder("out.1"));
        ck_assert_int_eq(rename(in_folder("out"), old), 0);
        fake_host_run(h, "b", 1);
        ck_assert_int_eq(fake_host_reopen(h), 0);
        fake_host_run(h, "c", 1);
        fake_host_stop(h);

        ck_assert_int_eq(fake_host_start(h), 0);
        fake_host_run(h, "d", 1);
        check_file("out.1", "a\nb\n");
        check_file("out", "c\nd\n");
        ck_assert_str_eq(fake_host_logged(h), "");

        /* The file cut in place, as logrotate's copytruncate does, leaves no hole. */
        ck_assert_int_eq(truncate(in_folder("out"), 0), 0);
        fake_host_run(h, "e", 1);
        fake_host_stop(h);
        ck_assert_int_eq(fake_host_start(h), 0);
        check_file("out", "e\n");
        ck_assert_str_eq(fake_host_logged(h), "");
}
END_TEST

START_TEST(a_failed_reopen_keeps_the_old_file) {
        _cleanup_host_ FakeHost *h = NULL;
        char old[PATH_MAX + 64];

        snprintf(old, sizeof(old), "%s", in_folder("logs"));
        ck_assert_int_eq(mkdir(old, 0700), 0);
        h = file_new("logs/out");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(rename(old, in_folder("moved")), 0);
        ck_assert_int_eq(fake_host_reopen(h), -ENOENT);
        ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "cannot reopen"));
        ck_assert_int_eq(fake_host_run(h, "a", 1), SLUICE_DONE);
        check_file("moved/out", "a\n");
}
END_TEST

START_TEST(a_full_disk_answers_nothing_and_leaves_no_half_line) {
        _cleanup_host_ FakeHost *h = file_new("out");
        const SluiceJob jobs[] = { { .data = "0123456", .size = 7 }, { .data = "abcdefg", .size = 7 } };
        struct sigaction ignore = { .sa_handler = SIG_IGN }, old;
        struct rlimit limit, less;

        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, "first", 5), SLUICE_DONE);

        /* A file that may not grow beyond 12 bytes: the write stops in the middle, as on a full disk. */
        sigaction(SIGXFSZ, &ignore, &old);
        getrlimit(RLIMIT_FSIZE, &limit);
        less = limit;
        less.rlim_cur = 12;
        setrlimit(RLIMIT_FSIZE, &less);
        int r = fake_host_run_batch(h, jobs, 2);
        setrlimit(RLIMIT_FSIZE, &limit);
        sigaction(SIGXFSZ, &old, NULL);

        ck_assert_int_eq(r, -EFBIG);
        ck_assert_uint_eq(fake_host_n_answers(h), 1);
        check_file("out", "first\n");
        ck_assert(logged(h, "<3>Cannot write to "));
        ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "File too large"));

        ck_assert_int_eq(fake_host_run_batch(h, jobs, 2), 0);
        check_file("out", "first\n0123456\nabcdefg\n");
}
END_TEST

START_TEST(devices_and_fifos_are_just_written_to) {
        _cleanup_host_ FakeHost *h = fake_host_new("file", FRAME);
        _cleanup_close_ int reader = -1;
        char got[16] = "";
        size_t n;

        fake_host_set(h, "path", "/dev/full");
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, "a", 1), SLUICE_RETRY); /* how the test host shows an error */
        ck_assert_uint_eq(fake_host_n_answers(h), 0);
        ck_assert_ptr_nonnull(strstr(fake_host_explained(h), "No space left"));
        fake_host_stop(h);

        ck_assert_int_eq(mkfifo(in_folder("fifo"), 0600), 0);
        fake_host_set(h, "path", in_folder("fifo"));
        ck_assert_int_eq(fake_host_start(h), -ENXIO); /* nobody reads it: tried again later */
        reader = open(in_folder("fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        ck_assert_int_eq(fake_host_start(h), 0);
        ck_assert_int_eq(fake_host_run(h, "a", 1), SLUICE_DONE);
        ck_assert_int_eq(read(reader, got, sizeof(got)), 2);
        ck_assert_str_eq(got, "a\n");
        (void)fake_host_position(h, &n);
        ck_assert_uint_eq(n, 0);
}
END_TEST

#define N_FILE_JOBS 300

static int work_file(FakeHost *h) {
        size_t next;

        while ((next = fake_host_n_answers(h)) < N_FILE_JOBS) {
                char texts[50][24];
                SluiceJob jobs[50];
                size_t n = 0;

                for (; n < 50 && next + n < N_FILE_JOBS; n++)
                        jobs[n] = (SluiceJob){
                                .data = texts[n],
                                .size = (size_t)snprintf(texts[n], sizeof(texts[n]), "%zu", next + n),
                        };
                if (fake_host_run_batch(h, jobs, n) < 0)
                        return 1;
        }

        return 0;
}

START_TEST(file_killed_at_every_system_call_has_every_line_once) {
        _cleanup_free_ char *expected = numbered(0, N_FILE_JOBS, NULL);

        for (unsigned stop = 1;; stop++) {
                _cleanup_host_ FakeHost *h = file_new("out");
                const Killing k = { .host = h, .work = work_file, .input = -1 };
                bool killed = run_killed_at(&k, stop);

                if (killed)
                        run_to_end(&k);
                check_file("out", expected);
                ck_assert_int_eq(unlink(in_folder("out")), 0);
                if (!killed) {
                        ck_assert_uint_gt(stop, 30);
                        break;
                }
        }
}
END_TEST

START_TEST(file_killed_again_and_again_has_every_line_once) {
        _cleanup_free_ char *expected = numbered(0, N_FILE_JOBS, NULL);

        begin_chance();
        for (int round = 0; round < 25; round++) {
                _cleanup_host_ FakeHost *h = file_new("out");
                const Killing k = { .host = h, .work = work_file, .input = -1 };

                for (unsigned most = 40; run_killed_at(&k, 1 + (unsigned)chance(most)); most++)
                        ;
                check_file("out", expected);
                ck_assert_int_eq(unlink(in_folder("out")), 0);
        }
}
END_TEST

static Suite *stages_suite(void) {
        Suite *s = suite_create("stages");
        TCase *t = tcase_create("identity");

        tcase_add_test(t, identity_hands_on_every_payload_unchanged);
        tcase_add_test(t, identity_fails_only_what_is_too_large);
        suite_add_tcase(s, t);

        t = tcase_create("range");
        tcase_add_test(t, range_makes_the_numbers_between_its_bounds);
        tcase_add_test(t, range_reaches_the_ends_of_64_bits_and_stops_there);
        tcase_add_test(t, range_writes_numbers_as_printf_does);
        tcase_add_test(t, range_goes_on_after_every_restart_and_ends_only_once);
        tcase_add_test(t, range_goes_on_when_its_end_is_raised_and_starts_anew_when_its_beginning_changes);
        tcase_add_test(t, range_refuses_a_step_of_zero);
        suite_add_tcase(s, t);

        t = tcase_create("lines");
        tcase_set_timeout(t, 120);
        tcase_add_checked_fixture(t, make_folder, NULL);
        tcase_add_test(t, lines_makes_a_job_of_every_line);
        tcase_add_test(t, lines_survive_every_buffer_boundary);
        tcase_add_test(t, a_line_longer_than_a_frame_is_reported_and_skipped);
        tcase_add_test(t, a_line_that_fills_a_frame_is_a_job);
        tcase_add_test(t, a_file_is_read_on_where_it_was_left);
        tcase_add_test(t, a_replaced_or_truncated_file_is_read_from_its_beginning);
        tcase_add_test(t, a_file_that_inherits_an_inode_number_is_another_file);
        tcase_add_test(t, a_file_on_standard_input_is_read_from_where_it_stands);
        tcase_add_test(t, a_missing_file_or_a_folder_is_explained);
        tcase_add_test(t, a_file_killed_at_every_system_call_gives_every_line_once);
        tcase_add_test(t, jobs_are_not_kept_while_waiting_for_more_input);
        tcase_add_test(t, a_signal_ends_the_wait_for_input);
        tcase_add_test(t, the_beginning_of_a_line_survives_a_restart);
        tcase_add_test(t, what_was_taken_from_a_pipe_is_finished_before_another_input);
        tcase_add_loop_test(t, a_pipe_killed_at_every_system_call_gives_every_line_once, 0, 2);
        tcase_add_test(t, a_pipe_killed_again_and_again_gives_every_line_once);
        tcase_add_test(t, more_in_the_carry_pipe_than_memory_holds_is_taken_piece_by_piece);
        tcase_add_test(t, a_pipe_killed_at_any_instruction_gives_every_line_once);
        tcase_add_test(t, a_fifo_outlives_its_writers);
        tcase_add_test(t, a_fifo_without_writers_is_waited_for_without_spinning);
        tcase_add_test(t, the_beginning_of_a_line_in_a_fifo_survives_a_restart_and_ends_with_its_writer);
        tcase_add_test(t, a_fifo_killed_at_any_instruction_gives_every_line_once);
        suite_add_tcase(s, t);

        t = tcase_create("log");
        tcase_add_test(t, log_escapes_what_is_not_printable);
        tcase_add_test(t, log_cuts_long_payloads_and_says_so);
        tcase_add_test(t, log_has_a_level_and_a_prefix);
        suite_add_tcase(s, t);

        t = tcase_create("file");
        tcase_set_timeout(t, 120);
        tcase_add_checked_fixture(t, make_folder, NULL);
        tcase_add_test(t, file_appends_a_line_per_job);
        tcase_add_test(t, file_can_do_without_newlines);
        tcase_add_test(t, file_commits_a_batch_and_its_position_in_one_step);
        tcase_add_test(t, file_creates_with_the_mode_asked_for);
        tcase_add_test(t, what_was_written_but_not_committed_is_cut_off);
        tcase_add_test(t, another_or_a_shorter_file_is_appended_to_and_never_cut);
        tcase_add_test(t, file_goes_on_in_a_new_file_when_asked_to_reopen);
        tcase_add_test(t, a_failed_reopen_keeps_the_old_file);
        tcase_add_test(t, a_full_disk_answers_nothing_and_leaves_no_half_line);
        tcase_add_test(t, devices_and_fifos_are_just_written_to);
        tcase_add_test(t, file_killed_at_every_system_call_has_every_line_once);
        tcase_add_test(t, file_killed_again_and_again_has_every_line_once);
        suite_add_tcase(s, t);

        return s;
}

int main(void) {
        SRunner *runner = srunner_create(stages_suite());
        int n_failed;

        make_base();
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        nftw(base, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
        return n_failed > 0;
}
