#pragma once

/*
 * Frame: one queue message as it travels between stages.
 *
 * A header, jobs packed one after the other, a trailer; docs/frame-format.md
 * has the byte table and tests/vectors/ the same frames as files. This module
 * turns bytes into frames and back. It never touches a queue, so it can be
 * tested and fuzzed without one. Everything is little-endian and unaligned.
 *
 * The kernel copies a message front to back, so a trailer that repeats the
 * header's sequence proves that the whole frame is there.
 */

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is read in place");

enum { /* outcomes for the direct caller to handle */
       _FRAME_E_SUCCESS,
       FRAME_E_RAW,       /* does not begin with the magic: not a frame */
       FRAME_E_TRUNCATED, /* shorter than its header promises, or its trailer is missing */
       FRAME_E_VERSION,   /* written by another version of sluice */
       FRAME_E_INVALID,   /* the header or a job contradicts itself */
};

/* 0x89 keeps text and UTF-8 from ever looking like a frame. */
#define FRAME_MAGIC UINT32_C(0x434c5389) /* 89 'S' 'L' 'C' */
#define FRAME_VERSION 1

#define FRAME_HEADER_BYTES 64
#define FRAME_TRAILER_BYTES 8
#define FRAME_OVERHEAD_BYTES (FRAME_HEADER_BYTES + FRAME_TRAILER_BYTES)

/* The smallest message size sluice works with, and the largest the kernel has. */
#define FRAME_MIN_BYTES 256
#define FRAME_MAX_BYTES (16 << 20)

#define FRAME_NO_TICKET UINT32_MAX

typedef enum FrameKind {
        FRAME_JOBS = 1,
        FRAME_SENTINEL = 2, /* no jobs: tells one lane to finish */
        _FRAME_KIND_MAX,
        _FRAME_KIND_INVALID = -EINVAL,
} FrameKind;

/* Jobs travel above priority 0, which is the sentinels'. */
#define FRAME_PRIORITY_SENTINEL 0
#define FRAME_PRIORITY_DEFAULT 16
#define FRAME_PRIORITY_MAX 31

typedef struct FrameHeader {
        uint32_t magic;
        uint8_t version;
        uint8_t kind;        /* FrameKind */
        uint16_t priority;   /* the queue priority it was sent with */
        uint32_t length;     /* of the whole frame, header and trailer included */
        uint32_t count;      /* jobs */
        uint64_t base_id;    /* id of the first job */
        uint64_t time_usec;  /* when the frame was begun, CLOCK_REALTIME */
        uint64_t sequence;   /* never 0, never repeats within a producer's life */
        uint32_t producer;   /* row of the queue's ticket table */
        uint32_t ticket;     /* within the row, or FRAME_NO_TICKET */
        uint64_t key;        /* the pipeline's, on frames from inside; clients do not know it */
        uint64_t generation; /* of a sentinel: the drain it belongs to; else 0 */
} FrameHeader;

_Static_assert(sizeof(FrameHeader) == FRAME_HEADER_BYTES, "byte table");

/*
 * A job: 4 bytes {size:20, attempts:8, flags:4}, then, if flagged, a 4-byte
 * word naming the extension fields that follow in order of their bits, then
 * the payload.
 *
 * A job's id is that of the job before it plus one; the first has base_id.
 */
#define JOB_HEADER_BYTES 4
#define JOB_SIZE_MAX ((UINT32_C(1) << 20) - 1)
#define JOB_ATTEMPTS_MAX 255

enum {
        JOB_EXTENDED = 1 << 0,  /* an extension word follows */
        JOB_SAME_ID = 1 << 1,   /* another result of the same job: the id does not advance */
        JOB_MARKER = 1 << 2,    /* no job but a note on one: see JobMarker */
        JOB_REFERENCE = 1 << 3, /* the payload names a file (large payloads; not written by this version) */
};

enum {
        JOB_EXT_ID = 1 << 0,            /* u64 */
        JOB_EXT_CREDIT = 1 << 1,        /* u64: this result's share of its job, see JOB_CREDIT_WHOLE */
        JOB_EXT_TIME = 1 << 2,          /* u64: CLOCK_REALTIME microseconds, if not the frame's */
        JOB_EXT_INTERRUPTIONS = 1 << 3, /* u32: times it was interrupted through no fault of its own */
        _JOB_EXT_ALL = (1 << 4) - 1,
};

/* A job that splits into several results splits its credit among them, so
 * that a reader knows that all of one input have arrived when the credits
 * add up to the whole. A job without the field has the whole. */
#define JOB_CREDIT_WHOLE (UINT64_C(1) << 60)

/* First payload byte of a marker. */
typedef enum JobMarker {
        JOB_MARKER_FAILED = 1,  /* the message follows */
        JOB_MARKER_DROPPED = 2, /* answered on purpose without a result */
} JobMarker;

