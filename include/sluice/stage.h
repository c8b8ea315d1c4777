/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_STAGE_H
#define SLUICE_STAGE_H

/*
 * sluice/stage.h: write a stage.
 *
 * A stage is one shared object that exports one constant, `sluice_stage`.
 * Nothing is linked against sluice: everything a stage may call comes through
 * the context it is handed, wrapped below as functions named sluice_*().
 *
 *     #include <sluice/stage.h>
 *
 *     static SluiceAnswer run(SluiceContext *ctx, void *state, const SluiceJob *job) {
 *             (void)state;
 *             return sluice_emit(ctx, job->data, job->size) < 0 ? SLUICE_FAIL : SLUICE_DONE;
 *     }
 *
 *     SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
 *             .abi = SLUICE_STAGE_ABI,
 *             .name = "identity",
 *             .summary = "hands every job on unchanged",
 *             .kind = SLUICE_TRANSFORM,
 *             .run = run,
 *     };
 *
 *     cc -shared -fPIC $(pkg-config --cflags sluice) -o identity.so identity.c
 *
 * Build against C11 or newer (or C++ with designated initializers).
 *
 * What a stage may rely on
 * ------------------------
 * - A stage runs in a process of its own (`sluice-worker`). It may block, leak
 *   or crash; other stages and the service go on.
 * - init() runs once per process, before the worker reports that it is ready;
 *   afterwards run() is called for one job at a time, from one thread.
 * - What a job emitted counts when its answer does, in one step. If the
 *   process dies before, the job runs again (with attempt + 1) and nothing it
 *   had emitted is seen by anyone. Effects outside sluice are the stage's own
 *   affair: make them repeatable, or save a position (below).
 * - SIGINT, SIGQUIT and SIGPIPE are ignored. A blocking system call may return
 *   EINTR when the service wants the worker to stop: finish the job or, in a
 *   source, return SLUICE_MORE.
 *
 * Unless a function says otherwise it may be called from run(), run_batch(),
 * produce() and init() only, on the thread sluice called you on.
 */

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a field below changes its meaning. A plugin built for
 * another number is refused by name, never called. */
#define SLUICE_STAGE_ABI 1

#define SLUICE_STAGE_EXPORT __attribute__((visibility("default")))

typedef struct SluiceContext SluiceContext;

typedef enum SluiceKind {
        SLUICE_SOURCE = 1, /* makes jobs: produce() */
        SLUICE_TRANSFORM,  /* jobs in, results out: run() or run_batch() */
        SLUICE_SINK,       /* ends jobs, emits nothing: run() or run_batch() */
} SluiceKind;

/* What became of a job. */
typedef enum SluiceAnswer {
        SLUICE_DONE,  /* finished; what it emitted goes on */
        SLUICE_DROP,  /* finished on purpose without a result; what it emitted is discarded */
        SLUICE_RETRY, /* could work another time; fails after the stage's `retry.attempts` */
        SLUICE_FAIL,  /* can never work; sluice_explain() says why */
} SluiceAnswer;

/* What a source says after each call of produce(). */
typedef enum SluiceProduced {
        SLUICE_MORE,   /* call again */
        SLUICE_END,    /* there will never be more */
        SLUICE_BROKEN, /* cannot go on; sluice_explain() says why. The worker is restarted, later and later */
} SluiceProduced;

/* One job, as a handler sees it. */
typedef struct SluiceJob {
        const void *data; /* payload, `size` bytes, no terminating NUL; valid until the job is answered */
        size_t size;
        uint64_t id;      /* the same in every stage, and in the log's SLUICE_JOB= */
        uint32_t attempt; /* 1 the first time */
        uint32_t reserved;
} SluiceJob;

typedef enum SluiceType {
        SLUICE_INT = 1, /* 64-bit; `min` and `max` hold if they differ */
        SLUICE_FLOAT,
        SLUICE_BOOL,
        SLUICE_STRING,
        SLUICE_DURATION, /* "100ms"; read as microseconds with sluice_setting_int() */
        SLUICE_SIZE,     /* "64KiB"; read as bytes with sluice_setting_int() */
} SluiceType;

/* One key of the stage's `settings = { ... }`. The configuration is checked
 * against these before anything starts, so a handler never sees a wrong type,
 * an unknown key or a value out of range. */
typedef struct SluiceSetting {
        const char *name;
        SluiceType type;
        const char *fallback; /* default, written as in the file; NULL: the key is required */
        int64_t min, max;     /* inclusive; ignored where equal */
        const char *help;     /* one line, for --help and the manual */
} SluiceSetting;

