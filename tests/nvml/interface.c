/* What the simulated library relies on in NVML's interface, as assertions of the compiler.
 *
 * Built with -I include this checks our own header, with -I to NVIDIA's nvml.h the real one: both must pass.
 * The library itself is included, so that each of its functions is held to the header's prototype.
 */
#include <stddef.h>

#include "libnvidia-ml.c"

#define SAME(found, expected) _Static_assert((found) == (expected), #found " is " #expected)

SAME(sizeof(nvmlFieldValue_t), 40);
SAME(offsetof(nvmlFieldValue_t, fieldId), 0);
SAME(offsetof(nvmlFieldValue_t, scopeId), 4);
SAME(offsetof(nvmlFieldValue_t, timestamp), 8);
SAME(offsetof(nvmlFieldValue_t, latencyUsec), 16);
SAME(offsetof(nvmlFieldValue_t, valueType), 24);
SAME(offsetof(nvmlFieldValue_t, nvmlReturn), 28);
SAME(offsetof(nvmlFieldValue_t, value), 32);
SAME(sizeof(nvmlValue_t), 8);
SAME(sizeof(nvmlUtilization_t), 8);
SAME(offsetof(nvmlUtilization_t, memory), 4);
SAME(sizeof(nvmlMemory_t), 24);
SAME(offsetof(nvmlMemory_t, free), 8);
SAME(offsetof(nvmlMemory_t, used), 16);
SAME(sizeof(nvmlProcessInfo_t), 24);
SAME(offsetof(nvmlProcessInfo_t, usedGpuMemory), 8);
SAME(sizeof(nvmlC2cModeInfo_v1_t), 4);

SAME(NVML_SUCCESS, 0);
SAME(NVML_ERROR_UNINITIALIZED, 1);
SAME(NVML_ERROR_INVALID_ARGUMENT, 2);
SAME(NVML_ERROR_NOT_SUPPORTED, 3);
SAME(NVML_ERROR_NO_PERMISSION, 4);
SAME(NVML_ERROR_NOT_FOUND, 6);
SAME(NVML_ERROR_INSUFFICIENT_SIZE, 7);
SAME(NVML_ERROR_DRIVER_NOT_LOADED, 9);
SAME(NVML_ERROR_GPU_IS_LOST, 15);
SAME(NVML_ERROR_LIB_RM_VERSION_MISMATCH, 18);
SAME(NVML_ERROR_UNKNOWN, 999);
SAME(NVML_VALUE_TYPE_UNSIGNED_INT, 1);
SAME(NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, 3);
SAME(NVML_FEATURE_ENABLED, 1);
SAME(NVML_TEMPERATURE_GPU, 0);
SAME(NVML_COMPUTEMODE_DEFAULT, 0);
SAME(NVML_CLOCK_SM, 1);
SAME(NVML_CLOCK_MEM, 2);
SAME(NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 83);
SAME(NVML_FI_DEV_POWER_AVERAGE, 185);
SAME(NVML_FI_DEV_POWER_INSTANT, 186);
SAME(NVML_FI_DEV_ENERGY, 191);
SAME(NVML_DEVICE_ARCH_HOPPER, 9);
