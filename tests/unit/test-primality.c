/*
 * The prime stage: is its arithmetic right, and does it answer as promised?
 *
 * What is expected never comes from the code under test: a sieve, GMP and,
 * where it is installed, FLINT are the judges.
 */

#include <check.h>
#include <dlfcn.h>
#include <gmp.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#if HAVE_FLINT
#include <flint/ulong_extras.h>
#undef MAX /* of sys/param.h; ours are the same */
#undef MIN
#endif

#include <sluice/stage.h>

#include "base/cleanup.h"

#include "../../stages/prime/primality.h"

extern const SluiceStage sluice_stage; /* of prime.c */

/* ---- judges ---------------------------------------------------------------------------------- */

static bool gmp_is_prime(uint64_t n) {
        mpz_t z;

        mpz_init_set_ui(z, n);

        int r = mpz_probab_prime_p(z, 30);

        mpz_clear(z);
        return r > 0;
}

static void agrees_with_gmp(uint64_t n) {
        ck_assert_msg(primality_is_prime(n) == gmp_is_prime(n), "wrong about %" PRIu64, n);
}

static void is_composite(uint64_t n) {
        ck_assert_msg(!gmp_is_prime(n), "%" PRIu64 " is prime: the test is wrong", n);
        ck_assert_msg(!primality_is_prime(n), "calls %" PRIu64 " prime", n);
}

static uint64_t gmp_next_prime(uint64_t n) {
        mpz_t z;

        mpz_init_set_ui(z, n);
        mpz_nextprime(z, z);

        uint64_t next = mpz_get_ui(z);

        mpz_clear(z);
        return next;
}

static uint64_t mul_mod(uint64_t a, uint64_t b, uint64_t n) {
        return (uint64_t)((unsigned __int128)a * b % n);
}

/* Does an odd n pass the strong test to this base? */
static bool is_strong_probable_prime(uint64_t n, uint64_t base) {
        uint64_t d = n - 1, power = 1, square = base % n;
        int s = 0;

        for (; d % 2 == 0; d /= 2)
                s++;
        for (; d > 0; d /= 2) {
                if (d & 1)
                        power = mul_mod(power, square, n);
                square = mul_mod(square, square, n);
        }

        if (power == 1)
                return true;
        for (; s > 0; s--) {
                if (power == n - 1)
                        return true;
                power = mul_mod(power, power, n);
        }
        return false;
}

/* Does n, which is no square, pass the almost extra strong Lucas test?
 * From the definition, with GMP's Jacobi symbol and plain remainders. */
static bool is_lucas_probable_prime(uint64_t n) {
        mpz_t z;
        uint64_t p = 3;
        unsigned __int128 d = (unsigned __int128)n + 1;
        int s = 0;

        mpz_init_set_ui(z, n);
        while (mpz_ui_kronecker(p * p - 4, z) == 1)
                p++;

        bool minus = mpz_ui_kronecker(p * p - 4, z) == -1;

        mpz_clear(z);
        if (!minus)
                return false;

        for (; d % 2 == 0; d /= 2)
                s++;

        uint64_t v = 2, next = p % n;

        for (int bit = 63; bit >= 0; bit--) {
                uint64_t middle = (uint64_t)(((unsigned __int128)mul_mod(v, next, n) + n - p % n) % n);
                uint64_t *doubled = (d >> bit) & 1 ? &next : &v, *other = (d >> bit) & 1 ? &v : &next;

                *doubled = (uint64_t)(((unsigned __int128)mul_mod(*doubled, *doubled, n) + n - 2) % n);
                *other = middle;
        }

        if (v == 2 || v == n - 2)
                return true;
        for (; s > 1; s--) {
                if (v == 0)
                        return true;
                v = (uint64_t)(((unsigned __int128)mul_mod(v, v, n) + n - 2) % n);
        }
        return false;
}

/* Printed, so that a failure can be had again: SLUICE_TEST_SEED=NUMBER. */
static uint64_t random_seed(void) {
        const char *given = getenv("SLUICE_TEST_SEED");
        uint64_t seed = 0;

        if (given)
                seed = strtoull(given, NULL, 0);
        else
                ck_assert_int_eq(getrandom(&seed, sizeof(seed), 0), sizeof(seed));

        seed |= 1; /* xorshift would stay at 0 */
        printf("SLUICE_TEST_SEED=%" PRIu64 "\n", seed);
        fflush(stdout);
        return seed;
}

