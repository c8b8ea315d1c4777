#include "supervisor/instance.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/log.h"
#include "supervisor/runtime.h"

#define RESULTS_NAME "results"
#define INGRESS_NAME "in"

/* The last part of a queue's name. Clients find the first stage's queue without knowing the stages. */
static const char *instance_queue_name(const Pipeline *pipeline, size_t stage) {
        if (stage == pipeline->n_stages)
                return RESULTS_NAME;
        return stage == 0 ? INGRESS_NAME : pipeline->stages[stage].name;
}

static InstanceQueue *instance_queue(Instance *i, size_t stage) {
        return stage == i->pipeline->n_stages ? &i->results : &i->stages[stage].queue;
}

static bool instance_has_queue(const Pipeline *pipeline, bool results, size_t stage) {
        return stage == pipeline->n_stages ? results : !stage_is_source(&pipeline->stages[stage]);
}

static bool instance_is_client_writable(const Instance *i, size_t stage) {
        return stage == 0 && !i->ephemeral;
}

const InstanceQueue *instance_output(const Instance *i, size_t stage) {
        size_t next = i->pipeline->stages[stage].next;

        if (next != STAGE_NONE)
                return &i->stages[next].queue;
        return i->results.fd >= 0 ? &i->results : NULL;
}

/* ---- queues ---- */

static void instance_wish(const Pipeline *pipeline, size_t stage, QueueShape *ret) {
        *ret = (QueueShape){};
        if (stage < pipeline->n_stages)
                *ret = (QueueShape){
                        .depth = pipeline->stages[stage].queue_depth,
                        .message_bytes = pipeline->stages[stage].queue_message_bytes,
                };
}

int instance_plan(const Pipeline *pipeline, bool results, QueuePlan *plan) {
        QueueShape wishes[PIPELINE_STAGES_MAX + 1], shapes[PIPELINE_STAGES_MAX + 1];
        QueueLimits limits;
        size_t n = 0;

        for (size_t s = 0; s <= pipeline->n_stages; s++)
                if (instance_has_queue(pipeline, results, s))
                        instance_wish(pipeline, s, &wishes[n++]);
        queue_limits_read(&limits);
        return queue_plan(&limits, 0, wishes, n, shapes, plan);
}

static int instance_open_existing(Instance *i, size_t stage) {
        InstanceQueue *q = instance_queue(i, stage);
        QueueShape wish;
        int r;

        if (asprintf(&q->name, "/sluice.%s.%s", i->pipeline->name, instance_queue_name(i->pipeline, stage)) <
            0) {
                q->name = NULL;
                return -ENOMEM;
        }
        r = queue_open(q->name, &q->fd, &q->shape);
        if (r == QUEUE_E_ABSENT)
                return 0;
        if (r == QUEUE_E_FOREIGN) {
                log_error(
                        "The queue %s belongs to another user or lets others in; remove it or choose another name",
                        q->name);
                return INSTANCE_E_REFUSED;
        }
        if (r < 0)
                return r;

        instance_wish(i->pipeline, stage, &wish);
        if ((wish.depth && wish.depth != q->shape.depth) ||
            (wish.message_bytes && wish.message_bytes != q->shape.message_bytes))
                log_notice("The queue %s keeps its shape of %" PRIu32 " x %" PRIu32
                           " bytes; `sluicectl purge` lets a new one be made",
                           q->name, q->shape.depth, q->shape.message_bytes);
        return 0;
}

static int instance_create_queue(Instance *i, size_t stage, const QueueShape *shape) {
        InstanceQueue *q = instance_queue(i, stage);

        q->shape = *shape;
        if (i->ephemeral)
                return queue_create_anonymous(shape, &q->fd);
        /* Members of the group may submit; internal queues are nobody else's business. */
        return queue_create(q->name, shape, instance_is_client_writable(i, stage) ? 0620 : 0600, &q->fd);
}

/* Undoes the creations of an attempt that did not fit. */
static void instance_drop_queues(Instance *i, const size_t *stages, size_t n) {
        for (size_t k = 0; k < n; k++) {
                InstanceQueue *q = instance_queue(i, stages[k]);

                if (q->fd < 0)
                        continue;
                q->fd = close_fd(q->fd);
                if (q->name)
                        (void)mq_unlink(q->name);
        }
}

