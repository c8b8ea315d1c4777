/*
 * Queues: fitting them into the kernel's limits, making and checking them,
 * and the calls on them. Queues have names of this process' own, or none.
 */

#include "queue/queue.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "frame/frame.h"

#define SHAPES_MAX 32

static const QueueLimits defaults = {
        .depth_max = 10,
        .message_max = 8192,
        .queues_max = 256,
        .bytes_max = 819200,
};
static const QueueShape small = { .depth = 2, .message_bytes = 256 };
static const QueueShape any[SHAPES_MAX];

/* ---- the plan ---- */

static uint64_t sum_of(const QueueShape *shapes, size_t n) {
        uint64_t sum = 0;

        for (size_t i = 0; i < n; i++)
                sum += queue_price(&shapes[i]);
        return sum;
}

START_TEST(a_few_queues_get_the_kernels_defaults) {
        for (size_t n = 0; n <= 9; n++) {
                QueueShape shapes[SHAPES_MAX];
                QueuePlan plan;

                ck_assert_int_eq(queue_plan(&defaults, 0, any, n, shapes, &plan), 0);
                ck_assert(!plan.reduced);
                ck_assert_uint_eq(plan.sum_bytes, sum_of(shapes, n));
                ck_assert_uint_le(plan.sum_bytes, defaults.bytes_max);
                for (size_t i = 0; i < n; i++) {
                        ck_assert_uint_eq(shapes[i].depth, QUEUE_DEFAULT_DEPTH);
                        ck_assert_uint_eq(shapes[i].message_bytes, QUEUE_DEFAULT_MESSAGE_BYTES);
                }
        }
}
END_TEST

START_TEST(many_queues_fit_by_being_smaller) {
        for (size_t n = 10; n <= SHAPES_MAX; n++) {
                QueueShape shapes[SHAPES_MAX];
                QueuePlan plan;

                ck_assert_int_eq(queue_plan(&defaults, 0, any, n, shapes, &plan), 0);
                ck_assert(plan.reduced);
                ck_assert_uint_eq(plan.sum_bytes, sum_of(shapes, n));
                ck_assert_uint_le(plan.sum_bytes, defaults.bytes_max);
                for (size_t i = 0; i < n; i++) {
                        ck_assert_uint_ge(shapes[i].depth, QUEUE_MIN_DEPTH);
                        ck_assert_uint_ge(shapes[i].message_bytes, FRAME_MIN_BYTES);
                }
                ck_assert_ptr_nonnull(strstr(plan.text, "LimitMSGQUEUE="));
        }
}
END_TEST

START_TEST(twenty_queues_give_up_depth_but_not_frame_size) {
        QueueShape shapes[SHAPES_MAX];
        QueuePlan plan;

        ck_assert_int_eq(queue_plan(&defaults, 0, any, 20, shapes, &plan), 0);
        ck_assert_uint_eq(shapes[19].depth, 4);
        ck_assert_uint_eq(shapes[19].message_bytes, 8192);
}
END_TEST

START_TEST(wishes_are_kept_or_refused_never_changed) {
        QueueShape wishes[12] = { { .depth = 10, .message_bytes = 8192 },
                                  { .depth = 3 },
                                  { .message_bytes = 1000 } };
        QueueShape shapes[SHAPES_MAX];
        QueuePlan plan;

        ck_assert_int_eq(queue_plan(&defaults, 0, wishes, ELEMENTSOF(wishes), shapes, &plan), 0);
        ck_assert(plan.reduced);
        ck_assert_uint_eq(shapes[0].depth, 10);
        ck_assert_uint_eq(shapes[0].message_bytes, 8192);
        ck_assert_uint_eq(shapes[1].depth, 3);
        ck_assert_uint_eq(shapes[2].message_bytes, 1000);

        for (size_t i = 0; i < ELEMENTSOF(wishes); i++)
                wishes[i] = wishes[0];
        ck_assert_int_eq(queue_plan(&defaults, 0, wishes, ELEMENTSOF(wishes), shapes, &plan), QUEUE_E_LIMITS);
        ck_assert_ptr_nonnull(strstr(plan.text, "RLIMIT_MSGQUEUE"));
        ck_assert_uint_eq(plan.sum_bytes, 12 * queue_price(&wishes[0]));
}
END_TEST

