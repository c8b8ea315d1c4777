#pragma once

/*
 * Select: which instance a command is about.
 */

#include <stdbool.h>

/*
 * Takes the name given with -i, or finds the only instance of this user that is running (`running_only`) or has a
 * folder. What is wrong is said on standard error.
 * Returns EXIT_SUCCESS with a name (caller frees), EXIT_USAGE, EXIT_NO_INSTANCE, or EXIT_WORK_FAILED.
 */
int select_instance(const char *given, bool running_only, char **ret);
