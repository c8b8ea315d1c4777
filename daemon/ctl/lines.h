#pragma once

/*
 * Lines: records read from a descriptor, each ended by a newline (or a NUL).
 *
 * Reads as much at once as there is and hands out views, without a copy per
 * line. lines_ready() tells whether a call could block, so that what was made
 * of the lines so far can be passed on before. The last record counts without
 * its end, too; a CR before the newline is part of the line.
 *
 * For files, pipes, sockets and terminals, blocking or not.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

enum { /* outcomes for the direct caller to handle */
       _LINES_E_SUCCESS,
       LINES_E_END,      /* no more lines */
       LINES_E_STOP,     /* the stop descriptor became readable while waiting for input */
       LINES_E_TOO_LONG, /* line lines_number() exceeds the limit; the next call goes on behind it */
};

#define LINES_BUFFER_BYTES ((size_t)256 << 10)
#define LINES_LINE_MAX_BYTES ((size_t)64 << 20)

typedef struct Lines Lines;

typedef struct LinesOptions {
        char delimiter;        /* '\n' or '\0' */
        int stop_fd;           /* says stop by being readable (an eventfd); borrowed; -1: none */
        size_t line_max_bytes; /* longest line, its end not included; 0: LINES_LINE_MAX_BYTES */
} LinesOptions;

typedef struct Line {
        const char *data; /* borrowed until the next call of lines_next(); no terminating NUL */
        size_t size;
        uint64_t number; /* 1 for the first */
} Line;

/* `fd` is borrowed. Returns 0 or -ENOMEM. */
int lines_new(int fd, const LinesOptions *options, Lines **ret);

/* NULL is fine. */
void lines_free(Lines *lines);
DEFINE_CLEANUP(Lines, lines_free)

/*
 * The next line. Waits for input, or for the stop descriptor, whichever is first; lines that are already here are
 * handed out without a look at it. Signals do not matter: one that means "stop" writes to the stop descriptor.
 * Returns 0, LINES_E_END, LINES_E_STOP (may be called again), LINES_E_TOO_LONG, or a negative errno.
 */
int lines_next(Lines *lines, Line *ret);

/* True if lines_next() would answer without reading. */
bool lines_ready(Lines *lines);

/* Number of the line handed out last or, after LINES_E_TOO_LONG, refused; 0 before the first. */
uint64_t lines_number(const Lines *lines);
