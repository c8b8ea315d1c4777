#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "pipeline/config-internal.h"

const char *value_describe(const ConfigValue *value, char buf[static VALUE_DESCRIPTION_MAX]) {
        switch (value->type) {
        case VALUE_WORD:
        case VALUE_STRING:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "%s\"%.40s%s\"",
                               value->type == VALUE_STRING ? "the string " : "", value->text,
                               strlen(value->text) > 40 ? "..." : "");
                break;
        case VALUE_INT:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "the integer %" PRIi64, value->integer);
                break;
        case VALUE_FLOAT:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "the fraction %g", value->real);
                break;
        case VALUE_BOOL:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "%s", value->integer ? "true" : "false");
                break;
        case VALUE_GROUP:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "a group { ... }");
                break;
        case VALUE_LIST:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "a list ( ... )");
                break;
        case VALUE_ARRAY:
                (void)snprintf(buf, VALUE_DESCRIPTION_MAX, "an array [ ... ]");
                break;
        }
        return buf;
}

#define EXPECTATION_MAX 128

/* Appends to a text of EXPECTATION_MAX bytes. */
static void append(char *buf, const char *text) {
        size_t n = strlen(buf);

        (void)snprintf(buf + n, EXPECTATION_MAX - n, "%s", text);
}

static void append_words(char *buf, const char *words, bool more_before) {
        for (const char *word = words; *word;) {
                size_t len = strcspn(word, " ");
                char quoted[40];

                (void)snprintf(quoted, sizeof(quoted), "\"%.*s\"", (int)len, word);
                if (more_before)
                        append(buf, word[len] ? ", " : " or ");
                append(buf, quoted);
                more_before = true;
                word += len + (word[len] == ' ');
        }
}

static const char *expectation(const Wanted *wanted, char buf[static EXPECTATION_MAX]) {
        static const char *const texts[] = {
                [CONFIG_KEY_INT] = "an integer",
                [CONFIG_KEY_FLOAT] = "a number",
                [CONFIG_KEY_BOOL] = "true or false",
                [CONFIG_KEY_STRING] = "a string",
                [CONFIG_KEY_NAME] = "a name in quotes",
                [CONFIG_KEY_ENUM] = "",
                [CONFIG_KEY_DURATION] = "a duration such as \"100ms\"",
                [CONFIG_KEY_SIZE] = "a size such as \"8KiB\"",
                [CONFIG_KEY_GROUP] = "a group { ... }",
                [CONFIG_KEY_OTHER] = "",
        };

        buf[0] = '\0';
        append(buf, texts[wanted->type]);
        if (wanted->words)
                append_words(buf, wanted->words, wanted->type != CONFIG_KEY_ENUM);
        return buf;
}

/* Reports what was expected and found. */
static bool refuse(Check *check, const ConfigPlace *place, const Wanted *wanted, const ConfigValue *value,
                   const char *hint) {
        char expected[EXPECTATION_MAX], found[VALUE_DESCRIPTION_MAX];

        check_error(check, place, "%s must be %s, found %s%s", wanted->what, expectation(wanted, expected),
                    value_describe(value, found), hint);
        return false;
}

static bool refuse_range(Check *check, const ConfigPlace *place, const Wanted *wanted, const char *found) {
        char min[CONFIG_FORMAT_MAX], max[CONFIG_FORMAT_MAX];

        (void)config_format(wanted->type, wanted->min, min);
        (void)config_format(wanted->type, wanted->max, max);
        if (wanted->max == INT64_MAX)
                check_error(check, place, "%s is %s: it must be at least %s", wanted->what, found, min);
        else if (wanted->min == INT64_MIN)
                check_error(check, place, "%s is %s: it must be at most %s", wanted->what, found, max);
        else
                check_error(check, place, "%s is %s: it must be %s to %s", wanted->what, found, min, max);
        return false;
}

static bool is_text(const ConfigValue *value) {
        return value->type == VALUE_STRING || value->type == VALUE_WORD;
}

