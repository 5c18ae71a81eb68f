/* What a GPU's sensors show of the power that its die draws: a pure function of trace, settings and time.
 *
 * The trace is a file that a workload writes as it goes and every process maps: steps of (monotonic ns, watts).
 * Board and sensor answer with a first-order rise and a delay, in closed form from step to step, so that each
 * process works it out for itself, once per step, and all see the same values. Jitter and noise of an update come from
 * a hash of its number. Times here are seconds after the epoch, energies joules.
 */
#ifndef SENSOR_H
#define SENSOR_H

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "settings.h"

/* The file: a page of settings as text, a page with this, then `capacity` steps for each GPU. */
enum { TRACE_PAGE = 4096 };
static const uint64_t TRACE_MAGIC = 0x3130454341525457; /* "WTRACE01" */

typedef struct {
    uint64_t magic;
    int64_t epoch_nano;
    uint64_t gpus, capacity;
    _Atomic uint64_t revision; /* of the settings */
    _Atomic uint64_t steps[MOST_GPUS];
} trace_header_t;

typedef struct {
    int64_t nano;
    double watts;
} trace_step_t;

/* The board at the moment a step begins: what comes in, what it draws, and all that it has drawn. */
typedef struct {
    double time, watts, level, joules;
} knot_t;

typedef struct {
    knot_t *knots;
    _Atomic uint64_t count;
} board_t;

/* A counter that looks only part of the time has a sum of its own. */
typedef struct {
    double *joules;
    int64_t count, room;
} seen_t;

typedef struct {
    board_t whole, counted; /* `counted`: as a counter sees it that leaves out some of the idle power */
    seen_t seen;
} gpu_t;

