#include "base/log.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

static int real_stderr = -1;
static char folder[] = "/tmp/sluice-test-log-XXXXXX";
static char socket_path[sizeof(folder) + sizeof("/journal")];

static void set_up(void) {
        static const char *const variables[] = { "JOURNAL_STREAM", "SLUICE_JOURNAL_SOCKET",
                                                 "SLUICE_LOG_LEVEL", "SLUICE_LOG_COLOR", "NO_COLOR" };

        for (size_t i = 0; i < ELEMENTSOF(variables); i++)
                ck_assert_int_eq(unsetenv(variables[i]), 0);

        real_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
        ck_assert_int_ge(real_stderr, 0);
        strcpy(folder + sizeof(folder) - sizeof("XXXXXX"), "XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        (void)snprintf(socket_path, sizeof(socket_path), "%s/journal", folder);
        log_set_level(LOG_INFO);
}

static void tear_down(void) {
        (void)dup2(real_stderr, STDERR_FILENO);
        real_stderr = close_fd(real_stderr);
        (void)unlink(socket_path);
        (void)rmdir(folder);
}

/* Standard error becomes `fd`; the log is opened on it as stage "prime" of a pipeline "numbers". */
static void open_log_on(int fd) {
        static const LogContext context = {
                .program = "unit", .pipeline = "numbers", .stage = "prime", .lane = 3
        };

        ck_assert_int_eq(dup2(fd, STDERR_FILENO), STDERR_FILENO);
        log_open(&context);
}

static int open_log_on_file(void) {
        int fd = memfd_create("log", MFD_CLOEXEC);

        ck_assert_int_ge(fd, 0);
        open_log_on(fd);
        return fd;
}

/* What was written so far, with a NUL behind it. */
static const char *contents(int fd) {
        static char buf[65536];
        ssize_t n = pread(fd, buf, sizeof(buf) - 1, 0);

        ck_assert_int_ge(n, 0);
        buf[n] = '\0';
        return buf;
}

static void assert_matches(const char *text, const char *pattern) {
        regex_t regex;
        int r;

        ck_assert_int_eq(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
        r = regexec(&regex, text, 0, NULL, 0);
        regfree(&regex);
        ck_assert_msg(r == 0, "\"%s\" does not match \"%s\"", text, pattern);
}

/* The message of a line without colours: what stands behind "t[...] ". */
static const char *message_of(const char *line) {
        const char *at = strstr(line, "] t[");

        ck_assert_ptr_nonnull(at);
        at = strstr(at + 4, "] ");
        ck_assert_ptr_nonnull(at);
        return at + 2;
}

static size_t count(const char *text, char c) {
        size_t n = 0;

        for (; *text; text++)
                n += *text == c;
        return n;
}

START_TEST(level_names_and_levels_are_each_others_inverse) {
        for (int level = LOG_ERR; level <= LOG_DEBUG; level++)
                ck_assert_int_eq(log_level_from_name(log_level_name(level)), level);

        ck_assert_str_eq(log_level_name(LOG_ERR), "err");
        ck_assert_str_eq(log_level_name(LOG_DEBUG), "debug");
        ck_assert_str_eq(log_level_name(LOG_EMERG), "err");
        ck_assert_int_eq(log_level_from_name("INFO"), -EINVAL);
        ck_assert_int_eq(log_level_from_name("inf"), -EINVAL);
        ck_assert_int_eq(log_level_from_name(""), -EINVAL);
}
END_TEST

START_TEST(a_line_has_time_level_stage_process_thread_and_message) {
        _cleanup_close_ int fd = open_log_on_file();
        char pattern[256];

        log_info("tested %d of %s", 7, "many");
        (void)snprintf(pattern, sizeof(pattern),
                       "^[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3} info    prime   "
                       "p\\[unit:%d\\] t\\[[^]]{1,15}:%d\\] tested 7 of many\n$",
                       (int)getpid(), (int)gettid());
        assert_matches(contents(fd), pattern);
}
END_TEST

START_TEST(the_time_is_local_time_now) {
        char before[16], after[16];
        time_t now;

        ck_assert_int_eq(setenv("TZ", "XYZ-05:30", 1), 0);
        tzset();
        _cleanup_close_ int fd = open_log_on_file();

        now = time(NULL);
        ck_assert_uint_gt(strftime(before, sizeof(before), "%H:%M:%S", localtime(&now)), 0);
        log_info("tick");
        now = time(NULL);
        ck_assert_uint_gt(strftime(after, sizeof(after), "%H:%M:%S", localtime(&now)), 0);

        const char *line = contents(fd);

        /* Around midnight `after` may be the smaller one; then either bound will do. */
        if (strcmp(before, after) <= 0)
                ck_assert(strncmp(line, before, 8) >= 0 && strncmp(line, after, 8) <= 0);
        else
                ck_assert(strncmp(line, before, 8) >= 0 || strncmp(line, after, 8) <= 0);
        ck_assert_int_eq(unsetenv("TZ"), 0);
}
END_TEST

START_TEST(a_stage_of_the_entry_wins_over_the_context) {
        _cleanup_close_ int fd = open_log_on_file();

        log_entry(LOG_WARNING, &(LogFields){ .stage = "a-longer-name", .lane = -1 }, "hm");
        assert_matches(contents(fd), "^[^ ]* warning a-longer-name p\\[unit:[0-9]+\\] t\\[[^]]*\\] hm\n$");
}
END_TEST

START_TEST(a_program_without_a_stage_keeps_the_columns) {
        static const LogContext context = { .program = "sluiced", .lane = -1 };
        _cleanup_close_ int fd = open_log_on_file();

        log_open(&context);
        log_error("no");
        assert_matches(contents(fd), "^[^ ]* err     -       p\\[sluiced:");
}
END_TEST

START_TEST(messages_above_the_level_are_skipped) {
        _cleanup_close_ int fd = open_log_on_file();

        log_debug("not this one");
        ck_assert_str_eq(contents(fd), "");

        log_set_level(LOG_ERR);
        ck_assert_int_eq(log_level(), LOG_ERR);
        log_warning("nor this");
        ck_assert_str_eq(contents(fd), "");

        log_set_level(LOG_DEBUG);
        log_debug("but this");
        ck_assert_str_eq(message_of(contents(fd)), "but this\n");
}
END_TEST

START_TEST(the_environment_sets_the_first_level) {
        ck_assert_int_eq(setenv("SLUICE_LOG_LEVEL", "debug", 1), 0);
        _cleanup_close_ int fd = open_log_on_file();

        ck_assert_int_eq(log_level(), LOG_DEBUG);
        ck_assert_str_eq(contents(fd), "");

        ck_assert_int_eq(setenv("SLUICE_LOG_LEVEL", "loud\n", 1), 0);
        open_log_on(fd);
        ck_assert_int_eq(log_level(), LOG_DEBUG);
        assert_matches(contents(fd), "warning .* SLUICE_LOG_LEVEL=loud\\\\n is not one of .*\n$");
}
END_TEST

/* One log line through a terminal, as the terminal got it. */
static const char *through_terminal(void) {
        static char buf[8192];
        _cleanup_close_ int terminal = -1;
        int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        size_t n = 0;

        ck_assert_int_ge(master, 0);
        ck_assert_int_eq(grantpt(master), 0);
        ck_assert_int_eq(unlockpt(master), 0);
        terminal = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
        ck_assert_int_ge(terminal, 0);

        open_log_on(terminal);
        log_error("broken");
        do {
                ssize_t r = read(master, buf + n, sizeof(buf) - 1 - n);

                ck_assert_int_gt(r, 0);
                n += (size_t)r;
                buf[n] = '\0';
        } while (!strchr(buf, '\n'));

        ck_assert_int_eq(dup2(real_stderr, STDERR_FILENO), STDERR_FILENO);
        (void)close_fd(master);
        return buf;
}

START_TEST(a_terminal_gets_colours_unless_told_otherwise) {
        ck_assert_ptr_nonnull(strstr(through_terminal(), "\x1b[31mbroken\x1b[0m"));

        ck_assert_int_eq(setenv("NO_COLOR", "1", 1), 0);
        ck_assert_ptr_null(strchr(through_terminal(), '\x1b'));

        ck_assert_int_eq(setenv("NO_COLOR", "", 1), 0);
        ck_assert_ptr_nonnull(strchr(through_terminal(), '\x1b'));

        ck_assert_int_eq(setenv("SLUICE_LOG_COLOR", "never", 1), 0);
        ck_assert_ptr_null(strchr(through_terminal(), '\x1b'));
}
END_TEST

START_TEST(a_file_gets_colours_only_on_demand) {
        _cleanup_close_ int fd = open_log_on_file();

        log_error("plain");
        ck_assert_ptr_null(strchr(contents(fd), '\x1b'));

        ck_assert_int_eq(setenv("SLUICE_LOG_COLOR", "always", 1), 0);
        ck_assert_int_eq(setenv("NO_COLOR", "1", 1), 0);
        open_log_on(fd);
        log_error("bright");
        ck_assert_ptr_nonnull(strstr(contents(fd), "\x1b[31mbright\x1b[0m\n"));
}
END_TEST

START_TEST(nothing_in_a_message_can_forge_a_line_or_command_the_terminal) {
        static const struct {
                const char *in, *out;
        } cases[] = {
                { "a\nb\r\tc", "a\\nb\\r\\tc" },
                { "\x1b[2J\x7f\x01", "\\x1b[2J\\x7f\\x01" },
                { "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x8c\x8a",
                  "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x8c\x8a" },
                { "\xc2\x9b"
                  "31m",
                  "\\xc2\\x9b"
                  "31m" }, /* C1 control */
                { "\x9b"
                  "31m",
                  "\\x9b"
                  "31m" },                                      /* the same in Latin-1 */
                { "\xc0\x8a", "\\xc0\\x8a" },                   /* overlong newline */
                { "\xe0\x80\x8a", "\\xe0\\x80\\x8a" },          /* and again */
                { "\xed\xa0\x80", "\\xed\\xa0\\x80" },          /* surrogate */
                { "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" }, /* beyond Unicode */
                { "\xe2\x82", "\\xe2\\x82" },                   /* cut short */
                { "\xe2\x80\xa8"
                  "x\xe2\x80\xae"
                  "y\xe2\x81\xa6",
                  "\\xe2\\x80\\xa8x\\xe2\\x80\\xaey\\xe2\\x81\\xa6" },
                { "\xe2\x80\xa7", "\xe2\x80\xa7" }, /* their harmless neighbour */
                { "back\\slash", "back\\slash" },
                { "", "" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_close_ int fd = open_log_on_file();
                const char *message;

                log_info("%s", cases[i].in);
                message = message_of(contents(fd));
                ck_assert_uint_eq(strlen(message), strlen(cases[i].out) + 1);
                ck_assert_msg(strncmp(message, cases[i].out, strlen(cases[i].out)) == 0, "case %zu: %s", i,
                              message);
                ck_assert_uint_eq(count(message, '\n'), 1);
        }
}
END_TEST

START_TEST(a_stage_or_thread_name_cannot_forge_a_line_either) {
        _cleanup_close_ int fd = memfd_create("log", MFD_CLOEXEC);
        char before[16];

        ck_assert_int_eq(prctl(PR_GET_NAME, before), 0);
        ck_assert_int_eq(prctl(PR_SET_NAME, "x\ny"), 0);
        open_log_on(fd);
        log_entry(LOG_INFO, &(LogFields){ .stage = "a\x1b\nb", .lane = -1 }, "ok");
        ck_assert_int_eq(prctl(PR_SET_NAME, before), 0);

        assert_matches(contents(fd), "^[^ ]* info    a\\\\x1b\\\\nb p[^ ]* t\\[x\\\\ny:[0-9]+\\] ok\n$");
}
END_TEST

START_TEST(a_long_message_is_cut_between_characters_and_marked) {
        char huge[20000];

        /* Every offset, so that the cut meets each byte of a character. */
        for (size_t shift = 0; shift < 4; shift++) {
                _cleanup_close_ int fd = open_log_on_file();
                const char *line;
                size_t n;

                memset(huge, 'x', shift);
                for (n = shift; n + 4 < sizeof(huge); n += 4)
                        memcpy(huge + n, "\xf0\x9f\x8c\x8a", 4);
                huge[n] = '\0';
                log_info("%s", huge);

                line = contents(fd);
                n = strlen(line);
                ck_assert_uint_le(n, PIPE_BUF);
                ck_assert_uint_gt(n, PIPE_BUF - 32);
                ck_assert_str_eq(line + n - 4, "...\n");
                ck_assert_ptr_null(strchr(line, '\\')); /* half a character would have been escaped */
        }
}
END_TEST

START_TEST(a_message_that_grows_by_escaping_still_is_one_bounded_line) {
        char controls[4000];
        _cleanup_close_ int fd = open_log_on_file();

        for (size_t size = 900; size < sizeof(controls); size++) {
                const char *line;
                size_t n;

                memset(controls, '\x01', size);
                controls[size] = '\0';
                ck_assert_int_eq(ftruncate(fd, 0), 0);
                ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
                log_error("%s", controls);

                line = contents(fd);
                n = strlen(line);
                ck_assert_uint_le(n, PIPE_BUF);
                ck_assert_uint_eq(count(line, '\n'), 1);
                ck_assert_int_eq(line[n - 1], '\n');
                if (size >= 1024)
                        ck_assert_str_eq(line + n - 4, "...\n");
        }
}
END_TEST

START_TEST(errno_is_kept_and_can_be_printed) {
        _cleanup_close_ int fd = open_log_on_file();

        errno = ENOENT;
        log_error("no luck: %m");
        ck_assert_int_eq(errno, ENOENT);
        ck_assert_str_eq(message_of(contents(fd)), "no luck: No such file or directory\n");
}
END_TEST

START_TEST(a_lost_line_is_counted_and_reported_with_the_next) {
        _cleanup_close_ int fd = open_log_on_file();

        (void)close(STDERR_FILENO);
        errno = ENOENT;
        log_error("into the void");
        log_error("again");
        ck_assert_int_eq(errno, ENOENT);

        ck_assert_int_eq(dup2(fd, STDERR_FILENO), STDERR_FILENO);
        log_info("back");
        ck_assert_str_eq(message_of(contents(fd)), "[2 earlier messages lost] back\n");

        log_info("and on");
        ck_assert_ptr_nonnull(strstr(contents(fd), "] and on\n"));
}
END_TEST

START_TEST(each_line_is_a_single_write) {
        int pair[2];
        char buf[PIPE_BUF + 1];

        /* A datagram socket keeps every write apart. */
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
        open_log_on(pair[1]);
        log_info("first");
        log_info("second");

        for (size_t i = 0; i < 2; i++) {
                ssize_t n = recv(pair[0], buf, sizeof(buf) - 1, MSG_DONTWAIT);

                ck_assert_int_gt(n, 0);
                buf[n] = '\0';
                ck_assert_str_eq(message_of(buf), i == 0 ? "first\n" : "second\n");
        }
        (void)close(pair[0]);
        (void)close(pair[1]);
}
END_TEST

#define N_THREADS 4
#define N_LINES 2000

static void *log_many(void *arg) {
        char name[16];

        (void)snprintf(name, sizeof(name), "thread-%d", *(int *)arg);
        (void)prctl(PR_SET_NAME, name);
        for (int i = 0; i < N_LINES; i++)
                log_info("%s line %d", name, i);
        return NULL;
}

START_TEST(threads_share_a_full_pipe_without_losing_or_mixing_lines) {
        int numbers[N_THREADS], next[N_THREADS] = { 0 }, pipe_fds[2];
        pthread_t threads[N_THREADS];
        _cleanup_fclose_ FILE *f = NULL;
        char line[PIPE_BUF];

        /* Non-blocking on top: another process that shares the descriptor may have done that. */
        ck_assert_int_eq(pipe2(pipe_fds, O_CLOEXEC), 0);
        ck_assert_int_eq(fcntl(pipe_fds[1], F_SETFL, O_NONBLOCK), 0);
        open_log_on(pipe_fds[1]);
        for (int i = 0; i < N_THREADS; i++) {
                numbers[i] = i;
                ck_assert_int_eq(pthread_create(&threads[i], NULL, log_many, &numbers[i]), 0);
        }

        f = fdopen(pipe_fds[0], "r");
        ck_assert_ptr_nonnull(f);
        for (int n = 0; n < N_THREADS * N_LINES; n++) {
                int inside, thread, i, end = 0;

                ck_assert_ptr_nonnull(fgets(line, sizeof(line), f));
                ck_assert_int_eq(sscanf(line,
                                        "%*s info prime p[unit:%*d] t[thread-%d:%*d] thread-%d line %d%n",
                                        &inside, &thread, &i, &end),
                                 3);
                ck_assert_str_eq(line + end, "\n");
                ck_assert_int_eq(inside, thread);
                ck_assert_int_eq(i, next[thread]++);
        }

        for (int i = 0; i < N_THREADS; i++)
                ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
        (void)close(pipe_fds[1]);
}
END_TEST

START_TEST(a_forked_child_writes_its_own_number) {
        _cleanup_close_ int fd = open_log_on_file();
        char pattern[128];
        int status;
        pid_t pid;

        log_info("parent");
        pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                log_info("child");
                _exit(0);
        }
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);

        (void)snprintf(pattern, sizeof(pattern), "p\\[unit:%d\\] t\\[[^]]*:%d\\] child\n$", (int)pid,
                       (int)pid);
        assert_matches(contents(fd), pattern);
}
END_TEST

/* A journal: a datagram socket of our own, and JOURNAL_STREAM naming our standard error. */
static int bind_journal(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        ck_assert_int_ge(fd, 0);
        ck_assert_uint_lt(strlen(socket_path), sizeof(address.sun_path));
        strcpy(address.sun_path, socket_path);
        ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        return fd;
}

static void set_journal_stream(int fd, unsigned long long inode_offset) {
        struct stat st;
        char value[64];

        ck_assert_int_eq(fstat(fd, &st), 0);
        (void)snprintf(value, sizeof(value), "%llu:%llu", (unsigned long long)st.st_dev,
                       (unsigned long long)st.st_ino + inode_offset);
        ck_assert_int_eq(setenv("JOURNAL_STREAM", value, 1), 0);
        ck_assert_int_eq(setenv("SLUICE_JOURNAL_SOCKET", socket_path, 1), 0);
}

/* Returns the journal; `ret_file` is what standard error is. */
static int open_log_on_journal(int *ret_file) {
        int file = memfd_create("log", MFD_CLOEXEC), journal = bind_journal();

        ck_assert_int_ge(file, 0);
        set_journal_stream(file, 0);
        open_log_on(file);
        *ret_file = file;
        return journal;
}

typedef struct Entry {
        uint8_t bytes[16384];
        size_t n;
} Entry;

static bool entry_receive(int journal, Entry *entry) {
        ssize_t n = recv(journal, entry->bytes, sizeof(entry->bytes), 0);

        if (n < 0) {
                ck_assert_int_eq(errno, EAGAIN);
                return false;
        }
        entry->n = (size_t)n;
        return true;
}

/* The value of a field in journald's format, both forms; NULL if it is not there. Checks the whole datagram. */
static const char *entry_field(const Entry *entry, const char *name) {
        static char value[8192];
        const uint8_t *at = entry->bytes, *end = at + entry->n;
        bool found = false;

        while (at < end) {
                const uint8_t *line_end = memchr(at, '\n', (size_t)(end - at)), *equals, *data;
                size_t n_name, n_value;

                ck_assert_ptr_nonnull(line_end);
                equals = memchr(at, '=', (size_t)(line_end - at));
                n_name = (size_t)((equals ? equals : line_end) - at);
                data = (equals ? equals : line_end) + 1;
                n_value = (size_t)(line_end - data);
                if (!equals) {
                        n_value = 0;
                        ck_assert_int_ge(end - data, 8);
                        for (size_t i = 0; i < 8; i++)
                                n_value |= (size_t)data[i] << 8 * i;
                        data += 8;
                        ck_assert_uint_lt(n_value, (size_t)(end - data));
                }
                ck_assert_int_eq(data[n_value], '\n');

                if (n_name == strlen(name) && memcmp(at, name, n_name) == 0) {
                        ck_assert(!found);
                        ck_assert_uint_lt(n_value, sizeof(value));
                        memcpy(value, data, n_value);
                        value[n_value] = '\0';
                        found = true;
                }
                at = data + n_value + 1;
        }

        return found ? value : NULL;
}

START_TEST(the_journal_gets_every_field) {
        _cleanup_close_ int file = -1, journal = open_log_on_journal(&file);
        char tid[16];
        Entry entry;

        log_entry(LOG_WARNING,
                  &(LogFields){ .message_id = "0123456789abcdef0123456789abcdef",
                                .lane = 12,
                                .has_job = true,
                                .job = UINT64_MAX,
                                .attempt = 2 },
                  "=odd= %s", "message");

        ck_assert(entry_receive(journal, &entry));
        (void)snprintf(tid, sizeof(tid), "%d", (int)gettid());
        ck_assert_str_eq(entry_field(&entry, "MESSAGE"), "=odd= message");
        ck_assert_str_eq(entry_field(&entry, "PRIORITY"), "4");
        ck_assert_str_eq(entry_field(&entry, "SYSLOG_IDENTIFIER"), "unit");
        ck_assert_str_eq(entry_field(&entry, "TID"), tid);
        ck_assert_str_eq(entry_field(&entry, "MESSAGE_ID"), "0123456789abcdef0123456789abcdef");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_PIPELINE"), "numbers");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_STAGE"), "prime");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_LANE"), "12");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_JOB"), "18446744073709551615");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_ATTEMPT"), "2");
        ck_assert_str_eq(contents(file), "");
}
END_TEST