START_TEST(a_wish_above_a_limit_is_refused_by_the_limits_name) {
        static const struct {
                QueueShape wish;
                const char *named, *value;
        } cases[] = {
                { { .depth = 11 }, "fs.mqueue.msg_max = 10", "depth 11" },
                { { .message_bytes = 8193 }, "fs.mqueue.msgsize_max = 8192", "8193 bytes" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                QueueShape shapes[1];
                QueuePlan plan;

                ck_assert_int_eq(queue_plan(&defaults, 0, &cases[i].wish, 1, shapes, &plan), QUEUE_E_LIMITS);
                ck_assert_msg(strstr(plan.text, cases[i].named) && strstr(plan.text, cases[i].value), "%s",
                              plan.text);
        }
}
END_TEST

START_TEST(limits_that_no_plan_fits_are_named) {
        QueueShape shapes[SHAPES_MAX];
        QueueLimits limits = defaults;
        QueuePlan plan;

        limits.queues_max = 3;
        ck_assert_int_eq(queue_plan(&limits, 0, any, 4, shapes, &plan), QUEUE_E_LIMITS);
        ck_assert_ptr_nonnull(strstr(plan.text, "fs.mqueue.queues_max = 3"));

        limits = defaults;
        limits.message_max = 128; /* the kernel allows this little; a frame does not fit */
        ck_assert_int_eq(queue_plan(&limits, 0, any, 1, shapes, &plan), QUEUE_E_LIMITS);
        ck_assert_ptr_nonnull(strstr(plan.text, "fs.mqueue.msgsize_max = 128"));

        limits = defaults;
        limits.bytes_max = 1000;
        ck_assert_int_eq(queue_plan(&limits, 0, any, 3, shapes, &plan), QUEUE_E_LIMITS);
        ck_assert_ptr_nonnull(strstr(plan.text, "leaves 1000"));
}
END_TEST

START_TEST(frames_are_never_planned_smaller_than_a_frame_can_be) {
        QueueLimits limits = defaults;

        for (limits.message_max = FRAME_MIN_BYTES; limits.message_max < 1100; limits.message_max += 7)
                for (limits.bytes_max = 1000; limits.bytes_max < 20000; limits.bytes_max += 100) {
                        QueueShape shapes[4];
                        QueuePlan plan;

                        if (queue_plan(&limits, 0, any, 4, shapes, &plan) != 0)
                                continue;
                        if (shapes[0].message_bytes < FRAME_MIN_BYTES || shapes[0].depth < QUEUE_MIN_DEPTH ||
                            plan.sum_bytes > limits.bytes_max)
                                ck_abort_msg("%" PRIu32 " x %" PRIu32 " bytes", shapes[0].depth,
                                             shapes[0].message_bytes);
                }
}
END_TEST

START_TEST(the_smallest_plan_is_tried_before_giving_up) {
        QueueLimits limits = defaults;
        QueueShape shapes[5];
        QueuePlan plan;

        limits.bytes_max =
                5 * queue_price(&(QueueShape){ .depth = QUEUE_MIN_DEPTH, .message_bytes = FRAME_MIN_BYTES });
        ck_assert_int_eq(queue_plan(&limits, 0, any, 5, shapes, &plan), 0);
        ck_assert_uint_eq(plan.sum_bytes, limits.bytes_max);
        limits.bytes_max--;
        ck_assert_int_eq(queue_plan(&limits, 0, any, 5, shapes, &plan), QUEUE_E_LIMITS);
}
END_TEST

START_TEST(a_budget_below_the_limit_counts_and_one_above_does_not) {
        QueueShape shapes[12];
        QueuePlan plan;

        ck_assert_int_eq(queue_plan(&defaults, 100000, any, 3, shapes, &plan), 0);
        ck_assert(plan.reduced);
        ck_assert_uint_le(plan.sum_bytes, 100000);
        ck_assert_int_eq(queue_plan(&defaults, UINT64_MAX, any, 12, shapes, &plan), 0);
        ck_assert(plan.reduced);
        ck_assert_uint_le(plan.sum_bytes, defaults.bytes_max);
}
END_TEST

START_TEST(the_plan_says_in_one_line_what_it_got) {
        QueueShape wishes[2] = { { .depth = 100, .message_bytes = 16384 },
                                 { .depth = 20, .message_bytes = 65536 } };
        QueueLimits limits = {
                .depth_max = 1000, .message_max = 1 << 20, .queues_max = 256, .bytes_max = UINT64_MAX
        };
        QueueShape shapes[3];
        QueuePlan plan;

        ck_assert_int_eq(queue_plan(&defaults, 0, any, 3, shapes, &plan), 0);
        ck_assert_str_eq(plan.text,
                         "3 queues, up to 10 x 8192 bytes each, 248640 bytes in all of the 819200 that "
                         "RLIMIT_MSGQUEUE grants");
        ck_assert_int_eq(queue_plan(&limits, 0, wishes, 2, shapes, &plan), 0);
        ck_assert_str_eq(plan.text,
                         "2 queues, up to 100 x 65536 bytes each, 2960640 bytes in all without a limit");
        ck_assert_int_eq(queue_plan(&limits, 0, wishes, 1, shapes, &plan), 0);
        ck_assert_msg(strncmp(plan.text, "1 queue, ", 9) == 0, "%s", plan.text);
}
END_TEST

START_TEST(the_limits_are_those_of_this_system) {
        struct rlimit rl;
        QueueLimits limits;

        queue_limits_read(&limits);
        ck_assert_uint_ge(limits.depth_max, 1);
        ck_assert_uint_ge(limits.message_max, 128);
        ck_assert_int_eq(getrlimit(RLIMIT_MSGQUEUE, &rl), 0);
        ck_assert_uint_eq(limits.bytes_max, rl.rlim_cur == RLIM_INFINITY ? UINT64_MAX : rl.rlim_cur);
}
END_TEST

/* ---- the price ---- */

/* Runs `body` in a child whose user has no other queues; its exit code. 77: no such user can be had here. */
static int as_a_user_of_its_own(int (*body)(void)) {
        int status;
        pid_t pid = fork();

        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                uid_t uid = 0x40000000 + (uid_t)getpid();

                /* The kernel counts by real user; a new user namespace has counts of its own, too. */
                if (geteuid() == 0 ? setgroups(0, NULL) < 0 || setresuid(uid, uid, uid) < 0
                                   : unshare(CLONE_NEWUSER) < 0)
                        _exit(77);
                _exit(body());
        }
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_msg(WIFEXITED(status), "the child died");
        return WEXITSTATUS(status);
}

