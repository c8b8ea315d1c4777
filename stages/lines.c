/* SPDX-License-Identifier: MIT */
/*
 * lines: makes a job of every line of a file, a pipe or standard input.
 *
 * A line is what comes before a newline; a carriage return stays, NUL bytes
 * pass, an empty line is an empty job, and a last line without newline is a
 * line. A line that no frame can carry is reported and skipped.
 *
 * A regular file keeps its bytes, so the position is simply the offset of the
 * first byte not yet emitted; it ends (SLUICE_END) at its end. A FIFO opened
 * by its path never ends: other writers may come. Any other pipe ends when
 * its last writer closes it.
 *
 * Nothing lost, nothing twice, on a pipe
 * --------------------------------------
 * read() takes bytes out of a pipe and leaves them in our hands: killed
 * right then, they are gone, or we cannot tell whether they are. So no byte
 * is ever in our hands alone. Three places hold the bytes that have left the
 * input and are not yet emitted, in this order:
 *
 *     window    bytes head..tail of sluice_memory(), a ring. Only bytes outside
 *               of the committed window are ever overwritten.
 *     carry     the pipe of sluice_carry(), which outlives us too.
 *     input     the rest.
 *
 * and the committed position {head, tail, taken, left} says how they are to
 * be read. `taken` = 0: everything in the carry pipe is new. `taken` = 1: its
 * bytes are in the window already, all but the last `left`.
 *
 *  1. taken = 0 and the carry pipe is empty: splice() from input to carry.
 *     The kernel does it under both pipes' locks: a byte is in one of the two.
 *  2. tee() the carry pipe's k bytes into a pipe of our own and read them from
 *     there into memory behind the window. The carry pipe still has them.
 *  3. produce() returns: in one step the jobs emitted, head (behind them), tail
 *     (k further) and taken = 1, left = what the carry pipe has beyond k.
 *  4. The next produce() reads from the carry pipe until `left` bytes are in it,
 *     and throws them away.
 *  5. It returns: taken = 0. Only then may 1 happen again.
 *
 * Killed                 what the successor finds, and does
 *     before or in 1     taken = 0, carry empty: begins at 1
 *     after 1, in 2      taken = 0, carry has k bytes: begins at 2. What was
 *                        copied behind the window means nothing, and is
 *                        overwritten
 *     in 3               the step is one flip: as above, or as below
 *     before or in 4     taken = 1, carry has more than `left`: does 4. Nobody
 *                        but us fills or empties it, so the difference is
 *                        exactly what is still to be thrown away, even if
 *                        step 4 was cut off half way
 *     after 4, before 5  taken = 1, carry has `left` bytes: nothing to do
 *     after 5            taken = 0: begins at 1, or, with left > 0, at 2
 *
 * The carry pipe lives as long as the supervisor. If that is killed as well,
 * between 1 and 3, the bytes of this one splice() are lost; after 3 they are
 * in memory. An input that cannot be spliced is read into memory directly,
 * and what one read() returned can be lost with us. A FIFO's unread bytes
 * live only while somebody has it open, which between two workers we have not.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <syslog.h>
#include <unistd.h>

#include <sluice/stage.h>

/* A file's buffer grows, for a line that is longer, up to what the largest frame can carry. */
#define FILE_BUFFER_BYTES (256u << 10)
#define FILE_BUFFER_MAX (1u << 20)

typedef enum InputKind {
        INPUT_NONE,
        INPUT_FILE,   /* keeps its bytes: has offsets */
        INPUT_STREAM, /* gives each byte once */
} InputKind;

typedef struct Position {
        uint8_t kind;  /* InputKind */
        uint8_t taken; /* see above */
        uint16_t reserved;
        uint32_t left;
        uint32_t head, tail; /* run on freely, modulo the size of the memory; 0 for a file */
        uint64_t device, inode;
        uint64_t born_nsec; /* time of birth of a file, 0 if unknown: inode numbers are used again */
        uint64_t offset;    /* bytes emitted; in a file, where to go on */
        uint64_t n_lines;   /* finished */
        uint64_t skipped;   /* bytes let go of a line that is too long */
} Position;

