/*
 * Program: sluiced. Runs the pipeline of one configuration file as a service,
 * in the foreground, as a service manager wants it.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <bsd/unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"
#include "pipeline/config.h"
#include "supervisor/instance.h"
#include "supervisor/plugins.h"
#include "supervisor/supervisor.h"

#define EXIT_USAGE 2
#define EXIT_RUNNING 3
#define EXIT_CONFIG 78

typedef struct Daemon {
        sd_event *event;
        Pipeline *pipeline;
        Instance *instance;
        Supervisor *supervisor;
        unsigned n_interrupts;
        bool stopping;
} Daemon;

static void usage(FILE *f) {
        (void)fprintf(
                f, "Usage: sluiced -c FILE\n"
                   "       sluiced --check -c FILE\n"
                   "\n"
                   "Runs a pipeline of stages as a service, in the foreground.\n"
                   "\n"
                   "  -c, --config FILE  the pipeline's configuration\n"
                   "      --check        check the configuration, print every error as FILE:LINE: message\n"
                   "                     and what the queues take of the kernel's limits; start nothing\n"
                   "  -v, --verbose      log at debug level\n"
                   "      --version      print the version\n"
                   "  -h, --help         print this help\n"
                   "\n"
                   "Signals: SIGTERM does on_stop (park or drain); SIGINT drains, once more parks, a\n"
                   "third time kills; SIGHUP reopens files. Nothing is lost by any of them.\n"
                   "\n"
                   "Exit status: 0 stopped in order, 1 could not run, 2 wrong usage, 3 running already,\n"
                   "78 bad configuration.\n");
}

static void on_ready(void *userdata) {
        Daemon *d = userdata;
        uint32_t n_workers = 0;

        for (size_t i = 0; i < d->pipeline->n_stages; i++)
                n_workers += d->pipeline->stages[i].n_workers;
        log_info("Ready: %zu stages, %" PRIu32 " workers", d->pipeline->n_stages, n_workers);
        (void)sd_notifyf(0, "READY=1\nSTATUS=Running %zu stages with %" PRIu32 " workers.",
                         d->pipeline->n_stages, n_workers);
}

static void on_end(void *userdata, SupervisorEnd end) {
        Daemon *d = userdata;

        log_info("%s", end == SUPERVISOR_DRAINED ? "Drained: every job is finished"
                                                 : "Parked: what was under way goes on at the next start");
        (void)sd_event_exit(d->event, end == SUPERVISOR_FAILED ? EXIT_FAILURE : EXIT_SUCCESS);
}

static void daemon_announce_stop(Daemon *d, const char *status) {
        if (d->stopping)
                return;
        d->stopping = true;
        (void)sd_notifyf(0, "STOPPING=1\nSTATUS=%s", status);
}

static int on_terminate(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        Daemon *d = userdata;

        if (d->pipeline->on_stop == ON_STOP_DRAIN && !d->stopping) {
                daemon_announce_stop(d, "Draining.");
                supervisor_drain(d->supervisor);
        } else {
                daemon_announce_stop(d, "Parking.");
                supervisor_park(d->supervisor);
        }
        return 0;
}

static int on_interrupt(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        Daemon *d = userdata;

        switch (++d->n_interrupts) {
        case 1:
                log_info("Draining; interrupt once more to park");
                daemon_announce_stop(d, "Draining.");
                supervisor_drain(d->supervisor);
                break;
        case 2:
                log_info("Parking after the jobs at hand; interrupt once more to kill the workers");
                supervisor_park(d->supervisor);
                break;
        default:
                supervisor_kill(d->supervisor);
                break;
        }
        return 0;
}

static int on_hangup(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        Daemon *d = userdata;

        log_info("Reopening files");
        supervisor_reopen(d->supervisor);
        return 0;
}

static int daemon_catch_signals(Daemon *d) {
        static const struct {
                int sig;
                sd_event_signal_handler_t handler;
        } signals[] = {
                { SIGTERM, on_terminate },
                { SIGINT, on_interrupt },
                { SIGHUP, on_hangup },
        };

        (void)signal(SIGPIPE, SIG_IGN);
        for (size_t i = 0; i < ELEMENTSOF(signals); i++) {
                sigset_t one;
                int r;

                (void)sigemptyset(&one);
                (void)sigaddset(&one, signals[i].sig);
                if (sigprocmask(SIG_BLOCK, &one, NULL) < 0)
                        return -errno;
                r = sd_event_add_signal(d->event, NULL, signals[i].sig, signals[i].handler, d);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Returns an exit status or a negative errno. */
