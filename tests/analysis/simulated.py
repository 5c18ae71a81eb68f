"""Runs and sensors in virtual time, small enough for tests, and the questions that tests ask of them."""

from typing import Any

import numpy as np
from wattq.attribution import Attributed, attribute
from wattq.clocks import Clock
from wattq.counter import Counter, Device, Floats, Ints, Readings, locate
from wattq.evidence import Evidence, Series, power_series
from wattq.fit import Fit
from wattq.overlap import share
from wattq.problem import Noise
from wattq.response import NAMES, Response
from wattq.sweep import union

from bench.accuracy.simulator import SENSORS, Drawn, Sensor, draw, observe
from bench.accuracy.workload import Trace, Workload, run

NO_GAPS: Ints = np.zeros((0, 2), dtype=np.int64)
NO_CLOCK = Clock(np.zeros(0, dtype=np.int64), np.zeros(0))
GPU = Device("node", "GPU-0", "gpu", "simulated", "virtual", power_limit_watts=700.0)


class Simulated:
    """A unit of a device over one run.

    Attributes:
        sensor: What the device is like.
        drawn: The unit.
        trace: What happened.
        evidence: What was shown of it.
    """

    def __init__(self, sensor: str, seed: int, **workload: Any) -> None:
        rng = np.random.default_rng(seed)
        self.sensor: Sensor = SENSORS[sensor]
        self.drawn: Drawn = draw(self.sensor, rng)
        scaled = Workload(**workload).scaled(self.sensor.scale, self.sensor.idle_watts)
        self.trace: Trace = run(scaled, rng)
        self.evidence: Evidence = observe(self.sensor, self.drawn, self.trace, rng)

    @property
    def counter(self) -> Counter:
        """The located edges of the counter."""
        seen = self.evidence
        return locate(Readings(seen.energy_read_nano, seen.energy_old_nano, seen.energy_joules))

    @property
    def power(self) -> Series:
        """The edges of the power reading."""
        return power_series(self.evidence)

    @property
    def response(self) -> Response:
        """The truth about the sensor."""
        return self.drawn.response()

    @property
    def truth(self) -> dict[str, float]:
        """Joules that each row caused at the die."""
        return dict(zip(self.trace.pieces.rows, self.trace.truth.tolist(), strict=True))

    @property
    def rise(self) -> float:
        """What the counter rose by over the run, joules."""
        pieces = self.trace.pieces
        return float(self.counter.rise(pieces.start[:1], pieces.stop[-1:])[0])

    def attributed(
        self, measured: Fit | None = None, *, power: bool = True, device: Device = GPU, gaps: Ints = NO_GAPS
    ) -> Attributed:
        """Returns what the regression says."""
        phases, pieces = self.trace.phases, self.trace.pieces
        shown = self.power if power else self.power.between(0, 0)
        return attribute(
            self.counter,
            shown,
            NO_CLOCK,
            device,
            cut=(phases, pieces, union(phases.begin, phases.end, phases.name)),
            gaps=gaps,
            overlap=share(self.counter, device, pieces, gaps),
            measured=measured,
        )


def known(response: Response, share: float = 0.02) -> Fit:
    """Returns a response as if it had been measured, to a few per cent."""
    deviation = np.array([1e-4, share, 1e-4, share, 0.01 * share, 1.0])
    return Fit(response, np.diag(deviation**2), Noise(), np.zeros(0), np.inf)


def deviations(fit: Fit, truth: Response) -> dict[str, float]:
    """Returns by how many of its own standard deviations each parameter is off."""
    off: Floats = (fit.response.vector() - truth.vector()) / np.sqrt(np.diag(fit.covariance))
    return dict(zip(NAMES, off.tolist(), strict=True))


def half_widths(found: Attributed) -> Floats:
    """Returns the half-width of each row, joules."""
    return np.hypot(found.shares.statistical, found.shares.response)
