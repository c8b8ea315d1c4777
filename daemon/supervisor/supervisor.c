#include "supervisor/supervisor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"
#include "supervisor/slot.h"
#include "supervisor/spawn.h"
#include "worker/worker_proto.h"

/* How often a worker that has been asked to stop is woken again: between its look at the control word and its
 * blocking call a signal is lost. */
#define WAKE_USEC (20 * USEC_PER_MSEC)

/* A draining stage is looked at this often, at first and at last. */
#define SETTLE_MIN_USEC 100
#define SETTLE_AGAIN_USEC 300
#define SETTLE_MAX_USEC (10 * USEC_PER_MSEC)

/* So many workers in a row end by themselves before they are ready, and a run is given up; more if they were killed,
 * which says less about the stage. */
#define FAIL_FAST_AFTER 3
#define FAIL_FAST_KILLED_AFTER 8

typedef struct Slot {
        Supervisor *supervisor;
        size_t stage;
        size_t lane;           /* index in the instance's stage */
        const SlotState state; /* slot_handle() is the only place that writes it */
        pid_t pid;
        int pidfd;
        int status_fd;
        sd_event_source *exit_source, *status_source, *delay_source;
        bool was_ready;            /* this process reported */
        bool settled;              /* has once been ready, or failed */
        unsigned n_failures;       /* in a row */
        unsigned n_start_failures; /* of them, before it was ready and not killed by somebody */
        uint64_t n_done;           /* when it was started */
} Slot;

typedef enum StageDrain {
        DRAIN_NOT,
        DRAIN_SETTLING, /* nothing comes in any more; idle lanes stay to share in what is left */
        DRAIN_WAITING,  /* sentinels are being sent, lanes are finishing */
        DRAIN_DONE,
} StageDrain;

typedef struct StageRun {
        Slot *slots;
        size_t n_slots;
        int spec_fd;
        int carry[2]; /* sources */
        bool degraded;
        StageDrain drain;
        uint32_t n_sentinels; /* still to be sent */
        sd_event_source *room_source, *grace_source, *settle_source;
        uint64_t settle_usec; /* until the next look */
        bool settled;         /* one more look that finds nothing is enough */
} StageRun;

typedef enum Phase {
        PHASE_RUN,
        PHASE_DRAIN,
        PHASE_PARK,
        PHASE_ENDED,
} Phase;

struct Supervisor {
        Instance *instance;
        sd_event *event;
        SupervisorOptions options;
        char *worker_program;
        StageRun *stages;
        size_t n_stages;
        Phase phase;
        bool ready;
        bool failed;
        uint32_t generation;
        sd_event_source *wake_source;
};

static void supervisor_advance(Supervisor *s);
static void slot_start(Slot *slot);

static const Stage *slot_stage(const Slot *slot) {
        return &slot->supervisor->instance->pipeline->stages[slot->stage];
}

static LaneRecord *slot_record(const Slot *slot) {
        return instance_record(&slot->supervisor->instance->stages[slot->stage], slot->lane);
}

static StageRun *slot_run(const Slot *slot) {
        return &slot->supervisor->stages[slot->stage];
}

static bool slot_has_process(const Slot *slot) {
        return slot->state == SLOT_STARTING || slot->state == SLOT_RUNNING;
}

/* Lanes beyond the configured ones only finish what they hold. */
static bool slot_is_retiring(const Slot *slot) {
        return slot->lane >= slot->supervisor->instance->stages[slot->stage].n_configured;
}

#define FOREACH_SLOT(slot, s)                                                                                \
        for (size_t _st = 0; _st < (s)->n_stages; _st++)                                                     \
                for (Slot *slot = (s)->stages[_st].slots;                                                    \
                     slot < (s)->stages[_st].slots + (s)->stages[_st].n_slots; slot++)

__attribute__((format(printf, 3, 4))) static void log_slot(const Slot *slot, int level, const char *format,
                                                           ...) {
        LogFields fields = { .stage = slot_stage(slot)->name, .lane = (int)slot_record(slot)->lane };
        char text[512];
        va_list ap;

        va_start(ap, format);
        (void)vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        log_entry(level, &fields, "%s", text);
}

