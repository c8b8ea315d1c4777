#pragma once

/*
 * Log: one line per event, to whoever started us.
 *
 * Under systemd (JOURNAL_STREAM names our standard error) entries go to the
 * journal in its native datagram format, with structured fields. On a
 * terminal a line is coloured:
 *
 *     12:03:11.402 info    prime   p[sluice-worker:4711] t[sluice-worker:4711] message
 *
 * and the same without colours elsewhere. (sd_journal_send() is not used: its
 * socket blocks, so a stalled journald would stall jobs, and libsystemd would
 * be mapped into every worker.)
 *
 * A message whose sink does not take it at once is dropped and counted; the
 * next one that gets through says how many are missing. Logging never blocks
 * on the journal, never fails and keeps errno. Safe from any thread.
 */

#include <stdbool.h>
#include <stdint.h>
#include <syslog.h>

typedef struct LogContext {
        const char *program;  /* "sluiced", "sluice-worker", "sluicectl" */
        const char *pipeline; /* SLUICE_PIPELINE=, or NULL */
        const char *stage;    /* SLUICE_STAGE=, or NULL */
        int lane;             /* SLUICE_LANE=, or -1 */
} LogContext;

/* Call once, before other threads exist. Strings are borrowed for good. */
void log_open(const LogContext *context);

/* Messages above `level` (LOG_ERR .. LOG_DEBUG) are skipped. Default LOG_INFO. */
void log_set_level(int level);
int log_level(void);

/* "err", "warning", "notice", "info", "debug"; -EINVAL for anything else. */
int log_level_from_name(const char *name);
const char *log_level_name(int level);

/* Per-entry fields of a message; unset ones fall back to the context. */
typedef struct LogFields {
        const char *message_id; /* MESSAGE_ID=: 32 hex digits, for messages with a catalogue entry */
        const char *stage;
        int lane; /* -1: none */
        bool has_job;
        uint64_t job;
        uint32_t attempt;
} LogFields;

void log_entry(int level, const LogFields *fields, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

#define log_at(level, ...) log_entry((level), NULL, __VA_ARGS__)
#define log_error(...) log_entry(LOG_ERR, NULL, __VA_ARGS__)
#define log_warning(...) log_entry(LOG_WARNING, NULL, __VA_ARGS__)
#define log_notice(...) log_entry(LOG_NOTICE, NULL, __VA_ARGS__)
#define log_info(...) log_entry(LOG_INFO, NULL, __VA_ARGS__)
#define log_debug(...) log_entry(LOG_DEBUG, NULL, __VA_ARGS__)
