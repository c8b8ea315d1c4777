#include "queue/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "frame/frame.h"

static uint64_t read_limit(const char *name, uint64_t fallback) {
        _cleanup_fclose_ FILE *f = NULL;
        char path[64];
        uint64_t value;

        (void)snprintf(path, sizeof(path), "/proc/sys/fs/mqueue/%s", name);
        f = fopen(path, "re");
        if (!f || fscanf(f, "%" SCNu64, &value) != 1)
                return fallback;
        return value;
}

void queue_limits_read(QueueLimits *ret) {
        struct rlimit rl = { .rlim_cur = 819200 };

        (void)getrlimit(RLIMIT_MSGQUEUE, &rl);
        *ret = (QueueLimits){
                .depth_max = read_limit("msg_max", QUEUE_DEFAULT_DEPTH),
                .message_max = read_limit("msgsize_max", QUEUE_DEFAULT_MESSAGE_BYTES),
                .queues_max = read_limit("queues_max", 256),
                .bytes_max = rl.rlim_cur == RLIM_INFINITY ? UINT64_MAX : rl.rlim_cur,
        };
}

uint64_t queue_price(const QueueShape *shape) {
        uint64_t depth = shape->depth;

        return depth * 48 + MIN(depth, UINT64_C(32768)) * 48 + depth * shape->message_bytes;
}

/* The sum for one choice of what is left open; exact wishes stay. */
static uint64_t plan_with(const QueueShape *wishes, size_t n, QueueShape open, QueueShape *shapes) {
        uint64_t sum = 0;

        for (size_t i = 0; i < n; i++) {
                shapes[i] = (QueueShape){
                        .depth = wishes[i].depth ?: open.depth,
                        .message_bytes = wishes[i].message_bytes ?: open.message_bytes,
                };
                sum += queue_price(&shapes[i]);
        }
        return sum;
}

static int plan_check_wishes(const QueueLimits *limits, const QueueShape *wishes, size_t n, QueuePlan *plan) {
        for (size_t i = 0; i < n; i++) {
                if (wishes[i].depth > limits->depth_max) {
                        (void)snprintf(plan->text, sizeof(plan->text),
                                       "a queue of depth %" PRIu32
                                       " is more than fs.mqueue.msg_max = %" PRIu64
                                       "; raise it with sysctl or ask for less",
                                       wishes[i].depth, limits->depth_max);
                        return QUEUE_E_LIMITS;
                }
                if (wishes[i].message_bytes > limits->message_max) {
                        (void)snprintf(plan->text, sizeof(plan->text),
                                       "frames of %" PRIu32
                                       " bytes are more than fs.mqueue.msgsize_max = %" PRIu64
                                       "; raise it with sysctl or ask for less",
                                       wishes[i].message_bytes, limits->message_max);
                        return QUEUE_E_LIMITS;
                }
        }
        if (limits->message_max < FRAME_MIN_BYTES) {
                (void)snprintf(plan->text, sizeof(plan->text),
                               "fs.mqueue.msgsize_max = %" PRIu64
                               " is less than the %d bytes a frame needs; raise it with sysctl",
                               limits->message_max, FRAME_MIN_BYTES);
                return QUEUE_E_LIMITS;
        }
        if (n > limits->queues_max) {
                (void)snprintf(plan->text, sizeof(plan->text),
                               "%zu queues are more than fs.mqueue.queues_max = %" PRIu64, n,
                               limits->queues_max);
                return QUEUE_E_LIMITS;
        }
        return 0;
}

/* The largest of them in words, and what they cost. */
static void plan_describe(const QueueLimits *limits, size_t n, const QueueShape *shapes, QueuePlan *plan) {
        QueueShape largest = {};
        char granted[64] = "without a limit";

        for (size_t i = 0; i < n; i++) {
                largest.depth = MAX(largest.depth, shapes[i].depth);
                largest.message_bytes = MAX(largest.message_bytes, shapes[i].message_bytes);
        }
        if (limits->bytes_max != UINT64_MAX)
                (void)snprintf(granted, sizeof(granted), "of the %" PRIu64 " that RLIMIT_MSGQUEUE grants",
                               limits->bytes_max);
        (void)snprintf(plan->text, sizeof(plan->text),
                       "%zu queue%s, up to %" PRIu32 " x %" PRIu32 " bytes each, %" PRIu64
                       " bytes in all %s%s",
                       n, n == 1 ? "" : "s", largest.depth, largest.message_bytes, plan->sum_bytes, granted,
                       plan->reduced ? "; raise it (LimitMSGQUEUE= or ulimit -q) for longer queues" : "");
}

int queue_plan(const QueueLimits *limits, uint64_t budget_bytes, const QueueShape *wishes, size_t n,
               QueueShape *shapes, QueuePlan *plan) {
        uint64_t budget = budget_bytes ? MIN(budget_bytes, limits->bytes_max) : limits->bytes_max;
        QueueShape open = {
                .depth = (uint32_t)MIN(limits->depth_max, (uint64_t)QUEUE_DEFAULT_DEPTH),
                .message_bytes = (uint32_t)MIN(limits->message_max, (uint64_t)QUEUE_DEFAULT_MESSAGE_BYTES),
        };
        int r;

        *plan = (QueuePlan){};
        r = plan_check_wishes(limits, wishes, n, plan);
        if (r != 0)
                return r;

        for (;;) {
                plan->sum_bytes = plan_with(wishes, n, open, shapes);
                if (plan->sum_bytes <= budget)
                        break;

                /* Depth 4 still keeps a stage fed; below that, smaller frames cost less than shorter queues. */
                if (open.depth > 4)
                        open.depth--;
                else if (open.message_bytes > 2048)
                        open.message_bytes = MAX(open.message_bytes / 2, (uint32_t)FRAME_MIN_BYTES);
                else if (open.depth > QUEUE_MIN_DEPTH)
                        open.depth--;
                else if (open.message_bytes > FRAME_MIN_BYTES)
                        open.message_bytes = MAX(open.message_bytes / 2, (uint32_t)FRAME_MIN_BYTES);
                else {
                        (void)snprintf(
                                plan->text, sizeof(plan->text),
                                "%zu queue%s need at least %" PRIu64
                                " bytes of message queues, but RLIMIT_MSGQUEUE leaves %" PRIu64
                                "; raise it (LimitMSGQUEUE= or ulimit -q) or use fewer or smaller queues",
                                n, n == 1 ? "" : "s", plan->sum_bytes, budget);
                        return QUEUE_E_LIMITS;
                }
                plan->reduced = true;
        }

        plan_describe(limits, n, shapes, plan);
        return 0;
}

