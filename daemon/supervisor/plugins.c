#include "supervisor/plugins.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/program.h"

#define OUTPUT_MAX ((size_t)4 << 20)

/* A describing process. */
typedef struct Describer {
        pid_t pid; /* 0: none, or reaped */
        int pidfd;
        int output; /* read end */
        char *text;
        size_t n_text;
        bool timed_out;
        siginfo_t status;
} Describer;

static void describer_done(Describer *d) {
        if (d->pid > 0) {
                (void)kill(d->pid, SIGKILL);
                while (waitpid(d->pid, NULL, 0) < 0 && errno == EINTR)
                        ;
        }
        close_fdp(&d->pidfd);
        close_fdp(&d->output);
        free(d->text);
}

/* The caller may have blocked signals for its event loop; the child starts with none blocked. */
static int set_signals(posix_spawnattr_t *attr) {
        sigset_t none, pipe;
        int r;

        (void)sigemptyset(&none);
        (void)sigemptyset(&pipe);
        (void)sigaddset(&pipe, SIGPIPE);
        r = posix_spawnattr_setsigmask(attr, &none);
        if (r == 0)
                r = posix_spawnattr_setsigdefault(attr, &pipe);
        if (r == 0)
                r = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
        return -r;
}

static int spawn_with(const char *worker, char **argv, int output, posix_spawn_file_actions_t *actions,
                      posix_spawnattr_t *attr, pid_t *ret_pid) {
        int r;

        r = set_signals(attr);
        if (r < 0)
                return r;
        r = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        if (r == 0)
                r = posix_spawn_file_actions_adddup2(actions, output, STDOUT_FILENO);
        if (r == 0)
                r = posix_spawn(ret_pid, worker, actions, attr, argv, environ);
        return -r;
}

static int spawn(const char *worker, char **argv, int output, pid_t *ret_pid) {
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attr;
        int r;

        r = -posix_spawn_file_actions_init(&actions);
        if (r < 0)
                return r;
        r = -posix_spawnattr_init(&attr);
        if (r == 0) {
                r = spawn_with(worker, argv, output, &actions, &attr, ret_pid);
                (void)posix_spawnattr_destroy(&attr);
        }
        (void)posix_spawn_file_actions_destroy(&actions);
        return r;
}

static int describer_start(Describer *d, const char *worker, const char *const *files, size_t n_files) {
        _cleanup_free_ char **argv = calloc(n_files + 3, sizeof(char *));
        _cleanup_close_ int output = -1;
        int fds[2], r;

        if (!argv)
                return -ENOMEM;
        argv[0] = (char *)(uintptr_t)worker; /* exec never writes to its arguments */
        argv[1] = (char *)(uintptr_t) "--describe";
        for (size_t i = 0; i < n_files; i++)
                argv[2 + i] = (char *)(uintptr_t)files[i];

        if (pipe2(fds, O_CLOEXEC) < 0)
                return -errno;
        d->output = fds[0];
        output = fds[1];
        if (fcntl(d->output, F_SETFL, O_NONBLOCK) < 0)
                return -errno;

        r = spawn(worker, argv, output, &d->pid);
        if (r < 0) {
                d->pid = 0;
                return r;
        }
        d->pidfd = pidfd_open(d->pid, 0);
        return d->pidfd < 0 ? -errno : 0;
}

/* Reads what is there. Returns 1 at the end, 0 if more may come, or a negative errno. */
static int describer_read(Describer *d) {
        for (;;) {
                char buf[4096], *grown;
                ssize_t n = read(d->output, buf, sizeof(buf));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return errno == EAGAIN ? 0 : -errno;
                if (n == 0)
                        return 1;
                if (d->n_text + (size_t)n > OUTPUT_MAX)
                        return -EMSGSIZE;

                grown = realloc(d->text, d->n_text + (size_t)n + 1);
                if (!grown)
                        return -ENOMEM;
                d->text = grown;
                memcpy(d->text + d->n_text, buf, (size_t)n);
                d->n_text += (size_t)n;
                d->text[d->n_text] = '\0';
        }
}

static int describer_reap(Describer *d) {
        while (waitid(P_PIDFD, (id_t)d->pidfd, &d->status, WEXITED) < 0)
                if (errno != EINTR)
                        return -errno;
        d->pid = 0;
        /* Whatever it still holds of the pipe (a plugin may have forked) is not waited for. */
        int r = describer_read(d);
        return r < 0 ? r : 0;
}

