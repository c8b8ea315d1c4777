#include "ctl/run.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "ctl/collect.h"
#include "ctl/exit.h"
#include "ctl/feed.h"
#include "ctl/progress.h"
#include "pipeline/config.h"
#include "supervisor/instance.h"
#include "supervisor/plugins.h"
#include "supervisor/supervisor.h"

#define BAR_USEC (100 * USEC_PER_MSEC)
#define JSON_USEC (500 * USEC_PER_MSEC)

/* A run that is over before this shows no bar at all. */
#define BAR_DELAY_USEC (300 * USEC_PER_MSEC)

typedef struct RunOptions {
        const char *config;
        const char *const *words;
        size_t n_words;
        uint32_t n_workers;
        bool keep_order;
        char separator;
        ProgressStyle progress;
        bool quiet;
} RunOptions;

typedef struct Run {
        RunOptions options;
        Pipeline *pipeline;
        Instance *instance;
        sd_event *event;
        Supervisor *supervisor;
        Collector *collector;
        Feeder *feeder;

        int told_fd; /* eventfd: a thread has set one of these */
        _Atomic bool fed;
        _Atomic int feed_error;
        _Atomic bool output_broken;
        _Atomic int output_error;

        SupervisorEnd end;
        unsigned n_interrupts;
        uint64_t start_nsec, last_nsec, last_done;
        double rate;
        uint64_t input_bytes; /* of a regular file; 0: not known */
        bool bar_shown;
        pthread_mutex_t terminal; /* the bar and what else is written to standard error */
        sd_event_source *told_source, *progress_source, *room_source;
} Run;

static void usage(FILE *f) {
        (void)fprintf(
                f,
                "Usage: sluicectl run [OPTION]... STAGE[:KEY=VALUE,...] [STAGE...] < input > output\n"
                "       sluicectl run [OPTION]... -c FILE < input > output\n"
                "\n"
                "Runs a pipeline once, in the foreground: each input line is a job, each result a line\n"
                "of output. If the first stage is a source, the run ends when the source does; if the\n"
                "last is a sink, only the summary is printed. Results come as they are ready.\n"
                "\n"
                "  -c, --config FILE    the stages of a configuration file\n"
                "  -k, --keep-order     results in the order of their input lines\n"
                "  -j, --workers N      workers for every stage named (default: the processors there are;\n"
                "                       STAGE:workers=N for one)\n"
                "      --mode MODE      how handlers run: process\n"
                "  -0, --null           input and output are separated by NUL, not newline\n"
                "      --progress HOW   bar, json (a line of JSON twice a second), none; default: a bar\n"
                "                       if standard error is a terminal\n"
                "  -q, --quiet          no summary, no bar, warnings and errors only\n"
                "  -v, --verbose        log at debug level\n"
                "  -h, --help           print this help\n"
                "\n"
                "Failed jobs go to standard error as `line N: MESSAGE`. Interrupt once to stop reading\n"
                "and finish, twice to stop now.\n"
                "\n"
                "Exit status: 0 every job succeeded, 1 a job failed or the run could not go on, 2 wrong\n"
                "usage, 78 bad configuration, 130 interrupted.\n"
                "\n"
                "  seq 1 999 | sluicectl run prime\n"
                "  sluicectl run range:from=1,to=1000000 prime | grep -c ' prime$'\n"
                "  sluicectl run -c conf/prime.conf\n");
}

/* ---- standard error, which has a bar in it ---- */

static void terminal_clear_bar(Run *run) {
        if (run->bar_shown)
                (void)fputs("\r\033[K", stderr);
        run->bar_shown = false;
}

__attribute__((format(printf, 2, 3))) static void terminal_print(Run *run, const char *format, ...) {
        va_list ap;

        (void)pthread_mutex_lock(&run->terminal);
        terminal_clear_bar(run);
        va_start(ap, format);
        (void)vfprintf(stderr, format, ap);
        va_end(ap);
        (void)fflush(stderr);
        (void)pthread_mutex_unlock(&run->terminal);
}

static bool run_reads_lines(const Run *run) {
        return pipeline_has_ingress(run->pipeline);
}

static void on_failure(void *userdata, uint64_t id, const char *text, size_t n_text) {
        Run *run = userdata;

        terminal_print(run, "%s %" PRIu64 ": %.*s\n", run_reads_lines(run) ? "line" : "job", id, (int)n_text,
                       text);
}

/* ---- progress ---- */

