/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_SLUICE_H
#define SLUICE_SLUICE_H

/*
 * sluice/sluice.h: submit jobs to a running service.
 *
 *     #include <sluice/sluice.h>
 *
 *     SluiceClient *client;
 *     int r;
 *
 *     r = sluice_open("thumbnails", &client);
 *     if (r != 0)
 *             errx(1, "cannot submit: %s", sluice_error_text(r));
 *     for (size_t i = 0; i < n_paths; i++) {
 *             r = sluice_submit(client, paths[i], strlen(paths[i]), NULL);
 *             if (r != 0)
 *                     warnx("%s: %s", paths[i], sluice_error_text(r));
 *     }
 *     r = sluice_close(client);
 *     if (r != 0)
 *             errx(1, "cannot submit: %s", sluice_error_text(r));
 *
 *     cc -o program program.c $(pkg-config --cflags --libs sluice)
 *
 * The client must be the user of the service or a member of its group, which
 * may write to the queue that the first stage reads, and nothing else.
 *
 * What to expect
 * --------------
 * - A job is a block of bytes. What it means is between you and the first stage.
 * - Jobs are collected in frames, since a message per job would be the cost.
 *   sluice_submit() sends a frame when the next job does not fit; nothing is
 *   sent by the passing of time. Whoever has no more jobs for the moment calls
 *   sluice_flush().
 * - A job is accepted when its frame is in the service's queue: from there it
 *   survives the death of everything but the machine. A job that is not
 *   flushed yet dies with the client. sluice_accepted() counts.
 * - A service that is behind makes sluice_submit() and sluice_flush() wait.
 *   sluice_try_submit() and sluice_try_flush() never do.
 * - A service that is stopped keeps its queue; what is submitted waits for its
 *   next start.
 *
 * Functions return 0, a positive SLUICE_E_* that can happen on a good day, or a
 * negative errno. After anything but 0 nothing was taken or sent and nothing was
 * lost, so that the same call can be made again.
 *
 * A client is for one thread at a time, and not for both sides of a fork().
 * Several clients are independent of each other.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLUICE_PUBLIC __attribute__((visibility("default")))

typedef struct SluiceClient SluiceClient;

enum {
        SLUICE_E_TOO_LARGE = 1, /* the job is larger than sluice_job_max() */
        SLUICE_E_AGAIN,         /* the queue is full, and the call was one that does not wait */
        SLUICE_E_ABSENT,        /* no such service has run here, or its pipeline makes its own jobs */
        SLUICE_E_DENIED,        /* this user may not submit to it */
        SLUICE_E_UNSUITABLE,    /* something else has taken the name of its queue */
};

/*
 * Opens the service called `instance` (its configuration's `name`).
 * Returns 0 and a client, to be given back with sluice_close() or sluice_abandon(); SLUICE_E_ABSENT, SLUICE_E_DENIED,
 * SLUICE_E_UNSUITABLE; -EINVAL if no service can be called that, or another negative errno.
 */
SLUICE_PUBLIC int sluice_open(const char *instance, SluiceClient **ret);

/*
 * Submits a job of `size` bytes, which are copied; 0 is fine. `*ret_id`, if not NULL, is the id it has in every stage
 * and in the service's log (SLUICE_JOB=); practically no other client's job has the same.
 *
 * Waits while the queue is full. Returns 0, SLUICE_E_TOO_LARGE, -EINTR if a signal handler (installed without
 * SA_RESTART) ran meanwhile, or another negative errno.
 */
SLUICE_PUBLIC int sluice_submit(SluiceClient *client, const void *data, size_t size, uint64_t *ret_id);

/* The same without waiting: SLUICE_E_AGAIN if the job does not fit the frame and the queue has no room for that. */
SLUICE_PUBLIC int sluice_try_submit(SluiceClient *client, const void *data, size_t size, uint64_t *ret_id);

/* Sends what was submitted and is not sent yet. Waits while the queue is full. Returns 0 when all is in the queue, -EINTR,
 * or another negative errno. */
SLUICE_PUBLIC int sluice_flush(SluiceClient *client);

/* The same without waiting: SLUICE_E_AGAIN if the queue is full. */
SLUICE_PUBLIC int sluice_try_flush(SluiceClient *client);

/* How many jobs have been accepted: all submitted ones once sluice_flush() has returned 0. */
SLUICE_PUBLIC uint64_t sluice_accepted(const SluiceClient *client);

/* Bytes of the largest job; 8084 with queues of the kernel's default size. */
SLUICE_PUBLIC size_t sluice_job_max(const SluiceClient *client);

/* A descriptor for poll(): POLLOUT says that the queue has room. For nothing else; it stays the client's. */
SLUICE_PUBLIC int sluice_fd(const SluiceClient *client);

/*
 * Flushes, however often a signal interrupts it, and frees the client in any case; NULL is fine. To be interruptible,
 * call sluice_flush() before. Returns 0, or a negative errno if jobs could not be sent.
 */
SLUICE_PUBLIC int sluice_close(SluiceClient *client);

/* Frees the client without waiting for anything; jobs that are not accepted yet are dropped. NULL is fine. */
SLUICE_PUBLIC void sluice_abandon(SluiceClient *client);

/* A SLUICE_E_* or negative errno in words, for 0 "success". Never NULL; borrowed, for an errno until the thread's next
 * call of this or strerror(). */
SLUICE_PUBLIC const char *sluice_error_text(int error);

#ifdef __cplusplus
}
#endif

#endif
