#include "pipeline/config.h"

#include <check.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>

#include <sluice/stage.h>

#include "base/clock.h"

/*
 * Sample files are in configs/: what is reported for X.conf is in X.expected, word for word (nothing reported:
 * an empty file). Plugins are empty files in a folder of the test's own; what they say of themselves is below.
 */

static const struct {
        const char *name;
        const char *says; /* without the `plugin FILE` or `error FILE` at the beginning; NULL: nothing */
} fakes[] = {
        { "range", "plugin\tFILE\trange\t1\t1\t0\tnumbers\n"
                   "setting\tfrom\t1\t1\t0\t0\t0\tfirst number\n"
                   "setting\tto\t1\t0\t\t0\t0\tlast number\n"
                   "setting\tstep\t1\t1\t1\t0\t0\tdistance\n" },
        { "prime", "plugin\tFILE\tprime\t2\t0\t1\ttests numbers\n" },
        { "log", "plugin\tFILE\tlog\t3\t0\t0\tlogs\n"
                 "setting\tlevel\t4\t1\tinfo\t0\t0\tlevel\n"
                 "setting\tprefix\t4\t1\t\t0\t0\ttext before each payload\n" },
        { "lines", "plugin\tFILE\tlines\t1\t1\t0\treads\n"
                   "setting\tpath\t4\t1\t-\t0\t0\tfile to read\n" },
        { "file", "plugin\tFILE\tfile\t3\t1\t1\twrites\n"
                  "setting\tpath\t4\t0\t\t0\t0\tfile to append to\n"
                  "setting\tmode\t4\t1\t\"0644\"\t0\t0\tpermissions\n" },
        { "all", "plugin\tFILE\tall\t3\t0\t0\thas a setting of each type\n"
                 "setting\tnumber\t1\t1\t-1\t-10\t10\tan integer\n"
                 "setting\tfraction\t2\t1\t0.5\t0\t4\ta float\n"
                 "setting\tflag\t3\t1\ttrue\t0\t0\ta bool\n"
                 "setting\ttext\t4\t1\t\"a, b\"\t0\t0\ta string\n"
                 "setting\tpause\t5\t1\t2s\t0\t3600000000\ta duration\n"
                 "setting\troom\t6\t1\t4KiB\t4\t8192\ta size\n" },
        { "old", "error\tFILE\tbuilt for stage ABI 7, this sluice has 1: rebuild it\n" },
        { "broken", "error\tFILE\tcrashed while being loaded (SIGSEGV)\n" },
        { "silent", NULL },
        { "bad-default",
          "plugin\tFILE\tbad-default\t3\t0\t0\twrong\nsetting\troom\t6\t1\t12\t0\t0\ta size\n" },
        { "Upper", "plugin\tFILE\tupper\t3\t0\t0\tnamed badly\n" },
};

static char folder[] = "/tmp/sluice-test-config-XXXXXX";
static char configs[PATH_MAX], conf[PATH_MAX];
static size_t n_described;

static char *replace(const char *text, const char *from, const char *to) {
        char *result = NULL;
        size_t size;
        FILE *f = open_memstream(&result, &size);

        ck_assert_ptr_nonnull(f);
        for (const char *hit; (hit = strstr(text, from)); text = hit + strlen(from))
                (void)fprintf(f, "%.*s%s", (int)(hit - text), text, to);
        (void)fputs(text, f);
        ck_assert_int_eq(fclose(f), 0);
        return result;
}

