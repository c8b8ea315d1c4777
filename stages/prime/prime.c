/* SPDX-License-Identifier: MIT */

/*
 * prime: says of every natural number whether it is prime.
 *
 *     "17"   -> "17 prime"          "1" -> "1 neither"
 *     "0091" -> "91 composite"      2^127 - 1, in digits -> "... probable-prime"
 *
 * The payload is the number in decimal digits, of any length; one CR at its
 * end is dropped. Anything else can never become a number, so it fails for good.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/stage.h>

#include "primality.h"

enum {
        UINT64_DIGITS = 20,
        VERDICT_MAX = sizeof(" probable-prime") - 1,
        QUOTED_BYTES = 32, /* of a bad payload, shown to whoever submitted it */
};

/* A payload as a number. */
typedef struct Number {
        const char *digits; /* borrowed from the job, without leading zeros */
        size_t n_digits;
        uint64_t value; /* if `fits` */
        bool fits;      /* into 64 bits */
} Number;

static bool all_digits(const char *text, size_t size) {
        for (size_t i = 0; i < size; i++)
                if (text[i] < '0' || text[i] > '9')
                        return false;
        return true;
}

static bool number_parse(const SluiceJob *job, Number *ret) {
        const char *text = job->data;
        size_t size = job->size;
        uint64_t value = 0;

        if (size > 0 && text[size - 1] == '\r')
                size--;
        if (size == 0)
                return false;

        while (size > 1 && text[0] == '0') {
                text++;
                size--;
        }

        bool fits = size <= UINT64_DIGITS;

        for (size_t i = 0; fits && i < size; i++) {
                unsigned digit = (unsigned)text[i] - '0';

                if (digit > 9)
                        return false;

                /* Nineteen digits always fit. */
                if (i < UINT64_DIGITS - 1)
                        value = value * 10 + digit;
                else
                        fits = !__builtin_mul_overflow(value, 10, &value) &&
                               !__builtin_add_overflow(value, digit, &value);
        }

        if (!fits && !all_digits(text, size))
                return false;

        *ret = (Number){ .digits = text, .n_digits = size, .value = value, .fits = fits };
        return true;
}

/* A bad payload as an operator may see it: between quotes, escaped, cut short. */
static void quote(const SluiceJob *job, char ret[static QUOTED_BYTES * 4 + sizeof("\"\"...")]) {
        static const char hex[] = "0123456789abcdef";
        const unsigned char *bytes = job->data;
        char *p = ret;

        *p++ = '"';
        for (size_t i = 0; i < job->size && i < QUOTED_BYTES; i++) {
                if (bytes[i] == '"' || bytes[i] == '\\') {
                        *p++ = '\\';
                        *p++ = (char)bytes[i];
                } else if (bytes[i] >= ' ' && bytes[i] <= '~')
                        *p++ = (char)bytes[i];
                else {
                        *p++ = '\\';
                        *p++ = 'x';
                        *p++ = hex[bytes[i] >> 4];
                        *p++ = hex[bytes[i] & 15];
                }
        }
        *p++ = '"';
        strcpy(p, job->size > QUOTED_BYTES ? "..." : "");
}

static SluiceAnswer refuse(SluiceContext *ctx, const SluiceJob *job) {
        char quoted[QUOTED_BYTES * 4 + sizeof("\"\"...")];

        quote(job, quoted);
        sluice_explain(ctx, "expected a natural number in decimal digits, got %s", quoted);
        return SLUICE_FAIL;
}

static SluiceAnswer hand_on(SluiceContext *ctx, const char *text, size_t size) {
        int r = sluice_emit(ctx, text, size);

        if (r < 0) {
                sluice_explain(ctx, "cannot hand on a result of %zu bytes: %s", size, strerrordesc_np(-r));
                return SLUICE_FAIL;
        }
        return SLUICE_DONE;
}

/* The case that counts: no allocation, and no copy of a length unknown to the compiler. */
static SluiceAnswer answer_small(SluiceContext *ctx, const Number *number) {
        char text[UINT64_DIGITS + VERDICT_MAX];
        char *p = text;

        for (size_t i = 0; i < number->n_digits; i++)
                *p++ = number->digits[i];

        if (primality_is_prime(number->value)) {
                memcpy(p, " prime", 6);
                p += 6;
        } else if (number->value > 1) {
                memcpy(p, " composite", 10);
                p += 10;
        } else {
                memcpy(p, " neither", 8);
                p += 8;
        }

        return hand_on(ctx, text, (size_t)(p - text));
}

static SluiceAnswer answer_large(SluiceContext *ctx, const Number *number) {
        static const char *const verdicts[_PRIMALITY_MAX] = {
                [PRIMALITY_COMPOSITE] = " composite",
                [PRIMALITY_PROBABLE] = " probable-prime",
                [PRIMALITY_PRIME] = " prime",
        };
        Primality primality;

        int r = primality_of_decimal(number->digits, number->n_digits, &primality);
        if (r == -ELIBACC) {
                sluice_explain(ctx, "a number beyond 64 bits needs GMP, but libgmp.so.10 cannot be loaded");
                return SLUICE_RETRY;
        }

        char *text = r < 0 ? NULL : malloc(number->n_digits + VERDICT_MAX);
        if (!text) {
                sluice_explain(ctx, "out of memory for a number of %zu digits", number->n_digits);
                return SLUICE_RETRY;
        }

        size_t n_verdict = strlen(verdicts[primality]);

        memcpy(text, number->digits, number->n_digits);
        memcpy(text + number->n_digits, verdicts[primality], n_verdict);

        SluiceAnswer answer = hand_on(ctx, text, number->n_digits + n_verdict);
        free(text);
        return answer;
}

static SluiceAnswer prime_run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        Number number;

        if (!number_parse(job, &number))
                return refuse(ctx, job);
        return number.fits ? answer_small(ctx, &number) : answer_large(ctx, &number);
}

static int prime_init(SluiceContext *ctx, void **state) {
        primality_prepare();
        return 0;
}

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "prime",
        .summary = "says of every natural number whether it is prime",
        .kind = SLUICE_TRANSFORM,
        .init = prime_init,
        .run = prime_run,
};