static uint64_t random_next(uint64_t *state) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        return *state;
}

/* ---- the arithmetic -------------------------------------------------------------------------- */

START_TEST(every_number_up_to_ten_million_agrees_with_a_sieve) {
        enum { LIMIT = 10 * 1000 * 1000 };
        _cleanup_free_ uint8_t *composite = calloc(LIMIT + 1, 1);

        ck_assert_ptr_nonnull(composite);
        composite[0] = composite[1] = 1;
        for (size_t p = 2; p * p <= LIMIT; p++)
                if (!composite[p])
                        for (size_t multiple = p * p; multiple <= LIMIT; multiple += p)
                                composite[multiple] = 1;

        for (size_t n = 0; n <= LIMIT; n++)
                if (primality_is_prime(n) == composite[n])
                        ck_abort_msg("wrong about %zu", n);
}
END_TEST

START_TEST(carmichael_numbers_are_composite) {
        static const uint64_t table[] = { 561,
                                          1105,
                                          1729,
                                          2465,
                                          2821,
                                          6601,
                                          8911,
                                          10585,
                                          15841,
                                          29341,
                                          41041,
                                          46657,
                                          52633,
                                          62745,
                                          63973,
                                          75361,
                                          101101,
                                          115921,
                                          126217,
                                          162401,
                                          172081,
                                          188461,
                                          252601,
                                          278545,
                                          294409,
                                          314821,
                                          334153,
                                          340561,
                                          399001,
                                          410041,
                                          449065,
                                          488881,
                                          512461,
                                          825265,
                                          321197185,
                                          5394826801,
                                          232250619601,
                                          9746347772161,
                                          1436697831295441,
                                          60977817398996785,
                                          7156857700403137441 };
        size_t n_found = 0;

        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                is_composite(table[i]);

        /* Chernick: (6k + 1)(12k + 1)(18k + 1), up to the end of 64 bits. */
        for (uint64_t k = 1; k < 242000; k++)
                if (gmp_is_prime(6 * k + 1) && gmp_is_prime(12 * k + 1) && gmp_is_prime(18 * k + 1)) {
                        is_composite((6 * k + 1) * (12 * k + 1) * (18 * k + 1));
                        n_found++;
                }

        ck_assert_uint_gt(n_found, 1000);
}
END_TEST

START_TEST(the_least_strong_pseudoprimes_to_the_first_bases_are_composite) {
        /* Pomerance, Selfridge, Wagstaff 1980; Jaeschke 1993; Sorenson, Webster 2015. */
        static const struct {
                uint64_t n;
                size_t n_bases;
        } psi[] = {
                { 2047, 1 },
                { 1373653, 2 },
                { 25326001, 3 },
                { UINT64_C(3215031751), 4 },
                { UINT64_C(2152302898747), 5 },
                { UINT64_C(3474749660383), 6 },
                { UINT64_C(341550071728321), 8 },
                { UINT64_C(3825123056546413051), 11 },
        };
        static const uint64_t bases[] = { 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31 };

        for (size_t i = 0; i < ELEMENTSOF(psi); i++) {
                for (size_t k = 0; k < psi[i].n_bases; k++)
                        ck_assert(is_strong_probable_prime(psi[i].n, bases[k]));
                is_composite(psi[i].n);
        }
}
END_TEST

START_TEST(strong_pseudoprimes_to_base_2_are_composite) {
        uint64_t state = random_seed();
        size_t n_fooled = 0;

        /* (k + 1)(mk + 1) with both prime often passes to base 2. */
        for (unsigned round = 0; round < 200000; round++) {
                uint64_t k = (random_next(&state) >> (34 + round % 20)) & ~UINT64_C(1), m = 2 + round % 4;

                if (k < 64 || !gmp_is_prime(k + 1) || !gmp_is_prime(m * k + 1))
                        continue;

                uint64_t n = (k + 1) * (m * k + 1);

                is_composite(n);
                n_fooled += is_strong_probable_prime(n, 2);
        }

        ck_assert_uint_gt(n_fooled, 100);
}
END_TEST