void supervisor_count(const Instance *instance, size_t stage, SupervisorCounts *ret) {
        SupervisorCounts sum = {};

        for (size_t lane = 0; lane < instance->stages[stage].n_lanes; lane++) {
                const LaneProgress *p = lane_record_progress(instance_record(&instance->stages[stage], lane));

                sum.n_done += p->n_done;
                sum.n_failed += p->n_failed;
                sum.n_retried += p->n_retried;
                sum.n_dropped += p->n_dropped;
        }
        *ret = sum;
}

/* ---- a slot's life ---- */

static void slot_handle(Slot *slot, SlotEvent event) {
        SlotState old = slot->state, new = slot_next(old, event);

        if (new == SLOT_NONE) {
                /* READY comes through a pipe and may arrive after the exit it preceded. Every other event is ours: this
                 * would be our bug. */
                assert(event == SLOT_READY);
                return;
        }
        *(SlotState *)(uintptr_t)&slot->state = new;
        if (new != old)
                log_slot(slot, LOG_DEBUG, "%s -> %s", slot_state_name(old), slot_state_name(new));
}

static void supervisor_check_ready(Supervisor *s) {
        if (s->ready)
                return;
        FOREACH_SLOT(slot, s)
        if (!slot->settled)
                return;
        s->ready = true;
        if (s->options.on_ready)
                s->options.on_ready(s->options.userdata);
}

static void stage_check_degraded(Slot *slot) {
        StageRun *run = slot_run(slot);

        if (run->degraded || slot->n_failures < SLOT_DEGRADED_AFTER)
                return;
        for (size_t i = 0; i < run->n_slots; i++)
                if (run->slots[i].state == SLOT_RUNNING)
                        return;
        run->degraded = true;
        log_slot(slot, LOG_ERR,
                 "The stage is degraded: its workers do not come up. Trying on, every %" PRIu64
                 " s at most; the reason is in the lines above",
                 slot_backoff_usec(64) / USEC_PER_SEC);
}

static void stage_check_recovered(Slot *slot) {
        StageRun *run = slot_run(slot);

        if (!run->degraded)
                return;
        run->degraded = false;
        log_slot(slot, LOG_NOTICE, "The stage has recovered");
}

static int on_delay_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Slot *slot = userdata;

        slot->delay_source = sd_event_source_disable_unref(slot->delay_source);
        slot_handle(slot, SLOT_DUE);
        slot_start(slot);
        return 0;
}

/* It is gone, or never came to be, and had finished nothing: later. */
static void slot_fail(Slot *slot, bool killed) {
        Supervisor *s = slot->supervisor;
        uint64_t delay;
        int r;

        slot->settled = true;
        slot->n_failures++;
        slot->n_start_failures += !slot->was_ready && !killed;
        slot_handle(slot, SLOT_FAILED);
        if (s->options.fail_fast && !s->failed &&
            (slot->n_start_failures >= FAIL_FAST_AFTER ||
             (!slot->was_ready && slot->n_failures >= FAIL_FAST_KILLED_AFTER))) {
                s->failed = true;
                log_slot(slot, LOG_ERR, "The stage cannot start; giving up");
                supervisor_kill(s);
                return;
        }
        stage_check_degraded(slot);

        delay = slot_backoff_usec(slot->n_failures);
        r = sd_event_add_time_relative(s->event, &slot->delay_source, CLOCK_MONOTONIC, delay, 0,
                                       on_delay_over, slot);
        if (r < 0) {
                log_slot(slot, LOG_ERR, "Cannot wait before the next start: %s", strerror(-r));
                return;
        }
        log_slot(slot, LOG_INFO, "Next start in %" PRIu64 " ms", delay / USEC_PER_MSEC);
        supervisor_check_ready(s);
}

static void slot_close_process(Slot *slot) {
        slot->exit_source = sd_event_source_disable_unref(slot->exit_source);
        slot->status_source = sd_event_source_disable_unref(slot->status_source);
        slot->pidfd = close_fd(slot->pidfd);
        slot->status_fd = close_fd(slot->status_fd);
        slot->pid = 0;
}

