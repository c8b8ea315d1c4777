#pragma once

/*
 * `sluicectl run`: an ephemeral instance in the foreground.
 *
 *     main thread      supervisor, signals, progress
 *     feeder thread    standard input -> first queue        (unless the first stage is a source)
 *     collector thread result queue -> standard output      (unless the last stage is a sink
 *                                                             and the jobs are nobody's lines)
 *
 * Queues have no names and records are memfds, so nothing is left, whatever
 * happens to this process.
 */

int run_main(int argc, char **argv);