static int fake_describe(const char *const *files, size_t n_files, PluginSet *set) {
        n_described += n_files;
        for (size_t i = 0; i < n_files; i++) {
                const char *name = strrchr(files[i], '/') + 1;

                for (size_t j = 0; j < ELEMENTSOF(fakes); j++) {
                        size_t len = strlen(fakes[j].name);

                        if (strncmp(fakes[j].name, name, len) != 0 || strcmp(name + len, ".so") != 0 ||
                            !fakes[j].says)
                                continue;

                        _cleanup_free_ char *text = replace(fakes[j].says, "FILE", files[i]);
                        int r = plugin_set_parse(set, text);
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

static int fail_describe(const char *const *files, size_t n_files, PluginSet *set) {
        return -ENOENT;
}

static void set_up(void) {
        char path[PATH_MAX + 32];

        strcpy(folder + sizeof(folder) - sizeof("XXXXXX"), "XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        for (size_t i = 0; i < ELEMENTSOF(fakes); i++) {
                (void)snprintf(path, sizeof(path), "%s/%s.so", folder, fakes[i].name);
                close_fd(creat(path, 0600));
        }
        ck_assert_int_eq(setenv("SLUICE_PLUGIN_PATH", folder, 1), 0);
        ck_assert_int_eq(chdir(configs), 0);
        n_described = 0;
}

static void tear_down(void) {
        _cleanup_closedir_ DIR *dir = opendir(folder);
        struct dirent *entry;

        while (dir && (entry = readdir(dir)))
                (void)unlinkat(dirfd(dir), entry->d_name, 0);
        (void)rmdir(folder);
}

/* What is printed for a file, with the folders of this run called PLUGINS and FOLDERS. */
static char *printed(const ConfigReport *report) {
        _cleanup_free_ char *text = NULL, *joined = NULL, *part = NULL;
        char **folders;
        size_t size;
        FILE *f;

        f = open_memstream(&text, &size);
        ck_assert_ptr_nonnull(f);
        config_report_print(report, f);
        ck_assert_int_eq(fclose(f), 0);

        ck_assert_int_eq(plugin_folders(&folders), 0);
        f = open_memstream(&joined, &size);
        ck_assert_ptr_nonnull(f);
        for (char **folder_name = folders; *folder_name; folder_name++)
                (void)fprintf(f, "%s%s", folder_name == folders ? "" : ", ", *folder_name);
        ck_assert_int_eq(fclose(f), 0);
        plugin_strings_free(folders);

        part = replace(text, joined, "FOLDERS");
        return replace(part, folder, "PLUGINS");
}

static char *read_text(const char *path) {
        _cleanup_fclose_ FILE *f = fopen(path, "re");
        char *text = calloc(1, 1 << 16);

        ck_assert_msg(f != NULL, "%s is missing", path);
        ck_assert_ptr_nonnull(text);
        ck_assert_uint_lt(fread(text, 1, (1 << 16) - 1, f), (1 << 16) - 1);
        return text;
}

/* Reads a file that must be good, but may have warnings. */
static Pipeline *read_good(const char *path) {
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        Pipeline *pipeline = NULL;
        int r = pipeline_from_file(path, fake_describe, &report, &pipeline);
        _cleanup_free_ char *text = printed(&report);

        ck_assert_msg(r == 0, "%s: %d\n%s", path, r, text);
        ck_assert_uint_eq(report.n_errors, 0);
        return pipeline;
}

static Pipeline *read_words(uint32_t n_workers, const char *const *words, size_t n_words) {
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        Pipeline *pipeline = NULL;
        int r = pipeline_from_arguments("run", words, n_words, n_workers, fake_describe, &report, &pipeline);
        _cleanup_free_ char *text = printed(&report);

        ck_assert_msg(r == 0, "%d\n%s", r, text);
        ck_assert_uint_eq(report.n_problems, 0);
        return pipeline;
}
#define WORDS(...) (const char *const[]){ __VA_ARGS__ }, ELEMENTSOF(((const char *const[]){ __VA_ARGS__ }))

static void assert_words_fail(const char *expected, uint32_t n_workers, const char *const *words,
                              size_t n_words) {
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        Pipeline *pipeline = NULL;

        ck_assert_int_eq(
                pipeline_from_arguments("run", words, n_words, n_workers, fake_describe, &report, &pipeline),
                CONFIG_E_INVALID);
        _cleanup_free_ char *text = printed(&report);
        ck_assert_str_eq(text, expected);
        ck_assert_ptr_null(pipeline);
}

static const char *const samples[] = {
        "Bad Name",
        "bad-default",
        "binary",
        "cycles",
        "empty",
        "feeding",
        "good",
        "graph",
        "include-folder",
        "include-itself",
        "include-missing",
        "include-rest",
        "include-syntax",
        "include-unclosed",
        "includes",
        "integers",
        "later",
        "many",
        "names",
        "no-stages",
        "nowhere",
        "one-worker",
        "plugins",
        "ranges",
        "required",
        "results-of-a-sink",
        "same-names",
        "settings",
        "several-ways",
        "stages-group",
        "syntax",
        "too-many",
        "twice",
        "unclosed-comment",
        "unclosed-string",
        "units",
        "unknown-keys",
        "wrong-types",
        "wrong-words",
};

static void read_sample(const char *name) {
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        _cleanup_free_ char *text = NULL, *expected = NULL;
        char path[100];
        Pipeline *pipeline = NULL;

        (void)snprintf(path, sizeof(path), "%s.conf", name);
        int r = pipeline_from_file(path, fake_describe, &report, &pipeline);
        text = printed(&report);

        (void)snprintf(path, sizeof(path), "%s.expected", name);
        expected = read_text(path);
        ck_assert_str_eq(text, expected);

        ck_assert_int_eq(r, report.n_errors > 0 ? CONFIG_E_INVALID : 0);
        ck_assert_int_eq(pipeline != NULL, r == 0);
        pipeline_free(pipeline);
}

START_TEST(every_mistake_is_reported_with_its_file_and_line) {
        read_sample(samples[_i]);
}
END_TEST

START_TEST(no_sample_is_forgotten) {
        _cleanup_closedir_ DIR *dir = opendir(".");
        struct dirent *entry;
        size_t n = 0;

        ck_assert_ptr_nonnull(dir);
        while ((entry = readdir(dir)))
                n += strstr(entry->d_name, ".expected") != NULL;
        ck_assert_uint_eq(n, ELEMENTSOF(samples));
}
END_TEST

START_TEST(a_good_file_becomes_the_pipeline_it_describes) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_good("good.conf");
        const Stage *stages = pipeline->stages;

        ck_assert_str_eq(pipeline->name, "good-1");
        ck_assert_str_eq(pipeline->file, "good.conf");
        ck_assert_int_eq(pipeline->on_stop, ON_STOP_DRAIN);
        ck_assert_int_eq(pipeline->results, RESULTS_QUEUE);
        ck_assert_uint_eq(pipeline->drain_grace_usec, 0);
        ck_assert_int_eq(pipeline->log_level, 7);
        ck_assert(!pipeline_has_ingress(pipeline));

        ck_assert_uint_eq(pipeline->n_stages, 4);
        ck_assert_str_eq(stages[0].name, "from-part");
        ck_assert_str_eq(stages[0].file, "parts/stages.conf");
        ck_assert_uint_eq(stages[0].line, 1);
        ck_assert(stage_is_source(&stages[0]));
        ck_assert_uint_eq(stages[0].n_workers, 1);
        ck_assert_uint_eq(stages[0].next, 1);
        ck_assert_uint_eq(stages[0].n_settings, 3);
        ck_assert_str_eq(stages[0].settings[0].name, "from");
        ck_assert_int_eq(stages[0].settings[0].integer, -INT64_MAX);
        ck_assert_int_eq(stages[0].settings[1].integer, INT64_C(3000000000));
        ck_assert_int_eq(stages[0].settings[2].integer, 1);

        ck_assert_str_eq(stages[1].name, "prime");
        ck_assert_str_eq(stages[1].file, "good.conf");
        ck_assert_uint_eq(stages[1].line, 9);
        ck_assert_uint_eq(stages[1].n_workers, 16);
        ck_assert_uint_eq(stages[1].linger_usec, 0);
        ck_assert_uint_eq(stages[1].queue_depth, 65536);
        ck_assert_uint_eq(stages[1].queue_message_bytes, 16 << 20);
        ck_assert_uint_eq(stages[1].retry_attempts, 100);
        ck_assert_uint_eq(stages[1].retry_backoff_usec, 120 * USEC_PER_SEC);
        /* The default would be less than the pause it bounds. */
        ck_assert_uint_eq(stages[1].retry_max_backoff_usec, 120 * USEC_PER_SEC);

        /* The name it would get is taken further down. */
        ck_assert_str_eq(stages[2].name, "prime-3");
        ck_assert_uint_eq(stages[2].n_workers, pipeline_default_workers());
        ck_assert_uint_eq(stages[2].linger_usec, USEC_PER_MSEC);
        ck_assert_uint_eq(stages[2].queue_depth, 0);
        ck_assert_uint_eq(stages[2].queue_message_bytes, 0);
        ck_assert_uint_eq(stages[2].retry_attempts, 3);
        ck_assert_uint_eq(stages[2].retry_backoff_usec, 100 * USEC_PER_MSEC);
        ck_assert_uint_eq(stages[2].retry_max_backoff_usec, 60 * USEC_PER_SEC);
        ck_assert_uint_eq(stages[3].next, STAGE_NONE);

        /* Two plugins, each looked at once. */
        ck_assert_uint_eq(n_described, 2);
        ck_assert_ptr_eq(stages[1].plugin, stages[3].plugin);
}
END_TEST

START_TEST(stages_may_lead_to_any_stage) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_good("several-ways.conf");
        size_t feeders[5];

        ck_assert_str_eq(pipeline->name, "several-ways");
        ck_assert_uint_eq(pipeline->stages[0].next, 2);
        ck_assert_uint_eq(pipeline->stages[1].next, 2);
        ck_assert_uint_eq(pipeline->stages[2].next, 4);
        ck_assert_uint_eq(pipeline->stages[3].next, STAGE_NONE);
        ck_assert_uint_eq(pipeline->stages[4].next, 3);
        ck_assert(stage_is_sink(&pipeline->stages[3]));

        ck_assert_uint_eq(pipeline_feeders(pipeline, 2, feeders), 2);
        ck_assert_uint_eq(feeders[0], 0);
        ck_assert_uint_eq(feeders[1], 1);
        ck_assert_uint_eq(pipeline_feeders(pipeline, 3, NULL), 1);
        ck_assert_uint_eq(pipeline_feeders(pipeline, 0, NULL), 0);
}
END_TEST

START_TEST(settings_have_the_types_of_the_plugin) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_good("settings.conf");
        const Setting *settings = pipeline->stages[0].settings;

        ck_assert(pipeline_has_ingress(pipeline));
        ck_assert_uint_eq(pipeline->stages[0].n_settings, 6);
        ck_assert_uint_eq(settings[0].type, SLUICE_INT);
        ck_assert_int_eq(settings[0].integer, 7);
        ck_assert_double_eq(settings[1].real, 3.0);
        ck_assert_int_eq(settings[2].integer, 1);
        ck_assert_str_eq(settings[3].string, "ab");
        ck_assert_uint_eq(settings[4].type, SLUICE_DURATION);
        ck_assert_int_eq(settings[4].integer, INT64_C(3600000000));
        ck_assert_int_eq(settings[5].integer, 1024);
}
END_TEST

