#pragma once

/*
 * The text of a configuration, with its includes put in place.
 *
 * libconfig could include by itself, but in 1.5 only relative to one folder,
 * later versions differ, and it wraps integers that are too large before
 * anyone can see them. So the text is read here, by the same lexical rules:
 * `@include "FILE"` at the beginning of a line, outside of comments and
 * strings, is replaced by the file, looked up from the folder of the file it
 * stands in; integers that do not fit are reported.
 */

#include "pipeline/config-internal.h"

typedef struct SourceLine {
        const char *file; /* borrowed from `files` */
        unsigned line;
} SourceLine;

typedef struct ConfigSource {
        char *text;
        SourceLine *lines; /* where each line of the text comes from */
        size_t n_lines;
        size_t n_allocated;
        char **files; /* names as messages show them */
        size_t n_files;
} ConfigSource;

void config_source_done(ConfigSource *source);

/*
 * Reads `path`. Returns 0 if the text can be parsed (problems may have been
 * reported), CONFIG_E_INVALID if not, or a negative errno.
 */
int config_source_read(ConfigSource *source, const char *path, Check *check);

/* Where line `line` (from 1) of the text was written. */
ConfigPlace config_source_place(const ConfigSource *source, unsigned line);
