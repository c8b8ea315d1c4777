/* Program: sluice-worker. One process of one stage; started by the supervisor. */

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/describe.h"
#include "worker/worker.h"
#include "worker/worker_proto.h"

static void usage(FILE *f) {
        (void)fprintf(f, "Usage: sluice-worker --describe FILE...\n"
                         "\n"
                         "Runs one lane of a stage. It is started by sluiced and sluicectl with the\n"
                         "descriptors it needs, not by hand.\n"
                         "\n"
                         "  --describe FILE...  load stage plugins and print what they say of themselves\n"
                         "  --version           print the version\n"
                         "  --help              print this help\n");
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "describe", no_argument, NULL, 'd' },
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, 'v' },
                {},
        };

        if (argc <= 1)
                return worker_main();

        switch (getopt_long(argc, argv, "", options, NULL)) {
        case 'd':
                return describe_main(argv + optind);
        case 'h':
                usage(stdout);
                return EXIT_SUCCESS;
        case 'v':
                (void)puts("sluice-worker " SLUICE_VERSION);
                return EXIT_SUCCESS;
        default:
                usage(stderr);
                return WORKER_EXIT_USAGE;
        }
}