/* True if `text` is one of the space-separated words; offers each as a suggestion otherwise. */
static bool is_word(const char *words, const char *text, char hint[static NEAREST_HINT_MAX]) {
        Nearest nearest = { .word = text };
        char copy[16][24];
        size_t n = 0;

        for (const char *word = words; *word;) {
                size_t len = strcspn(word, " ");

                if (strlen(text) == len && memcmp(word, text, len) == 0)
                        return true;
                if (n < ELEMENTSOF(copy) && len < sizeof(copy[n])) {
                        memcpy(copy[n], word, len);
                        copy[n][len] = '\0';
                        nearest_offer(&nearest, copy[n++]);
                }
                word += len + (word[len] == ' ');
        }
        (void)nearest_hint(&nearest, hint);
        return false;
}

static bool in_range(const Wanted *wanted, int64_t value) {
        return wanted->min == wanted->max || (value >= wanted->min && value <= wanted->max);
}

static bool convert_int(Check *check, const ConfigPlace *place, const Wanted *wanted,
                        const ConfigValue *value, Converted *ret) {
        char hint[NEAREST_HINT_MAX] = "", found[CONFIG_FORMAT_MAX];
        int64_t integer = value->integer;

        if (wanted->words && is_text(value) && is_word(wanted->words, value->text, hint)) {
                ret->string = value->text;
                return true;
        }

        if (value->type == VALUE_WORD) {
                char *end;

                errno = 0;
                integer = strtoll(value->text, &end, strncasecmp(value->text, "0x", 2) == 0 ? 16 : 10);
                if (end == value->text || *end != '\0')
                        return refuse(check, place, wanted, value, hint);
                if (errno == ERANGE) {
                        check_error(check, place, "%s is %.40s: that does not fit 64 bits", wanted->what,
                                    value->text);
                        return false;
                }
        } else if (value->type != VALUE_INT)
                return refuse(check, place, wanted, value, hint);

        if (!in_range(wanted, integer))
                return refuse_range(check, place, wanted, config_format(CONFIG_KEY_INT, integer, found));
        ret->integer = integer;
        return true;
}

static bool convert_float(Check *check, const ConfigPlace *place, const Wanted *wanted,
                          const ConfigValue *value, Converted *ret) {
        double real = value->real;

        if (value->type == VALUE_INT)
                real = (double)value->integer;
        else if (value->type == VALUE_WORD) {
                char *end;

                real = strtod(value->text, &end);
                if (end == value->text || *end != '\0')
                        return refuse(check, place, wanted, value, "");
        } else if (value->type != VALUE_FLOAT)
                return refuse(check, place, wanted, value, "");

        if (!isfinite(real)) {
                check_error(check, place, "%s must be a finite number", wanted->what);
                return false;
        }
        if (wanted->min != wanted->max && (real < (double)wanted->min || real > (double)wanted->max)) {
                char found[CONFIG_FORMAT_MAX];

                (void)snprintf(found, sizeof(found), "%g", real);
                return refuse_range(check, place, wanted, found);
        }
        ret->real = real;
        return true;
}

static bool convert_bool(Check *check, const ConfigPlace *place, const Wanted *wanted,
                         const ConfigValue *value, Converted *ret) {
        if (value->type == VALUE_BOOL)
                ret->integer = value->integer;
        else if (value->type == VALUE_WORD && strcasecmp(value->text, "true") == 0)
                ret->integer = 1;
        else if (value->type == VALUE_WORD && strcasecmp(value->text, "false") == 0)
                ret->integer = 0;
        else
                return refuse(check, place, wanted, value, "");
        return true;
}

