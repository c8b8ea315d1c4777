#include "ctl/collect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "lane/memory.h"

#define OUT_BYTES (256 * 1024)

/* A line whose turn has not come, or that is not complete. */
typedef struct Pending {
        char *data; /* its results, each with its separator */
        size_t n_data, n_room;
        uint64_t credit; /* that has come back */
} Pending;

struct Collector {
        CollectOptions options;
        CollectCounts counts;
        pthread_t thread;
        bool running;
        Memory record;
        Lane lane;

        char *out;
        size_t n_out;
        bool out_broken;

        uint64_t split_credit; /* unordered: of jobs with several results, not yet a whole */
        Pending *window;       /* ordered: by id modulo n_window */
        uint64_t n_window;
        _Atomic uint64_t next_id; /* the oldest line that is not complete */
        _Atomic uint64_t n_held_bytes;
        _Atomic bool stop_waiting;
        pthread_mutex_t mutex;
        pthread_cond_t room;
};

/* ---- output ---- */

static void out_flush(Collector *c) {
        size_t done = 0;

        while (done < c->n_out && !c->out_broken) {
                ssize_t n = write(c->options.out_fd, c->out + done, c->n_out - done);

                if (n >= 0)
                        done += (size_t)n;
                else if (errno != EINTR) {
                        c->out_broken = true;
                        c->options.on_output_error(c->options.userdata, errno);
                }
        }
        c->n_out = 0;
}

static void out_append(Collector *c, const void *data, size_t n_data) {
        const char *p = data;

        while (n_data > 0) {
                size_t n;

                if (c->n_out == OUT_BYTES)
                        out_flush(c);
                n = MIN(n_data, OUT_BYTES - c->n_out);
                memcpy(c->out + c->n_out, p, n);
                c->n_out += n;
                p += n;
                n_data -= n;
        }
}

static void out_result(Collector *c, const FrameJob *job) {
        if (c->n_out + job->size + 1 > OUT_BYTES)
                out_flush(c);
        if (job->size + 1 > OUT_BYTES) {
                out_append(c, job->data, job->size);
                out_append(c, &c->options.separator, 1);
                return;
        }
        memcpy(c->out + c->n_out, job->data, job->size);
        c->out[c->n_out + job->size] = c->options.separator;
        c->n_out += job->size + 1;
}

/* ---- order ---- */

static Pending *pending_of(Collector *c, uint64_t id) {
        return &c->window[id % c->n_window];
}

/* Memory is bounded by the window, which the feeder keeps to. Without memory there is no order to keep. */
static void pending_append(Collector *c, Pending *p, const FrameJob *job) {
        size_t need = p->n_data + job->size + 1;

        if (need > p->n_room) {
                size_t room = MAX(need, 2 * p->n_room);
                char *data = realloc(p->data, room);

                if (!data) {
                        log_error("Out of memory while keeping results in order");
                        abort();
                }
                atomic_fetch_add_explicit(&c->n_held_bytes, room - p->n_room, memory_order_relaxed);
                p->data = data;
                p->n_room = room;
        }
        memcpy(p->data + p->n_data, job->data, job->size);
        p->data[p->n_data + job->size] = c->options.separator;
        p->n_data = need;
}

static void pending_release(Collector *c, Pending *p) {
        atomic_fetch_sub_explicit(&c->n_held_bytes, p->n_room, memory_order_relaxed);
        free(p->data);
        *p = (Pending){};
}

/* Writes out every line whose turn has come. */
static void order_advance(Collector *c) {
        uint64_t id = atomic_load_explicit(&c->next_id, memory_order_relaxed), first = id;

        for (; pending_of(c, id)->credit >= JOB_CREDIT_WHOLE; id++) {
                Pending *p = pending_of(c, id);

                out_append(c, p->data, p->n_data);
                pending_release(c, p);
        }
        if (id == first)
                return;

        (void)pthread_mutex_lock(&c->mutex);
        atomic_store_explicit(&c->next_id, id, memory_order_relaxed);
        (void)pthread_cond_signal(&c->room);
        (void)pthread_mutex_unlock(&c->mutex);
}

