#include "supervisor/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "worker/worker_proto.h"

/* ---- spec ---- */

static size_t setting_bytes(const Setting *s) {
        size_t n = sizeof(WorkerSetting) + strlen(s->name) + 1 + strlen(s->string ?: "") + 1;

        return (n + 7) / 8 * 8;
}

static void setting_write(uint8_t *p, const Setting *s) {
        WorkerSetting *entry = (WorkerSetting *)p;
        const char *string = s->string ?: "";

        *entry = (WorkerSetting){
                .n_bytes = (uint32_t)setting_bytes(s),
                .type = s->type,
                .integer = s->integer,
                .real = s->real,
                .n_name = (uint32_t)strlen(s->name) + 1,
                .n_string = (uint32_t)strlen(string) + 1,
        };
        memcpy(entry + 1, s->name, entry->n_name);
        memcpy((uint8_t *)(entry + 1) + entry->n_name, string, entry->n_string);
}

static void spec_fill(WorkerSpec *spec, const Instance *instance, size_t stage, uint32_t flags,
                      size_t n_bytes) {
        const InstanceStage *is = &instance->stages[stage];
        const Stage *s = &instance->pipeline->stages[stage];
        uint8_t *p = (uint8_t *)(spec + 1);

        *spec = (WorkerSpec){
                .magic = WORKER_SPEC_MAGIC,
                .n_bytes = (uint32_t)n_bytes,
                .flags = flags,
                .log_level = (uint32_t)log_level(),
                .retry_attempts = s->retry_attempts,
                .retry_backoff_usec = s->retry_backoff_usec,
                .retry_max_backoff_usec = s->retry_max_backoff_usec,
                .linger_usec = s->linger_usec,
                .n_outputs = is->n_outputs,
                .n_settings = (uint32_t)s->n_settings,
        };
        memcpy(spec->groups, is->groups, sizeof(spec->groups));
        (void)snprintf(spec->pipeline, sizeof(spec->pipeline), "%s", instance->pipeline->name);
        (void)snprintf(spec->stage, sizeof(spec->stage), "%s", s->name);
        (void)snprintf(spec->plugin, sizeof(spec->plugin), "%s", s->plugin->file);
        for (size_t i = 0; i < s->n_settings; i++) {
                setting_write(p, &s->settings[i]);
                p += setting_bytes(&s->settings[i]);
        }
}

int spawn_spec(const Instance *instance, size_t stage, uint32_t flags, int *ret_fd) {
        const Stage *s = &instance->pipeline->stages[stage];
        _cleanup_(memory_done) Memory memory = MEMORY_NULL;
        size_t n = sizeof(WorkerSpec);
        int r;

        if (strlen(s->plugin->file) >= sizeof(((WorkerSpec *)0)->plugin))
                return -ENAMETOOLONG;
        for (size_t i = 0; i < s->n_settings; i++)
                n += setting_bytes(&s->settings[i]);

        r = memory_create_anonymous("sluice-spec", n, &memory);
        if (r < 0)
                return r;
        spec_fill((WorkerSpec *)memory.data, instance, stage, flags, n);
        *ret_fd = TAKE_FD(memory.fd);
        return 0;
}

/* ---- process ---- */

#define SPAWN_FDS_MAX (WORKER_FD_OUTPUTS + 2)

/* In the child, between fork and exec: async-signal-safe calls only. */
__attribute__((noreturn)) static void spawn_child(const Spawn *spawn, int status_fd, pid_t parent) {
        const int wanted[SPAWN_FDS_MAX] = {
                [WORKER_FD_SPEC] = spawn->spec_fd,
                [WORKER_FD_STATUS] = status_fd,
                [WORKER_FD_RECORD] = spawn->record_fd,
                [WORKER_FD_INPUT] = spawn->input_fd,
                [WORKER_FD_BOARD] = spawn->board_fd,
                [WORKER_FD_OUTPUTS] = spawn->output_fd,
                [WORKER_FD_OUTPUTS + 1] = spawn->output_board_fd,
        };
        char *argv[] = { (char *)(uintptr_t)spawn->title, NULL };
        int high[SPAWN_FDS_MAX];
        sigset_t none;

        /* Workers go with their supervisor; their records make that safe. It may be gone already. */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
                _exit(127);

        /* First out of the way, then into place, so that no number is overwritten before it was copied. */
        for (int i = WORKER_FD_SPEC; i < SPAWN_FDS_MAX; i++) {
                high[i] = wanted[i] < 0 ? -1 : fcntl(wanted[i], F_DUPFD_CLOEXEC, 100);
                if (wanted[i] >= 0 && high[i] < 0)
                        _exit(127);
        }
        for (int i = WORKER_FD_SPEC; i < SPAWN_FDS_MAX; i++)
                if (high[i] >= 0 && dup2(high[i], i) < 0)
                        _exit(127);
        if (!spawn->keep_stdin) {
                int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

                if (null < 0 || dup2(null, STDIN_FILENO) < 0)
                        _exit(127);
        }

        for (int sig = 1; sig < NSIG; sig++)
                (void)signal(sig, SIG_DFL);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)execv(spawn->program, argv);
        _exit(127);
}

int spawn_worker(const Spawn *spawn, SpawnedWorker *ret) {
        _cleanup_close_ int status_read = -1, status_write = -1;
        pid_t parent = getpid(), pid;
        int fds[2], pidfd;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return -errno;
        status_read = fds[0];
        status_write = fds[1];
        if (fcntl(status_read, F_SETFL, O_NONBLOCK) < 0)
                return -errno;

        pid = fork();
        if (pid < 0)
                return -errno;
        if (pid == 0)
                spawn_child(spawn, status_write, parent);

        /* Not reaped by anybody but us, so the number cannot be another process' yet. */
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (pidfd < 0) {
                int r = -errno;

                (void)kill(pid, SIGKILL);
                (void)waitpid(pid, NULL, 0);
                return r;
        }
        *ret = (SpawnedWorker){ .pid = pid, .pidfd = pidfd, .status_fd = TAKE_FD(status_read) };
        return 0;
}