START_TEST(the_journal_gets_no_field_that_is_not_set) {
        static const LogContext context = { .program = "sluiced", .lane = -1 };
        static const char *const absent[] = { "MESSAGE_ID",  "SLUICE_PIPELINE", "SLUICE_STAGE",
                                              "SLUICE_LANE", "SLUICE_JOB",      "SLUICE_ATTEMPT" };
        _cleanup_close_ int file = -1, journal = open_log_on_journal(&file);
        Entry entry;

        log_open(&context);
        log_info("bare");
        ck_assert(entry_receive(journal, &entry));
        for (size_t i = 0; i < ELEMENTSOF(absent); i++)
                ck_assert_msg(entry_field(&entry, absent[i]) == NULL, "%s", absent[i]);
        ck_assert_str_eq(entry_field(&entry, "MESSAGE"), "bare");
}
END_TEST

START_TEST(a_value_with_newlines_cannot_forge_a_journal_field) {
        _cleanup_close_ int file = -1, journal = open_log_on_journal(&file);
        Entry entry;

        log_entry(LOG_INFO, &(LogFields){ .stage = "a\nPRIORITY=0", .lane = -1 }, "first\nSLUICE_LANE=9\n");
        ck_assert(entry_receive(journal, &entry));
        ck_assert_str_eq(entry_field(&entry, "MESSAGE"), "first\nSLUICE_LANE=9\n");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_STAGE"), "a\nPRIORITY=0");
        ck_assert_str_eq(entry_field(&entry, "PRIORITY"), "6");
        ck_assert_str_eq(entry_field(&entry, "SLUICE_LANE"), "3");
}
END_TEST

