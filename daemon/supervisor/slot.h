#pragma once

/*
 * Slot: the life of one lane's worker, as the supervisor sees it.
 *
 *            SPAWNED            READY
 *     IDLE ----------> STARTING ------> RUNNING
 *      ^ ^                |  |            |  |
 *      | |   DIED         |  |            |  | DIED
 *      | +----------------+  +-----+------+  |
 *      |                           |         |
 *      |  DUE                 FAILED         |      STOPPED: does not come back by itself.
 *      +--------- BACKOFF <--------+         +----> Any state but STARTING and RUNNING
 *                                                   goes there on STOP, those two when
 *                                                   the process has ended (ENDED).
 *
 * Pure: the table and the restart policy. The process is spawn.c's, the
 * timers and the log are supervisor.c's.
 */

#include <stdbool.h>
#include <stdint.h>

typedef enum SlotState {
        SLOT_NONE, /* an empty cell of the table */
        SLOT_IDLE, /* no process; to be started */
        SLOT_STARTING,
        SLOT_RUNNING,
        SLOT_BACKOFF, /* no process; started again when the delay is over */
        SLOT_STOPPED, /* no process; none wanted */
        _SLOT_STATE_MAX,
} SlotState;

typedef enum SlotEvent {
        SLOT_SPAWNED, /* a process is there */
        SLOT_READY,   /* it said so */
        SLOT_DIED,    /* it is gone and had finished jobs: start again at once */
        SLOT_FAILED,  /* it is gone, or could not be made, without having finished one: start again later */
        SLOT_ENDED,   /* it is gone as it was asked to, or its work is done */
        SLOT_DUE,     /* the delay is over */
        SLOT_STOP,    /* no process is wanted any more */
        SLOT_WANTED,  /* one is wanted again */
        _SLOT_EVENT_MAX,
} SlotEvent;

const char *slot_state_name(SlotState state);

/* The state after an event, or SLOT_NONE: cannot happen. */
SlotState slot_next(SlotState state, SlotEvent event);

/* Delay before the n-th start in a row (n >= 1) of a worker that never finished a job, in microseconds:
 * 100 ms, doubling, up to 30 s. */
uint64_t slot_backoff_usec(unsigned n_failures);

/* So many in a row, and the stage is degraded if no other worker of it is running. */
#define SLOT_DEGRADED_AFTER 5
