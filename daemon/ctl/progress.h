#pragma once

/*
 * Progress: how far a run is, on standard error. A bar that is redrawn in
 * place on a terminal, or one JSON object per line. Pure but for the file it
 * writes to.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef enum ProgressStyle {
        PROGRESS_NONE,
        PROGRESS_BAR,
        PROGRESS_JSON,
} ProgressStyle;

typedef struct ProgressNow {
        uint64_t n_done;
        uint64_t n_failed;
        double seconds;  /* since the start */
        double fraction; /* of the input that is done, 0 .. 1; negative: not known */
        double rate;     /* jobs per second, lately */
} ProgressNow;

/* One line for `now`. The bar fits `columns`. Not terminated by a newline; returns its length. */
int progress_format(ProgressStyle style, const ProgressNow *now, unsigned columns, char *text, size_t n_text);

/* Seconds until the end, negative if not known. */
double progress_eta(const ProgressNow *now);

/* "12.3 k", "4.56 M": three significant digits. */
const char *progress_count(double n, char *text, size_t n_text);

/* "0.42 s", "3 min 05 s", "2 h 07 min". */
const char *progress_duration(double seconds, char *text, size_t n_text);