/* Whether the lane has nothing left to do: its drain, its source, or its last jobs are over. */
static bool slot_has_finished(const Slot *slot) {
        const LaneProgress *p = lane_record_progress(slot_record(slot));
        uint32_t generation = atomic_load(&slot_record(slot)->generation);

        if (p->finished == LANE_SOURCE_ENDED)
                return true;
        if (slot_is_retiring(slot))
                return lane_record_held(slot_record(slot)) == 0;
        return generation != 0 && p->finished == generation;
}

static void log_death(const Slot *slot, const siginfo_t *si) {
        uint64_t n_done = lane_record_progress(slot_record(slot))->n_done - slot->n_done;

        if (si->si_code == CLD_EXITED)
                log_slot(slot, LOG_WARNING, "Worker %d exited with status %d after %" PRIu64 " jobs%s",
                         (int)slot->pid, si->si_status, n_done,
                         si->si_status == 127 ? " (sluice-worker could not be executed)" : "");
        else
                log_slot(slot, LOG_WARNING, "Worker %d died of SIG%s after %" PRIu64 " jobs", (int)slot->pid,
                         sigabbrev_np(si->si_status) ?: "?", n_done);
}

static void slot_handle_exit(Slot *slot, const siginfo_t *si) {
        Supervisor *s = slot->supervisor;
        bool orderly = si->si_code == CLD_EXITED && si->si_status == WORKER_EXIT_DONE;
        bool progressed = lane_record_progress(slot_record(slot))->n_done != slot->n_done;

        if (!orderly && s->phase != PHASE_PARK)
                log_death(slot, si);
        slot_close_process(slot);

        if (slot_has_finished(slot) || s->phase == PHASE_PARK) {
                slot->settled = true;
                slot_handle(slot, SLOT_ENDED);
        } else if (orderly || progressed) {
                slot->n_failures = slot->n_start_failures = 0;
                slot_handle(slot, SLOT_DIED);
                slot_start(slot);
        } else
                slot_fail(slot, si->si_code == CLD_KILLED && si->si_status == SIGKILL);
        supervisor_check_ready(s);
        supervisor_advance(s);
}

static int on_exit_event(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        siginfo_t si = {};

        if (waitid(P_PIDFD, (id_t)fd, &si, WEXITED) < 0)
                return -errno;
        slot_handle_exit(userdata, &si);
        return 0;
}

static int on_status(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Slot *slot = userdata;
        char report;

        if (read(fd, &report, 1) == 1 && report == WORKER_REPORT_READY) {
                slot_handle(slot, SLOT_READY);
                slot->was_ready = slot->settled = true;
                stage_check_recovered(slot);
                supervisor_check_ready(slot->supervisor);
        }
        /* One report is all there is; end of file means nothing, the exit does. */
        slot->status_source = sd_event_source_disable_unref(slot->status_source);
        return 0;
}