START_TEST(strong_lucas_pseudoprimes_are_composite) {
        /* With Selfridge's parameters (OEIS A217255), then extra strong ones (OEIS A217719). */
        static const uint64_t table[] = { 5459,   5777,   10877,  16109,  18971,  22499,  24569,
                                          25199,  40309,  58519,  75077,  97439,  100127, 113573,
                                          115639, 130139, 155819, 158399, 161027, 162133, 176399,
                                          176471, 989,    3239,   27971,  29681,  30739,  31631,
                                          39059,  72389,  73919,  125249, 137549, 137801 };
        uint64_t state = random_seed();
        size_t n_fooled = 0;

        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                is_composite(table[i]);

        /* (k + 1)(mk - 1) with both prime sometimes passes the test that large numbers get. */
        for (unsigned round = 0; round < 400000; round++) {
                uint64_t k = (random_next(&state) >> (34 + round % 20)) & ~UINT64_C(1), m = 2 + round % 4;

                if (k < 1024 || !gmp_is_prime(k + 1) || !gmp_is_prime(m * k - 1))
                        continue;

                uint64_t n = (k + 1) * (m * k - 1);

                is_composite(n);
                n_fooled += is_lucas_probable_prime(n);
        }

        ck_assert_uint_gt(n_fooled, 20);
}
END_TEST

START_TEST(numbers_around_powers_of_two_agree_with_gmp) {
        enum { AROUND = 3000 };

        for (int bits = 12; bits < 64; bits++)
                for (uint64_t n = (UINT64_C(1) << bits) - 300; n < (UINT64_C(1) << bits) + 300; n++)
                        agrees_with_gmp(n);

        for (uint64_t i = 0; i <= AROUND; i++) {
                agrees_with_gmp((UINT64_C(1) << 20) - i);
                agrees_with_gmp((UINT64_C(1) << 20) + i);
                agrees_with_gmp((UINT64_C(1) << 32) - i);
                agrees_with_gmp((UINT64_C(1) << 32) + i);
                agrees_with_gmp((UINT64_C(1) << 63) - i);
                agrees_with_gmp((UINT64_C(1) << 63) + i);
                agrees_with_gmp(UINT64_MAX - i);
        }

        ck_assert(primality_is_prime(UINT64_C(18446744073709551557))); /* the largest one */
        ck_assert(primality_is_prime((UINT64_C(1) << 61) - 1));
}
END_TEST

START_TEST(squares_and_products_of_close_primes_are_composite) {
        uint64_t state = random_seed();

        /* The only known primes whose squares pass the strong test to base 2 (Wieferich). */
        ck_assert(is_strong_probable_prime(1093 * 1093, 2));
        ck_assert(is_strong_probable_prime(3511 * 3511, 2));
        is_composite(1093 * 1093);
        is_composite(3511 * 3511);

        is_composite(UINT64_C(4294967291) * UINT64_C(4294967291)); /* the largest square of a prime */
        is_composite(UINT64_C(4294967291) * UINT64_C(4294967279));

        for (uint64_t p = gmp_next_prime(1000), q; p < 20000; p = q) {
                q = gmp_next_prime(p);
                is_composite(p * p);
                is_composite(p * q);
        }

        for (unsigned i = 0; i < 3000; i++) {
                uint64_t p = gmp_next_prime(random_next(&state) >> (33 + i % 16)), q = gmp_next_prime(p);

                is_composite(p * p);
                is_composite(p * q);
        }
}
END_TEST

START_TEST(random_numbers_agree_with_other_libraries) {
        uint64_t state = random_seed();

        for (unsigned i = 0; i < 400000; i++) {
                uint64_t n = random_next(&state) >> (i % 3 == 0 ? i % 44 : 0);

                agrees_with_gmp(n);
#if HAVE_FLINT
                ck_assert_msg(primality_is_prime(n) == (n_is_prime(n) != 0), "FLINT differs about %" PRIu64,
                              n);
#endif
        }
}
END_TEST

