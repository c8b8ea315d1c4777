#include <string.h>

#include <sluice/stage.h>

#include "base/log.h"
#include "pipeline/config-internal.h"

/* The stages, their drafts, and what is known of each: index by index. */
typedef struct Build {
        Draft *draft;
        Check *check;
        Pipeline *pipeline;
        bool next_unknown; /* some `next` is wrong, so who is fed cannot be said */
} Build;

static char *build_strdup(Build *build, const char *text) {
        char *copy = strdup(text);

        if (!copy)
                build->check->broken = -ENOMEM;
        return copy;
}

static Slot *stage_slot(StageDraft *draft, const char *name) {
        return slots_get(&draft->slots, CONFIG_STAGE, name);
}

/* The last part of a path without its suffix; to be freed. */
static char *base_name(Build *build, const char *path, const char *suffix) {
        const char *slash = strrchr(path, '/');
        size_t len, n_suffix = strlen(suffix);
        char *name = build_strdup(build, slash ? slash + 1 : path);

        len = name ? strlen(name) : 0;
        if (len > n_suffix && strcmp(name + len - n_suffix, suffix) == 0)
                name[len - n_suffix] = '\0';
        return name;
}

static void build_pipeline_name(Build *build) {
        Slot *slot = slots_get(&build->draft->slots, CONFIG_TOP, "name");
        const char *file = build->draft->place.file;

        if (slot->valid)
                build->pipeline->name = build_strdup(build, slot->value.string);
        if (slot->given || !file)
                return;

        build->pipeline->name = base_name(build, file, ".conf");
        if (build->pipeline->name && !pipeline_name_is_valid(build->pipeline->name))
                check_error(build->check, &build->draft->place,
                            "`name` is missing, and \"%.80s\" cannot be one: set name = \"...\"",
                            build->pipeline->name);
}

static size_t find_stage(const Build *build, const char *name) {
        for (size_t i = 0; i < build->pipeline->n_stages; i++)
                if (build->pipeline->stages[i].name && strcmp(build->pipeline->stages[i].name, name) == 0)
                        return i;
        return STAGE_NONE;
}

static void name_given(Build *build, size_t i) {
        StageDraft *draft = &build->draft->stages[i];
        Slot *slot = stage_slot(draft, "name");
        size_t other;

        if (!slot->given)
                return;
        if (!slot->valid) {
                build->draft->incomplete = true;
                return;
        }

        other = find_stage(build, slot->value.string);
        if (other != STAGE_NONE) {
                const ConfigPlace *place = &build->draft->stages[other].place;

                if (place->file)
                        check_error(build->check, &slot->place,
                                    "the name `%s` is taken by the stage at %s:%u", slot->value.string,
                                    place->file, place->line);
                else
                        check_error(build->check, &slot->place, "the name `%s` is taken by another stage",
                                    slot->value.string);
                build->draft->incomplete = true;
                return;
        }
        build->pipeline->stages[i].name = build_strdup(build, slot->value.string);
}

/* Named by what it uses; -2, -3 if that is taken. */
static void name_derived(Build *build, size_t i) {
        StageDraft *draft = &build->draft->stages[i];
        Slot *use = stage_slot(draft, "use");
        _cleanup_free_ char *name = NULL, *base = NULL;

        if (stage_slot(draft, "name")->given)
                return;
        if (!use->valid || *use->value.string == '\0') {
                build->draft->incomplete = true;
                return;
        }

        base = base_name(build, use->value.string, ".so");
        name = base ? build_strdup(build, base) : NULL;
        for (unsigned n = 2; name && find_stage(build, name) != STAGE_NONE; n++) {
                free(name);
                if (asprintf(&name, "%s-%u", base, n) < 0) {
                        name = NULL;
                        build->check->broken = -ENOMEM;
                }
        }
        if (!name)
                return;
        if (!pipeline_name_is_valid(name)) {
                check_error(build->check, &draft->place, "the stage needs a `name`: \"%.80s\" cannot be one",
                            name);
                build->draft->incomplete = true;
                return;
        }
        build->pipeline->stages[i].name = TAKE_PTR(name);
}

