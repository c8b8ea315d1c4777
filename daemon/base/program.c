#include "base/program.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "base/cleanup.h"

int program_guard_standard_fds(void) {
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
                if (fcntl(fd, F_GETFD) >= 0)
                        continue;
                if (errno != EBADF)
                        return -errno;
                /* The lowest free number is this one. */
                if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
                        return -errno;
        }
        return 0;
}

int program_folder(char **ret) {
        _cleanup_free_ char *path = NULL;

        path = malloc(PATH_MAX);
        if (!path)
                return -ENOMEM;

        ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
        if (n < 0)
                return -errno;
        if (n == PATH_MAX)
                return -ENAMETOOLONG;
        path[n] = '\0';

        /* A program replaced while it runs reads "... (deleted)"; its folder is the same. */
        char *slash = strrchr(path, '/');
        if (!slash)
                return -ENOENT;
        if (slash == path)
                slash++;
        *slash = '\0';

        *ret = TAKE_PTR(path);
        return 0;
}

static int find_in(const char *folder, const char *between, const char *name, char **ret) {
        _cleanup_free_ char *path = NULL, *absolute = NULL;

        if (asprintf(&path, "%s/%s%s", folder, between, name) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        if (access(path, X_OK) < 0)
                return errno == ENOMEM ? -ENOMEM : -ENOENT;

        absolute = realpath(path, NULL);
        if (!absolute)
                return -errno;

        *ret = TAKE_PTR(absolute);
        return 0;
}

int program_find(const char *name, char **ret) {
        _cleanup_free_ char *folder = NULL;
        const char *libexec = getenv("SLUICE_LIBEXEC");

        /* A wrong setting must not silently start another version's program. */
        if (libexec && *libexec)
                return find_in(libexec, "", name, ret);

        int r = program_folder(&folder);
        if (r < 0)
                return r;

        r = find_in(folder, "", name, ret);
        if (r != -ENOENT)
                return r;
        return find_in(folder, "../libexec/sluice/", name, ret);
}
