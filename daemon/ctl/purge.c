#include "ctl/purge.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <mqueue.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "ctl/exit.h"
#include "ctl/select.h"
#include "lane/lane.h"
#include "lane/memory.h"
#include "queue/queue.h"
#include "supervisor/runtime.h"

#define BOARD_PREFIX "board."
#define LANE_PREFIX "lane."

typedef struct PurgeOptions {
        const char *instance;
        bool force;
        bool help;
} PurgeOptions;

/* A queue, or the lanes of a stage. */
typedef struct PurgeItem {
        char *name;      /* "/sluice.NAME.QUEUE", or the stage's */
        uint64_t n_held; /* frames in a queue, jobs in lanes */
        size_t n_unread; /* lane records of another layout: nobody here knows what they hold */
} PurgeItem;

typedef struct PurgeItems {
        PurgeItem *items;
        size_t n;
} PurgeItems;

typedef struct Purge {
        const char *instance;
        int dir_fd;
        const char *dir;
        PurgeItems queues, stages;
} Purge;

static void usage(FILE *f) {
        (void)fprintf(
                f, "Usage: sluicectl purge -i NAME [--force]\n"
                   "\n"
                   "Removes the queues and runtime files of an instance that is not running, so that its\n"
                   "next start begins from nothing.\n"
                   "\n"
                   "  -i, --instance NAME  the instance\n"
                   "      --force          even if there are jobs in them, which are lost\n"
                   "  -h, --help           print this help\n"
                   "\n"
                   "Exit status: 0 removed, 1 there are jobs in them or it failed, 2 wrong usage, 3 no such\n"
                   "instance, or it is running.\n");
}

static void purge_items_done(PurgeItems *items) {
        for (size_t i = 0; i < items->n; i++)
                free(items->items[i].name);
        free(items->items);
}

static void purge_done(Purge *purge) {
        purge_items_done(&purge->queues);
        purge_items_done(&purge->stages);
}

/* The item of that name, new if need be; takes the name over. NULL: out of memory. */
static PurgeItem *purge_item(PurgeItems *items, char *name) {
        _cleanup_free_ char *owned = name;
        PurgeItem *more;

        if (!owned)
                return NULL;
        for (size_t i = 0; i < items->n; i++)
                if (strcmp(items->items[i].name, owned) == 0)
                        return &items->items[i];

        more = reallocarray(items->items, items->n + 1, sizeof(*more));
        if (!more)
                return NULL;
        items->items = more;
        items->items[items->n] = (PurgeItem){ .name = TAKE_PTR(owned) };
        return &items->items[items->n++];
}

/* ---- what is there ---- */

static int purge_add_queue(Purge *purge, const char *queue) {
        _cleanup_close_ int fd = -1;
        QueueShape shape;
        PurgeItem *item;
        char *name;
        int r;

        if (asprintf(&name, "/sluice.%s.%s", purge->instance, queue) < 0)
                return -ENOMEM;
        r = queue_open(name, &fd, &shape);
        if (r != 0) {
                if (r == QUEUE_E_FOREIGN)
                        warnx("leaving %s, which belongs to another user or lets others in", name);
                free(name);
                return r < 0 ? r : 0;
        }
        item = purge_item(&purge->queues, name);
        if (!item)
                return -ENOMEM;
        r = queue_depth(fd);
        if (r < 0)
                return r;
        item->n_held = (uint64_t)r;
        return 0;
}

/* Jobs in a lane's record. One that was made but never written holds none. */
static int purge_count_lane(const Purge *purge, const char *file, PurgeItem *item) {
        Memory memory = MEMORY_NULL;
        const LaneRecord *record;
        int r;

        r = memory_open(purge->dir_fd, file, &memory);
        if (r < 0)
                return r;
        if (r > 0) { /* no record of ours lies there */
                item->n_unread++;
                return 0;
        }
        record = (const LaneRecord *)(const void *)memory.data;
        if (lane_record_is_valid(record, memory.n_data))
                item->n_held += lane_record_held(record);
        else if (memory.n_data < sizeof(record->magic) || record->magic != 0)
                item->n_unread++;
        memory_done(&memory);
        return 0;
}

