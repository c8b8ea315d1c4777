#include "ctl/submit.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl/exit.h"
#include "ctl/lines.h"
#include "ctl/select.h"
#include "submit/submit.h"
#include "supervisor/runtime.h"

typedef struct SubmitOptions {
        const char *instance;
        const char **files; /* the strings are argv's */
        size_t n_files;
        char **jobs;
        size_t n_jobs;
        char delimiter;
        bool no_wait;
        bool quiet;
        bool help;
} SubmitOptions;

typedef struct Submission {
        const SubmitOptions *options;
        Submitter *submitter;
        uint64_t next_id;
        uint64_t n_refused; /* too large */
        bool failed;        /* a file could not be read */
} Submission;

static void usage(FILE *f) {
        (void)fprintf(f,
                      "Usage: sluicectl submit [-i NAME] [OPTION...] [JOB...]\n"
                      "\n"
                      "Submits jobs to a running service: the arguments, or else each line of the files\n"
                      "named with --file, or else each line of standard input.\n"
                      "\n"
                      "  -i, --instance NAME  the service's instance (default: the only one running)\n"
                      "  -f, --file FILE      submit the lines of FILE, - being standard input; repeatable\n"
                      "  -0, --null           jobs end with a NUL instead of a newline\n"
                      "      --no-wait        stop when the queue is full instead of waiting for room\n"
                      "  -q, --quiet          print errors only\n"
                      "  -h, --help           print this help\n"
                      "\n"
                      "Interrupt: reading stops, and what was read is submitted; again: that is given up.\n"
                      "\n"
                      "Exit status: 0 all jobs are submitted, 1 some could not be, 2 wrong usage, 3 no such\n"
                      "instance or no access, 4 the queue is full (--no-wait), 130 interrupted.\n");
}

/* ---- signals ---- */

static volatile sig_atomic_t n_interrupts;
static int stop_fd = -1;

static void on_interrupt(int sig) {
        static const uint64_t one = 1;
        int saved = errno;
        ssize_t n;

        n_interrupts = n_interrupts + 1;
        /* For a reader that is about to wait and would miss the signal. Full, it is readable all the same. */
        n = write(stop_fd, &one, sizeof(one));
        (void)n;
        errno = saved;
}

static int catch_interrupts(void) {
        static const int signals[] = { SIGINT, SIGTERM };

        stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (stop_fd < 0)
                return -errno;

        for (size_t i = 0; i < ELEMENTSOF(signals); i++) {
                /* Without SA_RESTART: waiting for room in the queue ends, too. */
                struct sigaction action = { .sa_handler = on_interrupt }, old;

                if (sigaction(signals[i], NULL, &old) < 0)
                        return -errno;
                if (old.sa_handler != SIG_IGN && sigaction(signals[i], &action, NULL) < 0)
                        return -errno;
        }
        return 0;
}

/* ---- sending: these return EXIT_SUCCESS to go on, or the exit code ---- */

/* True if a call that a signal ended is to be made again: the first interrupt ends only the reading. */
static bool submission_insists(int r) {
        return r == -EINTR && n_interrupts < 2;
}

static int submission_judge(Submission *s, int r) {
        switch (r) {
        case 0:
                return EXIT_SUCCESS;
        case -EINTR:
                return EXIT_INTERRUPTED;
        case SUBMIT_E_AGAIN:
                return EXIT_WOULD_BLOCK;
        default:
                errno = -r;
                warn("cannot submit");
                return EXIT_WORK_FAILED;
        }
}

static int submission_flush(Submission *s) {
        int r;

        do
                r = s->options->no_wait ? submitter_try_flush(s->submitter) : submitter_flush(s->submitter);
        while (submission_insists(r));
        return submission_judge(s, r);
}

/* `source` and `number` name the job where it is refused: "numbers.txt: line 3". */
static int submission_add(Submission *s, const char *source, uint64_t number, const char *data, size_t size) {
        int r;

        do
                r = s->options->no_wait ? submitter_try_add(s->submitter, data, size, s->next_id)
                                        : submitter_add(s->submitter, data, size, s->next_id);
        while (submission_insists(r));

        if (r == SUBMIT_E_TOO_LARGE) {
                warnx("%s %" PRIu64 ": %zu bytes, at most %zu fit a frame", source, number, size,
                      submitter_job_max(s->submitter));
                s->n_refused++;
                return EXIT_SUCCESS;
        }
        if (r == 0)
                s->next_id++;
        return submission_judge(s, r);
}

static int submission_take_arguments(Submission *s) {
        for (size_t i = 0; i < s->options->n_jobs && n_interrupts == 0; i++) {
                const char *job = s->options->jobs[i];
                int code = submission_add(s, "job", i + 1, job, strlen(job));

                if (code != EXIT_SUCCESS)
                        return code;
        }
        return EXIT_SUCCESS;
}

/* ---- reading ---- */

