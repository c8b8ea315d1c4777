#pragma once

/*
 * Describe: `sluice-worker --describe FILE...`.
 *
 * Loads plugins only to look at them and prints what they say of themselves,
 * in the lines of pipeline/plugin.h. Everything a plugin can do wrong while it is
 * loaded happens in this process, which has nothing else to do.
 */

/* `files` ends with NULL. Returns the exit status: 0 if every file was described, if only by an `error` line. */
int describe_main(char **files);
