#include <stdarg.h>
#include <string.h>

#include "pipeline/config-internal.h"

void config_report_done(ConfigReport *report) {
        for (size_t i = 0; i < report->n_problems; i++) {
                free(report->problems[i].file);
                free(report->problems[i].message);
        }
        free(report->problems);
        *report = (ConfigReport){ 0 };
}

/* Messages quote what was found in the file: a control character in it must not move the terminal's cursor
 * or begin a second line. */
static void make_printable(char *text) {
        for (; *text; text++)
                if ((unsigned char)*text < ' ' || *text == 0x7f)
                        *text = '?';
}

static int report_add(ConfigReport *report, const char *file, unsigned line, bool warning, char *message) {
        _cleanup_free_ char *text = message, *name = NULL;
        ConfigProblem *grown;

        if (file) {
                name = strdup(file);
                if (!name)
                        return -ENOMEM;
                make_printable(name);
        }

        grown = reallocarray(report->problems, report->n_problems + 1, sizeof(ConfigProblem));
        if (!grown)
                return -ENOMEM;
        report->problems = grown;

        make_printable(text);
        grown[report->n_problems++] = (ConfigProblem){
                .file = TAKE_PTR(name),
                .line = line,
                .warning = warning,
                .message = TAKE_PTR(text),
        };
        if (!warning)
                report->n_errors++;
        return 0;
}

int config_report_add(ConfigReport *report, const char *file, unsigned line, bool warning, const char *format,
                      ...) {
        char *message;
        va_list ap;

        va_start(ap, format);
        int n = vasprintf(&message, format, ap);
        va_end(ap);
        return n < 0 ? -ENOMEM : report_add(report, file, line, warning, message);
}

void config_report_print(const ConfigReport *report, FILE *f) {
        for (size_t i = 0; i < report->n_problems; i++) {
                const ConfigProblem *problem = &report->problems[i];

                if (problem->file)
                        fprintf(f, "%s:", problem->file);
                if (problem->file && problem->line > 0)
                        fprintf(f, "%u:", problem->line);
                fprintf(f, "%s%s%s\n", problem->file ? " " : "", problem->warning ? "warning: " : "",
                        problem->message);
        }
}

static int compare_problems(const void *a, const void *b) {
        const ConfigProblem *one = a, *two = b;

        return one->order < two->order ? -1 : one->order > two->order;
}

void check_sort(Check *check) {
        ConfigReport *report = check->report;

        if (report->n_problems > check->first)
                qsort(report->problems + check->first, report->n_problems - check->first,
                      sizeof(ConfigProblem), compare_problems);
}

void check_problem(Check *check, const ConfigPlace *place, bool warning, const char *format, ...) {
        _cleanup_free_ char *message = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        int n = vasprintf(&message, format, ap);
        va_end(ap);
        if (n < 0) {
                message = NULL;
                check->broken = -ENOMEM;
                return;
        }

        r = config_report_add(check->report, place->file, place->line, warning, "%s%s%s",
                              place->word ? place->word : "", place->word ? ": " : "", message);
        if (r < 0) {
                check->broken = r;
                return;
        }

        /* The counter keeps problems of one line in the order they were found. */
        ConfigProblem *problem = &check->report->problems[check->report->n_problems - 1];
        problem->order = (uint64_t)place->order << 32 | (uint32_t)check->report->n_problems;
}

/* Levenshtein with transpositions, on texts short enough to be names. */
static size_t edit_distance(const char *a, const char *b) {
        enum { LONGEST = PIPELINE_NAME_MAX };
        size_t rows[3][LONGEST + 1], n_a = strlen(a), n_b = strlen(b);

        if (n_a > LONGEST || n_b > LONGEST)
                return SIZE_MAX;

        for (size_t j = 0; j <= n_b; j++)
                rows[0][j] = j;
        for (size_t i = 1; i <= n_a; i++) {
                size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];

                row[0] = i;
                for (size_t j = 1; j <= n_b; j++) {
                        size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);

                        best = MIN(best, above[j] + 1);
                        best = MIN(best, row[j - 1] + 1);
                        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                                best = MIN(best, above2[j - 2] + 1);
                        row[j] = best;
                }
        }
        return rows[n_a % 3][n_b];
}

void nearest_offer(Nearest *nearest, const char *candidate) {
        /* About one slip in three letters; more is a different word. */
        size_t distance = edit_distance(nearest->word, candidate), most = (strlen(nearest->word) + 2) / 3;

        if (distance > most || distance >= strlen(candidate) ||
            (nearest->best && distance >= nearest->distance))
                return;
        nearest->best = candidate;
        nearest->distance = distance;
}

const char *nearest_hint(const Nearest *nearest, char buf[static NEAREST_HINT_MAX]) {
        buf[0] = '\0';
        if (nearest->best)
                (void)snprintf(buf, NEAREST_HINT_MAX, ": did you mean `%s`?", nearest->best);
        return buf;
}
