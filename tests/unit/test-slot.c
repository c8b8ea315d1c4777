/*
 * Slots: the table of a worker's life, every cell of it, and the delays.
 */

#include "supervisor/slot.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"

/* Written from the picture in the header, not from the table in the source. */
static SlotState expected(SlotState state, SlotEvent event) {
        bool process = state == SLOT_STARTING || state == SLOT_RUNNING;

        if (state == SLOT_NONE)
                return SLOT_NONE;

        switch (event) {
        case SLOT_SPAWNED:
                return state == SLOT_IDLE ? SLOT_STARTING : SLOT_NONE;
        case SLOT_READY:
                return state == SLOT_STARTING ? SLOT_RUNNING : SLOT_NONE;
        case SLOT_DIED:
                return process ? SLOT_IDLE : SLOT_NONE;
        case SLOT_FAILED: /* also of a process that could not be made */
                return process || state == SLOT_IDLE ? SLOT_BACKOFF : SLOT_NONE;
        case SLOT_ENDED:
                return process ? SLOT_STOPPED : SLOT_NONE;
        case SLOT_DUE:
                return state == SLOT_BACKOFF ? SLOT_IDLE : SLOT_NONE;
        case SLOT_STOP:
                return process ? SLOT_NONE : SLOT_STOPPED;
        case SLOT_WANTED:
                return process ? state : SLOT_IDLE;
        default:
                return SLOT_NONE;
        }
}

START_TEST(every_cell_of_the_table_is_as_drawn) {
        for (SlotState state = SLOT_NONE; state < _SLOT_STATE_MAX; state++)
                for (SlotEvent event = SLOT_SPAWNED; event < _SLOT_EVENT_MAX; event++)
                        ck_assert_msg(slot_next(state, event) == expected(state, event), "%s, event %d: %s",
                                      slot_state_name(state), (int)event,
                                      slot_state_name(slot_next(state, event)));
}
END_TEST

START_TEST(a_process_is_never_forgotten) {
        /* Only its own end leaves STARTING or RUNNING for a state without process. */
        for (SlotEvent event = SLOT_SPAWNED; event < _SLOT_EVENT_MAX; event++)
                for (SlotState state = SLOT_STARTING; state <= SLOT_RUNNING; state++) {
                        SlotState next = slot_next(state, event);

                        if (event != SLOT_DIED && event != SLOT_FAILED && event != SLOT_ENDED)
                                ck_assert(next == SLOT_NONE || next == SLOT_STARTING || next == SLOT_RUNNING);
                }
}
END_TEST

START_TEST(every_state_can_be_left_and_reached) {
        for (SlotState state = SLOT_IDLE; state < _SLOT_STATE_MAX; state++) {
                bool left = false, reached = false;

                for (SlotEvent event = SLOT_SPAWNED; event < _SLOT_EVENT_MAX; event++) {
                        SlotState next = slot_next(state, event);

                        left = left || (next != SLOT_NONE && next != state);
                        for (SlotState from = SLOT_IDLE; from < _SLOT_STATE_MAX; from++)
                                reached = reached || (from != state && slot_next(from, event) == state);
                }
                ck_assert_msg(left && reached, "%s", slot_state_name(state));
        }
}
END_TEST

START_TEST(states_have_names_of_their_own) {
        for (SlotState a = SLOT_NONE; a < _SLOT_STATE_MAX; a++) {
                ck_assert_ptr_nonnull(slot_state_name(a));
                ck_assert_str_ne(slot_state_name(a), "");
                for (SlotState b = SLOT_NONE; b < a; b++)
                        ck_assert_str_ne(slot_state_name(a), slot_state_name(b));
        }
}
END_TEST

START_TEST(delays_double_up_to_half_a_minute) {
        static const uint64_t delays[] = { 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000 };

        for (unsigned i = 0; i < ELEMENTSOF(delays); i++)
                ck_assert_uint_eq(slot_backoff_usec(i + 1), delays[i] * USEC_PER_MSEC);
        ck_assert_uint_eq(slot_backoff_usec(1000), 30 * USEC_PER_SEC);
        ck_assert_uint_eq(slot_backoff_usec((unsigned)-1), 30 * USEC_PER_SEC);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("slot");
        TCase *all = tcase_create("all");
        SRunner *runner;
        int n_failed;

        tcase_add_test(all, every_cell_of_the_table_is_as_drawn);
        tcase_add_test(all, a_process_is_never_forgotten);
        tcase_add_test(all, every_state_can_be_left_and_reached);
        tcase_add_test(all, states_have_names_of_their_own);
        tcase_add_test(all, delays_double_up_to_half_a_minute);
        suite_add_tcase(suite, all);

        runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        n_failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
