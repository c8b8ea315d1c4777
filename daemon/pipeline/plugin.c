#include "pipeline/plugin.h"

#include <string.h>
#include <sys/stat.h>

#include <sluice/stage.h>

#include "base/program.h"

static void plugin_done(Plugin *plugin) {
        for (size_t i = 0; i < plugin->n_settings; i++) {
                free(plugin->settings[i].name);
                free(plugin->settings[i].fallback);
                free(plugin->settings[i].help);
        }
        free(plugin->settings);
        free(plugin->file);
        free(plugin->error);
        free(plugin->name);
        free(plugin->summary);
}

void plugin_set_done(PluginSet *set) {
        for (size_t i = 0; i < set->n_plugins; i++)
                plugin_done(&set->plugins[i]);
        free(set->plugins);
        *set = (PluginSet){ 0 };
}

static Plugin *plugin_set_grow(PluginSet *set) {
        Plugin *grown = reallocarray(set->plugins, set->n_plugins + 1, sizeof(Plugin));

        if (!grown)
                return NULL;
        set->plugins = grown;
        grown[set->n_plugins] = (Plugin){ 0 };
        return &grown[set->n_plugins++];
}

static PluginSetting *plugin_grow(Plugin *plugin) {
        PluginSetting *grown = reallocarray(plugin->settings, plugin->n_settings + 1, sizeof(PluginSetting));

        if (!grown)
                return NULL;
        plugin->settings = grown;
        grown[plugin->n_settings] = (PluginSetting){ 0 };
        return &grown[plugin->n_settings++];
}

int plugin_set_add_error(PluginSet *set, const char *file, const char *error) {
        Plugin *plugin = plugin_set_grow(set);

        if (!plugin)
                return -ENOMEM;
        plugin->file = strdup(file);
        plugin->error = strdup(error);
        if (!plugin->file || !plugin->error) {
                plugin_done(plugin);
                set->n_plugins--;
                return -ENOMEM;
        }
        return 0;
}

/* Splits a line at its tabs; returns the number of fields, or max + 1 if there are more. */
static size_t split_fields(char *line, char **fields, size_t max) {
        for (size_t n = 0;; n++) {
                char *tab = strchr(line, '\t');

                if (n == max)
                        return max + 1;
                fields[n] = line;
                if (!tab)
                        return n + 1;
                *tab = '\0';
                line = tab + 1;
        }
}

static int parse_i64(const char *text, int64_t min, int64_t max, int64_t *ret) {
        char *end;

        errno = 0;
        long long value = strtoll(text, &end, 10);
        if (errno != 0 || end == text || *end != '\0' || value < min || value > max)
                return -EBADMSG;
        *ret = value;
        return 0;
}

static int parse_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret) {
        int64_t value;
        int r = parse_i64(text, min, max, &value);

        if (r == 0)
                *ret = (uint32_t)value;
        return r;
}

static int parse_plugin(PluginSet *set, char **fields) {
        Plugin *plugin = plugin_set_grow(set);
        uint32_t batch;

        if (!plugin)
                return -ENOMEM;
        if (*fields[1] == '\0' || *fields[2] == '\0' ||
            parse_u32(fields[3], SLUICE_SOURCE, SLUICE_SINK, &plugin->kind) < 0 ||
            parse_u32(fields[4], 0, UINT32_MAX, &plugin->flags) < 0 || parse_u32(fields[5], 0, 1, &batch) < 0)
                return -EBADMSG;

        plugin->file = strdup(fields[1]);
        plugin->name = strdup(fields[2]);
        plugin->summary = strdup(fields[6]);
        return plugin->file && plugin->name && plugin->summary ? 0 : -ENOMEM;
}

