"""Sensors in virtual time: what a device shows of a trace whose truth is known.

The parameters are those published for real devices; each trial draws its own within their spread. The
estimator sees the readings and nothing else.
"""

from dataclasses import dataclass, replace

import numpy as np
from wattq.counter import Floats, Ints
from wattq.evidence import Evidence
from wattq.response import Response

from bench.accuracy.workload import NANO, Trace

# Stands for the window of a power reading that there is not.
_NO_WINDOW_SECONDS = 0.03


@dataclass(frozen=True)
class Sensor:
    """What a device's sensors are like.

    Attributes:
        name: Of the device.
        counter_seconds: Update period of the energy counter.
        power_seconds: Update period of the power reading; None: it shows none.
        window_seconds: Averaging window of the power reading.
        window_spread: Relative spread of the window over units.
        lag_seconds: Least and most delay of board and sensor.
        rise_seconds: Least and most time constant of the first-order rise.
        gain: Of the power reading against the counter.
        offset_watts: Likewise.
        noise_watts: Least and most standard deviation of a power reading.
        update_jitter_seconds: Of an update against its grid, uniform on both sides.
        counter_quantum_joules: Of the counter.
        tick_seconds: The device is read on this plain tick; None: locked to its updates.
        power_offset_seconds: Where the power's grid lies against the counter's; None: anywhere.
        idle_watts: Power at rest.
        scale: Factor of the reference workload's powers that suits the device.
        part_time: The counter adds up the means of this share of each period instead of the energy.
    """

    name: str
    counter_seconds: float
    power_seconds: float | None
    window_seconds: float = 0.0
    window_spread: float = 0.0
    lag_seconds: tuple[float, float] = (0.0, 0.002)
    rise_seconds: tuple[float, float] = (0.0005, 0.004)
    gain: float = 1.0
    offset_watts: float = 0.0
    noise_watts: tuple[float, float] = (0.3, 0.6)
    update_jitter_seconds: float = 0.001
    counter_quantum_joules: float = 0.001
    tick_seconds: float | None = None
    power_offset_seconds: float | None = None
    idle_watts: float = 95.0
    scale: float = 1.0
    part_time: float | None = None


_H100 = Sensor("h100", 0.1, 0.1, 0.025, 0.1, (0.0, 0.001))
SENSORS = {
    sensor.name: sensor
    for sensor in (
        Sensor("a100", 0.1, 0.10116, 0.025, 0.15, (0.0, 0.002), gain=0.954, offset_watts=-1.2,
               idle_watts=72.0, scale=0.6),
        replace(_H100, name="h100_100"),
        replace(_H100, name="h100_20", counter_seconds=0.02),
        Sensor("v100", 0.02, 0.02004, 0.0105, 0.05, (0.0, 0.001), idle_watts=45.0, scale=0.45),
        Sensor("rtx4090", 0.1, 0.1, 0.109, 0.1, (0.004, 0.008), gain=1.045, offset_watts=-22.6,
               idle_watts=50.0, scale=0.65),
        Sensor("gh200", 0.1, 0.1, 0.022, 0.1, (0.0, 0.005), idle_watts=150.0, scale=1.3),
        Sensor("rapl", 0.001, None, lag_seconds=(0.0, 0.0005), rise_seconds=(0.0002, 0.001),
               update_jitter_seconds=20e-6, counter_quantum_joules=61e-6, tick_seconds=0.01,
               idle_watts=40.0, scale=0.4),
        *(
            Sensor(f"l40s_{offset}", 0.1, 0.1, 0.1, 0.0, (0.003, 0.005), idle_watts=45.0, scale=0.5,
                   power_offset_seconds=offset / 1000)
            for offset in (0, 1, 5, 20, 50)
        ),
    )
}  # fmt: skip
"""By name."""


@dataclass(frozen=True)
class Drawn:
    """One unit of a device: the truth that the estimator is not told.

    Attributes:
        counter_seconds: Update period of the counter.
        power_seconds: Update period of the power reading.
        window_seconds: Its averaging window.
        counter_delay_seconds: Delay of the counter.
        power_delay_seconds: Delay of the power reading.
        rise_seconds: Time constant of the rise.
        gain: Of the power reading.
        offset_watts: Of the power reading.
        noise_watts: Standard deviation of its noise.
        counter_phase: Where the counter's grid lies, as a share of its period.
        power_phase_seconds: Where the power's grid lies after the counter's.
    """

    counter_seconds: float
    power_seconds: float
    window_seconds: float
    counter_delay_seconds: float
    power_delay_seconds: float
    rise_seconds: float
    gain: float
    offset_watts: float
    noise_watts: float
    counter_phase: float
    power_phase_seconds: float

    def response(self, part_time: float | None = None) -> Response:
        """Returns the truth in the estimator's own terms.

        Args:
            part_time: The share of each period that the counter looks at; None: all of it.
        """
        return Response(
            self.counter_delay_seconds,
            self.rise_seconds,
            self.power_delay_seconds,
            self.window_seconds or _NO_WINDOW_SECONDS,
            self.gain,
            self.offset_watts,
            part_time and part_time * self.counter_seconds,
        )


