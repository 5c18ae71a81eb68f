"""A GPU in virtual time: counter and power change on grids of their own, with jitter; calls take time."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Self

from wattd.sensors import ReadingError
from wattd.values import Device, Domain, Reading, Source

MILLISECOND = 1_000_000
SECOND = 1_000_000_000


class Clock:
    """A clock that only sleeping and sensor calls move; who sleeps wakes a little late."""

    def __init__(self, seed: int = 0, late_nano: float = 60_000) -> None:
        self.now = 1000 * SECOND
        self._random = random.Random(seed)  # noqa: S311 - noise, not a secret
        self._late_nano = late_nano

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        late = self._random.expovariate(1 / self._late_nano) if self._late_nano else 0
        self.now += round(seconds * SECOND + late)


class Updates:
    """The moments at which a quantity changes, and its value from each on.

    Attributes:
        nanos: The moments so far.
    """

    def __init__(self, moments: Iterator[float], values: Callable[[int], float | None]) -> None:
        self.nanos = [next(moments)]
        self._moments = moments
        self._values = values

    def at(self, nano: int) -> float | None:
        while self.nanos[-1] <= nano:
            self.nanos.append(next(self._moments))
        return self._values(len(self.nanos))

    def holds(self, lower: int, upper: int) -> bool:
        """Whether the value changes in (lower, upper]."""
        return any(lower < nano <= upper for nano in self.nanos)


def grid(
    seed: int,
    period_ms: float,
    jitter_ms: float = 0.0,
    *,
    phase: float | None = None,
    adds_up: bool = False,
    drift: float = 0.0,
    begin: int = 1000 * SECOND,
) -> Iterator[float]:
    """Moments of updates.

    Args:
        seed: Of phase and jitter.
        period_ms: Mean time between two updates.
        jitter_ms: Standard deviation of an update (uniform where it adds up, else normal).
        phase: Of the first update, as a share of the period; random if None.
        adds_up: The next update counts from this one, not from the grid.
        drift: Relative change of the period from one update to the next.
        begin: When it begins.
    """
    rng = random.Random(seed)  # noqa: S311 - noise, not a secret
    period = period_ms * MILLISECOND
    place = begin + (rng.random() if phase is None else phase) * period
    while True:
        if adds_up:
            place += period + rng.uniform(-1, 1) * jitter_ms * 1.7320508 * MILLISECOND
            yield place
        else:
            place += period
            yield place + rng.gauss(0, jitter_ms) * MILLISECOND
        period *= 1 + drift


class UpdatingChannel:
    """One GPU of `grid`s.

    Attributes:
        energy: Updates of the counter.
        power: Updates of the power reading.
        calls: Moments of the calls.
        fault: What the next calls raise; None for readings.
    """

    def __init__(
        self,
        clock: Clock,
        energy: Iterator[float],
        power: Iterator[float],
        *,
        call_nano: int = 20_000,
        number: int = 0,
        watts: Callable[[int], float | None] = lambda update: 300.0 + update % 97,
        sensor: str = "nvml",
        average: float | None = None,
        counts: bool = True,
    ) -> None:
        self._average = average
        self.device = Device(
            device=f"GPU-{number}",
            index=number,
            domain=Domain.GPU,
            source=Source.MEASURED,
            sensor=sensor,
            counter_range_microjoules=0 if counts else None,
        )
        self._clock = clock
        self._call_nano = call_nano
        self.energy = Updates(energy, lambda update: 10**9 + update * 30_000_000)
        self.power = Updates(power, watts)
        self.calls: list[int] = []
        self.fault: str | None = None

    def read(self, monotonic_nano: int) -> Reading:
        self.calls.append(self._clock.now)
        middle = self._clock.now + self._call_nano // 2
        self._clock.now += self._call_nano
        if self.fault is not None:
            raise ReadingError(self.fault)
        energy = None if self.device.counter_range_microjoules is None else self.energy.at(middle)
        return Reading(None if energy is None else int(energy), self.power.at(middle), self._average)

    def state(self) -> dict[str, Any]:
        return {}


class Watch:
    """A sleep that also tells, and may change what happens at a moment."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.events: list[tuple[int, Callable[[], object]]] = []

    def at(self, nano: int, event: Callable[[], object]) -> Self:
        self.events.append((nano, event))
        return self

    def __call__(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        for nano, event in list(self.events):
            if self.clock.now >= nano:
                self.events.remove((nano, event))
                event()


def widths(edges: list[Any]) -> list[float]:
    """How wide the brackets of edges are, milliseconds, the narrowest first."""
    return sorted((edge.read_nano - edge.old_nano) / MILLISECOND for edge in edges if edge.old_nano)


def steps(nanos: list[int]) -> list[float]:
    """Time between each two, milliseconds."""
    return [(later - earlier) / MILLISECOND for earlier, later in pairwise(nanos)]
