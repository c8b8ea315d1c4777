#pragma once

/*
 * Supervisor: keeps the workers of an instance alive, and ends them in order.
 *
 * It never touches a job and never loads a stage. Everything happens on one
 * sd-event loop: exits by pidfd, readiness by pipe, delays by timer. While
 * nothing dies and nobody asks, it is not woken at all.
 *
 * A worker that finished a job since it was started and then dies is started
 * again at once; one that did not, later and later. A stage whose workers do
 * not come up becomes degraded, keeps trying slowly and says so; it never takes
 * the others down.
 *
 * All functions are to be called from the thread that runs the loop, which
 * must be the main thread (workers die with the thread that forked them).
 */

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "pipeline/pipeline.h"
#include "supervisor/instance.h"

typedef struct Supervisor Supervisor;

typedef enum SupervisorEnd {
        SUPERVISOR_DRAINED, /* everything is finished */
        SUPERVISOR_PARKED,  /* stopped; what was under way is in queues and records */
        SUPERVISOR_FAILED,  /* `fail_fast`: a stage cannot start */
} SupervisorEnd;

typedef struct SupervisorOptions {
        bool fail_fast; /* stop when a stage cannot start, instead of trying for ever */
        bool track;     /* every job must reach the result queue, if only as a marker */
        bool drain_when_sources_end;
        uint64_t (*n_submitted)(void *userdata); /* jobs put into the first queue so far; NULL: not known */
        void (*on_ready)(void *userdata);        /* all workers are up, or known to be failing; once */
        void (*on_end)(void *userdata, SupervisorEnd end); /* no worker is left; once */
        void *userdata;
} SupervisorOptions;

/* Borrows the instance and the event loop. Returns 0 or a negative errno; errors an operator can mend are logged. */
int supervisor_new(Instance *instance, sd_event *event, const SupervisorOptions *options, Supervisor **ret);

/* Kills what is left of the workers and frees. */
void supervisor_free(Supervisor *supervisor);
DEFINE_CLEANUP(Supervisor, supervisor_free)

/* Starts all workers. */
int supervisor_start(Supervisor *supervisor);

/* Stops taking jobs in, finishes everything, stops. on_end() follows. Does nothing if stopping already. */
void supervisor_drain(Supervisor *supervisor);

/* Stops after the jobs at hand. on_end() follows. Also ends a drain that is going on. */
void supervisor_park(Supervisor *supervisor);

/* Stops now: kills the workers. Nothing is lost; what was running counts as interrupted. */
void supervisor_kill(Supervisor *supervisor);

/* Has the stages reopen their files. */
void supervisor_reopen(Supervisor *supervisor);

typedef struct SupervisorCounts {
        uint64_t n_done;
        uint64_t n_failed;
        uint64_t n_retried;
        uint64_t n_dropped;
} SupervisorCounts;

/* Counters of a stage since its records were made, summed over its lanes; read without asking any worker. */
void supervisor_count(const Instance *instance, size_t stage, SupervisorCounts *ret);
