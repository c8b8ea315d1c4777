#pragma once

/*
 * Pipeline: the stages of one configuration, checked and immutable.
 *
 * Built by pipeline_from_file() or by pipeline_from_arguments() from
 * the words of `sluicectl run`. Whoever holds a Pipeline may rely on: names
 * are valid and unique, `next` leads forward without a cycle, every stage that
 * is not a source is fed, sinks feed nobody, every plugin exists and has our
 * ABI, every value is in range and every setting has the plugin's type.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "pipeline/plugin.h"

#define PIPELINE_NAME_MAX 64 /* [a-z0-9][a-z0-9-]{0,63} */
#define PIPELINE_STAGES_MAX 64
#define PIPELINE_LANES_MAX 1024 /* per stage */
#define STAGE_NONE SIZE_MAX

typedef enum OnStop {
        ON_STOP_PARK,
        ON_STOP_DRAIN,
} OnStop;

typedef enum Results {
        RESULTS_NONE, /* what the last stage emits is an error: it must be a sink, or its results are dropped */
        RESULTS_QUEUE, /* the last stage's results go to the queue /sluice.NAME.results */
} Results;

typedef enum StageMode {
        STAGE_MODE_PROCESS,
} StageMode;

/* A value of a stage's `settings`, converted to the plugin's type. */
typedef struct Setting {
        char *name;
        uint32_t type;   /* SluiceType */
        int64_t integer; /* int, bool, duration (usec), size (bytes) */
        double real;
        char *string;
} Setting;

typedef struct Stage {
        char *name;
        char *use;
        const Plugin *plugin; /* borrowed from the pipeline's set */
        StageMode mode;
        uint32_t n_workers;
        size_t next; /* index of the stage its results go to, or STAGE_NONE */
        uint64_t linger_usec;
        uint32_t queue_depth;         /* frames its job queue should hold; 0: planned */
        uint32_t queue_message_bytes; /* size of a frame in its job queue; 0: planned */
        uint32_t retry_attempts;      /* runs of a job, the first included */
        uint64_t retry_backoff_usec;
        uint64_t retry_max_backoff_usec;
        Setting *settings; /* all of the plugin's, defaults included */
        size_t n_settings;
        char *file; /* where it was written, for messages; NULL for arguments */
        unsigned line;
} Stage;

typedef struct Pipeline {
        char *name;
        char *file; /* NULL when built from arguments */
        Stage *stages;
        size_t n_stages;
        OnStop on_stop;
        Results results;
        uint64_t drain_grace_usec;
        int log_level;
        PluginSet plugins;
} Pipeline;

void pipeline_free(Pipeline *pipeline);
DEFINE_CLEANUP(Pipeline, pipeline_free)

/* True if `name` can name a pipeline or a stage: [a-z0-9][a-z0-9-]{0,63}. */
bool pipeline_name_is_valid(const char *name);

/* True if the stage makes its jobs itself and so has no job queue. */
bool stage_is_source(const Stage *stage);
bool stage_is_sink(const Stage *stage);

/* How many stages feed this one; `ret_feeders` (room for n_stages) gets their indices, or NULL. */
size_t pipeline_feeders(const Pipeline *pipeline, size_t stage, size_t *ret_feeders);

/* True if clients submit jobs to the first stage; false if the pipeline makes its own. */
bool pipeline_has_ingress(const Pipeline *pipeline);

/* The (first) stage whose results leave the pipeline, or STAGE_NONE if it ends in sinks. */
size_t pipeline_results_stage(const Pipeline *pipeline);

/* Default number of workers: the processors this process may use (its affinity mask), at least 1. */
uint32_t pipeline_default_workers(void);