static int slot_spawn(Slot *slot) {
        Supervisor *s = slot->supervisor;
        InstanceStage *is = &s->instance->stages[slot->stage];
        StageRun *run = slot_run(slot);
        const InstanceQueue *out = instance_output(s->instance, slot->stage);
        bool source = stage_is_source(slot_stage(slot));
        char title[160];
        SpawnedWorker worker;
        int r;

        (void)snprintf(title, sizeof(title), "sluice-worker: %s/%" PRIu32, slot_stage(slot)->name,
                       slot_record(slot)->lane);
        r = spawn_worker(
                &(Spawn){
                        .program = s->worker_program,
                        .title = title,
                        .spec_fd = run->spec_fd,
                        .record_fd = is->lanes[slot->lane].fd,
                        .input_fd = source ? run->carry[0] : is->queue.fd,
                        .board_fd = source ? run->carry[1] : is->queue.board.fd,
                        .output_fd = out && is->n_outputs > 0 ? out->fd : -1,
                        .output_board_fd = out && is->n_outputs > 0 ? out->board.fd : -1,
                        .keep_stdin = source,
                },
                &worker);
        if (r < 0)
                return r;

        slot->pid = worker.pid;
        slot->pidfd = worker.pidfd;
        slot->status_fd = worker.status_fd;
        slot->was_ready = false;
        slot->n_done = lane_record_progress(slot_record(slot))->n_done;
        r = sd_event_add_io(s->event, &slot->exit_source, slot->pidfd, EPOLLIN, on_exit_event, slot);
        if (r >= 0)
                r = sd_event_add_io(s->event, &slot->status_source, slot->status_fd, EPOLLIN, on_status,
                                    slot);
        /* READY was written before the exit: look at it first. */
        if (r >= 0)
                r = sd_event_source_set_priority(slot->status_source, SD_EVENT_PRIORITY_NORMAL - 1);
        if (r < 0) {
                (void)kill(slot->pid, SIGKILL);
                (void)waitpid(slot->pid, NULL, 0);
                slot_close_process(slot);
                return r;
        }
        return 0;
}

static void slot_start(Slot *slot) {
        int r;

        if (slot->state != SLOT_IDLE)
                return;
        r = slot_spawn(slot);
        if (r < 0) {
                log_slot(slot, LOG_ERR, "Cannot start a worker: %s", strerror(-r));
                slot_fail(slot, false);
                return;
        }
        slot_handle(slot, SLOT_SPAWNED);
}

static void slot_signal(const Slot *slot, int sig) {
        if (slot->pidfd >= 0)
                (void)syscall(SYS_pidfd_send_signal, slot->pidfd, sig, NULL, 0);
}

/* ---- asking workers to stop ---- */

static int on_wake(sd_event_source *source, uint64_t usec, void *userdata) {
        Supervisor *s = userdata;
        bool asked = false;

        FOREACH_SLOT(slot, s) {
                if (!slot_has_process(slot) || atomic_load(&slot_record(slot)->control) == 0)
                        continue;
                slot_signal(slot, WORKER_SIGNAL_WAKE);
                asked = true;
        }
        if (!asked) {
                s->wake_source = sd_event_source_disable_unref(s->wake_source);
                return 0;
        }
        (void)sd_event_source_set_time_relative(source, WAKE_USEC);
        (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
        return 0;
}

static void slot_control(Slot *slot, uint32_t control) {
        Supervisor *s = slot->supervisor;

        atomic_fetch_or(&slot_record(slot)->control, control);
        slot_signal(slot, WORKER_SIGNAL_WAKE);
        if (!s->wake_source)
                (void)sd_event_add_time_relative(s->event, &s->wake_source, CLOCK_MONOTONIC, WAKE_USEC, 0,
                                                 on_wake, s);
}

/* No process, and none wanted: now, or when the one it has is gone. */
static void slot_stop(Slot *slot) {
        slot->delay_source = sd_event_source_disable_unref(slot->delay_source);
        if (!slot_has_process(slot))
                slot_handle(slot, SLOT_STOP);
}

/* ---- drain ---- */

static bool stage_feeders_are_drained(const Supervisor *s, size_t stage) {
        size_t feeders[PIPELINE_STAGES_MAX], n = pipeline_feeders(s->instance->pipeline, stage, feeders);

        for (size_t i = 0; i < n; i++)
                if (s->stages[feeders[i]].drain != DRAIN_DONE)
                        return false;
        return true;
}

static void stage_send_sentinels(Supervisor *s, size_t stage);
static void stage_tell_lanes(Supervisor *s, size_t stage);
static void stage_settle(Supervisor *s, size_t stage);

static int on_room(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Supervisor *s = userdata;

        for (size_t i = 0; i < s->n_stages; i++)
                if (s->stages[i].room_source == source) {
                        stage_send_sentinels(s, i);
                        break;
                }
        return 0;
}

/* The supervisor never blocks: what does not fit is sent when there is room. */
static void stage_send_sentinels(Supervisor *s, size_t stage) {
        const InstanceQueue *q = &s->instance->stages[stage].queue;
        StageRun *run = &s->stages[stage];
        uint8_t frame[FRAME_OVERHEAD_BYTES];
        FrameHeader header = {
                .kind = FRAME_SENTINEL,
                .priority = FRAME_PRIORITY_SENTINEL,
                .time_usec = clock_realtime_usec(),
                .sequence = s->generation,
                .ticket = FRAME_NO_TICKET,
                .key = instance_board(q)->key,
                .generation = s->generation,
        };
        size_t n = frame_seal(frame, &header, 0);
        int r = 0;

        while (run->n_sentinels > 0 && (r = queue_try_send(q->fd, frame, n, FRAME_PRIORITY_SENTINEL)) == 0)
                run->n_sentinels--;
        if (r < 0)
                log_error("Cannot send a sentinel to %s: %s", s->instance->pipeline->stages[stage].name,
                          strerror(-r));

        if (run->n_sentinels == 0) {
                run->room_source = sd_event_source_disable_unref(run->room_source);
                return;
        }
        r = 0;
        if (!run->room_source)
                r = sd_event_add_io(s->event, &run->room_source, q->fd, EPOLLOUT, on_room, s);
        if (r >= 0)
                r = sd_event_source_set_enabled(run->room_source, SD_EVENT_ONESHOT);
        if (r < 0)
                log_error("Cannot wait for room in a queue: %s", strerror(-r));
}

static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Supervisor *s = userdata;

        /* Clients kept the queue from running dry. What they send from now on waits for the next start. */
        for (size_t i = 0; i < s->n_stages; i++) {
                if (s->stages[i].grace_source != source)
                        continue;
                if (s->stages[i].drain == DRAIN_SETTLING)
                        stage_tell_lanes(s, i);
                for (size_t k = 0; k < s->stages[i].n_slots; k++)
                        slot_control(&s->stages[i].slots[k], LANE_CONTROL_RETIRE);
        }
        return 0;
}