static bool convert_units(Check *check, const ConfigPlace *place, const Wanted *wanted,
                          const ConfigValue *value, Converted *ret) {
        bool duration = wanted->type == CONFIG_KEY_DURATION;
        char found[CONFIG_FORMAT_MAX];
        uint64_t number = 0;
        int r;

        if (is_text(value))
                r = duration ? config_parse_duration(value->text, &number)
                             : config_parse_size(value->text, &number);
        else if (value->type != VALUE_INT)
                return refuse(check, place, wanted, value, "");
        else if (value->integer < 0)
                return refuse_range(check, place, wanted,
                                    config_format(CONFIG_KEY_INT, value->integer, found));
        else
                r = value->integer == 0 ? 0 : -ENOENT;

        switch (r) {
        case -ENOENT:
                if (!is_text(value))
                        (void)config_format(CONFIG_KEY_INT, value->integer, found);
                check_error(check, place, "%s: unit missing: write \"%.*s%s\"", wanted->what,
                            is_text(value) ? (int)strspn(value->text, "0123456789") : CONFIG_FORMAT_MAX,
                            is_text(value) ? value->text : found, duration ? "ms" : "B");
                return false;
        case -ERANGE:
                check_error(check, place, "%s is %.40s: that is more than can be counted", wanted->what,
                            value->text);
                return false;
        case -EINVAL:
                return refuse(check, place, wanted, value,
                              duration ? " (units: us, ms, s, min, h, d)" : " (units: B, KiB, MiB, GiB)");
        default:
                break;
        }

        if (!in_range(wanted, (int64_t)number))
                return refuse_range(check, place, wanted,
                                    config_format(wanted->type, (int64_t)number, found));
        ret->integer = (int64_t)number;
        return true;
}

static bool convert_text(Check *check, const ConfigPlace *place, const Wanted *wanted,
                         const ConfigValue *value, Converted *ret) {
        char hint[NEAREST_HINT_MAX] = "";

        if (!is_text(value))
                return refuse(check, place, wanted, value, "");

        if (wanted->type == CONFIG_KEY_ENUM && !is_word(wanted->words, value->text, hint))
                return refuse(check, place, wanted, value, hint);
        if (wanted->type == CONFIG_KEY_NAME && !pipeline_name_is_valid(value->text)) {
                check_error(check, place,
                            "%s = \"%.80s\" is no name: use 1 to %u of a-z, 0-9 and -, not beginning with -",
                            wanted->what, value->text, PIPELINE_NAME_MAX);
                return false;
        }
        ret->string = value->text;
        return true;
}

bool value_convert(Check *check, const ConfigPlace *place, const Wanted *wanted, const ConfigValue *value,
                   Converted *ret) {
        switch (wanted->type) {
        case CONFIG_KEY_INT:
                return convert_int(check, place, wanted, value, ret);
        case CONFIG_KEY_FLOAT:
                return convert_float(check, place, wanted, value, ret);
        case CONFIG_KEY_BOOL:
                return convert_bool(check, place, wanted, value, ret);
        case CONFIG_KEY_STRING:
        case CONFIG_KEY_NAME:
        case CONFIG_KEY_ENUM:
                return convert_text(check, place, wanted, value, ret);
        case CONFIG_KEY_DURATION:
        case CONFIG_KEY_SIZE:
                return convert_units(check, place, wanted, value, ret);
        case CONFIG_KEY_GROUP:
                return value->type == VALUE_GROUP || refuse(check, place, wanted, value, "");
        case CONFIG_KEY_OTHER:
                return true;
        }
        return false;
}

Slot *slots_get(Slots *slots, ConfigScope scope, const char *name) {
        return &slots->slots[config_key_find(scope, name) - config_keys];
}

static const char *scope_suffix(ConfigScope scope) {
        static const char *const suffixes[_CONFIG_SCOPE_MAX] = {
                [CONFIG_TOP] = "",
                [CONFIG_STAGE] = " in a stage",
                [CONFIG_RETRY] = " in `retry`",
                [CONFIG_QUEUE] = " in `queue`",
        };

        return suffixes[scope];
}

bool later_key_refuse(Check *check, ConfigScope scope, const Given *given) {
        for (size_t i = 0; i < n_config_later_keys; i++) {
                const LaterKey *later = &config_later_keys[i];

                if (later->scope != scope || strcmp(later->name, given->name) != 0)
                        continue;
                if (later->ignored)
                        check_warning(check, &given->place, "%s is not enforced by this version",
                                      later->name);
                else
                        check_error(check, &given->place, "%s is not supported by this version", later->name);
                return true;
        }
        return false;
}

