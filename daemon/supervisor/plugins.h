#pragma once

/*
 * Plugins: asks `sluice-worker --describe` what plugins say of themselves.
 *
 * One process describes all files. If it dies, hangs or gives up, each file
 * gets a process of its own, so that the culprit is named and the others
 * are described all the same. Blocks until done: at most the time limit per
 * file that hangs, and once more for the first try.
 */

#include <stddef.h>
#include <stdint.h>

#include "pipeline/plugin.h"

#define PLUGINS_TIMEOUT_USEC (10 * UINT64_C(1000000))

/* Appends an entry for each file to `set` (a ConfigDescribe). Returns 0, -ENOENT if there is no
 * sluice-worker (see base/program.h), or another negative errno. */
int plugins_describe(const char *const *files, size_t n_files, PluginSet *set);

/* The same with a worker program and time limit of one's own. */
int plugins_describe_with(const char *worker, uint64_t timeout_usec, const char *const *files, size_t n_files,
                          PluginSet *set);
