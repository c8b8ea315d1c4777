#include "fake_host.h"

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

#define N_RESULT_BYTES (UINT64_C(1) << 26)
#define N_ANSWERS (1u << 20)
#define N_LOG_BYTES (1u << 20)
#define N_SETTINGS 16

/* What is true together. */
typedef struct Committed {
        uint8_t position[SLUICE_POSITION_BYTES];
        size_t n_position;
        size_t n_result_bytes;
        size_t n_results;
        size_t n_answers;
        size_t n_commits;
} Committed;

/* Outlives a process that is killed. */
typedef struct Shared {
        _Alignas(16) uint8_t memory[SLUICE_MEMORY_BYTES];
        Committed committed[2];
        _Atomic uint32_t current;
        char explained[512];
        char log[N_LOG_BYTES];
        size_t n_log;
        uint8_t answers[N_ANSWERS];
        uint8_t results[N_RESULT_BYTES]; /* {u32 size, payload} ... */
} Shared;

struct FakeHost {
        SluiceContext ctx; /* first: a context is its host */
        void *library;
        const SluiceStage *stage;
        void *state;
        Shared *shared;
        uint8_t *frame;
        size_t n_frame;
        uint32_t max_jobs;
        int carry[2];
        bool stopping;
        bool working; /* in run(), run_batch() or produce() */

        Committed next; /* what the next commit makes true */

        const char *names[N_SETTINGS];
        char *values[N_SETTINGS];
        size_t n_settings;
};

static void die(const char *what, const char *of) {
        fprintf(stderr, "fake host: %s: %s\n", what, of);
        abort();
}

static FakeHost *host_of(SluiceContext *ctx) {
        return (FakeHost *)ctx;
}

static const Committed *committed(const FakeHost *h) {
        return &h->shared->committed[atomic_load(&h->shared->current)];
}

/* ---- results on their way ---- */

static void frame_reset(FakeHost *h) {
        bool emits = h->stage->kind != SLUICE_SINK;

        h->ctx.out = h->frame;
        h->ctx.out_end = h->frame + h->n_frame - 4;
        h->ctx.quick = emits ? h->max_jobs : 0;
        h->ctx.quick_max = (uint32_t)(h->n_frame - 4);
}

/* Moves the frame's jobs behind the committed results. */
static void frame_store(FakeHost *h) {
        size_t n = (size_t)(h->ctx.out - h->frame);

        if (h->next.n_result_bytes + n > N_RESULT_BYTES)
                die("too many results", h->stage->name);
        memcpy(h->shared->results + h->next.n_result_bytes, h->frame, n);
        h->next.n_result_bytes += n;
        h->next.n_results += h->max_jobs - h->ctx.quick;
        frame_reset(h);
}

static void flip(FakeHost *h) {
        uint32_t other = !atomic_load(&h->shared->current);

        h->next.n_commits++;
        h->shared->committed[other] = h->next;
        atomic_store(&h->shared->current, other);
}

static void forget_uncommitted(FakeHost *h) {
        h->next = *committed(h);
        frame_reset(h);
}

static void answer(FakeHost *h, size_t n, SluiceAnswer a) {
        if (a == SLUICE_DONE && h->stage->kind != SLUICE_SINK)
                frame_store(h);
        else {
                h->next.n_result_bytes = committed(h)->n_result_bytes;
                h->next.n_results = committed(h)->n_results;
                frame_reset(h);
        }

        if (h->next.n_answers + n > N_ANSWERS)
                die("too many jobs", h->stage->name);
        memset(h->shared->answers + h->next.n_answers, (int)a, n);
        h->next.n_answers += n;
        flip(h);
}

/* ---- the host's side of stage.h ---- */

static int host_emit(SluiceContext *ctx, const void *data, size_t size) {
        FakeHost *h = host_of(ctx);

        assert(h->working);
        if (h->stage->kind == SLUICE_SINK)
                return -EPERM;
        if (size > h->n_frame - 4)
                return -EMSGSIZE;
        if (h->stage->kind == SLUICE_SOURCE)
                return SLUICE_FULL;

        frame_store(h);
        return sluice_emit(ctx, data, size);
}

static void host_commit(SluiceContext *ctx, size_t n, SluiceAnswer a) {
        answer(host_of(ctx), n, a);
}

__attribute__((format(printf, 2, 0))) static void host_explain(SluiceContext *ctx, const char *format,
                                                               va_list ap) {
        Shared *s = host_of(ctx)->shared;

        vsnprintf(s->explained, sizeof(s->explained), format, ap);
}

__attribute__((format(printf, 3, 0))) static void host_log(SluiceContext *ctx, int level, const char *format,
                                                           va_list ap) {
        Shared *s = host_of(ctx)->shared;
        char line[8192];
        int n = snprintf(line, sizeof(line), "<%d>", level);

        n += vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, ap);
        if ((size_t)n >= sizeof(line) - 1)
                die("a log line is too long", line);
        line[n++] = '\n';
        if (s->n_log + (size_t)n >= sizeof(s->log))
                die("too much is logged", line);
        memcpy(s->log + s->n_log, line, (size_t)n);
        s->n_log += (size_t)n;
        s->log[s->n_log] = '\0';
}