/* sluice_stage.flags */
#define SLUICE_ONE_LANE (1u << 0) /* `workers` above 1 is an error: jobs must pass one after the other */

/* Bytes of saved position, and of memory that outlives the process. */
#define SLUICE_POSITION_BYTES 64
#define SLUICE_MEMORY_BYTES 65536

typedef struct SluiceStage {
        uint32_t abi;   /* SLUICE_STAGE_ABI */
        uint32_t kind;  /* SluiceKind */
        uint32_t flags; /* SLUICE_ONE_LANE, ... */
        uint32_t reserved;
        const char *name;              /* [a-z0-9][a-z0-9-]{0,63} */
        const char *summary;           /* one line */
        const SluiceSetting *settings; /* ends with a NULL name; NULL if there are none */

        /*
         * Called once, before any job. `*state` is handed to all other calls.
         * Returns 0, or a negative errno after sluice_explain(): the worker
         * exits and is tried again later and later. Optional.
         */
        int (*init)(SluiceContext *ctx, void **state);

        /* Called when the worker stops in an orderly way (not when it is killed). Optional. */
        void (*fini)(void *state);

        /*
         * Transform, sink: handles one job. Emit results with sluice_emit()
         * and answer by returning. Required unless run_batch is there.
         */
        SluiceAnswer (*run)(SluiceContext *ctx, void *state, const SluiceJob *job);

        /*
         * Optional, for stages where a call per job is the cost. `jobs` are
         * the next n >= 1 jobs of the lane, in order. Answer them in order
         * with sluice_commit(); what is emitted belongs to the first job not
         * yet answered. Jobs left unanswered are handed over again, so it is
         * fine to stop early. If the process dies, all unanswered jobs run
         * again and the first of them is charged with the attempt.
         * Returns 0, or a negative errno if the worker cannot go on: it is
         * stopped and started again later and later, and none of the jobs not
         * yet answered is charged with an attempt.
         */
        int (*run_batch)(SluiceContext *ctx, void *state, const SluiceJob *jobs, size_t n);

        /*
         * Source: emits some jobs (until sluice_emit() returns SLUICE_FULL is
         * best) and returns. What it emitted and the position it set with
         * sluice_set_position() become true together when it returns. May
         * block for input; when interrupted (EINTR) it returns SLUICE_MORE.
         * SLUICE_MORE and SLUICE_END commit, also when nothing was emitted;
         * SLUICE_BROKEN commits nothing of this call.
         */
        SluiceProduced (*produce)(SluiceContext *ctx, void *state);

        /* The operator asked to reopen files (SIGHUP). Between jobs. Optional. Returns 0 or a negative errno. */
        int (*reopen)(SluiceContext *ctx, void *state);

        void *reserved_ptr[4];
} SluiceStage;

/* sluice_emit(): a source's frame is full; the job was not taken. */
#define SLUICE_FULL 1

/* The host's side. Call the wrappers below instead. */
typedef struct SluiceHost {
        uint32_t size; /* sizeof(SluiceHost) of the host, for later additions */
        uint32_t reserved;
        int (*emit)(SluiceContext *ctx, const void *data, size_t size);
        void (*commit)(SluiceContext *ctx, size_t n, SluiceAnswer answer);
        void (*explain)(SluiceContext *ctx, const char *format, va_list ap);
        void (*log)(SluiceContext *ctx, int level, const char *format, va_list ap);
        int64_t (*setting_int)(SluiceContext *ctx, const char *name);
        double (*setting_float)(SluiceContext *ctx, const char *name);
        const char *(*setting_string)(SluiceContext *ctx, const char *name);
        const void *(*position)(SluiceContext *ctx, size_t *ret_size);
        int (*set_position)(SluiceContext *ctx, const void *position, size_t size);
        void *(*memory)(SluiceContext *ctx);
        int (*carry)(SluiceContext *ctx, int ret_fds[2]);
        int (*stopping)(SluiceContext *ctx);
} SluiceHost;

/* The first fields serve the fast path of sluice_emit(); the rest is the host's. */
struct SluiceContext {
        const SluiceHost *host;
        uint8_t *out;       /* where the next job's 4-byte header goes */
        uint8_t *out_end;   /* where its payload must end, less 4 */
        uint32_t quick;     /* how many more jobs may be appended without asking */
        uint32_t quick_max; /* bytes of the largest of them */
};