static uint64_t run_count_done(const Run *run) {
        SupervisorCounts counts;
        uint64_t sum = 0;

        if (run->collector)
                return atomic_load(&collector_counts(run->collector)->n_complete);
        for (size_t i = 0; i < run->pipeline->n_stages; i++) {
                if (run->pipeline->stages[i].next != STAGE_NONE)
                        continue;
                supervisor_count(run->instance, i, &counts);
                sum += counts.n_done;
        }
        return sum;
}

static uint64_t run_count_failed(const Run *run) {
        SupervisorCounts counts;
        uint64_t sum = 0;

        if (run->collector)
                return atomic_load(&collector_counts(run->collector)->n_failed);
        for (size_t i = 0; i < run->pipeline->n_stages; i++) {
                supervisor_count(run->instance, i, &counts);
                sum += counts.n_failed;
        }
        return sum;
}

/* Lines are about equally long: the part of the bytes that was read, less what is under way. */
static double run_fraction(const Run *run, uint64_t n_done) {
        uint64_t n_lines, n_bytes;

        if (!run->feeder || run->input_bytes == 0)
                return -1;
        n_lines = atomic_load(&feeder_counts(run->feeder)->n_lines);
        n_bytes = atomic_load(&feeder_counts(run->feeder)->n_bytes);
        if (n_lines == 0)
                return 0;
        return MIN(1.0, (double)n_bytes / (double)run->input_bytes * (double)n_done / (double)n_lines);
}

static void run_measure(Run *run, ProgressNow *ret) {
        uint64_t now = clock_monotonic_nsec(), done = run_count_done(run);
        double lately =
                (double)(done - run->last_done) * 1e9 / (double)MAX(now - run->last_nsec, UINT64_C(1));

        run->rate = run->rate == 0 ? lately : 0.8 * run->rate + 0.2 * lately;
        run->last_nsec = now;
        run->last_done = done;
        *ret = (ProgressNow){
                .n_done = done,
                .n_failed = run_count_failed(run),
                .seconds = (double)(now - run->start_nsec) / 1e9,
                .fraction = run_fraction(run, done),
                .rate = run->rate,
        };
}

static void run_show_progress(Run *run) {
        struct winsize size = {};
        ProgressNow now;
        char text[512];
        unsigned columns = 80;

        run_measure(run, &now);
        if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20)
                columns = size.ws_col - 1u;
        (void)progress_format(run->options.progress, &now, columns, text, sizeof(text));

        (void)pthread_mutex_lock(&run->terminal);
        if (run->options.progress == PROGRESS_BAR) {
                (void)fprintf(stderr, "\r%s\033[K", text);
                run->bar_shown = true;
        } else
                (void)fprintf(stderr, "%s\n", text);
        (void)fflush(stderr);
        (void)pthread_mutex_unlock(&run->terminal);
}