START_TEST(settings_that_are_not_written_have_their_defaults) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_words(0, WORDS("all"));
        const Setting *settings = pipeline->stages[0].settings;

        ck_assert_int_eq(settings[0].integer, -1);
        ck_assert_double_eq(settings[1].real, 0.5);
        ck_assert_int_eq(settings[2].integer, 1);
        ck_assert_str_eq(settings[3].string, "a, b");
        ck_assert_int_eq(settings[4].integer, 2000000);
        ck_assert_int_eq(settings[5].integer, 4096);
}
END_TEST

START_TEST(the_files_we_ship_are_good) {
        static const char *const files[] = { "prime.conf", "sluice.conf", "examples/lines-to-file.conf" };
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        _cleanup_(pipeline_freep) Pipeline *pipeline = NULL;

        ck_assert_int_eq(chdir(conf), 0);
        ck_assert_int_eq(pipeline_from_file(files[_i], fake_describe, &report, &pipeline), 0);
        ck_assert_uint_eq(report.n_problems, 0);
}
END_TEST

START_TEST(the_reference_file_has_every_key_with_its_default) {
        char path[PATH_MAX + 16], wanted[100];

        (void)snprintf(path, sizeof(path), "%s/sluice.conf", conf);
        _cleanup_free_ char *text = read_text(path);

        for (size_t i = 0; i < n_config_keys; i++) {
                const ConfigKey *key = &config_keys[i];
                bool quoted =
                        key->type != CONFIG_KEY_INT || (key->words && strcmp(key->words, key->fallback) == 0);
                const char *quote = quoted && key->fallback ? "\"" : "";

                (void)snprintf(wanted, sizeof(wanted), "%s = %s%s%s", key->name, quote,
                               key->fallback ? key->fallback : "", quote);
                ck_assert_msg(strstr(text, wanted) != NULL, "\"%s\" is missing", wanted);
                ck_assert_ptr_nonnull(key->help);
        }
}
END_TEST