static struct {
    pthread_mutex_t lock;
    const trace_header_t *header; /* NULL: no trace, a constant power */
    const char *text;
    int64_t epoch_nano;
    _Atomic uint64_t revision;
    settings_t *_Atomic settings[MOST_GPUS];
    gpu_t gpus[MOST_GPUS];
} sensor = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int64_t monotonic_nano(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static double since_epoch(int64_t nano) { return (double)(nano - sensor.epoch_nano) * 1e-9; }

/* A uniform number in [0, 1) that depends on nothing but its arguments (the mixing of splitmix64). */
static double hashed(uint64_t seed, uint64_t stream, uint64_t number) {
    uint64_t z = seed * 0x9e3779b97f4a7c15 + stream * 0xd1342543de82ef95 + number * 0x2545f4914f6cdd1d;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double hashed_normal(uint64_t seed, uint64_t stream, uint64_t number) {
    double radius = sqrt(-2 * log(1 - hashed(seed, stream, number)));
    return radius * cos(6.283185307179586 * hashed(seed, stream + 1, number));
}

/* The board `seconds` after a knot. */
static knot_t knot_after(const knot_t *knot, double time, double rise) {
    double seconds = time - knot->time;
    double left = rise > 0 && seconds > 0 ? exp(-seconds / rise) : rise > 0 ? 1 : 0;
    double above = knot->level - knot->watts;
    return (knot_t){time, knot->watts, knot->watts + above * left,
                    knot->joules + knot->watts * seconds + above * rise * (1 - left)};
}

static void board_begin(board_t *board, double watts, uint64_t capacity) {
    board->knots = calloc(capacity + 1, sizeof(knot_t));
    board->knots[0] = (knot_t){0, watts, watts, 0};
    atomic_store_explicit(&board->count, 1, memory_order_release);
}

static void board_step(board_t *board, double time, double watts, double rise) {
    uint64_t count = atomic_load_explicit(&board->count, memory_order_relaxed);
    knot_t knot = knot_after(&board->knots[count - 1], fmax(time, board->knots[count - 1].time), rise);
    knot.watts = watts;
    board->knots[count] = knot;
    atomic_store_explicit(&board->count, count + 1, memory_order_release);
}

/* Joules that the board has drawn up to a moment; before the epoch it drew what it draws at it. */
static double board_joules(const board_t *board, double time, double rise) {
    uint64_t low = 0, high = atomic_load_explicit(&board->count, memory_order_acquire);
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (board->knots[middle].time <= time)
            low = middle;
        else
            high = middle;
    }
    return knot_after(&board->knots[low], time, rise).joules;
}

static double counted_watts(const settings_t *settings, double watts) {
    return watts < settings->idle_below_watts ? watts * settings->idle_counted_ratio : watts;
}

/* Take in what the workload has written since, and settings that were changed. */
static void sensor_follow(int gpu) {
    const trace_header_t *header = sensor.header;
    if (!header)
        return;
    uint64_t steps = atomic_load_explicit(&header->steps[gpu], memory_order_acquire);
    uint64_t revision = atomic_load_explicit(&header->revision, memory_order_acquire);
    uint64_t known = atomic_load_explicit(&sensor.gpus[gpu].whole.count, memory_order_relaxed) - 1;
    if (steps == known && revision == sensor.revision)
        return;
    pthread_mutex_lock(&sensor.lock);
    if (revision != sensor.revision) {
        for (int each = 0; each < MOST_GPUS; each++) {
            settings_t *fresh = malloc(sizeof *fresh); /* the old ones may be in use: they stay */
            settings_read(fresh, sensor.text, each);
            sensor.settings[each] = fresh;
        }
        sensor.revision = revision;
    }
    gpu_t *state = &sensor.gpus[gpu];
    const settings_t *settings = sensor.settings[gpu];
    const trace_step_t *trace =
        (const trace_step_t *)((const char *)header + TRACE_PAGE) + (uint64_t)gpu * header->capacity;
    for (uint64_t next = state->whole.count - 1; next < steps && next < header->capacity; next++) {
        double time = since_epoch(trace[next].nano);
        /* `whole` last: its count says that both are there. */
        board_step(&state->counted, time, counted_watts(settings, trace[next].watts), settings->rise_ms / 1e3);
        board_step(&state->whole, time, trace[next].watts, settings->rise_ms / 1e3);
    }
    pthread_mutex_unlock(&sensor.lock);
}

/* Open the trace, if there is one; false: it can't be read. Called once, under the lock. */
static int sensor_open(void) {
    const char *path = getenv("NVML_TRACE");
    uint64_t capacity = 0;
    if (path && *path) {
        struct stat status;
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || fstat(file, &status) < 0)
            return 0;
        char *map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, file, 0);
        close(file);
        const trace_header_t *header = (const trace_header_t *)(map + TRACE_PAGE);
        if (map == MAP_FAILED || status.st_size < 2 * TRACE_PAGE || header->magic != TRACE_MAGIC)
            return 0;
        sensor.header = header;
        sensor.text = map;
        sensor.revision = header->revision;
        capacity = header->capacity;
    }
    sensor.epoch_nano = sensor.header ? sensor.header->epoch_nano : monotonic_nano();
    for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
        settings_t *settings = malloc(sizeof *settings);
        settings_read(settings, sensor.text, gpu);
        sensor.settings[gpu] = settings;
        board_begin(&sensor.gpus[gpu].whole, settings->watts, capacity);
        board_begin(&sensor.gpus[gpu].counted, counted_watts(settings, settings->watts), capacity);
    }
    return 1;
}

/* Updates of the counter (stream 0) and of power (stream 1), numbered from the epoch. */
typedef struct {
    uint64_t seed, stream;
    double period, phase, jitter;
} grid_t;

enum { COUNTER = 0, POWER = 1, NOISE_INSTANT = 2, NOISE_AVERAGE = 4 };

static grid_t grid_of(const settings_t *settings, int gpu, int stream) {
    uint64_t seed = (uint64_t)settings->seed * MOST_GPUS + (uint64_t)gpu;
    double jitter = settings->jitter_ms / 1e3;
    if (stream == COUNTER)
        return (grid_t){seed, COUNTER, settings->counter_period_ms / 1e3, settings->counter_phase_ms / 1e3, jitter};
    return (grid_t){seed, POWER, settings->power_period_ms / 1e3, settings->power_phase_ms / 1e3, jitter};
}