/* Whatever can be read without waiting is packed together; before waiting, what is there goes on its way. */
static int submission_take_lines(Submission *s, Lines *lines, const char *source, const char *file) {
        while (n_interrupts == 0) {
                Line line;
                int code, r;

                if (!lines_ready(lines)) {
                        code = submission_flush(s);
                        if (code != EXIT_SUCCESS)
                                return code;
                }

                r = lines_next(lines, &line);
                if (r == LINES_E_END || r == LINES_E_STOP)
                        break;
                if (r == LINES_E_TOO_LONG) {
                        warnx("%s %" PRIu64 ": more than %zu bytes, at most %zu fit a frame", source,
                              lines_number(lines), LINES_LINE_MAX_BYTES, submitter_job_max(s->submitter));
                        s->n_refused++;
                        continue;
                }
                if (r < 0) {
                        errno = -r;
                        warn("cannot read %s", file);
                        s->failed = true;
                        break;
                }
                code = submission_add(s, source, line.number, line.data, line.size);
                if (code != EXIT_SUCCESS)
                        return code;
        }
        return EXIT_SUCCESS;
}

static int submission_take_descriptor(Submission *s, int fd, const char *source, const char *file) {
        const LinesOptions options = { .delimiter = s->options->delimiter, .stop_fd = stop_fd };
        _cleanup_(lines_freep) Lines *lines = NULL;
        int r;

        r = lines_new(fd, &options, &lines);
        if (r < 0) {
                errno = -r;
                warn("cannot read %s", file);
                return EXIT_WORK_FAILED;
        }
        return submission_take_lines(s, lines, source, file);
}

static int submission_take_file(Submission *s, const char *file) {
        _cleanup_free_ char *source = NULL;
        _cleanup_close_ int fd = -1;

        if (strcmp(file, "-") == 0)
                return submission_take_descriptor(s, STDIN_FILENO, "line", "standard input");

        fd = open(file, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
                if (errno == EINTR) /* a FIFO without a writer */
                        return EXIT_SUCCESS;
                warn("cannot open %s", file);
                s->failed = true;
                return EXIT_SUCCESS;
        }
        if (asprintf(&source, "%s: line", file) < 0) {
                source = NULL;
                warn("cannot read %s", file);
                return EXIT_WORK_FAILED;
        }
        return submission_take_descriptor(s, fd, source, file);
}

static int submission_take_all(Submission *s) {
        static const char *const standard_input = "-";
        const char *const *files = s->options->n_files > 0 ? s->options->files : &standard_input;
        size_t n_files = s->options->n_files > 0 ? s->options->n_files : 1;

        if (s->options->n_jobs > 0)
                return submission_take_arguments(s);

        for (size_t i = 0; i < n_files && n_interrupts == 0; i++) {
                int code = submission_take_file(s, files[i]);

                if (code != EXIT_SUCCESS)
                        return code;
        }
        return EXIT_SUCCESS;
}

/* ---- the end ---- */

static void submission_summarize(const Submission *s, int code) {
        uint64_t n_sent = submitter_n_sent(s->submitter);
        const char *plural = n_sent == 1 ? "" : "s";

        if (code == EXIT_WOULD_BLOCK)
                warnx("the queue is full: %" PRIu64 " job%s submitted, then no more", n_sent, plural);
        else if (code == EXIT_INTERRUPTED && submitter_n_pending(s->submitter) > 0)
                warnx("interrupted: %" PRIu64 " job%s submitted, %" PRIu32 " more read and given up", n_sent,
                      plural, submitter_n_pending(s->submitter));
        else if (code != EXIT_SUCCESS || (!s->options->quiet && isatty(STDERR_FILENO)))
                (void)fprintf(stderr, "%" PRIu64 " job%s submitted\n", n_sent, plural);
}

static int submission_run(Submission *s) {
        int code;

        code = submission_take_all(s);
        if (code == EXIT_SUCCESS)
                code = submission_flush(s);
        if (code == EXIT_SUCCESS && n_interrupts > 0)
                code = EXIT_INTERRUPTED;
        if (code == EXIT_SUCCESS && (s->failed || s->n_refused > 0))
                code = EXIT_WORK_FAILED;
        submission_summarize(s, code);
        return code;
}

/* ---- the instance ---- */

/* Whether this user has an instance of that name, and whether it runs. */
static bool find_own_instance(const char *name, bool *ret_running) {
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int fd = -1;

        if (runtime_find(name, &fd, &path) < 0)
                return false;
        *ret_running = runtime_holder(fd) > 0;
        return true;
}

static void explain_absent(const char *name) {
        bool running;

        if (!find_own_instance(name, &running))
                warnx("there is no instance '%s'", name);
        else if (running)
                warnx("instance '%s' makes its own jobs: its first stage is a source", name);
        else
                warnx("instance '%s' is not running and has no queue for jobs", name);
}

