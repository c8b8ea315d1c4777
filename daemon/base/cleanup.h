#pragma once

/*
 * Ownership made visible: everything acquired has one owner, and the
 * declaration says which function gives it back.
 *
 *     _cleanup_free_ char *path = NULL;
 *     _cleanup_close_ int fd = -1;
 *     _cleanup_(queue_freep) Queue *q = NULL;
 *
 * TAKE_PTR() and TAKE_FD() pass ownership on: the variable is reset, so its
 * cleanup does nothing.
 */

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

#define DEFINE_CLEANUP(type, free_function)                                                                  \
        static inline void free_function##p(type **p) {                                                      \
                if (*p)                                                                                      \
                        free_function(*p);                                                                   \
        }

#define TAKE_GENERIC(var, none)                                                                              \
        ({                                                                                                   \
                __typeof__(var) *_take = &(var), _value = *_take;                                            \
                *_take = (none);                                                                             \
                _value;                                                                                      \
        })
#define TAKE_PTR(ptr) TAKE_GENERIC(ptr, NULL)
#define TAKE_FD(fd) TAKE_GENERIC(fd, -1)

#define ELEMENTSOF(x) (sizeof(x) / sizeof((x)[0]))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

static inline void free_pointer(void *p) {
        free(*(void **)p);
}

/* Closes a descriptor if it is open and returns -1; errno is kept. */
static inline int close_fd(int fd) {
        if (fd >= 0) {
                int saved = errno;

                (void)close(fd);
                errno = saved;
        }
        return -1;
}

static inline void close_fdp(int *fd) {
        *fd = close_fd(*fd);
}

DEFINE_CLEANUP(FILE, fclose)
DEFINE_CLEANUP(DIR, closedir)

#define _cleanup_free_ _cleanup_(free_pointer)
#define _cleanup_close_ _cleanup_(close_fdp)
#define _cleanup_fclose_ _cleanup_(fclosep)
#define _cleanup_closedir_ _cleanup_(closedirp)