_Static_assert(sizeof(Position) <= SLUICE_POSITION_BYTES, "must fit");

typedef struct Lines {
        const char *path;
        int fd;
        bool standard; /* standard input: not ours to close */
        bool endless;  /* a FIFO opened by its path */
        bool leftover; /* `position` is about an input that is gone, see init() */
        bool direct;   /* cannot be spliced */
        int carry[2];  /* borrowed */
        int peek[2];

        Position position; /* as of the next return from produce() */
        bool changed;
        size_t n_emitted; /* in this call */

        uint8_t *ring;   /* sluice_memory(), or `buffer` for a file */
        uint32_t n_ring; /* a power of two */
        uint32_t head, tail;
        uint8_t *buffer;
        uint8_t *straight; /* n_ring bytes: a line that goes around the end of the ring */
} Lines;

static uint32_t window(const Lines *l) {
        return l->tail - l->head;
}

/* The part of the ring that begins at `at` (a head or a tail), `n` bytes at most, up to the ring's end. */
static uint8_t *ring_part(const Lines *l, uint32_t at, uint32_t n, uint32_t *ret) {
        uint32_t start = at & (l->n_ring - 1);

        *ret = n < l->n_ring - start ? n : l->n_ring - start;
        return l->ring + start;
}

static void consume(Lines *l, uint32_t n) {
        l->head += n;
        l->position.offset += n;
        l->changed = true;
}

/* Has the position saved with what was emitted; every way out of produce() but SLUICE_BROKEN goes through here. */
static SluiceProduced answer(SluiceContext *ctx, Lines *l, SluiceProduced produced) {
        if (l->changed) {
                if (l->position.kind == INPUT_STREAM) {
                        l->position.head = l->head;
                        l->position.tail = l->tail;
                }
                (void)sluice_set_position(ctx, &l->position, sizeof(l->position));
                l->changed = false;
        }

        return produced;
}

/* After an error that leaves everything as it was. What was emitted before must not be lost with it: it is
 * handed over first, and the next call meets the error again. */
static SluiceProduced broken(SluiceContext *ctx, Lines *l, const char *what, int error) {
        if (l->n_emitted > 0)
                return answer(ctx, l, SLUICE_MORE);

        sluice_explain(ctx, "cannot %s %s: %s", what, l->path, strerror(-error));
        return SLUICE_BROKEN;
}

/* The first `n` bytes of the window, in one piece. */
static const uint8_t *straighten(const Lines *l, uint32_t n) {
        uint32_t first;
        const uint8_t *p = ring_part(l, l->head, n, &first);

        if (first == n)
                return p;

        memcpy(l->straight, p, first);
        memcpy(l->straight + first, l->ring, n - first);
        return l->straight;
}

/* Emits the first `n` bytes of the window as a line, followed by `n_end` bytes of newline. Returns 0, SLUICE_FULL
 * or a negative errno. */
static int emit_line(SluiceContext *ctx, Lines *l, uint32_t n, uint32_t n_end) {
        bool too_long = l->position.skipped > 0;

        if (!too_long) {
                int r = sluice_emit(ctx, straighten(l, n), n);

                if (r != 0 && r != -EMSGSIZE)
                        return r;
                too_long = r != 0;
                l->n_emitted += !too_long;
        }
        if (too_long)
                sluice_log(ctx, LOG_ERR,
                           "Line %" PRIu64 " of %s has %" PRIu64 " bytes, more than fit; skipped.",
                           l->position.n_lines + 1, l->path, l->position.skipped + n);

        l->position.skipped = 0;
        l->position.n_lines++;
        consume(l, n + n_end);
        return 0;
}

/* Length of the first line of the window; false if its end has not come. */
static bool find_line(const Lines *l, uint32_t *ret) {
        uint32_t first;
        const uint8_t *p = ring_part(l, l->head, window(l), &first), *end;

        end = memchr(p, '\n', first);
        if (end) {
                *ret = (uint32_t)(end - p);
                return true;
        }

        end = memchr(l->ring, '\n', window(l) - first);
        if (!end)
                return false;
        *ret = first + (uint32_t)(end - l->ring);
        return true;
}