START_TEST(random_primes_are_found_prime) {
        uint64_t state = random_seed();

        for (unsigned i = 0; i < 5000; i++) {
                uint64_t p = gmp_next_prime((random_next(&state) >> (i % 40)) - 1000);

                /* mpz_nextprime() may step beyond 64 bits, and what is left then is no prime of ours. */
                if (gmp_is_prime(p))
                        ck_assert_msg(primality_is_prime(p), "calls %" PRIu64 " composite", p);
        }
}
END_TEST

/* ---- the stage ------------------------------------------------------------------------------- */

enum { FAKE_JOBS = 32 };

typedef struct FakeHost {
        SluiceContext ctx; /* first: the plugin's pointer is ours */
        int emit_error;    /* what emit() shall fail with */
        char *result;      /* of the job not yet answered */
        size_t n_results;
        char explained[512];
        struct {
                char *result;
                SluiceAnswer answer;
        } committed[FAKE_JOBS];
        size_t n_committed;
} FakeHost;

static int fake_emit(SluiceContext *ctx, const void *data, size_t size) {
        FakeHost *fake = (FakeHost *)ctx;

        if (fake->emit_error < 0)
                return fake->emit_error;

        free(fake->result);
        fake->result = malloc(size + 1);
        ck_assert_ptr_nonnull(fake->result);
        memcpy(fake->result, data, size);
        fake->result[size] = '\0';
        ck_assert_uint_eq(strlen(fake->result), size);
        fake->n_results++;
        return 0;
}

static void fake_commit(SluiceContext *ctx, size_t n, SluiceAnswer answer) {
        FakeHost *fake = (FakeHost *)ctx;

        ck_assert_uint_eq(n, 1);
        ck_assert_uint_lt(fake->n_committed, FAKE_JOBS);
        fake->committed[fake->n_committed].result = TAKE_PTR(fake->result);
        fake->committed[fake->n_committed++].answer = answer;
}

__attribute__((format(printf, 2, 0))) static void fake_explain(SluiceContext *ctx, const char *format,
                                                               va_list ap) {
        FakeHost *fake = (FakeHost *)ctx;
        int size = vsnprintf(fake->explained, sizeof(fake->explained), format, ap);

        /* bounded, whatever came */
        ck_assert_int_lt(size, sizeof(fake->explained));
}

static const SluiceHost fake_functions = {
        .size = sizeof(fake_functions),
        .emit = fake_emit,
        .commit = fake_commit,
        .explain = fake_explain,
};

static void fake_done(FakeHost *fake) {
        free(fake->result);
        for (size_t i = 0; i < fake->n_committed; i++)
                free(fake->committed[i].result);
}

#define _cleanup_fake_ _cleanup_(fake_done)
#define FAKE_HOST                                                                                            \
        {                                                                                                    \
                .ctx = {.host = &fake_functions }                                                            \
        }

static SluiceAnswer answer_of(FakeHost *fake, const void *payload, size_t size) {
        /* An exact-size heap copy lets ASan see a read past the end. */
        _cleanup_free_ void *copy = malloc(size);

        if (size > 0)
                memcpy(copy, payload, size);

        fake->n_results = 0;
        fake->explained[0] = '\0';
        free(TAKE_PTR(fake->result));

        SluiceJob job = { .data = copy, .size = size, .id = 1, .attempt = 1 };

        return sluice_stage.run(&fake->ctx, NULL, &job);
}

static void says(const char *payload, const char *result) {
        _cleanup_fake_ FakeHost fake = FAKE_HOST;

        ck_assert_int_eq(answer_of(&fake, payload, strlen(payload)), SLUICE_DONE);
        ck_assert_uint_eq(fake.n_results, 1);
        ck_assert_str_eq(fake.result, result);
        ck_assert_str_eq(fake.explained, "");
}

static void refuses(const void *payload, size_t size, const char *explained) {
        _cleanup_fake_ FakeHost fake = FAKE_HOST;

        ck_assert_int_eq(answer_of(&fake, payload, size), SLUICE_FAIL);
        ck_assert_uint_eq(fake.n_results, 0);
        ck_assert_str_eq(fake.explained, explained);
}

/* While this is set GMP is nowhere to be found. */
static bool gmp_is_missing;

void *dlopen(const char *file, int flags) {
        static void *(*real)(const char *, int);

        if (!real)
                real = (__typeof__(real))dlsym(RTLD_NEXT, "dlopen");
        return gmp_is_missing && file && strstr(file, "libgmp") ? NULL : real(file, flags);
}

