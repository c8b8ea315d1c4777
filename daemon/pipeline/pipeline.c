#include "pipeline/pipeline.h"

#include <sched.h>
#include <string.h>

#include <sluice/stage.h>

/* More processors than any machine has today; the affinity call fails with EINVAL below the kernel's own number. */
#define PROCESSORS_MAX 65536

static void stage_done(Stage *stage) {
        for (size_t i = 0; i < stage->n_settings; i++) {
                free(stage->settings[i].name);
                free(stage->settings[i].string);
        }
        free(stage->settings);
        free(stage->name);
        free(stage->use);
        free(stage->file);
}

void pipeline_free(Pipeline *pipeline) {
        if (!pipeline)
                return;
        for (size_t i = 0; i < pipeline->n_stages; i++)
                stage_done(&pipeline->stages[i]);
        free(pipeline->stages);
        free(pipeline->name);
        free(pipeline->file);
        plugin_set_done(&pipeline->plugins);
        free(pipeline);
}

bool pipeline_name_is_valid(const char *name) {
        size_t len = strlen(name);

        return len > 0 && len <= PIPELINE_NAME_MAX && name[0] != '-' &&
               strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len;
}

bool stage_is_source(const Stage *stage) {
        return stage->plugin->kind == SLUICE_SOURCE;
}

bool stage_is_sink(const Stage *stage) {
        return stage->plugin->kind == SLUICE_SINK;
}

size_t pipeline_feeders(const Pipeline *pipeline, size_t stage, size_t *ret_feeders) {
        size_t n = 0;

        for (size_t i = 0; i < pipeline->n_stages; i++) {
                if (pipeline->stages[i].next != stage)
                        continue;
                if (ret_feeders)
                        ret_feeders[n] = i;
                n++;
        }
        return n;
}

bool pipeline_has_ingress(const Pipeline *pipeline) {
        return !stage_is_source(&pipeline->stages[0]);
}

size_t pipeline_results_stage(const Pipeline *pipeline) {
        for (size_t i = 0; i < pipeline->n_stages; i++)
                if (pipeline->stages[i].next == STAGE_NONE && pipeline->stages[i].plugin &&
                    !stage_is_sink(&pipeline->stages[i]))
                        return i;
        return STAGE_NONE;
}

uint32_t pipeline_default_workers(void) {
        cpu_set_t *set = CPU_ALLOC(PROCESSORS_MAX);
        size_t size = CPU_ALLOC_SIZE(PROCESSORS_MAX);
        int n = 1;

        if (set && sched_getaffinity(0, size, set) == 0)
                n = CPU_COUNT_S(size, set);
        CPU_FREE(set);
        return n < 1 ? 1 : MIN((uint32_t)n, (uint32_t)PIPELINE_LANES_MAX);
}
