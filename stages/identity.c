/* SPDX-License-Identifier: MIT */
/*
 * identity: hands every job on unchanged.
 *
 * The smallest stage there is, and the one that benchmarks use: what it costs
 * is what sluice costs.
 */

#include <sluice/stage.h>

static SluiceAnswer run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        if (sluice_emit(ctx, job->data, job->size) < 0) {
                sluice_explain(ctx, "cannot hand on a job of %zu bytes", job->size);
                return SLUICE_FAIL;
        }

        return SLUICE_DONE;
}

/* Saves a call per job. Every job is committed by itself, since a result belongs to the first job not yet
 * answered: one commit for the lot would give them all to the first. */
static int run_batch(SluiceContext *ctx, void *state, const SluiceJob *jobs, size_t n) {
        for (size_t i = 0; i < n; i++)
                sluice_commit(ctx, 1, run(ctx, state, &jobs[i]));

        return 0;
}

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "identity",
        .summary = "hands every job on unchanged",
        .kind = SLUICE_TRANSFORM,
        .run = run,
        .run_batch = run_batch,
};
