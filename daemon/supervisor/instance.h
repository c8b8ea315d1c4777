#pragma once

/*
 * Instance: what a running pipeline has in the system. Its runtime folder
 * and lock, queues, boards and lane records, found again or made anew.
 *
 * A service's instance has names and outlives the daemon: a start takes up
 * what the last one left. An ephemeral one (`sluicectl run`) has none, so
 * nothing is left of it even after kill -9.
 *
 *     RUNTIME/lock            held while the daemon runs; says name and pid
 *     RUNTIME/life            random ids of records and queues that belong together
 *     RUNTIME/board.QUEUE     tickets of /sluice.NAME.QUEUE
 *     RUNTIME/lane.STAGE.N    record of a lane
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lane/lane.h"
#include "lane/memory.h"
#include "pipeline/pipeline.h"
#include "queue/queue.h"

enum {
        _INSTANCE_E_SUCCESS,
        INSTANCE_E_RUNNING, /* another daemon has this name */
        INSTANCE_E_REFUSED, /* starting would lose something, or the limits do not allow it; logged */
};

typedef struct InstanceQueue {
        char *name; /* "/sluice.NAME.STAGE", NULL if anonymous */
        mqd_t fd;   /* -1: the stage is a source */
        QueueShape shape;
        Memory board;
} InstanceQueue;

typedef struct InstanceStage {
        InstanceQueue queue; /* its job queue */
        Memory *lanes;
        size_t n_lanes; /* as configured, then those of an earlier configuration that still hold jobs */
        size_t n_configured;
        uint32_t n_outputs;
        uint32_t groups[LANE_OUTPUTS_MAX];
} InstanceStage;

typedef struct Instance {
        const Pipeline *pipeline; /* borrowed */
        bool ephemeral;
        int dir_fd; /* the runtime folder */
        char *dir;
        int lock_fd;
        uint64_t life, key;
        InstanceStage *stages; /* one for each of the pipeline's */
        InstanceQueue results; /* fd -1: not wanted */
        QueuePlan plan;
} Instance;

/*
 * Opens or makes everything. `results`: the last stage's results are read from a queue (for an ephemeral instance a
 * sink gets one, too, where its jobs are tracked). Errors that the operator can mend are logged.
 * Returns 0, INSTANCE_E_*, negative errno.
 */
int instance_open(const Pipeline *pipeline, bool ephemeral, bool results, Instance **ret);

/* Closes; a named instance stays as it is in the system. */
void instance_free(Instance *instance);
DEFINE_CLEANUP(Instance, instance_free)

static inline LaneRecord *instance_record(const InstanceStage *stage, size_t lane) {
        return (LaneRecord *)stage->lanes[lane].data;
}

static inline Board *instance_board(const InstanceQueue *queue) {
        return (Board *)queue->board.data;
}

/* The queue that output `0` of a stage leads to, or NULL. */
const InstanceQueue *instance_output(const Instance *instance, size_t stage);

/*
 * The queue plan a configuration would get on this machine, for --check: 0 or QUEUE_E_LIMITS with plan->text.
 */
int instance_plan(const Pipeline *pipeline, bool results, QueuePlan *plan);