int queue_create(const char *name, const QueueShape *shape, mode_t mode, mqd_t *ret) {
        _cleanup_close_ int fd = -1;
        struct mq_attr attr = {
                .mq_maxmsg = shape->depth,
                .mq_msgsize = shape->message_bytes,
        };

        fd = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attr);
        if (fd < 0) {
                switch (errno) {
                case EEXIST:
                        return QUEUE_E_EXISTS;
                case EINVAL: /* above fs.mqueue.msg_max or msgsize_max */
                case EMFILE: /* above RLIMIT_MSGQUEUE; nothing to do with descriptors */
                case ENOSPC: /* above fs.mqueue.queues_max */
                        return QUEUE_E_LIMITS;
                default:
                        return -errno;
                }
        }
        if (fchmod(fd, mode) < 0) {
                int r = -errno;

                (void)mq_unlink(name);
                return r;
        }

        *ret = TAKE_FD(fd);
        return 0;
}

int queue_shape(mqd_t queue, QueueShape *ret) {
        struct mq_attr attr;

        if (mq_getattr(queue, &attr) < 0)
                return -errno;

        *ret = (QueueShape){
                .depth = (uint32_t)attr.mq_maxmsg,
                .message_bytes = (uint32_t)attr.mq_msgsize,
        };
        return 0;
}

int queue_open(const char *name, mqd_t *ret, QueueShape *ret_shape) {
        _cleanup_close_ int fd = -1;
        struct stat st;
        int r;

        fd = mq_open(name, O_RDWR | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? QUEUE_E_ABSENT : errno == EACCES ? QUEUE_E_FOREIGN : -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        /* Others may neither read nor write it: what is in there would not be ours. */
        if (st.st_uid != geteuid() || (st.st_mode & 0007))
                return QUEUE_E_FOREIGN;

        r = queue_shape(fd, ret_shape);
        if (r < 0)
                return r;

        *ret = TAKE_FD(fd);
        return 0;
}

int queue_create_anonymous(const QueueShape *shape, mqd_t *ret) {
        for (unsigned tries = 0; tries < 16; tries++) {
                uint64_t random;
                char name[64];
                int r;

                if (getrandom(&random, sizeof(random), 0) < 0)
                        return -errno;
                (void)snprintf(name, sizeof(name), "/sluice.anonymous.%016" PRIx64, random);

                r = queue_create(name, shape, 0600, ret);
                if (r == QUEUE_E_EXISTS)
                        continue;
                if (r == 0)
                        (void)mq_unlink(name);
                return r;
        }
        return -EEXIST;
}

int queue_depth(mqd_t queue) {
        struct mq_attr attr;

        if (mq_getattr(queue, &attr) < 0)
                return -errno;
        return (int)attr.mq_curmsgs;
}

/*
 * "Do not wait" is a time gone by; the kernel looks at the queue before it
 * looks at the time. But where it then has to wait, it arms a timer all the
 * same, which in a virtual machine costs more than a frame of jobs. So an empty
 * (or full) queue is asked for its depth first; only a race pays for the timer.
 */
static const struct timespec deadline_past = { .tv_sec = 1 };

static bool queue_is_empty(mqd_t queue) {
        struct mq_attr attr;

        return mq_getattr(queue, &attr) == 0 && attr.mq_curmsgs == 0;
}

static bool queue_is_full(mqd_t queue) {
        struct mq_attr attr;

        return mq_getattr(queue, &attr) == 0 && attr.mq_curmsgs >= attr.mq_maxmsg;
}

int queue_send(mqd_t queue, const void *data, size_t n_data, unsigned priority) {
        return mq_send(queue, data, n_data, priority) < 0 ? -errno : 0;
}

int queue_try_send(mqd_t queue, const void *data, size_t n_data, unsigned priority) {
        if (queue_is_full(queue))
                return QUEUE_E_AGAIN;
        if (mq_timedsend(queue, data, n_data, priority, &deadline_past) < 0)
                return errno == ETIMEDOUT || errno == EAGAIN ? QUEUE_E_AGAIN : -errno;
        return 0;
}

ssize_t queue_receive(mqd_t queue, void *buffer, size_t n_buffer, unsigned *priority) {
        ssize_t n = mq_receive(queue, buffer, n_buffer, priority);

        return n < 0 ? -errno : n;
}

ssize_t queue_try_receive(mqd_t queue, void *buffer, size_t n_buffer, unsigned *priority) {
        ssize_t n;

        if (queue_is_empty(queue))
                return -EAGAIN;
        n = mq_timedreceive(queue, buffer, n_buffer, priority, &deadline_past);
        return n >= 0 ? n : errno == ETIMEDOUT ? -EAGAIN : -errno;
}
