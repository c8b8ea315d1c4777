#pragma once

/*
 * Queue: POSIX message queues as sluice uses them.
 *
 * Queues are created exclusively or checked before use, since any local user
 * can squat a name. Descriptors stay blocking: O_NONBLOCK belongs to the open
 * file description, which supervisor and workers share, so "try" is a call
 * with a deadline in the past. Workers block in the queue call itself, never
 * in poll (a herd, and with EPOLLEXCLUSIVE a lost wake-up when the woken
 * process dies).
 *
 * A signal handled without SA_RESTART ends a blocking call with -EINTR; then
 * nothing was sent or received.
 */

#include <mqueue.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
        _QUEUE_E_SUCCESS,
        QUEUE_E_AGAIN, /* full, or empty: nothing was done */
        QUEUE_E_LIMITS, /* the kernel's limits do not allow such a queue; errno-like detail is lost, see queue_plan() */
        QUEUE_E_FOREIGN, /* the name is taken by another user's queue, or one with a mode that lets others in */
        QUEUE_E_EXISTS,
        QUEUE_E_ABSENT,
};

typedef struct QueueShape {
        uint32_t depth;         /* messages */
        uint32_t message_bytes; /* of one */
} QueueShape;

/* What the kernel grants this user. Without CAP_SYS_RESOURCE all of it applies to root, too. */
typedef struct QueueLimits {
        uint64_t depth_max;   /* fs.mqueue.msg_max */
        uint64_t message_max; /* fs.mqueue.msgsize_max */
        uint64_t queues_max;  /* fs.mqueue.queues_max */
        uint64_t bytes_max;   /* RLIMIT_MSGQUEUE: per real user id, over all its queues */
} QueueLimits;

#define QUEUE_DEFAULT_DEPTH 10
#define QUEUE_DEFAULT_MESSAGE_BYTES 8192
#define QUEUE_MIN_DEPTH 2

/* Reads the limits; the kernel's defaults where /proc does not show them. */
void queue_limits_read(QueueLimits *ret);

/* What the kernel charges for a queue when it is created, whether or not it ever fills
 * (ipc/mqueue.c: 48 bytes for msg_msg and 48 for a tree node per message). */
uint64_t queue_price(const QueueShape *shape);

/* The outcome of planning, in words an operator can act on. */
typedef struct QueuePlan {
        uint64_t sum_bytes; /* price of all queues as planned */
        bool reduced;       /* at least one is smaller than wished for */
        char text[256];     /* one line: what it got, and which limit bites */
} QueuePlan;

/*
 * Fits `n` queues into the limits and at most `budget_bytes` (0: all that the
 * limits allow). `wishes` with 0 in a field leave it to the plan; others are
 * kept or refused, never changed. First depth, then message size is given up.
 *
 * Returns 0 and fills `shapes` and `plan`, or QUEUE_E_LIMITS with the sum and the limit that bites in plan->text.
 * Pure.
 */
int queue_plan(const QueueLimits *limits, uint64_t budget_bytes, const QueueShape *wishes, size_t n,
               QueueShape *shapes, QueuePlan *plan);

/* Creates a named queue, refusing one that exists. `mode` is set as given, whatever the umask.
 * Returns 0, QUEUE_E_EXISTS, QUEUE_E_LIMITS, negative errno. */
int queue_create(const char *name, const QueueShape *shape, mode_t mode, mqd_t *ret);

/* Opens a queue that must be ours: the effective user's, not accessible to others. Returns 0 with its shape, QUEUE_E_ABSENT, QUEUE_E_FOREIGN, negative errno. */
int queue_open(const char *name, mqd_t *ret, QueueShape *ret_shape);

/* A queue without a name: gone with its last descriptor. Returns as queue_create(). */
int queue_create_anonymous(const QueueShape *shape, mqd_t *ret);

/* Messages waiting now, or negative errno. */
int queue_depth(mqd_t queue);
int queue_shape(mqd_t queue, QueueShape *ret);

/* Blocks until sent. Returns 0, -EINTR, or another negative errno. */
int queue_send(mqd_t queue, const void *data, size_t n_data, unsigned priority);

/* Returns 0, QUEUE_E_AGAIN, or negative errno. Never blocks. */
int queue_try_send(mqd_t queue, const void *data, size_t n_data, unsigned priority);

/* Blocks for a message. `buffer` must have the queue's message size. Returns its length, or negative errno (-EINTR).
 * The kernel writes `*priority` before the message. */
ssize_t queue_receive(mqd_t queue, void *buffer, size_t n_buffer, unsigned *priority);

/* The same without blocking: -EAGAIN if there is none. */
ssize_t queue_try_receive(mqd_t queue, void *buffer, size_t n_buffer, unsigned *priority);
