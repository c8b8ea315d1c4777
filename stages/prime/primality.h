#pragma once

/*
 * Primality: is a natural number prime?
 *
 * Exact and without allocation for every 64-bit number; through GMP, loaded
 * when first needed, for anything larger. Nothing here knows of jobs.
 * docs/decisions/primality.md says why the methods are what they are.
 */

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum Primality {
        PRIMALITY_COMPOSITE,
        PRIMALITY_PROBABLE, /* beyond 64 bits: passed every test, but that is no proof */
        PRIMALITY_PRIME,
        _PRIMALITY_MAX,
        _PRIMALITY_INVALID = -EINVAL,
} Primality;

/* Fills the table of small primes; to be called once before
 * primality_is_prime(), which any number of threads may then call at once. */
void primality_prepare(void);

/* Exact for every n; 0 and 1 are not prime. */
bool primality_is_prime(uint64_t n);

/*
 * Judges a number of any size, `n_digits` >= 1 decimal digits without
 * leading zeros. Takes time as modular exponentiation does: milliseconds for
 * hundreds of digits, half a second for three thousand.
 *
 * Returns 0, -ENOMEM, or -ELIBACC when GMP cannot be loaded.
 */
int primality_of_decimal(const char *digits, size_t n_digits, Primality *ret);