START_TEST(words_make_the_same_pipeline_as_a_file) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_words(
                5, WORDS("range:to=0x10,from=-9223372036854775808,next=prime-2", "range:to=1", "prime",
                         "prime:workers=4,retry.attempts=7,queue.message=1KiB",
                         "prime:name=third,workers=auto", "file:path=/tmp/a\\,b\\\\c=d,settings.mode=0600"));
        const Stage *stages = pipeline->stages;

        ck_assert_str_eq(pipeline->name, "run");
        ck_assert_ptr_null(pipeline->file);
        ck_assert_int_eq(pipeline->results, RESULTS_NONE);
        ck_assert_int_eq(stages[0].settings[0].integer, INT64_MIN);
        ck_assert_int_eq(stages[0].settings[1].integer, 16);
        ck_assert_uint_eq(stages[0].n_workers, 1);
        ck_assert_uint_eq(stages[0].next, 3);
        ck_assert_str_eq(stages[1].name, "range-2");
        ck_assert_uint_eq(stages[2].n_workers, 5);
        ck_assert_uint_eq(stages[3].n_workers, 4);
        ck_assert_uint_eq(stages[3].retry_attempts, 7);
        ck_assert_uint_eq(stages[3].queue_message_bytes, 1024);
        ck_assert_str_eq(stages[3].name, "prime-2");
        ck_assert_uint_eq(stages[4].n_workers, pipeline_default_workers());
        ck_assert_str_eq(stages[4].name, "third");
        ck_assert_str_eq(stages[5].settings[0].string, "/tmp/a,b\\c=d");
        ck_assert_str_eq(stages[5].settings[1].string, "0600");
        ck_assert_uint_eq(stages[5].n_workers, 1);
        ck_assert_ptr_null(stages[0].file);
}
END_TEST

START_TEST(what_words_leave_at_the_end_are_results) {
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_words(0, WORDS("prime"));

        ck_assert_int_eq(pipeline->results, RESULTS_QUEUE);
        ck_assert(pipeline_has_ingress(pipeline));
}
END_TEST

START_TEST(a_word_may_be_a_path) {
        char path[PATH_MAX];
        const char *words[] = { path };

        (void)snprintf(path, sizeof(path), "%s/prime.so", folder);
        _cleanup_(pipeline_freep) Pipeline *pipeline = read_words(0, words, 1);
        ck_assert_str_eq(pipeline->stages[0].name, "prime");
        ck_assert_str_eq(pipeline->stages[0].plugin->file, path);
}
END_TEST

