#include "supervisor/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "lane/memory.h"

#define RUNTIME_CANDIDATES_MAX 4
#define RUNTIME_NAME_MAX 72

/* The folders that hold one folder per instance. $RUNTIME_DIRECTORY is one itself: `ret_exact` says so. */
static size_t runtime_roots(char *roots[RUNTIME_CANDIDATES_MAX], bool *ret_exact) {
        const char *given = getenv("RUNTIME_DIRECTORY"), *xdg = getenv("XDG_RUNTIME_DIR");
        size_t n = 0;

        *ret_exact = given && given[0] == '/';
        if (*ret_exact) {
                roots[n] = strndup(given, strcspn(given, ":"));
                n += roots[n] != NULL;
        }
        if (geteuid() == 0) {
                roots[n] = strdup("/run/sluice");
                n += roots[n] != NULL;
        }
        if (xdg && xdg[0] == '/' && asprintf(&roots[n], "%s/sluice", xdg) >= 0)
                n++;
        if (asprintf(&roots[n], "/dev/shm/sluice-%u", (unsigned)geteuid()) >= 0)
                n++;
        return n;
}

static void free_all(char **strings, size_t n) {
        for (size_t i = 0; i < n; i++)
                free(strings[i]);
}

static char *runtime_path(char *const *roots, size_t i, bool exact, const char *name) {
        char *path;

        if (exact && i == 0)
                return strdup(roots[0]);
        return asprintf(&path, "%s/%s", roots[i], name) < 0 ? NULL : path;
}

/* /dev/shm is everybody's: a folder there counts only if it is ours alone. */
static int open_own_folder(const char *path) {
        _cleanup_close_ int fd = -1;
        struct stat st;

        fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        if (st.st_uid != geteuid() || (st.st_mode & 0022))
                return -EPERM;
        return TAKE_FD(fd);
}

static int make_own_folder(const char *path, bool *ret_made) {
        *ret_made = mkdir(path, 0700) == 0;
        if (!*ret_made && errno != EEXIST)
                return -errno;
        return open_own_folder(path);
}

/* Returns the folder's descriptor, -EMEDIUMTYPE if it is not on tmpfs; then nothing made here is left. */
static int runtime_try(const char *root, bool exact, const char *path) {
        _cleanup_close_ int root_fd = -1, fd = -1;
        bool made_root = false, made = false;
        int r;

        if (!exact) {
                root_fd = make_own_folder(root, &made_root);
                if (root_fd < 0)
                        return root_fd;
        }
        fd = make_own_folder(path, &made);
        if (fd < 0)
                return fd;
        r = memory_check_folder(fd);
        if (r == 0)
                return TAKE_FD(fd);

        if (made)
                (void)rmdir(path);
        if (made_root)
                (void)rmdir(root);
        return r < 0 ? r : -EMEDIUMTYPE;
}

int runtime_make(const char *name, int *ret_fd, char **ret_path) {
        char *roots[RUNTIME_CANDIDATES_MAX] = {};
        bool exact;
        size_t n = runtime_roots(roots, &exact);
        int r = -ENOENT;

        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *path = runtime_path(roots, i, exact, name);

                if (!path) {
                        r = -ENOMEM;
                        break;
                }
                r = runtime_try(roots[i], exact && i == 0, path);
                if (r >= 0) {
                        *ret_fd = r;
                        *ret_path = TAKE_PTR(path);
                        r = 0;
                        break;
                }
                if (r == -EMEDIUMTYPE)
                        log_at(exact && i == 0 ? LOG_NOTICE : LOG_DEBUG,
                               "%s is not on tmpfs, where lane records are safe; using another runtime folder",
                               path);
                else
                        log_at(exact && i == 0 ? LOG_WARNING : LOG_DEBUG, "Cannot use %s: %s", path,
                               strerror(-r));
        }
        free_all(roots, n);
        return r;
}