static void build_names(Build *build) {
        build_pipeline_name(build);
        for (size_t i = 0; i < build->draft->n_stages; i++)
                name_given(build, i);
        for (size_t i = 0; i < build->draft->n_stages; i++)
                name_derived(build, i);
}

static char *join(char *const *strings) {
        char *joined = NULL;
        size_t size;
        FILE *f = open_memstream(&joined, &size);

        if (!f)
                return NULL;
        for (char *const *s = strings; *s; s++)
                (void)fprintf(f, "%s%s", s == strings ? "" : ", ", *s);
        if (fclose(f) != 0) {
                free(joined);
                return NULL;
        }
        return joined;
}

static void strings_freep(char ***strings) {
        plugin_strings_free(*strings);
}

static void refuse_use(Build *build, const ConfigPlace *place, const char *use) {
        _cleanup_(strings_freep) char **folders = NULL, **names = NULL;
        _cleanup_free_ char *where = NULL;
        Nearest nearest = { .word = use };
        char hint[NEAREST_HINT_MAX];

        if (strchr(use, '/')) {
                check_error(build->check, place, "`use` = \"%s\": there is no such file", use);
                return;
        }
        if (plugin_folders(&folders) < 0 || plugin_list_names(&names) < 0 || !(where = join(folders))) {
                build->check->broken = -ENOMEM;
                return;
        }
        for (char **name = names; *name; name++)
                nearest_offer(&nearest, *name);
        check_error(build->check, place, "no plugin `%.80s` (looked in %s)%s", use, where,
                    nearest_hint(&nearest, hint));
}

static void find_plugin(Build *build, StageDraft *draft) {
        Slot *slot = stage_slot(draft, "use");
        _cleanup_free_ char *folder = NULL;
        const char *slash;
        int r;

        if (!slot->given) {
                check_error(build->check, &draft->place, "`use` is missing: a stage needs a plugin");
                return;
        }
        if (!slot->valid)
                return;
        if (*slot->value.string == '\0') {
                check_error(build->check, &slot->place, "`use` is empty: a stage needs a plugin");
                return;
        }

        slash = slot->place.file ? strrchr(slot->place.file, '/') : NULL;
        folder = slash ? strndup(slot->place.file, (size_t)(slash - slot->place.file) + 1) : strdup(".");
        if (!folder)
                r = -ENOMEM;
        else
                r = plugin_find(slot->value.string, folder, &draft->plugin_file);
        if (r == -ENOENT)
                refuse_use(build, &slot->place, slot->value.string);
        else if (r < 0)
                build->check->broken = r;
}

/* Describes every file once, all in one go. */
static int describe_all(Build *build) {
        Draft *draft = build->draft;
        const char *files[PIPELINE_STAGES_MAX];
        size_t n = 0;

        for (size_t i = 0; i < draft->n_stages; i++) {
                bool seen = !draft->stages[i].plugin_file;

                for (size_t j = 0; !seen && j < n; j++)
                        seen = strcmp(files[j], draft->stages[i].plugin_file) == 0;
                if (!seen)
                        files[n++] = draft->stages[i].plugin_file;
        }
        return n > 0 ? draft->describe(files, n, &build->pipeline->plugins) : 0;
}

