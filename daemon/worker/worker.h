#pragma once

/*
 * Worker: the loop around a lane, in a process of its own.
 *
 *     receive -> claim -> run -> commit -> (share) -> send -> receive ...
 *
 * The loop only ever does what the lane's record says is next, so the first
 * turn after a crash is a turn like any other. When it sends:
 *
 * - when an output frame is full;
 * - when its input runs dry: after a frame less than a quarter full at once,
 *   otherwise only if no other frame is waiting;
 * - before the next job when what it holds is older than `linger`.
 *
 * When it shares: another lane is idle, and the later part of its frame is
 * worth more than 100 us by its own measured service time.
 */

/* Runs the worker described by the descriptors of worker_proto.h; returns the process' exit code. */
int worker_main(void);