START_TEST(mistakes_in_words_name_the_word) {
        assert_words_fail("no stage is given\n", 0, NULL, 0);
        assert_words_fail("1025 workers: it must be 1 to 1024\n", 1025, WORDS("prime"));
        assert_words_fail("prime:wrokers=4: prime has no setting `wrokers`: did you mean `workers`?\n"
                          "log:colour=1: log has no setting `colour`\n",
                          0, WORDS("prime:wrokers=4", "log:colour=1"));
        assert_words_fail("prime:workers=4,workers=5: `workers` is given twice\n"
                          "file:path=a,path=b: `path` is given twice\n",
                          0, WORDS("prime:workers=4,workers=5", "file:path=a,path=b"));
        assert_words_fail("prime:workers: \"workers\" is not KEY=VALUE\n"
                          "prime:=4: \"=4\" is not KEY=VALUE\n",
                          0, WORDS("prime:workers", "prime:=4"));
        assert_words_fail("prime:use=log: `use` is given twice\n", 0, WORDS("prime:use=log"));
        assert_words_fail("prime:linger=5: `linger`: unit missing: write \"5ms\"\n", 0,
                          WORDS("prime:linger=5"));
        assert_words_fail("prime:workers=: `workers` must be an integer or \"auto\", found \"\"\n"
                          "prime:workers=0: `workers` is 0: it must be 1 to 1024\n"
                          "prime:workers=4x: `workers` must be an integer or \"auto\", found \"4x\"\n",
                          0, WORDS("prime:workers=", "prime:workers=0", "prime:workers=4x"));
        assert_words_fail(
                "range:to=9223372036854775808: `to` is 9223372036854775808: that does not fit 64 bits\n"
                "all:fraction=nan,flag=1: `fraction` must be a finite number\n"
                "all:fraction=nan,flag=1: `flag` must be true or false, found \"1\"\n",
                0, WORDS("range:to=9223372036854775808", "all:fraction=nan,flag=1"));
        assert_words_fail("warning: prime:time_limit=1s: time_limit is not enforced by this version\n"
                          "prime:threads=4: threads is not supported by this version\n",
                          0, WORDS("prime:time_limit=1s", "prime:threads=4"));
        assert_words_fail(":x=1: `use` is empty: a stage needs a plugin\n", 0, WORDS(":x=1"));
        assert_words_fail("prime:retry.tries=4: unknown key `tries` in `retry`\n", 0,
                          WORDS("prime:retry.tries=4"));
        assert_words_fail("prim: no plugin `prim` (looked in FOLDERS): did you mean `prime`?\n", 0,
                          WORDS("prim"));
        assert_words_fail("./nowhere.so: `use` = \"./nowhere.so\": there is no such file\n", 0,
                          WORDS("./nowhere.so"));
}
END_TEST

START_TEST(without_the_describing_program_nothing_is_guessed) {
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        Pipeline *pipeline = NULL;

        ck_assert_int_eq(pipeline_from_file("settings.conf", fail_describe, &report, &pipeline),
                         CONFIG_E_INVALID);
        ck_assert_uint_eq(report.n_errors, 1);
        ck_assert_str_eq(report.problems[0].message,
                         "the plugins cannot be looked at: No such file or directory");
        ck_assert_ptr_null(pipeline);
}
END_TEST

START_TEST(a_report_keeps_what_was_in_it) {
        _cleanup_(config_report_done) ConfigReport report = { 0 };
        _cleanup_(pipeline_freep) Pipeline *pipeline = NULL;

        ck_assert_int_eq(config_report_add(&report, "\033[31m\n", 3, false, "a\tb%c", 7), 0);
        ck_assert_int_eq(pipeline_from_file("good.conf", fake_describe, &report, &pipeline), 0);
        ck_assert_uint_eq(report.n_errors, 1);
        ck_assert_uint_eq(report.n_problems, 1);
        ck_assert_str_eq(report.problems[0].file, "?[31m?");
        ck_assert_str_eq(report.problems[0].message, "a?b?");
}
END_TEST

static void assert_duration(const char *text, int r, uint64_t expected) {
        uint64_t usec = 4711;

        ck_assert_msg(config_parse_duration(text, &usec) == r, "\"%s\"", text);
        ck_assert_msg(usec == (r == 0 ? expected : 4711), "\"%s\": %" PRIu64, text, usec);
}

START_TEST(durations_are_whole_numbers_with_a_unit) {
        assert_duration("0", 0, 0);
        assert_duration("000", 0, 0);
        assert_duration("0s", 0, 0);
        assert_duration("1us", 0, 1);
        assert_duration("100ms", 0, 100000);
        assert_duration("100 ms", 0, 100000);
        assert_duration("2s", 0, 2000000);
        assert_duration("3min", 0, 180000000);
        assert_duration("4h", 0, UINT64_C(14400000000));
        assert_duration("5d", 0, UINT64_C(432000000000));
        assert_duration("9223372036854775807us", 0, INT64_MAX);
        assert_duration("9223372036854775808us", -ERANGE, 0);
        assert_duration("18446744073709551616us", -ERANGE, 0);
        assert_duration("106751991d", 0, UINT64_C(106751991) * 86400 * USEC_PER_SEC);
        assert_duration("106751992d", -ERANGE, 0);
        assert_duration("213503983d", -ERANGE, 0);
        assert_duration("1", -ENOENT, 0);
        assert_duration("18446744073709551616", -ENOENT, 0);
        static const char *const bad[] = { "",    " ",  "ms",  "-1s",  "+1s",  "1.5s", "1 s ", " 1s",
                                           "1 m", "1S", "1ss", "0x1s", "1e3s", "1s1s", "s1" };
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                assert_duration(bad[i], -EINVAL, 0);
}
END_TEST

