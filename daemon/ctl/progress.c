#include "ctl/progress.h"

#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"

double progress_eta(const ProgressNow *now) {
        if (now->fraction <= 0 || now->fraction > 1)
                return -1;
        return now->seconds / now->fraction * (1 - now->fraction);
}

const char *progress_count(double n, char *text, size_t n_text) {
        static const char *const units[] = { "", " k", " M", " G", " T" };
        size_t unit = 0;

        if (n < 1000) {
                (void)snprintf(text, n_text, "%.*f", n < 10 && n != (double)(uint64_t)n ? 1 : 0, n);
                return text;
        }
        while (n >= 999.5 && unit + 1 < ELEMENTSOF(units)) {
                n /= 1000;
                unit++;
        }
        (void)snprintf(text, n_text, "%.*f%s", n < 9.995 ? 2 : n < 99.95 ? 1 : 0, n, units[unit]);
        return text;
}

const char *progress_duration(double seconds, char *text, size_t n_text) {
        uint64_t s = (uint64_t)(seconds + 0.5);

        if (seconds < 60)
                (void)snprintf(text, n_text, "%.*f s", seconds < 10 ? 2 : 1, seconds);
        else if (s < 3600)
                (void)snprintf(text, n_text, "%" PRIu64 " min %02" PRIu64 " s", s / 60, s % 60);
        else
                (void)snprintf(text, n_text, "%" PRIu64 " h %02" PRIu64 " min", s / 3600, s / 60 % 60);
        return text;
}

static int format_json(const ProgressNow *now, char *text, size_t n_text) {
        double eta = progress_eta(now);
        int n = snprintf(text, n_text,
                         "{\"done\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"seconds\":%.3f,\"rate\":%.1f",
                         now->n_done, now->n_failed, now->seconds, now->rate);

        if (now->fraction >= 0)
                n += snprintf(text + n, n_text - (size_t)n, ",\"fraction\":%.4f", now->fraction);
        if (eta >= 0)
                n += snprintf(text + n, n_text - (size_t)n, ",\"eta\":%.1f", eta);
        return n + snprintf(text + n, n_text - (size_t)n, "}");
}

static int format_bar(const ProgressNow *now, unsigned columns, char *text, size_t n_text) {
        char done[32], rate[32], time[32], left[160], bar[64] = "";
        double eta = progress_eta(now);
        int n, width;

        n = snprintf(left, sizeof(left), "%s done  %s/s  %s%s",
                     progress_count((double)now->n_done, done, sizeof(done)),
                     progress_count(now->rate, rate, sizeof(rate)), eta >= 0 ? "ETA " : "",
                     progress_duration(eta >= 0 ? eta : now->seconds, time, sizeof(time)));
        if (now->n_failed > 0)
                n += snprintf(left + n, sizeof(left) - (size_t)n, "  %" PRIu64 " failed", now->n_failed);

        /* What is left of the line after " 100% [] " and the text. */
        width = MIN((int)columns - n - 9, (int)sizeof(bar) - 1);
        if (now->fraction < 0 || width < 5)
                return snprintf(text, n_text, "%.*s", (int)columns, left);
        for (int i = 0; i < width; i++)
                bar[i] = i < (int)(now->fraction * width + 0.5) ? '#' : '.';
        bar[width] = '\0';
        return snprintf(text, n_text, "%3d%% [%s] %s", (int)(now->fraction * 100), bar, left);
}

int progress_format(ProgressStyle style, const ProgressNow *now, unsigned columns, char *text,
                    size_t n_text) {
        switch (style) {
        case PROGRESS_JSON:
                return format_json(now, text, n_text);
        case PROGRESS_BAR:
                return format_bar(now, columns, text, n_text);
        case PROGRESS_NONE:
        default:
                text[0] = '\0';
                return 0;
        }
}
