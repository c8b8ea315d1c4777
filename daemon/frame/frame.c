#include "frame/frame.h"

int frame_decode(const void *data, size_t n_data, FrameHeader *ret) {
        FrameHeader h;

        if (n_data < sizeof(h.magic) || load_u32(data) != FRAME_MAGIC)
                return FRAME_E_RAW;
        if (n_data < FRAME_OVERHEAD_BYTES)
                return FRAME_E_TRUNCATED;

        memcpy(&h, data, sizeof(h));
        if (h.version != FRAME_VERSION)
                return FRAME_E_VERSION;
        /* No frame has sequence 0: it would make memory of zeroes pass for a trailer. */
        if (h.length < FRAME_OVERHEAD_BYTES || h.sequence == 0)
                return FRAME_E_INVALID;
        if (h.length > n_data ||
            load_u64((const uint8_t *)data + h.length - FRAME_TRAILER_BYTES) != h.sequence)
                return FRAME_E_TRUNCATED;
        if (h.count > (h.length - FRAME_OVERHEAD_BYTES) / JOB_HEADER_BYTES)
                return FRAME_E_INVALID;

        switch (h.kind) {
        case FRAME_JOBS:
                if (h.count == 0)
                        return FRAME_E_INVALID;
                break;
        case FRAME_SENTINEL:
                if (h.count != 0)
                        return FRAME_E_INVALID;
                break;
        default:
                return FRAME_E_INVALID;
        }

        *ret = h;
        return 0;
}

/* Bytes of the extension fields named by `ext`, the word itself not included. */
static size_t ext_bytes(uint32_t ext) {
        return (size_t)__builtin_popcount(ext & (JOB_EXT_ID | JOB_EXT_CREDIT | JOB_EXT_TIME)) * 8 +
               ((ext & JOB_EXT_INTERRUPTIONS) ? 4 : 0);
}

int frame_check_jobs(const void *data, const FrameHeader *header) {
        const uint8_t *p = (const uint8_t *)data + FRAME_HEADER_BYTES;
        const uint8_t *end = (const uint8_t *)data + header->length - FRAME_TRAILER_BYTES;

        for (uint32_t i = 0; i < header->count; i++) {
                if (end - p < JOB_HEADER_BYTES)
                        return FRAME_E_INVALID;

                uint32_t word = load_u32(p), flags = word >> 28;
                size_t need = word & JOB_SIZE_MAX;

                p += JOB_HEADER_BYTES;
                if (flags & JOB_EXTENDED) {
                        if (end - p < 4)
                                return FRAME_E_INVALID;

                        uint32_t ext = load_u32(p);

                        if (ext & ~(uint32_t)_JOB_EXT_ALL)
                                return FRAME_E_INVALID;
                        need += 4 + ext_bytes(ext);
                }
                if (need > (size_t)(end - p))
                        return FRAME_E_INVALID;
                p += need;
        }
        return p == end ? 0 : FRAME_E_INVALID;
}

size_t frame_seal(uint8_t *buffer, const FrameHeader *header, size_t length) {
        FrameHeader h = *header;

        h.magic = FRAME_MAGIC;
        h.version = FRAME_VERSION;
        h.length = (uint32_t)(FRAME_OVERHEAD_BYTES + length);
        memcpy(buffer, &h, sizeof(h));
        store_u64(buffer + FRAME_HEADER_BYTES + length, h.sequence);
        return h.length;
}

static uint32_t job_ext(const JobSpec *job) {
        uint32_t ext = 0;

        if (job->explicit_id)
                ext |= JOB_EXT_ID;
        if (job->credit != 0 && job->credit != JOB_CREDIT_WHOLE)
                ext |= JOB_EXT_CREDIT;
        if (job->time_usec != 0)
                ext |= JOB_EXT_TIME;
        if (job->interruptions != 0)
                ext |= JOB_EXT_INTERRUPTIONS;
        return ext;
}

size_t job_bytes(const JobSpec *job) {
        uint32_t ext = job_ext(job);

        return JOB_HEADER_BYTES + (ext ? 4 + ext_bytes(ext) : 0) + job->size;
}

uint8_t *job_write(uint8_t *p, const JobSpec *job) {
        uint32_t ext = job_ext(job);
        uint32_t attempts = job->attempts < JOB_ATTEMPTS_MAX ? job->attempts : JOB_ATTEMPTS_MAX;

        store_u32(p, job_header_pack(job->size, attempts, job->flags | (ext ? JOB_EXTENDED : 0)));
        p += JOB_HEADER_BYTES;
        if (ext) {
                store_u32(p, ext);
                p += 4;
                if (ext & JOB_EXT_ID) {
                        store_u64(p, job->id);
                        p += 8;
                }
                if (ext & JOB_EXT_CREDIT) {
                        store_u64(p, job->credit);
                        p += 8;
                }
                if (ext & JOB_EXT_TIME) {
                        store_u64(p, job->time_usec);
                        p += 8;
                }
                if (ext & JOB_EXT_INTERRUPTIONS) {
                        store_u32(p, job->interruptions);
                        p += 4;
                }
        }
        if (job->size > 0)
                memcpy(p, job->data, job->size);
        return p + job->size;
}
