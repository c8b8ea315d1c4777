/* SPDX-License-Identifier: MIT */
/*
 * gate: hands jobs on, but cannot start while a file exists. For tests of
 * stages that do not come up.
 */

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <sluice/stage.h>

static int init(SluiceContext *ctx, void **state) {
        const char *path = sluice_setting_string(ctx, "unless");

        if (access(path, F_OK) < 0)
                return 0;
        if (sluice_setting_int(ctx, "crash")) {
                (void)signal(SIGSEGV, SIG_DFL); /* a sanitizer would report it as a mistake */
                (void)raise(SIGSEGV);
        }
        sluice_explain(ctx, "%s is in the way", path);
        return -EBUSY;
}

static SluiceAnswer run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        return sluice_emit(ctx, job->data, job->size) == 0 ? SLUICE_DONE : SLUICE_FAIL;
}

static const SluiceSetting settings[] = {
        { "unless", SLUICE_STRING, NULL, 0, 0, "the file that keeps it from starting" },
        { "crash", SLUICE_BOOL, "false", 0, 0, "die instead of saying so" },
        {},
};

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "gate",
        .summary = "cannot start while a file exists",
        .kind = SLUICE_TRANSFORM,
        .settings = settings,
        .init = init,
        .run = run,
};