/* Runs first: once loaded, GMP stays. */
START_TEST(without_gmp_large_numbers_are_retried_and_others_go_on) {
        _cleanup_fake_ FakeHost fake = FAKE_HOST;
        const char *large = "18446744073709551629"; /* 2^64 + 13 */

        gmp_is_missing = true;
        ck_assert_int_eq(answer_of(&fake, large, strlen(large)), SLUICE_RETRY);
        ck_assert_uint_eq(fake.n_results, 0);
        ck_assert_ptr_nonnull(strstr(fake.explained, "libgmp.so.10"));
        says("18446744073709551557", "18446744073709551557 prime");

        gmp_is_missing = false;
        says(large, "18446744073709551629 probable-prime");
}
END_TEST

START_TEST(numbers_are_answered_in_their_canonical_form) {
        says("0", "0 neither");
        says("1", "1 neither");
        says("2", "2 prime");
        says("4", "4 composite");
        says("17", "17 prime");
        says("91", "91 composite");
        says("997", "997 prime");
        says("1048573", "1048573 prime");
        says("1048583", "1048583 prime");
        says("4294967297", "4294967297 composite");

        says("007", "7 prime");
        says("000", "0 neither");
        says("01", "1 neither");
        says("00000000000000000000000000000000000017", "17 prime");
        says("00000000000000000000000000000018446744073709551557", "18446744073709551557 prime");

        says("17\r", "17 prime");
        says("0\r", "0 neither");
        says("009\r", "9 composite");
}
END_TEST

START_TEST(the_seam_at_64_bits_is_seamless) {
        says("9999999999999999961", "9999999999999999961 prime");
        says("9999999999999999999", "9999999999999999999 composite");
        says("10000000000000000051", "10000000000000000051 prime");
        says("18446744073709551557", "18446744073709551557 prime");
        says("18446744073709551614", "18446744073709551614 composite");
        says("18446744073709551615", "18446744073709551615 composite");
        says("18446744073709551616", "18446744073709551616 composite");
        says("18446744073709551617", "18446744073709551617 composite"); /* 274177 * 67280421310721 */
        says("18446744073709551629", "18446744073709551629 probable-prime");
        says("18446744073709551629\r", "18446744073709551629 probable-prime");
        says("0018446744073709551629", "18446744073709551629 probable-prime");
        says("18446744073709551630", "18446744073709551630 composite");
        says("99999999999999999989", "99999999999999999989 probable-prime");
        says("99999999999999999999", "99999999999999999999 composite");
        says("100000000000000000000", "100000000000000000000 composite");

        Primality primality;

        ck_assert_int_eq(primality_of_decimal("17", 2, &primality), 0);
        ck_assert_int_eq(primality, PRIMALITY_PRIME);
        ck_assert_int_eq(primality_of_decimal("18446744073709551615", 20, &primality), 0);
        ck_assert_int_eq(primality, PRIMALITY_COMPOSITE);
}
END_TEST

/* 2^exponent + addend, and what the stage shall say of it. */
static void says_of_power(unsigned exponent, int addend, const char *verdict) {
        mpz_t z;

        mpz_init(z);
        mpz_ui_pow_ui(z, 2, exponent);
        if (addend < 0)
                mpz_sub_ui(z, z, (unsigned)-addend);
        else
                mpz_add_ui(z, z, (unsigned)addend);

        _cleanup_free_ char *digits = mpz_get_str(NULL, 10, z), *result = NULL;

        mpz_clear(z);
        ck_assert_int_gt(asprintf(&result, "%s %s", digits, verdict), 0);
        says(digits, result);
}