static const char *setting(FakeHost *h, const char *name, SluiceType *ret_type) {
        const SluiceSetting *s = h->stage->settings;

        for (; s && s->name; s++)
                if (strcmp(s->name, name) == 0)
                        break;
        if (!s || !s->name)
                die("no such setting", name);
        *ret_type = s->type;

        for (size_t i = 0; i < h->n_settings; i++)
                if (strcmp(h->names[i], name) == 0)
                        return h->values[i];
        if (!s->fallback)
                die("a required setting is missing", name);
        return s->fallback;
}

static int64_t host_setting_int(SluiceContext *ctx, const char *name) {
        SluiceType type;
        const char *text = setting(host_of(ctx), name, &type);
        long long v;
        char *end;

        if (type == SLUICE_BOOL)
                return strcmp(text, "true") == 0;
        if (type == SLUICE_STRING || type == SLUICE_FLOAT)
                die("read as a number, but is none", name);
        errno = 0;
        v = strtoll(text, &end, 10);
        if (errno != 0 || end == text || *end != '\0')
                die("not a plain number", name);
        return v;
}

static double host_setting_float(SluiceContext *ctx, const char *name) {
        SluiceType type;
        const char *text = setting(host_of(ctx), name, &type);

        if (type != SLUICE_FLOAT)
                die("read as a float, but is none", name);
        return strtod(text, NULL);
}

static const char *host_setting_string(SluiceContext *ctx, const char *name) {
        SluiceType type;
        const char *text = setting(host_of(ctx), name, &type);

        if (type != SLUICE_STRING)
                die("read as a string, but is none", name);
        return text;
}

static const void *host_position(SluiceContext *ctx, size_t *ret_size) {
        return fake_host_position(host_of(ctx), ret_size);
}

static int host_set_position(SluiceContext *ctx, const void *position, size_t size) {
        FakeHost *h = host_of(ctx);

        if (h->stage->kind == SLUICE_TRANSFORM)
                die("a transform saves a position", h->stage->name);
        if (size > SLUICE_POSITION_BYTES)
                return -EMSGSIZE;
        memcpy(h->next.position, position, size);
        h->next.n_position = size;
        if (!h->working)
                flip(h);
        return 0;
}

static void *host_memory(SluiceContext *ctx) {
        FakeHost *h = host_of(ctx);

        return h->stage->kind == SLUICE_SOURCE ? h->shared->memory : NULL;
}

static int host_carry(SluiceContext *ctx, int ret_fds[2]) {
        FakeHost *h = host_of(ctx);

        if (h->carry[0] < 0)
                return -EOPNOTSUPP;
        ret_fds[0] = h->carry[0];
        ret_fds[1] = h->carry[1];
        return 0;
}

static int host_stopping(SluiceContext *ctx) {
        return host_of(ctx)->stopping;
}

static const SluiceHost fake_host = {
        .size = sizeof(SluiceHost),
        .emit = host_emit,
        .commit = host_commit,
        .explain = host_explain,
        .log = host_log,
        .setting_int = host_setting_int,
        .setting_float = host_setting_float,
        .setting_string = host_setting_string,
        .position = host_position,
        .set_position = host_set_position,
        .memory = host_memory,
        .carry = host_carry,
        .stopping = host_stopping,
};

/* ---- for tests ---- */

static void load(FakeHost *h, const char *name) {
        const char *folder = getenv("SLUICE_PLUGIN_PATH");
        _cleanup_free_ char *path = NULL;

        if (asprintf(&path, "%s/%s.so", folder ? folder : ".", name) < 0)
                die("out of memory", name);
        h->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!h->library)
                die("cannot load", dlerror());
        h->stage = dlsym(h->library, "sluice_stage");
        if (!h->stage || h->stage->abi != SLUICE_STAGE_ABI || strcmp(h->stage->name, name) != 0)
                die("is no stage of this name and ABI", path);
}

FakeHost *fake_host_new(const char *name, size_t n_frame) {
        FakeHost *h = calloc(1, sizeof(*h));

        if (!h)
                die("out of memory", name);
        load(h, name);
        h->ctx.host = &fake_host;
        h->n_frame = n_frame;
        h->max_jobs = UINT32_MAX;
        h->frame = malloc(n_frame); /* of exactly this size, so that ASan sees the end */
        h->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!h->frame || h->shared == MAP_FAILED || pipe2(h->carry, O_CLOEXEC) < 0)
                die("out of something", name);
        return h;
}

void fake_host_free(FakeHost *h) {
        fake_host_stop(h);
        fake_host_drop_carry(h);
        for (size_t i = 0; i < h->n_settings; i++)
                free(h->values[i]);
        munmap(h->shared, sizeof(Shared));
        dlclose(h->library);
        free(h->frame);
        free(h);
}