static int instance_create_all(Instance *i, const size_t *stages, const QueueShape *shapes, size_t n) {
        for (size_t k = 0; k < n; k++) {
                int r = instance_create_queue(i, stages[k], &shapes[k]);

                if (r != 0) {
                        instance_drop_queues(i, stages, k);
                        return r;
                }
        }
        return 0;
}

/*
 * The limit is per user and what others of this user hold cannot be asked for,
 * so a plan that does not come true is made again for less.
 */
static int instance_create_queues(Instance *i, bool results) {
        size_t stages[PIPELINE_STAGES_MAX + 1], n = 0;
        QueueShape wishes[PIPELINE_STAGES_MAX + 1], shapes[PIPELINE_STAGES_MAX + 1];
        uint64_t budget = 0;
        QueueLimits limits;
        int r;

        for (size_t s = 0; s <= i->pipeline->n_stages; s++) {
                if (!instance_has_queue(i->pipeline, results, s) || instance_queue(i, s)->fd >= 0)
                        continue;
                instance_wish(i->pipeline, s, &wishes[n]);
                stages[n++] = s;
        }

        queue_limits_read(&limits);
        for (;;) {
                r = queue_plan(&limits, budget, wishes, n, shapes, &i->plan);
                if (r != 0) {
                        log_error("The queues do not fit%s: %s",
                                  budget ? " beside what this user has already" : "", i->plan.text);
                        return INSTANCE_E_REFUSED;
                }
                r = instance_create_all(i, stages, shapes, n);
                if (r == QUEUE_E_EXISTS) {
                        log_error("Somebody else is making queues of this name");
                        return INSTANCE_E_REFUSED;
                }
                if (r != QUEUE_E_LIMITS)
                        break;
                budget = i->plan.sum_bytes * 7 / 8;
        }
        if (r < 0)
                return r;
        if (i->plan.reduced || budget)
                log_notice("Queues: %s", i->plan.text);
        return 0;
}

/* ---- memory ---- */

static int instance_open_memory(Instance *i, const char *name, size_t n_bytes, Memory *ret, bool *ret_new) {
        int r;

        *ret_new = true;
        if (i->ephemeral)
                return memory_create_anonymous(name, n_bytes, ret);

        r = memory_open(i->dir_fd, name, ret);
        if (r == 0)
                *ret_new = false;
        if (r != MEMORY_E_ABSENT)
                return r;
        return memory_create(i->dir_fd, name, n_bytes, ret);
}

static int instance_open_board(Instance *i, size_t stage) {
        InstanceQueue *q = instance_queue(i, stage);
        const char *own = stage < i->pipeline->n_stages ? i->pipeline->stages[stage].name : RESULTS_NAME;
        char name[16 + BOARD_NAME_MAX];
        bool new;
        int r;

        (void)snprintf(name, sizeof(name), "board.%s", instance_queue_name(i->pipeline, stage));
        r = instance_open_memory(i, name, board_bytes(q->shape.depth), &q->board, &new);
        if (r != 0)
                return r;
        if (new && q->name && !instance_is_client_writable(i, stage) && queue_depth(q->fd) > 0) {
                memory_done(&q->board);
                (void)unlinkat(i->dir_fd, name, 0);
                log_error(
                        "The queue %s holds %d frames, but its board in %s is gone, so nobody knows which of them were "
                        "taken before; `sluicectl purge` removes them",
                        q->name, queue_depth(q->fd), i->dir);
                return INSTANCE_E_REFUSED;
        }
        if (new) {
                board_init(instance_board(q), i->life, i->key, q->shape.depth, q->shape.message_bytes,
                           instance_is_client_writable(i, stage), own);
                return 0;
        }
        if (!board_is_valid(instance_board(q), q->board.n_data) || instance_board(q)->life != i->life ||
            instance_board(q)->depth != q->shape.depth) {
                log_error(
                        "%s/%s does not belong to the queue %s; `sluicectl purge` removes both, with the jobs in them",
                        i->dir, name, q->name);
                return INSTANCE_E_REFUSED;
        }
        return 0;
}

