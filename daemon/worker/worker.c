#include "worker/worker.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "lane/lane.h"
#include "lane/memory.h"
#include "queue/queue.h"
#include "worker/handler.h"
#include "worker/worker_proto.h"

/* Jobs are run in strides of about this long between two looks at the clock. */
#define STRIDE_NSEC (100 * NSEC_PER_USEC)
#define STRIDE_MAX 256

/* What is given away must be worth waking another core for. */
#define SHARE_WORTH_NSEC (100 * NSEC_PER_USEC)

/* Lanes that were just given something still look idle until they run: two wake-ups of a core. */
#define SHARE_PAUSE_NSEC (100 * NSEC_PER_USEC)

/* Until a job has been timed, one is all a lane keeps. */
#define SERVICE_UNKNOWN_NSEC (10 * NSEC_PER_MSEC)

#define GARBAGE_LOG_NSEC (10 * NSEC_PER_SEC)

static volatile bool worker_terminated;

typedef struct Worker {
        const WorkerSpec *spec;
        Memory record, input_board, output_boards[WORKER_OUTPUTS_MAX];
        mqd_t input, outputs[WORKER_OUTPUTS_MAX];
        int lock_fd;
        Lane lane;
        Handler handler;

        uint64_t service_nsec;  /* running mean of what a job takes; 0: not known */
        uint64_t pending_since; /* when the output frame got its first job; 0: it is empty */
        uint64_t share_not_before;
        uint64_t garbage_not_before;
        uint64_t n_garbage_unsaid;
} Worker;

/* What the loop does next. */
typedef enum Turn {
        TURN_AGAIN,
        TURN_EXIT, /* orderly */
        TURN_FAIL,
} Turn;

static void on_signal(int sig) {
        if (sig == SIGTERM)
                worker_terminated = true;
}