/*
 * Emits one result (or, in a source, one job) of `size` bytes, copied.
 *
 * Returns 0; in a source SLUICE_FULL when the frame has no room (nothing was
 * taken: return SLUICE_MORE and emit it again next time); -EMSGSIZE when it
 * is larger than a frame can carry; -ENOSPC when the job has emitted more
 * than its lane can hold (64 MiB); -EPERM in a sink.
 */
static inline int sluice_emit(SluiceContext *ctx, const void *data, size_t size) {
        if (ctx->quick > 0 && size <= ctx->quick_max && (ptrdiff_t)size <= ctx->out_end - ctx->out) {
                uint32_t header = (uint32_t)size;

                memcpy(ctx->out, &header, sizeof(header));
                if (size == 8)
                        memcpy(ctx->out + sizeof(header), data, 8);
                else if (size > 0)
                        memcpy(ctx->out + sizeof(header), data, size);
                ctx->out += sizeof(header) + size;
                ctx->quick--;
                return 0;
        }
        return ctx->host->emit(ctx, data, size);
}

/*
 * run_batch() only: answers the next `n` unanswered jobs, all alike. What was
 * emitted belongs to the first of them. In a sink the n answers and a position
 * set before become true in one step; in a transform each in a step of its own.
 */
static inline void sluice_commit(SluiceContext *ctx, size_t n, SluiceAnswer answer) {
        ctx->host->commit(ctx, n, answer);
}

/*
 * Says in words why the job fails, or why init() or produce() cannot go on
 * (one line; the last one counts). Reaches the operator and the submitter.
 */
__attribute__((format(printf, 2, 3))) static inline void sluice_explain(SluiceContext *ctx,
                                                                        const char *format, ...) {
        va_list ap;

        va_start(ap, format);
        ctx->host->explain(ctx, format, ap);
        va_end(ap);
}

/* Logs a line with the stage's and job's fields. `level` is a syslog level (LOG_ERR .. LOG_DEBUG). Never blocks on
 * a slow journal. Keep payloads out of it unless the user asked. */
__attribute__((format(printf, 3, 4))) static inline void sluice_log(SluiceContext *ctx, int level,
                                                                    const char *format, ...) {
        va_list ap;

        va_start(ap, format);
        ctx->host->log(ctx, level, format, ap);
        va_end(ap);
}

/* A setting of the stage's table, from the file or by default: int, bool (0 or 1), duration (microseconds), size (bytes). */
static inline int64_t sluice_setting_int(SluiceContext *ctx, const char *name) {
        return ctx->host->setting_int(ctx, name);
}

static inline double sluice_setting_float(SluiceContext *ctx, const char *name) {
        return ctx->host->setting_float(ctx, name);
}

/* Borrowed: valid as long as the process. */
static inline const char *sluice_setting_string(SluiceContext *ctx, const char *name) {
        return ctx->host->setting_string(ctx, name);
}

/*
 * The position saved last, by this process or one before it: `*ret_size`
 * bytes (0: none yet), borrowed until the next sluice_set_position().
 */
static inline const void *sluice_position(SluiceContext *ctx, size_t *ret_size) {
        return ctx->host->position(ctx, ret_size);
}

/*
 * Sources and sinks: saves where you are, at most SLUICE_POSITION_BYTES. It
 * becomes true together with the answer of the job at hand (in a source: when
 * produce() returns), so after a crash position and jobs always agree. In
 * init() and reopen() it is true at once. Returns 0 or -EMSGSIZE.
 */
static inline int sluice_set_position(SluiceContext *ctx, const void *position, size_t size) {
        return ctx->host->set_position(ctx, position, size);
}

/*
 * Sources: SLUICE_MEMORY_BYTES of memory, zero at first, that outlive the
 * process as they are (not rolled back). Guard them with the position. NULL
 * for other kinds.
 */
static inline void *sluice_memory(SluiceContext *ctx) {
        return ctx->host->memory(ctx);
}

/*
 * Sources: a pipe (read end, write end; borrowed) that outlives the process
 * as long as the supervisor lives, so bytes moved into it with splice() are
 * in nobody's hands but the kernel's. Returns 0, or -EOPNOTSUPP where there is none.
 */
static inline int sluice_carry(SluiceContext *ctx, int ret_fds[2]) {
        return ctx->host->carry(ctx, ret_fds);
}

/* True once the service wants this worker to stop: finish the job at hand, or return from produce(). */
static inline int sluice_stopping(SluiceContext *ctx) {
        return ctx->host->stopping(ctx);
}

#ifdef __cplusplus
}
#endif

#endif
