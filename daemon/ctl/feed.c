#include "ctl/feed.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ctl/lines.h"
#include "submit/submit.h"

struct Feeder {
        FeedOptions options;
        FeedCounts counts;
        pthread_t thread;
        bool running;
        int stop_fd;
        Lines *lines;
        Submitter *submitter;
};

/* All signals are blocked in this thread; EINTR can still come from a debugger or a stop. */
static int feed_flush(Feeder *f) {
        int r;

        do
                r = submitter_flush(f->submitter);
        while (r == -EINTR);
        return r;
}

/* A line that no frame carries fails like any other job: it keeps its place in the order and is reported. */
static int feed_refuse(Feeder *f, uint64_t id, size_t size) {
        char text[SUBMIT_NOTE_MAX];
        int r;

        if (size == 0)
                (void)snprintf(text, sizeof(text), "the line is longer than %zu bytes", LINES_LINE_MAX_BYTES);
        else
                (void)snprintf(text, sizeof(text), "%zu bytes are more than a job may have here (%zu)", size,
                               submitter_job_max(f->submitter));
        do
                r = submitter_add_failed(f->submitter, text, id);
        while (r == -EINTR);
        return r;
}

static int feed_line(Feeder *f, const Line *line) {
        int r;

        if (!collector_wait_for_room(f->options.collector, line->number))
                return -ECANCELED;
        do
                r = submitter_add(f->submitter, line->data, line->size, line->number);
        while (r == -EINTR);
        if (r == SUBMIT_E_TOO_LARGE)
                r = feed_refuse(f, line->number, line->size);
        atomic_store_explicit(&f->counts.n_lines, line->number, memory_order_relaxed);
        atomic_fetch_add_explicit(&f->counts.n_bytes, line->size + 1, memory_order_relaxed);
        return r;
}

static int feed_all(Feeder *f) {
        for (;;) {
                Line line;
                int r;

                if (!lines_ready(f->lines)) {
                        r = feed_flush(f);
                        if (r != 0)
                                return r;
                }
                r = lines_next(f->lines, &line);
                switch (r) {
                case 0:
                        r = feed_line(f, &line);
                        break;
                case LINES_E_END:
                case LINES_E_STOP:
                        return feed_flush(f);
                case LINES_E_TOO_LONG:
                        r = feed_refuse(f, lines_number(f->lines), 0);
                        break;
                default:
                        break;
                }
                if (r != 0)
                        return r == -ECANCELED ? 0 : r;
        }
}

static void *feeder_thread(void *userdata) {
        Feeder *f = userdata;

        f->options.on_end(f->options.userdata, feed_all(f));
        return NULL;
}

const FeedCounts *feeder_counts(const Feeder *feeder) {
        return &feeder->counts;
}

void feeder_stop(Feeder *feeder) {
        uint64_t one = 1;

        if (write(feeder->stop_fd, &one, sizeof(one)) < 0)
                return; /* the counter is at its end: it has been told */
}

int feeder_start(const FeedOptions *options, Feeder **ret) {
        _cleanup_(feeder_freep) Feeder *f = calloc(1, sizeof(*f));
        int r;

        if (!f)
                return -ENOMEM;
        f->options = *options;
        f->stop_fd = eventfd(0, EFD_CLOEXEC);
        if (f->stop_fd < 0)
                return -errno;
        r = lines_new(options->in_fd,
                      &(LinesOptions){ .delimiter = options->delimiter, .stop_fd = f->stop_fd }, &f->lines);
        if (r < 0)
                return r;
        r = submitter_new(options->queue, options->key, &f->submitter);
        if (r != 0)
                return r < 0 ? r : -EINVAL;
        r = pthread_create(&f->thread, NULL, feeder_thread, f);
        if (r != 0)
                return -r;
        f->running = true;
        *ret = TAKE_PTR(f);
        return 0;
}

void feeder_join(Feeder *f) {
        if (!f->running)
                return;
        (void)pthread_join(f->thread, NULL);
        f->running = false;
}

void feeder_free(Feeder *f) {
        submitter_free(f->submitter);
        lines_free(f->lines);
        (void)close_fd(f->stop_fd);
        free(f);
}