/* Until the process has ended or time is up. */
static int describer_wait(Describer *d, uint64_t timeout_usec) {
        uint64_t deadline = clock_monotonic_nsec() + timeout_usec * NSEC_PER_USEC;
        struct pollfd fds[] = {
                { .fd = d->pidfd, .events = POLLIN },
                { .fd = d->output, .events = POLLIN },
        };

        for (;;) {
                uint64_t now = clock_monotonic_nsec();
                struct timespec left;
                int r;

                if (now >= deadline) {
                        d->timed_out = true;
                        return 0;
                }
                left.tv_sec = (time_t)((deadline - now) / NSEC_PER_SEC);
                left.tv_nsec = (long)((deadline - now) % NSEC_PER_SEC);
                r = ppoll(fds, ELEMENTSOF(fds), &left, NULL);
                if (r < 0 && errno != EINTR)
                        return -errno;
                if (r <= 0)
                        continue;

                if (fds[0].revents != 0)
                        return describer_reap(d);
                r = describer_read(d);
                if (r < 0)
                        return r;
                if (r > 0)
                        fds[1].fd = -1; /* closed, yet it runs on */
        }
}

/* Says in words why a process of a single file described nothing, in `buf`. */
static const char *describer_blame(const Describer *d, uint64_t timeout_usec, char *buf, size_t n_buf) {
        if (d->timed_out)
                (void)snprintf(buf, n_buf, "did not finish loading within %g s",
                               (double)timeout_usec / USEC_PER_SEC);
        else if (d->status.si_code == CLD_EXITED)
                (void)snprintf(buf, n_buf, "ended the process that loaded it (exit status %d)",
                               d->status.si_status);
        else {
                const char *name = sigabbrev_np(d->status.si_status);

                (void)snprintf(buf, n_buf, "crashed while being loaded (SIG%s)", name ? name : "?");
        }
        return buf;
}

/*
 * Describes the files in one process. Returns 0 with all of them in `ret`; -EBADMSG if it did not go well,
 * with the reason in `blame`; another negative errno if the process could not be run.
 */
static int describe_once(const char *worker, uint64_t timeout_usec, const char *const *files, size_t n_files,
                         PluginSet *ret, char *blame, size_t n_blame) {
        _cleanup_(describer_done) Describer d = { .pidfd = -1, .output = -1 };
        _cleanup_(plugin_set_done) PluginSet set = { 0 };
        int r;

        r = describer_start(&d, worker, files, n_files);
        if (r < 0)
                return r;
        r = describer_wait(&d, timeout_usec);
        if (r < 0)
                return r;

        (void)describer_blame(&d, timeout_usec, blame, n_blame);
        if (d.timed_out || d.status.si_code != CLD_EXITED || d.status.si_status != 0)
                return -EBADMSG;
        r = plugin_set_parse(&set, d.text ? d.text : "");
        if (r < 0)
                return r;
        for (size_t i = 0; i < n_files; i++)
                if (!plugin_set_find(&set, files[i]))
                        return -EBADMSG;

        return plugin_set_append(ret, &set);
}

int plugins_describe_with(const char *worker, uint64_t timeout_usec, const char *const *files, size_t n_files,
                          PluginSet *set) {
        char blame[128];
        int r;

        r = describe_once(worker, timeout_usec, files, n_files, set, blame, sizeof(blame));
        if (r != -EBADMSG)
                return r;

        for (size_t i = 0; i < n_files; i++) {
                r = describe_once(worker, timeout_usec, &files[i], 1, set, blame, sizeof(blame));
                if (r == -EBADMSG)
                        r = plugin_set_add_error(set, files[i], blame);
                if (r < 0)
                        return r;
        }
        return 0;
}

int plugins_describe(const char *const *files, size_t n_files, PluginSet *set) {
        _cleanup_free_ char *worker = NULL;
        int r;

        if (n_files == 0)
                return 0;
        r = program_find("sluice-worker", &worker);
        if (r < 0)
                return r;
        return plugins_describe_with(worker, PLUGINS_TIMEOUT_USEC, files, n_files, set);
}