/* A feeder keeps to the window; a pipeline's own source does not know of it. */
static void window_grow(Collector *c, uint64_t id) {
        uint64_t next = atomic_load_explicit(&c->next_id, memory_order_relaxed), n = c->n_window;
        Pending *window;

        while (id - next >= n)
                n *= 2;
        window = calloc(n, sizeof(*window));
        if (!window) {
                log_error("Out of memory while keeping results in order");
                abort();
        }
        for (uint64_t i = next; i < next + c->n_window; i++)
                window[i % n] = *pending_of(c, i);
        free(c->window);
        c->window = window;
        c->n_window = n;
}

static void order_take(Collector *c, const FrameJob *job) {
        Pending *p;

        if (job->id - atomic_load_explicit(&c->next_id, memory_order_relaxed) >= c->n_window)
                window_grow(c, job->id);
        p = pending_of(c, job->id);
        if (!(job->flags & JOB_MARKER))
                pending_append(c, p, job);
        p->credit += job->credit;
        if (p->credit >= JOB_CREDIT_WHOLE) {
                atomic_fetch_add_explicit(&c->counts.n_complete, 1, memory_order_relaxed);
                order_advance(c);
        }
}

/* Whatever is left when a run was cut short. */
static void order_finish(Collector *c) {
        uint64_t next = atomic_load_explicit(&c->next_id, memory_order_relaxed);

        for (uint64_t id = next; id < next + c->n_window; id++) {
                Pending *p = pending_of(c, id);

                out_append(c, p->data, p->n_data);
                pending_release(c, p);
        }
}

static bool window_has_room(Collector *c, uint64_t id) {
        uint64_t next = atomic_load_explicit(&c->next_id, memory_order_relaxed);

        /* What the oldest line waits for is under way already, so waiting here ends. */
        return id - next < COLLECT_WINDOW_LINES &&
               atomic_load_explicit(&c->n_held_bytes, memory_order_relaxed) < COLLECT_WINDOW_BYTES;
}

bool collector_wait_for_room(Collector *c, uint64_t id) {
        if (!c->options.keep_order || window_has_room(c, id))
                return !atomic_load(&c->stop_waiting);

        (void)pthread_mutex_lock(&c->mutex);
        while (!window_has_room(c, id) && !atomic_load(&c->stop_waiting))
                (void)pthread_cond_wait(&c->room, &c->mutex);
        (void)pthread_mutex_unlock(&c->mutex);
        return !atomic_load(&c->stop_waiting);
}

void collector_stop_waiting(Collector *c) {
        (void)pthread_mutex_lock(&c->mutex);
        atomic_store(&c->stop_waiting, true);
        (void)pthread_cond_broadcast(&c->room);
        (void)pthread_mutex_unlock(&c->mutex);
}

/* ---- jobs ---- */

static void count_unordered(Collector *c, uint64_t credit) {
        uint64_t whole = credit / JOB_CREDIT_WHOLE;

        c->split_credit += credit % JOB_CREDIT_WHOLE;
        whole += c->split_credit / JOB_CREDIT_WHOLE;
        c->split_credit %= JOB_CREDIT_WHOLE;
        atomic_fetch_add_explicit(&c->counts.n_complete, whole, memory_order_relaxed);
}

static void take_marker(Collector *c, const FrameJob *job) {
        if (job->size == 0)
                return;
        switch (job->data[0]) {
        case JOB_MARKER_FAILED:
                atomic_fetch_add_explicit(&c->counts.n_failed, 1, memory_order_relaxed);
                c->options.on_failure(c->options.userdata, job->id, (const char *)job->data + 1,
                                      job->size - 1);
                break;
        case JOB_MARKER_DROPPED:
                atomic_fetch_add_explicit(&c->counts.n_dropped, 1, memory_order_relaxed);
                break;
        default:
                break;
        }
}

static void take_job(Collector *c, const FrameJob *job) {
        if (job->flags & JOB_MARKER)
                take_marker(c, job);
        if (c->options.keep_order) {
                order_take(c, job);
                return;
        }
        if (!(job->flags & JOB_MARKER))
                out_result(c, job);
        if (job->credit != JOB_CREDIT_WHOLE)
                count_unordered(c, job->credit);
}

