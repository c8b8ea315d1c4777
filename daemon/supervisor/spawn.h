#pragma once

/*
 * Spawn: fork and exec of one worker, with exactly the descriptors of
 * worker_proto.h.
 */

#include <sys/types.h>

#include "lane/memory.h"
#include "supervisor/instance.h"

/* The spec all workers of a stage share, in a sealed memfd. `flags`: WORKER_TRACK. */
int spawn_spec(const Instance *instance, size_t stage, uint32_t flags, int *ret_fd);

typedef struct Spawn {
        const char *program; /* path of sluice-worker */
        const char *title;   /* what ps shows */
        int spec_fd;
        int record_fd;
        int input_fd, board_fd;         /* job queue and its board; a source: its carry pipe */
        int output_fd, output_board_fd; /* -1: none */
        bool keep_stdin;                /* sources may read it; others get /dev/null */
} Spawn;

typedef struct SpawnedWorker {
        pid_t pid;
        int pidfd;
        int status_fd; /* read end; non-blocking */
} SpawnedWorker;

/*
 * Starts a worker that dies (SIGKILL) with the calling thread, which must be
 * the process' main thread. Returns 0 or a negative errno; a failing exec shows as
 * exit status 127 of the child.
 */
int spawn_worker(const Spawn *spawn, SpawnedWorker *ret);
