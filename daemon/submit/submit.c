#include "submit/submit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "frame/frame.h"
#include "pipeline/pipeline.h"
#include "queue/queue.h"

struct Submitter {
        mqd_t queue;
        uint32_t capacity; /* bytes for jobs */
        size_t job_max;
        FrameHeader header; /* of the frame in the making */
        uint32_t length;    /* bytes of jobs in it */
        uint64_t next_id;   /* what the next job need not say */
        uint64_t n_sent;
        uint8_t frame[];
};

/* ---- the queue ---- */

int submit_queue_name(const char *instance, char ret[static SUBMIT_QUEUE_NAME_MAX]) {
        if (!pipeline_name_is_valid(instance))
                return -EINVAL;

        (void)snprintf(ret, SUBMIT_QUEUE_NAME_MAX, "/sluice.%s.in", instance);
        return 0;
}

int submit_open(const char *instance, mqd_t *ret) {
        char name[SUBMIT_QUEUE_NAME_MAX];
        _cleanup_close_ int fd = -1;
        struct stat st;
        int r;

        r = submit_queue_name(instance, name);
        if (r < 0)
                return r;

        fd = mq_open(name, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? SUBMIT_E_ABSENT : errno == EACCES ? SUBMIT_E_DENIED : -errno;

        /* Anybody can take the name before the service does. A queue of the service's is open to its user and
         * group only, so what lets everybody in is not one. */
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_mode & 0007)
                return SUBMIT_E_UNSUITABLE;

        *ret = TAKE_FD(fd);
        return 0;
}

static int draw_u64(uint64_t *ret) {
        /* Up to 256 bytes come whole, and EINTR is possible only until the kernel's pool is first ready. */
        while (getrandom(ret, sizeof(*ret), 0) < 0)
                if (errno != EINTR)
                        return -errno;
        return 0;
}

int submit_draw_id(uint64_t *ret) {
        uint64_t random;
        int r;

        r = draw_u64(&random);
        if (r < 0)
                return r;

        *ret = (random >> 33) << 32;
        return 0;
}

/* ---- the frame ---- */

int submitter_new(mqd_t queue, uint64_t key, Submitter **ret) {
        _cleanup_(submitter_freep) Submitter *s = NULL;
        QueueShape shape;
        uint64_t sequence;
        int r;

        r = queue_shape(queue, &shape);
        if (r < 0)
                return r;
        if (shape.message_bytes < FRAME_MIN_BYTES || shape.message_bytes > FRAME_MAX_BYTES)
                return SUBMIT_E_UNSUITABLE;

        r = draw_u64(&sequence);
        if (r < 0)
                return r;

        s = malloc(sizeof(*s) + shape.message_bytes);
        if (!s)
                return -ENOMEM;
        *s = (Submitter){
                .queue = queue,
                .capacity = shape.message_bytes - FRAME_OVERHEAD_BYTES,
                .job_max = frame_payload_max(shape.message_bytes),
                .header = {
                        .kind = FRAME_JOBS,
                        .priority = FRAME_PRIORITY_DEFAULT,
                        .ticket = FRAME_NO_TICKET,
                        .key = key,
                        .sequence = sequence ?: 1,
                },
        };

        *ret = TAKE_PTR(s);
        return 0;
}

void submitter_free(Submitter *s) {
        free(s);
}

static int submitter_send(Submitter *s, bool wait) {
        size_t n;
        int r;

        if (s->header.count == 0)
                return 0;

        n = frame_seal(s->frame, &s->header, s->length);
        r = wait ? queue_send(s->queue, s->frame, n, s->header.priority)
                 : queue_try_send(s->queue, s->frame, n, s->header.priority);
        if (r == QUEUE_E_AGAIN)
                return SUBMIT_E_AGAIN;
        if (r < 0)
                return r;

        s->n_sent += s->header.count;
        s->header.count = 0;
        s->length = 0;
        /* Never 0: memory of zeroes must not pass for the trailer of a frame that was cut short. */
        s->header.sequence = s->header.sequence + 1 ?: 1;
        return 0;
}

static void submitter_append(Submitter *s, const JobSpec *job) {
        if (s->header.count == 0) {
                s->header.base_id = job->id;
                s->header.time_usec = clock_realtime_usec();
        }
        s->length = (uint32_t)(job_write(s->frame + FRAME_HEADER_BYTES + s->length, job) -
                               (s->frame + FRAME_HEADER_BYTES));
        s->header.count++;
        s->next_id = job->id + 1;
}

static int submitter_put(Submitter *s, JobSpec *job, bool wait) {
        int r;

        job->explicit_id = s->header.count > 0 && job->id != s->next_id;
        if (job_bytes(job) > s->capacity - s->length) {
                r = submitter_send(s, wait);
                if (r != 0)
                        return r;
                job->explicit_id = false;
        }
        submitter_append(s, job);
        return 0;
}

static int submitter_put_job(Submitter *s, const void *data, size_t size, uint64_t id, bool wait) {
        if (size > s->job_max)
                return SUBMIT_E_TOO_LARGE;
        return submitter_put(s, &(JobSpec){ .data = data, .size = (uint32_t)size, .id = id }, wait);
}

int submitter_add(Submitter *s, const void *data, size_t size, uint64_t id) {
        return submitter_put_job(s, data, size, id, true);
}

int submitter_try_add(Submitter *s, const void *data, size_t size, uint64_t id) {
        return submitter_put_job(s, data, size, id, false);
}

int submitter_add_failed(Submitter *s, const char *text, uint64_t id) {
        char note[SUBMIT_NOTE_MAX];
        int n = snprintf(note, MIN(sizeof(note), s->job_max + 1), "%c%s", JOB_MARKER_FAILED, text);
        JobSpec job = {
                .data = note,
                .size = (uint32_t)MIN((size_t)n, MIN(sizeof(note) - 1, s->job_max)),
                .id = id,
                .flags = JOB_MARKER,
        };

        return submitter_put(s, &job, true);
}

int submitter_flush(Submitter *s) {
        return submitter_send(s, true);
}

int submitter_try_flush(Submitter *s) {
        return submitter_send(s, false);
}

uint64_t submitter_n_sent(const Submitter *s) {
        return s->n_sent;
}

uint32_t submitter_n_pending(const Submitter *s) {
        return s->header.count;
}

size_t submitter_job_max(const Submitter *s) {
        return s->job_max;
}