static void build_plugins(Build *build) {
        for (size_t i = 0; i < build->draft->n_stages; i++)
                find_plugin(build, &build->draft->stages[i]);
        if (build->check->broken < 0)
                return;

        int r = describe_all(build);
        if (r < 0) {
                if (r == -ENOMEM)
                        build->check->broken = r;
                check_error(build->check, &build->draft->place, "the plugins cannot be looked at: %s",
                            strerror(-r));
                return;
        }

        for (size_t i = 0; i < build->draft->n_stages; i++) {
                StageDraft *draft = &build->draft->stages[i];
                const Plugin *plugin =
                        draft->plugin_file ? plugin_set_find(&build->pipeline->plugins, draft->plugin_file)
                                           : NULL;

                if (!draft->plugin_file)
                        continue;
                if (!plugin || plugin->error)
                        check_error(build->check, &stage_slot(draft, "use")->place,
                                    "the plugin %s cannot be used: %s", draft->plugin_file,
                                    plugin ? plugin->error : "it said nothing about itself");
                else
                        build->pipeline->stages[i].plugin = plugin;
        }
}

/* By SluiceType; plugin_set_parse() lets no other in. */
static const ConfigType setting_types[] = {
        [SLUICE_INT] = CONFIG_KEY_INT,           [SLUICE_FLOAT] = CONFIG_KEY_FLOAT,
        [SLUICE_BOOL] = CONFIG_KEY_BOOL,         [SLUICE_STRING] = CONFIG_KEY_STRING,
        [SLUICE_DURATION] = CONFIG_KEY_DURATION, [SLUICE_SIZE] = CONFIG_KEY_SIZE,
};

static const Given *find_given(const StageDraft *draft, const char *name) {
        for (size_t i = 0; i < draft->n_settings; i++)
                if (strcmp(draft->settings[i].name, name) == 0)
                        return &draft->settings[i];
        return NULL;
}

static void refuse_setting(Build *build, const Plugin *plugin, const Given *given) {
        Nearest nearest = { .word = given->name };
        char hint[NEAREST_HINT_MAX];

        for (size_t i = 0; i < plugin->n_settings; i++)
                nearest_offer(&nearest, plugin->settings[i].name);
        if (build->draft->arguments) {
                if (later_key_refuse(build->check, CONFIG_STAGE, given))
                        return;
                for (size_t i = 0; i < n_config_keys; i++)
                        if (config_keys[i].scope == CONFIG_STAGE)
                                nearest_offer(&nearest, config_keys[i].name);
        }
        check_error(build->check, &given->place, "%s has no setting `%.80s`%s", plugin->name, given->name,
                    nearest_hint(&nearest, hint));
}

static void check_setting_names(Build *build, const StageDraft *draft, const Plugin *plugin) {
        for (size_t i = 0; i < draft->n_settings; i++) {
                const Given *given = &draft->settings[i];
                size_t j = 0;

                while (j < plugin->n_settings && strcmp(plugin->settings[j].name, given->name) != 0)
                        j++;
                if (j == plugin->n_settings)
                        refuse_setting(build, plugin, given);
                else if (find_given(draft, given->name) != given)
                        check_error(build->check, &given->place, "`%s` is given twice", given->name);
        }
}

/* A fallback is "written as in the file": quotes around it are not part of it. */
static char *fallback_text(Build *build, const char *fallback) {
        char *text = build_strdup(build, fallback);
        size_t len = text ? strlen(text) : 0;

        if (len >= 2 && text[0] == '"' && text[len - 1] == '"') {
                memmove(text, text + 1, len - 2);
                text[len - 2] = '\0';
        }
        return text;
}

static void build_setting(Build *build, StageDraft *draft, const Plugin *plugin, const PluginSetting *setting,
                          Setting *ret) {
        const Given *given = find_given(draft, setting->name);
        _cleanup_free_ char *fallback = NULL, *what = NULL;
        ConfigValue value = { .type = VALUE_WORD };
        Converted converted = { 0 };

        if (!given && !setting->fallback) {
                if (!draft->settings_unknown)
                        check_error(build->check, &draft->place, "%s needs the setting `%s` (%s)",
                                    plugin->name, setting->name, setting->help);
                return;
        }
        if (given)
                value = given->value;
        else
                value.text = fallback = fallback_text(build, setting->fallback);

        if (asprintf(&what, "%s`%s`", given ? "" : "the default of ", setting->name) < 0) {
                what = NULL;
                build->check->broken = -ENOMEM;
        }
        if (build->check->broken < 0)
                return;

        const Wanted wanted = {
                .what = what,
                .type = setting_types[setting->type],
                .min = setting->min,
                .max = setting->max,
        };
        if (!value_convert(build->check, given ? &given->place : &draft->place, &wanted, &value, &converted))
                return;

        ret->integer = converted.integer;
        ret->real = converted.real;
        if (setting->type == SLUICE_STRING)
                ret->string = build_strdup(build, converted.string);
}