START_TEST(numbers_of_any_length_are_answered) {
        says_of_power(89, -1, "probable-prime");
        says_of_power(127, -1, "probable-prime");
        says_of_power(521, -1, "probable-prime");
        says_of_power(2203, -1, "probable-prime");
        says_of_power(2203, 1, "composite");
        says_of_power(4423, -1, "probable-prime"); /* 1332 digits */
        says_of_power(100003, 1, "composite");     /* 30104 digits, divisible by 3 */

        /* The least strong pseudoprimes to the first 12 and 13 primes. */
        says("318665857834031151167461", "318665857834031151167461 composite");
        says("3317044064679887385961981", "3317044064679887385961981 composite");

        /* Two primes of 201 digits close to each other: no small factor gives it away. */
        mpz_t p, q;

        mpz_inits(p, q, NULL);
        mpz_ui_pow_ui(p, 10, 200);
        mpz_nextprime(p, p);
        mpz_nextprime(q, p);
        mpz_mul(p, p, q);

        _cleanup_free_ char *digits = mpz_get_str(NULL, 10, p), *result = NULL;

        mpz_clears(p, q, NULL);
        ck_assert_int_gt(asprintf(&result, "%s composite", digits), 0);
        says(digits, result);
}
END_TEST

START_TEST(a_million_digits_cost_no_more_than_reading_them) {
        enum { LENGTH = 1000000 };
        _cleanup_free_ char *digits = malloc(LENGTH + 1), *result = malloc(LENGTH + sizeof(" composite"));

        ck_assert(digits && result);
        memset(digits, '7', LENGTH);
        digits[LENGTH - 1] = '5';
        digits[LENGTH] = '\0';
        memcpy(result, digits, LENGTH);
        memcpy(result + LENGTH, " composite", sizeof(" composite"));
        says(digits, result);

        memset(digits, '0', LENGTH);
        digits[LENGTH - 1] = '7';
        says(digits, "7 prime");
}
END_TEST

START_TEST(anything_but_a_natural_number_fails_for_good_and_is_quoted) {
        static const struct {
                const char *payload;
                size_t size;
                const char *quoted;
        } bad[] = {
#define BAD(payload, quoted) { payload, sizeof(payload) - 1, quoted }
                BAD("", "\"\""),
                BAD("\r", "\"\\x0d\""),
                BAD("17\r\r", "\"17\\x0d\\x0d\""),
                BAD("1\r7", "\"1\\x0d7\""),
                BAD("17\n", "\"17\\x0a\""),
                BAD("abc", "\"abc\""),
                BAD("-5", "\"-5\""),
                BAD("+5", "\"+5\""),
                BAD("1e3", "\"1e3\""),
                BAD("17x", "\"17x\""),
                BAD("0x11", "\"0x11\""),
                BAD("1.5", "\"1.5\""),
                BAD("1,000", "\"1,000\""),
                BAD(" 17", "\" 17\""),
                BAD("17 ", "\"17 \""),
                BAD("1 7", "\"1 7\""),
                BAD("17\0", "\"17\\x00\""),
                BAD("1\0"
                    "7",
                    "\"1\\x007\""),
                BAD("\0", "\"\\x00\""),
                BAD("/", "\"/\""), /* the characters beside 0 and 9 */
                BAD(":", "\":\""),
                BAD("say \"\\7\"", "\"say \\\"\\\\7\\\"\""),
                BAD("\xd9\xa1\x1b[2J\x7f\xff", "\"\\xd9\\xa1\\x1b[2J\\x7f\\xff\""),
                BAD("18446744073709551629x", "\"18446744073709551629x\""),
                BAD("1844674407370955162x", "\"1844674407370955162x\""),
                BAD("x9999999999999999999999999999999", "\"x9999999999999999999999999999999\""),
                BAD("9999999999999999999999999999999999x", "\"99999999999999999999999999999999\"..."),
                BAD("000000000000000000000000000000000000x", "\"00000000000000000000000000000000\"..."),
#undef BAD
        };

        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                _cleanup_free_ char *expected = NULL;

                ck_assert_int_gt(asprintf(&expected, "expected a natural number in decimal digits, got %s",
                                          bad[i].quoted),
                                 0);
                refuses(bad[i].payload, bad[i].size, expected);
        }

        for (int byte = 0; byte < 256; byte++) {
                _cleanup_fake_ FakeHost fake = FAKE_HOST;
                char payload[2] = { '1', (char)byte };
                bool good = (byte >= '0' && byte <= '9') || byte == '\r';

                ck_assert_int_eq(answer_of(&fake, payload, 2), good ? SLUICE_DONE : SLUICE_FAIL);
        }
}
END_TEST