static void instance_geometry(const Instance *i, size_t stage, uint32_t lane, LaneGeometry *ret) {
        const Stage *s = &i->pipeline->stages[stage];
        const InstanceQueue *out = instance_output(i, stage);

        *ret = (LaneGeometry){
                .life = i->life,
                .lane = lane,
                .stage = s->name,
                .input_bytes = stage_is_source(s) ? 0 : i->stages[stage].queue.shape.message_bytes,
                .n_outputs = i->stages[stage].n_outputs,
        };
        if (out && ret->n_outputs > 0) {
                (void)snprintf(ret->destinations[0].stage, sizeof(ret->destinations[0].stage), "%s",
                               s->next != STAGE_NONE ? i->pipeline->stages[s->next].name : RESULTS_NAME);
                ret->destinations[0].message_bytes = out->shape.message_bytes;
        }
}

static int instance_refuse_held(const Instance *i, const char *name, uint64_t held) {
        log_error("%s/%s holds %" PRIu64
                  " job%s of an earlier configuration; start that once more and let it drain, "
                  "or remove them with `sluicectl purge`",
                  i->dir, name, held, held == 1 ? "" : "s");
        return INSTANCE_E_REFUSED;
}

/* A record of another shape that holds no jobs: a new one takes over what else the lane knows. */
static int instance_replace_lane(Instance *i, const char *name, const LaneGeometry *g, Memory *memory) {
        _cleanup_(memory_done) Memory old = *memory;
        bool was_valid = lane_record_is_valid((LaneRecord *)old.data, old.n_data);
        int r;

        *memory = MEMORY_NULL;
        (void)unlinkat(i->dir_fd, "lane.new", 0);
        r = memory_create(i->dir_fd, "lane.new", lane_record_bytes(g), memory);
        if (r != 0)
                return r;
        lane_record_init((LaneRecord *)memory->data, g);
        if (was_valid && ((LaneRecord *)old.data)->life == g->life)
                lane_record_succeed((LaneRecord *)memory->data, (LaneRecord *)old.data);
        if (renameat(i->dir_fd, "lane.new", i->dir_fd, name) < 0)
                return -errno;
        return memory_populate(memory, ((LaneRecord *)memory->data)->n_populate);
}

static int instance_open_lane(Instance *i, size_t stage, uint32_t lane, Memory *ret) {
        char name[24 + BOARD_NAME_MAX];
        LaneGeometry g;
        LaneRecord *record;
        uint64_t held;
        bool new;
        int r;

        instance_geometry(i, stage, lane, &g);
        (void)snprintf(name, sizeof(name), "lane.%s.%" PRIu32, g.stage, lane);
        r = instance_open_memory(i, name, lane_record_bytes(&g), ret, &new);
        if (r != 0)
                return r;

        record = (LaneRecord *)ret->data;
        if (!new && !(lane_record_is_valid(record, ret->n_data) && lane_record_matches(record, &g))) {
                held = lane_record_is_valid(record, ret->n_data) ? lane_record_held(record) : 0;
                if (held > 0)
                        return instance_refuse_held(i, name, held);
                return instance_replace_lane(i, name, &g, ret);
        }
        if (new)
                lane_record_init(record, &g);
        else
                atomic_store(&record->interrupted, 1);
        atomic_store(&record->control, 0);
        atomic_store(&record->generation, 0);
        return memory_populate(ret, record->n_populate);
}

static int instance_add_lane(Instance *i, size_t stage, uint32_t lane) {
        InstanceStage *s = &i->stages[stage];
        Memory *lanes = reallocarray(s->lanes, s->n_lanes + 1, sizeof(*lanes));
        int r;

        if (!lanes)
                return -ENOMEM;
        s->lanes = lanes;
        s->lanes[s->n_lanes] = MEMORY_NULL;
        r = instance_open_lane(i, stage, lane, &s->lanes[s->n_lanes]);
        if (r != 0) {
                memory_done(&s->lanes[s->n_lanes]);
                return r;
        }
        s->n_lanes++;
        return 0;
}

