"""The sensors, one file each, and the table of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from wattd.config import Config
from wattd.control import Control
from wattd.sensors.base import Channel, ReadingError, Sensor, SensorLostError, SensorUnavailableError
from wattd.sensors.cpu_estimate import CpuEstimate
from wattd.sensors.nvml import Nvml
from wattd.sensors.rapl import Rapl
from wattd.sensors.simulated import Simulated

# Name -> how to make it from the configuration, the server's control block and the number that its
# first device will have. Order matters: what is measured stands before what is estimated.
SENSORS: Mapping[str, Callable[[Config, Control, int], Sensor]] = MappingProxyType(
    {
        "nvml": lambda _config, _control, _number: Nvml(),
        "rapl": lambda _config, _control, _number: Rapl(),
        "cpu_estimate": lambda config, _control, _number: CpuEstimate(config.cpu_estimate),
        "simulated": lambda config, control, number: Simulated(config.simulated, control, number),
    }
)

FOLLOWED = frozenset({"nvml"})
"""Sensors whose updates are slow, and regular enough that their period can be learned (edges.py)."""

__all__ = [
    "FOLLOWED",
    "SENSORS",
    "Channel",
    "ReadingError",
    "Sensor",
    "SensorLostError",
    "SensorUnavailableError",
]