typedef struct FrameJob {
        const uint8_t *data; /* borrowed from the frame */
        uint32_t size;
        uint32_t offset; /* of its header in the frame */
        uint32_t next;   /* offset of the job after it */
        uint8_t flags;
        uint32_t attempts; /* runs that ended without an answer */
        uint32_t interruptions;
        uint64_t id;
        uint64_t credit;
        uint64_t time_usec; /* 0: the frame's */
} FrameJob;

static inline uint32_t load_u32(const uint8_t *p) {
        uint32_t v;

        memcpy(&v, p, sizeof(v));
        return v;
}

static inline uint64_t load_u64(const uint8_t *p) {
        uint64_t v;

        memcpy(&v, p, sizeof(v));
        return v;
}

static inline void store_u32(uint8_t *p, uint32_t v) {
        memcpy(p, &v, sizeof(v));
}

static inline void store_u64(uint8_t *p, uint64_t v) {
        memcpy(p, &v, sizeof(v));
}

static inline uint32_t job_header_pack(uint32_t size, uint32_t attempts, uint32_t flags) {
        return size | attempts << 20 | flags << 28;
}

/* Bytes of payload a single job may have in frames of this size, extension fields allowed for. */
static inline size_t frame_payload_max(size_t frame_bytes) {
        size_t room = frame_bytes - FRAME_OVERHEAD_BYTES - JOB_HEADER_BYTES - 32;

        return room < JOB_SIZE_MAX ? room : JOB_SIZE_MAX;
}

/*
 * Reads the header of the message in `data`, of which up to `n_data` bytes
 * may be meant (the length comes from the header: a lane that resumes has
 * lost what mq_receive() returned). Checks header and trailer, not the jobs.
 * Returns 0 and copies the header, or a FRAME_E_*.
 */
int frame_decode(const void *data, size_t n_data, FrameHeader *ret);

/*
 * Checks every job of a frame that frame_decode() accepted; only needed for
 * what comes from outside, since sluice wrote the others itself.
 * Returns 0 or FRAME_E_INVALID.
 */
int frame_check_jobs(const void *data, const FrameHeader *header);

/* Completes a frame in place: `buffer` holds `length` bytes of jobs behind room
 * for the header, and has room for the trailer. `header` is copied with magic,
 * version and length filled in. Returns the frame's length. */
size_t frame_seal(uint8_t *buffer, const FrameHeader *header, size_t length);

/* Reads the job at `offset`; `id` is that of the job before it, or base_id - 1. The first job of a frame never
 * repeats an id: pass first = true. For frames that are known to be good. */
static inline void frame_job_read(const uint8_t *frame, uint32_t offset, uint64_t id, bool first,
                                  FrameJob *ret) {
        const uint8_t *p = frame + offset;
        uint32_t word = load_u32(p);

        ret->offset = offset;
        ret->size = word & JOB_SIZE_MAX;
        ret->attempts = word >> 20 & JOB_ATTEMPTS_MAX;
        ret->flags = (uint8_t)(word >> 28);
        ret->id = id + 1;
        ret->credit = JOB_CREDIT_WHOLE;
        ret->interruptions = 0;
        ret->time_usec = 0;
        p += JOB_HEADER_BYTES;
        if (__builtin_expect(ret->flags != 0, false)) {
                if ((ret->flags & JOB_SAME_ID) && !first)
                        ret->id = id;
                if (ret->flags & JOB_EXTENDED) {
                        uint32_t ext = load_u32(p);

                        p += 4;
                        if (ext & JOB_EXT_ID) {
                                ret->id = load_u64(p);
                                p += 8;
                        }
                        if (ext & JOB_EXT_CREDIT) {
                                ret->credit = load_u64(p);
                                p += 8;
                        }
                        if (ext & JOB_EXT_TIME) {
                                ret->time_usec = load_u64(p);
                                p += 8;
                        }
                        if (ext & JOB_EXT_INTERRUPTIONS) {
                                ret->interruptions = load_u32(p);
                                p += 4;
                        }
                }
        }
        ret->data = p;
        ret->next = (uint32_t)(p - frame) + ret->size;
}

/* What to write for a job; a zero credit or whole one, and interruptions of 0, take no bytes. */
typedef struct JobSpec {
        const void *data;
        uint32_t size;
        uint32_t attempts;
        uint32_t flags; /* JOB_SAME_ID, JOB_MARKER, JOB_REFERENCE */
        bool explicit_id;
        uint64_t id;
        uint64_t credit;
        uint64_t time_usec;
        uint32_t interruptions;
} JobSpec;

/* Bytes job_write() would write. */
size_t job_bytes(const JobSpec *job);

/* Writes a job at `p`, which has room for job_bytes(). Returns the byte after it. */
uint8_t *job_write(uint8_t *p, const JobSpec *job);
