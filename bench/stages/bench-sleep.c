/* SPDX-License-Identifier: MIT */

/* bench-sleep: hands every job on after a while, like a stage that waits for something. */

#include <errno.h>
#include <stdint.h>
#include <time.h>

#include <sluice/stage.h>

static const SluiceSetting settings[] = {
        { "ms", SLUICE_INT, "10", 0, 3600000, "milliseconds each job takes" },
        { NULL },
};

static SluiceAnswer sleep_run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        int64_t ms = sluice_setting_int(ctx, "ms");
        struct timespec left = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

        while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
                ;
        return sluice_emit(ctx, job->data, job->size) < 0 ? SLUICE_FAIL : SLUICE_DONE;
}

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .kind = SLUICE_TRANSFORM,
        .name = "bench-sleep",
        .summary = "hands every job on unchanged after a while",
        .settings = settings,
        .run = sleep_run,
};