static int on_progress(sd_event_source *source, uint64_t usec, void *userdata) {
        Run *run = userdata;

        run_show_progress(run);
        (void)sd_event_source_set_time_relative(source,
                                                run->options.progress == PROGRESS_BAR ? BAR_USEC : JSON_USEC);
        return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int run_start_progress(Run *run) {
        if (run->options.progress == PROGRESS_NONE)
                return 0;
        return sd_event_add_time_relative(run->event, &run->progress_source, CLOCK_MONOTONIC,
                                          run->options.progress == PROGRESS_BAR ? BAR_DELAY_USEC : JSON_USEC,
                                          0, on_progress, run);
}

/* ---- the threads' news ---- */

static void run_tell(Run *run) {
        uint64_t one = 1;

        (void)!write(run->told_fd, &one, sizeof(one));
}

static void on_fed(void *userdata, int error) {
        Run *run = userdata;

        atomic_store(&run->feed_error, error);
        atomic_store(&run->fed, true);
        run_tell(run);
}

static void on_output_error(void *userdata, int error) {
        Run *run = userdata;

        atomic_store(&run->output_error, error);
        atomic_store(&run->output_broken, true);
        run_tell(run);
}

static void run_stop_now(Run *run) {
        if (run->feeder)
                feeder_stop(run->feeder);
        if (run->collector)
                collector_stop_waiting(run->collector);
        supervisor_kill(run->supervisor);
}

static int on_told(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Run *run = userdata;
        uint64_t count;

        (void)!read(fd, &count, sizeof(count));
        if (atomic_load(&run->output_broken))
                run_stop_now(run);
        else if (atomic_load(&run->fed))
                supervisor_drain(run->supervisor);
        return 0;
}

/* ---- the end ---- */

/* The collector is told by a sentinel, behind all results. It reads all the time, so room comes. */
static int run_end_collector(Run *run);

static int on_room(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        return run_end_collector(userdata);
}

static int run_end_collector(Run *run) {
        uint8_t frame[FRAME_OVERHEAD_BYTES];
        FrameHeader header = {
                .kind = FRAME_SENTINEL,
                .sequence = COLLECT_GENERATION,
                .ticket = FRAME_NO_TICKET,
                .key = instance_board(&run->instance->results)->key,
                .generation = COLLECT_GENERATION,
        };
        size_t n = frame_seal(frame, &header, 0);
        int r = queue_try_send(run->instance->results.fd, frame, n, FRAME_PRIORITY_SENTINEL);

        if (r == 0)
                return sd_event_exit(run->event, 0);
        if (r < 0)
                return r;
        r = 0;
        if (!run->room_source)
                r = sd_event_add_io(run->event, &run->room_source, run->instance->results.fd, EPOLLOUT,
                                    on_room, run);
        return r < 0 ? r : sd_event_source_set_enabled(run->room_source, SD_EVENT_ONESHOT);
}

static void on_end(void *userdata, SupervisorEnd end) {
        Run *run = userdata;
        int r = 0;

        run->end = end;
        if (run->collector && end == SUPERVISOR_DRAINED)
                r = run_end_collector(run);
        else
                r = sd_event_exit(run->event, 0);
        if (r < 0)
                (void)sd_event_exit(run->event, r);
}

static int on_interrupt(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        Run *run = userdata;

        if (run->n_interrupts++ > 0 || si->ssi_signo == SIGTERM)
                run_stop_now(run);
        else {
                terminal_print(run, "sluicectl: finishing what was read; interrupt once more to stop now\n");
                if (run->feeder)
                        feeder_stop(run->feeder);
                else
                        supervisor_drain(run->supervisor);
        }
        return 0;
}

static void run_print_summary(Run *run) {
        char rate[32], time[32];
        uint64_t done = run_count_done(run), failed = run_count_failed(run);
        double seconds = (double)(clock_monotonic_nsec() - run->start_nsec) / 1e9;
        uint64_t succeeded = done - MIN(failed, done);

        terminal_print(run, "sluicectl: %" PRIu64 " job%s done, %" PRIu64 " failed, %s, %s/s%s\n", succeeded,
                       succeeded == 1 ? "" : "s", failed, progress_duration(seconds, time, sizeof(time)),
                       progress_count((double)done / seconds, rate, sizeof(rate)),
                       run->n_interrupts > 0 ? ", interrupted" : "");
}

static int run_exit_code(Run *run) {
        int error = atomic_load(&run->output_error), fed = atomic_load(&run->feed_error);

        if (run->n_interrupts > 0)
                return EXIT_INTERRUPTED;
        if (run->end == SUPERVISOR_FAILED)
                return EXIT_WORK_FAILED;
        if (error != 0 && error != EPIPE) {
                (void)fprintf(stderr, "sluicectl: cannot write results: %s\n", strerror(error));
                return EXIT_WORK_FAILED;
        }
        if (fed < 0) {
                (void)fprintf(stderr, "sluicectl: cannot read input: %s\n", strerror(-fed));
                return EXIT_WORK_FAILED;
        }
        return run_count_failed(run) > 0 ? EXIT_WORK_FAILED : EXIT_SUCCESS;
}

/* ---- the beginning ---- */

static int run_catch_signals(Run *run) {
        static const int signals[] = { SIGINT, SIGTERM };
        int r;

        (void)signal(SIGPIPE, SIG_IGN);
        for (size_t i = 0; i < ELEMENTSOF(signals); i++) {
                sigset_t one;

                (void)sigemptyset(&one);
                (void)sigaddset(&one, signals[i]);
                if (sigprocmask(SIG_BLOCK, &one, NULL) < 0) /* in the threads to come, too */
                        return -errno;
                r = sd_event_add_signal(run->event, NULL, signals[i], on_interrupt, run);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Results are wanted if somebody emits any; lines are followed to their end even if a sink takes them. */
static bool run_wants_results(const Run *run) {
        if (run_reads_lines(run))
                return true;
        for (size_t i = 0; i < run->pipeline->n_stages; i++)
                if (run->pipeline->stages[i].next == STAGE_NONE && !stage_is_sink(&run->pipeline->stages[i]))
                        return true;
        return false;
}

static int run_start_collector(Run *run) {
        CollectOptions options = {
                .queue = run->instance->results.fd,
                .shape = run->instance->results.shape,
                .board = instance_board(&run->instance->results),
                .out_fd = STDOUT_FILENO,
                .separator = run->options.separator,
                .keep_order = run->options.keep_order,
                .on_failure = on_failure,
                .on_output_error = on_output_error,
                .userdata = run,
        };

        return collector_start(&options, &run->collector);
}

static int run_start_feeder(Run *run) {
        const InstanceQueue *in = &run->instance->stages[0].queue;
        FeedOptions options = {
                .in_fd = STDIN_FILENO,
                .queue = in->fd,
                .key = instance_board(in)->key,
                .delimiter = run->options.separator,
                .collector = run->collector,
                .on_end = on_fed,
                .userdata = run,
        };
        struct stat st;

        if (fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode))
                run->input_bytes = (uint64_t)st.st_size;
        return feeder_start(&options, &run->feeder);
}

static uint64_t run_count_submitted(void *userdata) {
        const Run *run = userdata;

        return run->feeder ? atomic_load(&feeder_counts(run->feeder)->n_lines) : 0;
}

static int run_open(Run *run) {
        SupervisorOptions options = {
                .fail_fast = true,
                .drain_when_sources_end = true,
                .n_submitted = run_count_submitted,
                .on_end = on_end,
                .userdata = run,
        };
        int r;

        r = sd_event_default(&run->event);
        if (r < 0)
                return r;
        run->told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (run->told_fd < 0)
                return -errno;
        r = sd_event_add_io(run->event, &run->told_source, run->told_fd, EPOLLIN, on_told, run);
        if (r >= 0)
                r = run_catch_signals(run);
        if (r < 0)
                return r;

        options.track = run_wants_results(run);
        r = instance_open(run->pipeline, true, options.track, &run->instance);
        if (r != 0)
                return r;
        r = supervisor_new(run->instance, run->event, &options, &run->supervisor);
        if (r >= 0)
                r = supervisor_start(run->supervisor);
        if (r >= 0 && options.track)
                r = run_start_collector(run);
        if (r >= 0 && run_reads_lines(run))
                r = run_start_feeder(run);
        return r < 0 ? r : run_start_progress(run);
}

static int run_pipeline(Run *run) {
        int r;

        run->start_nsec = run->last_nsec = clock_monotonic_nsec();
        r = run_open(run);
        if (r == 0)
                r = sd_event_loop(run->event);
        if (r != 0) {
                if (r < 0)
                        log_error("Cannot run: %s", strerror(-r));
                return EXIT_WORK_FAILED;
        }

        if (run->end == SUPERVISOR_DRAINED) {
                if (run->feeder)
                        feeder_join(run->feeder);
                if (run->collector)
                        collector_join(run->collector);
        }
        if (run->options.progress == PROGRESS_JSON)
                run_show_progress(run);
        if (!run->options.quiet)
                run_print_summary(run);
        return run_exit_code(run);
}

static int run_read_pipeline(Run *run) {
        _cleanup_(config_report_done) ConfigReport report = {};
        const RunOptions *o = &run->options;
        int r;

        if (o->config)
                r = pipeline_from_file(o->config, plugins_describe, &report, &run->pipeline);
        else
                r = pipeline_from_arguments("run", o->words, o->n_words, o->n_workers, plugins_describe,
                                            &report, &run->pipeline);
        if (!o->quiet || report.n_errors > 0)
                config_report_print(&report, stderr);
        if (r < 0)
                (void)fprintf(stderr, "sluicectl: %s\n", strerror(-r));
        if (r == CONFIG_E_INVALID)
                return o->config ? EXIT_CONFIG : EXIT_USAGE;
        return r < 0 ? EXIT_WORK_FAILED : 0;
}

/* ---- options ---- */

static int parse_progress(const char *text, ProgressStyle *ret) {
        static const char *const names[] = {
                [PROGRESS_NONE] = "none",
                [PROGRESS_BAR] = "bar",
                [PROGRESS_JSON] = "json",
        };

        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                if (strcmp(text, names[i]) == 0) {
                        *ret = (ProgressStyle)i;
                        return 0;
                }
        (void)fprintf(stderr, "sluicectl run: --progress is bar, json or none, not %s\n", text);
        return -EINVAL;
}

static int parse_workers(const char *text, uint32_t *ret) {
        unsigned long n;
        char *end;

        errno = 0;
        n = strtoul(text, &end, 10);
        if (errno != 0 || text[0] < '0' || text[0] > '9' || *end != '\0' || n < 1 || n > PIPELINE_LANES_MAX) {
                (void)fprintf(stderr, "sluicectl run: --workers is a number from 1 to %d, not %s\n",
                              PIPELINE_LANES_MAX, text);
                return -EINVAL;
        }
        *ret = (uint32_t)n;
        return 0;
}

static int usage_error(const char *text) {
        (void)fprintf(stderr, "sluicectl run: %s\nTry `sluicectl run --help`.\n", text);
        return EXIT_USAGE;
}

/* Returns -1 to go on, or an exit code. */
static int run_parse(RunOptions *o, int argc, char **argv) {
        enum { OPTION_PROGRESS = 256, OPTION_MODE };
        static const struct option options[] = {
                { "config", required_argument, NULL, 'c' },
                { "keep-order", no_argument, NULL, 'k' },
                { "workers", required_argument, NULL, 'j' },
                { "mode", required_argument, NULL, OPTION_MODE },
                { "null", no_argument, NULL, '0' },
                { "progress", required_argument, NULL, OPTION_PROGRESS },
                { "quiet", no_argument, NULL, 'q' },
                { "verbose", no_argument, NULL, 'v' },
                { "help", no_argument, NULL, 'h' },
                {},
        };
        bool progress_given = false, verbose = false;
        int c;

        *o = (RunOptions){ .separator = '\n' };
        while ((c = getopt_long(argc, argv, "c:kj:0qvh", options, NULL)) >= 0) {
                switch (c) {
                case 'c':
                        o->config = optarg;
                        break;
                case 'k':
                        o->keep_order = true;
                        break;
                case 'j':
                        if (parse_workers(optarg, &o->n_workers) < 0)
                                return EXIT_USAGE;
                        break;
                case OPTION_MODE:
                        if (strcmp(optarg, "process") != 0)
                                return usage_error(
                                        "this version runs handlers in processes only: --mode process");
                        break;
                case '0':
                        o->separator = '\0';
                        break;
                case OPTION_PROGRESS:
                        if (parse_progress(optarg, &o->progress) < 0)
                                return EXIT_USAGE;
                        progress_given = true;
                        break;
                case 'q':
                        o->quiet = true;
                        break;
                case 'v':
                        verbose = true;
                        break;
                case 'h':
                        usage(stdout);
                        return EXIT_SUCCESS;
                default:
                        return usage_error("see above");
                }
        }
        o->words = (const char *const *)argv + optind;
        o->n_words = (size_t)(argc - optind);
        if (o->config && o->n_words > 0)
                return usage_error("either -c FILE or stages by name, not both");
        if (!o->config && o->n_words == 0)
                return usage_error("which stages? Name them, or use -c FILE");
        if (o->config && o->n_workers > 0)
                return usage_error(
                        "--workers goes with stages by name; a configuration says `workers` itself");
        if (!progress_given && !o->quiet && isatty(STDERR_FILENO))
                o->progress = PROGRESS_BAR;
        log_set_level(verbose ? LOG_DEBUG : o->quiet ? LOG_WARNING : log_level());
        return -1;
}

int run_main(int argc, char **argv) {
        static Run run = { .told_fd = -1, .end = SUPERVISOR_PARKED, .terminal = PTHREAD_MUTEX_INITIALIZER };
        int code;

        code = run_parse(&run.options, argc, argv);
        if (code >= 0)
                return code;
        code = run_read_pipeline(&run);
        if (code != 0)
                return code;

        log_open(&(LogContext){ .program = "sluicectl", .pipeline = run.pipeline->name, .lane = -1 });
        code = run_pipeline(&run);

        if (run.supervisor)
                supervisor_free(run.supervisor);
        if (run.end != SUPERVISOR_DRAINED || code == EXIT_INTERRUPTED) {
                /* A thread may be blocked for good on a queue or a terminal; its memory must stay. */
                (void)fflush(NULL);
                _exit(code);
        }
        if (run.feeder)
                feeder_free(run.feeder);
        if (run.collector)
                collector_free(run.collector);
        if (run.instance)
                instance_free(run.instance);
        pipeline_free(run.pipeline);
        (void)close_fd(run.told_fd);
        (void)sd_event_source_disable_unref(run.told_source);
        (void)sd_event_source_disable_unref(run.progress_source);
        (void)sd_event_source_disable_unref(run.room_source);
        (void)sd_event_unref(run.event);
        return code;
}
