#include "ctl/select.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "ctl/exit.h"
#include "pipeline/pipeline.h"
#include "supervisor/runtime.h"

static void free_names(char **names) {
        for (char **name = names; *name; name++)
                free(*name);
        free(names);
}

DEFINE_CLEANUP(char *, free_names)

static int select_given(const char *given, char **ret) {
        if (!pipeline_name_is_valid(given)) {
                warnx("'%s' cannot be the name of an instance", given);
                return EXIT_USAGE;
        }
        *ret = strdup(given);
        if (!*ret) {
                warn("cannot select an instance");
                return EXIT_WORK_FAILED;
        }
        return EXIT_SUCCESS;
}

static void print_choice(char *const *names, bool running_only) {
        (void)fprintf(stderr,
                      "%s: several instances %s, choose one with -i NAME:", program_invocation_short_name,
                      running_only ? "are running" : "are here");
        for (size_t i = 0; names[i]; i++)
                (void)fprintf(stderr, " %s", names[i]);
        (void)fputc('\n', stderr);
}

int select_instance(const char *given, bool running_only, char **ret) {
        _cleanup_(free_namesp) char **names = NULL;
        int r;

        if (given)
                return select_given(given, ret);

        r = runtime_list(running_only, &names);
        if (r < 0) {
                errno = -r;
                warn("cannot list the instances");
                return EXIT_WORK_FAILED;
        }
        if (!names[0]) {
                warnx("no instance %s", running_only ? "is running" : "is here");
                return EXIT_NO_INSTANCE;
        }
        if (names[1]) {
                print_choice(names, running_only);
                return EXIT_NO_INSTANCE;
        }
        *ret = TAKE_PTR(names[0]);
        return EXIT_SUCCESS;
}
