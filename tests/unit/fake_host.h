#pragma once

/*
 * FakeHost: calls a plugin as a worker would, without one.
 *
 *     FakeHost *h = fake_host_new("range", 4096);
 *     fake_host_set(h, "to", "99");
 *     fake_host_start(h);
 *     while (fake_host_produce(h) == SLUICE_MORE)
 *             ;
 *     fake_host_stop(h);
 *
 * What outlives a worker (position, memory, answers and results) is in
 * shared memory and committed by one atomic store; the carry pipe is
 * inherited. So a test may fork(), start the plugin in the child, kill it at
 * any instruction, and start it again elsewhere.
 *
 * Misuse (an unknown plugin or setting, a full store) aborts.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/stage.h>

typedef struct FakeHost FakeHost;

/* Loads NAME.so from the folder $SLUICE_PLUGIN_PATH. A frame holds `n_frame` bytes of jobs, each with its 4-byte
 * header. */
FakeHost *fake_host_new(const char *name, size_t n_frame);
void fake_host_free(FakeHost *host);

static inline void fake_host_freep(FakeHost **host) {
        if (*host)
                fake_host_free(*host);
}

const SluiceStage *fake_host_stage(const FakeHost *host);

/* Settings, written as in a file, before fake_host_start(). Those not set have the plugin's default. */
void fake_host_set(FakeHost *host, const char *name, const char *value);
void fake_host_set_stopping(FakeHost *host, bool stopping);
void fake_host_set_max_jobs(FakeHost *host, uint32_t max_jobs); /* per frame */

/* The carry pipe: without one, sluice_carry() answers -EOPNOTSUPP. */
void fake_host_drop_carry(FakeHost *host);
const int *fake_host_carry(const FakeHost *host);

/* The plugin's init() and fini(). */
int fake_host_start(FakeHost *host);
void fake_host_stop(FakeHost *host);

SluiceProduced fake_host_produce(FakeHost *host);
SluiceAnswer fake_host_run(FakeHost *host, const void *data, size_t size);
int fake_host_run_batch(FakeHost *host, const SluiceJob *jobs, size_t n);
int fake_host_reopen(FakeHost *host);

/* What was committed. */
size_t fake_host_n_results(const FakeHost *host);
size_t fake_host_n_answers(const FakeHost *host);
size_t fake_host_n_commits(const FakeHost *host);
SluiceAnswer fake_host_answer(const FakeHost *host, size_t i);
const void *fake_host_position(const FakeHost *host, size_t *ret_size);

/* Iterates over the results: `cursor` is 0 at first. NULL after the last. */
const void *fake_host_next_result(const FakeHost *host, size_t *cursor, size_t *ret_size);

/* All results, each followed by `end`; the caller frees. */
char *fake_host_results(const FakeHost *host, char end, size_t *ret_size);

/* The last explanation, or "". All lines logged, each as "<LEVEL>text\n"; cleared by forget. */
const char *fake_host_explained(const FakeHost *host);
const char *fake_host_logged(const FakeHost *host);
void fake_host_forget_log(FakeHost *host);