def draw(sensor: Sensor, rng: np.random.Generator) -> Drawn:
    """Draws one unit of a device."""
    stretch = 1 + rng.uniform(-0.002, 0.002)
    power = (sensor.power_seconds or sensor.counter_seconds) * stretch
    offset = sensor.power_offset_seconds
    window = sensor.window_seconds * (1 + rng.uniform(-1, 1) * sensor.window_spread)
    return Drawn(
        counter_seconds=sensor.counter_seconds * stretch,
        power_seconds=power,
        window_seconds=window * stretch,
        counter_delay_seconds=rng.uniform(*sensor.lag_seconds),
        power_delay_seconds=rng.uniform(*sensor.lag_seconds),
        rise_seconds=rng.uniform(*sensor.rise_seconds),
        gain=sensor.gain,
        offset_watts=sensor.offset_watts,
        noise_watts=rng.uniform(*sensor.noise_watts),
        counter_phase=rng.uniform(),
        power_phase_seconds=offset if offset is not None else rng.uniform(0, power),
    )


class _Board:
    """The power as it passes through delay and first-order rise: exact, stretch by stretch."""

    def __init__(self, trace: Trace, rise_seconds: float) -> None:
        length = np.diff(trace.start)
        decay = np.exp(-length / rise_seconds)
        level = np.empty(len(length) + 1)
        level[0] = trace.watts[0]
        for place, (watts, factor) in enumerate(zip(trace.watts.tolist(), decay.tolist(), strict=True)):
            level[place + 1] = watts + (level[place] - watts) * factor
        self._trace, self._level, self._rise = trace, level, rise_seconds

    def energy(self, time: Floats) -> Floats:
        """Returns the smeared energy up to each moment: what came in less what is still on its way."""
        trace = self._trace
        place = np.clip(np.searchsorted(trace.start, time, side="right") - 1, 0, len(trace.watts) - 1)
        age = time - trace.start[place]
        watts = trace.watts[place]
        level = watts + (self._level[place] - watts) * np.exp(-age / self._rise)
        return np.asarray(trace.energy(time) - self._rise * (level - self._level[0]))


def observe(sensor: Sensor, drawn: Drawn, trace: Trace, rng: np.random.Generator) -> Evidence:
    """Reads a device over a trace, as the sampler does."""
    board = _Board(trace, drawn.rise_seconds)
    begin, end = trace.start[0] + 0.2, trace.start[-1] - 0.05
    first = begin + drawn.counter_phase * drawn.counter_seconds
    update = _grid(first, end, drawn.counter_seconds, sensor.update_jitter_seconds, rng)
    quantum = sensor.counter_quantum_joules
    late = update - drawn.counter_delay_seconds
    joules = 5_000.0 + board.energy(late)
    if sensor.part_time is not None:
        window = sensor.part_time * drawn.counter_seconds
        means = (board.energy(late) - board.energy(late - window)) / window
        joules = 5_000.0 + np.cumsum(means * np.diff(update, prepend=update[0]))
    joules = np.floor(joules / quantum) * quantum
    if sensor.tick_seconds is not None:
        read, old, seen = _ticked(update, sensor.tick_seconds, begin, end, rng)
        joules = joules[seen]
    else:
        read, old = _locked(update, rng)
    if sensor.power_seconds is None:
        return Evidence.of_counter(_nano(read), _nano(old), joules)
    first += drawn.power_phase_seconds - drawn.counter_seconds
    update = _grid(first, end, drawn.power_seconds, sensor.update_jitter_seconds, rng)
    update = update[update > begin]
    late = update - drawn.power_delay_seconds
    mean = (board.energy(late) - board.energy(late - drawn.window_seconds)) / drawn.window_seconds
    watts = drawn.gain * mean + drawn.offset_watts + drawn.noise_watts * rng.standard_normal(len(mean))
    watts = np.round(watts, 3)
    power_read, power_old = _locked(update, rng)
    return Evidence(_nano(read), _nano(old), joules, _nano(power_read), _nano(power_old), watts)


def _grid(first: float, end: float, period: float, jitter: float, rng: np.random.Generator) -> Floats:
    """Returns the moments of updates: on a grid, each early or late by up to the jitter."""
    count = max(int((end - first) / period), 0)
    return np.asarray(first + np.arange(count) * period + rng.uniform(-jitter, jitter, count))


def _locked(update: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Returns (first new, last old) reading of each update, polled each millisecond around it.

    A sleep of 1 ms takes 1.065 ms at the median; a call takes up to 0.4 ms; one in fifty stalls for 5 ms.
    """
    gap = 1.065e-3 + rng.exponential(50e-6, len(update)) + rng.uniform(5e-6, 4e-4, len(update))
    gap = np.where(rng.uniform(size=len(update)) < 0.02, gap + 5e-3, gap)
    old = update - gap * rng.uniform(size=len(update))
    return old + gap, old


def _ticked(
    update: Floats, tick: float, begin: float, end: float, rng: np.random.Generator
) -> tuple[Floats, Floats, Ints]:
    """Returns (read, last old, number of the update shown) on a plain tick.

    The counter has moved since the tick before, so the sampler knows no more than that; its period
    tells the analysis the rest.
    """
    read = np.arange(begin, end, tick) + rng.exponential(80e-6, len(np.arange(begin, end, tick)))
    seen = np.searchsorted(update, read, side="right") - 1
    fresh = np.append(False, (seen[1:] > seen[:-1]) & (seen[:-1] >= 0))
    old = np.append(read[:1], read[:-1])
    return read[fresh], old[fresh], seen[fresh]


def _nano(seconds: Floats) -> Ints:
    return np.rint(seconds * NANO).astype(np.int64)
