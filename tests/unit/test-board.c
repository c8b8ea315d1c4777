/*
 * Boards: the ticket word, the table of tickets, groups and idle lanes.
 */

#include "lane/board.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "frame/frame.h"

#define DEPTH 10

static Board *board;

/* As in life: reserved sparse, zero. */
static void set_up(void) {
        board = mmap(NULL, board_bytes(DEPTH), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ck_assert(board != MAP_FAILED);
        board_init(board, 11, 22, DEPTH, 8192, true, "own");
}

static void tear_down(void) {
        (void)munmap(board, board_bytes(DEPTH));
}

START_TEST(a_ticket_word_keeps_what_it_was_given) {
        static const uint64_t sequences[] = { 0, 1, 12345, TICKET_SEQUENCE_MASK - 1, TICKET_SEQUENCE_MASK };
        static const uint32_t lanes[] = { 0, 1, BOARD_LANES_MAX - 1 };
        static const uint32_t numbers[] = { 0, 1, 4095 };

        for (TicketState state = TICKET_FREE; state <= TICKET_REVOKED; state++)
                for (size_t s = 0; s < ELEMENTSOF(sequences); s++)
                        for (size_t l = 0; l < ELEMENTSOF(lanes); l++)
                                for (size_t n = 0; n < ELEMENTSOF(numbers); n++) {
                                        uint64_t word =
                                                ticket_word(state, sequences[s], lanes[l], numbers[n]);

                                        ck_assert_int_eq(ticket_state(word), state);
                                        ck_assert_uint_eq(ticket_sequence(word), sequences[s]);
                                        ck_assert(ticket_has_sequence(word, sequences[s]));
                                        ck_assert(!ticket_has_sequence(word, sequences[s] + 1));
                                        ck_assert(
                                                !ticket_has_sequence(word, sequences[s] ^ UINT64_C(1) << 39));
                                }
}
END_TEST

START_TEST(claims_of_different_lanes_and_receives_differ) {
        uint64_t word = ticket_word(TICKET_CLAIMED, 5, 7, 9);

        ck_assert_uint_ne(word, ticket_word(TICKET_CLAIMED, 5, 8, 9));
        ck_assert_uint_ne(word, ticket_word(TICKET_CLAIMED, 5, 7, 10));
        ck_assert_uint_ne(word, ticket_word(TICKET_CLAIMED, 6, 7, 9));
        /* Numbers wrap after 4096 receives; by then the ticket has been freed. */
        ck_assert_uint_eq(word, ticket_word(TICKET_CLAIMED, 5, 7, 9 + 4096));
}
END_TEST

START_TEST(memory_of_zeroes_is_a_table_of_free_tickets) {
        ck_assert_uint_eq(ticket_word(TICKET_FREE, 0, 0, 0), 0);
        for (uint32_t t = 0; t < board->n_tickets; t++)
                ck_assert_uint_eq(atomic_load(board_ticket(board, 17, t)), 0);
}
END_TEST

START_TEST(rows_lie_side_by_side_within_the_board) {
        const uint32_t n_rows = BOARD_GROUPS_MAX * BOARD_LANES_MAX;
        const uint8_t *end = (const uint8_t *)board + board_bytes(DEPTH);

        ck_assert_uint_eq(board->n_tickets, DEPTH + BOARD_LANES_MAX + 1);
        ck_assert_ptr_eq(board_ticket(board, 0, 0), (uint8_t *)board + BOARD_HEADER_BYTES);
        for (uint32_t row = 0; row < n_rows; row++) {
                ck_assert(board_ticket(board, row, board->n_tickets - 1) + 1 ==
                          (row + 1 < n_rows ? board_ticket(board, row + 1, 0)
                                            : (const Ticket *)(const void *)end));
                row += row % 1024 == 3 ? 1000 : 0;
        }
        ck_assert_ptr_null(board_ticket(board, n_rows, 0));
        ck_assert_ptr_null(board_ticket(board, UINT32_MAX, 0));
        ck_assert_ptr_null(board_ticket(board, 0, board->n_tickets));
        ck_assert_ptr_null(board_ticket(board, 0, FRAME_NO_TICKET));
}
END_TEST

START_TEST(only_free_and_revoked_tickets_are_picked) {
        for (uint32_t t = 0; t < board->n_tickets; t++)
                atomic_store(board_ticket(board, 5, t),
                             ticket_word(t % 2 ? TICKET_OPEN : TICKET_CLAIMED, t + 1, t % 9, t));
        ck_assert_uint_eq(board_pick_ticket(board, 5), FRAME_NO_TICKET);
        ck_assert_uint_eq(board_pick_ticket(board, 4), 0); /* other rows are none of its business */
        ck_assert_uint_eq(board_pick_ticket(board, 6), 0);

        atomic_store(board_ticket(board, 5, 900), ticket_word(TICKET_FREE, 77, 0, 0));
        ck_assert_uint_eq(board_pick_ticket(board, 5), 900);
        atomic_store(board_ticket(board, 5, 30), ticket_word(TICKET_REVOKED, 78, 0, 0));
        ck_assert_uint_eq(board_pick_ticket(board, 5), 30);
        atomic_store(board_ticket(board, 5, 30), ticket_word(TICKET_OPEN, 79, 0, 0));
        ck_assert_uint_eq(board_pick_ticket(board, 5), 900);
        /* Picking takes nothing: the producer's own record says what it has picked. */
        ck_assert_uint_eq(board_pick_ticket(board, 5), 900);
}
END_TEST

START_TEST(groups_are_numbered_once_and_the_first_is_the_stage_itself) {
        char name[32];

        ck_assert_int_eq(board_group(board, "own"), 0);
        ck_assert_int_eq(board_group(board, "first"), 1);
        ck_assert_int_eq(board_group(board, "second"), 2);
        ck_assert_int_eq(board_group(board, "first"), 1);
        ck_assert_int_eq(board_group(board, "firs"), 3); /* a prefix is another name */
        for (int i = 4; i < BOARD_GROUPS_MAX; i++) {
                (void)snprintf(name, sizeof(name), "stage-%d", i);
                ck_assert_int_eq(board_group(board, name), i);
        }
        ck_assert_int_eq(board_group(board, "one-too-many"), -ENOSPC);
        ck_assert_int_eq(board_group(board, "second"), 2);
}
END_TEST

START_TEST(a_board_is_known_by_its_magic_and_size) {
        ck_assert(board_is_valid(board, board_bytes(DEPTH)));
        ck_assert(!board_is_valid(board, board_bytes(DEPTH) - 1));
        ck_assert(!board_is_valid(board, 0));
        board->n_tickets++;
        ck_assert(!board_is_valid(board, board_bytes(DEPTH)));
        board->n_tickets--;
        board->magic ^= 1;
        ck_assert(!board_is_valid(board, board_bytes(DEPTH)));
}
END_TEST

START_TEST(idle_lanes_are_counted_without_the_one_that_asks) {
        static const uint32_t lanes[] = { 0, 1, 63, 64, 65, 127, 128, BOARD_LANES_MAX - 1 };

        ck_assert_uint_eq(board_count_idle(board, 0), 0);
        for (uint32_t i = 0; i < ELEMENTSOF(lanes); i++) {
                board_set_idle(board, lanes[i], true);
                board_set_idle(board, lanes[i], true); /* twice is once */
                ck_assert_uint_eq(board_count_idle(board, lanes[i]), i);
                ck_assert_uint_eq(board_count_idle(board, 500), i + 1);
        }
        for (uint32_t i = 0; i < ELEMENTSOF(lanes); i++) {
                board_set_idle(board, lanes[i], false);
                board_set_idle(board, lanes[i], false);
                ck_assert_uint_eq(board_count_idle(board, 500), ELEMENTSOF(lanes) - i - 1);
        }
}
END_TEST

int main(void) {
        Suite *suite = suite_create("board");
        TCase *all = tcase_create("all");
        SRunner *runner;
        int n_failed;

        tcase_add_checked_fixture(all, set_up, tear_down);
        tcase_add_test(all, a_ticket_word_keeps_what_it_was_given);
        tcase_add_test(all, claims_of_different_lanes_and_receives_differ);
        tcase_add_test(all, memory_of_zeroes_is_a_table_of_free_tickets);
        tcase_add_test(all, rows_lie_side_by_side_within_the_board);
        tcase_add_test(all, only_free_and_revoked_tickets_are_picked);
        tcase_add_test(all, groups_are_numbered_once_and_the_first_is_the_stage_itself);
        tcase_add_test(all, a_board_is_known_by_its_magic_and_size);
        tcase_add_test(all, idle_lanes_are_counted_without_the_one_that_asks);
        suite_add_tcase(suite, all);

        runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