static void build_settings(Build *build, size_t i) {
        Stage *stage = &build->pipeline->stages[i];
        StageDraft *draft = &build->draft->stages[i];

        check_setting_names(build, draft, stage->plugin);
        if (stage->plugin->n_settings == 0)
                return;

        stage->settings = calloc(stage->plugin->n_settings, sizeof(Setting));
        if (!stage->settings) {
                build->check->broken = -ENOMEM;
                return;
        }
        for (size_t j = 0; j < stage->plugin->n_settings; j++) {
                const PluginSetting *setting = &stage->plugin->settings[j];
                Setting *to = &stage->settings[stage->n_settings++];

                to->name = build_strdup(build, setting->name);
                to->type = setting->type;
                build_setting(build, draft, stage->plugin, setting, to);
        }
}

static void build_workers(Build *build, size_t i) {
        Stage *stage = &build->pipeline->stages[i];
        Slot *slot = stage_slot(&build->draft->stages[i], "workers");
        bool one = stage_is_source(stage) || (stage->plugin->flags & SLUICE_ONE_LANE);

        if (!slot->value.string) {
                stage->n_workers = (uint32_t)slot->value.integer;
                if (one && stage->n_workers > 1)
                        check_error(
                                build->check, &slot->place, "`workers` is %u: %s %s, so it runs one worker",
                                stage->n_workers, stage->plugin->name,
                                stage_is_source(stage) ? "is a source" : "needs jobs one after the other");
        } else if (one)
                stage->n_workers = 1;
        else
                stage->n_workers = !slot->given && build->draft->n_workers > 0 ? build->draft->n_workers
                                                                               : pipeline_default_workers();
}

static void build_retry(Build *build, Stage *stage, StageDraft *draft) {
        const Slot *backoff = slots_get(&draft->slots, CONFIG_RETRY, "backoff");
        const Slot *max = slots_get(&draft->slots, CONFIG_RETRY, "max_backoff");

        stage->retry_attempts = (uint32_t)slots_get(&draft->slots, CONFIG_RETRY, "attempts")->value.integer;
        stage->retry_backoff_usec = (uint64_t)backoff->value.integer;
        stage->retry_max_backoff_usec = (uint64_t)max->value.integer;
        if (stage->retry_max_backoff_usec >= stage->retry_backoff_usec)
                return;

        if (max->given)
                check_error(build->check, &max->place, "`max_backoff` is less than `backoff`");
        else
                stage->retry_max_backoff_usec = stage->retry_backoff_usec;
}

static void build_values(Build *build, size_t i) {
        Stage *stage = &build->pipeline->stages[i];
        StageDraft *draft = &build->draft->stages[i];
        const Slot *use = stage_slot(draft, "use");

        stage->use = use->valid ? build_strdup(build, use->value.string) : NULL;
        stage->file = draft->place.file ? build_strdup(build, draft->place.file) : NULL;
        stage->line = draft->place.line;
        stage->mode = STAGE_MODE_PROCESS;
        stage->next = STAGE_NONE;
        stage->linger_usec = (uint64_t)stage_slot(draft, "linger")->value.integer;
        stage->queue_depth = (uint32_t)slots_get(&draft->slots, CONFIG_QUEUE, "depth")->value.integer;
        stage->queue_message_bytes =
                (uint32_t)slots_get(&draft->slots, CONFIG_QUEUE, "message")->value.integer;
        build_retry(build, stage, draft);
}