/* Lanes are told to finish, each in the way its queue allows. */
static void stage_tell_lanes(Supervisor *s, size_t stage) {
        const InstanceStage *is = &s->instance->stages[stage];
        StageRun *run = &s->stages[stage];
        bool by_word = is->queue.fd < 0 || instance_board(&is->queue)->client_writable;
        uint32_t n = 0;

        run->drain = DRAIN_WAITING;
        run->settle_source = sd_event_source_disable_unref(run->settle_source);
        for (size_t i = 0; i < run->n_slots; i++) {
                Slot *slot = &run->slots[i];

                if (slot_is_retiring(slot) || slot->state == SLOT_STOPPED)
                        continue;
                atomic_store(&slot_record(slot)->generation, s->generation);
                n++;
                if (by_word)
                        slot_control(slot, LANE_CONTROL_FINISH);
        }
        if (!by_word) {
                run->n_sentinels = n;
                stage_send_sentinels(s, stage);
        }
}

/* A frame that the kernel has handed to a waking lane is in no queue and no record yet; its ticket is open. */
static bool stage_has_open_tickets(const Supervisor *s, size_t stage) {
        size_t feeders[PIPELINE_STAGES_MAX], n = pipeline_feeders(s->instance->pipeline, stage, feeders);
        const InstanceStage *is = &s->instance->stages[stage];
        Board *board = instance_board(&is->queue);

        for (uint32_t lane = 0; lane < is->n_lanes; lane++)
                if (board_row_is_open(board, lane))
                        return true;
        for (size_t i = 0; i < n; i++) {
                const InstanceStage *feeder = &s->instance->stages[feeders[i]];

                for (uint32_t lane = 0; lane < feeder->n_lanes; lane++)
                        if (board_row_is_open(board, feeder->groups[0] * BOARD_LANES_MAX + lane))
                                return true;
        }
        return false;
}