static int daemon_run(Daemon *d) {
        SupervisorOptions options = { .on_ready = on_ready, .on_end = on_end, .userdata = d };
        int r;

        r = sd_event_default(&d->event);
        if (r >= 0)
                r = daemon_catch_signals(d);
        if (r < 0)
                return r;

        r = instance_open(d->pipeline, false, d->pipeline->results == RESULTS_QUEUE, &d->instance);
        if (r != 0)
                return r < 0 ? r : r == INSTANCE_E_RUNNING ? EXIT_RUNNING : EXIT_FAILURE;
        log_info("Starting %s; queues: %s", d->pipeline->name, d->instance->plan.text);

        r = supervisor_new(d->instance, d->event, &options, &d->supervisor);
        if (r < 0)
                return r;
        (void)sd_event_set_watchdog(d->event, true);
        r = supervisor_start(d->supervisor);
        if (r < 0)
                return r;
        return sd_event_loop(d->event);
}

static void daemon_done(Daemon *d) {
        if (d->supervisor)
                supervisor_free(d->supervisor);
        if (d->instance)
                instance_free(d->instance);
        if (d->pipeline)
                pipeline_free(d->pipeline);
        (void)sd_event_unref(d->event);
}

/* A run reads the last stage's results; a service has to say who does. */
static void warn_of_dropped_results(const Pipeline *pipeline) {
        size_t last = pipeline_results_stage(pipeline);

        if (last != STAGE_NONE && pipeline->results == RESULTS_NONE)
                (void)fprintf(
                        stderr,
                        "%s:%u: warning: the results of `%s` are dropped: let the pipeline end with a sink\n",
                        pipeline->stages[last].file, pipeline->stages[last].line,
                        pipeline->stages[last].name);
}

/* Without a plan there is no start, so the check says so, too. */
static int check_plan(const Pipeline *pipeline, const char *file) {
        QueuePlan plan;
        int r = instance_plan(pipeline, pipeline->results == RESULTS_QUEUE, &plan);

        if (r != 0) {
                (void)fprintf(stderr, "%s: queues: %s\n", file, plan.text);
                return EXIT_FAILURE;
        }
        (void)printf("%s: OK: %zu stages; %s\n", file, pipeline->n_stages, plan.text);
        return EXIT_SUCCESS;
}

int main(int argc, char **argv, char **envp) {
        enum { OPTION_CHECK = 256, OPTION_VERSION };
        static const struct option options[] = {
                { "config", required_argument, NULL, 'c' }, { "check", no_argument, NULL, OPTION_CHECK },
                { "verbose", no_argument, NULL, 'v' },      { "version", no_argument, NULL, OPTION_VERSION },
                { "help", no_argument, NULL, 'h' },         {},
        };
        _cleanup_(config_report_done) ConfigReport report = {};
        const char *file = NULL;
        bool check = false, verbose = false;
        Daemon d = {};
        int c, r;

        if (program_guard_standard_fds() < 0)
                return EXIT_FAILURE;
        setproctitle_init(argc, argv, envp);
        while ((c = getopt_long(argc, argv, "c:vh", options, NULL)) >= 0) {
                switch (c) {
                case 'c':
                        file = optarg;
                        break;
                case 'v':
                        verbose = true;
                        break;
                case OPTION_CHECK:
                        check = true;
                        break;
                case OPTION_VERSION:
                        (void)puts("sluiced " SLUICE_VERSION);
                        return EXIT_SUCCESS;
                case 'h':
                        usage(stdout);
                        return EXIT_SUCCESS;
                default:
                        (void)fprintf(stderr, "Try `sluiced --help`.\n");
                        return EXIT_USAGE;
                }
        }
        if (!file || optind < argc) {
                (void)fprintf(stderr,
                              file ? "sluiced: unexpected argument: %s\n"
                                   : "sluiced: no configuration%s: use -c FILE\n",
                              file ? argv[optind] : "");
                return EXIT_USAGE;
        }

        r = pipeline_from_file(file, plugins_describe, &report, &d.pipeline);
        config_report_print(&report, stderr);
        if (r == CONFIG_E_INVALID)
                return check ? EXIT_FAILURE : EXIT_CONFIG;
        if (r < 0) {
                (void)fprintf(stderr, "sluiced: %s: %s\n", file, strerror(-r));
                return EXIT_FAILURE;
        }
        warn_of_dropped_results(d.pipeline);
        if (check) {
                r = check_plan(d.pipeline, file);
                daemon_done(&d);
                return r;
        }

        setproctitle("%s", d.pipeline->name);
        log_set_level(verbose ? LOG_DEBUG : d.pipeline->log_level);
        log_open(&(LogContext){ .program = "sluiced", .pipeline = d.pipeline->name, .lane = -1 });
        r = daemon_run(&d);
        daemon_done(&d);
        if (r < 0)
                log_error("Cannot run: %s", strerror(-r));
        return r < 0 ? EXIT_FAILURE : r;
}
