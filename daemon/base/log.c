#include "base/log.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Lines of several processes meet in one pipe; up to PIPE_BUF the kernel keeps each in one piece. */
#define LINE_BYTES PIPE_BUF
#define MESSAGE_BYTES PIPE_BUF
/* A message and its fields. Names are at most 64 bytes each. */
#define DATAGRAM_BYTES (MESSAGE_BYTES + 2048)

#define COLOUR_OFF "\x1b[0m"
#define COLOUR_DIM "\x1b[2m"
#define COLOUR_STAGE "\x1b[36m"

static const struct {
        const char *name;
        const char *padded; /* as in the line's second column */
        const char *colour;
        const char *message_colour;
} levels[] = {
        [LOG_ERR] = { "err", "err    ", "\x1b[1;31m", "\x1b[31m" },
        [LOG_WARNING] = { "warning", "warning", "\x1b[1;33m", "\x1b[33m" },
        [LOG_NOTICE] = { "notice", "notice ", "\x1b[1;34m", NULL },
        [LOG_INFO] = { "info", "info   ", "\x1b[32m", NULL },
        [LOG_DEBUG] = { "debug", "debug  ", "\x1b[2m", "\x1b[2m" },
};

static LogContext context = { .lane = -1 };
static atomic_int max_level = LOG_INFO;
static atomic_ulong n_dropped;
static bool coloured;
static int journal_fd = -1; /* -1: lines to standard error */
static struct sockaddr_un journal_address;
static socklen_t journal_address_len;

/* What a line says of its writer changes rarely; it is made anew once a second. */
typedef struct LogWriter {
        time_t second;
        char clock[sizeof("HH:MM:SS")];
        char tid[16];
        char names[256]; /* "p[process:pid] t[thread:tid] ", escaped */
} LogWriter;

static __thread LogWriter writer;

/* Appends up to `end`; what does not fit is left out and remembered. */
typedef struct Text {
        char *at;
        char *end;
        bool cut;
} Text;

static void text_add(Text *text, const char *s, size_t n) {
        if (text->cut || n > (size_t)(text->end - text->at)) {
                text->cut = true;
                return;
        }

        memcpy(text->at, s, n);
        text->at += n;
}

static void text_add_string(Text *text, const char *s) {
        text_add(text, s, strlen(s));
}

/* Line and paragraph separators, and what makes the rest of the line run the other way: U+2028 to U+202E and
 * U+2066 to U+2069. */
static bool breaks_or_turns(const unsigned char *s) {
        return s[0] == 0xe2 && ((s[1] == 0x80 && s[2] >= 0xa8 && s[2] <= 0xae) ||
                                (s[1] == 0x81 && s[2] >= 0xa6 && s[2] <= 0xa9));
}

/* Bytes of the character at `s` if it may be shown as it is; 0 for controls and what is not UTF-8. */
static size_t printable_length(const unsigned char *s, size_t n) {
        unsigned char low = 0x80, high = 0xbf;
        size_t len;

        if (s[0] < 0x80)
                return s[0] >= 0x20 && s[0] != 0x7f;
        if (s[0] < 0xc2 || s[0] > 0xf4)
                return 0;

        len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
        if (n < len)
                return 0;

        switch (s[0]) {
        case 0xc2: /* U+0080 to U+009F: a terminal takes U+009B for the beginning of an escape sequence */
                low = 0xa0;
                break;
        case 0xe0: /* overlong */
                low = 0xa0;
                break;
        case 0xed: /* surrogates */
                high = 0x9f;
                break;
        case 0xf0: /* overlong */
                low = 0x90;
                break;
        case 0xf4: /* beyond U+10FFFF */
                high = 0x8f;
                break;
        default:
                break;
        }

        if (s[1] < low || s[1] > high)
                return 0;
        for (size_t i = 2; i < len; i++)
                if ((s[i] & 0xc0) != 0x80)
                        return 0;
        return len == 3 && breaks_or_turns(s) ? 0 : len;
}

static void text_add_escape(Text *text, unsigned char c) {
        static const char hex[] = "0123456789abcdef";
        char escape[4] = { '\\', 'x', hex[c >> 4], hex[c & 0xf] };

        switch (c) {
        case '\n':
                text_add(text, "\\n", 2);
                break;
        case '\r':
                text_add(text, "\\r", 2);
                break;
        case '\t':
                text_add(text, "\\t", 2);
                break;
        default:
                text_add(text, escape, sizeof(escape));
                break;
        }
}