static bool limit_bytes(uint64_t bytes) {
        struct rlimit rl;

        if (getrlimit(RLIMIT_MSGQUEUE, &rl) < 0)
                return false;
        rl.rlim_cur = bytes;
        return setrlimit(RLIMIT_MSGQUEUE, &rl) == 0;
}

/* 0, or the number of the first shape whose price is not the kernel's. */
static int price_shapes(void) {
        static const QueueShape shapes[] = {
                { 1, 128 }, { 2, 256 }, { 3, 1000 }, { 10, 8192 }, { 7, 4096 }, { 10, 1 },
        };

        for (size_t i = 0; i < ELEMENTSOF(shapes); i++)
                for (int one_less = 0; one_less < 2; one_less++) {
                        _cleanup_close_ int fd = -1;
                        int r;

                        if (!limit_bytes(queue_price(&shapes[i]) - (uint64_t)one_less))
                                return 100;
                        r = queue_create_anonymous(&shapes[i], &fd);
                        if (r != (one_less ? QUEUE_E_LIMITS : 0))
                                return (int)i + 1;
                }
        return 0;
}

static int price_sum(void) {
        int fds[8];
        int n = 0, r = 0;

        if (!limit_bytes(5 * queue_price(&small) + queue_price(&small) / 2))
                return 100;
        while (n < 8 && (r = queue_create_anonymous(&small, &fds[n])) == 0)
                n++;
        if (r != QUEUE_E_LIMITS)
                return 101;
        /* And what is closed can be had again. */
        (void)close(fds[0]);
        if (queue_create_anonymous(&small, &fds[0]) != 0)
                return 102;
        return n;
}

