#include "supervisor/slot.h"

#include <assert.h>

#include "base/cleanup.h"
#include "base/clock.h"

static const SlotState slot_table[_SLOT_STATE_MAX][_SLOT_EVENT_MAX] = {
        [SLOT_IDLE] = { [SLOT_SPAWNED] = SLOT_STARTING,
                        [SLOT_FAILED] = SLOT_BACKOFF,
                        [SLOT_STOP] = SLOT_STOPPED,
                        [SLOT_WANTED] = SLOT_IDLE },
        [SLOT_STARTING] = { [SLOT_READY] = SLOT_RUNNING,
                            [SLOT_DIED] = SLOT_IDLE,
                            [SLOT_FAILED] = SLOT_BACKOFF,
                            [SLOT_ENDED] = SLOT_STOPPED,
                            [SLOT_WANTED] = SLOT_STARTING },
        [SLOT_RUNNING] = { [SLOT_DIED] = SLOT_IDLE,
                           [SLOT_FAILED] = SLOT_BACKOFF,
                           [SLOT_ENDED] = SLOT_STOPPED,
                           [SLOT_WANTED] = SLOT_RUNNING },
        [SLOT_BACKOFF] = { [SLOT_DUE] = SLOT_IDLE, [SLOT_STOP] = SLOT_STOPPED, [SLOT_WANTED] = SLOT_IDLE },
        [SLOT_STOPPED] = { [SLOT_STOP] = SLOT_STOPPED, [SLOT_WANTED] = SLOT_IDLE },
};

static const char *const slot_names[_SLOT_STATE_MAX] = {
        [SLOT_NONE] = "none",       [SLOT_IDLE] = "idle",       [SLOT_STARTING] = "starting",
        [SLOT_RUNNING] = "running", [SLOT_BACKOFF] = "backoff", [SLOT_STOPPED] = "stopped",
};

const char *slot_state_name(SlotState state) {
        assert(state < _SLOT_STATE_MAX);
        return slot_names[state];
}

SlotState slot_next(SlotState state, SlotEvent event) {
        assert(state < _SLOT_STATE_MAX && event < _SLOT_EVENT_MAX);
        return slot_table[state][event];
}

uint64_t slot_backoff_usec(unsigned n_failures) {
        uint64_t delay = 100 * USEC_PER_MSEC;

        for (unsigned i = 1; i < n_failures && delay < 30 * USEC_PER_SEC; i++)
                delay *= 2;
        return MIN(delay, 30 * USEC_PER_SEC);
}