static int parse_setting(Plugin *plugin, char **fields) {
        PluginSetting *setting = plugin_grow(plugin);
        uint32_t has_fallback = 0;

        if (!setting)
                return -ENOMEM;
        if (*fields[1] == '\0' || parse_u32(fields[2], SLUICE_INT, SLUICE_SIZE, &setting->type) < 0 ||
            parse_u32(fields[3], 0, 1, &has_fallback) < 0 ||
            parse_i64(fields[5], INT64_MIN, INT64_MAX, &setting->min) < 0 ||
            parse_i64(fields[6], INT64_MIN, INT64_MAX, &setting->max) < 0)
                return -EBADMSG;

        setting->name = strdup(fields[1]);
        setting->help = strdup(fields[7]);
        if (!setting->name || !setting->help)
                return -ENOMEM;
        if (has_fallback) {
                setting->fallback = strdup(fields[4]);
                if (!setting->fallback)
                        return -ENOMEM;
        }
        return 0;
}

static int parse_line(PluginSet *set, char *line) {
        char *fields[8] = {};
        size_t n = split_fields(line, fields, ELEMENTSOF(fields));

        if (strcmp(fields[0], "plugin") == 0 && n == 7)
                return parse_plugin(set, fields);
        if (strcmp(fields[0], "error") == 0 && n == 3)
                return plugin_set_add_error(set, fields[1], fields[2]);
        if (strcmp(fields[0], "setting") == 0 && n == 8 && set->n_plugins > 0 &&
            !set->plugins[set->n_plugins - 1].error)
                return parse_setting(&set->plugins[set->n_plugins - 1], fields);
        return -EBADMSG;
}

int plugin_set_append(PluginSet *set, PluginSet *from) {
        Plugin *grown;

        if (from->n_plugins == 0)
                return 0;

        grown = reallocarray(set->plugins, set->n_plugins + from->n_plugins, sizeof(Plugin));
        if (!grown)
                return -ENOMEM;
        memcpy(grown + set->n_plugins, from->plugins, from->n_plugins * sizeof(Plugin));
        set->plugins = grown;
        set->n_plugins += from->n_plugins;
        from->n_plugins = 0;
        return 0;
}

int plugin_set_parse(PluginSet *set, const char *text) {
        _cleanup_(plugin_set_done) PluginSet parsed = { 0 };
        _cleanup_free_ char *copy = strdup(text);

        if (!copy)
                return -ENOMEM;

        for (char *line = copy; *line;) {
                char *end = strchr(line, '\n');

                /* Every line is ended by the writer, so this one was cut off. */
                if (!end)
                        return -EBADMSG;
                *end = '\0';

                int r = parse_line(&parsed, line);
                if (r < 0)
                        return r;
                line = end + 1;
        }

        return plugin_set_append(set, &parsed);
}

const Plugin *plugin_set_find(const PluginSet *set, const char *file) {
        for (size_t i = 0; i < set->n_plugins; i++)
                if (strcmp(set->plugins[i].file, file) == 0)
                        return &set->plugins[i];
        return NULL;
}

void plugin_strings_free(char **strings) {
        if (!strings)
                return;
        for (char **s = strings; *s; s++)
                free(*s);
        free(strings);
}

DEFINE_CLEANUP(char *, plugin_strings_free)
#define _cleanup_strings_ _cleanup_(plugin_strings_freep)

/* Appends `string` (taken over, also on failure) to a NULL-terminated array of *n. */
static int strings_take(char ***strings, size_t *n, char *string) {
        char **grown;

        if (!string)
                return -ENOMEM;
        grown = reallocarray(*strings, *n + 2, sizeof(char *));
        if (!grown) {
                free(string);
                return -ENOMEM;
        }
        grown[(*n)++] = string;
        grown[*n] = NULL;
        *strings = grown;
        return 0;
}

/* Appends PROGRAM-FOLDER less `up` components, plus `below`. */
static int take_relative(char ***folders, size_t *n, const char *program, unsigned up, const char *below) {
        size_t len = strlen(program);
        char *folder;

        for (; up > 0; up--) {
                while (len > 0 && program[len - 1] != '/')
                        len--;
                while (len > 0 && program[len - 1] == '/')
                        len--;
        }
        if (asprintf(&folder, "%.*s/%s", (int)len, program, below) < 0)
                return -ENOMEM;
        return strings_take(folders, n, folder);
}

