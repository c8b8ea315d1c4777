#include "pipeline/config-source.h"

#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

/* Bounds for what a mistake (a device, a file that includes itself twice) may cost. */
#define SOURCE_BYTES_MAX ((size_t)4 << 20)
#define SOURCE_DEPTH_MAX 10

#define REPLACED_MAX 32 /* a 64-bit number with its L */

/* A file being read, and the one that includes it. */
typedef struct Input {
        struct Input *parent;
        unsigned depth;
        dev_t device;
        ino_t inode;
        const char *name; /* borrowed from ConfigSource.files */
        const char *at;
        unsigned line;
        bool at_line_begin; /* only blanks so far */
} Input;

typedef struct Reader {
        ConfigSource *source;
        Check *check;
        FILE *out;
        size_t n_out;
} Reader;

void config_source_done(ConfigSource *source) {
        for (size_t i = 0; i < source->n_files; i++)
                free(source->files[i]);
        free(source->files);
        free(source->lines);
        free(source->text);
        *source = (ConfigSource){ 0 };
}

ConfigPlace config_source_place(const ConfigSource *source, unsigned line) {
        ConfigPlace place = { .file = source->n_files > 0 ? source->files[0] : NULL };

        if (source->n_lines == 0 || line == 0)
                return place;

        const SourceLine *from = &source->lines[MIN((size_t)line, source->n_lines) - 1];
        return (ConfigPlace){ .file = from->file, .line = from->line, .order = line };
}

static int source_add_line(ConfigSource *source, const Input *input) {
        if (source->n_lines == source->n_allocated) {
                size_t n = MAX(source->n_allocated * 2, (size_t)64);
                SourceLine *grown = reallocarray(source->lines, n, sizeof(SourceLine));

                if (!grown)
                        return -ENOMEM;
                source->lines = grown;
                source->n_allocated = n;
        }
        source->lines[source->n_lines++] = (SourceLine){ .file = input->name, .line = input->line };
        return 0;
}

/* Takes `name` over. */
static int source_add_file(ConfigSource *source, char *name) {
        char **grown;

        grown = reallocarray(source->files, source->n_files + 1, sizeof(char *));
        if (!grown) {
                free(name);
                return -ENOMEM;
        }
        source->files = grown;
        source->files[source->n_files++] = name;
        return 0;
}

/* Here: the line being read. */
static ConfigPlace reader_place(const Reader *reader, const Input *input) {
        return (ConfigPlace){
                .file = input->name,
                .line = input->line,
                .order = (unsigned)reader->source->n_lines,
        };
}

static int read_bytes(int fd, char **ret, size_t *ret_size) {
        _cleanup_free_ char *buf = NULL;
        size_t size = 0, allocated = 0;

        for (;;) {
                if (size + 1 >= allocated) {
                        char *grown;

                        allocated = MAX(allocated * 2, (size_t)4096);
                        grown = realloc(buf, allocated);
                        if (!grown)
                                return -ENOMEM;
                        buf = grown;
                }

                ssize_t n = read(fd, buf + size, allocated - size - 1);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                size += (size_t)n;
                if (size > SOURCE_BYTES_MAX)
                        return -EFBIG;
        }

        buf[size] = '\0';
        *ret = TAKE_PTR(buf);
        *ret_size = size;
        return 0;
}

/* Copies the text up to `end`, counting its lines. */
static int copy_until(Reader *reader, Input *input, const char *end) {
        for (; input->at < end; input->at++) {
                /* Failed writes show when the stream is closed. */
                (void)putc_unlocked(*input->at, reader->out);
                if (*input->at == '\n') {
                        int r;

                        input->line++;
                        r = source_add_line(reader->source, input);
                        if (r < 0)
                                return r;
                        input->at_line_begin = true;
                } else if (*input->at != ' ' && *input->at != '\t')
                        input->at_line_begin = false;
        }
        return 0;
}

/* Where a number ends, by libconfig's rules; *ret_type says which kind. */
typedef enum NumberType { NUMBER_NONE, NUMBER_FLOAT, NUMBER_32, NUMBER_64 } NumberType;

static const char *skip_digits(const char *s) {
        while (isdigit((unsigned char)*s))
                s++;
        return s;
}

static const char *scan_exponent(const char *s) {
        const char *digits = s + 1;

        if (*s != 'e' && *s != 'E')
                return s;
        digits += *digits == '-' || *digits == '+';
        return isdigit((unsigned char)*digits) ? skip_digits(digits) : s;
}

