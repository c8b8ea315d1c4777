#include <string.h>

#include "pipeline/config-internal.h"
#include "pipeline/config-source.h"

/* After ours: it defines CONFIG_TYPE_* and config_read(). */
#include <libconfig.h>

/* libconfig's lookup functions are not used anywhere: they convert silently, and wrongly in 1.5. */

typedef struct FileReader {
        Draft draft;
        ConfigSource source;
        config_t config;
} FileReader;

static void file_reader_done(FileReader *reader) {
        draft_done(&reader->draft);
        config_destroy(&reader->config);
        config_source_done(&reader->source);
}

static ConfigValue value_of(const config_setting_t *setting) {
        switch (config_setting_type(setting)) {
        case CONFIG_TYPE_INT:
                return (ConfigValue){ .type = VALUE_INT, .integer = config_setting_get_int(setting) };
        case CONFIG_TYPE_INT64:
                return (ConfigValue){ .type = VALUE_INT, .integer = config_setting_get_int64(setting) };
        case CONFIG_TYPE_FLOAT:
                return (ConfigValue){ .type = VALUE_FLOAT, .real = config_setting_get_float(setting) };
        case CONFIG_TYPE_BOOL:
                return (ConfigValue){ .type = VALUE_BOOL, .integer = config_setting_get_bool(setting) };
        case CONFIG_TYPE_STRING: {
                const char *text = config_setting_get_string(setting);

                return (ConfigValue){ .type = VALUE_STRING, .text = text ? text : "" };
        }
        case CONFIG_TYPE_LIST:
                return (ConfigValue){ .type = VALUE_LIST };
        case CONFIG_TYPE_ARRAY:
                return (ConfigValue){ .type = VALUE_ARRAY };
        default:
                return (ConfigValue){ .type = VALUE_GROUP };
        }
}

static Given given_of(const FileReader *reader, const config_setting_t *setting) {
        return (Given){
                .name = config_setting_name(setting),
                .value = value_of(setting),
                .place = config_source_place(&reader->source, config_setting_source_line(setting)),
        };
}

static unsigned group_size(const config_setting_t *group) {
        int n = config_setting_length(group);

        return n < 0 ? 0 : (unsigned)n;
}

static void take_settings(FileReader *reader, StageDraft *stage, const config_setting_t *settings,
                          const Given *given) {
        const Wanted wanted = { .what = "`settings`", .type = CONFIG_KEY_GROUP };
        Converted unused;

        if (!value_convert(&reader->draft.check, &given->place, &wanted, &given->value, &unused)) {
                stage->settings_unknown = true;
                return;
        }
        for (unsigned i = 0; i < group_size(settings); i++) {
                Given setting = given_of(reader, config_setting_get_elem(settings, i));

                draft_add_setting(&reader->draft, stage, &setting);
        }
}

/* The keys of retry = { ... } and queue = { ... }. */
static void take_group(FileReader *reader, Slots *slots, ConfigScope scope, const config_setting_t *group) {
        for (unsigned i = 0; i < group_size(group); i++) {
                Given given = given_of(reader, config_setting_get_elem(group, i));

                (void)slots_take(&reader->draft.check, slots, scope, &given);
        }
}

static void take_stage(FileReader *reader, const config_setting_t *group) {
        Given self = given_of(reader, group);
        StageDraft *stage;

        if (self.value.type != VALUE_GROUP) {
                char found[VALUE_DESCRIPTION_MAX];

                check_error(&reader->draft.check, &self.place, "a stage must be a group { ... }, found %s",
                            value_describe(&self.value, found));
                reader->draft.incomplete = true;
                return;
        }

        stage = draft_add_stage(&reader->draft, &self.place);
        for (unsigned i = 0; stage && i < group_size(group); i++) {
                const config_setting_t *member = config_setting_get_elem(group, i);
                Given given = given_of(reader, member);
                const ConfigKey *key = slots_take(&reader->draft.check, &stage->slots, CONFIG_STAGE, &given);

                if (!key)
                        continue;
                if (key->type == CONFIG_KEY_GROUP && given.value.type == VALUE_GROUP)
                        take_group(reader, &stage->slots, key->group, member);
                else if (key->type == CONFIG_KEY_OTHER)
                        take_settings(reader, stage, member, &given);
        }
}

static void take_stages(FileReader *reader, const config_setting_t *stages, const Given *given) {
        if (given->value.type != VALUE_LIST) {
                char found[VALUE_DESCRIPTION_MAX];

                check_error(&reader->draft.check, &given->place,
                            "`stages` must be a list ( { ... }, ... ), found %s",
                            value_describe(&given->value, found));
                reader->draft.incomplete = true;
                return;
        }
        if (group_size(stages) == 0) {
                check_error(&reader->draft.check, &given->place,
                            "`stages` is empty: a pipeline needs a stage");
                reader->draft.incomplete = true;
        }
        for (unsigned i = 0; i < group_size(stages); i++)
                take_stage(reader, config_setting_get_elem(stages, i));
}

static void take_top(FileReader *reader) {
        const config_setting_t *root = config_root_setting(&reader->config);

        for (unsigned i = 0; i < group_size(root); i++) {
                const config_setting_t *member = config_setting_get_elem(root, i);
                Given given = given_of(reader, member);
                const ConfigKey *key =
                        slots_take(&reader->draft.check, &reader->draft.slots, CONFIG_TOP, &given);

                if (key && key->type == CONFIG_KEY_OTHER)
                        take_stages(reader, member, &given);
        }
        if (!slots_get(&reader->draft.slots, CONFIG_TOP, "stages")->given) {
                check_error(&reader->draft.check, &reader->draft.place,
                            "`stages` is missing: a pipeline needs a stage");
                reader->draft.incomplete = true;
        }
}

/* libconfig says "syntax error" at the first token that does not fit. */
static int refuse_syntax(FileReader *reader) {
        int line = config_error_line(&reader->config);
        const char *text = config_error_text(&reader->config);
        ConfigPlace place = config_source_place(&reader->source, line > 0 ? (unsigned)line : 0);

        if (!text || strcmp(text, "syntax error") == 0)
                text = "syntax error here or before (a missing quote, comma or bracket?)";
        check_error(&reader->draft.check, &place, "%s", text);
        return CONFIG_E_INVALID;
}

static int read_file(FileReader *reader, const char *path, Pipeline **ret) {
        int r;

        r = config_source_read(&reader->source, path, &reader->draft.check);
        if (r != 0)
                return r;
        if (!config_read_string(&reader->config, reader->source.text))
                return refuse_syntax(reader);

        reader->draft.place = config_source_place(&reader->source, 0);
        take_top(reader);
        return draft_build(&reader->draft, ret);
}

int pipeline_from_file(const char *path, ConfigDescribe describe, ConfigReport *report, Pipeline **ret) {
        _cleanup_(file_reader_done) FileReader reader = {
                .draft = {
                        .check = { .report = report, .first = report->n_problems },
                        .describe = describe,
                },
        };
        int r;

        config_init(&reader.config);
        r = read_file(&reader, path, ret);
        check_sort(&reader.draft.check);
        return reader.draft.check.broken < 0 ? reader.draft.check.broken : r;
}
