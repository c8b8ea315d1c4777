#pragma once

/*
 * Submit: bytes in, frames out, onto a pipeline's first queue.
 *
 * A Submitter packs jobs into one frame and sends it when the next job does
 * not fit, or when told to: it never waits for more by itself, so whoever has
 * nothing more to add flushes. Used by libsluice, `sluicectl submit` and the
 * feeding thread of `sluicectl run`.
 *
 * Who owns what: a job's bytes are the caller's and copied by submitter_add().
 * From then on the job is in the frame, and the Submitter keeps the frame until
 * a call that sends it returns 0. Any other outcome has sent nothing and lost
 * nothing, so the same call can be made again.
 *
 * Not for several threads at once; one Submitter for each is fine.
 */

#include <mqueue.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

enum { /* outcomes for the direct caller to handle */
       _SUBMIT_E_SUCCESS,
       SUBMIT_E_TOO_LARGE,  /* the job fits no frame of this queue; it was not taken */
       SUBMIT_E_AGAIN,      /* the queue is full; nothing was sent */
       SUBMIT_E_ABSENT,     /* no such queue: no such instance, or its pipeline makes its own jobs */
       SUBMIT_E_DENIED,     /* the queue is not for this user */
       SUBMIT_E_UNSUITABLE, /* not a queue of sluice's: open to everybody, or too small for a frame */
};

/* Longest name of a queue below, terminating NUL included. */
#define SUBMIT_QUEUE_NAME_MAX 96

/* Writes the name of an instance's ingress queue ("/sluice.NAME.in") to `ret`. Returns 0, or -EINVAL if no instance can be
 * called that. */
int submit_queue_name(const char *instance, char ret[static SUBMIT_QUEUE_NAME_MAX]);

/*
 * Opens an instance's ingress queue for writing (blocking, close-on-exec; the caller closes it).
 * Returns 0, SUBMIT_E_ABSENT, SUBMIT_E_DENIED, SUBMIT_E_UNSUITABLE, or a negative errno (-EINVAL: no such name can be).
 */
int submit_open(const char *instance, mqd_t *ret);

/* Draws the first id of a client: random above 32 bits of counting, so that clients practically never meet, and with
 * bit 63 clear, which marks the ids of raw messages. Returns 0 or a negative errno. */
int submit_draw_id(uint64_t *ret);

typedef struct Submitter Submitter;

/*
 * Makes a Submitter for `queue` (borrowed: it must stay open; blocking). `key` is 0 for a client; on a pipeline's
 * private queue it is the one on the queue's board, or lanes refuse the frames.
 * Returns 0, SUBMIT_E_UNSUITABLE, or a negative errno.
 */
int submitter_new(mqd_t queue, uint64_t key, Submitter **ret);

/* Drops what was not sent; NULL is fine. */
void submitter_free(Submitter *submitter);
DEFINE_CLEANUP(Submitter, submitter_free)

/*
 * Adds a job, sending the frame first if the job does not fit beside those in it. Jobs are cheapest if each has the id
 * of the one before plus one; others cost 12 bytes more.
 *
 * Returns 0 when the job was taken. Otherwise it was not taken, while the jobs before it stay in the frame:
 * SUBMIT_E_TOO_LARGE, -EINTR (a signal came while waiting for room; add it again or flush), or another negative errno.
 */
int submitter_add(Submitter *submitter, const void *data, size_t size, uint64_t id);

/* The same without waiting: SUBMIT_E_AGAIN instead where the queue is full. */
int submitter_try_add(Submitter *submitter, const void *data, size_t size, uint64_t id);

/*
 * Adds a note in the place of a job that failed before it could be submitted, so that whoever reads the results learns
 * of it in its turn. Only on a pipeline's private queue. `text` is cut at SUBMIT_NOTE_MAX. Returns as submitter_add().
 */
#define SUBMIT_NOTE_MAX 256
int submitter_add_failed(Submitter *submitter, const char *text, uint64_t id);

/* Sends the jobs in the frame, if any. Returns 0 when none is left here, -EINTR (flush again), or another negative errno. */
int submitter_flush(Submitter *submitter);

/* The same without waiting: SUBMIT_E_AGAIN instead where the queue is full. */
int submitter_try_flush(Submitter *submitter);

/* Jobs that are in the queue or beyond. */
uint64_t submitter_n_sent(const Submitter *submitter);

/* Jobs in the frame, not sent yet. */
uint32_t submitter_n_pending(const Submitter *submitter);

/* Bytes of the largest job that is not refused. */
size_t submitter_job_max(const Submitter *submitter);