static size_t plain_length(const unsigned char *s, const unsigned char *end) {
        const unsigned char *at = s;

        while (at < end && *at >= 0x20 && *at < 0x7f)
                at++;
        return (size_t)(at - s);
}

/* Names and messages may come from outside: nothing in them can end the line or command the terminal. */
static void text_add_escaped(Text *text, const char *s) {
        const unsigned char *at = (const unsigned char *)s, *end = at + strlen(s);

        while (at < end && !text->cut) {
                size_t n = plain_length(at, end);

                if (n > 0) {
                        size_t fits = MIN(n, (size_t)(text->end - text->at));

                        text_add(text, (const char *)at, fits);
                        text->cut = fits < n;
                } else if ((n = printable_length(at, (size_t)(end - at))) > 0)
                        text_add(text, (const char *)at, n);
                else {
                        text_add_escape(text, *at);
                        n = 1;
                }
                at += n;
        }
}

/* Cuts `s`, which fills its buffer of `size` bytes, between two characters and marks the place. */
static void mark_truncated(char *s, size_t size) {
        size_t n = size - sizeof("...");

        while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
                n--;
        memcpy(s + n, "...", sizeof("..."));
}

static const char *process_name(void) {
        return context.program ? context.program : program_invocation_short_name;
}

static void writer_forget(void) {
        writer.clock[0] = '\0';
}

static void writer_refresh(time_t second) {
        char thread[16] = "", names[sizeof(writer.names)];
        Text text = { .at = writer.names, .end = writer.names + sizeof(writer.names) - 1 };
        struct tm local;

        if (writer.second == second && writer.clock[0] != '\0')
                return;

        (void)localtime_r(&second, &local);
        (void)strftime(writer.clock, sizeof(writer.clock), "%H:%M:%S", &local);
        (void)prctl(PR_GET_NAME, thread);
        (void)snprintf(writer.tid, sizeof(writer.tid), "%d", (int)gettid());
        (void)snprintf(names, sizeof(names), "p[%.64s:%d] t[%.15s:%s] ", process_name(), (int)getpid(),
                       thread, writer.tid);
        text_add_escaped(&text, names);
        *text.at = '\0';
        writer.second = second;
}

static void add_time(Text *line, const struct timespec *now) {
        unsigned ms = (unsigned)(now->tv_nsec / 1000000);
        char fraction[5] = { '.', (char)('0' + ms / 100), (char)('0' + ms / 10 % 10), (char)('0' + ms % 10),
                             ' ' };

        text_add_string(line, writer.clock);
        text_add(line, fraction, sizeof(fraction));
}

static void add_colour(Text *line, const char *colour) {
        if (coloured && colour)
                text_add_string(line, colour);
}

static void add_stage(Text *line, const char *stage) {
        static const char pad[] = "        ";
        const char *begin = line->at;
        size_t width;

        text_add_escaped(line, stage ? stage : "-");
        width = (size_t)(line->at - begin);
        text_add(line, pad, width < sizeof(pad) - 2 ? sizeof(pad) - 1 - width : 1);
}

static size_t format_line(char *buf, size_t size, int level, const char *stage, const char *message) {
        /* Room for what ends the line is kept back, so that a cut message still ends properly. */
        Text line = { .at = buf, .end = buf + size - sizeof("..." COLOUR_OFF "\n") };
        struct timespec now;

        (void)clock_gettime(CLOCK_REALTIME, &now);
        writer_refresh(now.tv_sec);

        add_colour(&line, COLOUR_DIM);
        add_time(&line, &now);
        add_colour(&line, COLOUR_OFF);
        add_colour(&line, levels[level].colour);
        text_add_string(&line, levels[level].padded);
        add_colour(&line, COLOUR_OFF);
        text_add(&line, " ", 1);
        add_colour(&line, COLOUR_STAGE);
        add_stage(&line, stage);
        add_colour(&line, COLOUR_OFF);
        add_colour(&line, COLOUR_DIM);
        text_add_string(&line, writer.names);
        add_colour(&line, COLOUR_OFF);
        add_colour(&line, levels[level].message_colour);
        text_add_escaped(&line, message);

        line.end = buf + size;
        if (line.cut) {
                line.cut = false;
                text_add_string(&line, "...");
        }
        if (levels[level].message_colour)
                add_colour(&line, COLOUR_OFF);
        text_add(&line, "\n", 1);
        return (size_t)(line.at - buf);
}

