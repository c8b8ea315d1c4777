#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "pipeline/config-internal.h"

typedef struct Unit {
        const char *name;
        uint64_t factor;
} Unit;

/* Smallest first: unit_format() takes the last one that divides. */
static const Unit duration_units[] = {
        { "us", 1 },
        { "ms", USEC_PER_MSEC },
        { "s", USEC_PER_SEC },
        { "min", 60 * USEC_PER_SEC },
        { "h", 3600 * USEC_PER_SEC },
        { "d", 24 * 3600 * USEC_PER_SEC },
        { NULL },
};

static const Unit size_units[] = {
        { "B", 1 },
        { "K", UINT64_C(1) << 10 },
        { "KiB", UINT64_C(1) << 10 },
        { "M", UINT64_C(1) << 20 },
        { "MiB", UINT64_C(1) << 20 },
        { "G", UINT64_C(1) << 30 },
        { "GiB", UINT64_C(1) << 30 },
        { NULL },
};

static int unit_parse(const Unit *units, const char *text, uint64_t *ret) {
        size_t n_digits = strspn(text, "0123456789");
        const char *unit = text + n_digits;
        uint64_t number = 0;
        bool overflow = false;

        if (n_digits == 0)
                return -EINVAL;
        for (size_t i = 0; i < n_digits; i++)
                if (__builtin_mul_overflow(number, 10, &number) ||
                    __builtin_add_overflow(number, (uint64_t)(text[i] - '0'), &number))
                        overflow = true;

        unit += strspn(unit, " ");
        if (*unit == '\0') {
                if (overflow || number != 0)
                        return -ENOENT;
                *ret = 0;
                return 0;
        }

        for (; units->name; units++) {
                if (strcmp(units->name, unit) != 0)
                        continue;
                /* The values end up in signed settings, so that is the limit. */
                if (overflow || __builtin_mul_overflow(number, units->factor, &number) || number > INT64_MAX)
                        return -ERANGE;
                *ret = number;
                return 0;
        }
        return -EINVAL;
}

int config_parse_duration(const char *text, uint64_t *ret_usec) {
        return unit_parse(duration_units, text, ret_usec);
}

int config_parse_size(const char *text, uint64_t *ret_bytes) {
        return unit_parse(size_units, text, ret_bytes);
}

const char *config_format(ConfigType type, int64_t value, char buf[static CONFIG_FORMAT_MAX]) {
        const Unit *units = type == CONFIG_KEY_DURATION ? duration_units
                            : type == CONFIG_KEY_SIZE   ? size_units
                                                        : NULL;
        const Unit *best = units;

        if (!units || value <= 0) {
                (void)snprintf(buf, CONFIG_FORMAT_MAX, "%" PRIi64, value);
                return buf;
        }

        for (const Unit *unit = units; unit->name; unit++)
                if ((uint64_t)value % unit->factor == 0)
                        best = unit;
        (void)snprintf(buf, CONFIG_FORMAT_MAX, "%" PRIu64 "%s", (uint64_t)value / best->factor, best->name);
        return buf;
}