static void take_frame(Collector *c) {
        uint64_t id = c->lane.header.base_id - 1, n_results = 0, n_whole = 0;
        uint32_t offset = FRAME_HEADER_BYTES;

        for (uint32_t i = 0; i < c->lane.header.count; i++) {
                FrameJob job;

                frame_job_read(c->lane.input, offset, id, i == 0, &job);
                take_job(c, &job);
                n_results += !(job.flags & JOB_MARKER);
                n_whole += job.credit == JOB_CREDIT_WHOLE;
                id = job.id;
                offset = job.next;
        }
        atomic_fetch_add_explicit(&c->counts.n_results, n_results, memory_order_relaxed);
        if (!c->options.keep_order)
                atomic_fetch_add_explicit(&c->counts.n_complete, n_whole, memory_order_relaxed);
}

/* Returns false after the sentinel. */
static bool collect_one(Collector *c) {
        Lane *lane = &c->lane;
        size_t n_input = lane->record->input_bytes;
        ssize_t n;

        lane_receive_begin(lane);
        n = queue_try_receive(c->options.queue, lane->input, n_input, &lane->record->priority);
        if (n == -EAGAIN) {
                out_flush(c);
                n = queue_receive(c->options.queue, lane->input, n_input, &lane->record->priority);
        }
        if (n < 0 && n != -EINTR) {
                log_error("Cannot receive results: %s", strerror((int)-n));
                return false;
        }

        switch (lane_receive_end(lane)) {
        case LANE_MESSAGE_JOBS:
                take_frame(c);
                return true;
        case LANE_MESSAGE_SENTINEL:
                return false;
        default:
                return true;
        }
}

static void *collector_thread(void *userdata) {
        Collector *c = userdata;

        while (collect_one(c))
                ;
        order_finish(c);
        out_flush(c);
        collector_stop_waiting(c);
        return NULL;
}

/* ---- making ---- */

const CollectCounts *collector_counts(const Collector *c) {
        return &c->counts;
}

static int collector_open_record(Collector *c) {
        LaneGeometry g = {
                .life = c->options.board->life,
                .stage = "results",
                .input_bytes = c->options.shape.message_bytes,
        };
        LaneBoards boards = { .input = c->options.board };
        LaneRecord *record;
        int r;

        r = memory_create_anonymous("sluice-collector", lane_record_bytes(&g), &c->record);
        if (r < 0)
                return r;
        record = (LaneRecord *)c->record.data;
        lane_record_init(record, &g);
        atomic_store(&record->generation, COLLECT_GENERATION);
        r = memory_populate(&c->record, record->n_populate);
        if (r < 0)
                return r;
        lane_attach(&c->lane, record, &boards);
        return 0;
}

int collector_start(const CollectOptions *options, Collector **ret) {
        _cleanup_(collector_freep) Collector *c = calloc(1, sizeof(*c));
        int r;

        if (!c)
                return -ENOMEM;
        c->options = *options;
        c->record = MEMORY_NULL;
        atomic_store(&c->next_id, 1);
        (void)pthread_mutex_init(&c->mutex, NULL);
        (void)pthread_cond_init(&c->room, NULL);

        c->out = malloc(OUT_BYTES);
        if (options->keep_order) {
                c->n_window = COLLECT_WINDOW_LINES;
                c->window = calloc(c->n_window, sizeof(*c->window));
        }
        if (!c->out || (options->keep_order && !c->window))
                return -ENOMEM;
        r = collector_open_record(c);
        if (r < 0)
                return r;
        r = pthread_create(&c->thread, NULL, collector_thread, c);
        if (r != 0)
                return -r;
        c->running = true;
        *ret = TAKE_PTR(c);
        return 0;
}

void collector_join(Collector *c) {
        if (!c->running)
                return;
        (void)pthread_join(c->thread, NULL);
        c->running = false;
}

void collector_free(Collector *c) {
        for (uint64_t i = 0; i < c->n_window; i++)
                free(c->window[i].data);
        free(c->window);
        free(c->out);
        memory_done(&c->record);
        (void)pthread_mutex_destroy(&c->mutex);
        (void)pthread_cond_destroy(&c->room);
        free(c);
}