static int instance_open_lanes(Instance *i, size_t stage) {
        InstanceStage *s = &i->stages[stage];
        const InstanceQueue *out = instance_output(i, stage);
        int r;

        s->n_outputs = out != NULL;
        if (out) {
                r = board_group(instance_board(out), i->pipeline->stages[stage].name);
                if (r < 0)
                        return r;
                s->groups[0] = (uint32_t)r;
        }
        s->n_configured = i->pipeline->stages[stage].n_workers;
        for (uint32_t lane = 0; lane < s->n_configured; lane++) {
                r = instance_add_lane(i, stage, lane);
                if (r != 0)
                        return r;
        }
        return 0;
}

/* ---- what an earlier configuration left ---- */

static size_t instance_find_stage(const Instance *i, const char *name, size_t n_name) {
        for (size_t s = 0; s < i->pipeline->n_stages; s++)
                if (strlen(i->pipeline->stages[s].name) == n_name &&
                    strncmp(i->pipeline->stages[s].name, name, n_name) == 0)
                        return s;
        return STAGE_NONE;
}

/* A lane the configuration does not have any more: kept while it holds jobs, removed when it does not. */
static int instance_adopt_lane(Instance *i, const char *file) {
        const char *stage = file + strlen("lane."), *dot = strrchr(stage, '.');
        Memory memory = MEMORY_NULL;
        uint64_t held = 0;
        unsigned lane;
        size_t s;
        int r;

        if (!dot || dot == stage || sscanf(dot + 1, "%u", &lane) != 1)
                return 0;
        s = instance_find_stage(i, stage, (size_t)(dot - stage));
        if (s != STAGE_NONE && lane < i->stages[s].n_configured)
                return 0;

        r = memory_open(i->dir_fd, file, &memory);
        if (r != 0)
                return r;
        if (lane_record_is_valid((LaneRecord *)memory.data, memory.n_data))
                held = lane_record_held((LaneRecord *)memory.data);
        memory_done(&memory);

        if (held > 0)
                return s == STAGE_NONE ? instance_refuse_held(i, file, held) : instance_add_lane(i, s, lane);
        return unlinkat(i->dir_fd, file, 0) < 0 ? -errno : 0;
}

/* A queue the configuration does not have any more. */
static int instance_drop_board(Instance *i, const char *file) {
        const char *queue = file + strlen("board.");
        _cleanup_free_ char *name = NULL;
        _cleanup_close_ int fd = -1;
        QueueShape shape;
        int depth;

        for (size_t s = 0; s <= i->pipeline->n_stages; s++)
                if (instance_queue(i, s)->fd >= 0 && strcmp(queue, instance_queue_name(i->pipeline, s)) == 0)
                        return 0;

        if (asprintf(&name, "/sluice.%s.%s", i->pipeline->name, queue) < 0)
                return -ENOMEM;
        if (queue_open(name, &fd, &shape) == 0) {
                depth = queue_depth(fd);
                if (depth > 0) {
                        log_error(
                                "The queue %s holds %d frame%s of jobs for a stage that is gone; start the earlier "
                                "configuration once more and let it drain, or remove them with `sluicectl purge`",
                                name, depth, depth == 1 ? "" : "s");
                        return INSTANCE_E_REFUSED;
                }
                (void)mq_unlink(name);
        }
        return unlinkat(i->dir_fd, file, 0) < 0 ? -errno : 0;
}