START_TEST(a_long_journal_message_is_cut_and_marked) {
        _cleanup_close_ int file = -1, journal = open_log_on_journal(&file);
        char huge[20000], stage[9000];
        const char *message;
        Entry entry;

        memset(huge, 'm', sizeof(huge) - 1);
        huge[sizeof(huge) - 1] = '\0';
        memset(stage, 's', sizeof(stage) - 1);
        stage[sizeof(stage) - 1] = '\0';
        log_entry(LOG_INFO, &(LogFields){ .stage = stage, .lane = 1 }, "%s", huge);

        ck_assert(entry_receive(journal, &entry));
        message = entry_field(&entry, "MESSAGE");
        ck_assert_uint_gt(strlen(message), 4000);
        ck_assert_uint_lt(strlen(message), 4100);
        ck_assert_str_eq(message + strlen(message) - 4, "m...");
        ck_assert_ptr_null(
                entry_field(&entry, "SLUICE_STAGE")); /* no room: left out, the rest stays readable */
        ck_assert_str_eq(entry_field(&entry, "SLUICE_LANE"), "1");
}
END_TEST

START_TEST(a_stalled_journal_blocks_nobody_and_learns_what_it_missed) {
        _cleanup_close_ int file = -1, journal = open_log_on_journal(&file);
        const int n_sent = 5000;
        char note[64];
        Entry entry;
        int n = 0;

        for (int i = 0; i < n_sent; i++) {
                errno = ENOENT;
                log_info("%d", i);
                ck_assert_int_eq(errno, ENOENT);
        }

        while (entry_receive(journal, &entry)) {
                (void)snprintf(note, sizeof(note), "%d", n++);
                ck_assert_str_eq(entry_field(&entry, "MESSAGE"), note);
        }
        ck_assert_int_gt(n, 0);
        ck_assert_int_lt(n, n_sent);

        log_info("awake");
        ck_assert(entry_receive(journal, &entry));
        (void)snprintf(note, sizeof(note), "[%d earlier messages lost] awake", n_sent - n);
        ck_assert_str_eq(entry_field(&entry, "MESSAGE"), note);

        log_info("and on");
        ck_assert(entry_receive(journal, &entry));
        ck_assert_str_eq(entry_field(&entry, "MESSAGE"), "and on");
}
END_TEST