/* What was submitted has no tickets either, but may be counted: here are all jobs, answered or in a lane's hands. */
static bool stage_misses_jobs(const Supervisor *s, size_t stage) {
        const InstanceStage *is = &s->instance->stages[stage];
        uint64_t n = 0;

        if (stage != 0 || !s->options.n_submitted)
                return false;
        for (size_t lane = 0; lane < is->n_lanes; lane++) {
                const LaneProgress *p = lane_record_progress(instance_record(is, lane));

                n += p->n_done + (p->input == LANE_HAVE ? p->end - p->cursor : 0);
        }
        return n < s->options.n_submitted(s->options.userdata);
}

/*
 * A lane that was told to finish is gone, and cannot take over jobs from one
 * that still has many. So lanes are told only when nobody has any to share.
 */
static bool stage_has_settled(const Supervisor *s, size_t stage) {
        const InstanceStage *is = &s->instance->stages[stage];

        if (queue_depth(is->queue.fd) > 0 || stage_has_open_tickets(s, stage) || stage_misses_jobs(s, stage))
                return false;
        for (size_t lane = 0; lane < is->n_lanes; lane++) {
                const LaneRecord *record = instance_record(is, lane);
                const LaneProgress *p = lane_record_progress(record);

                if ((p->input == LANE_HAVE && p->end > p->cursor + 1) ||
                    (p->input == LANE_RECEIVING && record->priority != UINT32_MAX))
                        return false;
        }
        return true;
}

static int on_settle(sd_event_source *source, uint64_t usec, void *userdata) {
        Supervisor *s = userdata;

        for (size_t i = 0; i < s->n_stages; i++)
                if (s->stages[i].settle_source == source)
                        stage_settle(s, i);
        return 0;
}

/* There is no event for this; looking at memory every few milliseconds, while a stage drains, costs nothing. */
static void stage_settle(Supervisor *s, size_t stage) {
        StageRun *run = &s->stages[stage];
        int r;

        if (stage_has_settled(s, stage)) {
                if (run->settled) {
                        stage_tell_lanes(s, stage);
                        return;
                }
                /* What clients send has no ticket: a second look, after a wake-up's time. */
                run->settled = true;
                run->settle_usec = SETTLE_AGAIN_USEC;
        } else {
                run->settled = false;
                run->settle_usec = MIN(2 * run->settle_usec, SETTLE_MAX_USEC);
        }
        if (!run->settle_source)
                r = sd_event_add_time_relative(s->event, &run->settle_source, CLOCK_MONOTONIC,
                                               run->settle_usec, 1, on_settle, s);
        else
                r = sd_event_source_set_time_relative(run->settle_source, run->settle_usec);
        if (r >= 0)
                r = sd_event_source_set_enabled(run->settle_source, SD_EVENT_ONESHOT);
        if (r < 0)
                stage_tell_lanes(s, stage);
}

/* Every lane must come up once more, if only to finish what its record holds. */
static void stage_begin_drain(Supervisor *s, size_t stage) {
        const InstanceQueue *q = &s->instance->stages[stage].queue;
        StageRun *run = &s->stages[stage];

        run->drain = DRAIN_SETTLING;
        for (size_t i = 0; i < run->n_slots; i++) {
                Slot *slot = &run->slots[i];

                if (slot_is_retiring(slot) || (slot_has_finished(slot) && !slot_has_process(slot)))
                        continue;
                slot->delay_source = sd_event_source_disable_unref(slot->delay_source);
                slot_handle(slot, SLOT_WANTED);
                slot_start(slot);
        }
        if (q->fd < 0) {
                stage_tell_lanes(s, stage);
                return;
        }
        if (instance_board(q)->client_writable && !run->grace_source)
                (void)sd_event_add_time_relative(s->event, &run->grace_source, CLOCK_MONOTONIC,
                                                 s->instance->pipeline->drain_grace_usec, 0, on_grace_over,
                                                 s);
        run->settle_usec = SETTLE_MIN_USEC;
        run->settled = pipeline_feeders(s->instance->pipeline, stage, NULL) > 0 || s->options.n_submitted;
        stage_settle(s, stage);
}

static bool stage_is_stopped(const StageRun *run) {
        for (size_t i = 0; i < run->n_slots; i++)
                if (run->slots[i].state != SLOT_STOPPED)
                        return false;
        return true;
}

