/* SPDX-License-Identifier: MIT */
/*
 * reverse: a stage of your own, outside of sluice's tree.
 *
 * Everything a stage needs is in one header and nothing is linked: what a
 * stage calls (sluice_emit(), sluice_explain(), ...) comes through the context
 * that sluice hands it. See the Makefile for the one line that builds it,
 * and reverse.conf for a pipeline that uses it.
 *
 * This one turns each job's text around: "abc" becomes "cba". It shows
 *
 *     - settings: declared in a table, checked by sluice before anything starts
 *     - state:    made once per worker in init(), given back in fini()
 *     - answers:  done, drop, retry and fail, and when each is right
 */

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include <sluice/stage.h>

/* What a worker remembers between jobs. Every worker is a process of its own and calls us from one thread, so
 * there is nothing to lock. */
typedef struct Reverse {
        bool bytes;
        bool skip_empty;
        char *buffer; /* kept from job to job, so that most jobs allocate nothing */
        size_t n_buffer;
} Reverse;

/*
 * A setting is read by the name it has in the table at the end. It is always
 * there and of its type: what is missing has its default, and a wrong one was
 * an error with file and line long before. Only what the table cannot
 * say, here the two words that `unit` may be, is ours to check.
 */
static int init(SluiceContext *ctx, void **state) {
        const char *unit = sluice_setting_string(ctx, "unit");
        Reverse *r;

        if (strcmp(unit, "character") != 0 && strcmp(unit, "byte") != 0) {
                sluice_explain(ctx, "unit is \"%s\", but must be \"character\" or \"byte\"", unit);
                return -EINVAL;
        }

        r = calloc(1, sizeof(*r));
        if (!r)
                return -ENOMEM;

        r->bytes = strcmp(unit, "byte") == 0;
        r->skip_empty = sluice_setting_int(ctx, "skip_empty");

        *state = r;
        return 0;
}

/* Called when the worker stops in good order. A worker that is killed never gets here, so nothing that matters
 * may depend on it. */
static void fini(void *state) {
        Reverse *r = state;

        free(r->buffer);
        free(r);
}

/* The length of the UTF-8 character at `p`, or 0 if there is none. (Simple on purpose: it knows the shape of a
 * character, not which ones exist.) */
static size_t character_length(const unsigned char *p, size_t n) {
        size_t length = *p < 0x80 ? 1 : *p >> 5 == 0x6 ? 2 : *p >> 4 == 0xe ? 3 : *p >> 3 == 0x1e ? 4 : 0;

        if (length > n)
                return 0;
        for (size_t i = 1; i < length; i++)
                if (p[i] >> 6 != 0x2)
                        return 0;

        return length;
}

/* Fills the buffer from its end. Returns false if the text is no UTF-8. */
static bool reverse_text(const Reverse *r, const unsigned char *text, size_t size) {
        for (size_t at = 0; at < size;) {
                size_t n = r->bytes ? 1 : character_length(text + at, size - at);

                if (n == 0)
                        return false;
                memcpy(r->buffer + size - at - n, text + at, n);
                at += n;
        }

        return true;
}

/*
 * One job. The payload is any bytes, `size` of them, without a terminating
 * NUL, and ours until we answer. The answer decides what happens:
 *
 *     SLUICE_DONE   what we emitted goes to the next stage
 *     SLUICE_DROP   nothing goes on, and that is fine
 *     SLUICE_FAIL   it can never work: a dead letter, with our explanation
 *     SLUICE_RETRY  it may work later: tried again, with growing delays
 *
 * If the worker is killed in here, the job runs again and nobody has seen what
 * it emitted. A stage that only computes needs to do nothing for that.
 */
static SluiceAnswer run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        Reverse *r = state;

        if (job->size == 0 && r->skip_empty)
                return SLUICE_DROP;

        if (job->size > r->n_buffer) {
                char *larger = realloc(r->buffer, job->size);

                if (!larger) {
                        sluice_explain(ctx, "no memory for %zu bytes", job->size);
                        return SLUICE_RETRY;
                }
                r->buffer = larger;
                r->n_buffer = job->size;
        }

        if (!reverse_text(r, job->data, job->size)) {
                sluice_explain(ctx, "the text is not UTF-8; unit = \"byte\" takes anything");
                return SLUICE_FAIL;
        }

        /* Copied: the buffer is ours again when it returns. */
        if (sluice_emit(ctx, r->buffer, job->size) < 0) {
                sluice_explain(ctx, "cannot hand on %zu bytes", job->size);
                return SLUICE_FAIL;
        }
        return SLUICE_DONE;
}

/* name, type, default (as one would write it in the file; NULL: must be given), smallest, largest, help. The list
 * ends with an empty entry. */
static const SluiceSetting settings[] = {
        { "unit", SLUICE_STRING, "character", 0, 0, "what changes its order: character (UTF-8) or byte" },
        { "skip_empty", SLUICE_BOOL, "false", 0, 0, "drop jobs without text" },
        { NULL, SLUICE_INT, NULL, 0, 0, NULL },
};

/* The one symbol that sluice looks for. A source would have `produce` in place of `run`; a sink emits nothing. */
SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .kind = SLUICE_TRANSFORM,
        .name = "reverse",
        .summary = "turns the text of every job around",
        .settings = settings,
        .init = init,
        .fini = fini,
        .run = run,
};