/* Emits all lines in the window. Returns 0 when only a line's beginning is left, SLUICE_FULL or a negative errno. */
static int emit_lines(SluiceContext *ctx, Lines *l) {
        uint32_t n;

        while (find_line(l, &n)) {
                int r = emit_line(ctx, l, n, 1);

                if (r != 0)
                        return r;
        }

        return 0;
}

/* At the end of the input: what is left is a line as well. */
static int emit_rest(SluiceContext *ctx, Lines *l) {
        if (window(l) == 0 && l->position.skipped == 0)
                return 0;

        return emit_line(ctx, l, window(l), 0);
}

static void skip_window(Lines *l) {
        l->position.skipped += window(l);
        consume(l, window(l));
}

static void close_input(Lines *l) {
        if (l->fd >= 0 && !l->standard)
                close(l->fd);
        l->fd = -1;
}

/* ---- which input ---- */

static int describe(int fd, bool standard, Position *ret, uint64_t *ret_size, bool *ret_endless) {
        struct statx stx;
        struct statfs fs;

        if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stx) < 0)
                return -errno;
        if (S_ISDIR(stx.stx_mode))
                return -EISDIR;

        *ret = (Position){
                .kind = S_ISREG(stx.stx_mode) || S_ISBLK(stx.stx_mode) ? INPUT_FILE : INPUT_STREAM,
                .device = makedev(stx.stx_dev_major, stx.stx_dev_minor),
                .inode = stx.stx_ino,
        };
        *ret_size = S_ISREG(stx.stx_mode) ? stx.stx_size : UINT64_MAX;
        if (ret->kind == INPUT_FILE && (stx.stx_mask & STATX_BTIME))
                ret->born_nsec = (uint64_t)stx.stx_btime.tv_sec * 1000000000 + stx.stx_btime.tv_nsec;

        /* A pipe without a name can be opened by path, too (/dev/stdin, /dev/fd/3), but gets no new writers. */
        *ret_endless =
                !standard && S_ISFIFO(stx.stx_mode) && !(fstatfs(fd, &fs) == 0 && fs.f_type == PIPEFS_MAGIC);
        return 0;
}

static bool same_input(const Position *a, const Position *b) {
        return a->kind == b->kind && a->device == b->device && a->inode == b->inode &&
               a->born_nsec == b->born_nsec;
}

/* Makes an empty ring for this kind of input. On failure everything is as it was. */
static int use_ring(SluiceContext *ctx, Lines *l, InputKind kind, uint32_t n_file) {
        uint32_t n = kind == INPUT_FILE ? n_file : SLUICE_MEMORY_BYTES;
        uint8_t *straight = malloc(n), *buffer = kind == INPUT_FILE ? malloc(n) : NULL;
        uint8_t *ring = kind == INPUT_FILE ? buffer : sluice_memory(ctx);

        if (!straight || !ring) {
                free(straight);
                free(buffer);
                return -ENOMEM;
        }

        free(l->straight);
        free(l->buffer);
        l->straight = straight;
        l->buffer = buffer;
        l->ring = ring;
        l->n_ring = n;
        l->head = l->tail = 0;
        return 0;
}