static void supervisor_end(Supervisor *s, SupervisorEnd end) {
        s->phase = PHASE_ENDED;
        s->wake_source = sd_event_source_disable_unref(s->wake_source);
        if (s->options.on_end)
                s->options.on_end(s->options.userdata, end);
}

/* A lane that was told to finish may leave frames behind if another was given some after it: once more, then. */
static bool stage_needs_another_round(const Supervisor *s, size_t stage) {
        const InstanceQueue *q = &s->instance->stages[stage].queue;

        return q->fd >= 0 && !instance_board(q)->client_writable && queue_depth(q->fd) > 0;
}

static void supervisor_advance_drain(Supervisor *s) {
        bool moved, all = true;

        do {
                moved = false;
                all = true;
                for (size_t i = 0; i < s->n_stages; i++) {
                        StageRun *run = &s->stages[i];

                        if (run->drain == DRAIN_NOT && stage_feeders_are_drained(s, i)) {
                                stage_begin_drain(s, i);
                                moved = true;
                        }
                        if ((run->drain == DRAIN_WAITING || run->drain == DRAIN_SETTLING) &&
                            stage_is_stopped(run)) {
                                run->grace_source = sd_event_source_disable_unref(run->grace_source);
                                if (stage_needs_another_round(s, i)) {
                                        s->generation++;
                                        stage_begin_drain(s, i);
                                } else
                                        run->drain = DRAIN_DONE;
                                moved = true;
                        }
                        all = all && run->drain == DRAIN_DONE;
                }
        } while (moved && s->phase == PHASE_DRAIN);
        if (all && s->phase == PHASE_DRAIN)
                supervisor_end(s, SUPERVISOR_DRAINED);
}

static bool supervisor_sources_have_ended(const Supervisor *s) {
        bool any = false;

        for (size_t i = 0; i < s->n_stages; i++) {
                if (!stage_is_source(&s->instance->pipeline->stages[i]))
                        continue;
                any = true;
                if (!stage_is_stopped(&s->stages[i]))
                        return false;
        }
        return any;
}

/* What follows from the state of all slots. */
static void supervisor_advance(Supervisor *s) {
        switch (s->phase) {
        case PHASE_RUN:
                if (s->options.drain_when_sources_end && supervisor_sources_have_ended(s))
                        supervisor_drain(s);
                break;
        case PHASE_DRAIN:
                supervisor_advance_drain(s);
                break;
        case PHASE_PARK:
                for (size_t i = 0; i < s->n_stages; i++)
                        if (!stage_is_stopped(&s->stages[i]))
                                return;
                supervisor_end(s, s->failed ? SUPERVISOR_FAILED : SUPERVISOR_PARKED);
                break;
        case PHASE_ENDED:
                break;
        }
}

void supervisor_drain(Supervisor *s) {
        if (s->phase != PHASE_RUN)
                return;

        log_debug("Draining");
        s->phase = PHASE_DRAIN;
        /* Nonzero, never a source's mark, and not that of an earlier drain whose sentinels may be left. */
        while (getrandom(&s->generation, sizeof(s->generation), 0) < 0 || s->generation == 0 ||
               s->generation >= LANE_SOURCE_ENDED - 1024)
                ;
        for (size_t i = 0; i < s->n_stages; i++)
                if (s->stages[i].degraded)
                        log_error(
                                "Drain waits for %s, whose workers do not come up; stop once more to park instead",
                                s->instance->pipeline->stages[i].name);
        supervisor_advance(s);
}

void supervisor_park(Supervisor *s) {
        if (s->phase == PHASE_PARK || s->phase == PHASE_ENDED)
                return;

        log_debug("Parking");
        s->phase = PHASE_PARK;
        FOREACH_SLOT(slot, s) {
                slot_control(slot, LANE_CONTROL_PARK);
                slot_stop(slot);
        }
        supervisor_advance(s);
}

void supervisor_kill(Supervisor *s) {
        FOREACH_SLOT(slot, s)
        slot_signal(slot, SIGKILL);
        supervisor_park(s);
}