static void refuse_key(Check *check, ConfigScope scope, const Given *given) {
        Nearest nearest = { .word = given->name };
        char hint[NEAREST_HINT_MAX];

        if (later_key_refuse(check, scope, given))
                return;

        for (size_t i = 0; i < n_config_keys; i++)
                if (config_keys[i].scope == scope)
                        nearest_offer(&nearest, config_keys[i].name);
        check_error(check, &given->place, "unknown key `%.80s`%s%s", given->name, scope_suffix(scope),
                    nearest_hint(&nearest, hint));
}

/* Modes that DESIGN names and this version lacks get a better answer than "must be". */
static bool mode_is_later(const ConfigKey *key, const Given *given) {
        return key == config_key_find(CONFIG_STAGE, "mode") && is_text(&given->value) &&
               (strcmp(given->value.text, "thread") == 0 || strcmp(given->value.text, "async") == 0);
}

const ConfigKey *slots_take(Check *check, Slots *slots, ConfigScope scope, const Given *given) {
        const ConfigKey *key = config_key_find(scope, given->name);
        char what[40];

        if (!key) {
                refuse_key(check, scope, given);
                return NULL;
        }

        Slot *slot = &slots->slots[key - config_keys];
        if (slot->given) {
                check_error(check, &given->place, "`%s` is given twice", key->name);
                return NULL;
        }
        slot->given = true;
        slot->place = given->place;

        if (mode_is_later(key, given)) {
                check_error(check, &given->place,
                            "`mode` = \"%s\" is not supported by this version: it runs processes only",
                            given->value.text);
                return key;
        }

        (void)snprintf(what, sizeof(what), "`%s`", key->name);
        const Wanted wanted = {
                .what = what,
                .type = key->type,
                .min = key->min,
                .max = key->max,
                .words = key->words,
        };
        slot->valid = value_convert(check, &given->place, &wanted, &given->value, &slot->value);
        return key;
}

void slots_defaults(Slots *slots, ConfigScope scope) {
        /* Our own table cannot be wrong, so nothing is ever reported here; see the assertion. */
        Check silent = { .report = &(ConfigReport){ 0 } };

        for (size_t i = 0; i < n_config_keys; i++) {
                const ConfigKey *key = &config_keys[i];
                Slot *slot = &slots->slots[i];

                if (key->scope != scope)
                        continue;
                if (key->type == CONFIG_KEY_GROUP)
                        slots_defaults(slots, key->group);
                if (slot->valid || !key->fallback)
                        continue;

                const Wanted wanted = {
                        .what = key->name,
                        .type = key->type,
                        .min = key->min,
                        .max = key->max,
                        .words = key->words,
                };
                const ConfigValue value = { .type = VALUE_WORD, .text = key->fallback };
                slot->valid = value_convert(&silent, &(ConfigPlace){ 0 }, &wanted, &value, &slot->value);
                assert(slot->valid);
        }
}

StageDraft *draft_add_stage(Draft *draft, const ConfigPlace *place) {
        StageDraft *grown;

        if (draft->n_stages == PIPELINE_STAGES_MAX) {
                if (!draft->too_many)
                        check_error(&draft->check, place, "more than %u stages", PIPELINE_STAGES_MAX);
                draft->too_many = draft->incomplete = true;
                return NULL;
        }

        grown = reallocarray(draft->stages, draft->n_stages + 1, sizeof(StageDraft));
        if (!grown) {
                draft->check.broken = -ENOMEM;
                return NULL;
        }
        draft->stages = grown;
        grown[draft->n_stages] = (StageDraft){ .place = *place };
        return &grown[draft->n_stages++];
}

void draft_add_setting(Draft *draft, StageDraft *stage, const Given *given) {
        Given *grown = reallocarray(stage->settings, stage->n_settings + 1, sizeof(Given));

        if (!grown) {
                draft->check.broken = -ENOMEM;
                return;
        }
        stage->settings = grown;
        grown[stage->n_settings++] = *given;
}

void draft_done(Draft *draft) {
        for (size_t i = 0; i < draft->n_stages; i++) {
                free(draft->stages[i].settings);
                free(draft->stages[i].plugin_file);
        }
        free(draft->stages);
        *draft = (Draft){ 0 };
}
