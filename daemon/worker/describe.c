#include "worker/describe.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>

#include <sluice/stage.h>

#include "base/cleanup.h"
#include "pipeline/pipeline.h"

/* A longer text in a plugin is no summary but a missing NUL. */
#define TEXT_MAX 4096
#define SETTINGS_MAX 256

/* Prints a field; tabs and line ends would end it early. */
static void print_text(FILE *out, const char *text) {
        for (size_t i = 0; text && text[i] && i < TEXT_MAX; i++)
                (void)putc((unsigned char)text[i] < ' ' ? ' ' : text[i], out);
}

static void print_field(FILE *out, const char *text) {
        (void)putc('\t', out);
        print_text(out, text);
}

__attribute__((format(printf, 3, 4))) static void print_error(FILE *out, const char *file, const char *format,
                                                              ...) {
        _cleanup_free_ char *message = NULL;
        va_list ap;

        va_start(ap, format);
        if (vasprintf(&message, format, ap) < 0)
                message = NULL;
        va_end(ap);

        (void)fputs("error", out);
        print_field(out, file);
        print_field(out, message ? message : "out of memory");
        (void)putc('\n', out);
}

/* Setting names are identifiers of the configuration language. */
static bool setting_name_is_valid(const char *name) {
        size_t len = name ? strnlen(name, PIPELINE_NAME_MAX + 1) : 0;

        return len > 0 && len <= PIPELINE_NAME_MAX && name[0] >= 'a' && name[0] <= 'z' &&
               strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == len;
}

static size_t count_settings(const SluiceStage *stage) {
        size_t n = 0;

        while (stage->settings && n <= SETTINGS_MAX && stage->settings[n].name)
                n++;
        return n;
}

/* Returns what is wrong with setting i, or NULL. */
static const char *check_setting(const SluiceStage *stage, size_t i) {
        const SluiceSetting *setting = &stage->settings[i];

        if (!setting_name_is_valid(setting->name))
                return "its name is not made of a-z, 0-9 and _, beginning with a letter";
        if (setting->type < SLUICE_INT || setting->type > SLUICE_SIZE)
                return "its type is unknown";
        if (setting->min > setting->max)
                return "its min is above its max";
        for (size_t j = 0; j < i; j++)
                if (strcmp(stage->settings[j].name, setting->name) == 0)
                        return "it is there twice";
        return NULL;
}

/* Returns what is wrong with the handlers, or NULL. */
static const char *check_handlers(const SluiceStage *stage) {
        switch (stage->kind) {
        case SLUICE_SOURCE:
                return stage->produce ? NULL : "a source needs produce()";
        case SLUICE_TRANSFORM:
        case SLUICE_SINK:
                return stage->run || stage->run_batch ? NULL
                                                      : "a transform or sink needs run() or run_batch()";
        default:
                return "its kind is none of SLUICE_SOURCE, SLUICE_TRANSFORM, SLUICE_SINK";
        }
}

static bool check_stage(FILE *out, const char *file, const SluiceStage *stage) {
        const char *wrong;

        /* Nothing but this field may be looked at before it is known to be right. */
        if (stage->abi != SLUICE_STAGE_ABI) {
                print_error(out, file, "built for stage ABI %" PRIu32 ", this sluice has %d: rebuild it",
                            stage->abi, SLUICE_STAGE_ABI);
                return false;
        }
        if (!stage->name || strnlen(stage->name, PIPELINE_NAME_MAX + 1) > PIPELINE_NAME_MAX ||
            !pipeline_name_is_valid(stage->name)) {
                print_error(out, file, "its name is not made of a-z, 0-9 and -, or longer than %d",
                            PIPELINE_NAME_MAX);
                return false;
        }
        wrong = check_handlers(stage);
        if (wrong) {
                print_error(out, file, "%s", wrong);
                return false;
        }
        if ((stage->flags & ~SLUICE_ONE_LANE) != 0) {
                print_error(out, file, "it has flags (%#" PRIx32 ") that this sluice does not know",
                            stage->flags);
                return false;
        }
        if (count_settings(stage) > SETTINGS_MAX) {
                print_error(out, file, "its settings do not end with an empty entry");
                return false;
        }
        for (size_t i = 0; i < count_settings(stage); i++) {
                wrong = check_setting(stage, i);
                if (wrong) {
                        print_error(out, file, "setting \"%.*s\": %s", PIPELINE_NAME_MAX,
                                    stage->settings[i].name, wrong);
                        return false;
                }
        }
        return true;
}

static void print_stage(FILE *out, const char *file, const SluiceStage *stage) {
        (void)fputs("plugin", out);
        print_field(out, file);
        print_field(out, stage->name);
        (void)fprintf(out, "\t%" PRIu32 "\t%" PRIu32 "\t%d", stage->kind, stage->flags,
                      stage->run_batch != NULL);
        print_field(out, stage->summary);
        (void)putc('\n', out);

        for (size_t i = 0; i < count_settings(stage); i++) {
                const SluiceSetting *setting = &stage->settings[i];

                (void)fputs("setting", out);
                print_field(out, setting->name);
                (void)fprintf(out, "\t%d\t%d", (int)setting->type, setting->fallback != NULL);
                print_field(out, setting->fallback);
                (void)fprintf(out, "\t%" PRIi64 "\t%" PRIi64, setting->min, setting->max);
                print_field(out, setting->help);
                (void)putc('\n', out);
        }
}

static void describe_file(FILE *out, const char *file) {
        _cleanup_free_ char *path = NULL;
        const SluiceStage *stage;
        void *handle;

        /* Without a slash dlopen() would look through the system's library folders. */
        if (asprintf(&path, "%s%s", strchr(file, '/') ? "" : "./", file) < 0) {
                path = NULL;
                print_error(out, file, "out of memory");
                return;
        }

        /* Never closed: its texts are printed, and destructors are one more thing that can go wrong. */
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!handle) {
                print_error(out, file, "%s", dlerror());
                return;
        }
        stage = dlsym(handle, "sluice_stage");
        if (!stage) {
                print_error(out, file, "it is no stage: it does not export sluice_stage");
                return;
        }
        if (check_stage(out, file, stage))
                print_stage(out, file, stage);
}

/* What plugins print while they are loaded goes to standard error: standard output has a format to keep. */
static FILE *take_stdout(void) {
        _cleanup_close_ int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
        FILE *out;

        if (fd < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
                return NULL;
        out = fdopen(fd, "w");
        if (out)
                (void)TAKE_FD(fd);
        return out;
}

int describe_main(char **files) {
        FILE *out;

        /* A plugin that hangs must not outlive whoever asked about it. */
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);

        out = take_stdout();
        if (!out) {
                perror("sluice-worker: standard output");
                return EXIT_FAILURE;
        }
        for (; *files; files++) {
                describe_file(out, *files);
                if (fflush(out) != 0) {
                        perror("sluice-worker: standard output");
                        (void)fclose(out);
                        return EXIT_FAILURE;
                }
        }
        return fclose(out) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