void supervisor_reopen(Supervisor *s) {
        FOREACH_SLOT(slot, s)
        if (slot_has_process(slot))
                slot_control(slot, LANE_CONTROL_REOPEN);
}

/* ---- making ---- */

static int stage_init(Supervisor *s, size_t stage) {
        const InstanceStage *is = &s->instance->stages[stage];
        StageRun *run = &s->stages[stage];
        int r;

        run->slots = calloc(is->n_lanes, sizeof(*run->slots));
        if (!run->slots)
                return -ENOMEM;
        run->n_slots = is->n_lanes;
        for (size_t lane = 0; lane < is->n_lanes; lane++) {
                Slot slot = {
                        .supervisor = s,
                        .stage = stage,
                        .lane = lane,
                        .state = SLOT_IDLE,
                        .pidfd = -1,
                        .status_fd = -1,
                };

                memcpy(&run->slots[lane], &slot, sizeof(slot));
        }

        r = spawn_spec(s->instance, stage, s->options.track ? WORKER_TRACK : 0, &run->spec_fd);
        if (r < 0)
                return r;
        if (stage_is_source(&s->instance->pipeline->stages[stage]) && pipe2(run->carry, O_CLOEXEC) < 0)
                return -errno;
        return 0;
}

int supervisor_new(Instance *instance, sd_event *event, const SupervisorOptions *options, Supervisor **ret) {
        _cleanup_(supervisor_freep) Supervisor *s = calloc(1, sizeof(*s));
        int r;

        if (!s)
                return -ENOMEM;
        *s = (Supervisor){ .instance = instance, .event = event, .options = *options };

        r = program_find("sluice-worker", &s->worker_program);
        if (r < 0) {
                log_error("Cannot find sluice-worker beside this program or in libexec/sluice: %s",
                          strerror(-r));
                return r;
        }
        s->stages = calloc(instance->pipeline->n_stages, sizeof(*s->stages));
        if (!s->stages)
                return -ENOMEM;
        s->n_stages = instance->pipeline->n_stages;
        for (size_t i = 0; i < s->n_stages; i++)
                s->stages[i] = (StageRun){ .spec_fd = -1, .carry = { -1, -1 } };
        for (size_t i = 0; i < s->n_stages; i++) {
                r = stage_init(s, i);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(s);
        return 0;
}

static void stage_done(StageRun *run) {
        for (size_t i = 0; i < run->n_slots; i++) {
                Slot *slot = &run->slots[i];

                if (slot->pidfd >= 0) {
                        slot_signal(slot, SIGKILL);
                        (void)waitid(P_PIDFD, (id_t)slot->pidfd, &(siginfo_t){}, WEXITED);
                }
                slot_close_process(slot);
                (void)sd_event_source_disable_unref(slot->delay_source);
        }
        free(run->slots);
        (void)sd_event_source_disable_unref(run->room_source);
        (void)sd_event_source_disable_unref(run->grace_source);
        (void)sd_event_source_disable_unref(run->settle_source);
        (void)close_fd(run->spec_fd);
        (void)close_fd(run->carry[0]);
        (void)close_fd(run->carry[1]);
}

void supervisor_free(Supervisor *s) {
        for (size_t i = 0; i < s->n_stages; i++)
                stage_done(&s->stages[i]);
        free(s->stages);
        (void)sd_event_source_disable_unref(s->wake_source);
        free(s->worker_program);
        free(s);
}

int supervisor_start(Supervisor *s) {
        FOREACH_SLOT(slot, s) {
                /* A source that has ended stays so; what it made and could not send is sent first. */
                if (slot_has_finished(slot) && lane_record_held(slot_record(slot)) == 0) {
                        slot->settled = true;
                        slot_handle(slot, SLOT_STOP);
                        continue;
                }
                if (slot_is_retiring(slot))
                        atomic_store(&slot_record(slot)->control, LANE_CONTROL_RETIRE);
                slot_start(slot);
        }
        supervisor_check_ready(s);
        supervisor_advance(s);
        return 0;
}