static void check_no_effect(Build *build, StageDraft *draft) {
        const Slot *queue = stage_slot(draft, "queue"), *retry = stage_slot(draft, "retry");

        if (queue->given)
                check_warning(build->check, &queue->place,
                              "`queue` has no effect: a source has no job queue");
        if (retry->given)
                check_warning(build->check, &retry->place,
                              "`retry` has no effect: a source has no jobs to try again");
}

static void build_stages(Build *build) {
        for (size_t i = 0; i < build->draft->n_stages; i++) {
                StageDraft *draft = &build->draft->stages[i];

                slots_defaults(&draft->slots, CONFIG_STAGE);
                build_values(build, i);
                if (!build->pipeline->stages[i].plugin)
                        continue;
                build_settings(build, i);
                build_workers(build, i);
                if (stage_is_source(&build->pipeline->stages[i]))
                        check_no_effect(build, draft);
        }
}

static bool has_kind(const Stage *stage, SluiceKind kind) {
        return stage->plugin && stage->plugin->kind == kind;
}

static void refuse_next(Build *build, const Slot *slot) {
        Nearest nearest = { .word = slot->value.string };
        char hint[NEAREST_HINT_MAX];

        for (size_t i = 0; i < build->pipeline->n_stages; i++)
                nearest_offer(&nearest, build->pipeline->stages[i].name);
        check_error(build->check, &slot->place, "`next` = \"%s\": there is no such stage%s",
                    slot->value.string, nearest_hint(&nearest, hint));
        build->next_unknown = true;
}

static void build_next(Build *build, size_t i) {
        Pipeline *pipeline = build->pipeline;
        Stage *stage = &pipeline->stages[i];
        const Slot *slot = stage_slot(&build->draft->stages[i], "next");
        const ConfigPlace *place = slot->given ? &slot->place : &build->draft->stages[i].place;

        if (has_kind(stage, SLUICE_SINK)) {
                if (slot->given)
                        check_error(build->check, place, "`next` of `%s`: a sink hands nothing on",
                                    stage->name);
                return;
        }
        if (slot->given && !slot->valid) {
                build->next_unknown = true;
                return;
        }

        if (!slot->given)
                stage->next = i + 1 < pipeline->n_stages ? i + 1 : STAGE_NONE;
        else {
                stage->next = find_stage(build, slot->value.string);
                if (stage->next == STAGE_NONE)
                        refuse_next(build, slot);
        }

        if (stage->next != STAGE_NONE && has_kind(&pipeline->stages[stage->next], SLUICE_SOURCE))
                check_error(build->check, place, "`%s` leads to `%s`%s, which is a source and takes no jobs",
                            stage->name, pipeline->stages[stage->next].name,
                            slot->given ? "" : " (the following stage; set `next`)");
}

/* Names the stages of the cycle that begins at `first`. */
static void refuse_cycle(Build *build, size_t first) {
        const Stage *stages = build->pipeline->stages;
        _cleanup_free_ char *path = NULL;
        size_t size, i = first;
        FILE *f = open_memstream(&path, &size);

        if (!f) {
                build->check->broken = -ENOMEM;
                return;
        }
        do {
                (void)fprintf(f, "%s -> ", stages[i].name);
                i = stages[i].next;
        } while (i != first);
        (void)fputs(stages[first].name, f);
        if (fclose(f) != 0) {
                build->check->broken = -ENOMEM;
                return;
        }
        check_error(build->check, &build->draft->stages[first].place, "the stages lead in a circle: %s",
                    path);
}

