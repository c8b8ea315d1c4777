#pragma once

/*
 * What a plugin says of itself, as data.
 *
 * Only `sluice-worker --describe FILE...` ever loads a plugin to look at it;
 * its output, one tab-separated line per fact, is parsed here. So a plugin
 * that crashes while it is loaded cannot take the supervisor or sluicectl
 * along, and a checked configuration and a running worker agree by
 * construction. Pure: no process is started here.
 *
 *     plugin  FILE  NAME  KIND  FLAGS  BATCH  SUMMARY     KIND: 1 source, 2 transform, 3 sink
 *     setting NAME  TYPE  HAS-FALLBACK  FALLBACK  MIN  MAX  HELP  (of the plugin line above)
 *     error   FILE  MESSAGE                               could not be loaded; says why
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

typedef struct PluginSetting {
        char *name;
        uint32_t type;  /* SluiceType */
        char *fallback; /* NULL: required */
        int64_t min, max;
        char *help;
} PluginSetting;

typedef struct Plugin {
        char *file;  /* absolute path of the shared object */
        char *error; /* set: it cannot be used, and why; everything below is then unset */
        char *name;
        uint32_t kind;  /* SluiceKind */
        uint32_t flags; /* SLUICE_ONE_LANE, ... */
        char *summary;
        PluginSetting *settings;
        size_t n_settings;
} Plugin;

typedef struct PluginSet {
        Plugin *plugins;
        size_t n_plugins;
} PluginSet;

void plugin_set_done(PluginSet *set);

/* Parses what --describe printed (NUL-terminated text) and appends to `set`.
 * Returns 0, -EBADMSG on text that breaks the format, -ENOMEM. */
int plugin_set_parse(PluginSet *set, const char *text);

/* Appends an entry for a plugin that cannot be used. Returns 0 or -ENOMEM. */
int plugin_set_add_error(PluginSet *set, const char *file, const char *error);

/* Moves all entries of `from` to the end of `set`. Returns 0, or -ENOMEM with both unchanged. */
int plugin_set_append(PluginSet *set, PluginSet *from);

/* The entry for this file, or NULL. */
const Plugin *plugin_set_find(const PluginSet *set, const char *file);

/*
 * Finds the shared object for a `use` value: a name ("prime") is looked up as
 * NAME.so in the folders of $SLUICE_PLUGIN_PATH (colon-separated), then in
 * PREFIX/lib/sluice/stages and the build tree, both relative to the running
 * program; a value with a slash is a path, relative to `base_dir`.
 * Returns 0 with an absolute path (caller frees), -ENOENT, -ENOMEM.
 */
int plugin_find(const char *use, const char *base_dir, char **ret_path);

/* The folders a plain name is looked up in, in order; NULL-terminated, caller frees each and the array. */
int plugin_folders(char ***ret_folders);

/* The names of all plugins that a plain `use = "NAME"` finds, for "did you mean" and listings; NULL-terminated,
 * caller frees each and the array. */
int plugin_list_names(char ***ret_names);

/* Frees a NULL-terminated array of strings; NULL is fine. */
void plugin_strings_free(char **strings);