/* Blocks while standard error does: who is too fast for the reader waits for it. Returns 0 or a negative errno. */
static int write_line(const char *line, size_t n) {
        while (n > 0) {
                ssize_t r = write(STDERR_FILENO, line, n);

                if (r >= 0) {
                        line += r;
                        n -= (size_t)r;
                } else if (errno == EAGAIN) {
                        /* Someone who shares the descriptor made it non-blocking. */
                        struct pollfd pfd = { .fd = STDERR_FILENO, .events = POLLOUT };

                        (void)poll(&pfd, 1, -1);
                } else if (errno != EINTR)
                        return -errno;
        }

        return 0;
}

/* One field of the journal's native protocol; one that does not fit is left out whole. */
static void add_field(Text *datagram, const char *name, const char *value) {
        size_t n_name = strlen(name), n_value = strlen(value);
        uint8_t length[8];

        if (n_name + 1 + sizeof(length) + n_value + 1 > (size_t)(datagram->end - datagram->at))
                return;

        text_add(datagram, name, n_name);
        if (memchr(value, '\n', n_value)) {
                for (size_t i = 0; i < sizeof(length); i++)
                        length[i] = (uint8_t)((uint64_t)n_value >> 8 * i);
                text_add(datagram, "\n", 1);
                text_add(datagram, (const char *)length, sizeof(length));
        } else
                text_add(datagram, "=", 1);
        text_add(datagram, value, n_value);
        text_add(datagram, "\n", 1);
}

static void add_field_number(Text *datagram, const char *name, uint64_t value) {
        char number[24];

        (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)value);
        add_field(datagram, name, number);
}

