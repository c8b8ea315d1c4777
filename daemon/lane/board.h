#pragma once

/*
 * Board: what the lanes on both sides of one queue share. It lives in
 * memory that outlives all of them (memory.h), beside the queue.
 *
 * Tickets make a hand-off count once. A frame names its producer lane (a row
 * of the table), ticket and sequence. A ticket is one 64-bit word:
 *
 *     FREE(seq)              nobody's; seq is the one it last carried
 *     OPEN(seq)              a frame with it is being sent, or in the queue
 *     CLAIMED(seq, lane, n)  taken by this lane in its n-th receive
 *     REVOKED(seq)           taken back by its producer; copies are void
 *
 * A copy of a frame whose ticket does not say OPEN(seq) is a duplicate,
 * however late it is read. Each row has (depth + lanes + 1) tickets: as many
 * as frames can wait, plus one claimed by each receiver, plus the one being
 * sent, so a producer always finds one. Rows are reserved sparse, so scaling
 * never remaps anything.
 *
 * A row is group * BOARD_LANES_MAX + lane, a group being one producing stage.
 * Memory of zeroes is a table of FREE(0); sequences begin at 1.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BOARD_MAGIC UINT64_C(0x3144524f42434c53) /* "SLCBORD1" */
#define BOARD_LANES_MAX 1024
#define BOARD_GROUPS_MAX 16
#define BOARD_NAME_MAX 72
#define BOARD_HEADER_BYTES 8192

typedef struct Board {
        uint64_t magic;
        uint64_t life; /* random: of the records and queues that belong together */
        uint64_t key;  /* random: on every frame from inside */
        uint32_t depth;
        uint32_t message_bytes;
        uint32_t n_tickets; /* per row */
        uint32_t client_writable;
        _Atomic uint64_t n_garbage;                  /* messages refused */
        _Atomic uint64_t n_duplicates;               /* copies dropped */
        _Atomic uint64_t idle[BOARD_LANES_MAX / 64]; /* receiving lanes that are waiting for work */
        char groups[BOARD_GROUPS_MAX]
                   [BOARD_NAME_MAX]; /* producing stages; the first is the queue's own (share) */
} Board;

_Static_assert(sizeof(Board) <= BOARD_HEADER_BYTES, "tickets begin behind it");

typedef enum TicketState {
        TICKET_FREE,
        TICKET_OPEN,
        TICKET_CLAIMED,
        TICKET_REVOKED,
} TicketState;

#define TICKET_SEQUENCE_BITS 40
#define TICKET_SEQUENCE_MASK ((UINT64_C(1) << TICKET_SEQUENCE_BITS) - 1)

typedef _Atomic uint64_t Ticket;

static inline uint64_t ticket_word(TicketState state, uint64_t sequence, uint32_t lane, uint32_t n) {
        return (sequence & TICKET_SEQUENCE_MASK) << 24 | (uint64_t)(n & 0xfff) << 12 |
               (uint64_t)(lane & 0x3ff) << 2 | (uint64_t)state;
}

static inline TicketState ticket_state(uint64_t word) {
        return (TicketState)(word & 3);
}

static inline uint64_t ticket_sequence(uint64_t word) {
        return word >> 24;
}

static inline bool ticket_has_sequence(uint64_t word, uint64_t sequence) {
        return ticket_sequence(word) == (sequence & TICKET_SEQUENCE_MASK);
}

static inline uint32_t board_tickets_per_row(uint32_t depth) {
        return depth + BOARD_LANES_MAX + 1;
}

static inline size_t board_bytes(uint32_t depth) {
        return BOARD_HEADER_BYTES +
               (size_t)BOARD_GROUPS_MAX * BOARD_LANES_MAX * board_tickets_per_row(depth) * sizeof(Ticket);
}

/* The ticket, or NULL if the board has none of that number: a frame from outside may claim anything. */
static inline Ticket *board_ticket(Board *board, uint32_t row, uint32_t ticket) {
        if (row >= BOARD_GROUPS_MAX * BOARD_LANES_MAX || ticket >= board->n_tickets)
                return NULL;
        return (Ticket *)((uint8_t *)board + BOARD_HEADER_BYTES) + (size_t)row * board->n_tickets + ticket;
}

/* The row's first ticket that may carry a frame, or FRAME_NO_TICKET if a frame was lost by somebody else. */
uint32_t board_pick_ticket(Board *board, uint32_t row);

/* True if a frame of this row is being sent, in the queue, or handed over and not claimed yet. */
bool board_row_is_open(Board *board, uint32_t row);

/* Initialises a board in memory of zeroes. */
void board_init(Board *board, uint64_t life, uint64_t key, uint32_t depth, uint32_t message_bytes,
                bool client_writable, const char *own_stage);

/* True if the memory holds a board of this layout. */
bool board_is_valid(const Board *board, size_t n_data);

/* The group of a producing stage, registered if new. Returns -ENOSPC beyond BOARD_GROUPS_MAX. Supervisor only. */
int board_group(Board *board, const char *stage);

void board_set_idle(Board *board, uint32_t lane, bool idle);

/* How many receiving lanes other than `lane` wait for work. A snapshot. */
uint32_t board_count_idle(const Board *board, uint32_t lane);
