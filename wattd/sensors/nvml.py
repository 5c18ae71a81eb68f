"""NVIDIA GPUs by NVML: energy counter and power in one driver call, addressed by UUID.

NVML counts millijoules since the driver was loaded and shows milliwatts. A call may succeed
while single fields do not, so each field's own return code is looked at. On many GPUs
`GetPowerUsage` is a one-second average; field 186 is the instantaneous reading, where it exists.
"""

import contextlib
import ctypes
import threading
import time
from typing import Any, NoReturn

import pynvml

from wattd.sensors.base import ReadingError, SensorLostError, SensorUnavailableError
from wattd.values import Device, Domain, Reading, Source

_ENERGY_FIELD = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_POWER_FIELD = pynvml.NVML_FI_DEV_POWER_INSTANT
_AVERAGE_FIELD = pynvml.NVML_FI_DEV_POWER_AVERAGE
_FIELDS = (_ENERGY_FIELD, _POWER_FIELD, _AVERAGE_FIELD)
_SUCCESS = pynvml.NVML_SUCCESS
_NEED_REOPENING = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,  # the handle of a device that went and came again
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)
_FORGOTTEN = frozenset({pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
"""The driver itself was unloaded: there is no session with it any more."""

_FIRST_READINGS = 3
_BETWEEN_FIRST_READINGS_SECONDS = 0.04
"""A field may be NotSupported for a moment; what a GPU has is not decided by that."""

_REMEDIES = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver: modprobe nvidia",
    pynvml.NVML_ERROR_NO_PERMISSION: "give this user access to /dev/nvidia*",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "reload the driver and restart wattd: its library was updated",
}


class _Request(threading.local):
    """What is asked in one call; each thread has its own, for a call that is stuck may still write to it."""

    def __init__(self) -> None:
        self.fields = (pynvml.c_nvmlFieldValue_t * len(_FIELDS))()
        for place, field in zip(self.fields, _FIELDS, strict=True):
            place.fieldId = field
        self.energy, self.power, self.average = self.fields
        self.pointer = ctypes.byref(self.fields)


class NvmlChannel:
    """One GPU. The request is prepared once; reading is one call through ctypes, which lets go of the GIL.

    Attributes:
        lost_code: Why it answers no more until it is attached anew; NVML_SUCCESS while it does.
    """

    def __init__(self, index: int, handle: Any) -> None:
        self._handle = handle
        self._request = _Request()
        self._get_field_values = pynvml.nvmlLib.nvmlDeviceGetFieldValues
        self._plain_power = False
        self.lost_code = _SUCCESS
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
        """Find out what this GPU shows; what is missing is asked for again."""
        reading = self.read(0)
        for _ in range(_FIRST_READINGS):
            if reading.energy_microjoules is not None and reading.power_watts is not None:
                return reading
            time.sleep(_BETWEEN_FIRST_READINGS_SECONDS)
            energy, watts, average = self.read(0)
            reading = Reading(reading.energy_microjoules or energy, reading.power_watts or watts, average)
        if reading.power_watts is None:
            self._plain_power = True
            reading = reading._replace(power_watts=self._usage_milliwatts() / 1000 or None)
        return reading

    def attach(self) -> None:
        """Find the GPU anew by its UUID.

        Raises:
            pynvml.NVMLError: It is not there.
        """
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.device.device.encode())
        self.lost_code = _SUCCESS

    def read(self, monotonic_nano: int) -> Reading:
        """Counter and powers. A field that fails or shows 0 is absent: a GPU that is on draws power."""
        request = self._request
        code = self._get_field_values(self._handle, len(_FIELDS), request.pointer)
        if code != _SUCCESS:
            self._raise(code)
        energy, power, average = request.energy, request.power, request.average
        microjoules = energy.value.ullVal * 1000 if energy.nvmlReturn == _SUCCESS else 0
        if self._plain_power:
            milliwatts = self._usage_milliwatts()
        else:
            milliwatts = power.value.uiVal if power.nvmlReturn == _SUCCESS else 0
        average_milliwatts = average.value.uiVal if average.nvmlReturn == _SUCCESS else 0
        return Reading(microjoules or None, milliwatts / 1000 or None, average_milliwatts / 1000 or None)

    def _raise(self, code: int) -> NoReturn:
        reason = _text(pynvml.nvmlErrorString(code))
        if code in _NEED_REOPENING:
            self.lost_code = code
            raise SensorLostError(reason)
        raise ReadingError(reason)

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
        self._channels: list[NvmlChannel] = []

    def open(self) -> list[NvmlChannel]:
        """Load NVML and open each GPU.

        Raises:
            SensorUnavailableError: No driver, no GPU, or no right to it.
        """
        count = self._initialise()
        if not hasattr(pynvml.nvmlLib, "nvmlDeviceGetFieldValues"):
            self.close()
            raise SensorUnavailableError("this NVIDIA driver has no field values", "install a newer driver")
        faults = list[str]()
        for index in range(count):
            try:
                self._channels.append(NvmlChannel(index, pynvml.nvmlDeviceGetHandleByIndex(index)))
            except (pynvml.NVMLError, ReadingError) as error:
                faults.append(f"GPU {index}: {error}")
        if not self._channels:
            self.close()
            raise SensorUnavailableError("; ".join(faults) or "NVML shows no GPU")
        return self._channels

    def _initialise(self) -> int:
        """Begin with the driver; returns how many GPUs it has."""
        try:
            pynvml.nvmlInit()
            self._open = True
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            self.close()
            denied = error.value == pynvml.NVML_ERROR_NO_PERMISSION
            raise SensorUnavailableError(str(error), _REMEDIES.get(error.value, ""), denied=denied) from error

    def reopen(self) -> None:
        """Find lost GPUs again by their UUIDs; begin anew with a driver that has forgotten us.

        Raises:
            SensorUnavailableError: The driver, or each GPU that is looked for, is not there.
        """
        wanted = [channel for channel in self._channels if channel.lost_code != _SUCCESS]
        if len(wanted) == len(self._channels) or any(channel.lost_code in _FORGOTTEN for channel in wanted):
            self.close()
            self._initialise()
            wanted = self._channels
        faults = list[str]()
        for channel in wanted:
            try:
                channel.attach()
            except pynvml.NVMLError as error:
                faults.append(f"{channel.device.device}: {error}")
        if faults and len(faults) == len(wanted):
            raise SensorUnavailableError("; ".join(faults))

    def close(self) -> None:
        """Let go of the driver."""
        if self._open:
            self._open = False
            # A driver that was unloaded has let go of us already.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def _memory_bytes(handle: Any) -> tuple[int, int]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return memory.used, memory.total


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
