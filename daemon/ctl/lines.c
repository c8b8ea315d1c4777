#include "ctl/lines.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/*
 *     buffer   begin            scanned         end         n_buffer
 *       |........|..line..no.delimiter..|..unseen..|...........|
 */
struct Lines {
        int fd, stop_fd;
        char delimiter;
        size_t line_max;
        bool ended;    /* read() has said so */
        bool skipping; /* the rest of a line that was too long */
        uint64_t number;
        char *buffer;
        size_t n_buffer;
        size_t begin, scanned, end;
        bool found; /* buffer[scanned] is the delimiter of the line at begin */
};

int lines_new(int fd, const LinesOptions *options, Lines **ret) {
        _cleanup_(lines_freep) Lines *l = NULL;

        l = malloc(sizeof(*l));
        if (!l)
                return -ENOMEM;
        *l = (Lines){
                .fd = fd,
                .stop_fd = options->stop_fd,
                .delimiter = options->delimiter,
                .line_max = options->line_max_bytes ?: LINES_LINE_MAX_BYTES,
                .n_buffer = LINES_BUFFER_BYTES,
        };
        l->buffer = malloc(l->n_buffer);
        if (!l->buffer)
                return -ENOMEM;

        *ret = TAKE_PTR(l);
        return 0;
}

void lines_free(Lines *l) {
        if (!l)
                return;
        free(l->buffer);
        free(l);
}

uint64_t lines_number(const Lines *l) {
        return l->number;
}

/* Looks at no byte twice, however often it is asked. */
static bool lines_find(Lines *l) {
        const char *p;

        if (l->found)
                return true;
        p = memchr(l->buffer + l->scanned, l->delimiter, l->end - l->scanned);
        l->found = p != NULL;
        l->scanned = p ? (size_t)(p - l->buffer) : l->end;
        return l->found;
}

/* Goes on behind what ends at `scanned`. */
static void lines_pass(Lines *l) {
        l->begin = l->scanned + l->found;
        l->scanned = l->begin;
        l->found = false;
}

/* Drops what is here of the rest of a line that was refused. */
static void lines_drop_rest(Lines *l) {
        if (!l->skipping)
                return;
        l->skipping = !lines_find(l);
        lines_pass(l);
}

bool lines_ready(Lines *l) {
        lines_drop_rest(l);
        return l->ended || (!l->skipping && (lines_find(l) || l->end - l->begin > l->line_max));
}

/* ---- reading ---- */

/* Makes room behind `end`: what was handed out goes, and the buffer grows only for a line that fills it. */
static int lines_make_room(Lines *l) {
        size_t n_kept = l->end - l->begin;
        char *more;

        if (l->begin > 0) {
                memmove(l->buffer, l->buffer + l->begin, n_kept);
                l->scanned -= l->begin;
                l->begin = 0;
                l->end = n_kept;
        }
        if (l->end < l->n_buffer)
                return 0;

        more = realloc(l->buffer, l->n_buffer * 2);
        if (!more)
                return -ENOMEM;
        l->buffer = more;
        l->n_buffer *= 2;
        return 0;
}

/* Waits until there is something to read, or to stop for. Without a stop descriptor read() itself waits, unless
 * somebody has made it not to. */
static int lines_wait(const Lines *l, bool would_block) {
        struct pollfd fds[] = {
                { .fd = l->fd, .events = POLLIN },
                { .fd = l->stop_fd, .events = POLLIN }, /* poll() passes over -1 */
        };

        if (l->stop_fd < 0 && !would_block)
                return 0;
        while (poll(fds, ELEMENTSOF(fds), -1) < 0)
                if (errno != EINTR)
                        return -errno;
        return fds[1].revents ? LINES_E_STOP : 0;
}

static int lines_fill(Lines *l) {
        bool would_block = false;
        int r;

        r = lines_make_room(l);
        if (r < 0)
                return r;

        for (;;) {
                ssize_t n;

                r = lines_wait(l, would_block);
                if (r != 0)
                        return r;
                n = read(l->fd, l->buffer + l->end, l->n_buffer - l->end);
                if (n >= 0) {
                        l->end += (size_t)n;
                        l->ended = n == 0;
                        return 0;
                }
                if (errno == EAGAIN)
                        would_block = true;
                else if (errno != EINTR)
                        return -errno;
        }
}

/* ---- lines ---- */

static int lines_refuse(Lines *l) {
        l->number++;
        l->skipping = !l->found;
        lines_pass(l);
        return LINES_E_TOO_LONG;
}

int lines_next(Lines *l, Line *ret) {
        int r;

        for (;;) {
                lines_drop_rest(l);
                if (!l->skipping && lines_find(l))
                        break;
                if (l->ended && l->begin == l->end)
                        return LINES_E_END;
                if (l->end - l->begin > l->line_max)
                        return lines_refuse(l);
                if (l->ended)
                        break; /* the last line, without its end */
                r = lines_fill(l);
                if (r != 0)
                        return r;
        }
        if (l->scanned - l->begin > l->line_max)
                return lines_refuse(l);

        *ret = (Line){
                .data = l->buffer + l->begin,
                .size = l->scanned - l->begin,
                .number = ++l->number,
        };
        lines_pass(l);
        return 0;
}
