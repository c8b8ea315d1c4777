#pragma once

/*
 * Memory that outlives a process: files on tmpfs, or memfds.
 *
 * mq_receive() takes a message off its queue before it copies it out, and a
 * copy that ends in a page fault which cannot be served destroys the message.
 * So the pages a message is received into are populated in the supervisor and
 * again in each worker (page tables are not shared), locked where allowed, and
 * never on a disk, where the next write would fault again after write-back.
 */

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

enum {
        _MEMORY_E_SUCCESS,
        MEMORY_E_NOT_TMPFS, /* the folder is on a file system that can lose a message */
        MEMORY_E_EXISTS,
        MEMORY_E_ABSENT,
};

typedef struct Memory {
        int fd;
        uint8_t *data;
        size_t n_data;
} Memory;

#define MEMORY_NULL ((Memory){ .fd = -1 })

/* Creates a memfd of `n_data` bytes (zero, sparse) that can neither shrink nor grow, and maps it. */
int memory_create_anonymous(const char *name, size_t n_data, Memory *ret);

/* Creates a file of `n_data` zero bytes in the folder `dir_fd`, mode 0600, and maps it. It appears under its name only
 * once it has its size. Returns 0, MEMORY_E_NOT_TMPFS, MEMORY_E_EXISTS, negative errno. */
int memory_create(int dir_fd, const char *name, size_t n_data, Memory *ret);

/* Maps an existing file whole. Returns 0, MEMORY_E_NOT_TMPFS, MEMORY_E_ABSENT, negative errno (-EPERM: not ours). */
int memory_open(int dir_fd, const char *name, Memory *ret);

/* Maps what an inherited descriptor refers to; takes the descriptor over. */
int memory_adopt(int fd, Memory *ret);

/* Makes the first `n_data` bytes present in this process, and locks them if RLIMIT_MEMLOCK allows. */
int memory_populate(const Memory *memory, size_t n_data);

/* 0 if the folder is on tmpfs, MEMORY_E_NOT_TMPFS, negative errno. */
int memory_check_folder(int dir_fd);

/* Unmaps and closes; the contents stay if others hold them or the file has a name. */
void memory_done(Memory *memory);