static size_t format_datagram(char *buf, size_t size, int level, const LogFields *fields,
                              const char *message) {
        Text datagram = { .at = buf, .end = buf + size };
        struct timespec now;

        (void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
        writer_refresh(now.tv_sec);

        add_field(&datagram, "MESSAGE", message);
        add_field_number(&datagram, "PRIORITY", (uint64_t)level);
        add_field(&datagram, "SYSLOG_IDENTIFIER", process_name());
        add_field(&datagram, "TID", writer.tid);
        if (fields->message_id)
                add_field(&datagram, "MESSAGE_ID", fields->message_id);
        if (context.pipeline)
                add_field(&datagram, "SLUICE_PIPELINE", context.pipeline);
        if (fields->stage)
                add_field(&datagram, "SLUICE_STAGE", fields->stage);
        if (fields->lane >= 0)
                add_field_number(&datagram, "SLUICE_LANE", (uint64_t)fields->lane);
        if (fields->has_job) {
                add_field_number(&datagram, "SLUICE_JOB", fields->job);
                add_field_number(&datagram, "SLUICE_ATTEMPT", fields->attempt);
        }
        return (size_t)(datagram.at - buf);
}

/* The address goes with every datagram: a connection would not survive a journal that comes back. */
static int send_datagram(const char *datagram, size_t n) {
        ssize_t r;

        do
                r = sendto(journal_fd, datagram, n, MSG_DONTWAIT | MSG_NOSIGNAL,
                           (const struct sockaddr *)&journal_address, journal_address_len);
        while (r < 0 && errno == EINTR);

        return r < 0 ? -errno : 0;
}

static int deliver(int level, const LogFields *fields, const char *message) {
        if (journal_fd >= 0) {
                char datagram[DATAGRAM_BYTES];

                return send_datagram(datagram,
                                     format_datagram(datagram, sizeof(datagram), level, fields, message));
        }

        char line[LINE_BYTES];

        return write_line(line, format_line(line, sizeof(line), level, fields->stage, message));
}

/* Returns how long the note is: 0 if nothing was lost. */
static size_t format_loss(char *buf, size_t size, unsigned long lost) {
        int n;

        if (lost == 0)
                return 0;
        n = snprintf(buf, size, "[%lu earlier message%s lost] ", lost, lost == 1 ? "" : "s");
        return (size_t)n;
}

static int clamp_level(int level) {
        return MIN(MAX(level, LOG_ERR), LOG_DEBUG);
}

void log_entry(int level, const LogFields *fields, const char *format, ...) {
        if (level > atomic_load_explicit(&max_level, memory_order_relaxed))
                return;

        LogFields all = fields ? *fields : (LogFields){ .lane = -1 };
        int saved = errno;
        char message[MESSAGE_BYTES];
        unsigned long lost = 0;
        size_t n_note;
        va_list ap;
        int n;

        level = clamp_level(level);
        if (!all.stage)
                all.stage = context.stage;
        if (all.lane < 0)
                all.lane = context.lane;

        /* Taken before the attempt, so that two threads do not report the same loss. */
        if (atomic_load_explicit(&n_dropped, memory_order_relaxed) > 0)
                lost = atomic_exchange(&n_dropped, 0);
        n_note = format_loss(message, sizeof(message), lost);

        errno = saved; /* for %m */
        va_start(ap, format);
        n = vsnprintf(message + n_note, sizeof(message) - n_note, format, ap);
        va_end(ap);
        if (n < 0)
                message[n_note] = '\0';
        else if ((size_t)n >= sizeof(message) - n_note)
                mark_truncated(message, sizeof(message));

        if (deliver(level, &all, message) < 0)
                (void)atomic_fetch_add(&n_dropped, lost + 1);
        errno = saved;
}

void log_set_level(int level) {
        atomic_store_explicit(&max_level, clamp_level(level), memory_order_relaxed);
}

int log_level(void) {
        return atomic_load_explicit(&max_level, memory_order_relaxed);
}

int log_level_from_name(const char *name) {
        for (int level = LOG_ERR; level <= LOG_DEBUG; level++)
                if (strcmp(levels[level].name, name) == 0)
                        return level;
        return -EINVAL;
}

const char *log_level_name(int level) {
        return levels[clamp_level(level)].name;
}

/* JOURNAL_STREAM is inherited by whoever the service starts; only if it still names our standard error is the
 * journal reading us. */
static bool stderr_is_journal(void) {
        const char *value = getenv("JOURNAL_STREAM");
        unsigned long long device, inode;
        struct stat st;
        char rest;

        if (!value || sscanf(value, "%llu:%llu%c", &device, &inode, &rest) != 2)
                return false;

        return fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

/* A journal that cannot be reached at all (another root directory) is none: lines then go to standard error. */
static int open_journal(void) {
        /* The tests bring a socket of their own. */
        const char *path = secure_getenv("SLUICE_JOURNAL_SOCKET");
        int fd;

        if (!path)
                path = "/run/systemd/journal/socket";
        if (strlen(path) >= sizeof(journal_address.sun_path))
                return -ENAMETOOLONG;
        if (access(path, W_OK) < 0)
                return -errno;

        fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;

        journal_address = (struct sockaddr_un){ .sun_family = AF_UNIX };
        memcpy(journal_address.sun_path, path, strlen(path) + 1);
        journal_address_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
        return fd;
}

static bool want_colours(void) {
        const char *choice = getenv("SLUICE_LOG_COLOR"), *no_color = getenv("NO_COLOR");

        if (choice && strcmp(choice, "always") == 0)
                return true;
        if (choice && strcmp(choice, "never") == 0)
                return false;

        /* no-color.org: set to anything but the empty string. */
        return (!no_color || no_color[0] == '\0') && isatty(STDERR_FILENO);
}

static void apply_level_of_environment(void) {
        const char *name = getenv("SLUICE_LOG_LEVEL");
        int level;

        if (!name)
                return;

        level = log_level_from_name(name);
        if (level < 0)
                log_warning("SLUICE_LOG_LEVEL=%s is not one of err, warning, notice, info, debug; using %s.",
                            name, log_level_name(log_level()));
        else
                log_set_level(level);
}

void log_open(const LogContext *ctx) {
        static bool watches_fork;
        int saved = errno;

        context = *ctx;
        coloured = want_colours();
        journal_fd = close_fd(journal_fd);
        if (stderr_is_journal())
                journal_fd = MAX(open_journal(), -1);

        /* localtime_r() need not look at the time zone itself. */
        tzset();
        writer_forget();
        if (!watches_fork)
                watches_fork = pthread_atfork(NULL, NULL, writer_forget) == 0;

        apply_level_of_environment();
        errno = saved;
}
