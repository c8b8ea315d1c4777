#include <string.h>

#include "pipeline/config-internal.h"

typedef struct Arguments {
        Draft draft;
        char **texts; /* what the drafts borrow */
        size_t n_texts;
} Arguments;

static void arguments_done(Arguments *arguments) {
        draft_done(&arguments->draft);
        for (size_t i = 0; i < arguments->n_texts; i++)
                free(arguments->texts[i]);
        free(arguments->texts);
}

/* A copy of `text` up to `end` that lives as long as the arguments; NULL (kept in `broken`) without memory. */
static char *keep_text(Arguments *arguments, const char *text, const char *end) {
        char **grown = reallocarray(arguments->texts, arguments->n_texts + 1, sizeof(char *));
        char *copy = NULL;

        if (grown) {
                arguments->texts = grown;
                copy = strndup(text, (size_t)(end - text));
        }
        if (copy)
                arguments->texts[arguments->n_texts++] = copy;
        else
                arguments->draft.check.broken = -ENOMEM;
        return copy;
}

/* \, and \\ stand for the second character. */
static void unescape(char *text) {
        char *to = text;

        for (; *text; text++) {
                if (text[0] == '\\' && (text[1] == ',' || text[1] == '\\'))
                        text++;
                *to++ = *text;
        }
        *to = '\0';
}

static const char *option_end(const char *s) {
        while (*s && *s != ',')
                s += s[0] == '\\' && s[1] ? 2 : 1;
        return s;
}

/* True if it was a key of a stage's group, written GROUP.KEY. */
static bool take_group_key(Arguments *arguments, StageDraft *stage, const Given *given) {
        const char *dot = strchr(given->name, '.');

        for (size_t i = 0; dot && i < n_config_keys; i++) {
                const ConfigKey *key = &config_keys[i];

                if (key->scope != CONFIG_STAGE || key->type != CONFIG_KEY_GROUP ||
                    strncmp(key->name, given->name, (size_t)(dot - given->name)) != 0 ||
                    key->name[dot - given->name] != '\0')
                        continue;

                Given member = *given;
                member.name = dot + 1;
                (void)slots_take(&arguments->draft.check, &stage->slots, key->group, &member);
                return true;
        }
        return false;
}

/* `workers` is a key of the stage, anything else a setting; settings.workers is one in any case. */
static void take_option(Arguments *arguments, StageDraft *stage, Given *given) {
        static const char prefix[] = "settings.";
        const ConfigKey *key = config_key_find(CONFIG_STAGE, given->name);

        if (take_group_key(arguments, stage, given))
                return;
        if (key && key->type != CONFIG_KEY_GROUP && key->type != CONFIG_KEY_OTHER) {
                (void)slots_take(&arguments->draft.check, &stage->slots, CONFIG_STAGE, given);
                return;
        }

        if (strncmp(given->name, prefix, strlen(prefix)) == 0)
                given->name += strlen(prefix);
        draft_add_setting(&arguments->draft, stage, given);
}

static void take_options(Arguments *arguments, StageDraft *stage, const char *options) {
        for (const char *s = options; *s;) {
                const char *end = option_end(s);
                char *text = keep_text(arguments, s, end);
                char *equals;

                if (!text)
                        return;
                equals = strchr(text, '=');
                if (!equals || equals == text)
                        check_error(&arguments->draft.check, &stage->place, "\"%.80s\" is not KEY=VALUE",
                                    text);
                else {
                        *equals = '\0';
                        unescape(equals + 1);
                        Given given = {
                                .name = text,
                                .value = { .type = VALUE_WORD, .text = equals + 1 },
                                .place = stage->place,
                        };
                        take_option(arguments, stage, &given);
                }
                s = *end ? end + 1 : end;
        }
}

static void take_word(Arguments *arguments, const char *word, unsigned order) {
        const char *colon = strchrnul(word, ':');
        const ConfigPlace place = { .word = word, .order = order };
        char *use = keep_text(arguments, word, colon);
        StageDraft *stage;

        if (!use)
                return;
        stage = draft_add_stage(&arguments->draft, &place);
        if (!stage)
                return;

        const Given given = {
                .name = "use",
                .value = { .type = VALUE_WORD, .text = use },
                .place = place,
        };
        (void)slots_take(&arguments->draft.check, &stage->slots, CONFIG_STAGE, &given);
        if (*colon)
                take_options(arguments, stage, colon + 1);
}

static int read_words(Arguments *arguments, const char *name, const char *const *words, size_t n_words,
                      Pipeline **ret) {
        Draft *draft = &arguments->draft;
        const Given given = { .name = "name", .value = { .type = VALUE_WORD, .text = name } };

        (void)slots_take(&draft->check, &draft->slots, CONFIG_TOP, &given);
        if (draft->n_workers > PIPELINE_LANES_MAX)
                check_error(&draft->check, &draft->place, "%u workers: it must be 1 to %u", draft->n_workers,
                            PIPELINE_LANES_MAX);
        if (n_words == 0) {
                check_error(&draft->check, &draft->place, "no stage is given");
                draft->incomplete = true;
        }
        for (size_t i = 0; i < n_words; i++)
                take_word(arguments, words[i], (unsigned)i + 1);
        return draft_build(draft, ret);
}

int pipeline_from_arguments(const char *name, const char *const *words, size_t n_words, uint32_t n_workers,
                            ConfigDescribe describe, ConfigReport *report, Pipeline **ret) {
        _cleanup_(arguments_done) Arguments arguments = {
                .draft = {
                        .check = { .report = report, .first = report->n_problems },
                        .describe = describe,
                        .arguments = true,
                        .n_workers = n_workers,
                },
        };
        int r;

        r = read_words(&arguments, name, words, n_words, ret);
        check_sort(&arguments.draft.check);
        return arguments.draft.check.broken < 0 ? arguments.draft.check.broken : r;
}
