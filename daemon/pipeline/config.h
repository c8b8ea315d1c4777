#pragma once

/*
 * Config: a libconfig file, or the words of `sluicectl run`, to a Pipeline.
 *
 * One typed table (config_keys) names every key with its scope, type, unit,
 * range, default and help; the reader, `--check`, "did you mean" and the
 * manual page all come from it. libconfig's lookup functions are never used:
 * version 1.5 wraps 3000000000 silently, so every value is taken by its
 * stored type and checked.
 *
 * All errors of a file are reported, not just the first, each as
 * FILE:LINE: message, with the file it stands in when @include is used.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "pipeline/pipeline.h"

typedef enum ConfigScope {
        CONFIG_TOP,
        CONFIG_STAGE,
        CONFIG_RETRY, /* stages.retry */
        CONFIG_QUEUE, /* stages.queue */
        _CONFIG_SCOPE_MAX,
} ConfigScope;

/* Not CONFIG_TYPE_*, and below not config_read(): libconfig has those. */
typedef enum ConfigType {
        CONFIG_KEY_INT, /* or one of `words` */
        CONFIG_KEY_FLOAT,
        CONFIG_KEY_BOOL,
        CONFIG_KEY_STRING,
        CONFIG_KEY_NAME,     /* pipeline and stage names */
        CONFIG_KEY_ENUM,     /* one of `words` */
        CONFIG_KEY_DURATION, /* "100ms": us, ms, s, min, h, d; a bare number but 0 is an error: unit missing */
        CONFIG_KEY_SIZE,     /* "8KiB": B, KiB, MiB, GiB (and K, M, G); likewise */
        CONFIG_KEY_GROUP,    /* has keys of its own, see `group` */
        CONFIG_KEY_OTHER,    /* read by a function of its own */
} ConfigType;

typedef struct ConfigKey {
        ConfigScope scope;
        const char *name;
        ConfigType type;
        int64_t min, max;     /* inclusive, in the unit (microseconds, bytes); ignored where equal */
        const char *fallback; /* as written in the file; NULL: required or derived, see help */
        const char *words;    /* ENUM, INT: the words, separated by spaces */
        ConfigScope group;    /* GROUP */
        const char *help;
} ConfigKey;

extern const ConfigKey config_keys[];
extern const size_t n_config_keys;

/* Errors and warnings found, in file order. */
typedef struct ConfigProblem {
        char *file;
        unsigned line; /* 0: about the file as a whole */
        bool warning;
        char *message;
        uint64_t order; /* position in the text with its includes; problems are sorted by it */
} ConfigProblem;

typedef struct ConfigReport {
        ConfigProblem *problems;
        size_t n_problems;
        size_t n_errors;
} ConfigReport;

void config_report_done(ConfigReport *report);
void config_report_print(const ConfigReport *report, FILE *f);
int config_report_add(ConfigReport *report, const char *file, unsigned line, bool warning, const char *format,
                      ...) __attribute__((format(printf, 5, 6)));

/* Loads and describes plugins: fills `set` for the given files. Injected, so that
 * this module starts no process; supervisor/plugins.h has the real one. */
typedef int (*ConfigDescribe)(const char *const *files, size_t n_files, PluginSet *set);

enum {
        _CONFIG_E_SUCCESS,
        CONFIG_E_INVALID, /* see the report */
};

/*
 * Reads and checks `path`. Returns 0 with a pipeline; CONFIG_E_INVALID with at least one error in `report`;
 * negative errno if memory runs out. Warnings may be in `report` in either case.
 */
int pipeline_from_file(const char *path, ConfigDescribe describe, ConfigReport *report, Pipeline **ret);

/*
 * Builds a pipeline from STAGE[:key=value,...] words, each key one of the stage's settings or a stage key
 * (`workers=4`, `retry.attempts=5`); a setting named like a stage key is written `settings.mode=...`. A comma or
 * backslash inside a value is written \, and \\. Results of the last stage go to a queue. `n_workers`: for stages
 * that do not say otherwise, 0 for the default (a stage with SLUICE_ONE_LANE always gets one). Problems carry no
 * file, and name the word. Returns as pipeline_from_file().
 */
int pipeline_from_arguments(const char *name, const char *const *words, size_t n_words, uint32_t n_workers,
                            ConfigDescribe describe, ConfigReport *report, Pipeline **ret);

/* Parses "100ms" / "8KiB". Returns 0; -EINVAL not a number with a unit; -ENOENT the unit is missing; -ERANGE. */
int config_parse_duration(const char *text, uint64_t *ret_usec);
int config_parse_size(const char *text, uint64_t *ret_bytes);
