#include "lane/board.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "frame/frame.h"

uint32_t board_pick_ticket(Board *board, uint32_t row) {
        for (uint32_t i = 0; i < board->n_tickets; i++) {
                TicketState state =
                        ticket_state(atomic_load_explicit(board_ticket(board, row, i), memory_order_acquire));

                if (state == TICKET_FREE || state == TICKET_REVOKED)
                        return i;
        }
        return FRAME_NO_TICKET;
}

bool board_row_is_open(Board *board, uint32_t row) {
        for (uint32_t i = 0; i < board->n_tickets; i++) {
                uint64_t word = atomic_load_explicit(board_ticket(board, row, i), memory_order_acquire);

                if (word == 0)
                        return false; /* the lowest is always taken first, so none behind was ever used */
                if (ticket_state(word) == TICKET_OPEN)
                        return true;
        }
        return false;
}

void board_init(Board *board, uint64_t life, uint64_t key, uint32_t depth, uint32_t message_bytes,
                bool client_writable, const char *own_stage) {
        board->life = life;
        board->key = key;
        board->depth = depth;
        board->message_bytes = message_bytes;
        board->n_tickets = board_tickets_per_row(depth);
        board->client_writable = client_writable;
        (void)snprintf(board->groups[0], sizeof(board->groups[0]), "%s", own_stage);
        atomic_thread_fence(memory_order_release);
        board->magic = BOARD_MAGIC;
}

bool board_is_valid(const Board *board, size_t n_data) {
        return n_data >= BOARD_HEADER_BYTES && board->magic == BOARD_MAGIC &&
               board->n_tickets == board_tickets_per_row(board->depth) && n_data >= board_bytes(board->depth);
}

int board_group(Board *board, const char *stage) {
        for (int i = 0; i < BOARD_GROUPS_MAX; i++) {
                if (board->groups[i][0] == '\0')
                        (void)snprintf(board->groups[i], sizeof(board->groups[i]), "%s", stage);
                if (strcmp(board->groups[i], stage) == 0)
                        return i;
        }
        return -ENOSPC;
}

void board_set_idle(Board *board, uint32_t lane, bool idle) {
        uint64_t bit = UINT64_C(1) << (lane % 64);

        if (idle)
                atomic_fetch_or_explicit(&board->idle[lane / 64], bit, memory_order_relaxed);
        else
                atomic_fetch_and_explicit(&board->idle[lane / 64], ~bit, memory_order_relaxed);
}

uint32_t board_count_idle(const Board *board, uint32_t lane) {
        uint32_t n = 0;

        for (uint32_t i = 0; i < BOARD_LANES_MAX / 64; i++) {
                uint64_t word = atomic_load_explicit(&board->idle[i], memory_order_relaxed);

                if (word && i == lane / 64)
                        word &= ~(UINT64_C(1) << (lane % 64));
                n += (uint32_t)__builtin_popcountll(word);
        }
        return n;
}
