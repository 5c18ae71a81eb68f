/* A simulated libnvidia-ml.so.1: NVML's calls over the sensors of sensor.h.
 *
 * NVML_TRACE names the trace of power that a workload writes (tests/nvml/driver.py makes it and says how); without
 * one each GPU draws a constant power from nvmlInit on. settings.h lists what can be set, faults among it.
 * Every process that loads the library sees the same values at the same time.
 */
#include <nvml.h>

#include "sensor.h"

static int opened;
static _Atomic int users;
static _Atomic int64_t initialised_nano;
static _Atomic unsigned calls;

static int within(double time, double begin_ms, double length_ms) {
    return begin_ms >= 0 && time * 1e3 >= begin_ms && time * 1e3 < begin_ms + length_ms;
}

/* Wait in the driver: asleep as long as a sleep is sure to end in time, then awake. */
static void wait_until(int64_t deadline) {
    const int64_t oversleep = 80000;
    int64_t left = deadline - monotonic_nano() - oversleep;
    if (left > 0) {
        struct timespec sleep = {left / 1000000000, left % 1000000000};
        nanosleep(&sleep, NULL);
    }
    while (monotonic_nano() < deadline)
        ;
}

static double random_ratio(void) {
    static _Thread_local uint64_t number;
    return hashed((uint64_t)(uintptr_t)&number, (uint64_t)getpid(), (uint64_t)monotonic_nano() + ++number);
}

/* A call that has reached its device: when it was answered there, and how much longer it takes. */
typedef struct {
    int gpu;
    const settings_t *settings;
    double time;
    int64_t done;
} call_t;

static nvmlReturn_t call_begin(call_t *call, nvmlDevice_t device) {
    int gpu = (int)(uintptr_t)device - 1;
    if (!initialised_nano)
        return NVML_ERROR_UNINITIALIZED;
    if (gpu < 0 || gpu >= (int)sensor.settings[0]->gpus)
        return NVML_ERROR_INVALID_ARGUMENT;
    sensor_follow(gpu);
    const settings_t *settings = sensor.settings[gpu];
    int64_t now = monotonic_nano();
    double slow = pow(random_ratio(), 3), time = since_epoch(now);
    double micros = settings->latency_least_us + slow * (settings->latency_most_us - settings->latency_least_us);
    if (random_ratio() < settings->stall_ratio)
        micros += settings->stall_ms * 1e3;
    int64_t answer = now + (int64_t)(micros * 1e3 * random_ratio());
    if (within(time, settings->hang_at_ms, settings->hang_ms))
        answer = sensor.epoch_nano + (int64_t)((settings->hang_at_ms + settings->hang_ms) * 1e6);
    wait_until(answer);
    sensor_follow(gpu);
    *call = (call_t){gpu, settings, since_epoch(monotonic_nano()), now + (int64_t)(micros * 1e3)};
    double restart = settings->restart_at_ms, until = restart + settings->restart_ms;
    if (restart >= 0 && call->time * 1e3 >= restart && since_epoch(initialised_nano) * 1e3 < until)
        return NVML_ERROR_UNINITIALIZED;
    if (settings->lost_after_ms >= 0 && call->time * 1e3 > settings->lost_after_ms)
        return NVML_ERROR_GPU_IS_LOST;
    return NVML_SUCCESS;
}

static nvmlReturn_t call_end(const call_t *call, nvmlReturn_t code) {
    wait_until(call->done);
    return code;
}

static int is_blip(const call_t *call) {
    unsigned every = (unsigned)call->settings->blip_every;
    int counted = every && ++calls % every == 0;
    return counted || within(call->time, call->settings->blip_at_ms, call->settings->blip_ms);
}

/* A call that says a number that does not change. */
#define FIXED(device, place, number)                                                                                   \
    call_t call;                                                                                                       \
    nvmlReturn_t code = call_begin(&call, device);                                                                     \
    if (code != NVML_SUCCESS)                                                                                          \
        return code;                                                                                                   \
    *(place) = (number);                                                                                               \
    return call_end(&call, NVML_SUCCESS)

