#include <string.h>

#include "base/clock.h"
#include "pipeline/config-internal.h"

#define SECONDS(n) ((int64_t)((n)*USEC_PER_SEC))
#define DAY SECONDS(86400)

/* clang-format off */
const ConfigKey config_keys[] = {
        { CONFIG_TOP, "name", CONFIG_KEY_NAME,
          .help = "name of the pipeline; default: the file's name without .conf" },
        { CONFIG_TOP, "stages", CONFIG_KEY_OTHER,
          .help = "the list of stages, in the order jobs pass them; required" },
        { CONFIG_TOP, "on_stop", CONFIG_KEY_ENUM, .fallback = "park", .words = "park drain",
          .help = "what a stop does: park waits for the running jobs only, drain finishes all" },
        { CONFIG_TOP, "results", CONFIG_KEY_ENUM, .fallback = "none", .words = "none queue",
          .help = "where a service's last results go: nowhere, or to a result queue, which nothing in this version reads" },
        { CONFIG_TOP, "drain_grace", CONFIG_KEY_DURATION, .min = 0, .max = DAY, .fallback = "10s",
          .help = "how long a drain goes on taking jobs that clients submit meanwhile" },
        { CONFIG_TOP, "log_level", CONFIG_KEY_ENUM, .fallback = "info", .words = "err warning notice info debug",
          .help = "the least important messages that are logged" },

        { CONFIG_STAGE, "name", CONFIG_KEY_NAME,
          .help = "name of the stage; default: the plugin's file name, with -2, -3 when used again" },
        { CONFIG_STAGE, "use", CONFIG_KEY_STRING,
          .help = "the plugin: a name, or a path with a slash, relative to this file; required" },
        { CONFIG_STAGE, "settings", CONFIG_KEY_OTHER,
          .help = "a group of settings, defined by the plugin" },
        { CONFIG_STAGE, "mode", CONFIG_KEY_ENUM, .fallback = "process", .words = "process",
          .help = "how handlers run: each in a worker process" },
        { CONFIG_STAGE, "workers", CONFIG_KEY_INT, .min = 1, .max = PIPELINE_LANES_MAX, .fallback = "auto", .words = "auto",
          .help = "number of workers; auto: the processors this service may use, 1 for sources and stages that "
                  "need jobs one after the other" },
        { CONFIG_STAGE, "next", CONFIG_KEY_NAME,
          .help = "the stage that gets the results; default: the following one" },
        { CONFIG_STAGE, "linger", CONFIG_KEY_DURATION, .min = 0, .max = SECONDS(10), .fallback = "1ms",
          .help = "a job that took longer than this lets the results before it go first" },
        { CONFIG_STAGE, "queue", CONFIG_KEY_GROUP, .group = CONFIG_QUEUE,
          .help = "the stage's job queue" },
        { CONFIG_STAGE, "retry", CONFIG_KEY_GROUP, .group = CONFIG_RETRY,
          .help = "for jobs that fail but could work another time, and those whose worker died" },

        { CONFIG_QUEUE, "depth", CONFIG_KEY_INT, .min = 1, .max = 65536,
          .help = "frames the queue holds; default: planned to fit the kernel's limits" },
        { CONFIG_QUEUE, "message", CONFIG_KEY_SIZE, .min = 256, .max = 16 << 20,
          .help = "size of a frame, so also the limit of a job; default: planned to fit the kernel's limits" },

        { CONFIG_RETRY, "attempts", CONFIG_KEY_INT, .min = 1, .max = 100, .fallback = "3",
          .help = "how often a job is run at most, the first time included; then it fails: it is logged and counted" },
        { CONFIG_RETRY, "backoff", CONFIG_KEY_DURATION, .min = 0, .max = DAY, .fallback = "100ms",
          .help = "pause before the second attempt of a job that asks for it; doubled for each one after it; its lane waits" },
        { CONFIG_RETRY, "max_backoff", CONFIG_KEY_DURATION, .min = 0, .max = DAY, .fallback = "1min",
          .help = "the longest pause" },
};
/* clang-format on */

const size_t n_config_keys = ELEMENTSOF(config_keys);

_Static_assert(ELEMENTSOF(config_keys) <= CONFIG_KEYS_MAX, "raise CONFIG_KEYS_MAX");

const LaterKey config_later_keys[] = {
        { CONFIG_STAGE, "time_limit", true },   { CONFIG_STAGE, "rate_limit", true },
        { CONFIG_STAGE, "threads", false },     { CONFIG_STAGE, "concurrency", false },
        { CONFIG_STAGE, "command", false },     { CONFIG_STAGE, "user", false },
        { CONFIG_STAGE, "environment", false }, { CONFIG_STAGE, "limits", false },
};

const size_t n_config_later_keys = ELEMENTSOF(config_later_keys);

const ConfigKey *config_key_find(ConfigScope scope, const char *name) {
        for (size_t i = 0; i < n_config_keys; i++)
                if (config_keys[i].scope == scope && strcmp(config_keys[i].name, name) == 0)
                        return &config_keys[i];
        return NULL;
}
