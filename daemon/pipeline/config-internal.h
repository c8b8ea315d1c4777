#pragma once

/*
 * What the parts of the configuration reader share; nobody else includes it.
 *
 * The file (config-file.c) and the words of `sluicectl run`
 * (config-arguments.c) are two front ends. Both turn what was written into
 * Given values and hand them to draft_take_*() (config-draft.c), which checks
 * each against config_keys. draft_build() (config-build.c) then looks at the
 * whole: plugins, settings, the graph.
 *
 * Checks go on after an error, to report all of them. What was wrong takes
 * its default, and a check that could then only repeat the error is skipped.
 */

#include "pipeline/config.h"

/* Where something was written. */
typedef struct ConfigPlace {
        const char *file; /* borrowed; NULL for words */
        unsigned line;    /* 0: the file as a whole */
        unsigned order;   /* line in the text with its includes */
        const char *word; /* borrowed; the word of the command line, or NULL */
} ConfigPlace;

/* Problems go through here. A failed allocation is kept instead of returned, so that
 * checks read as a list; the front end returns `broken` at its end. */
typedef struct Check {
        ConfigReport *report;
        size_t first; /* problems in the report before us */
        int broken;   /* negative errno */
} Check;

void check_problem(Check *check, const ConfigPlace *place, bool warning, const char *format, ...)
        __attribute__((format(printf, 4, 5)));
#define check_error(check, place, ...) check_problem((check), (place), false, __VA_ARGS__)
#define check_warning(check, place, ...) check_problem((check), (place), true, __VA_ARGS__)

/* Sorts the problems of this check by place. */
void check_sort(Check *check);

/* "Did you mean": offer candidates, then ask for the hint (empty if nothing is near). */
typedef struct Nearest {
        const char *word;
        const char *best;
        size_t distance;
} Nearest;

#define NEAREST_HINT_MAX 100
void nearest_offer(Nearest *nearest, const char *candidate);
const char *nearest_hint(const Nearest *nearest, char buf[static NEAREST_HINT_MAX]);

/* A number as one would write it for this type: "90s", "8KiB", 5. */
#define CONFIG_FORMAT_MAX 32
const char *config_format(ConfigType type, int64_t value, char buf[static CONFIG_FORMAT_MAX]);

/* A value as it was written. */
typedef enum ValueType {
        VALUE_WORD, /* from the command line or a fallback: its type is what is wanted */
        VALUE_INT,
        VALUE_FLOAT,
        VALUE_BOOL,
        VALUE_STRING,
        VALUE_GROUP,
        VALUE_LIST,
        VALUE_ARRAY,
} ValueType;

typedef struct ConfigValue {
        ValueType type;
        int64_t integer; /* INT, BOOL */
        double real;
        const char *text; /* WORD, STRING; borrowed */
} ConfigValue;

/* KEY = VALUE. */
typedef struct Given {
        const char *name; /* borrowed */
        ConfigValue value;
        ConfigPlace place;
} Given;

/* What a value has to be. */
typedef struct Wanted {
        const char *what; /* as messages call it: "`workers`" */
        ConfigType type;
        int64_t min, max;
        const char *words;
} Wanted;

typedef struct Converted {
        int64_t integer;
        double real;
        const char *string; /* borrowed from the value */
} Converted;

/* Returns true with the value in `ret`, or false with the problem reported. */
bool value_convert(Check *check, const ConfigPlace *place, const Wanted *wanted, const ConfigValue *value,
                   Converted *ret);

/* "a string ("8")", for messages. */
#define VALUE_DESCRIPTION_MAX 80
const char *value_describe(const ConfigValue *value, char buf[static VALUE_DESCRIPTION_MAX]);

/* Keys of the configuration language that later versions bring. */
typedef struct LaterKey {
        ConfigScope scope;
        const char *name;
        bool ignored; /* only a promise is missing: a warning; else an error */
} LaterKey;

extern const LaterKey config_later_keys[];
extern const size_t n_config_later_keys;

#define CONFIG_KEYS_MAX 32

const ConfigKey *config_key_find(ConfigScope scope, const char *name);

/* Reports a key that only later versions know; false if it is not one. */
bool later_key_refuse(Check *check, ConfigScope scope, const Given *given);

/* What was given for a key of config_keys, at the key's index. */
typedef struct Slot {
        bool given; /* written, if perhaps wrongly */
        bool valid; /* `value` holds: as written, or the default */
        ConfigPlace place;
        Converted value;
} Slot;

typedef struct Slots {
        Slot slots[CONFIG_KEYS_MAX];
} Slots;

/* The slot of a key that exists. */
Slot *slots_get(Slots *slots, ConfigScope scope, const char *name);

/* Checks one KEY = VALUE of this scope and keeps it. Returns the key if it was
 * found, so that the front end can go on into groups; NULL otherwise. */
const ConfigKey *slots_take(Check *check, Slots *slots, ConfigScope scope, const Given *given);

/* Fills in the defaults of all keys of a scope and of its groups. */
void slots_defaults(Slots *slots, ConfigScope scope);

typedef struct StageDraft {
        ConfigPlace place;
        Slots slots;
        Given *settings;
        size_t n_settings;
        bool settings_unknown; /* `settings` itself is wrong: do not miss any */
        char *plugin_file;     /* NULL: not found, reported */
} StageDraft;

typedef struct Draft {
        Check check;
        ConfigDescribe describe;
        ConfigPlace place; /* the file as a whole */
        Slots slots;
        bool arguments;     /* built from words: results are wanted, defaults are lenient */
        uint32_t n_workers; /* for stages that do not say; 0: the processors */
        bool incomplete;    /* a stage or a `next` could not be read: the graph is not known */
        bool too_many;      /* more stages than PIPELINE_STAGES_MAX */
        StageDraft *stages;
        size_t n_stages;
} Draft;

void draft_done(Draft *draft);

/* Appends a stage; NULL if there are too many (reported once) or memory ran out. */
StageDraft *draft_add_stage(Draft *draft, const ConfigPlace *place);

/* Keeps KEY = VALUE of a stage's `settings`; looked at when the plugin is known. */
void draft_add_setting(Draft *draft, StageDraft *stage, const Given *given);

/* Checks the whole and makes the pipeline. Returns as pipeline_from_file(). */
int draft_build(Draft *draft, Pipeline **ret);
