/* SPDX-License-Identifier: MIT */
/*
 * log: logs every job's payload, the end of a pipeline one looks at.
 *
 * A payload may be anything, and a log is read on a terminal: what is not
 * printable UTF-8 is written as \xHH, a backslash as \\, and what is longer
 * than TEXT_BYTES is cut.
 */

#include <errno.h>
#include <stdlib.h>
#include <syslog.h>

#include <sluice/stage.h>

#define TEXT_BYTES 1024

typedef struct Log {
        int level;
        const char *prefix;
} Log;

static const struct {
        const char *name;
        int level;
} levels[] = {
        { "debug", LOG_DEBUG }, { "info", LOG_INFO }, { "notice", LOG_NOTICE }, { "warning", LOG_WARNING },
        { "err", LOG_ERR },     { "error", LOG_ERR }, { "crit", LOG_CRIT },     { "alert", LOG_ALERT },
};

static int level_from_name(const char *name) {
        for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
                if (strcmp(name, levels[i].name) == 0)
                        return levels[i].level;

        return -EINVAL;
}

static int init(SluiceContext *ctx, void **state) {
        const char *name = sluice_setting_string(ctx, "level");
        int level = level_from_name(name);
        Log *l;

        if (level < 0) {
                sluice_explain(ctx, "level \"%s\" is none of debug, info, notice, warning, err, crit, alert",
                               name);
                return level;
        }

        l = malloc(sizeof(*l));
        if (!l)
                return -ENOMEM;
        *l = (Log){ .level = level, .prefix = sluice_setting_string(ctx, "prefix") };

        *state = l;
        return 0;
}

/* Length of the UTF-8 character at `p` if it is well-formed and no control character, else 0. */
static size_t utf8_printable(const uint8_t *p, size_t n) {
        uint32_t c = p[0];
        size_t length;

        if (c < 0x80)
                return c >= 0x20 && c != 0x7f;
        if (c >= 0xc2 && c <= 0xdf)
                length = 2;
        else if (c >= 0xe0 && c <= 0xef)
                length = 3;
        else if (c >= 0xf0 && c <= 0xf4)
                length = 4;
        else
                return 0;
        if (n < length)
                return 0;

        c &= 0x7fu >> length;
        for (size_t i = 1; i < length; i++) {
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
                c = c << 6 | (p[i] & 0x3f);
        }
        if (c < 0xa0) /* C1: some terminals obey these */
                return 0;
        if ((length == 3 && c < 0x800) || (length == 4 && (c < 0x10000 || c > 0x10ffff)))
                return 0; /* written longer than needed, or beyond Unicode */
        if (c >= 0xd800 && c <= 0xdfff)
                return 0;
        if (c == 0x2028 || c == 0x2029 || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069))
                return 0; /* breaks the line or turns it around */

        return length;
}

/* Writes the escaped form of what `p` begins with; returns its length and how much of `p` it stands for. */
static size_t escape_one(const uint8_t *p, size_t n, char out[static 4], size_t *ret_used) {
        static const char hex[] = "0123456789abcdef";
        size_t length = utf8_printable(p, n);
        char letter;

        *ret_used = 1;
        switch (*p) {
        case '\n':
                letter = 'n';
                break;
        case '\r':
                letter = 'r';
                break;
        case '\t':
                letter = 't';
                break;
        case '\\':
                letter = '\\';
                break;
        default:
                if (length > 0) {
                        memcpy(out, p, length);
                        *ret_used = length;
                        return length;
                }
                memcpy(out, (const char[]){ '\\', 'x', hex[*p >> 4], hex[*p & 15] }, 4);
                return 4;
        }
        out[0] = '\\';
        out[1] = letter;
        return 2;
}

static SluiceAnswer run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        const Log *l = state;
        const uint8_t *data = job->data;
        char text[TEXT_BYTES + 1];
        size_t at = 0, used = 0;

        while (used < job->size) {
                char piece[4];
                size_t n_used, n = escape_one(data + used, job->size - used, piece, &n_used);

                if (at + n > TEXT_BYTES)
                        break;
                memcpy(text + at, piece, n);
                at += n;
                used += n_used;
        }
        text[at] = '\0';

        if (used < job->size)
                sluice_log(ctx, l->level, "%s%s... (%zu bytes)", l->prefix, text, job->size);
        else
                sluice_log(ctx, l->level, "%s%s", l->prefix, text);
        return SLUICE_DONE;
}

static const SluiceSetting settings[] = {
        { "level", SLUICE_STRING, "info", 0, 0, "debug, info, notice, warning, err, crit or alert" },
        { "prefix", SLUICE_STRING, "", 0, 0, "text before each payload" },
        {},
};

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "log",
        .summary = "logs every job's payload",
        .kind = SLUICE_SINK,
        .settings = settings,
        .init = init,
        .fini = free,
        .run = run,
};
