/* SPDX-License-Identifier: MIT */

/*
 * bench-sink: looks at both ends of every job, counts it and sums it up.
 *
 * The count and the sum are saved with the jobs they belong to, so they stay
 * right when the worker dies. They are on the gauge for whoever measures.
 */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

#include <sluice/stage.h>

#include "gauge.h"

typedef struct Tally {
        uint64_t n_jobs;
        uint64_t checksum;
} Tally;

typedef struct Sink {
        Gauge *gauge; /* NULL: nobody measures */
        Tally tally;
} Sink;

static const SluiceSetting settings[] = {
        { "gauge", SLUICE_STRING, "", 0, 0, "file to note times and sums in" },
        { NULL },
};

static int sink_init(SluiceContext *ctx, void **state) {
        const char *path = sluice_setting_string(ctx, "gauge");
        const void *position;
        size_t n_position;
        Sink *s;
        int r;

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;

        if (path[0] != '\0') {
                r = gauge_map(path, &s->gauge);
                if (r < 0) {
                        sluice_explain(ctx, "cannot map the gauge %s: %s", path, strerror(-r));
                        free(s);
                        return r;
                }
        }

        position = sluice_position(ctx, &n_position);
        if (n_position == sizeof(s->tally))
                memcpy(&s->tally, position, sizeof(s->tally));

        *state = s;
        return 0;
}

static void sink_fini(void *state) {
        Sink *s = state;

        if (s->gauge)
                munmap(s->gauge, sizeof(*s->gauge));
        free(s);
}

static int sink_run_batch(SluiceContext *ctx, void *state, const SluiceJob *jobs, size_t n) {
        Sink *s = state;
        uint64_t n_before = s->tally.n_jobs, checksum = s->tally.checksum;

        for (size_t i = 0; i < n; i++)
                checksum += gauge_check(jobs[i].data, jobs[i].size);

        s->tally = (Tally){ .n_jobs = n_before + n, .checksum = checksum };
        sluice_set_position(ctx, &s->tally, sizeof(s->tally));
        sluice_commit(ctx, n, SLUICE_DONE);

        if (s->gauge)
                gauge_arrived(s->gauge, n_before, s->tally.n_jobs, checksum);
        return 0;
}

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .kind = SLUICE_SINK,
        .flags = SLUICE_ONE_LANE,
        .name = "bench-sink",
        .summary = "counts jobs and sums them up",
        .settings = settings,
        .init = sink_init,
        .fini = sink_fini,
        .run_batch = sink_run_batch,
};
