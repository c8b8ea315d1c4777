#pragma once

/*
 * Program: where the other parts of this installation are.
 *
 * Everything is found relative to the running program, so a build tree, an
 * installation below any prefix and a copy of one all work unconfigured.
 */

/*
 * Call first in main(). A standard descriptor that was closed would be the
 * number of the next file opened, and be read or written as input or output.
 * It is made one on which that fails (EBADF). Returns 0 or a negative errno.
 */
int program_guard_standard_fds(void);

/* The folder of the running program, without a trailing slash. Returns 0 (caller frees) or a negative errno. */
int program_folder(char **ret);

/*
 * Finds a helper program: $SLUICE_LIBEXEC/NAME and nothing else if that is
 * set; else NAME beside the running program (build tree), else
 * ../libexec/sluice/NAME from there (installed).
 * Returns 0 with an absolute path (caller frees), -ENOENT, or another negative errno.
 */
int program_find(const char *name, char **ret);
