"""Simulated hardware: H100 GPUs and RAPL domains whose power the server steers.

A stand-in for sensors, for trying wattd out and for tests; its devices say `simulated`
everywhere. It shows what such hardware shows: a GPU's counter moves every 100 ms by a quantum of
1 mJ, its power reading is the mean of the last 25 ms before an update; a RAPL counter moves every
millisecond and wraps at 32 bits of 61 uJ.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from wattd.config import SimulatedConfig
from wattd.control import Control
from wattd.values import Device, Domain, Reading, Source

_GPU_PERIOD_NANO = 100_000_000
_GPU_WINDOW_NANO = 25_000_000
_GPU_JITTER_NANO = 1_000_000
_GPU_IDLE_WATTS, _GPU_LIMIT_WATTS = 95.0, 700.0
_GPU_NOISE_WATTS = 0.5
_RAPL_PERIOD_NANO = 1_000_000
_RAPL_QUANTUM_MICROJOULES = 61
_RAPL_RANGE_MICROJOULES = 2**32 * _RAPL_QUANTUM_MICROJOULES
_PACKAGE_IDLE_WATTS, _DRAM_IDLE_WATTS = 60.0, 8.0


class _Load:
    """The true power and energy behind a simulated sensor; power holds between two looks at it."""

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts = watts
        self._power = 0.0
        self._nano = 0
        self.microjoules = 0.0
        self._past: deque[tuple[int, float]] = deque(maxlen=64)

    def advance(self, monotonic_nano: int) -> None:
        if self._nano:
            self.microjoules += self._power * (monotonic_nano - self._nano) / 1000
        self._past.append((monotonic_nano, self.microjoules))
        self._nano = monotonic_nano
        self._power = self._watts()

    def at(self, monotonic_nano: int) -> float:
        """True energy at a moment in the recent past, microjoules."""
        later_nano, later = self._past[-1]
        for nano, energy in reversed(self._past):
            if nano <= monotonic_nano:
                if later_nano == nano:
                    return energy
                share = (monotonic_nano - nano) / (later_nano - nano)
                return energy + (later - energy) * share
            later_nano, later = nano, energy
        return later


class SimulatedGpu:
    """An H100 as NVML shows it."""

    def __init__(self, device: Device, watts: Callable[[], float], seed: int) -> None:
        self.device = device
        self._random = random.Random(seed)  # noqa: S311 - noise, not a secret
        self._load = _Load(lambda: min(watts() or _GPU_IDLE_WATTS, _GPU_LIMIT_WATTS))
        self._next_nano = 0
        self._shown = Reading(None, None)

    def read(self, monotonic_nano: int) -> Reading:
        """What the GPU shows since its last update."""
        self._load.advance(monotonic_nano)
        if monotonic_nano < self._next_nano:
            return self._shown
        if not self._next_nano:
            self._next_nano = monotonic_nano - self._random.randrange(_GPU_PERIOD_NANO)
        behind = (monotonic_nano - self._next_nano) // _GPU_PERIOD_NANO
        update_nano = self._next_nano + behind * _GPU_PERIOD_NANO
        energy = self._load.at(update_nano)
        watts = (energy - self._load.at(update_nano - _GPU_WINDOW_NANO)) * 1000 / _GPU_WINDOW_NANO
        noisy = max(0.0, watts + self._random.gauss(0, _GPU_NOISE_WATTS))
        self._shown = Reading(int(energy) // 1000 * 1000, round(noisy, 3) or None)
        jitter = self._random.randint(-_GPU_JITTER_NANO, _GPU_JITTER_NANO)
        self._next_nano = update_nano + _GPU_PERIOD_NANO + jitter
        return self._shown

    def state(self) -> dict[str, Any]:
        """Device state that goes with the power."""
        watts = self._shown.power_watts or _GPU_IDLE_WATTS
        busy = max(0.0, (watts - _GPU_IDLE_WATTS) / (_GPU_LIMIT_WATTS - _GPU_IDLE_WATTS))
        return {
            "utilization_ratio": round(min(1.0, busy), 2),
            "memory_used_bytes": 40 * 2**30 if busy > 0 else 2**30,
            "memory_total_bytes": 80 * 2**30,
            "temperature_celsius": round(30 + watts * 0.06),
            "sm_clock_hertz": 1_980_000_000 if busy > 0 else 345_000_000,
            "power_limit_watts": _GPU_LIMIT_WATTS,
            "throttle_reasons": 0 if busy > 0 else 1,
        }


class SimulatedRapl:
    """A RAPL zone as powercap shows it."""

    def __init__(self, device: Device, watts: Callable[[], float], idle_watts: float) -> None:
        self.device = device
        self._load = _Load(lambda: watts() or idle_watts)

    def read(self, monotonic_nano: int) -> Reading:
        """The counter as of the last full millisecond."""
        self._load.advance(monotonic_nano)
        energy = self._load.at(monotonic_nano // _RAPL_PERIOD_NANO * _RAPL_PERIOD_NANO)
        quanta = int(energy) // _RAPL_QUANTUM_MICROJOULES
        return Reading(quanta * _RAPL_QUANTUM_MICROJOULES % _RAPL_RANGE_MICROJOULES, None)

    def state(self) -> dict[str, Any]:
        """RAPL has no state."""
        return {}


class Simulated:
    """The GPUs, packages and DRAM domains that the configuration asks for."""

    def __init__(self, config: SimulatedConfig, control: Control, first_number: int) -> None:
        """Make the simulated node.

        Args:
            config: How many devices of each kind, and the seed.
            control: Where the server says how much each device draws.
            first_number: Number that the sampler gives the first device.
        """
        self._config = config
        self._control = control
        self._first_number = first_number

    def open(self) -> list[SimulatedGpu | SimulatedRapl]:
        """Make the devices."""
        config, channels = self._config, list[SimulatedGpu | SimulatedRapl]()

        def watts() -> Callable[[], float]:
            number = self._first_number + len(channels)
            return lambda: self._control.watts(number)

        for index in range(config.gpus):
            uuid = f"GPU-51a71a7e-0000-4000-8000-{index:012d}"
            gpu = _device(Domain.GPU, index, uuid, 0)
            channels.append(SimulatedGpu(gpu, watts(), config.seed + index))
        for domain, idle_watts in ((Domain.PACKAGE, _PACKAGE_IDLE_WATTS), (Domain.DRAM, _DRAM_IDLE_WATTS)):
            for index in range(config.packages):
                zone = _device(domain, index, f"{domain}-{index}", _RAPL_RANGE_MICROJOULES)
                channels.append(SimulatedRapl(zone, watts(), idle_watts))
        return channels

    def reopen(self) -> None:
        """It is always there."""

    def close(self) -> None:
        """There is nothing to let go of."""


def _device(domain: Domain, index: int, name: str, counter_range: int) -> Device:
    gpu = domain is Domain.GPU
    return Device(
        device=name,
        index=index,
        domain=domain,
        source=Source.SIMULATED,
        sensor="simulated",
        model="Simulated H100" if gpu else "Simulated RAPL",
        counter_range_microjoules=counter_range,
        update_nano=_GPU_PERIOD_NANO if gpu else _RAPL_PERIOD_NANO,
    )
