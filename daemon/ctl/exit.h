#pragma once

/* What sluicectl's exit status says. */

enum {
        EXIT_WORK_FAILED = 1,
        EXIT_USAGE = 2,
        EXIT_NO_INSTANCE = 3, /* no such instance, or no access */
        EXIT_WOULD_BLOCK = 4,
        EXIT_CONFIG = 78,
        EXIT_INTERRUPTED = 130,
};