/* No SA_RESTART: a signal is how a blocked worker is told to look at its control word. */
static void worker_catch_signals(void) {
        struct sigaction interrupt = { .sa_handler = on_signal };
        struct sigaction ignore = { .sa_handler = SIG_IGN };
        sigset_t none;

        (void)sigaction(WORKER_SIGNAL_WAKE, &interrupt, NULL);
        (void)sigaction(SIGTERM, &interrupt, NULL);
        (void)sigaction(SIGHUP, &interrupt, NULL);
        /* A terminal's Ctrl-C goes to the whole group; the supervisor decides what it means. */
        (void)sigaction(SIGINT, &ignore, NULL);
        (void)sigaction(SIGQUIT, &ignore, NULL);
        (void)sigaction(SIGPIPE, &ignore, NULL);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static uint32_t worker_control(const Worker *w) {
        return atomic_load_explicit(&w->lane.record->control, memory_order_acquire);
}

static bool worker_parking(const Worker *w) {
        return worker_terminated || (worker_control(w) & LANE_CONTROL_PARK);
}

/* ---- sending ---- */

/* Finishes the open intent. Returns 0; -EINTR if it is to stop first; another negative errno if it is broken. */
static int worker_settle(Worker *w) {
        LaneFrame frame;
        int r;

        for (;;) {
                switch (lane_intent(&w->lane, &frame)) {
                case LANE_SEND_NOTHING:
                        return 0;
                case LANE_SEND_MESSAGE:
                        r = queue_send(w->outputs[frame.destination], frame.data, frame.n_data,
                                       frame.priority);
                        if (r == -EINTR && !worker_parking(w))
                                continue; /* nothing was sent, and nobody wants us to stop */
                        if (r < 0)
                                return r;
                        lane_point(LANE_SEND_CALL);
                        lane_send_end(&w->lane);
                        return 0;
                case LANE_SEND_TRY:
                        r = queue_try_send(w->input, frame.data, frame.n_data, frame.priority);
                        if (r < 0 && r != -EINTR)
                                return r;
                        if (r != 0) {
                                lane_share_refused(&w->lane);
                                return 0;
                        }
                        lane_point(LANE_SHARE_CALL);
                        lane_send_end(&w->lane);
                        return 0;
                }
        }
}

/* Sends all that is committed. */
static int worker_flush(Worker *w) {
        int r;

        for (uint32_t i = 0; i < w->lane.n_outs; i++) {
                while (lane_output_pending(&w->lane, i)) {
                        r = lane_send_begin(&w->lane, i);
                        if (r < 0)
                                return r;
                        r = worker_settle(w);
                        if (r < 0)
                                return r;
                }
        }
        w->pending_since = 0;
        return 0;
}

/* A failed send or receive: stop as asked, or say what broke. */
static Turn worker_broken(Worker *w, int r, const char *what) {
        if (r == -EINTR && worker_parking(w))
                return TURN_EXIT;
        if (r == -EINTR)
                return TURN_AGAIN;
        if (r == -EBUSY)
                log_error("Cannot %s: no ticket is free, so frames were taken off the queue by somebody else",
                          what);
        else
                log_error("Cannot %s: %s", what, strerror(-r));
        return TURN_FAIL;
}

static Turn worker_flush_turn(Worker *w) {
        int r = worker_flush(w);

        return r < 0 ? worker_broken(w, r, "send to the next stage") : TURN_AGAIN;
}

/* ---- sharing ---- */

/*
 * Gives one piece to each idle lane, so that k + 1 lanes end at about the
 * same time, but no piece that is not worth its wake-up. Pieces are taken from
 * the end; what is kept is never less than the job at the cursor.
 */
static int worker_share(Worker *w, uint64_t now) {
        const LaneProgress *p = w->lane.now;
        uint32_t remaining = p->end - p->cursor, idle, pieces, piece;
        uint64_t service = w->service_nsec ?: SERVICE_UNKNOWN_NSEC, worth;

        /* A lane that is told to stop keeps what it has: there may be nobody left to take it. */
        if (remaining < 2 || now < w->share_not_before || worker_control(w) != 0 ||
            atomic_load_explicit(&w->lane.record->generation, memory_order_relaxed) != 0)
                return 0;
        if (remaining / 2 * service <= SHARE_WORTH_NSEC)
                return 0;
        idle = board_count_idle(w->lane.board, w->lane.record->lane);
        if (idle == 0)
                return 0;

        worth = (uint64_t)remaining * service * idle / (idle + 1);
        pieces = (uint32_t)MIN((uint64_t)idle, MAX(worth / SHARE_WORTH_NSEC, UINT64_C(1)));
        piece = MAX(remaining / (pieces + 1), 1u);
        for (uint32_t i = 0; i < pieces; i++) {
                uint32_t end = w->lane.now->end;
                int r;

                if (end - w->lane.now->cursor <= piece)
                        break;
                r = lane_share_begin(&w->lane, end - piece);
                if (r == 0)
                        r = worker_settle(w);
                if (r < 0)
                        return r;
                if (w->lane.now->end == end)
                        break; /* the queue is full: there is work for the idle already */
        }
        w->share_not_before = clock_monotonic_nsec() + SHARE_PAUSE_NSEC;
        return 0;
}

/* ---- running ---- */

static void worker_learn(Worker *w, uint64_t elapsed, uint32_t n) {
        uint64_t each = elapsed / n;

        /* A slow job counts at once, so that the rest of the frame can go to others; fast ones win back trust. */
        if (w->service_nsec == 0 || each > 4 * w->service_nsec)
                w->service_nsec = each + 1;
        else
                w->service_nsec = (w->service_nsec * 7 + each) / 8 + 1;
}

static uint32_t worker_stride(const Worker *w) {
        uint64_t n;

        if (w->service_nsec == 0)
                return 1;
        n = STRIDE_NSEC / w->service_nsec;
        return n < 1 ? 1 : n > STRIDE_MAX ? STRIDE_MAX : (uint32_t)n;
}

static void worker_sleep(uint64_t usec) {
        struct timespec ts = {
                .tv_sec = (time_t)(usec / USEC_PER_SEC),
                .tv_nsec = (long)(usec % USEC_PER_SEC * NSEC_PER_USEC),
        };

        (void)nanosleep(&ts, NULL); /* a signal ends it, and the loop looks at the control word */
}

static Turn worker_run(Worker *w) {
        uint64_t start, now;
        HandlerState state;
        uint32_t n;
        int r;

        if (w->service_nsec == 0) {
                r = worker_share(w, clock_monotonic_nsec());
                if (r < 0)
                        return worker_broken(w, r, "share jobs");
        }

        start = clock_monotonic_nsec();
        if (w->pending_since == 0)
                w->pending_since = start;
        state = handler_run(&w->handler, worker_stride(w), &n);
        now = clock_monotonic_nsec();
        if (n > 0)
                worker_learn(w, now - start, n);

        switch (state) {
        case HANDLER_BROKEN:
                return TURN_FAIL;
        case HANDLER_FLUSH:
                return worker_flush_turn(w);
        case HANDLER_WAIT:
                if (worker_flush_turn(w) == TURN_AGAIN && !worker_parking(w))
                        worker_sleep(w->handler.retry_usec);
                return TURN_AGAIN;
        default:
                break;
        }

        if (w->lane.n_outs > 0) {
                if (!lane_output_pending(&w->lane, 0))
                        w->pending_since = 0;
                else if (now - w->pending_since > w->spec->linger_usec * NSEC_PER_USEC) {
                        Turn turn = worker_flush_turn(w);

                        if (turn != TURN_AGAIN)
                                return turn;
                }
        }
        r = worker_share(w, now);
        return r < 0 ? worker_broken(w, r, "share jobs") : TURN_AGAIN;
}

/* ---- receiving ---- */

static void worker_log_garbage(Worker *w) {
        uint64_t now = clock_monotonic_nsec();

        w->n_garbage_unsaid++;
        if (now < w->garbage_not_before)
                return;
        log_warning("Refused %" PRIu64 " message%s that %s neither a job nor from this pipeline",
                    w->n_garbage_unsaid, w->n_garbage_unsaid == 1 ? "" : "s",
                    w->n_garbage_unsaid == 1 ? "is" : "are");
        w->n_garbage_unsaid = 0;
        w->garbage_not_before = now + GARBAGE_LOG_NSEC;
}

/* Looks at what is in the buffer. True if there is something to do now. */
static bool worker_take(Worker *w) {
        switch (lane_receive_end(&w->lane)) {
        case LANE_MESSAGE_NONE:
                return false;
        case LANE_MESSAGE_GARBAGE:
                worker_log_garbage(w);
                return true;
        case LANE_MESSAGE_DUPLICATE:
                log_debug("Dropped a copy of a frame that was taken before");
                return true;
        case LANE_MESSAGE_STALE:
                log_debug("Dropped a sentinel of another drain");
                return true;
        default:
                return true;
        }
}

static bool worker_input_was_small(const Worker *w) {
        return w->lane.header.length < w->lane.record->input_bytes / 4;
}

/* A try is enough as long as frames keep coming; only then is it worth holding results back. */
static Turn worker_receive(Worker *w) {
        ssize_t n;
        int r;

        if (!worker_input_was_small(w)) {
                lane_receive_begin(&w->lane);
                n = queue_try_receive(w->input, w->lane.input, w->lane.record->input_bytes,
                                      &w->lane.record->priority);
                if (n >= 0)
                        return TURN_AGAIN; /* the loop takes it from the record */
                if (n != -EAGAIN && n != -EINTR)
                        return worker_broken(w, (int)n, "receive");
        }

        r = worker_flush(w);
        if (r < 0)
                return worker_broken(w, r, "send to the next stage");

        lane_receive_begin(&w->lane);
        if (worker_control(w) & LANE_CONTROL_FINISH) {
                n = queue_try_receive(w->input, w->lane.input, w->lane.record->input_bytes,
                                      &w->lane.record->priority);
                if (n == -EAGAIN) {
                        lane_finish(&w->lane, atomic_load(&w->lane.record->generation));
                        return TURN_EXIT;
                }
        } else {
                board_set_idle(w->lane.board, w->lane.record->lane, true);
                n = queue_receive(w->input, w->lane.input, w->lane.record->input_bytes,
                                  &w->lane.record->priority);
                board_set_idle(w->lane.board, w->lane.record->lane, false);
        }
        return n < 0 ? worker_broken(w, (int)n, "receive") : TURN_AGAIN;
}

static Turn worker_end(Worker *w, uint32_t generation) {
        int r = worker_flush(w);

        if (r < 0)
                return worker_broken(w, r, "send to the next stage");
        lane_finish(&w->lane, generation);
        return TURN_EXIT;
}

/* ---- the loop ---- */

static Turn worker_turn_stage(Worker *w) {
        Lane *lane = &w->lane;

        if (lane->now->input == LANE_RECEIVING && worker_take(w))
                return TURN_AGAIN;
        if (lane->now->input == LANE_SENTINEL)
                return worker_end(w, (uint32_t)lane->header.generation);
        if (lane_has_job(lane)) {
                FrameHeader pending;

                /* Jobs of another priority do not travel in one frame with those that wait. */
                if (lane->n_outs > 0 && lane->now->cursor == 0 && lane->now->first.count > 0) {
                        memcpy(&pending, lane->outs[0].buffer, sizeof(pending));
                        if (pending.priority != MAX(lane->record->priority, 1u))
                                return worker_flush_turn(w);
                }
                return worker_run(w);
        }
        if (worker_control(w) & LANE_CONTROL_RETIRE)
                return worker_end(w, atomic_load(&lane->record->generation));
        return worker_receive(w);
}

static Turn worker_turn_source(Worker *w) {
        HandlerState state;

        if (w->lane.now->finished == LANE_SOURCE_ENDED)
                return worker_end(w, LANE_SOURCE_ENDED);
        if (worker_control(w) & (LANE_CONTROL_FINISH | LANE_CONTROL_RETIRE))
                return worker_end(w, atomic_load(&w->lane.record->generation));

        state = handler_produce(&w->handler);
        if (state == HANDLER_BROKEN)
                return TURN_FAIL;
        if (state == HANDLER_END)
                return worker_end(w, LANE_SOURCE_ENDED);
        return worker_flush_turn(w);
}

static int worker_loop(Worker *w) {
        for (;;) {
                Turn turn = TURN_AGAIN;
                int r;

                if (worker_parking(w))
                        return WORKER_EXIT_DONE;
                if (atomic_load_explicit(&w->lane.record->control, memory_order_relaxed) &
                    LANE_CONTROL_REOPEN) {
                        atomic_fetch_and(&w->lane.record->control, ~(uint32_t)LANE_CONTROL_REOPEN);
                        if (handler_reopen(&w->handler) < 0)
                                return WORKER_EXIT_FAILED;
                }

                r = worker_settle(w);
                if (r < 0)
                        turn = worker_broken(w, r, "send");
                else if (lane_output_pending(&w->lane, 0) &&
                         w->lane.now->first.spill_end > w->lane.now->first.spill_begin)
                        turn = worker_flush_turn(w); /* the spill has room for one job */
                else
                        turn = w->lane.board ? worker_turn_stage(w) : worker_turn_source(w);

                if (turn == TURN_EXIT)
                        return WORKER_EXIT_DONE;
                if (turn == TURN_FAIL)
                        return WORKER_EXIT_FAILED;
        }
}

/* ---- starting ---- */

/* The lock is on an open file description of our own: one inherited would be shared with whoever else has it. */
static int worker_lock_record(Worker *w) {
        char path[64];

        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", WORKER_FD_RECORD);
        w->lock_fd = open(path, O_RDWR | O_CLOEXEC);
        if (w->lock_fd < 0)
                return -errno;
        while (flock(w->lock_fd, LOCK_EX) < 0)
                if (errno != EINTR || worker_terminated)
                        return -errno;
        return 0;
}

static int worker_map_spec(Worker *w) {
        Memory spec = MEMORY_NULL;
        int r;

        r = memory_adopt(WORKER_FD_SPEC, &spec);
        if (r < 0)
                return r;
        w->spec = (const WorkerSpec *)spec.data;
        if (spec.n_data < sizeof(WorkerSpec) || w->spec->magic != WORKER_SPEC_MAGIC ||
            w->spec->n_bytes > spec.n_data || w->spec->n_outputs > WORKER_OUTPUTS_MAX)
                return -EBADMSG;
        return 0;
}

static void worker_set_cloexec(const Worker *w) {
        int last = WORKER_FD_OUTPUTS + 2 * (int)w->spec->n_outputs;

        for (int fd = WORKER_FD_SPEC; fd < last; fd++)
                (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

static int worker_open(Worker *w) {
        LaneBoards boards = {};
        int carry[2] = { -1, -1 };
        LaneRecord *record;
        int r;

        worker_set_cloexec(w);
        r = memory_adopt(WORKER_FD_RECORD, &w->record);
        if (r < 0)
                return r;
        record = (LaneRecord *)w->record.data;
        if (!lane_record_is_valid(record, w->record.n_data) || record->n_outputs != w->spec->n_outputs)
                return -EBADMSG;

        r = worker_lock_record(w);
        if (r < 0)
                return r;
        r = memory_populate(&w->record, record->n_populate);
        if (r < 0)
                return r;

        if (record->input_bytes > 0) {
                w->input = WORKER_FD_INPUT;
                r = memory_adopt(WORKER_FD_BOARD, &w->input_board);
                if (r < 0)
                        return r;
                boards.input = (Board *)w->input_board.data;
        } else {
                carry[0] = WORKER_FD_INPUT;
                carry[1] = WORKER_FD_BOARD;
        }
        for (uint32_t i = 0; i < w->spec->n_outputs; i++) {
                w->outputs[i] = WORKER_FD_OUTPUTS + 2 * (int)i;
                r = memory_adopt(w->outputs[i] + 1, &w->output_boards[i]);
                if (r < 0)
                        return r;
                boards.outputs[i] = (Board *)w->output_boards[i].data;
                boards.groups[i] = w->spec->groups[i];
        }

        lane_attach(&w->lane, record, &boards);
        return handler_open(&w->handler, &w->lane, w->spec, carry, &worker_terminated);
}

int worker_main(void) {
        static Worker w = { .record = { .fd = -1 }, .input_board = { .fd = -1 }, .lock_fd = -1 };
        static const char ready = WORKER_REPORT_READY;
        int r, code;

        worker_catch_signals();
        r = worker_map_spec(&w);
        if (r < 0) {
                (void)fprintf(stderr, "sluice-worker is started by sluiced; see sluice-worker --help\n");
                return WORKER_EXIT_USAGE;
        }

        log_set_level((int)w.spec->log_level);
        log_open(&(LogContext){
                .program = "sluice-worker",
                .pipeline = w.spec->pipeline,
                .stage = w.spec->stage,
                .lane = -1,
        });

        r = worker_open(&w);
        if (r < 0) {
                log_error("Cannot take up the lane: %s", strerror(-r));
                return WORKER_EXIT_FAILED;
        }
        if (write(WORKER_FD_STATUS, &ready, 1) != 1)
                log_debug("The supervisor does not listen: %s", strerror(errno));

        code = worker_loop(&w);
        if (code == WORKER_EXIT_DONE)
                handler_close(&w.handler);
        return code;
}