/* Every stage has one `next` at most, so from each there is one walk to follow. Returns true if any is a circle. */
static bool check_cycles(Build *build) {
        size_t walk[PIPELINE_STAGES_MAX] = { 0 }; /* 0: not seen yet; else the walk that saw it */
        bool found = false;

        for (size_t first = 0; first < build->pipeline->n_stages; first++) {
                size_t i = first;

                while (i != STAGE_NONE && walk[i] == 0) {
                        walk[i] = first + 1;
                        i = build->pipeline->stages[i].next;
                }
                if (i != STAGE_NONE && walk[i] == first + 1) {
                        refuse_cycle(build, i);
                        found = true;
                }
        }
        return found;
}

static void check_fed(Build *build) {
        for (size_t i = 1; i < build->pipeline->n_stages; i++) {
                const Stage *stage = &build->pipeline->stages[i];

                if (stage->plugin && !stage_is_source(stage) &&
                    pipeline_feeders(build->pipeline, i, NULL) == 0)
                        check_error(build->check, &build->draft->stages[i].place,
                                    "nobody feeds `%s`: it is not the `next` of any stage", stage->name);
        }
}

static void check_results(Build *build) {
        Pipeline *pipeline = build->pipeline;
        const Slot *slot = slots_get(&build->draft->slots, CONFIG_TOP, "results");
        size_t last = pipeline_results_stage(pipeline);

        if (build->draft->arguments) {
                pipeline->results = last == STAGE_NONE ? RESULTS_NONE : RESULTS_QUEUE;
                return;
        }
        if (last == STAGE_NONE && pipeline->results == RESULTS_QUEUE)
                check_error(build->check, &slot->place,
                            "`results` = \"queue\", but the pipeline ends in a sink: there are none");
}

static void build_graph(Build *build) {
        if (build->draft->incomplete)
                return;
        for (size_t i = 0; i < build->pipeline->n_stages; i++)
                build_next(build, i);
        if (check_cycles(build) || build->next_unknown)
                return;
        check_fed(build);
        check_results(build);
}

static void build_top(Build *build) {
        Slots *slots = &build->draft->slots;
        Pipeline *pipeline = build->pipeline;

        slots_defaults(slots, CONFIG_TOP);
        if (build->draft->place.file)
                pipeline->file = build_strdup(build, build->draft->place.file);
        pipeline->on_stop = strcmp(slots_get(slots, CONFIG_TOP, "on_stop")->value.string, "drain") == 0
                                    ? ON_STOP_DRAIN
                                    : ON_STOP_PARK;
        pipeline->results = strcmp(slots_get(slots, CONFIG_TOP, "results")->value.string, "queue") == 0
                                    ? RESULTS_QUEUE
                                    : RESULTS_NONE;
        pipeline->drain_grace_usec = (uint64_t)slots_get(slots, CONFIG_TOP, "drain_grace")->value.integer;
        pipeline->log_level = log_level_from_name(slots_get(slots, CONFIG_TOP, "log_level")->value.string);
}

/* Errors of this check; the report may have held some before. */
static bool has_errors(const Check *check) {
        for (size_t i = check->first; i < check->report->n_problems; i++)
                if (!check->report->problems[i].warning)
                        return true;
        return false;
}

int draft_build(Draft *draft, Pipeline **ret) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = calloc(1, sizeof(Pipeline));

        if (!pipeline)
                return -ENOMEM;
        pipeline->stages = calloc(draft->n_stages + 1, sizeof(Stage));
        if (!pipeline->stages)
                return -ENOMEM;
        pipeline->n_stages = draft->n_stages;

        Build build = { .draft = draft, .check = &draft->check, .pipeline = pipeline };
        static void (*const steps[])(Build *) = {
                build_top, build_names, build_plugins, build_stages, build_graph,
        };
        for (size_t i = 0; i < ELEMENTSOF(steps) && draft->check.broken == 0; i++)
                steps[i](&build);

        if (draft->check.broken < 0)
                return draft->check.broken;
        if (has_errors(&draft->check))
                return CONFIG_E_INVALID;
        *ret = TAKE_PTR(pipeline);
        return 0;
}
