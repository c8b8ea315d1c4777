#pragma once

/*
 * What the supervisor hands to a worker: descriptors with fixed numbers and a
 * spec. The two are built together, so the spec is a plain structure; its
 * magic and size catch a mixed installation. No functions here.
 *
 * The worker is told to stop by its record's control word plus SIGUSR1, which
 * only interrupts what blocks. SIGTERM from elsewhere makes it stop after the
 * current job, too (and be restarted). It reports on the status pipe with one
 * byte; the pipe's end-of-file means nothing, its exit does.
 */

#include <stdint.h>

enum {
        WORKER_FD_SPEC = 3,    /* memfd with a WorkerSpec; shared by the stage's workers */
        WORKER_FD_STATUS = 4,  /* write end of the status pipe */
        WORKER_FD_RECORD = 5,  /* the lane's record */
        WORKER_FD_INPUT = 6,   /* job queue; a source: read end of its carry pipe */
        WORKER_FD_BOARD = 7,   /* its board; a source: write end of the carry pipe */
        WORKER_FD_OUTPUTS = 8, /* then, for each output: queue, board */
};

#define WORKER_REPORT_READY 'R'

#define WORKER_SIGNAL_WAKE SIGUSR1

/* Exit codes. */
enum {
        WORKER_EXIT_DONE = 0,   /* as asked, or the source has ended; the record says which */
        WORKER_EXIT_FAILED = 1, /* could not start, or could not go on; it has logged why */
        WORKER_EXIT_USAGE = 2,
};

#define WORKER_SPEC_MAGIC UINT64_C(0x3143455057434c53) /* "SLCWPEC1" */
#define WORKER_OUTPUTS_MAX 8

enum {
        WORKER_TRACK = 1 << 0, /* every job must show up at the result queue, if only as a marker */
};

typedef struct WorkerSpec {
        uint64_t magic;
        uint32_t n_bytes; /* of the whole spec, settings included */
        uint32_t flags;
        char pipeline[72];
        char stage[72];
        char plugin[4096];
        uint32_t log_level;
        uint32_t retry_attempts;
        uint64_t retry_backoff_usec;
        uint64_t retry_max_backoff_usec;
        uint64_t linger_usec;
        uint32_t n_outputs;
        uint32_t groups[WORKER_OUTPUTS_MAX]; /* this stage's group on each output's board */
        uint32_t n_settings;
        /* n_settings times: WorkerSetting, name with NUL, string with NUL, padded to 8 bytes */
} WorkerSpec;

typedef struct WorkerSetting {
        uint32_t n_bytes; /* of this entry, header and padding included */
        uint32_t type;    /* SluiceType */
        int64_t integer;
        double real;
        uint32_t n_name;   /* with NUL */
        uint32_t n_string; /* with NUL */
} WorkerSetting;