static const char *scan_number(const char *s, NumberType *ret_type) {
        const char *begin = s, *end;

        if (*s == '0' && (s[1] == 'x' || s[1] == 'X') && isxdigit((unsigned char)s[2])) {
                s += 2;
                while (isxdigit((unsigned char)*s))
                        s++;
        } else {
                s += *s == '-' || *s == '+';
                end = skip_digits(s);
                if (*end == '.') {
                        *ret_type = NUMBER_FLOAT;
                        return scan_exponent(skip_digits(end + 1));
                }
                if (end == s) {
                        *ret_type = NUMBER_NONE;
                        return begin + 1;
                }
                s = scan_exponent(end);
                if (s != end) {
                        *ret_type = NUMBER_FLOAT;
                        return s;
                }
        }

        *ret_type = *s == 'L' ? NUMBER_64 : NUMBER_32;
        s += *s == 'L';
        s += *ret_type == NUMBER_64 && *s == 'L';
        return s;
}

/*
 * Reports an integer that libconfig would change silently, and writes into `ret` what to read instead, so
 * that later checks see the number that was meant. Returns false if there is nothing to change.
 */
static bool replace_integer(Reader *reader, const Input *input, const char *end, NumberType type,
                            char ret[static REPLACED_MAX]) {
        bool hexadecimal = end - input->at > 2 && (input->at[1] == 'x' || input->at[1] == 'X');
        ConfigPlace place = reader_place(reader, input);
        int len = (int)MIN(end - input->at, 40);

        errno = 0;
        long long value = strtoll(input->at, NULL, hexadecimal ? 16 : 10);
        if (errno == ERANGE)
                check_error(reader->check, &place, "%.*s does not fit 64 bits", len, input->at);
        else if (type == NUMBER_32 && (value < INT32_MIN || value > INT32_MAX))
                check_error(reader->check, &place, "%.*s does not fit 32 bits: write %.*sL", len, input->at,
                            len, input->at);
        else
                return false;

        (void)snprintf(ret, REPLACED_MAX, "%lldL", value);
        return true;
}

static int copy_number(Reader *reader, Input *input) {
        NumberType type;
        const char *end = scan_number(input->at, &type);
        char replaced[REPLACED_MAX];

        if ((type != NUMBER_32 && type != NUMBER_64) || !replace_integer(reader, input, end, type, replaced))
                return copy_until(reader, input, end);

        (void)fputs(replaced, reader->out);
        input->at = end;
        input->at_line_begin = false;
        return 0;
}

static int refuse_unclosed(Reader *reader, const Input *input, const char *what) {
        ConfigPlace place = reader_place(reader, input);

        check_error(reader->check, &place, "%s that begins here is never closed", what);
        return CONFIG_E_INVALID;
}

static int copy_comment(Reader *reader, Input *input) {
        const char *end = strstr(input->at + 2, "*/");

        if (!end)
                return refuse_unclosed(reader, input, "the comment");
        return copy_until(reader, input, end + 2);
}

/* The closing quote of the string that `s` stands in, or NULL. */
static const char *find_quote(const char *s) {
        for (; *s && *s != '"'; s++)
                if (*s == '\\' && s[1])
                        s++;
        return *s ? s : NULL;
}

static int copy_string(Reader *reader, Input *input) {
        const char *end = find_quote(input->at + 1);

        if (!end)
                return refuse_unclosed(reader, input, "the string");
        return copy_until(reader, input, end + 1);
}

static const char *skip_name(const char *s) {
        while (isalnum((unsigned char)*s) || *s == '_' || *s == '-' || *s == '*')
                s++;
        return s;
}

static int read_file(Reader *reader, const ConfigPlace *place, char *name, Input *parent);

/* The path in an @include, from the folder of the including file. */
static char *include_path(const Input *input, const char *begin, const char *end) {
        const char *slash = strrchr(input->name, '/');
        _cleanup_free_ char *path = malloc((size_t)(end - begin) + 1);
        size_t n = 0;
        char *full;

        if (!path)
                return NULL;
        for (const char *s = begin; s < end; s++) {
                if (*s == '\\' && (s[1] == '\\' || s[1] == '"'))
                        s++;
                path[n++] = *s;
        }
        path[n] = '\0';

        if (path[0] == '/' || !slash)
                return TAKE_PTR(path);
        return asprintf(&full, "%.*s/%s", (int)(slash - input->name), input->name, path) < 0 ? NULL : full;
}