START_TEST(a_journal_that_comes_back_is_found_again) {
        _cleanup_close_ int file = -1, journal = open_log_on_journal(&file);
        Entry entry;

        journal = close_fd(journal);
        log_info("nobody there");
        ck_assert_int_eq(unlink(socket_path), 0);
        journal = bind_journal();
        log_info("hello");
        ck_assert(entry_receive(journal, &entry));
        ck_assert_str_eq(entry_field(&entry, "MESSAGE"), "[1 earlier message lost] hello");
}
END_TEST

START_TEST(a_journal_that_reads_somebody_else_is_left_alone) {
        _cleanup_close_ int file = memfd_create("log", MFD_CLOEXEC), journal = bind_journal();
        Entry entry;

        set_journal_stream(file, 1); /* inherited, but standard error went elsewhere since */
        open_log_on(file);
        log_info("to the file");
        ck_assert(!entry_receive(journal, &entry));
        ck_assert_str_eq(message_of(contents(file)), "to the file\n");
}
END_TEST

START_TEST(without_a_reachable_journal_lines_go_to_standard_error) {
        _cleanup_close_ int file = memfd_create("log", MFD_CLOEXEC);

        set_journal_stream(file, 0);
        open_log_on(file);
        log_info("still here");
        ck_assert_str_eq(message_of(contents(file)), "still here\n");
}
END_TEST

