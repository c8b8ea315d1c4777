/* SPDX-License-Identifier: MIT */
/*
 * file: appends every job to a file, as a line.
 *
 * A batch becomes one write(), and the end of the file is saved as position
 * in the same step that answers the jobs:
 *
 *     killed before the write    the jobs run again
 *     killed during or after it, before the commit
 *                                the file is longer than the position says:
 *                                init() cuts it back, the jobs run again
 *     killed after the commit    position and file agree
 *
 * so that every line is there once. It holds for regular files that nobody
 * else appends to, and that are not renamed without a reopen (SIGHUP) just
 * while we are killed. A file is the one we know if device, inode and time of
 * birth match: inode numbers are soon used again after a file was removed,
 * and what we cut must be ours. Into anything else (a FIFO, a terminal,
 * standard output) lines are just written; if killed, some may come twice.
 *
 * A write that fails answers nothing: what it left is cut off and the worker
 * stops with the error. A full disk holds jobs up, it does not fail them.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>

#include <sluice/stage.h>

typedef struct Position {
        uint64_t device, inode;
        uint64_t born_nsec; /* 0: the file system does not say */
        uint64_t offset;    /* end of the last line committed */
} Position;

typedef struct File {
        const char *path;
        mode_t mode;
        bool newline, sync;
        bool standard; /* standard output: never closed, never reopened */
        bool regular;
        int fd;
        Position position;
        uint8_t *buffer;
        size_t n_buffer;
} File;

static int explain(SluiceContext *ctx, const File *f, const char *what, int error) {
        sluice_explain(ctx, "cannot %s %s: %s", what, f->path, strerror(-error));
        return error;
}

static int parse_mode(const char *text, mode_t *ret) {
        unsigned long v;
        char *end;

        if (*text < '0' || *text > '7')
                return -EINVAL;
        v = strtoul(text, &end, 8);
        if (*end != '\0' || v > 07777)
                return -EINVAL;

        *ret = (mode_t)v;
        return 0;
}

static int open_output(const File *f) {
        int fd;

        if (f->standard)
                return STDOUT_FILENO;

        /* Nonblocking only for the opening: a FIFO without a reader is an error to try again (ENXIO), not
         * a reason to hang before the worker is ready. */
        fd = open(f->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, f->mode);
        if (fd < 0)
                return -errno;
        if (fcntl(fd, F_SETFL, O_APPEND) < 0) {
                int error = -errno;

                close(fd);
                return error;
        }

        return fd;
}

/* Says whether `fd` is a regular file, and its position if it is: its end. */
static int describe(int fd, bool *ret_regular, Position *ret) {
        struct statx stx;

        if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stx) < 0)
                return -errno;
        if (S_ISDIR(stx.stx_mode))
                return -EISDIR;

        *ret_regular = S_ISREG(stx.stx_mode);
        *ret = (Position){
                .device = makedev(stx.stx_dev_major, stx.stx_dev_minor),
                .inode = stx.stx_ino,
                .offset = stx.stx_size,
        };
        if (stx.stx_mask & STATX_BTIME)
                ret->born_nsec = (uint64_t)stx.stx_btime.tv_sec * 1000000000 + stx.stx_btime.tv_nsec;
        return 0;
}

static bool same_file(const Position *a, const Position *b) {
        return a->device == b->device && a->inode == b->inode && a->born_nsec == b->born_nsec;
}

/* Brings the file back to what was committed; `f->position` is its end as found. */
static int resume(SluiceContext *ctx, File *f) {
        Position saved;
        size_t n_saved;
        const void *data = sluice_position(ctx, &n_saved);

        if (n_saved != sizeof(saved))
                return 0;
        memcpy(&saved, data, sizeof(saved));

        if (!same_file(&saved, &f->position))
                sluice_log(ctx, LOG_NOTICE, "%s is another file than before; appending at its end.", f->path);
        else if (f->position.offset < saved.offset)
                sluice_log(ctx, LOG_NOTICE,
                           "%s has %" PRIu64 " bytes but had %" PRIu64 "; appending at its end.", f->path,
                           f->position.offset, saved.offset);
        else if (f->position.offset > saved.offset) {
                if (ftruncate(f->fd, (off_t)saved.offset) < 0)
                        return -errno;
                sluice_log(ctx, LOG_INFO, "Cut %" PRIu64 " bytes of unfinished jobs off %s; they run again.",
                           f->position.offset - saved.offset, f->path);
                f->position.offset = saved.offset;
        }

        return 0;
}

static void fini(void *state) {
        File *f = state;

        if (f->fd >= 0 && !f->standard)
                close(f->fd);
        free(f->buffer);
        free(f);
}

static int start(SluiceContext *ctx, File *f) {
        int error;

        f->fd = open_output(f);
        if (f->fd < 0)
                return explain(ctx, f, "open", f->fd);

        error = describe(f->fd, &f->regular, &f->position);
        if (error < 0)
                return explain(ctx, f, "use", error);
        /* Standard output is shared with others: what is beyond our last line may be theirs. */
        if (f->standard)
                f->regular = false;
        if (!f->regular)
                return 0;

        error = resume(ctx, f);
        if (error < 0)
                return explain(ctx, f, "cut back", error);

        return sluice_set_position(ctx, &f->position, sizeof(f->position));
}