/* Reads what runtime_lock() wrote. Returns 0 or a negative errno. */
static int runtime_read_lock(int dir_fd, pid_t *ret_pid, char ret_name[static RUNTIME_NAME_MAX]) {
        _cleanup_close_ int fd = -1;
        char text[160], name[RUNTIME_NAME_MAX];
        ssize_t n;
        int pid;

        fd = openat(dir_fd, "lock", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return -errno;
        n = pread(fd, text, sizeof(text) - 1, 0);
        if (n < 0)
                return -errno;
        text[n] = '\0';
        if (sscanf(text, "%d %71s", &pid, name) != 2)
                return -EBADMSG;
        *ret_pid = pid;
        (void)snprintf(ret_name, RUNTIME_NAME_MAX, "%s", name);
        return 0;
}

/* $RUNTIME_DIRECTORY does not have the instance's name in its path, so the lock file tells. */
static bool runtime_is_named(int dir_fd, const char *name) {
        char found[RUNTIME_NAME_MAX];
        pid_t pid;

        return runtime_read_lock(dir_fd, &pid, found) == 0 && strcmp(found, name) == 0;
}

int runtime_find(const char *name, int *ret_fd, char **ret_path) {
        char *roots[RUNTIME_CANDIDATES_MAX] = {};
        bool exact;
        size_t n = runtime_roots(roots, &exact);
        int r = -ENOENT;

        for (size_t i = 0; i < n && r != 0; i++) {
                _cleanup_free_ char *path = runtime_path(roots, i, exact, name);
                _cleanup_close_ int fd = -1;

                if (!path) {
                        r = -ENOMEM;
                        break;
                }
                fd = open_own_folder(path);
                if (fd < 0 || !runtime_is_named(fd, name))
                        continue;
                *ret_fd = TAKE_FD(fd);
                *ret_path = TAKE_PTR(path);
                r = 0;
        }
        free_all(roots, n);
        return r;
}

/*
 * The lock is a process' own (fcntl), not an open file's (flock): a child that
 * was just forked when the daemon is killed must not hold it any longer. A lock
 * on a file that was removed meanwhile (by a purge) locks nobody out.
 */
static int runtime_lock_once(int dir_fd, int *ret_fd) {
        _cleanup_close_ int fd = -1;
        struct stat st;

        fd = openat(dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return -errno;
        if (fcntl(fd, F_SETLK, &(struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET }) < 0)
                return errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_nlink == 0)
                return -ESTALE;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int runtime_lock(int dir_fd, const char *name, int *ret_fd) {
        _cleanup_close_ int fd = -1;
        char text[160];
        int n, r;

        do
                r = runtime_lock_once(dir_fd, &fd);
        while (r == -ESTALE);
        if (r < 0)
                return r;

        n = snprintf(text, sizeof(text), "%d %s\n", (int)getpid(), name);
        if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

pid_t runtime_holder(int dir_fd) {
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
        _cleanup_close_ int fd = -1;

        fd = openat(dir_fd, "lock", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        if (fcntl(fd, F_GETLK, &lock) < 0)
                return -errno;
        return lock.l_type == F_UNLCK ? 0 : lock.l_pid;
}

static int list_add(char ***names, size_t *n, const char *name) {
        char **more = reallocarray(*names, *n + 2, sizeof(char *));

        if (!more)
                return -ENOMEM;
        *names = more;
        for (size_t i = 0; i < *n; i++)
                if (strcmp(more[i], name) == 0)
                        return 0;
        more[*n] = strdup(name);
        if (!more[*n])
                return -ENOMEM;
        more[++*n] = NULL;
        return 0;
}

static bool runtime_wanted(int fd, bool running_only) {
        return faccessat(fd, "lock", F_OK, 0) == 0 && (!running_only || runtime_holder(fd) > 0);
}

static int list_exact(const char *path, bool running_only, char ***names, size_t *n) {
        _cleanup_close_ int fd = open_own_folder(path);
        char name[RUNTIME_NAME_MAX];
        pid_t pid;

        if (fd < 0 || !runtime_wanted(fd, running_only) || runtime_read_lock(fd, &pid, name) < 0)
                return 0;
        return list_add(names, n, name);
}

static int list_root(const char *root, bool running_only, char ***names, size_t *n) {
        _cleanup_closedir_ DIR *d = opendir(root);
        struct dirent *de;

        while (d && (de = readdir(d))) {
                _cleanup_free_ char *path = NULL;
                _cleanup_close_ int fd = -1;

                if (de->d_name[0] == '.')
                        continue;
                if (asprintf(&path, "%s/%s", root, de->d_name) < 0)
                        return -ENOMEM;
                fd = open_own_folder(path);
                if (fd >= 0 && runtime_wanted(fd, running_only) && list_add(names, n, de->d_name) < 0)
                        return -ENOMEM;
        }
        return 0;
}

int runtime_list(bool running_only, char ***ret_names) {
        char *roots[RUNTIME_CANDIDATES_MAX] = {};
        char **names = calloc(1, sizeof(char *));
        bool exact;
        size_t n_roots = runtime_roots(roots, &exact), n = 0;
        int r = names ? 0 : -ENOMEM;

        for (size_t i = 0; i < n_roots && r == 0; i++)
                r = exact && i == 0 ? list_exact(roots[i], running_only, &names, &n)
                                    : list_root(roots[i], running_only, &names, &n);
        free_all(roots, n_roots);
        if (r < 0) {
                free_all(names, n);
                free(names);
                return r;
        }
        *ret_names = names;
        return 0;
}
