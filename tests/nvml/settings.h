/* What a simulated driver is like: each setting by its name in the trace file ("name value", or "name@gpu value"),
 * else by the environment (NVML_NAME), else its default. Times are milliseconds after the epoch.
 */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_GPUS = 8 };

/* name, default, meaning */
#define SETTINGS(SETTING)                                                                                              \
    SETTING(gpus, 2)                   /* how many there are */                                                        \
    SETTING(seed, 0)                   /* of jitter and noise */                                                       \
    SETTING(watts, 300)                /* what a die draws before the trace says otherwise */                          \
    SETTING(limit_watts, 400)          /* the power limit that it tells */                                             \
    SETTING(rise_ms, 0)                /* time constant of board and sensor */                                         \
    SETTING(jitter_ms, 0)              /* an update is early or late by up to this */                                  \
    SETTING(counter_period_ms, 100)    /* energy counter: update period */                                             \
    SETTING(counter_phase_ms, 0)       /* its first update after the epoch */                                          \
    SETTING(counter_delay_ms, 0)       /* age of what it shows */                                                      \
    SETTING(counter_start_joules, 1e6) /* a driver that has run for long */                                            \
    SETTING(counter_seen_ratio, 1)     /* share of each period that it integrates */                                   \
    SETTING(idle_below_watts, 0)       /* below this ... */                                                            \
    SETTING(idle_counted_ratio, 1)     /* ... it counts only this share */                                             \
    SETTING(power_period_ms, 100)      /* power: update period */                                                      \
    SETTING(power_phase_ms, 0)                                                                                         \
    SETTING(power_delay_ms, 0)                                                                                         \
    SETTING(power_window_ms, 25)       /* instant power is the mean of so much before an update */                     \
    SETTING(average_window_ms, 1000)   /* average power likewise */                                                    \
    SETTING(usage_is_average, 0)       /* GetPowerUsage shows the average, as on GA10x and newer */                    \
    SETTING(gain, 1)                   /* power reading against the counter */                                         \
    SETTING(offset_watts, 0)                                                                                           \
    SETTING(noise_watts, 0)            /* standard deviation of a reading */                                           \
    SETTING(quantum_milliwatts, 1)                                                                                     \
    SETTING(latency_least_us, 0)       /* a call takes from this ... */                                                \
    SETTING(latency_most_us, 0)        /* ... to this, most calls near the lower end */                                \
    SETTING(stall_ratio, 0)            /* share of calls that take stall_ms more */                                    \
    SETTING(stall_ms, 5)                                                                                               \
    SETTING(init, 0)                   /* what nvmlInit returns */                                                     \
    SETTING(no_energy, 0)              /* fields 83 and 191 are not supported */                                       \
    SETTING(no_instant, 0)             /* nor 186 */                                                                   \
    SETTING(no_average, 0)             /* nor 185 */                                                                   \
    SETTING(no_usage, 0)               /* nor GetPowerUsage */                                                         \
    SETTING(blip_every, 0)             /* every n-th call of a process shows 0 mW, and energy NotSupported */          \
    SETTING(blip_at_ms, -1)            /* so does every call from here ... */                                          \
    SETTING(blip_ms, 0)                /* ... for so long */                                                           \
    SETTING(reset_at_ms, -1)           /* the counter starts at 0 again */                                             \
    SETTING(restart_at_ms, -1)         /* the driver is unloaded: UNINITIALIZED until nvmlInit ... */                  \
    SETTING(restart_ms, 0)             /* ... which fails for so long; the counter starts at 0 again */                \
    SETTING(lost_after_ms, -1)         /* the GPU is lost (error 15) */                                                \
    SETTING(hang_at_ms, -1)            /* a call from here ... */                                                      \
    SETTING(hang_ms, 0)                /* ... within so long answers only at its end */

typedef struct {
#define SETTING(name, otherwise) double name;
    SETTINGS(SETTING)
#undef SETTING
} settings_t;

/* What the text says of a setting; "otherwise" where it says nothing. */
static double settings_line(const char *text, const char *name, int gpu, double otherwise) {
    char wanted[64];
    int length = gpu < 0 ? snprintf(wanted, sizeof wanted, "%s ", name)
                         : snprintf(wanted, sizeof wanted, "%s@%d ", name, gpu);
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL)
        if (!strncmp(line, wanted, (size_t)length))
            return strtod(line + length, NULL);
    return otherwise;
}

static double settings_find(const char *text, const char *name, int gpu, double otherwise) {
    char variable[64] = "NVML_";
    for (size_t at = 0; name[at] && at + 6 < sizeof variable; at++)
        variable[at + 5] = (char)toupper(name[at]);
    const char *given = getenv(variable);
    if (given && *given)
        otherwise = strtod(given, NULL);
    return settings_line(text, name, gpu, settings_line(text, name, -1, otherwise));
}

/* The settings of one GPU. */
static void settings_read(settings_t *settings, const char *text, int gpu) {
    /* One variable for both periods, for scenarios that need no more. */
    const char *period = getenv("NVML_PERIOD_MS");
#define SETTING(name, otherwise) settings->name = settings_find(text, #name, gpu, otherwise);
    SETTINGS(SETTING)
#undef SETTING
    if (period && *period)
        settings->counter_period_ms = settings->power_period_ms = strtod(period, NULL);
}

#endif
