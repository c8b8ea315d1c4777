/*
 * What one primality test costs, method by method, and one job of the prime
 * stage. docs/decisions/primality.md quotes the figures.
 *
 * Every method answers for the same numbers; a differing count of primes ends
 * the run, so nothing fast and wrong can win.
 */

#include <gmp.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <sluice/stage.h>

#if HAVE_FLINT
#include <flint/ulong_extras.h>
#endif

/* The very code, for its inner parts: the table and the tests, each alone. */
#include "../stages/prime/primality.c"

extern const SluiceStage sluice_stage; /* of prime.c */

typedef bool (*Method)(uint64_t n);

static bool strong_test(uint64_t base, const Modulus *m) {
        uint64_t a = base % m->n, minus_one = m->n - m->one;

        if (a == 0)
                return true;

        /* 2^128 modulo n turns a number into Montgomery's form. */
        uint64_t square = (uint64_t)(((unsigned __int128)m->one << 64) % m->n);
        uint64_t x, power = mod_mul(a, square, m);
        int s = __builtin_ctzll(m->n - 1);
        uint64_t d = (m->n - 1) >> s;

        x = power;
        for (int bit = 62 - __builtin_clzll(d); bit >= 0; bit--) {
                x = mod_mul(x, x, m);

                uint64_t times = mod_mul(x, power, m);
                x = (d >> bit) & 1 ? times : x;
        }

        if (x == m->one || x == minus_one)
                return true;
        while (--s > 0) {
                x = mod_mul(x, x, m);
                if (x == minus_one)
                        return true;
        }
        return false;
}

static bool strong_tests(uint64_t n, const uint64_t *bases, size_t n_bases) {
        Modulus m = modulus_of(n);

        for (size_t i = 0; i < n_bases; i++)
                if (!strong_test(bases[i], &m))
                        return false;
        return true;
}

/* Numbers the bare tests need not see: the same for all of them. */
static bool is_trivial(uint64_t n, bool *ret) {
        if (n > 53 * 53) {
                *ret = false;
                return has_small_factor(n);
        }

        *ret = n >= 2;
        for (uint64_t p = 2; p * p <= n; p++)
                if (n % p == 0)
                        *ret = false;
        return true;
}

/* Sinclair's seven bases (2011). */
static bool by_seven_bases(uint64_t n) {
        static const uint64_t bases[] = { 2, 325, 9375, 28178, 450775, 9780504, 1795265022 };
        bool trivial;

        return is_trivial(n, &trivial) ? trivial : strong_tests(n, bases, 7);
}

/* The first primes as bases, as many as n needs (Jaeschke 1993, Sorenson and Webster 2015). */
static bool by_size(uint64_t n) {
        static const uint64_t jaeschke[] = { 2, 7, 61 };
        static const uint64_t primes[] = { 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37 };
        bool trivial;

        if (is_trivial(n, &trivial))
                return trivial;
        if (n < UINT64_C(4759123141))
                return strong_tests(n, jaeschke, 3);
        if (n < UINT64_C(3474749660383))
                return strong_tests(n, primes, 6);
        if (n < UINT64_C(341550071728321))
                return strong_tests(n, primes, 7);
        if (n < UINT64_C(3825123056546413051))
                return strong_tests(n, primes, 9);
        return strong_tests(n, primes, 12);
}

static bool by_baillie_psw(uint64_t n) {
        bool trivial;

        if (is_trivial(n, &trivial))
                return trivial;

        Modulus m = modulus_of(n);

        return passes_miller_rabin(&m) && passes_lucas(&m);
}

static bool by_gmp(uint64_t n) {
        mpz_t z;

        mpz_init_set_ui(z, n);

        int r = mpz_probab_prime_p(z, 25);

        mpz_clear(z);
        return r > 0;
}

#if HAVE_FLINT
static bool by_flint(uint64_t n) {
        return n_is_prime(n) != 0;
}
#endif

static const struct {
        const char *name;
        Method method;
} methods[] = {
        { "sluice", primality_is_prime },
        { "Baillie-PSW alone", by_baillie_psw },
        { "Miller-Rabin, bases by size", by_size },
        { "Miller-Rabin, 7 bases", by_seven_bases },
        { "GMP", by_gmp },
#if HAVE_FLINT
        { "FLINT", by_flint },
#endif
};

enum {
        N_RANDOM = 1 << 18,
        N_PRIMES = 1 << 14,
};

static double now_ns(void) {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static uint64_t random_next(uint64_t *state) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        return *state;
}