/* Queues are files of a file system of their own, which need not be mounted. */
static void explain_denied(const char *name) {
        char queue[SUBMIT_QUEUE_NAME_MAX] = "", path[SUBMIT_QUEUE_NAME_MAX + sizeof("/dev/mqueue")];
        const struct group *group = NULL;
        struct stat st;

        (void)submit_queue_name(name, queue);
        (void)snprintf(path, sizeof(path), "/dev/mqueue%s", queue);
        if (stat(path, &st) < 0) {
                warnx("no access to the queue %s: only its user and the members of its group may submit",
                      queue);
                return;
        }
        group = getgrgid(st.st_gid);
        if (group)
                warnx("no access to the queue %s: only its user and members of the group %s may submit",
                      queue, group->gr_name);
        else
                warnx("no access to the queue %s: only its user and members of the group %u may submit",
                      queue, (unsigned)st.st_gid);
}

static int open_instance(const char *name, bool quiet, mqd_t *ret) {
        bool running;
        int r = submit_open(name, ret);

        switch (r) {
        case 0:
                if (!quiet && find_own_instance(name, &running) && !running)
                        warnx("instance '%s' is not running; its next start will take the jobs up", name);
                return EXIT_SUCCESS;
        case SUBMIT_E_ABSENT:
                explain_absent(name);
                return EXIT_NO_INSTANCE;
        case SUBMIT_E_DENIED:
                explain_denied(name);
                return EXIT_NO_INSTANCE;
        case SUBMIT_E_UNSUITABLE:
                warnx("the queue of instance '%s' is open to everybody, so it is not a service's", name);
                return EXIT_NO_INSTANCE;
        default:
                errno = -r;
                warn("cannot open the queue of instance '%s'", name);
                return EXIT_WORK_FAILED;
        }
}

static int submit_with(const SubmitOptions *options, mqd_t queue) {
        _cleanup_(submitter_freep) Submitter *submitter = NULL;
        Submission s = { .options = options };
        int r;

        r = catch_interrupts();
        if (r == 0)
                r = submit_draw_id(&s.next_id);
        if (r == 0)
                r = submitter_new(queue, 0, &submitter);
        if (r == SUBMIT_E_UNSUITABLE) {
                warnx("the queue's messages are too small for a frame");
                return EXIT_NO_INSTANCE;
        }
        if (r < 0) {
                errno = -r;
                warn("cannot submit");
                return EXIT_WORK_FAILED;
        }
        s.submitter = submitter;
        return submission_run(&s);
}

/* ---- options ---- */

static int parse_options(int argc, char **argv, SubmitOptions *o) {
        enum { OPTION_NO_WAIT = 256 };
        static const struct option options[] = {
                { "instance", required_argument, NULL, 'i' },
                { "file", required_argument, NULL, 'f' },
                { "null", no_argument, NULL, '0' },
                { "no-wait", no_argument, NULL, OPTION_NO_WAIT },
                { "quiet", no_argument, NULL, 'q' },
                { "help", no_argument, NULL, 'h' },
                {},
        };
        int c;

        optind = 0; /* whoever called us has used getopt, too */
        while ((c = getopt_long(argc, argv, "i:f:0qh", options, NULL)) >= 0) {
                switch (c) {
                case 'i':
                        o->instance = optarg;
                        break;
                case 'f':
                        o->files[o->n_files++] = optarg;
                        break;
                case '0':
                        o->delimiter = '\0';
                        break;
                case OPTION_NO_WAIT:
                        o->no_wait = true;
                        break;
                case 'q':
                        o->quiet = true;
                        break;
                case 'h':
                        o->help = true;
                        return EXIT_SUCCESS;
                default:
                        (void)fputs("Try `sluicectl submit --help`.\n", stderr);
                        return EXIT_USAGE;
                }
        }
        o->jobs = argv + optind;
        o->n_jobs = (size_t)(argc - optind);
        if (o->n_jobs > 0 && o->n_files > 0) {
                warnx("jobs are either arguments or lines of files, not both");
                return EXIT_USAGE;
        }
        return EXIT_SUCCESS;
}

int submit_main(int argc, char **argv) {
        _cleanup_free_ const char **files = calloc((size_t)argc + 1, sizeof(*files));
        SubmitOptions options = { .files = files, .delimiter = '\n' };
        _cleanup_free_ char *instance = NULL;
        _cleanup_close_ int queue = -1;
        int code;

        if (!files) {
                warn("cannot submit");
                return EXIT_WORK_FAILED;
        }
        code = parse_options(argc, argv, &options);
        if (code != EXIT_SUCCESS)
                return code;
        if (options.help) {
                usage(stdout);
                return EXIT_SUCCESS;
        }

        code = select_instance(options.instance, true, &instance);
        if (code != EXIT_SUCCESS)
                return code;
        code = open_instance(instance, options.quiet, &queue);
        if (code != EXIT_SUCCESS)
                return code;
        return submit_with(&options, queue);
}