static void assert_size(const char *text, int r, uint64_t expected) {
        uint64_t bytes = 4711;

        ck_assert_msg(config_parse_size(text, &bytes) == r, "\"%s\"", text);
        ck_assert_msg(bytes == (r == 0 ? expected : 4711), "\"%s\": %" PRIu64, text, bytes);
}

START_TEST(sizes_are_whole_numbers_with_a_unit) {
        assert_size("0", 0, 0);
        assert_size("1B", 0, 1);
        assert_size("8KiB", 0, 8192);
        assert_size("8K", 0, 8192);
        assert_size("16 MiB", 0, 16 << 20);
        assert_size("1M", 0, 1 << 20);
        assert_size("3GiB", 0, UINT64_C(3) << 30);
        assert_size("3G", 0, UINT64_C(3) << 30);
        assert_size("8589934591GiB", 0, UINT64_C(8589934591) << 30);
        assert_size("8589934592GiB", -ERANGE, 0);
        assert_size("17179869184GiB", -ERANGE, 0);
        assert_size("8192", -ENOENT, 0);
        static const char *const bad[] = { "", "B", "-1B", "8kb", "8KB", "8k", "1b", "1.5K", "8KiBs", "8Ki" };
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                assert_size(bad[i], -EINVAL, 0);
}
END_TEST

START_TEST(what_a_plugin_says_is_taken_whole_or_not_at_all) {
        static const char *const bad[] = {
                "plugin\t/a.so\ta\t2\t0\t0\tcut off",
                "plugin\t/a.so\ta\t2\t0\t0\n",
                "plugin\t/a.so\ta\t2\t0\t0\ts\tmore\n",
                "plugin\t\ta\t2\t0\t0\ts\n",
                "plugin\t/a.so\t\t2\t0\t0\ts\n",
                "plugin\t/a.so\ta\t0\t0\t0\ts\n",
                "plugin\t/a.so\ta\t4\t0\t0\ts\n",
                "plugin\t/a.so\ta\tx\t0\t0\ts\n",
                "plugin\t/a.so\ta\t2\t4294967296\t0\ts\n",
                "plugin\t/a.so\ta\t2\t0\t2\ts\n",
                "setting\tn\t1\t0\t\t0\t0\th\n",
                "error\t/a.so\tx\nsetting\tn\t1\t0\t\t0\t0\th\n",
                "plugin\t/a.so\ta\t2\t0\t0\ts\nsetting\tn\t7\t0\t\t0\t0\th\n",
                "plugin\t/a.so\ta\t2\t0\t0\ts\nsetting\tn\t1\t2\t\t0\t0\th\n",
                "plugin\t/a.so\ta\t2\t0\t0\ts\nsetting\tn\t1\t0\t\t9223372036854775808\t0\th\n",
                "plugin\t/a.so\ta\t2\t0\t0\ts\nsetting\t\t1\t0\t\t0\t0\th\n",
                "error\t/a.so\n",
                "\n",
                "surprise\t1\n",
        };
        _cleanup_(plugin_set_done) PluginSet set = { 0 };

        ck_assert_int_eq(plugin_set_parse(&set, ""), 0);
        ck_assert_int_eq(plugin_set_parse(&set, "error\t/o.so\tno\nplugin\t/b.so\tb\t3\t1\t0\t\n"
                                                "setting\tn\t1\t1\t\t-9223372036854775808\t5\th\n"),
                         0);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                ck_assert_msg(plugin_set_parse(&set, bad[i]) == -EBADMSG, "%zu", i);

        ck_assert_uint_eq(set.n_plugins, 2);
        ck_assert_str_eq(plugin_set_find(&set, "/o.so")->error, "no");
        ck_assert_ptr_null(plugin_set_find(&set, "/a.so"));
        const Plugin *b = plugin_set_find(&set, "/b.so");
        ck_assert_uint_eq(b->kind, SLUICE_SINK);
        ck_assert_uint_eq(b->flags, SLUICE_ONE_LANE);
        ck_assert_str_eq(b->summary, "");
        ck_assert_str_eq(b->settings[0].fallback, "");
        ck_assert_int_eq(b->settings[0].min, INT64_MIN);
}
END_TEST

