/* A simulated libnvidia-ml.so.1: what a driver shows of two GPUs that draw a known power.
 *
 * The structures are those of NVIDIA's public nvml.h as pynvml declares them. Scenario by environment:
 *   NVML_WATTS            power of each GPU, watts (default 300)
 *   NVML_PERIOD_MS        update period of counter and power (default 100)
 *   NVML_INIT             return code of nvmlInit (default 0)
 *   NVML_NO_INSTANT       field 186 is not supported: power only by GetPowerUsage
 *   NVML_NO_ENERGY        field 83 is not supported
 *   NVML_BLIP_EVERY       every n-th call shows 0 mW and energy NotSupported (default: never)
 *   NVML_LOST_AFTER_MS    the GPUs are lost (error 15) this long after nvmlInit
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; int si; unsigned short us; } value_t;
typedef struct { uint32_t field_id, scope_id; int64_t timestamp, latency_usec; int value_type, result; value_t value; } field_value_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, GPU_IS_LOST = 15, ENERGY = 83, POWER_INSTANT = 186 };

static struct timespec start;
static unsigned calls;

static double setting(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text && *text ? atof(text) : otherwise;
}

static double elapsed_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - start.tv_sec) * 1e3 + (now.tv_nsec - start.tv_nsec) / 1e6;
}

static int lost(void) {
    double after = setting("NVML_LOST_AFTER_MS", -1);
    return after >= 0 && elapsed_ms() > after;
}

/* Millijoules as of the last update; the counter starts well above 0, as a driver's that has run for long. */
static unsigned long long energy_mj(void) {
    double period = setting("NVML_PERIOD_MS", 100);
    double updates = (unsigned long long)(elapsed_ms() / period);
    return 1000000000ULL + (unsigned long long)(updates * period * setting("NVML_WATTS", 300));
}

int nvmlInit_v2(void) { clock_gettime(CLOCK_MONOTONIC, &start); return (int)setting("NVML_INIT", 0); }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) { *handle = (void *)(uintptr_t)(index + 1); return SUCCESS; }
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-00000000-0000-4000-8000-%012d", (int)(uintptr_t)handle - 1);
    return SUCCESS;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) { (void)handle; snprintf(name, length, "NVIDIA Simulated"); return SUCCESS; }

int nvmlDeviceGetFieldValues(void *handle, int count, field_value_t *values) {
    (void)handle;
    if (lost()) return GPU_IS_LOST;
    int every = (int)setting("NVML_BLIP_EVERY", 0);
    int blip = every && ++calls % every == 0;
    for (int i = 0; i < count; i++) {
        values[i].result = SUCCESS;
        if (values[i].field_id == ENERGY && !getenv("NVML_NO_ENERGY") && !blip)
            values[i].value.ull = energy_mj();
        else if (values[i].field_id == POWER_INSTANT && !getenv("NVML_NO_INSTANT"))
            values[i].value.ui = blip ? 0 : (unsigned)(setting("NVML_WATTS", 300) * 1000);
        else
            values[i].result = NOT_SUPPORTED;
    }
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *milliwatts) {
    (void)handle;
    *milliwatts = (unsigned)(setting("NVML_WATTS", 300) * 1000);
    return lost() ? GPU_IS_LOST : SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *rates) { (void)handle; rates->gpu = 87; rates->memory = 40; return SUCCESS; }
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    (void)handle;
    memory->total = 80ULL << 30; memory->used = 20ULL << 30; memory->free = 60ULL << 30;
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned int *celsius) { (void)handle; (void)sensor; *celsius = 61; return SUCCESS; }
int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned int *mhz) { (void)handle; (void)kind; *mhz = 1755; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned int *milliwatts) { (void)handle; *milliwatts = 400000; return SUCCESS; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) { (void)handle; (void)reasons; return NOT_SUPPORTED; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "error"; }