static int init(SluiceContext *ctx, void **state) {
        const char *mode = sluice_setting_string(ctx, "permissions");
        int error;
        File *f;

        f = calloc(1, sizeof(*f));
        if (!f)
                return -ENOMEM;

        f->fd = -1;
        f->path = sluice_setting_string(ctx, "path");
        f->newline = sluice_setting_int(ctx, "newline");
        f->sync = sluice_setting_int(ctx, "sync");
        f->standard = strcmp(f->path, "-") == 0 || strcmp(f->path, "/dev/stdout") == 0;

        error = parse_mode(mode, &f->mode);
        if (error < 0)
                sluice_explain(ctx, "mode \"%s\" is not an octal number like 0644", mode);
        else
                error = start(ctx, f);
        if (error < 0) {
                fini(f);
                return error;
        }

        *state = f;
        return 0;
}

/* Gathers the batch in the buffer; returns 0 and the number of bytes, or -ENOMEM. */
static int gather(File *f, const SluiceJob *jobs, size_t n, size_t *ret) {
        size_t size = 0, at = 0;

        for (size_t i = 0; i < n; i++)
                size += jobs[i].size + f->newline;

        if (size > f->n_buffer) {
                uint8_t *buffer = realloc(f->buffer, size);

                if (!buffer)
                        return -ENOMEM;
                f->buffer = buffer;
                f->n_buffer = size;
        }

        for (size_t i = 0; i < n; i++) {
                if (jobs[i].size > 0)
                        memcpy(f->buffer + at, jobs[i].data, jobs[i].size);
                at += jobs[i].size;
                if (f->newline)
                        f->buffer[at++] = '\n';
        }

        *ret = size;
        return 0;
}

/* Writes all of it. -EINTR: asked to stop before anything was written. */
static int write_all(SluiceContext *ctx, const File *f, size_t size) {
        size_t done = 0;

        while (done < size) {
                ssize_t n = write(f->fd, f->buffer + done, size - done);

                if (n >= 0)
                        done += (size_t)n;
                else if (errno != EINTR)
                        return -errno;
                else if (done == 0 && sluice_stopping(ctx))
                        return -EINTR;
        }

        return 0;
}

/* Writes the batch to a regular file, all of it or nothing, and says where the file then ends. */
static int append(SluiceContext *ctx, const File *f, size_t size, uint64_t *ret_end) {
        struct stat st;
        off_t end;
        int error;

        if (fstat(f->fd, &st) < 0)
                return -errno;

        error = write_all(ctx, f, size);
        if (error == 0 && f->sync && fdatasync(f->fd) < 0)
                error = -errno;
        if (error < 0) {
                /* If this fails too, the position still says where the committed lines end, and init()
                 * cuts back. */
                (void)!ftruncate(f->fd, st.st_size);
                return error;
        }

        /* O_APPEND moved us to the end; unlike a sum it is right after copytruncate, too. */
        end = size > 0 ? lseek(f->fd, 0, SEEK_CUR) : st.st_size;
        if (end < 0)
                return -errno;

        *ret_end = (uint64_t)end;
        return 0;
}

static int run_batch(SluiceContext *ctx, void *state, const SluiceJob *jobs, size_t n) {
        File *f = state;
        size_t size;
        int error;

        error = gather(f, jobs, n, &size);
        if (error == 0)
                error = f->regular ? append(ctx, f, size, &f->position.offset) : write_all(ctx, f, size);
        if (error == -EINTR)
                return 0; /* the jobs stay unanswered */
        if (error < 0) {
                sluice_log(ctx, LOG_ERR, "Cannot write to %s: %s; its jobs wait.", f->path, strerror(-error));
                return explain(ctx, f, "write to", error);
        }

        if (f->regular)
                (void)sluice_set_position(ctx, &f->position, sizeof(f->position));
        sluice_commit(ctx, n, SLUICE_DONE);
        return 0;
}

/* After log rotation: the path may name a new file. All jobs written so far are answered, so nothing is cut. */
static int reopen(SluiceContext *ctx, void *state) {
        File *f = state;
        Position position;
        bool regular;
        int fd, error;

        if (f->standard)
                return 0;

        fd = open_output(f);
        if (fd < 0)
                return explain(ctx, f, "reopen", fd);

        error = describe(fd, &regular, &position);
        if (error < 0) {
                close(fd);
                return explain(ctx, f, "use", error);
        }

        close(f->fd);
        f->fd = fd;
        f->regular = regular;
        f->position = position;
        return regular ? sluice_set_position(ctx, &position, sizeof(position)) : 0;
}

static const SluiceSetting settings[] = {
        { "path", SLUICE_STRING, NULL, 0, 0, "file to append to; \"-\" is standard output" },
        { "newline", SLUICE_BOOL, "true", 0, 0, "end each job with a newline" },
        { "permissions", SLUICE_STRING, "0644", 0, 0,
          "permissions of a file it creates, octal, less the umask" },
        { "sync", SLUICE_BOOL, "false", 0, 0, "have each batch on the disk before its jobs are done" },
        {},
};

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "file",
        .summary = "appends every job to a file",
        .kind = SLUICE_SINK,
        .flags = SLUICE_ONE_LANE,
        .settings = settings,
        .init = init,
        .fini = fini,
        .run_batch = run_batch,
        .reopen = reopen,
};