START_TEST(plugins_are_found_in_the_first_folder_that_has_them) {
        _cleanup_free_ char *path = NULL, *first = NULL, *wanted = NULL;
        char second[sizeof(folder) + 8], value[5 * sizeof(folder)];
        char **names;

        (void)snprintf(second, sizeof(second), "%s/more", folder);
        ck_assert_int_eq(mkdir(second, 0700), 0);
        (void)snprintf(value, sizeof(value), "::%s/nowhere:%s:%s:", folder, second, folder);
        ck_assert_int_eq(setenv("SLUICE_PLUGIN_PATH", value, 1), 0);

        ck_assert_int_eq(asprintf(&first, "%s/prime.so", second) > 0, 1);
        close_fd(creat(first, 0600));
        ck_assert_int_eq(plugin_find("prime", "/", &path), 0);
        ck_assert_str_eq(path, first);

        ck_assert_int_eq(plugin_list_names(&names), 0);
        size_t n_prime = 0, n_log = 0;
        for (char **name = names; *name; name++) {
                n_prime += strcmp(*name, "prime") == 0;
                n_log += strcmp(*name, "log") == 0;
        }
        plugin_strings_free(names);
        ck_assert_uint_eq(n_prime, 1);
        ck_assert_uint_eq(n_log, 1);

        free(TAKE_PTR(path));
        ck_assert_int_eq(plugin_find("./more/prime.so", folder, &path), 0);
        ck_assert_str_eq(path, first);
        ck_assert_int_eq(unlink(first), 0);
        free(TAKE_PTR(path));
        ck_assert_int_eq(plugin_find("prime", "/", &path), 0);
        ck_assert_int_gt(asprintf(&wanted, "%s/prime.so", folder), 0);
        ck_assert_str_eq(path, wanted);

        ck_assert_int_eq(plugin_find("more", folder, &first), -ENOENT);
        ck_assert_int_eq(plugin_find("./more", folder, &first), -ENOENT);
        ck_assert_int_eq(rmdir(second), 0);
}
END_TEST

START_TEST(default_workers_are_the_processors_we_may_use) {
        cpu_set_t old, one;

        ck_assert_int_eq(sched_getaffinity(0, sizeof(old), &old), 0);
        ck_assert_uint_eq(pipeline_default_workers(), (unsigned)CPU_COUNT(&old));

        CPU_ZERO(&one);
        for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
                if (CPU_ISSET(cpu, &old))
                        CPU_SET(cpu, &one);
        ck_assert_int_eq(sched_setaffinity(0, sizeof(one), &one), 0);
        ck_assert_uint_eq(pipeline_default_workers(), 1);
        ck_assert_int_eq(sched_setaffinity(0, sizeof(old), &old), 0);
}
END_TEST

/* libconfig 1.5 forgets a string when a syntax error follows it; only its own frames are excused. */
const char *__lsan_default_suppressions(void);
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void) {
        return "leak:libconfig.so\n";
}

static uint64_t random_state;