static nvmlReturn_t write_text(char *place, unsigned int length, const char *text) {
    return (unsigned)snprintf(place, length, "%s", text) < length ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlInit_v2(void) {
    pthread_mutex_lock(&sensor.lock);
    if (!opened && !(opened = sensor_open()))
        fprintf(stderr, "simulated NVML: can't read the trace %s; make it with tests/nvml/driver.py\n",
                getenv("NVML_TRACE"));
    pthread_mutex_unlock(&sensor.lock);
    if (!opened)
        return NVML_ERROR_UNKNOWN;
    sensor_follow(0);
    const settings_t *settings = sensor.settings[0];
    if (within(since_epoch(monotonic_nano()), settings->restart_at_ms, settings->restart_ms))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (settings->init == NVML_SUCCESS) {
        initialised_nano = monotonic_nano();
        users++;
    }
    return (nvmlReturn_t)(int)settings->init;
}
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return nvmlInit_v2();
}
nvmlReturn_t nvmlShutdown(void) {
    if (!users)
        return NVML_ERROR_UNINITIALIZED;
    if (!--users)
        initialised_nano = 0;
    return NVML_SUCCESS;
}
const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return write_text(version, length, "0.0-simulated");
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return write_text(version, length, "0.0-simulated");
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!initialised_nano)
        return NVML_ERROR_UNINITIALIZED;
    *count = (unsigned)sensor.settings[0]->gpus;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (!initialised_nano)
        return NVML_ERROR_UNINITIALIZED;
    if (index >= (unsigned)sensor.settings[0]->gpus)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = (nvmlDevice_t)(uintptr_t)(index + 1);
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    char text[64];
    snprintf(text, sizeof text, "GPU-00000000-0000-4000-8000-%012d", (int)(uintptr_t)device - 1);
    return write_text(uuid, length, text);
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    const char *last = strrchr(uuid, '-');
    unsigned int index = last ? (unsigned)strtoul(last + 1, NULL, 10) : MOST_GPUS;
    return index < MOST_GPUS ? nvmlDeviceGetHandleByIndex_v2(index, device) : NVML_ERROR_NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    FIXED(device, index, (unsigned)call.gpu);
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    (void)device;
    return write_text(name, length, "NVIDIA Simulated");
}
nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *architecture) {
    FIXED(device, architecture, NVML_DEVICE_ARCH_HOPPER);
}
nvmlReturn_t nvmlDeviceGetC2cModeInfoV(nvmlDevice_t device, nvmlC2cModeInfo_v1_t *info) {
    (void)device, (void)info;
    return NVML_ERROR_NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
    FIXED(device, mode, NVML_FEATURE_ENABLED);
}
nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode) {
    FIXED(device, mode, NVML_COMPUTEMODE_DEFAULT);
}

static nvmlReturn_t read_energy(const call_t *call, int blip, unsigned long long *millijoules) {
    if (call->settings->no_energy || blip)
        return NVML_ERROR_NOT_SUPPORTED;
    *millijoules = shown_millijoules(call->gpu, call->settings, call->time);
    return NVML_SUCCESS;
}
static nvmlReturn_t read_power(const call_t *call, int blip, double missing, int is_average,
                               unsigned int *milliwatts) {
    if (missing != 0)
        return NVML_ERROR_NOT_SUPPORTED;
    *milliwatts = blip ? 0 : shown_milliwatts(call->gpu, call->settings, call->time, is_average);
    return NVML_SUCCESS;
}

static void read_field(const call_t *call, int blip, nvmlFieldValue_t *value) {
    const settings_t *settings = call->settings;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    value->timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    value->latencyUsec = 0;
    value->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    switch (value->fieldId) {
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
    case NVML_FI_DEV_ENERGY:
        value->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        value->nvmlReturn = read_energy(call, blip, &value->value.ullVal);
        break;
    case NVML_FI_DEV_POWER_AVERAGE:
        value->nvmlReturn = read_power(call, blip, settings->no_average, 1, &value->value.uiVal);
        break;
    case NVML_FI_DEV_POWER_INSTANT:
        value->nvmlReturn = read_power(call, blip, settings->no_instant, 0, &value->value.uiVal);
        break;
    default: value->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    }
}

/* SUCCESS if the call as such went well: each entry has a code of its own. */
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    call_t call;
    nvmlReturn_t code = call_begin(&call, device);
    if (code != NVML_SUCCESS)
        return code;
    int blip = is_blip(&call);
    for (int each = 0; each < count; each++)
        read_field(&call, blip, &values[each]);
    return call_end(&call, NVML_SUCCESS);
}
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    call_t call;
    nvmlReturn_t code = call_begin(&call, device);
    return code != NVML_SUCCESS ? code : call_end(&call, read_energy(&call, is_blip(&call), millijoules));
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    call_t call;
    nvmlReturn_t code = call_begin(&call, device);
    if (code != NVML_SUCCESS)
        return code;
    const settings_t *settings = call.settings;
    int is_average = settings->usage_is_average != 0;
    return call_end(&call, read_power(&call, is_blip(&call), settings->no_usage, is_average, milliwatts));
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    FIXED(device, rates, ((nvmlUtilization_t){87, 40}));
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    const unsigned long long gib = 1ULL << 30;
    FIXED(device, memory, ((nvmlMemory_t){.total = 80 * gib, .free = 60 * gib, .used = 20 * gib}));
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t type, unsigned int *celsius) {
    (void)type;
    FIXED(device, celsius, 61);
}
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *megahertz) {
    FIXED(device, megahertz, type == NVML_CLOCK_MEM ? 2619 : 1755);
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *megahertz) {
    FIXED(device, megahertz, type == NVML_CLOCK_MEM ? 2619 : 1980);
}
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    FIXED(device, milliwatts, (unsigned)(call.settings->limit_watts * 1e3));
}
nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    FIXED(device, milliwatts, (unsigned)(call.settings->limit_watts * 1e3));
}
nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    FIXED(device, milliwatts, (unsigned)(call.settings->limit_watts * 1e3));
}
nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least,
                                                          unsigned int *most) {
    *most = 700000;
    FIXED(device, least, 200000);
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    (void)device, (void)reasons;
    return NVML_ERROR_NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_t *processes) {
    (void)processes;
    FIXED(device, count, 0);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_t *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}