/* Nanoseconds per number: the best of three rounds. */
static double measure(Method method, const uint64_t *numbers, size_t n, size_t *ret_n_primes) {
        double best = 1e300;

        for (int round = 0; round < 3; round++) {
                double start = now_ns();

                *ret_n_primes = 0;
                for (size_t i = 0; i < n; i++)
                        *ret_n_primes += method(numbers[i]);

                double took = (now_ns() - start) / (double)n;

                best = took < best ? took : best;
        }

        return best;
}

static void compare(const char *title, const uint64_t *numbers, size_t n) {
        size_t n_expected = 0;

        printf("%s\n", title);
        for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
                size_t n_primes;
                double ns = measure(methods[i].method, numbers, n, &n_primes);

                printf("  %-28s %8.1f ns/number\n", methods[i].name, ns);
                if (i == 0)
                        n_expected = n_primes;
                if (n_primes != n_expected) {
                        fprintf(stderr, "%s counts %zu primes, not %zu\n", methods[i].name, n_primes,
                                n_expected);
                        exit(EXIT_FAILURE);
                }
        }
}

typedef struct BenchContext {
        SluiceContext ctx; /* first, so that the host finds its own fields behind it */
        size_t n_answered;
} BenchContext;

static int host_emit(SluiceContext *ctx, const void *data, size_t size) {
        return -ENOSPC; /* every frame below is large enough */
}

static void host_commit(SluiceContext *ctx, size_t n, SluiceAnswer answer) {
        if (answer != SLUICE_DONE)
                abort();
        ((BenchContext *)ctx)->n_answered += n;
}

/* A frame's worth of jobs through the stage, parsed and answered: what the plugin adds to the arithmetic. */
static void measure_stage(const char *title, const uint64_t *numbers, size_t n) {
        enum { PER_FRAME = 400, LONGEST = 20 };
        static const SluiceHost host = { .size = sizeof(host), .emit = host_emit, .commit = host_commit };
        static uint8_t frame[PER_FRAME * 64];
        SluiceJob *jobs = calloc(n, sizeof(SluiceJob));
        char *text = malloc(n * (LONGEST + 1));
        double best = 1e300;

        if (!jobs || !text)
                abort();

        for (size_t i = 0, at = 0; i < n; i++) {
                int size = snprintf(text + at, LONGEST + 1, "%" PRIu64, numbers[i]);

                jobs[i] = (SluiceJob){ .data = text + at, .size = (size_t)size, .id = i, .attempt = 1 };
                at += (size_t)size;
        }

        for (int round = 0; round < 3; round++) {
                double start = now_ns();

                for (size_t i = 0; i < n; i += PER_FRAME) {
                        size_t n_jobs = n - i < PER_FRAME ? n - i : PER_FRAME;
                        BenchContext bench = { .ctx = { .host = &host,
                                                        .out = frame,
                                                        .out_end = frame + sizeof(frame) - 4,
                                                        .quick = PER_FRAME,
                                                        .quick_max = sizeof(frame) } };

                        for (size_t k = 0; k < n_jobs; k++)
                                host_commit(&bench.ctx, 1, sluice_stage.run(&bench.ctx, NULL, &jobs[i + k]));
                        if (bench.n_answered != n_jobs)
                                abort();
                }

                double took = (now_ns() - start) / (double)n;

                best = took < best ? took : best;
        }

        printf("%s\n  %-28s %8.1f ns/job\n", title, "run()", best);
        free(text);
        free(jobs);
}

int main(void) {
        static uint64_t sequence[1000000], odd[N_RANDOM], primes[N_PRIMES];
        uint64_t state = 0x5eed;
        double start = now_ns();

        primality_prepare();
        printf("table of small primes: %zu bytes, filled in %.0f us\n", sizeof(small_primes),
               (now_ns() - start) / 1e3);

        for (size_t i = 0; i < 1000000; i++)
                sequence[i] = i + 1;
        for (size_t i = 0; i < N_RANDOM; i++)
                odd[i] = random_next(&state) | 1;
        for (size_t i = 0; i < N_PRIMES;) {
                uint64_t n = random_next(&state) | UINT64_C(0x8000000000000001);

                if (by_gmp(n))
                        primes[i++] = n;
        }

        compare("1 .. 10^5", sequence, 100000);
        compare("1 .. 10^6", sequence, 1000000);
        compare("random odd 64-bit numbers", odd, N_RANDOM);
        compare("random 64-bit primes", primes, N_PRIMES);
        measure_stage("prime stage, 1 .. 10^6", sequence, 1000000);
        measure_stage("prime stage, random odd 64-bit numbers", odd, N_RANDOM);
        return EXIT_SUCCESS;
}
