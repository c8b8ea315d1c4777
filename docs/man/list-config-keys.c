/*
 * Program: list-config-keys. The tables of sluice.conf(5), in scdoc's language:
 * the configuration's keys as the reader has them, and the settings of the
 * stages as `sluice-worker --describe` tells them (a file, if one is given).
 * Run by the build, so that the page cannot differ from the program.
 */

#include <ctype.h>
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/stage.h>

#include "base/cleanup.h"
#include "pipeline/config.h"
#include "pipeline/plugin.h"

#define NUMBER_MAX 32

/* What scdoc would take for formatting is said to be text. */
static void print_text(const char *text) {
        for (const char *p = text; *p; p++) {
                if (strchr("*_\\#<>[]|:.", *p))
                        (void)putchar('\\');
                (void)putchar(*p);
        }
}

typedef struct Unit {
        uint64_t factor;
        const char *name;
} Unit;

/* As one would write it: in the largest unit that divides it. */
static const char *format_in(const Unit *units, uint64_t value, char buf[static NUMBER_MAX]) {
        const Unit *unit = units;

        while (unit->factor > 1 && (value == 0 || value % unit->factor != 0))
                unit++;
        (void)snprintf(buf, NUMBER_MAX, "%" PRIu64 "%s", value / unit->factor, value == 0 ? "" : unit->name);
        return buf;
}

static const char *format_number(ConfigType type, int64_t value, char buf[static NUMBER_MAX]) {
        static const Unit durations[] = {
                { UINT64_C(86400000000), "d" },
                { UINT64_C(3600000000), "h" },
                { 60000000, "min" },
                { 1000000, "s" },
                { 1000, "ms" },
                { 1, "us" },
        };
        static const Unit sizes[] = {
                { 1 << 30, "GiB" }, { 1 << 20, "MiB" }, { 1 << 10, "KiB" }, { 1, "B" }
        };

        if (type == CONFIG_KEY_DURATION)
                return format_in(durations, (uint64_t)value, buf);
        if (type == CONFIG_KEY_SIZE)
                return format_in(sizes, (uint64_t)value, buf);
        (void)snprintf(buf, NUMBER_MAX, "%" PRId64, value);
        return buf;
}

static void print_words(const char *words) {
        for (; *words; words++) {
                if (*words == ' ')
                        (void)fputs(", ", stdout);
                else
                        (void)putchar(*words);
        }
}

static void print_range(ConfigType type, int64_t min, int64_t max) {
        char low[NUMBER_MAX], high[NUMBER_MAX];

        if (min != max)
                (void)printf(", %s to %s", format_number(type, min, low), format_number(type, max, high));
}

static const char *type_name(ConfigType type) {
        switch (type) {
        case CONFIG_KEY_INT:
                return "number";
        case CONFIG_KEY_FLOAT:
                return "decimal number";
        case CONFIG_KEY_BOOL:
                return "true or false";
        case CONFIG_KEY_STRING:
                return "string";
        case CONFIG_KEY_NAME:
                return "name";
        case CONFIG_KEY_DURATION:
                return "duration";
        case CONFIG_KEY_SIZE:
                return "size";
        case CONFIG_KEY_GROUP:
                return "group";
        case CONFIG_KEY_ENUM:
        case CONFIG_KEY_OTHER:
                return "";
        }
        return "";
}

static void print_key(const ConfigKey *key) {
        const char *type = type_name(key->type);

        (void)printf("*%s*", key->name);
        if (key->type == CONFIG_KEY_ENUM)
                type = strchr(key->words, ' ') ? "one of" : "only";
        if (*type)
                (void)printf(" (%s", type);
        if (key->type == CONFIG_KEY_ENUM) {
                (void)putchar(' ');
                print_words(key->words);
        } else {
                print_range(key->type, key->min, key->max);
                if (key->words) {
                        (void)fputs(", or ", stdout);
                        print_words(key->words);
                }
        }
        (void)fputs(*type ? ")" : "", stdout);
        if (key->fallback) {
                (void)fputs(", default ", stdout);
                print_text(key->fallback);
        }
        (void)fputs("\n\t", stdout);
        print_text(key->help);
        (void)fputs(key->type == CONFIG_KEY_GROUP ? "; its keys are below\n\n" : "\n\n", stdout);
}

