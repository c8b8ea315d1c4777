#include "primality.h"

#include <assert.h>
#include <dlfcn.h>
#include <gmp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#ifndef __SIZEOF_INT128__
#error "the 64-bit primality test multiplies into 128 bits: build for a 64-bit machine"
#endif

/*
 * Small numbers: a bitmap
 * -----------------------
 * One byte stands for 30 numbers: only eight of them are not divisible by 2,
 * 3 or 5. Being writable memory it is private to each process, hence its
 * modest size.
 */

enum {
        WHEEL = 30,
        SMALL_LIMIT = 1 << 20, /* numbers below this are looked up */
        SMALL_ROOT = 1 << 10,  /* its square root */
};

/* The bit of a residue modulo 30; 0 where the residue shares a factor with 30. */
static const uint8_t wheel_bit[WHEEL] = {
        [1] = 1 << 0,  [7] = 1 << 1,  [11] = 1 << 2, [13] = 1 << 3,
        [17] = 1 << 4, [19] = 1 << 5, [23] = 1 << 6, [29] = 1 << 7,
};

static uint8_t small_primes[SMALL_LIMIT / WHEEL + 1];

static bool small_is_prime(uint32_t n) {
        return (small_primes[n / WHEEL] & wheel_bit[n % WHEEL]) != 0 || n == 2 || n == 3 || n == 5;
}

void primality_prepare(void) {
        memset(small_primes, 0xff, sizeof(small_primes));
        small_primes[0] &= (uint8_t)~wheel_bit[1];

        for (uint32_t p = 7; p < SMALL_ROOT; p += 2) {
                if (!small_is_prime(p))
                        continue;
                for (uint32_t multiple = p * p; multiple < SMALL_LIMIT; multiple += 2 * p)
                        small_primes[multiple / WHEEL] &= (uint8_t)~wheel_bit[multiple % WHEEL];
        }
}

/*
 * Trial division
 * --------------
 * An odd p divides n exactly if n times the inverse of p modulo 2^64 is at
 * most (2^64 - 1) / p: one multiplication, no division.
 */

typedef struct TrialPrime {
        uint64_t inverse;
        uint64_t limit;
} TrialPrime;

/* Each step of Newton's iteration doubles the correct low bits; 3p ^ 2 has five. */
#define NEWTON(p, x) ((x) * (2 - (p) * (x)))
#define INVERSE(p) NEWTON(p, NEWTON(p, NEWTON(p, NEWTON(p, (3 * (p)) ^ 2))))

/* clang-format off */
#define TRIAL(p) { .inverse = INVERSE(UINT64_C(p)), .limit = UINT64_MAX / (p) }

static const TrialPrime trial_primes[] = {
        TRIAL(3),  TRIAL(5),  TRIAL(7),  TRIAL(11), TRIAL(13), TRIAL(17), TRIAL(19), TRIAL(23),
        TRIAL(29), TRIAL(31), TRIAL(37), TRIAL(41), TRIAL(43), TRIAL(47), TRIAL(53),
};
/* clang-format on */

/* For n above the primes of the table. */
static bool has_small_factor(uint64_t n) {
        if (n % 2 == 0)
                return true;

        for (size_t i = 0; i < sizeof(trial_primes) / sizeof(trial_primes[0]); i++)
                if (n * trial_primes[i].inverse <= trial_primes[i].limit)
                        return true;
        return false;
}

/*
 * Arithmetic modulo an odd n, in Montgomery's form (a stands for a * 2^64)
 */

typedef struct Modulus {
        uint64_t n;
        uint64_t inverse; /* n * inverse = 1 modulo 2^64 */
        uint64_t one;     /* 1 in Montgomery's form */
} Modulus;

static inline Modulus modulus_of(uint64_t n) {
        return (Modulus){ .n = n, .inverse = INVERSE(n), .one = -n % n };
}

static inline uint64_t mod_add(uint64_t a, uint64_t b, uint64_t n) {
        uint64_t room = n - b;

        return a >= room ? a - room : a + b;
}

static inline uint64_t mod_sub(uint64_t a, uint64_t b, uint64_t n) {
        uint64_t difference = a - b;

        return a >= b ? difference : difference + n;
}

