/* SPDX-License-Identifier: MIT */
/*
 * range: makes the whole numbers from `from` to `to`, as decimal text.
 *
 * The position is the last number made, so "is there another one?" is a
 * question of arithmetic: after the end there is none, also after a restart,
 * and when the administrator raises `to` it goes on where it was.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <syslog.h>

#include <sluice/stage.h>

typedef struct Position {
        int64_t last;       /* the number made last */
        int64_t from, step; /* what it belongs to */
} Position;

/*
 * Decimal text of a number. All digits but the last two are kept, as they
 * only change with every hundredth number.
 */
typedef struct Text {
        uint64_t hundreds; /* magnitude / 100 of the text at hand */
        bool negative;
        bool valid;
        unsigned n_prefix; /* sign and hundreds */
        char text[24];
} Text;

typedef struct Range {
        int64_t from, to, step;
        int64_t next;
        uint64_t n_more; /* numbers after `next` */
        bool ended;
        Text text;
} Range;

static const char pairs[] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
                            "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
                            "8081828384858687888990919293949596979899";

static uint64_t magnitude(int64_t v) {
        return v < 0 ? -(uint64_t)v : (uint64_t)v;
}

static void text_prefix(Text *t, uint64_t hundreds, bool negative) {
        char digits[20];
        unsigned n = 0, at = 0;

        for (uint64_t v = hundreds; v > 0; v /= 10)
                digits[n++] = (char)('0' + v % 10);
        if (negative)
                t->text[at++] = '-';
        while (n > 0)
                t->text[at++] = digits[--n];

        t->hundreds = hundreds;
        t->negative = negative;
        t->valid = true;
        t->n_prefix = at;
}

static size_t text_set(Text *t, int64_t number) {
        uint64_t m = magnitude(number), hundreds = m / 100;
        const char *pair = pairs + 2 * (m % 100);
        char *end;

        if (!t->valid || hundreds != t->hundreds || (number < 0) != t->negative)
                text_prefix(t, hundreds, number < 0);

        end = t->text + t->n_prefix;
        if (m < 10) {
                *end = pair[1];
                return t->n_prefix + 1;
        }
        memcpy(end, pair, 2);
        return t->n_prefix + 2;
}

/* How many numbers follow `number`. Unsigned, since the distance between two int64_t may be any uint64_t. */
static uint64_t count_after(const Range *r, int64_t number) {
        if (r->step > 0)
                return number < r->to ? ((uint64_t)r->to - (uint64_t)number) / (uint64_t)r->step : 0;

        return number > r->to ? ((uint64_t)number - (uint64_t)r->to) / magnitude(r->step) : 0;
}

static int64_t successor(const Range *r, int64_t number) {
        return (int64_t)((uint64_t)number + (uint64_t)r->step);
}

static void start_at_from(Range *r) {
        r->next = r->from;
        r->ended = r->step > 0 ? r->from > r->to : r->from < r->to;
        r->n_more = count_after(r, r->from);
}

static void start_after(Range *r, int64_t last) {
        uint64_t n = count_after(r, last);

        r->ended = n == 0;
        if (r->ended)
                return;
        r->next = successor(r, last);
        r->n_more = n - 1;
}

static int init(SluiceContext *ctx, void **state) {
        Position saved;
        const void *data;
        size_t n_saved;
        Range *r;

        r = calloc(1, sizeof(*r));
        if (!r)
                return -ENOMEM;

        r->from = sluice_setting_int(ctx, "from");
        r->to = sluice_setting_int(ctx, "to");
        r->step = sluice_setting_int(ctx, "step");
        if (r->step == 0) {
                sluice_explain(ctx, "step must not be 0");
                free(r);
                return -EINVAL;
        }

        data = sluice_position(ctx, &n_saved);
        if (n_saved == sizeof(saved))
                memcpy(&saved, data, sizeof(saved));
        if (n_saved == sizeof(saved) && saved.from == r->from && saved.step == r->step)
                start_after(r, saved.last);
        else {
                if (n_saved > 0)
                        sluice_log(ctx, LOG_NOTICE,
                                   "The settings have changed; starting again from %" PRId64 ".", r->from);
                start_at_from(r);
        }

        *state = r;
        return 0;
}

static SluiceProduced produce(SluiceContext *ctx, void *state) {
        Range *r = state;
        Position position = { .from = r->from, .step = r->step };
        bool any = false;
        int error = 0;

        while (!r->ended) {
                size_t n = text_set(&r->text, r->next);

                error = sluice_emit(ctx, r->text.text, n);
                if (error != 0)
                        break;

                any = true;
                position.last = r->next;
                if (r->n_more == 0) {
                        r->ended = true;
                        break;
                }
                r->n_more--;
                r->next = successor(r, r->next);
        }

        if (any)
                (void)sluice_set_position(ctx, &position, sizeof(position));
        else if (error < 0) {
                sluice_explain(ctx, "cannot emit %" PRId64 ": %s", r->next, strerror(-error));
                return SLUICE_BROKEN;
        }

        return r->ended ? SLUICE_END : SLUICE_MORE;
}

static const SluiceSetting settings[] = {
        { "from", SLUICE_INT, "0", 0, 0, "first number" },
        { "to", SLUICE_INT, NULL, 0, 0, "last number, made if the steps meet it" },
        { "step", SLUICE_INT, "1", 0, 0, "distance from one to the next; may be negative, not 0" },
        {},
};

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "range",
        .summary = "makes the whole numbers between two bounds",
        .kind = SLUICE_SOURCE,
        .flags = SLUICE_ONE_LANE,
        .settings = settings,
        .init = init,
        .fini = free,
        .produce = produce,
};
