/* SPDX-License-Identifier: MIT */
/*
 * actor: does what its job tells it to. For tests of everything that can
 * become of a job.
 *
 *     emit N TEXT      N results: TEXT; more than one get "TEXT 1", "TEXT 2", ...
 *     N x              the same, short: N results "x 1", "x 2", ...
 *     grow N           a result of N bytes
 *     sizes N M ...    a result of N bytes '1', one of M bytes '2', ...
 *     drop             drops it
 *     drop-emitted     emits a result, then drops the job
 *     fail TEXT        fails with TEXT
 *     fail-silently    fails without saying why
 *     retry TEXT       asks for another attempt, always
 *     retry-until N    the same, until attempt N, which emits "attempt N"
 *     segv, abort, exit N, _exit N, kill
 *                      ends its process in this way
 *     die-until N      dies before attempt N, which emits "attempt N"
 *     hang             waits until it is killed
 *     sleep MS         takes its time, then emits itself
 *     long MS          takes its time, then emits "attempt N"
 *
 * Everything else is handed on unchanged. Before it does anything, it can append
 * the job to a file, so that a test knows what is running. Built a second time as batch-actor,
 * where a batch is taken and answered job by job.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sluice/stage.h>

static void sleep_msec(uint64_t msec) {
        struct timespec ts = { .tv_sec = (time_t)(msec / 1000), .tv_nsec = (long)(msec % 1000) * 1000000 };

        while (nanosleep(&ts, &ts) < 0)
                ;
}

static int is(const char *text, const char *word, const char **ret_rest) {
        size_t n = strlen(word);

        if (strncmp(text, word, n) != 0 || (text[n] != '\0' && text[n] != ' '))
                return 0;
        *ret_rest = text[n] == ' ' ? text + n + 1 : text + n;
        return 1;
}

static SluiceAnswer emit(SluiceContext *ctx, const char *text, size_t size) {
        int error = sluice_emit(ctx, text, size);

        if (error == 0)
                return SLUICE_DONE;
        sluice_explain(ctx, "cannot emit %zu bytes: %s", size, strerror(-error));
        return SLUICE_FAIL;
}

static SluiceAnswer emit_several(SluiceContext *ctx, unsigned long n, const char *text) {
        SluiceAnswer answer = SLUICE_DONE;

        if (n == 1)
                return emit(ctx, text, strlen(text));
        for (unsigned long i = 1; i <= n && answer == SLUICE_DONE; i++) {
                char result[8192];
                int size = snprintf(result, sizeof(result), "%s %lu", text, i);

                answer = emit(ctx, result, (size_t)size);
        }
        return answer;
}

static SluiceAnswer emit_large(SluiceContext *ctx, size_t size) {
        SluiceAnswer answer;
        char *text = malloc(size + 1);

        if (!text)
                return SLUICE_FAIL;
        memset(text, 'x', size);
        answer = emit(ctx, text, size);
        free(text);
        return answer;
}

static SluiceAnswer emit_sizes(SluiceContext *ctx, const char *sizes) {
        static char text[8192];
        SluiceAnswer answer = SLUICE_DONE;
        char digit = '1', *end;

        for (; *sizes && answer == SLUICE_DONE; sizes = end, digit++) {
                size_t n = strtoul(sizes, &end, 10);

                if (end == sizes || n > sizeof(text))
                        return SLUICE_FAIL;
                memset(text, digit, n);
                answer = emit(ctx, text, n);
        }
        return answer;
}

static SluiceAnswer emit_attempt(SluiceContext *ctx, const SluiceJob *job) {
        char text[32];

        return emit(ctx, text, (size_t)snprintf(text, sizeof(text), "attempt %" PRIu32, job->attempt));
}

static void die(const char *how) {
        const char *rest;

        if (is(how, "segv", &rest)) {
                (void)signal(SIGSEGV, SIG_DFL); /* a sanitizer would report it as a mistake */
                (void)raise(SIGSEGV);
        } else if (is(how, "abort", &rest))
                abort();
        else if (is(how, "kill", &rest))
                (void)raise(SIGKILL);
        else if (is(how, "exit", &rest))
                exit(atoi(rest));
        else if (is(how, "_exit", &rest))
                _exit(atoi(rest));
}