static inline uint64_t mod_mul(uint64_t a, uint64_t b, const Modulus *m) {
        unsigned __int128 product = (unsigned __int128)a * b;
        uint64_t quotient = (uint64_t)product * m->inverse;

        return mod_sub((uint64_t)(product >> 64), (uint64_t)(((unsigned __int128)quotient * m->n) >> 64),
                       m->n);
}

/*
 * Baillie-PSW
 * -----------
 * No composite number below 2^64 passes both halves: Feitsma's and Galway's
 * list of all pseudoprimes to base 2 below 2^64 holds none that passes the
 * second (Jacobsen, "Pseudoprime Statistics, Tables, and Data").
 */

/* The strong test to base 2 (Miller, Rabin): n - 1 = d * 2^s with an odd d;
 * for a prime n, 2^d is 1, or one of its first s squares is -1. */
static bool passes_miller_rabin(const Modulus *m) {
        uint64_t minus_one = m->n - m->one, x = mod_add(m->one, m->one, m->n);
        int s = __builtin_ctzll(m->n - 1);
        uint64_t d = (m->n - 1) >> s;

        for (int bit = 62 - __builtin_clzll(d); bit >= 0; bit--) {
                x = mod_mul(x, x, m);

                uint64_t twice = mod_add(x, x, m->n);
                x = (d >> bit) & 1 ? twice : x;
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

/* The Jacobi symbol (a / n) for an odd n. */
static int jacobi(uint64_t a, uint64_t n) {
        int sign = 1;

        for (a %= n; a != 0; a %= n) {
                int twos = __builtin_ctzll(a);

                a >>= twos;
                if ((twos & 1) && (n % 8 == 3 || n % 8 == 5))
                        sign = -sign;
                if (a % 4 == 3 && n % 4 == 3)
                        sign = -sign;

                uint64_t swap = a;
                a = n;
                n = swap;
        }

        return n == 1 ? sign : 0;
}

/*
 * The first P = 3, 4, 5, ... with (P^2 - 4 / n) = -1 (Baillie), or 0 if the
 * search shows that n > 2^20 is composite.
 *
 * A square has no such P. But only the squares of 1093 and 3511 pass the
 * first half (no other Wieferich prime is below 2^32), and for them the
 * search ends where P + 2 is their factor.
 */
static uint64_t lucas_parameter(uint64_t n) {
        for (uint64_t p = 3;; p++) {
                int symbol = jacobi(p * p - 4, n);

                if (symbol < 0)
                        return p;
                if (symbol == 0)
                        return 0; /* a common factor, and P^2 - 4 < n */
        }
}

/*
 * For what passed the first half only.
 *
 * The "almost extra strong" Lucas test: n + 1 = d * 2^s with an odd d; for a
 * prime n, V(d) is 2 or -2, or one of V(d), V(2d), ... V(d * 2^(s-2)) is 0,
 * where V(0) = 2, V(1) = P, V(k) = P * V(k - 1) - V(k - 2).
 */
static bool passes_lucas(const Modulus *m) {
        uint64_t parameter = lucas_parameter(m->n);

        if (parameter == 0)
                return false;

        uint64_t two = mod_add(m->one, m->one, m->n), p = 0;

        for (uint64_t i = 0; i < parameter; i++)
                p = mod_add(p, m->one, m->n);

        /* n = 2^64 - 1 would make n + 1 wrap, but has small factors. */
        int s = __builtin_ctzll(m->n + 1);
        uint64_t d = (m->n + 1) >> s;
        uint64_t v = p, next = mod_sub(mod_mul(p, p, m), two, m->n);

        /* From V(k), V(k + 1) to V(2k), V(2k + 1) or V(2k + 1), V(2k + 2). */
        for (int bit = 62 - __builtin_clzll(d); bit >= 0; bit--) {
                bool odd = (d >> bit) & 1;
                uint64_t middle = mod_sub(mod_mul(v, next, m), p, m->n), doubled = odd ? next : v;

                doubled = mod_sub(mod_mul(doubled, doubled, m), two, m->n);
                v = odd ? middle : doubled;
                next = odd ? doubled : middle;
        }

        if (v == two || v == m->n - two)
                return true;

        for (; s > 1; s--) {
                if (v == 0)
                        return true;
                v = mod_sub(mod_mul(v, v, m), two, m->n);
        }
        return false;
}

static bool large_is_prime(uint64_t n) {
        if (has_small_factor(n))
                return false;

        Modulus m = modulus_of(n);

        return passes_miller_rabin(&m) && passes_lucas(&m);
}

bool primality_is_prime(uint64_t n) {
        if (n < SMALL_LIMIT) {
                assert(small_primes[0] != 0); /* prepared */
                return small_is_prime((uint32_t)n);
        }
        return large_is_prime(n);
}

/*
 * Beyond 64 bits: GMP
 * -------------------
 * Loaded when the first such number comes. Linking it would cost every worker
 * a fifth of its memory for numbers that most never see.
 */

#define STRING_OF(x) #x
#define SYMBOL_OF(macro) STRING_OF(macro) /* gmp.h renames its functions with macros */

typedef struct Gmp {
        __typeof__(&mpz_init) init;
        __typeof__(&mpz_set_str) set_str;
        __typeof__(&mpz_probab_prime_p) probab_prime_p;
        __typeof__(&mpz_clear) clear;
} Gmp;

enum {
        /* GMP from 6.2 on: Baillie-PSW and one more round of Miller-Rabin.
         * Its bases are not really random: the same number, the same answer. */
        GMP_ROUNDS = 25,
};

static int gmp_load(Gmp *ret) {
        void *library = dlopen("libgmp.so.10", RTLD_NOW | RTLD_LOCAL);

        if (!library)
                return -ELIBACC;

        Gmp gmp = {
                .init = (__typeof__(gmp.init))dlsym(library, SYMBOL_OF(mpz_init)),
                .set_str = (__typeof__(gmp.set_str))dlsym(library, SYMBOL_OF(mpz_set_str)),
                .probab_prime_p =
                        (__typeof__(gmp.probab_prime_p))dlsym(library, SYMBOL_OF(mpz_probab_prime_p)),
                .clear = (__typeof__(gmp.clear))dlsym(library, SYMBOL_OF(mpz_clear)),
        };

        if (!gmp.init || !gmp.set_str || !gmp.probab_prime_p || !gmp.clear) {
                dlclose(library);
                return -ELIBACC;
        }

        *ret = gmp; /* and it stays loaded as long as the process */
        return 0;
}

/* Tries again after a failure, since somebody may install what is missing. */
static int gmp_get(Gmp *ret) {
        static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
        static Gmp gmp;
        int r = 0;

        pthread_mutex_lock(&mutex);
        if (!gmp.init)
                r = gmp_load(&gmp);
        if (r == 0)
                *ret = gmp;
        pthread_mutex_unlock(&mutex);
        return r;
}

static int gmp_judge(const char *digits, size_t n_digits, Primality *ret) {
        Gmp gmp;
        mpz_t n;
        int r;

        r = gmp_get(&gmp);
        if (r < 0)
                return r;

        char *text = strndup(digits, n_digits);
        if (!text)
                return -ENOMEM;

        gmp.init(n);
        r = gmp.set_str(n, text, 10);
        assert(r == 0); /* digits only, as the header demands */
        free(text);

        r = gmp.probab_prime_p(n, GMP_ROUNDS);
        gmp.clear(n);

        *ret = r == 0 ? PRIMALITY_COMPOSITE : r == 1 ? PRIMALITY_PROBABLE : PRIMALITY_PRIME;
        return 0;
}

/* The digits' number, or false if it takes more than 64 bits. */
static bool decimal_fits(const char *digits, size_t n_digits, uint64_t *ret) {
        uint64_t n = 0;

        for (size_t i = 0; i < n_digits; i++)
                if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, digits[i] - '0', &n))
                        return false;

        *ret = n;
        return true;
}

int primality_of_decimal(const char *digits, size_t n_digits, Primality *ret) {
        assert(n_digits > 0);

        uint64_t n;
        int last = digits[n_digits - 1] - '0';

        if (decimal_fits(digits, n_digits, &n)) {
                *ret = primality_is_prime(n) ? PRIMALITY_PRIME : PRIMALITY_COMPOSITE;
                return 0;
        }

        /* Spares GMP even the conversion, however long the number is. */
        if (last % 2 == 0 || last == 5) {
                *ret = PRIMALITY_COMPOSITE;
                return 0;
        }

        return gmp_judge(digits, n_digits, ret);
}