static int instance_sweep(Instance *i) {
        _cleanup_closedir_ DIR *d = NULL;
        struct dirent *de;
        int fd, r = 0;

        fd = openat(i->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        d = fdopendir(fd);
        if (!d) {
                (void)close_fd(fd);
                return -errno;
        }
        while (r == 0 && (de = readdir(d))) {
                if (strncmp(de->d_name, "lane.", 5) == 0)
                        r = instance_adopt_lane(i, de->d_name);
                else if (strncmp(de->d_name, "board.", 6) == 0)
                        r = instance_drop_board(i, de->d_name);
        }
        return r;
}

/* ---- life ---- */

static int instance_draw_life(Instance *i) {
        do {
                if (getrandom(&i->life, sizeof(i->life), 0) < 0 || getrandom(&i->key, sizeof(i->key), 0) < 0)
                        return -errno;
        } while (i->life == 0 || i->key == 0);
        return 0;
}

/* Written whole under a name of its own first: a torn one would orphan every record. */
static int instance_open_life(Instance *i) {
        _cleanup_close_ int fd = -1;
        uint64_t ids[2];
        int r;

        fd = openat(i->dir_fd, "life", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0) {
                if (read(fd, ids, sizeof(ids)) != (ssize_t)sizeof(ids))
                        return -EBADMSG;
                i->life = ids[0];
                i->key = ids[1];
                return 0;
        }
        if (errno != ENOENT)
                return -errno;

        r = instance_draw_life(i);
        if (r < 0)
                return r;
        ids[0] = i->life;
        ids[1] = i->key;
        fd = openat(i->dir_fd, "life.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 || write(fd, ids, sizeof(ids)) != (ssize_t)sizeof(ids) ||
            renameat(i->dir_fd, "life.new", i->dir_fd, "life") < 0)
                return -errno;
        return 0;
}

static int instance_open_folder(Instance *i) {
        int r;

        r = runtime_make(i->pipeline->name, &i->dir_fd, &i->dir);
        if (r < 0) {
                log_error("There is no usable runtime folder: %s", strerror(-r));
                return INSTANCE_E_REFUSED;
        }
        r = runtime_lock(i->dir_fd, i->pipeline->name, &i->lock_fd);
        if (r == -EBUSY) {
                log_error("%s is running already (pid %d, %s)", i->pipeline->name,
                          (int)runtime_holder(i->dir_fd), i->dir);
                return INSTANCE_E_RUNNING;
        }
        return r < 0 ? r : instance_open_life(i);
}

/* ---- whole ---- */

static void instance_queue_done(InstanceQueue *q) {
        memory_done(&q->board);
        q->fd = close_fd(q->fd);
        free(q->name);
}

void instance_free(Instance *i) {
        if (i->stages) {
                for (size_t s = 0; s < i->pipeline->n_stages; s++) {
                        for (size_t lane = 0; lane < i->stages[s].n_lanes; lane++)
                                memory_done(&i->stages[s].lanes[lane]);
                        free(i->stages[s].lanes);
                        instance_queue_done(&i->stages[s].queue);
                }
                free(i->stages);
        }
        instance_queue_done(&i->results);
        (void)close_fd(i->lock_fd);
        (void)close_fd(i->dir_fd);
        free(i->dir);
        free(i);
}

static int instance_open_parts(Instance *i, bool results) {
        size_t n = i->pipeline->n_stages;
        int r;

        if (!i->ephemeral) {
                for (size_t s = 0; s <= n; s++) {
                        if (!instance_has_queue(i->pipeline, results, s))
                                continue;
                        r = instance_open_existing(i, s);
                        if (r != 0)
                                return r;
                }
        }
        r = instance_create_queues(i, results);
        if (r != 0)
                return r;
        for (size_t s = 0; s <= n; s++) {
                if (instance_queue(i, s)->fd < 0)
                        continue;
                r = instance_open_board(i, s);
                if (r != 0)
                        return r;
        }
        for (size_t s = 0; s < n; s++) {
                r = instance_open_lanes(i, s);
                if (r != 0)
                        return r;
        }
        return i->ephemeral ? 0 : instance_sweep(i);
}

int instance_open(const Pipeline *pipeline, bool ephemeral, bool results, Instance **ret) {
        _cleanup_(instance_freep) Instance *i = calloc(1, sizeof(*i));
        int r;

        if (!i)
                return -ENOMEM;
        *i = (Instance){
                .pipeline = pipeline,
                .ephemeral = ephemeral,
                .dir_fd = -1,
                .lock_fd = -1,
                .results = { .fd = -1, .board = MEMORY_NULL },
        };
        i->stages = calloc(pipeline->n_stages, sizeof(*i->stages));
        if (!i->stages)
                return -ENOMEM;
        for (size_t s = 0; s < pipeline->n_stages; s++)
                i->stages[s].queue = (InstanceQueue){ .fd = -1, .board = MEMORY_NULL };

        r = ephemeral ? instance_draw_life(i) : instance_open_folder(i);
        if (r != 0)
                return r;
        r = instance_open_parts(i, results);
        if (r != 0)
                return r;

        *ret = TAKE_PTR(i);
        return 0;
}