START_TEST(a_megabyte_of_garbage_is_explained_in_one_line) {
        enum { LENGTH = 1 << 20 };
        _cleanup_free_ char *garbage = malloc(LENGTH);
        _cleanup_fake_ FakeHost fake = FAKE_HOST;

        ck_assert_ptr_nonnull(garbage);
        memset(garbage, 0xff, LENGTH);
        ck_assert_int_eq(answer_of(&fake, garbage, LENGTH), SLUICE_FAIL);
        ck_assert_uint_lt(strlen(fake.explained), 200);

        memset(garbage, '7', LENGTH);
        garbage[LENGTH - 1] = 'x';
        ck_assert_int_eq(answer_of(&fake, garbage, LENGTH), SLUICE_FAIL);
        ck_assert_uint_lt(strlen(fake.explained), 100);
}
END_TEST

START_TEST(a_result_that_fits_nowhere_fails_and_says_so) {
        _cleanup_fake_ FakeHost fake = FAKE_HOST;

        fake.emit_error = -EMSGSIZE;
        ck_assert_int_eq(answer_of(&fake, "17", 2), SLUICE_FAIL);
        ck_assert_str_eq(fake.explained, "cannot hand on a result of 8 bytes: Message too long");
        ck_assert_int_eq(answer_of(&fake, "18446744073709551629", 20), SLUICE_FAIL);
        ck_assert_str_eq(fake.explained, "cannot hand on a result of 35 bytes: Message too long");
}
END_TEST

START_TEST(the_stage_describes_itself) {
        ck_assert_uint_eq(sluice_stage.abi, SLUICE_STAGE_ABI);
        ck_assert_uint_eq(sluice_stage.kind, SLUICE_TRANSFORM);
        ck_assert_str_eq(sluice_stage.name, "prime");
        ck_assert_ptr_nonnull(sluice_stage.summary);
}
END_TEST

/* As the host does, before any job. */
static void prepare(void) {
        FakeHost fake = FAKE_HOST;
        void *state = NULL;

        ck_assert_int_eq(sluice_stage.init(&fake.ctx, &state), 0);
}

int main(void) {
        Suite *suite = suite_create("primality");
        TCase *stage = tcase_create("stage"), *arithmetic = tcase_create("arithmetic");

        tcase_add_checked_fixture(stage, prepare, NULL);
        tcase_set_timeout(stage, 60);
        tcase_add_test(stage, without_gmp_large_numbers_are_retried_and_others_go_on);
        tcase_add_test(stage, the_stage_describes_itself);
        tcase_add_test(stage, numbers_are_answered_in_their_canonical_form);
        tcase_add_test(stage, the_seam_at_64_bits_is_seamless);
        tcase_add_test(stage, numbers_of_any_length_are_answered);
        tcase_add_test(stage, a_million_digits_cost_no_more_than_reading_them);
        tcase_add_test(stage, anything_but_a_natural_number_fails_for_good_and_is_quoted);
        tcase_add_test(stage, a_megabyte_of_garbage_is_explained_in_one_line);
        tcase_add_test(stage, a_result_that_fits_nowhere_fails_and_says_so);
        suite_add_tcase(suite, stage);

        tcase_add_checked_fixture(arithmetic, prepare, NULL);
        tcase_set_timeout(arithmetic, 60);
        tcase_add_test(arithmetic, every_number_up_to_ten_million_agrees_with_a_sieve);
        tcase_add_test(arithmetic, carmichael_numbers_are_composite);
        tcase_add_test(arithmetic, the_least_strong_pseudoprimes_to_the_first_bases_are_composite);
        tcase_add_test(arithmetic, strong_pseudoprimes_to_base_2_are_composite);
        tcase_add_test(arithmetic, strong_lucas_pseudoprimes_are_composite);
        tcase_add_test(arithmetic, numbers_around_powers_of_two_agree_with_gmp);
        tcase_add_test(arithmetic, squares_and_products_of_close_primes_are_composite);
        tcase_add_test(arithmetic, random_numbers_agree_with_other_libraries);
        tcase_add_test(arithmetic, random_primes_are_found_prime);
        suite_add_tcase(suite, arithmetic);

        SRunner *runner = srunner_create(suite);

        srunner_run_all(runner, CK_ENV);

        int n_failed = srunner_ntests_failed(runner);

        srunner_free(runner);
        return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
