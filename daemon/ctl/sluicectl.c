/* Program: sluicectl. Runs pipelines by hand, and operates those that run as a service. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/program.h"
#include "ctl/exit.h"
#include "ctl/purge.h"
#include "ctl/run.h"
#include "ctl/submit.h"

static const struct {
        const char *name;
        int (*main)(int argc, char **argv);
        const char *help;
} commands[] = {
        { "run", run_main, "run a pipeline once: input lines are jobs, results are output lines" },
        { "submit", submit_main, "hand jobs to a running service" },
        { "purge", purge_main, "remove what a stopped service left: queues, records, jobs" },
};

static void usage(FILE *f) {
        (void)fprintf(f, "Usage: sluicectl COMMAND [OPTION]...\n\nCommands:\n");
        for (size_t i = 0; i < ELEMENTSOF(commands); i++)
                (void)fprintf(f, "  %-8s %s\n", commands[i].name, commands[i].help);
        (void)fprintf(
                f, "\n`sluicectl COMMAND --help` explains one. `sluicectl --version` prints the version.\n");
}

int main(int argc, char **argv) {
        if (program_guard_standard_fds() < 0)
                return EXIT_FAILURE;
        if (argc < 2) {
                usage(stderr);
                return EXIT_USAGE;
        }
        log_open(&(LogContext){ .program = "sluicectl", .lane = -1 });
        for (size_t i = 0; i < ELEMENTSOF(commands); i++)
                if (strcmp(argv[1], commands[i].name) == 0)
                        return commands[i].main(argc - 1, argv + 1);
        if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
                usage(stdout);
                return EXIT_SUCCESS;
        }
        if (strcmp(argv[1], "--version") == 0) {
                (void)puts("sluicectl " SLUICE_VERSION);
                return EXIT_SUCCESS;
        }
        (void)fprintf(stderr, "sluicectl: unknown command: %s\n", argv[1]);
        usage(stderr);
        return EXIT_USAGE;
}