static void print_scope(ConfigScope scope, const char *title) {
        (void)printf("## %s\n\n", title);
        for (size_t i = 0; i < n_config_keys; i++)
                if (config_keys[i].scope == scope)
                        print_key(&config_keys[i]);
}

static const char *setting_type_name(uint32_t type) {
        static const char *const names[] = {
                [SLUICE_INT] = "number",         [SLUICE_FLOAT] = "decimal number",
                [SLUICE_BOOL] = "true or false", [SLUICE_STRING] = "string",
                [SLUICE_DURATION] = "duration",  [SLUICE_SIZE] = "size",
        };

        return type < ELEMENTSOF(names) && names[type] ? names[type] : "value";
}

static ConfigType setting_config_type(uint32_t type) {
        return type == SLUICE_DURATION ? CONFIG_KEY_DURATION
               : type == SLUICE_SIZE   ? CONFIG_KEY_SIZE
                                       : CONFIG_KEY_INT;
}

static void print_setting(const PluginSetting *s) {
        (void)putchar('*');
        print_text(s->name);
        (void)printf("* (%s", setting_type_name(s->type));
        print_range(setting_config_type(s->type), s->min, s->max);
        (void)fputs(s->fallback ? "), default " : "), required", stdout);
        if (s->fallback && !*s->fallback)
                (void)fputs("empty", stdout);
        else if (s->fallback)
                print_text(s->fallback);
        (void)fputs("\n\t", stdout);
        print_text(s->help);
        (void)fputs("\n\n", stdout);
}

static void print_plugin(const Plugin *p) {
        static const char *const kinds[] = {
                [SLUICE_SOURCE] = "source",
                [SLUICE_TRANSFORM] = "transform",
                [SLUICE_SINK] = "sink",
        };

        (void)printf("## %s: %s\n\n", p->name, p->kind < ELEMENTSOF(kinds) ? kinds[p->kind] : "?");
        (void)putchar(toupper((unsigned char)*p->summary));
        print_text(p->summary + 1);
        (void)printf(".%s\n\n", p->flags & SLUICE_ONE_LANE ? " Runs one worker." : "");
        for (size_t i = 0; i < p->n_settings; i++)
                print_setting(&p->settings[i]);
}

static char *read_whole(const char *path) {
        _cleanup_fclose_ FILE *f = fopen(path, "re");
        char *text = NULL;
        size_t size = 0;

        if (!f)
                err(EXIT_FAILURE, "%s", path);
        if (getdelim(&text, &size, '\0', f) < 0)
                errx(EXIT_FAILURE, "%s is empty", path);
        return text;
}

static void print_plugins(const char *path) {
        _cleanup_(plugin_set_done) PluginSet set = {};
        _cleanup_free_ char *text = read_whole(path);

        if (plugin_set_parse(&set, text) < 0)
                errx(EXIT_FAILURE, "%s is not what sluice-worker --describe prints", path);
        for (size_t i = 0; i < set.n_plugins; i++) {
                if (set.plugins[i].error)
                        errx(EXIT_FAILURE, "%s: %s", set.plugins[i].file, set.plugins[i].error);
                print_plugin(&set.plugins[i]);
        }
}

int main(int argc, char **argv) {
        static const struct {
                ConfigScope scope;
                const char *title;
        } scopes[] = {
                { CONFIG_TOP, "The pipeline" },
                { CONFIG_STAGE, "A stage" },
                { CONFIG_QUEUE, "queue, of a stage" },
                { CONFIG_RETRY, "retry, of a stage" },
        };

        (void)fputs("# KEYS\n\n", stdout);
        for (size_t i = 0; i < ELEMENTSOF(scopes); i++)
                print_scope(scopes[i].scope, scopes[i].title);
        if (argc > 1) {
                (void)fputs("# STAGES THAT COME WITH SLUICE\n\n", stdout);
                print_plugins(argv[1]);
        }
        return ferror(stdout) || fflush(stdout) == EOF ? EXIT_FAILURE : EXIT_SUCCESS;
}