static SluiceAnswer act(SluiceContext *ctx, const SluiceJob *job) {
        const char *rest;
        char text[8192], *end;
        unsigned long n;

        if (job->size >= sizeof(text))
                return emit(ctx, job->data, job->size);
        if (job->size > 0)
                memcpy(text, job->data, job->size);
        text[job->size] = '\0';

        die(text);
        if (is(text, "emit", &rest)) {
                n = strtoul(rest, &end, 10);
                return emit_several(ctx, n, *end == ' ' ? end + 1 : end);
        }
        if (is(text, "grow", &rest))
                return emit_large(ctx, strtoul(rest, NULL, 10));
        if (is(text, "sizes", &rest))
                return emit_sizes(ctx, rest);
        if (is(text, "drop", &rest))
                return SLUICE_DROP;
        if (is(text, "drop-emitted", &rest)) {
                (void)emit(ctx, "never seen", 10);
                return SLUICE_DROP;
        }
        if (is(text, "fail", &rest)) {
                sluice_explain(ctx, "%s", rest);
                return SLUICE_FAIL;
        }
        if (is(text, "fail-silently", &rest))
                return SLUICE_FAIL;
        if (is(text, "retry", &rest)) {
                sluice_explain(ctx, "%s", rest);
                return SLUICE_RETRY;
        }
        if (is(text, "retry-until", &rest))
                return job->attempt < strtoul(rest, NULL, 10) ? SLUICE_RETRY : emit_attempt(ctx, job);
        if (is(text, "die-until", &rest)) {
                if (job->attempt < strtoul(rest, NULL, 10))
                        (void)raise(SIGKILL);
                return emit_attempt(ctx, job);
        }
        if (is(text, "hang", &rest))
                for (;;)
                        (void)pause();
        if (is(text, "long", &rest)) {
                sleep_msec(strtoul(rest, NULL, 10));
                return emit_attempt(ctx, job);
        }
        if (is(text, "sleep", &rest))
                sleep_msec(strtoul(rest, NULL, 10));
        else if (job->size > 2) {
                n = strtoul(text, &end, 10);
                if (end > text && strcmp(end, " x") == 0)
                        return emit_several(ctx, n, "x");
        }
        return emit(ctx, job->data, job->size);
}

typedef struct Actor {
        uint64_t sleep_msec;
        int trace_fd; /* -1: none */
} Actor;

static SluiceAnswer take(SluiceContext *ctx, const Actor *actor, const SluiceJob *job) {
        if (actor->trace_fd >= 0)
                (void)!dprintf(actor->trace_fd, "%.*s\n", (int)job->size, (const char *)job->data);
        sleep_msec(actor->sleep_msec);
        return act(ctx, job);
}

static int init(SluiceContext *ctx, void **state) {
        const char *trace = sluice_setting_string(ctx, "trace");
        Actor *actor = malloc(sizeof(*actor));

        if (!actor)
                return -ENOMEM;
        actor->sleep_msec = (uint64_t)sluice_setting_int(ctx, "sleep") / 1000;
        actor->trace_fd = -1;
        if (*trace != '\0') {
                actor->trace_fd = open(trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
                if (actor->trace_fd < 0) {
                        sluice_explain(ctx, "cannot open %s", trace);
                        free(actor);
                        return -EIO;
                }
        }
        *state = actor;
        return 0;
}

static void fini(void *state) {
        Actor *actor = state;

        if (actor->trace_fd >= 0)
                (void)close(actor->trace_fd);
        free(actor);
}

#ifdef BATCH
static int run_batch(SluiceContext *ctx, void *state, const SluiceJob *jobs, size_t n) {
        for (size_t i = 0; i < n; i++)
                sluice_commit(ctx, 1, take(ctx, state, &jobs[i]));
        return 0;
}
#else
static SluiceAnswer run(SluiceContext *ctx, void *state, const SluiceJob *job) {
        return take(ctx, state, job);
}
#endif

static const SluiceSetting settings[] = {
        { "sleep", SLUICE_DURATION, "0", 0, 60000000, "how long each job takes" },
        { "trace", SLUICE_STRING, "", 0, 0, "a file that each job is appended to before it is run" },
        {},
};

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .kind = SLUICE_TRANSFORM,
        .summary = "does what its job tells it to",
        .settings = settings,
        .init = init,
        .fini = fini,
#ifdef BATCH
        .name = "batch-actor",
        .run_batch = run_batch,
#else
        .name = "actor",
        .run = run,
#endif
};