const SluiceStage *fake_host_stage(const FakeHost *h) {
        return h->stage;
}

void fake_host_set(FakeHost *h, const char *name, const char *value) {
        size_t i = 0;

        while (i < h->n_settings && strcmp(h->names[i], name) != 0)
                i++;
        if (i == N_SETTINGS)
                die("too many settings", name);
        if (i == h->n_settings)
                h->n_settings++;
        else
                free(h->values[i]);
        h->names[i] = name;
        h->values[i] = strdup(value);
        if (!h->values[i])
                die("out of memory", name);
}

void fake_host_set_stopping(FakeHost *h, bool stopping) {
        h->stopping = stopping;
}

void fake_host_set_max_jobs(FakeHost *h, uint32_t max_jobs) {
        h->max_jobs = max_jobs;
}

void fake_host_drop_carry(FakeHost *h) {
        h->carry[0] = close_fd(h->carry[0]);
        h->carry[1] = close_fd(h->carry[1]);
}

const int *fake_host_carry(const FakeHost *h) {
        return h->carry;
}

int fake_host_start(FakeHost *h) {
        assert(!h->state);
        forget_uncommitted(h);
        h->shared->explained[0] = '\0';
        return h->stage->init ? h->stage->init(&h->ctx, &h->state) : 0;
}

void fake_host_stop(FakeHost *h) {
        if (h->stage->fini && h->state)
                h->stage->fini(h->state);
        h->state = NULL;
}

SluiceProduced fake_host_produce(FakeHost *h) {
        SluiceProduced p;

        forget_uncommitted(h);
        h->working = true;
        p = h->stage->produce(&h->ctx, h->state);
        h->working = false;
        if (p == SLUICE_BROKEN)
                forget_uncommitted(h);
        else {
                frame_store(h);
                flip(h);
        }
        return p;
}

int fake_host_run_batch(FakeHost *h, const SluiceJob *jobs, size_t n) {
        int r;

        forget_uncommitted(h);
        h->working = true;
        r = h->stage->run_batch(&h->ctx, h->state, jobs, n);
        h->working = false;
        forget_uncommitted(h);
        return r;
}

SluiceAnswer fake_host_run(FakeHost *h, const void *data, size_t size) {
        SluiceJob job = { .data = data, .size = size, .id = fake_host_n_answers(h) + 1, .attempt = 1 };
        SluiceAnswer a;

        if (!h->stage->run) {
                if (fake_host_run_batch(h, &job, 1) < 0)
                        return SLUICE_RETRY;
                return fake_host_answer(h, fake_host_n_answers(h) - 1);
        }

        forget_uncommitted(h);
        h->working = true;
        a = h->stage->run(&h->ctx, h->state, &job);
        h->working = false;
        answer(h, 1, a);
        return a;
}

int fake_host_reopen(FakeHost *h) {
        return h->stage->reopen(&h->ctx, h->state);
}

size_t fake_host_n_results(const FakeHost *h) {
        return committed(h)->n_results;
}

size_t fake_host_n_answers(const FakeHost *h) {
        return committed(h)->n_answers;
}

size_t fake_host_n_commits(const FakeHost *h) {
        return committed(h)->n_commits;
}

SluiceAnswer fake_host_answer(const FakeHost *h, size_t i) {
        assert(i < fake_host_n_answers(h));
        return (SluiceAnswer)h->shared->answers[i];
}

const void *fake_host_position(const FakeHost *h, size_t *ret_size) {
        *ret_size = committed(h)->n_position;
        return committed(h)->position;
}

const void *fake_host_next_result(const FakeHost *h, size_t *cursor, size_t *ret_size) {
        const uint8_t *p = h->shared->results + *cursor;
        uint32_t size;

        if (*cursor == committed(h)->n_result_bytes)
                return NULL;
        memcpy(&size, p, sizeof(size));
        *cursor += sizeof(size) + size;
        assert(*cursor <= committed(h)->n_result_bytes);
        *ret_size = size;
        return p + sizeof(size);
}

char *fake_host_results(const FakeHost *h, char end, size_t *ret_size) {
        char *text = malloc(committed(h)->n_result_bytes + 1);
        size_t cursor = 0, at = 0, n;
        const void *p;

        if (!text)
                die("out of memory", h->stage->name);
        while ((p = fake_host_next_result(h, &cursor, &n))) {
                memcpy(text + at, p, n);
                at += n;
                text[at++] = end;
        }
        text[at] = '\0';
        if (ret_size)
                *ret_size = at;
        return text;
}

const char *fake_host_explained(const FakeHost *h) {
        return h->shared->explained;
}

const char *fake_host_logged(const FakeHost *h) {
        return h->shared->log;
}

void fake_host_forget_log(FakeHost *h) {
        h->shared->n_log = 0;
        h->shared->log[0] = '\0';
}
