#include "lane/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

int memory_check_folder(int dir_fd) {
        struct statfs fs;

        if (fstatfs(dir_fd, &fs) < 0)
                return -errno;
        return fs.f_type == TMPFS_MAGIC ? 0 : MEMORY_E_NOT_TMPFS;
}

int memory_adopt(int fd, Memory *ret) {
        _cleanup_close_ int owned = fd;
        struct stat st;
        void *p;

        if (fstat(owned, &st) < 0)
                return -errno;

        p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, owned, 0);
        if (p == MAP_FAILED)
                return -errno;

        *ret = (Memory){ .fd = TAKE_FD(owned), .data = p, .n_data = (size_t)st.st_size };
        return 0;
}

int memory_create_anonymous(const char *name, size_t n_data, Memory *ret) {
        _cleanup_close_ int fd = -1;

        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0)
                return -errno;
        if (ftruncate(fd, (off_t)n_data) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
                return -errno;
        return memory_adopt(TAKE_FD(fd), ret);
}

int memory_create(int dir_fd, const char *name, size_t n_data, Memory *ret) {
        _cleanup_close_ int fd = -1;
        char path[64];
        int r;

        r = memory_check_folder(dir_fd);
        if (r != 0)
                return r;

        fd = openat(dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, (off_t)n_data) < 0)
                return -errno;

        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        if (linkat(AT_FDCWD, path, dir_fd, name, AT_SYMLINK_FOLLOW) < 0)
                return errno == EEXIST ? MEMORY_E_EXISTS : -errno;
        return memory_adopt(TAKE_FD(fd), ret);
}

int memory_open(int dir_fd, const char *name, Memory *ret) {
        _cleanup_close_ int fd = -1;
        struct stat st;
        int r;

        fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return errno == ENOENT ? MEMORY_E_ABSENT : -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
                return -EPERM;

        r = memory_check_folder(fd);
        if (r != 0)
                return r;
        return memory_adopt(TAKE_FD(fd), ret);
}

int memory_populate(const Memory *memory, size_t n_data) {
        if (madvise(memory->data, n_data, MADV_POPULATE_WRITE) < 0) {
                long page = sysconf(_SC_PAGESIZE);

                if (errno != EINVAL) /* before Linux 5.14: touch them by hand */
                        return -errno;
                for (size_t i = 0; i < n_data; i += (size_t)page)
                        __atomic_fetch_or(&memory->data[i], 0, __ATOMIC_RELAXED);
        }
        /* Without the right, or above RLIMIT_MEMLOCK, the pages can be swapped; tmpfs pages come back on access. */
        (void)mlock(memory->data, n_data);
        return 0;
}

void memory_done(Memory *memory) {
        if (memory->data)
                (void)munmap(memory->data, memory->n_data);
        (void)close_fd(memory->fd);
        *memory = MEMORY_NULL;
}