static TCase *test_case(Suite *suite, const char *name) {
        TCase *tcase = tcase_create(name);

        tcase_add_checked_fixture(tcase, set_up, tear_down);
        /* The whole run has a limit of its own; a sanitizer on a busy machine is slow, not hung. */
        tcase_set_timeout(tcase, 60);
        suite_add_tcase(suite, tcase);
        return tcase;
}

static Suite *log_suite(void) {
        Suite *suite = suite_create("log");
        TCase *lines = test_case(suite, "lines"), *journal = test_case(suite, "journal");

        tcase_add_test(lines, level_names_and_levels_are_each_others_inverse);
        tcase_add_test(lines, a_line_has_time_level_stage_process_thread_and_message);
        tcase_add_test(lines, the_time_is_local_time_now);
        tcase_add_test(lines, a_stage_of_the_entry_wins_over_the_context);
        tcase_add_test(lines, a_program_without_a_stage_keeps_the_columns);
        tcase_add_test(lines, messages_above_the_level_are_skipped);
        tcase_add_test(lines, the_environment_sets_the_first_level);
        tcase_add_test(lines, a_terminal_gets_colours_unless_told_otherwise);
        tcase_add_test(lines, a_file_gets_colours_only_on_demand);
        tcase_add_test(lines, nothing_in_a_message_can_forge_a_line_or_command_the_terminal);
        tcase_add_test(lines, a_stage_or_thread_name_cannot_forge_a_line_either);
        tcase_add_test(lines, a_long_message_is_cut_between_characters_and_marked);
        tcase_add_test(lines, a_message_that_grows_by_escaping_still_is_one_bounded_line);
        tcase_add_test(lines, errno_is_kept_and_can_be_printed);
        tcase_add_test(lines, a_lost_line_is_counted_and_reported_with_the_next);
        tcase_add_test(lines, each_line_is_a_single_write);
        tcase_add_test(lines, threads_share_a_full_pipe_without_losing_or_mixing_lines);
        tcase_add_test(lines, a_forked_child_writes_its_own_number);

        tcase_add_test(journal, the_journal_gets_every_field);
        tcase_add_test(journal, the_journal_gets_no_field_that_is_not_set);
        tcase_add_test(journal, a_value_with_newlines_cannot_forge_a_journal_field);
        tcase_add_test(journal, a_long_journal_message_is_cut_and_marked);
        tcase_add_test(journal, a_stalled_journal_blocks_nobody_and_learns_what_it_missed);
        tcase_add_test(journal, a_journal_that_comes_back_is_found_again);
        tcase_add_test(journal, a_journal_that_reads_somebody_else_is_left_alone);
        tcase_add_test(journal, without_a_reachable_journal_lines_go_to_standard_error);
        return suite;
}

int main(void) {
        SRunner *runner = srunner_create(log_suite());
        int n_failed;

        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