int plugin_folders(char ***ret_folders) {
        static const struct {
                unsigned up;
                const char *below;
        } relative[] = {
                { 1, "lib/sluice/stages" }, /* PREFIX/bin/sluiced */
                { 2, "lib/sluice/stages" }, /* PREFIX/libexec/sluice/sluice-worker */
                { 1, "stages" },            /* BUILD/daemon/sluiced */
                { 0, "stages" },
        };
        _cleanup_strings_ char **folders = NULL;
        _cleanup_free_ char *program = NULL;
        const char *path = getenv("SLUICE_PLUGIN_PATH");
        size_t n = 0;
        int r;

        while (path && *path) {
                size_t len = strcspn(path, ":");

                if (len > 0) {
                        r = strings_take(&folders, &n, strndup(path, len));
                        if (r < 0)
                                return r;
                }
                path += len + (path[len] == ':');
        }

        r = program_folder(&program);
        if (r < 0)
                return r;
        for (size_t i = 0; i < ELEMENTSOF(relative); i++) {
                r = take_relative(&folders, &n, program, relative[i].up, relative[i].below);
                if (r < 0)
                        return r;
        }

        *ret_folders = TAKE_PTR(folders);
        return 0;
}

/* Returns 0 with FOLDER/NAME made absolute, -ENOENT if there is no such regular file, -ENOMEM. */
static int find_file(const char *folder, const char *name, const char *suffix, char **ret_path) {
        _cleanup_free_ char *path = NULL, *absolute = NULL;
        struct stat st;

        if (asprintf(&path, "%s%s%s%s", folder ? folder : "", folder ? "/" : "", name, suffix) < 0) {
                path = NULL;
                return -ENOMEM;
        }

        absolute = realpath(path, NULL);
        if (!absolute)
                return errno == ENOMEM ? -ENOMEM : -ENOENT;
        if (stat(absolute, &st) < 0 || !S_ISREG(st.st_mode))
                return -ENOENT;

        *ret_path = TAKE_PTR(absolute);
        return 0;
}

int plugin_find(const char *use, const char *base_dir, char **ret_path) {
        _cleanup_strings_ char **folders = NULL;
        int r;

        if (strchr(use, '/'))
                return find_file(*use == '/' ? NULL : base_dir, use, "", ret_path);

        r = plugin_folders(&folders);
        if (r < 0)
                return r;
        for (char **folder = folders; *folder; folder++) {
                r = find_file(*folder, use, ".so", ret_path);
                if (r != -ENOENT)
                        return r;
        }
        return -ENOENT;
}

static bool strings_have(char **strings, const char *wanted, size_t n_wanted) {
        for (; strings && *strings; strings++)
                if (strlen(*strings) == n_wanted && memcmp(*strings, wanted, n_wanted) == 0)
                        return true;
        return false;
}

static int list_folder(const char *folder, char ***names, size_t *n) {
        _cleanup_closedir_ DIR *dir = opendir(folder);
        struct dirent *entry;

        /* Most of the places looked at do not exist; that is no error. */
        if (!dir)
                return errno == ENOMEM ? -ENOMEM : 0;

        while ((entry = readdir(dir))) {
                size_t len = strlen(entry->d_name);

                if (entry->d_name[0] == '.' || len <= 3 || strcmp(entry->d_name + len - 3, ".so") != 0 ||
                    strings_have(*names, entry->d_name, len - 3))
                        continue;

                int r = strings_take(names, n, strndup(entry->d_name, len - 3));
                if (r < 0)
                        return r;
        }
        return 0;
}

static int compare_strings(const void *a, const void *b) {
        return strcmp(*(char *const *)a, *(char *const *)b);
}

int plugin_list_names(char ***ret_names) {
        _cleanup_strings_ char **folders = NULL, **names = NULL;
        size_t n = 0;
        int r;

        r = plugin_folders(&folders);
        if (r < 0)
                return r;

        names = calloc(1, sizeof(char *));
        if (!names)
                return -ENOMEM;
        for (char **folder = folders; *folder; folder++) {
                r = list_folder(*folder, &names, &n);
                if (r < 0)
                        return r;
        }
        qsort(names, n, sizeof(char *), compare_strings);

        *ret_names = TAKE_PTR(names);
        return 0;
}