static uint64_t next_random(void) {
        random_state += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t z = random_state;
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

/* Changes, removes, inserts or repeats some bytes. `text` has room for twice its length. */
static size_t mutate(char *text, size_t len) {
        static const char likely[] = "\"{}()[];,=:@#/*\\\n 0123456789Lxe.-+aint\0\377";
        size_t at = next_random() % len;

        switch (next_random() % 4) {
        case 0:
                text[at] = likely[next_random() % (sizeof(likely) - 1)];
                return len;
        case 1:
                memmove(text + at, text + at + 1, len - at - 1);
                return MAX(len - 1, (size_t)1);
        case 2:
                memmove(text + at + 1, text + at, len - at);
                text[at] = likely[next_random() % (sizeof(likely) - 1)];
                return len + 1;
        default: {
                size_t n = MIN(next_random() % 40, len - at), to = next_random() % len;
                char part[40];

                memcpy(part, text + at, n);
                memmove(text + to + n, text + to, len - to);
                memcpy(text + to, part, n);
                return len + n;
        }
        }
}

START_TEST(random_changes_to_a_good_file_are_survived) {
        static const char *const files[] = { "good.conf", "several-ways.conf", "settings.conf", "many.conf" };
        const char *seed = getenv("SLUICE_TEST_SEED");
        char path[sizeof(folder) + 16], link[sizeof(folder) + 16];
        size_t n_good = 0, n_bad = 0;

        random_state = seed ? strtoull(seed, NULL, 0) : clock_monotonic_nsec();
        printf("SLUICE_TEST_SEED=%" PRIu64 "\n", random_state);
        (void)fflush(stdout);

        (void)snprintf(path, sizeof(path), "%s/x.conf", folder);
        (void)snprintf(link, sizeof(link), "%s/parts", folder);
        char parts[PATH_MAX + 8];
        (void)snprintf(parts, sizeof(parts), "%s/parts", configs);
        ck_assert_int_eq(symlink(parts, link), 0);

        for (unsigned round = 0; round < 4000; round++) {
                _cleanup_free_ char *text = read_text(files[round % ELEMENTSOF(files)]);
                _cleanup_(config_report_done) ConfigReport report = { 0 };
                _cleanup_(pipeline_freep) Pipeline *pipeline = NULL;
                size_t len = strlen(text);
                FILE *f;

                for (unsigned n = 1 + next_random() % 4; n > 0; n--)
                        len = mutate(text, len);
                /* A new file each time: ext4 writes out a truncated one when it is closed, in case of a crash. */
                (void)unlink(path);
                f = fopen(path, "we");
                ck_assert_ptr_nonnull(f);
                ck_assert_uint_eq(fwrite(text, 1, len, f), len);
                ck_assert_int_eq(fclose(f), 0);

                int r = pipeline_from_file(path, fake_describe, &report, &pipeline);
                ck_assert_int_eq(r, report.n_errors > 0 ? CONFIG_E_INVALID : 0);
                ck_assert_int_eq(pipeline != NULL, r == 0);
                for (size_t i = 0; i < report.n_problems; i++) {
                        ck_assert_ptr_nonnull(report.problems[i].file);
                        ck_assert(i == 0 || report.problems[i].order > report.problems[i - 1].order);
                }
                for (size_t i = 0; pipeline && i < pipeline->n_stages; i++) {
                        const Stage *stage = &pipeline->stages[i];

                        ck_assert(pipeline_name_is_valid(stage->name));
                        ck_assert_ptr_nonnull(stage->plugin);
                        ck_assert(stage->n_workers >= 1 && stage->n_workers <= PIPELINE_LANES_MAX);
                        ck_assert(stage->next == STAGE_NONE || stage->next < pipeline->n_stages);
                }
                n_good += r == 0;
                n_bad += r != 0;
        }

        /* Otherwise the changes are too small or too large to test anything. */
        ck_assert_uint_gt(n_good, 100);
        ck_assert_uint_gt(n_bad, 1000);
}
END_TEST

static void find_folders(void) {
        const char *from = getenv("SLUICE_TEST_CONFIGS");
        char beside[PATH_MAX];

        (void)snprintf(beside, sizeof(beside), "%.*s/configs", (int)(strrchr(__FILE__, '/') - __FILE__),
                       __FILE__);
        if (!realpath(from ? from : beside, configs)) {
                perror(from ? from : beside);
                exit(EXIT_FAILURE);
        }
        (void)snprintf(beside, sizeof(beside), "%.*s/../../../conf", PATH_MAX / 2, configs);
        if (!realpath(beside, conf)) {
                perror(beside);
                exit(EXIT_FAILURE);
        }
}

static Suite *config_suite(void) {
        Suite *suite = suite_create("config");
        TCase *files = tcase_create("files"), *words = tcase_create("words"),
              *values = tcase_create("values"), *plugins = tcase_create("plugins"),
              *mutations = tcase_create("mutations");
        TCase *all[] = { files, words, values, plugins, mutations };

        for (size_t i = 0; i < ELEMENTSOF(all); i++) {
                tcase_add_checked_fixture(all[i], set_up, tear_down);
                suite_add_tcase(suite, all[i]);
        }
        tcase_set_timeout(mutations, 120);

        tcase_add_loop_test(files, every_mistake_is_reported_with_its_file_and_line, 0,
                            (int)ELEMENTSOF(samples));
        tcase_add_test(files, no_sample_is_forgotten);
        tcase_add_test(files, a_good_file_becomes_the_pipeline_it_describes);
        tcase_add_test(files, stages_may_lead_to_any_stage);
        tcase_add_test(files, settings_have_the_types_of_the_plugin);
        tcase_add_loop_test(files, the_files_we_ship_are_good, 0, 3);
        tcase_add_test(files, the_reference_file_has_every_key_with_its_default);
        tcase_add_test(files, without_the_describing_program_nothing_is_guessed);
        tcase_add_test(files, a_report_keeps_what_was_in_it);

        tcase_add_test(words, words_make_the_same_pipeline_as_a_file);
        tcase_add_test(words, settings_that_are_not_written_have_their_defaults);
        tcase_add_test(words, what_words_leave_at_the_end_are_results);
        tcase_add_test(words, a_word_may_be_a_path);
        tcase_add_test(words, mistakes_in_words_name_the_word);

        tcase_add_test(values, durations_are_whole_numbers_with_a_unit);
        tcase_add_test(values, sizes_are_whole_numbers_with_a_unit);
        tcase_add_test(values, default_workers_are_the_processors_we_may_use);

        tcase_add_test(plugins, what_a_plugin_says_is_taken_whole_or_not_at_all);
        tcase_add_test(plugins, plugins_are_found_in_the_first_folder_that_has_them);

        tcase_add_test(mutations, random_changes_to_a_good_file_are_survived);
        return suite;
}

int main(void) {
        SRunner *runner;
        int n_failed;

        find_folders();
        runner = srunner_create(config_suite());
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
