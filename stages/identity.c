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

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "identity",
        .summary = "hands every job on unchanged",
        .kind = SLUICE_TRANSFORM,
        .run = run,
};
