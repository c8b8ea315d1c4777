/* The host side of stage.h, and how a plugin is loaded. */

#include "worker/handler_internal.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

__attribute__((format(printf, 2, 0))) static void host_explain(SluiceContext *ctx, const char *format,
                                                               va_list ap) {
        Handler *h = handler_of(ctx);

        (void)vsnprintf(h->explanation, sizeof(h->explanation), format, ap);
        h->explained = true;
}

__attribute__((format(printf, 3, 0))) static void host_log(SluiceContext *ctx, int level, const char *format,
                                                           va_list ap) {
        Handler *h = handler_of(ctx);
        LogFields fields = { .lane = -1 };
        char text[2048];

        if (level > log_level())
                return;
        if (!handler_is_source(h) && h->lane->now->running) {
                fields.has_job = true;
                fields.job = h->job.id;
                fields.attempt = h->job.attempts + 1;
        }
        (void)vsnprintf(text, sizeof(text), format, ap);
        log_entry(level, &fields, "%s", text);
}

static const WorkerSetting *handler_setting(Handler *h, const char *name) {
        const uint8_t *p = (const uint8_t *)(h->spec + 1);

        for (uint32_t i = 0; i < h->spec->n_settings; i++) {
                const WorkerSetting *s = (const WorkerSetting *)p;

                if (strcmp((const char *)(s + 1), name) == 0)
                        return s;
                p += s->n_bytes;
        }
        log_error("The handler asks for a setting that it has not declared: %s", name);
        return NULL;
}

static int64_t host_setting_int(SluiceContext *ctx, const char *name) {
        const WorkerSetting *s = handler_setting(handler_of(ctx), name);

        return s ? s->integer : 0;
}

static double host_setting_float(SluiceContext *ctx, const char *name) {
        const WorkerSetting *s = handler_setting(handler_of(ctx), name);

        return s ? s->real : 0;
}

static const char *host_setting_string(SluiceContext *ctx, const char *name) {
        const WorkerSetting *s = handler_setting(handler_of(ctx), name);

        return s ? (const char *)(s + 1) + s->n_name : "";
}

static const void *host_position(SluiceContext *ctx, size_t *ret_size) {
        Handler *h = handler_of(ctx);

        if (h->position_set) {
                *ret_size = h->position_size;
                return h->position;
        }
        *ret_size = h->lane->now->position_size;
        return h->lane->now->position;
}

static int host_set_position(SluiceContext *ctx, const void *position, size_t size) {
        Handler *h = handler_of(ctx);

        if (size > sizeof(h->position))
                return -EMSGSIZE;

        memcpy(h->position, position, size);
        h->position_size = (uint32_t)size;
        h->position_set = true;
        if (h->position_now) {
                handler_commit_position(h, lane_edit(h->lane));
                lane_flip(h->lane);
        }
        return 0;
}

static void *host_memory(SluiceContext *ctx) {
        Handler *h = handler_of(ctx);

        return h->lane->board ? NULL : (uint8_t *)h->lane->record + h->lane->record->memory_offset;
}

static int host_carry(SluiceContext *ctx, int ret_fds[2]) {
        Handler *h = handler_of(ctx);

        if (h->carry[0] < 0)
                return -EOPNOTSUPP;
        ret_fds[0] = h->carry[0];
        ret_fds[1] = h->carry[1];
        return 0;
}

static int host_stopping(SluiceContext *ctx) {
        Handler *h = handler_of(ctx);

        return *h->stopping || (atomic_load_explicit(&h->lane->record->control, memory_order_relaxed) &
                                ~(uint32_t)LANE_CONTROL_REOPEN) != 0;
}

static const SluiceHost handler_host = {
        .size = sizeof(SluiceHost),
        .emit = handler_host_emit,
        .commit = handler_host_commit,
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

int handler_open(Handler *h, Lane *lane, const WorkerSpec *spec, const int carry[2],
                 volatile const bool *stopping) {
        int r;

        *h = (Handler){
                .ctx = { .host = &handler_host },
                .lane = lane,
                .spec = spec,
                .stopping = stopping,
                .carry = { carry[0], carry[1] },
                .tracked = (spec->flags & WORKER_TRACK) != 0,
        };

        h->library = dlopen(spec->plugin, RTLD_NOW | RTLD_LOCAL);
        if (!h->library) {
                log_error("Cannot load the stage: %s", dlerror());
                return -ELIBACC;
        }
        h->stage = dlsym(h->library, "sluice_stage");
        if (!h->stage || h->stage->abi != SLUICE_STAGE_ABI) {
                log_error("%s is no stage for this sluice", spec->plugin);
                return -ELIBBAD;
        }
        if (!h->stage->init)
                return 0;

        h->position_now = true;
        r = h->stage->init(&h->ctx, &h->state);
        h->position_now = false;
        if (r < 0)
                log_error("The stage cannot start: %s", h->explained ? h->explanation : strerror(-r));
        return r;
}

void handler_close(Handler *h) {
        if (h->stage && h->stage->fini)
                h->stage->fini(h->state);
        /* The library stays mapped: its threads or atexit handlers may still be there. */
}