static double grid_time(const grid_t *grid, int64_t number) {
    double shift = grid->jitter > 0 ? grid->jitter * (2 * hashed(grid->seed, grid->stream, (uint64_t)number) - 1) : 0;
    return grid->phase + (double)number * grid->period + shift;
}

/* The last update up to a moment. */
static int64_t grid_last(const grid_t *grid, double time) {
    int64_t number = (int64_t)floor((time - grid->phase + grid->jitter) / grid->period);
    while (grid_time(grid, number) > time)
        number--;
    return number;
}

/* Joules of a counter that integrates only the last part of each period; `number` counts from 0. */
static double seen_joules(int gpu, const settings_t *settings, const grid_t *grid, int64_t number) {
    seen_t *seen = &sensor.gpus[gpu].seen;
    double rise = settings->rise_ms / 1e3, window = grid->period * settings->counter_seen_ratio;
    pthread_mutex_lock(&sensor.lock);
    if (number >= seen->room) {
        seen->room = 2 * number + 1024;
        seen->joules = realloc(seen->joules, (size_t)seen->room * sizeof(double));
    }
    for (; seen->count <= number; seen->count++) {
        double time = grid_time(grid, seen->count), at = time - settings->counter_delay_ms / 1e3;
        const board_t *board = &sensor.gpus[gpu].counted;
        double mean = (board_joules(board, at, rise) - board_joules(board, at - window, rise)) / window;
        double joules = mean * (time - grid_time(grid, seen->count - 1));
        seen->joules[seen->count] = seen->count ? seen->joules[seen->count - 1] + joules : 0;
    }
    double joules = number < 0 ? 0 : seen->joules[number];
    pthread_mutex_unlock(&sensor.lock);
    return joules;
}

/* The counter's own sum as of an update. */
static double counter_joules(int gpu, const settings_t *settings, const grid_t *grid, int64_t number) {
    if (settings->counter_seen_ratio < 1)
        return seen_joules(gpu, settings, grid, number);
    double time = grid_time(grid, number) - settings->counter_delay_ms / 1e3;
    return board_joules(&sensor.gpus[gpu].counted, time, settings->rise_ms / 1e3);
}

/* What the energy counter shows at a moment, millijoules. */
static unsigned long long shown_millijoules(int gpu, const settings_t *settings, double time) {
    grid_t grid = grid_of(settings, gpu, COUNTER);
    double start = settings->counter_start_joules;
    double begins[] = {settings->reset_at_ms / 1e3, (settings->restart_at_ms + settings->restart_ms) / 1e3};
    int happens[] = {settings->reset_at_ms >= 0, settings->restart_at_ms >= 0};
    int64_t number = grid_last(&grid, time);
    double joules = counter_joules(gpu, settings, &grid, number), latest = -1;
    for (int each = 0; each < 2; each++) {
        if (!happens[each] || time < begins[each] || begins[each] < latest)
            continue;
        int64_t first = grid_last(&grid, begins[each]);
        latest = begins[each];
        start = -counter_joules(gpu, settings, &grid, first);
    }
    return (unsigned long long)fmax(0, floor((start + joules) * 1e3 + 1e-6));
}

/* What a power reading shows at a moment, milliwatts. */
static unsigned int shown_milliwatts(int gpu, const settings_t *settings, double time, int is_average) {
    grid_t grid = grid_of(settings, gpu, POWER);
    double window = (is_average ? settings->average_window_ms : settings->power_window_ms) / 1e3;
    double rise = settings->rise_ms / 1e3;
    int64_t number = grid_last(&grid, time);
    double at = grid_time(&grid, number) - settings->power_delay_ms / 1e3;
    const board_t *board = &sensor.gpus[gpu].whole;
    double mean = (board_joules(board, at, rise) - board_joules(board, at - window, rise)) / window;
    double watts = settings->gain * mean + settings->offset_watts;
    if (settings->noise_watts > 0)
        watts += settings->noise_watts *
                 hashed_normal(grid.seed, is_average ? NOISE_AVERAGE : NOISE_INSTANT, (uint64_t)number);
    return (unsigned int)fmax(0, round(watts * 1e3 / settings->quantum_milliwatts) * settings->quantum_milliwatts);
}

#endif
