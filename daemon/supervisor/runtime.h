#pragma once

/*
 * Runtime folders: where an instance lives, and which are there.
 *
 * In order: $RUNTIME_DIRECTORY (set by systemd, one folder for the one
 * instance of the unit); for root /run/sluice/NAME; $XDG_RUNTIME_DIR/sluice/NAME;
 * /dev/shm/sluice-UID/NAME. Lane records must be on tmpfs, where a page once
 * present stays writable without I/O; a candidate on another file system is
 * passed over, the last one always is tmpfs.
 */

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Makes (mode 0700 if new) and opens the folder for `name`; not yet locked. Returns 0 with descriptor and path (caller owns both), or a
 * negative errno; -EPERM: somebody else owns it. */
int runtime_make(const char *name, int *ret_fd, char **ret_path);

/* Opens the folder of an existing instance, running or not. Returns 0, -ENOENT, or another negative errno. */
int runtime_find(const char *name, int *ret_fd, char **ret_path);

/* Takes the instance's lock for this process and writes name and pid into it. The process must not open and close the
 * lock file by other means, which would release it. Returns 0 with the descriptor that holds it, -EBUSY if a
 * daemon has it. */
int runtime_lock(int dir_fd, const char *name, int *ret_fd);

/* Pid of the daemon that holds the lock, 0 if none does, negative errno. */
pid_t runtime_holder(int dir_fd);

/* The names of all instances of this user that are running (`running_only`) or have a folder; NULL-terminated, caller
 * frees each and the array. */
int runtime_list(bool running_only, char ***ret_names);