START_TEST(the_price_is_the_kernels_to_the_byte) {
        int r = as_a_user_of_its_own(price_shapes);

        if (r == 77)
                printf("no user of its own here: prices are not compared\n");
        else
                ck_assert_int_eq(r, 0);
}
END_TEST

START_TEST(queues_are_created_until_the_sum_is_used_up) {
        int r = as_a_user_of_its_own(price_sum);

        if (r == 77)
                printf("no user of its own here: sums are not compared\n");
        else
                ck_assert_int_eq(r, 5);
}
END_TEST

/* ---- making and checking ---- */

static char name[64];

static void set_up_name(void) {
        (void)snprintf(name, sizeof(name), "/sluice.test-queue.%d.%d", (int)getppid(), (int)getpid());
        (void)mq_unlink(name);
}

static void tear_down_name(void) {
        (void)mq_unlink(name);
}

START_TEST(a_queue_that_exists_is_never_taken_for_a_new_one) {
        _cleanup_close_ int first = -1;
        int second = -2;

        ck_assert_int_eq(queue_create(name, &small, 0600, &first), 0);
        ck_assert_int_eq(queue_create(name, &small, 0600, &second), QUEUE_E_EXISTS);
        ck_assert_int_eq(second, -2);
}
END_TEST

START_TEST(a_new_queue_has_the_mode_it_was_given_whatever_the_umask) {
        static const mode_t modes[] = { 0600, 0620, 0622, 0400 };

        (void)umask(0777);
        for (size_t i = 0; i < ELEMENTSOF(modes); i++) {
                _cleanup_close_ int fd = -1;
                struct stat st;

                ck_assert_int_eq(queue_create(name, &small, modes[i], &fd), 0);
                ck_assert_int_eq(fstat(fd, &st), 0);
                ck_assert_uint_eq(st.st_mode & 07777, modes[i]);
                ck_assert_int_ne(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
                ck_assert_int_eq(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
                ck_assert_int_eq(mq_unlink(name), 0);
        }
}
END_TEST

START_TEST(a_queue_is_opened_with_its_shape) {
        _cleanup_close_ int made = -1, opened = -1;
        QueueShape shape = {};

        ck_assert_int_eq(queue_open(name, &opened, &shape), QUEUE_E_ABSENT);
        ck_assert_int_eq(queue_create(name, &(QueueShape){ .depth = 3, .message_bytes = 777 }, 0620, &made),
                         0);
        ck_assert_int_eq(queue_open(name, &opened, &shape), 0);
        ck_assert_uint_eq(shape.depth, 3);
        ck_assert_uint_eq(shape.message_bytes, 777);
        ck_assert_int_ne(fcntl(opened, F_GETFD) & FD_CLOEXEC, 0);
}
END_TEST

START_TEST(a_queue_that_lets_others_in_is_refused) {
        for (mode_t others = 1; others <= 7; others++) {
                _cleanup_close_ int made = -1;
                int opened = -2;
                QueueShape shape = { .depth = 99 };

                ck_assert_int_eq(queue_create(name, &small, 0600 | others, &made), 0);
                ck_assert_int_eq(queue_open(name, &opened, &shape), QUEUE_E_FOREIGN);
                ck_assert_int_eq(opened, -2);
                ck_assert_uint_eq(shape.depth, 99);
                ck_assert_int_eq(mq_unlink(name), 0);
        }
}
END_TEST

static int squat(void) {
        int fd = -1;

        return queue_create(name, &small, 0600, &fd) == 0 ? 0 : 1;
}

START_TEST(a_queue_of_another_user_is_refused) {
        int opened = -2;
        QueueShape shape;

        if (geteuid() != 0) {
                printf("not root: nobody else's queue to open\n");
                return;
        }
        ck_assert_int_eq(as_a_user_of_its_own(squat), 0);
        ck_assert_int_eq(queue_open(name, &opened, &shape), QUEUE_E_FOREIGN);
        ck_assert_int_eq(opened, -2);
}
END_TEST

START_TEST(shapes_that_the_kernel_refuses_are_a_matter_of_limits) {
        int fd = -2;

        ck_assert_int_eq(
                queue_create(name, &(QueueShape){ .depth = 1 << 20, .message_bytes = 256 }, 0600, &fd),
                QUEUE_E_LIMITS);
        ck_assert_int_eq(queue_create(name, &(QueueShape){ .depth = 2, .message_bytes = 1 << 30 }, 0600, &fd),
                         QUEUE_E_LIMITS);
        ck_assert_int_eq(fd, -2);
}
END_TEST

START_TEST(an_anonymous_queue_leaves_no_name) {
        _cleanup_close_ int fd = -1;
        char path[64], target[256];
        ssize_t n;

        ck_assert_int_eq(queue_create_anonymous(&small, &fd), 0);
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        n = readlink(path, target, sizeof(target) - 1);
        ck_assert_int_gt(n, 0);
        target[n] = '\0';
        ck_assert_msg(strstr(target, "(deleted)"), "%s", target);
}
END_TEST

/* ---- sending and receiving ---- */

START_TEST(trying_never_blocks) {
        _cleanup_close_ int fd = -1;
        char buffer[256];
        unsigned priority = 77;

        ck_assert_int_eq(queue_create_anonymous(&small, &fd), 0);
        ck_assert_int_eq(queue_try_receive(fd, buffer, sizeof(buffer), &priority), -EAGAIN);
        ck_assert_uint_eq(priority, 77); /* untouched: nothing came */
        ck_assert_int_eq(queue_depth(fd), 0);
        ck_assert_int_eq(queue_try_send(fd, "low", 3, 1), 0);
        ck_assert_int_eq(queue_try_send(fd, "high", 4, 16), 0);
        ck_assert_int_eq(queue_try_send(fd, "too many", 8, 16), QUEUE_E_AGAIN);
        ck_assert_int_eq(queue_depth(fd), 2);

        ck_assert_int_eq(queue_try_receive(fd, buffer, sizeof(buffer), &priority), 4);
        ck_assert_uint_eq(priority, 16);
        ck_assert_mem_eq(buffer, "high", 4);
        ck_assert_int_eq(queue_receive(fd, buffer, sizeof(buffer), &priority), 3);
        ck_assert_uint_eq(priority, 1);
        ck_assert_int_eq(queue_try_receive(fd, buffer, sizeof(buffer), &priority), -EAGAIN);
}
END_TEST

START_TEST(what_is_wrong_with_a_call_is_passed_up) {
        _cleanup_close_ int fd = -1;
        char buffer[257] = "";
        unsigned priority;

        ck_assert_int_eq(queue_create_anonymous(&small, &fd), 0);
        ck_assert_int_eq(queue_send(fd, buffer, 257, 1), -EMSGSIZE);
        ck_assert_int_eq(queue_try_send(fd, buffer, 257, 1), -EMSGSIZE);
        ck_assert_int_eq(queue_try_send(fd, buffer, 1, 1), 0);
        ck_assert_int_eq(queue_receive(fd, buffer, 255, &priority), -EMSGSIZE);
        ck_assert_int_eq(queue_try_receive(fd, buffer, 255, &priority), -EMSGSIZE);
        ck_assert_int_eq(queue_send(-1, buffer, 1, 1), -EBADF);
        ck_assert_int_eq(queue_depth(-1), -EBADF);
}
END_TEST

static void on_alarm(int sig) {
}

/* A signal every 10 ms from now on: one of them arrives while the call blocks. */
static void interrupt_me(void) {
        const struct sigaction action = { .sa_handler = on_alarm }; /* no SA_RESTART */
        const struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
        const struct itimerspec soon = { .it_value.tv_nsec = 10000000, .it_interval.tv_nsec = 10000000 };
        timer_t timer;

        ck_assert_int_eq(sigaction(SIGALRM, &action, NULL), 0);
        ck_assert_int_eq(timer_create(CLOCK_MONOTONIC, (struct sigevent *)(uintptr_t)&event, &timer), 0);
        ck_assert_int_eq(timer_settime(timer, 0, &soon, NULL), 0);
}

START_TEST(a_signal_ends_a_blocking_receive_with_nothing_received) {
        _cleanup_close_ int fd = -1;
        char buffer[256];
        unsigned priority = 77;

        ck_assert_int_eq(queue_create_anonymous(&small, &fd), 0);
        interrupt_me();
        ck_assert_int_eq(queue_receive(fd, buffer, sizeof(buffer), &priority), -EINTR);
        ck_assert_uint_eq(priority, 77);
}
END_TEST

START_TEST(a_signal_ends_a_blocking_send_with_nothing_sent) {
        _cleanup_close_ int fd = -1;
        char buffer[256];
        unsigned priority;

        ck_assert_int_eq(queue_create_anonymous(&small, &fd), 0);
        ck_assert_int_eq(queue_send(fd, "a", 1, 1), 0);
        ck_assert_int_eq(queue_send(fd, "b", 1, 1), 0);
        interrupt_me();
        ck_assert_int_eq(queue_send(fd, "c", 1, 1), -EINTR);
        ck_assert_int_eq(queue_depth(fd), 2);
        while (queue_try_receive(fd, buffer, sizeof(buffer), &priority) > 0)
                ck_assert_int_ne(buffer[0], 'c');
}
END_TEST

int main(void) {
        Suite *suite = suite_create("queue");
        TCase *plan = tcase_create("plan");
        TCase *kernel = tcase_create("kernel");
        SRunner *runner;
        int n_failed;

        tcase_add_test(plan, a_few_queues_get_the_kernels_defaults);
        tcase_add_test(plan, many_queues_fit_by_being_smaller);
        tcase_add_test(plan, twenty_queues_give_up_depth_but_not_frame_size);
        tcase_add_test(plan, wishes_are_kept_or_refused_never_changed);
        tcase_add_test(plan, a_wish_above_a_limit_is_refused_by_the_limits_name);
        tcase_add_test(plan, limits_that_no_plan_fits_are_named);
        tcase_add_test(plan, frames_are_never_planned_smaller_than_a_frame_can_be);
        tcase_add_test(plan, the_smallest_plan_is_tried_before_giving_up);
        tcase_add_test(plan, a_budget_below_the_limit_counts_and_one_above_does_not);
        tcase_add_test(plan, the_plan_says_in_one_line_what_it_got);
        tcase_add_test(plan, the_limits_are_those_of_this_system);
        suite_add_tcase(suite, plan);

        tcase_add_checked_fixture(kernel, set_up_name, tear_down_name);
        tcase_add_test(kernel, the_price_is_the_kernels_to_the_byte);
        tcase_add_test(kernel, queues_are_created_until_the_sum_is_used_up);
        tcase_add_test(kernel, a_queue_that_exists_is_never_taken_for_a_new_one);
        tcase_add_test(kernel, a_new_queue_has_the_mode_it_was_given_whatever_the_umask);
        tcase_add_test(kernel, a_queue_is_opened_with_its_shape);
        tcase_add_test(kernel, a_queue_that_lets_others_in_is_refused);
        tcase_add_test(kernel, a_queue_of_another_user_is_refused);
        tcase_add_test(kernel, shapes_that_the_kernel_refuses_are_a_matter_of_limits);
        tcase_add_test(kernel, an_anonymous_queue_leaves_no_name);
        tcase_add_test(kernel, trying_never_blocks);
        tcase_add_test(kernel, what_is_wrong_with_a_call_is_passed_up);
        tcase_add_test(kernel, a_signal_ends_a_blocking_receive_with_nothing_received);
        tcase_add_test(kernel, a_signal_ends_a_blocking_send_with_nothing_sent);
        suite_add_tcase(suite, kernel);

        runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
