/* SPDX-License-Identifier: MIT */

/*
 * bench-source: makes numbered jobs as fast as they are taken.
 *
 * The first `pings` jobs go one at a time, each after the one before has
 * reached bench-sink (gauge.h). A gauge is needed for pings and for times;
 * without one it only makes jobs.
 */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/stage.h>

#include "gauge.h"

typedef struct Source {
        Gauge *gauge; /* NULL: nobody measures */
        uint64_t n_jobs;
        uint64_t n_pings;
        uint64_t n_made;
        uint64_t
                ping_nsec; /* when the ping under way was made; 0: none, or made by a process before this one */
        Load load;
} Source;

static const SluiceSetting settings[] = {
        { "count", SLUICE_INT, "1000000", 1, INT64_MAX, "jobs to make, pings included" },
        { "size", SLUICE_INT, "8", 0, GAUGE_JOB_BYTES_MAX,
          "bytes of each job, at least 8; 0: decimal numbers" },
        { "pings", SLUICE_INT, "0", 0, GAUGE_SAMPLES_MAX, "jobs that go one at a time, before the others" },
        { "gauge", SLUICE_STRING, "", 0, 0, "file to note times in" },
        { NULL },
};

static int source_init(SluiceContext *ctx, void **state) {
        const char *path = sluice_setting_string(ctx, "gauge");
        int64_t size = sluice_setting_int(ctx, "size");
        const void *position;
        size_t n_position;
        Source *s;
        int r;

        if (size > 0 && size < 8) {
                sluice_explain(ctx, "size must be 0 or at least 8");
                return -EINVAL;
        }

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;

        s->n_jobs = (uint64_t)sluice_setting_int(ctx, "count");
        s->n_pings = (uint64_t)sluice_setting_int(ctx, "pings");
        if (s->n_pings > s->n_jobs)
                s->n_pings = s->n_jobs;

        if (path[0] != '\0') {
                r = gauge_map(path, &s->gauge);
                if (r < 0) {
                        sluice_explain(ctx, "cannot map the gauge %s: %s", path, strerror(-r));
                        free(s);
                        return r;
                }
                atomic_store(&s->gauge->n_pings, s->n_pings);
                atomic_store(&s->gauge->n_jobs, s->n_jobs);
        } else if (s->n_pings > 0) {
                sluice_explain(ctx, "pings need a gauge");
                free(s);
                return -EINVAL;
        }

        position = sluice_position(ctx, &n_position);
        if (n_position == sizeof(s->n_made))
                memcpy(&s->n_made, position, sizeof(s->n_made));
        load_init(&s->load, (size_t)size, s->n_made);

        *state = s;
        return 0;
}

static void source_fini(void *state) {
        Source *s = state;

        if (s->gauge)
                munmap(s->gauge, sizeof(*s->gauge));
        free(s);
}

static SluiceProduced emit_until_full(SluiceContext *ctx, Source *s, uint64_t end) {
        while (s->n_made < end) {
                int r = sluice_emit(ctx, s->load.data, s->load.size);

                if (r == SLUICE_FULL)
                        break;
                if (r < 0) {
                        sluice_explain(ctx, "cannot emit a job of %zu bytes: %s", s->load.size, strerror(-r));
                        return SLUICE_BROKEN;
                }
                s->n_made++;
                load_next(&s->load);
        }

        sluice_set_position(ctx, &s->n_made, sizeof(s->n_made));
        return s->n_made < s->n_jobs ? SLUICE_MORE : SLUICE_END;
}

static SluiceProduced source_produce(SluiceContext *ctx, void *state) {
        Source *s = state;

        if (s->n_made > 0 && s->n_made <= s->n_pings) {
                if (gauge_wait(s->gauge, s->n_made) < 0)
                        return SLUICE_MORE;
                if (s->ping_nsec > 0)
                        gauge_sample(s->gauge, gauge_now_nsec() - s->ping_nsec);
                s->ping_nsec = 0;
                if (s->n_made == s->n_jobs)
                        return SLUICE_END;
        }

        if (s->n_made < s->n_pings) {
                s->ping_nsec = gauge_now_nsec();
                /* MORE even after the last one: its round trip is still to be taken. */
                return emit_until_full(ctx, s, s->n_made + 1) == SLUICE_BROKEN ? SLUICE_BROKEN : SLUICE_MORE;
        }

        if (s->gauge && s->n_made == s->n_pings)
                atomic_store(&s->gauge->start_nsec, gauge_now_nsec());
        return emit_until_full(ctx, s, s->n_jobs);
}

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .kind = SLUICE_SOURCE,
        .flags = SLUICE_ONE_LANE,
        .name = "bench-source",
        .summary = "makes numbered jobs as fast as they are taken",
        .settings = settings,
        .init = source_init,
        .fini = source_fini,
        .produce = source_produce,
};