static int copy_include(Reader *reader, Input *input, const char *begin) {
        const char *end = find_quote(begin);
        ConfigPlace place = reader_place(reader, input);
        int r;

        if (!end || memchr(begin, '\n', (size_t)(end - begin)))
                return refuse_unclosed(reader, input, "the file name");

        char *name = include_path(input, begin, end);
        if (!name)
                return -ENOMEM;
        (void)putc_unlocked('\n', reader->out);
        r = read_file(reader, &place, name, input);
        if (r != 0)
                return r;

        /* The rest of the line gets a line of its own. */
        input->at = end + 1;
        input->at_line_begin = true;
        return source_add_line(reader->source, input);
}

/* Returns the first character of the path if an @include stands at `at`, else NULL. */
static const char *find_include(const Input *input) {
        const char *s = input->at;

        if (!input->at_line_begin || strncmp(s, "@include", 8) != 0)
                return NULL;
        s += 8;
        if (*s != ' ' && *s != '\t')
                return NULL;
        s += strspn(s, " \t");
        return *s == '"' ? s + 1 : NULL;
}

static int copy_token(Reader *reader, Input *input) {
        const char *s = input->at, *include = find_include(input);

        if (include)
                return copy_include(reader, input, include);
        if (*s == '"')
                return copy_string(reader, input);
        if (s[0] == '/' && s[1] == '*')
                return copy_comment(reader, input);
        if (*s == '#' || (s[0] == '/' && s[1] == '/'))
                return copy_until(reader, input, s + strcspn(s, "\n"));
        if (isalpha((unsigned char)*s) || *s == '*')
                return copy_until(reader, input, skip_name(s));
        if (isdigit((unsigned char)*s) || *s == '-' || *s == '+' || *s == '.')
                return copy_number(reader, input);
        return copy_until(reader, input, s + 1);
}

static int copy_input(Reader *reader, Input *input) {
        int r;

        r = source_add_line(reader->source, input);
        while (r == 0 && *input->at)
                r = copy_token(reader, input);
        if (r == 0)
                (void)putc_unlocked('\n', reader->out);
        return r;
}

static int open_input(Reader *reader, Input *input, char **ret_text) {
        _cleanup_close_ int fd = -1;
        struct stat st;
        size_t size = 0;
        int r;

        fd = open(input->name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;

        for (const Input *above = input->parent; above; above = above->parent)
                if (above->device == st.st_dev && above->inode == st.st_ino)
                        return -ELOOP;
        if (input->depth > SOURCE_DEPTH_MAX)
                return -EMLINK;

        r = read_bytes(fd, ret_text, &size);
        if (r < 0)
                return r;
        reader->n_out += size;
        if (reader->n_out > SOURCE_BYTES_MAX)
                r = -EFBIG;
        else if (memchr(*ret_text, '\0', size))
                r = -EILSEQ;

        input->device = st.st_dev;
        input->inode = st.st_ino;
        return r;
}

static void refuse_file(Reader *reader, const ConfigPlace *place, const Input *input, int error) {
        const char *why = error == -ELOOP    ? "it includes itself"
                          : error == -EMLINK ? "too many files include each other"
                          : error == -EFBIG  ? "more than 4 MiB"
                          : error == -EILSEQ ? "it is no text: there is a NUL byte in it"
                                             : strerror(-error);

        if (input->parent)
                check_error(reader->check, place, "cannot include \"%s\": %s", input->name, why);
        else
                check_error(reader->check, place, "cannot be read: %s", why);
}

/* Takes `name` over. */
static int read_file(Reader *reader, const ConfigPlace *place, char *name, Input *parent) {
        _cleanup_free_ char *text = NULL;
        int r;

        r = source_add_file(reader->source, name);
        if (r < 0)
                return r;

        Input input = {
                .parent = parent,
                .depth = parent ? parent->depth + 1 : 0,
                .name = name,
                .line = 1,
                .at_line_begin = true,
        };
        r = open_input(reader, &input, &text);
        if (r == -ENOMEM)
                return r;
        if (r < 0) {
                refuse_file(reader, parent ? place : &(ConfigPlace){ .file = name }, &input, r);
                return CONFIG_E_INVALID;
        }

        input.at = text;
        return copy_input(reader, &input);
}

int config_source_read(ConfigSource *source, const char *path, Check *check) {
        Reader reader = { .source = source, .check = check };
        char *name = strdup(path);
        size_t size;
        int r;

        if (!name)
                return -ENOMEM;
        reader.out = open_memstream(&source->text, &size);
        if (!reader.out) {
                free(name);
                return -ENOMEM;
        }

        r = read_file(&reader, NULL, name, NULL);
        if (fclose(reader.out) != 0)
                return -ENOMEM;
        return r < 0 || check->broken == 0 ? r : check->broken;
}