/* Opens the input and says what it is. A FIFO is opened without waiting for a writer. */
static int open_input(Lines *l, Position *ret, uint64_t *ret_size) {
        int fd = l->standard ? STDIN_FILENO : open(l->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        bool endless;
        int error;

        if (fd < 0)
                return -errno;
        error = describe(fd, l->standard, ret, ret_size, &endless);
        if (error < 0) {
                if (!l->standard)
                        close(fd);
                return error;
        }

        close_input(l); /* only now: a FIFO keeps its bytes while anybody has it open */
        l->fd = fd;
        l->endless = endless;
        l->direct = false;
        return 0;
}

/* Begins to read `input`, just opened, from where it stands. */
static int begin(SluiceContext *ctx, Lines *l, const Position *input) {
        int error = use_ring(ctx, l, input->kind, FILE_BUFFER_BYTES);

        if (error < 0)
                return error;

        l->position = *input;
        l->changed = true;
        if (input->kind == INPUT_FILE && l->standard) {
                off_t offset = lseek(l->fd, 0, SEEK_CUR);

                if (offset > 0)
                        l->position.offset = (uint64_t)offset;
        }
        return 0;
}

static int resume(SluiceContext *ctx, Lines *l, const Position *old) {
        int error = use_ring(ctx, l, old->kind, FILE_BUFFER_BYTES);

        if (error < 0)
                return error;

        l->position = *old;
        l->head = old->head;
        l->tail = old->tail;
        return 0;
}

static int carried(const Lines *l) {
        int n;

        if (l->carry[0] < 0)
                return 0;
        return ioctl(l->carry[0], FIONREAD, &n) < 0 ? -errno : n;
}

static int choose_input(SluiceContext *ctx, Lines *l) {
        size_t n_saved;
        const void *data = sluice_position(ctx, &n_saved);
        Position old = {}, input;
        uint64_t size;
        int error;

        error = open_input(l, &input, &size);
        if (error < 0) {
                sluice_explain(ctx, "cannot open %s: %s", l->path, strerror(-error));
                return error;
        }

        if (n_saved == sizeof(old))
                memcpy(&old, data, sizeof(old));

        if (same_input(&old, &input) && old.offset <= size)
                return resume(ctx, l, &old);

        /* Bytes already taken from a pipe are in nobody's hands but ours: finish them before the new input. */
        if (old.kind == INPUT_STREAM && (old.head != old.tail || old.skipped > 0 || carried(l) > 0)) {
                l->leftover = true;
                return resume(ctx, l, &old);
        }

        if (same_input(&old, &input))
                sluice_log(ctx, LOG_NOTICE, "%s is shorter than it was; starting at its beginning.", l->path);
        else if (old.kind == INPUT_FILE)
                sluice_log(ctx, LOG_NOTICE, "%s is another file than before; starting at its beginning.",
                           l->path);
        return begin(ctx, l, &input);
}

static void fini(void *state) {
        Lines *l = state;

        close_input(l);
        if (l->peek[0] >= 0) {
                close(l->peek[0]);
                close(l->peek[1]);
        }
        free(l->buffer);
        free(l->straight);
        free(l);
}

static int init(SluiceContext *ctx, void **state) {
        Lines *l;
        int error;

        l = calloc(1, sizeof(*l));
        if (!l)
                return -ENOMEM;

        l->fd = l->peek[0] = l->peek[1] = -1;
        l->path = sluice_setting_string(ctx, "path");
        l->standard = strcmp(l->path, "-") == 0;
        if (l->standard)
                l->path = "standard input";

        if (sluice_carry(ctx, l->carry) < 0)
                l->carry[0] = l->carry[1] = -1;

        error = pipe2(l->peek, O_CLOEXEC) < 0 ? -errno : choose_input(ctx, l);
        if (error < 0) {
                fini(l);
                return error;
        }

        /* True at once: whatever is found in the carry pipe from now on belongs to this input. */
        (void)answer(ctx, l, SLUICE_MORE);
        *state = l;
        return 0;
}

/* ---- regular files ---- */

/* Reads into the window's free part; returns bytes, 0 at the end, or a negative errno. */
static ssize_t fill_file(Lines *l) {
        uint32_t n;
        uint8_t *p = ring_part(l, l->tail, l->n_ring - window(l), &n);
        ssize_t got = pread(l->fd, p, n, (off_t)(l->position.offset + window(l)));

        if (got < 0)
                return -errno;
        l->tail += (uint32_t)got;
        return got;
}

/* The window is full of one line: gets a larger one, or lets go of the line. */
static int make_room(SluiceContext *ctx, Lines *l) {
        if (l->position.skipped == 0 && l->position.kind == INPUT_FILE && l->n_ring < FILE_BUFFER_MAX)
                return use_ring(ctx, l, INPUT_FILE, 2 * l->n_ring); /* empty: the file is read again */

        skip_window(l);
        return 0;
}

static SluiceProduced produce_file(SluiceContext *ctx, Lines *l) {
        for (;;) {
                ssize_t n;
                int r = emit_lines(ctx, l);

                if (r == 0 && window(l) == l->n_ring)
                        r = make_room(ctx, l);
                if (r < 0)
                        return broken(ctx, l, "hand on a line of", r);
                if (r == SLUICE_FULL || sluice_stopping(ctx))
                        return answer(ctx, l, SLUICE_MORE);

                n = fill_file(l);
                if (n == -EINTR)
                        return answer(ctx, l, SLUICE_MORE);
                if (n < 0)
                        return broken(ctx, l, "read", (int)n);
                if (n > 0)
                        continue;

                r = emit_rest(ctx, l);
                if (r < 0)
                        return broken(ctx, l, "hand on a line of", r);
                return answer(ctx, l, r == SLUICE_FULL ? SLUICE_MORE : SLUICE_END);
        }
}

/* ---- pipes and the like ---- */

/* Step 4 of the head comment. */
static int discard_taken(SluiceContext *ctx, Lines *l) {
        int n = carried(l);

        if (n < 0)
                return n;
        if ((uint32_t)n < l->position.left)
                sluice_log(ctx, LOG_ERR, "%" PRIu32 " bytes of %s were lost with the supervisor.",
                           l->position.left - (uint32_t)n, l->path);

        for (uint32_t rest = (uint32_t)n; rest > l->position.left;) {
                uint32_t most = rest - l->position.left;
                ssize_t got = read(l->carry[0], l->straight, most < l->n_ring ? most : l->n_ring);

                if (got < 0)
                        return -errno;
                rest -= (uint32_t)got;
        }

        l->position.taken = 0;
        l->position.left = 0;
        l->changed = true;
        return 0;
}

/* Reads exactly `n` bytes, which are there, into the ring behind the window. */
static int read_behind(Lines *l, int fd, uint32_t n) {
        uint32_t done = 0;

        while (done < n) {
                uint32_t most;
                uint8_t *p = ring_part(l, l->tail + done, n - done, &most);
                ssize_t got = read(fd, p, most);

                if (got <= 0)
                        return got < 0 ? -errno : -EIO;
                done += (uint32_t)got;
        }

        l->tail += n;
        return 0;
}

/* Step 2: of the carry pipe's `n` bytes, what fits. */
static int copy_carried(Lines *l, uint32_t n) {
        uint32_t room = l->n_ring - window(l);
        ssize_t k = tee(l->carry[0], l->peek[1], n < room ? n : room, SPLICE_F_NONBLOCK);
        int error;

        if (k <= 0)
                return k < 0 ? -errno : -EIO;
        error = read_behind(l, l->peek[0], (uint32_t)k);
        if (error < 0)
                return error;

        l->position.taken = 1;
        l->position.left = n - (uint32_t)k;
        l->changed = true;
        return 0;
}

static ssize_t fill_direct(SluiceContext *ctx, Lines *l) {
        uint32_t n;
        uint8_t *p = ring_part(l, l->tail, l->n_ring - window(l), &n);
        ssize_t got = read(l->fd, p, n);

        if (got <= 0)
                return got < 0 ? -errno : 0;

        if (!l->direct)
                sluice_log(ctx, LOG_NOTICE,
                           "%s cannot be spliced: what was read last is lost if this worker is killed.",
                           l->path);
        l->direct = true;
        l->tail += (uint32_t)got;
        l->changed = true;
        return got;
}

/* Steps 1 and 2. Returns > 0, 0 at the end, -EINVAL if the input cannot be spliced, or another negative errno. */
static ssize_t fill_spliced(Lines *l) {
        ssize_t n = carried(l); /* left by a predecessor, or by a tee() that could not take all */

        if (n == 0 && !l->leftover) {
                n = splice(l->fd, NULL, l->carry[1], NULL, l->n_ring - window(l),
                           SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
                if (n < 0)
                        return -errno;
        }
        if (n <= 0)
                return n;

        int error = copy_carried(l, (uint32_t)n);

        return error < 0 ? error : n;
}

/* Gets bytes from the input to the window. Returns > 0, 0 at the end, or a negative errno. */
static ssize_t fill_stream(SluiceContext *ctx, Lines *l) {
        if (l->carry[0] >= 0 && !l->direct) {
                ssize_t n = fill_spliced(l);

                if (n != -EINVAL)
                        return n;
        }

        return l->leftover ? 0 : fill_direct(ctx, l);
}

/* Waits until there is something to read, or a signal comes; what it was shows when we try. */
static void wait_readable(const Lines *l) {
        struct pollfd p = { .fd = l->fd, .events = POLLIN };

        (void)!poll(&p, 1, -1);
}

/* A FIFO whose writers have gone: opened anew it waits for the next ones instead of reporting the end again. */
static int reopen_fifo(SluiceContext *ctx, Lines *l) {
        Position input;
        uint64_t size;
        int error = open_input(l, &input, &size);

        if (error < 0)
                return error;
        return same_input(&input, &l->position) ? 0 : begin(ctx, l, &input);
}

static SluiceProduced at_end(SluiceContext *ctx, Lines *l) {
        int r = emit_rest(ctx, l);

        if (r < 0)
                return broken(ctx, l, "hand on a line of", r);
        if (r == SLUICE_FULL)
                return answer(ctx, l, SLUICE_MORE);

        if (l->leftover) {
                Position input;
                uint64_t size;

                r = open_input(l, &input, &size);
                if (r == 0)
                        r = begin(ctx, l, &input);
                if (r < 0)
                        return broken(ctx, l, "open", r);
                l->leftover = false;
                return answer(ctx, l, SLUICE_MORE);
        }
        if (!l->endless)
                return answer(ctx, l, SLUICE_END);

        r = reopen_fifo(ctx, l);
        if (r < 0)
                return broken(ctx, l, "reopen", r);
        if (!l->changed && l->position.kind == INPUT_STREAM)
                wait_readable(l);
        return answer(ctx, l, SLUICE_MORE);
}

static SluiceProduced produce_stream(SluiceContext *ctx, Lines *l) {
        ssize_t n;
        int r = l->position.taken ? discard_taken(ctx, l) : 0;

        if (r < 0)
                return broken(ctx, l, "empty the carry pipe of", r);

        r = emit_lines(ctx, l);
        if (r < 0)
                return broken(ctx, l, "hand on a line of", r);
        if (r == 0 && window(l) == l->n_ring)
                skip_window(l);
        /* Neither jobs nor a change of position are kept waiting for input; and a changed position
         * must be true before the carry pipe is filled again. */
        if (r == SLUICE_FULL || l->changed || sluice_stopping(ctx))
                return answer(ctx, l, SLUICE_MORE);

        n = fill_stream(ctx, l);
        if (n == 0)
                return at_end(ctx, l);
        if (n == -EAGAIN)
                wait_readable(l);
        if (n == -EAGAIN || n == -EINTR)
                return answer(ctx, l, SLUICE_MORE);
        if (n < 0)
                return broken(ctx, l, "read", (int)n);

        r = emit_lines(ctx, l);
        if (r < 0)
                return broken(ctx, l, "hand on a line of", r);
        return answer(ctx, l, SLUICE_MORE);
}

static SluiceProduced produce(SluiceContext *ctx, void *state) {
        Lines *l = state;

        l->n_emitted = 0;
        return l->position.kind == INPUT_FILE ? produce_file(ctx, l) : produce_stream(ctx, l);
}

static const SluiceSetting settings[] = {
        { "path", SLUICE_STRING, "-", 0, 0, "file or FIFO to read; \"-\" is standard input" },
        {},
};

SLUICE_STAGE_EXPORT const SluiceStage sluice_stage = {
        .abi = SLUICE_STAGE_ABI,
        .name = "lines",
        .summary = "makes a job of every line of a file, a pipe or standard input",
        .kind = SLUICE_SOURCE,
        .flags = SLUICE_ONE_LANE,
        .settings = settings,
        .init = init,
        .fini = fini,
        .produce = produce,
};