/* "lane.STAGE.N" */
static int purge_add_lane(Purge *purge, const char *file) {
        const char *stage = file + strlen(LANE_PREFIX), *dot = strrchr(stage, '.');
        PurgeItem *item;

        item = purge_item(&purge->stages, strndup(stage, dot ? (size_t)(dot - stage) : strlen(stage)));
        if (!item)
                return -ENOMEM;
        return purge_count_lane(purge, file, item);
}

static bool has_prefix(const char *s, const char *prefix) {
        return strncmp(s, prefix, strlen(prefix)) == 0;
}

typedef int (*PurgeVisit)(Purge *purge, const char *file);

/* Calls `visit` for each file of the runtime folder. */
static int purge_walk(Purge *purge, PurgeVisit visit) {
        _cleanup_closedir_ DIR *d = NULL;
        struct dirent *de;
        int fd, r;

        fd = openat(purge->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        d = fdopendir(fd);
        if (!d) {
                r = -errno;
                (void)close_fd(fd);
                return r;
        }
        while (errno = 0, (de = readdir(d))) {
                r = visit(purge, de->d_name);
                if (r < 0)
                        return r;
        }
        return -errno;
}

static int purge_look_at(Purge *purge, const char *file) {
        if (has_prefix(file, BOARD_PREFIX))
                return purge_add_queue(purge, file + strlen(BOARD_PREFIX));
        if (has_prefix(file, LANE_PREFIX))
                return purge_add_lane(purge, file);
        return 0;
}

/* A daemon that died while it was starting may have left queues without a board; these two have names of their own. */
static int purge_look(Purge *purge) {
        int r;

        r = purge_walk(purge, purge_look_at);
        if (r == 0)
                r = purge_add_queue(purge, "in");
        if (r == 0)
                r = purge_add_queue(purge, "results");
        return r;
}

/* ---- what it holds ---- */

static bool purge_item_holds(const PurgeItem *item) {
        return item->n_held > 0 || item->n_unread > 0;
}

static bool purge_items_hold(const PurgeItems *items) {
        for (size_t i = 0; i < items->n; i++)
                if (purge_item_holds(&items->items[i]))
                        return true;
        return false;
}

static void print_queue(FILE *f, const PurgeItem *item) {
        (void)fprintf(f, "queue %s: %" PRIu64 " frame%s of jobs\n", item->name, item->n_held,
                      item->n_held == 1 ? "" : "s");
}

static void print_stage(FILE *f, const PurgeItem *item) {
        if (item->n_held > 0)
                (void)fprintf(f, "stage %s: %" PRIu64 " job%s in hand\n", item->name, item->n_held,
                              item->n_held == 1 ? "" : "s");
        if (item->n_unread > 0)
                (void)fprintf(f, "stage %s: %zu record%s of another version of sluice\n", item->name,
                              item->n_unread, item->n_unread == 1 ? "" : "s");
}

static void purge_print_held(const Purge *purge, FILE *f) {
        for (size_t i = 0; i < purge->queues.n; i++)
                if (purge_item_holds(&purge->queues.items[i]))
                        print_queue(f, &purge->queues.items[i]);
        for (size_t i = 0; i < purge->stages.n; i++)
                if (purge_item_holds(&purge->stages.items[i]))
                        print_stage(f, &purge->stages.items[i]);
}

/* ---- removing ---- */

static int purge_remove_file(Purge *purge, const char *file) {
        if (unlinkat(purge->dir_fd, file, 0) < 0)
                return errno == ENOENT ? 0 : -errno;
        (void)printf("removed %s/%s\n", purge->dir, file);
        return 0;
}

static int purge_remove_part(Purge *purge, const char *file) {
        return has_prefix(file, BOARD_PREFIX) || has_prefix(file, LANE_PREFIX)
                       ? purge_remove_file(purge, file)
                       : 0;
}

static int purge_remove_queues(const Purge *purge) {
        for (size_t i = 0; i < purge->queues.n; i++) {
                const char *name = purge->queues.items[i].name;

                if (mq_unlink(name) < 0) {
                        if (errno == ENOENT)
                                continue;
                        return -errno;
                }
                (void)printf("removed the queue %s\n", name);
        }
        return 0;
}

/* The service manager's folder is its own to remove. */
static bool is_given_folder(const char *dir) {
        const char *given = getenv("RUNTIME_DIRECTORY");
        size_t n = given ? strcspn(given, ":") : 0;

        return given && strlen(dir) == n && strncmp(dir, given, n) == 0;
}

/*
 * Queues before their boards, which tell their names: a purge that is
 * interrupted can be made again. The lock is last; it is held until the end.
 */
static int purge_remove(Purge *purge) {
        int r;

        r = purge_remove_queues(purge);
        if (r == 0)
                r = purge_walk(purge, purge_remove_part);
        if (r == 0)
                r = purge_remove_file(purge, "life");
        if (r == 0)
                r = purge_remove_file(purge, "lock");
        if (r < 0)
                return r;

        if (!is_given_folder(purge->dir) && rmdir(purge->dir) == 0)
                (void)printf("removed %s\n", purge->dir);
        return 0;
}

static int purge_fail(const Purge *purge, int r) {
        errno = -r;
        warn("cannot purge instance '%s'", purge->instance);
        return EXIT_WORK_FAILED;
}

/* The caller holds the instance's lock. */
static int purge_instance(Purge *purge, bool force) {
        int r;

        r = purge_look(purge);
        if (r < 0)
                return purge_fail(purge, r);

        if (purge_items_hold(&purge->queues) || purge_items_hold(&purge->stages)) {
                if (!force) {
                        warnx("instance '%s' holds jobs; start it to finish them, or use --force to lose them:",
                              purge->instance);
                        purge_print_held(purge, stderr);
                        return EXIT_WORK_FAILED;
                }
                (void)printf("lost with instance '%s':\n", purge->instance);
                purge_print_held(purge, stdout);
        }
        r = purge_remove(purge);
        return r < 0 ? purge_fail(purge, r) : EXIT_SUCCESS;
}

static int purge_with(const char *instance, bool force) {
        _cleanup_(purge_done) Purge purge = { .instance = instance };
        _cleanup_close_ int dir_fd = -1, lock_fd = -1;
        _cleanup_free_ char *dir = NULL;
        int r;

        r = runtime_find(instance, &dir_fd, &dir);
        if (r == -ENOENT) {
                warnx("there is no instance '%s'", instance);
                return EXIT_NO_INSTANCE;
        }
        if (r == 0) {
                r = runtime_lock(dir_fd, instance, &lock_fd);
                if (r == -EBUSY) {
                        warnx("instance '%s' is running; stop it first", instance);
                        return EXIT_NO_INSTANCE;
                }
        }
        if (r < 0)
                return purge_fail(&purge, r);

        purge.dir_fd = dir_fd;
        purge.dir = dir;
        return purge_instance(&purge, force);
}

static int parse_options(int argc, char **argv, PurgeOptions *o) {
        enum { OPTION_FORCE = 256 };
        static const struct option options[] = {
                { "instance", required_argument, NULL, 'i' },
                { "force", no_argument, NULL, OPTION_FORCE },
                { "help", no_argument, NULL, 'h' },
                {},
        };
        int c;

        optind = 0; /* whoever called us has used getopt, too */
        while ((c = getopt_long(argc, argv, "i:h", options, NULL)) >= 0) {
                switch (c) {
                case 'i':
                        o->instance = optarg;
                        break;
                case OPTION_FORCE:
                        o->force = true;
                        break;
                case 'h':
                        o->help = true;
                        return EXIT_SUCCESS;
                default:
                        (void)fputs("Try `sluicectl purge --help`.\n", stderr);
                        return EXIT_USAGE;
                }
        }
        if (optind < argc) {
                warnx("'%s' is too much: an instance is named with -i", argv[optind]);
                return EXIT_USAGE;
        }
        return EXIT_SUCCESS;
}

int purge_main(int argc, char **argv) {
        _cleanup_free_ char *instance = NULL;
        PurgeOptions options = {};
        int code;

        code = parse_options(argc, argv, &options);
        if (code != EXIT_SUCCESS)
                return code;
        if (options.help) {
                usage(stdout);
                return EXIT_SUCCESS;
        }
        /* The only command that cannot be undone does not guess what it is about. */
        if (!options.instance) {
                (void)fprintf(stderr, "sluicectl purge: which instance? Name it with -i NAME\n");
                return EXIT_USAGE;
        }
        code = select_instance(options.instance, false, &instance);
        if (code != EXIT_SUCCESS)
                return code;
        return purge_with(instance, options.force);
}
