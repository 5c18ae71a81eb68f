"""NVIDIA GPUs by NVML: energy counter and power in one driver call, addressed by UUID.

NVML counts millijoules since the driver was loaded and shows milliwatts. A call may succeed
while single fields do not, so each field's own return code is looked at. On many GPUs
`GetPowerUsage` is a one-second average; field 186 is the instantaneous reading, where it exists.
"""

import ctypes
from typing import Any

import pynvml

from wattd.sensors.base import ReadingError, SensorUnavailableError
from wattd.values import Device, Domain, Reading, Source

_ENERGY_FIELD = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_POWER_FIELD = pynvml.NVML_FI_DEV_POWER_INSTANT
_AVERAGE_FIELD = pynvml.NVML_FI_DEV_POWER_AVERAGE
_SUCCESS = pynvml.NVML_SUCCESS
_REMEDIES = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver: modprobe nvidia",
    pynvml.NVML_ERROR_NO_PERMISSION: "give this user access to /dev/nvidia*",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "reload the driver or reboot: its library was updated",
}


class NvmlChannel:
    """One GPU. The request is prepared once; reading is one call through ctypes, which lets go of the GIL."""

    def __init__(self, index: int, handle: Any) -> None:
        self._handle = handle
        self._fields = (pynvml.c_nvmlFieldValue_t * 3)()
        self._fields[0].fieldId = _ENERGY_FIELD
        self._fields[1].fieldId = _POWER_FIELD
        self._fields[2].fieldId = _AVERAGE_FIELD
        self._get_field_values = pynvml.nvmlLib.nvmlDeviceGetFieldValues
        self._plain_power = False
        energy, watts, _ = self._first_reading()
        self.device = Device(
            device=_text(pynvml.nvmlDeviceGetUUID(handle)),
            index=index,
            domain=Domain.GPU,
            source=Source.MEASURED,
            sensor="nvml",
            model=_text(pynvml.nvmlDeviceGetName(handle)),
            counter_range_microjoules=None if energy is None else 0,
        )
        if energy is None and watts is None:
            raise ReadingError("shows neither energy nor power")

    def _first_reading(self) -> Reading:
        """Find out what this GPU shows."""
        reading = self.read(0)
        if reading.power_watts is None:
            self._plain_power = True
            reading = self.read(0)
        return reading

    def read(self, monotonic_nano: int) -> Reading:
        """Counter and power. A field that fails or shows 0 is absent: a GPU that is on draws power."""
        fields = self._fields
        code = self._get_field_values(self._handle, 3, ctypes.byref(fields))
        if code != _SUCCESS:
            raise ReadingError(pynvml.nvmlErrorString(code))
        energy = fields[0].value.ullVal if fields[0].nvmlReturn == _SUCCESS else 0
        if self._plain_power:
            milliwatts = self._usage_milliwatts()
        else:
            milliwatts = fields[1].value.uiVal if fields[1].nvmlReturn == _SUCCESS else 0
        average = fields[2].value.uiVal if fields[2].nvmlReturn == _SUCCESS else 0
        return Reading(energy * 1000 or None, milliwatts / 1000 or None, average / 1000 or None)

    def _usage_milliwatts(self) -> int:
        try:
            return int(pynvml.nvmlDeviceGetPowerUsage(self._handle))
        except pynvml.NVMLError:
            return 0

    def state(self) -> dict[str, Any]:
        """Utilisation, memory, temperature, clock, power limit and throttle reasons, as far as shown."""
        handle, state = self._handle, dict[str, Any]()
        for keys, ask in (
            (("utilization_ratio",), lambda: (pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,)),
            (("memory_used_bytes", "memory_total_bytes"), lambda: _memory_bytes(handle)),
            (
                ("temperature_celsius",),
                lambda: (pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),),
            ),
            (
                ("sm_clock_hertz",),
                lambda: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1_000_000,),
            ),
            (("power_limit_watts",), lambda: (pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,)),
            (("throttle_reasons",), lambda: (pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),)),
        ):
            try:
                state.update(zip(keys, ask(), strict=True))
            except pynvml.NVMLError:
                continue  # this GPU does not show it: absent
        return state


class Nvml:
    """All GPUs that NVML shows."""

    def __init__(self) -> None:
        self._open = False

    def open(self) -> list[NvmlChannel]:
        """Load NVML and open each GPU.

        Raises:
            SensorUnavailableError: No driver, no GPU, or no right to it.
        """
        try:
            pynvml.nvmlInit()
            self._open = True
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.close()
            denied = error.value == pynvml.NVML_ERROR_NO_PERMISSION
            raise SensorUnavailableError(str(error), _REMEDIES.get(error.value, ""), denied=denied) from error
        channels, faults = list[NvmlChannel](), list[str]()
        for index in range(count):
            try:
                channels.append(NvmlChannel(index, pynvml.nvmlDeviceGetHandleByIndex(index)))
            except (pynvml.NVMLError, ReadingError) as error:
                faults.append(f"GPU {index}: {error}")
        if not channels:
            self.close()
            raise SensorUnavailableError("; ".join(faults) or "NVML shows no GPU")
        return channels

    def close(self) -> None:
        """Let go of the driver."""
        if self._open:
            self._open = False
            pynvml.nvmlShutdown()


def _memory_bytes(handle: Any) -> tuple[int, int]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return memory.used, memory.total


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
