"""Workloads whose truth is known: what a die draws, phase by phase, and the marks of it."""

from dataclasses import dataclass, replace

import numpy as np
from wattq.counter import Floats, Ints
from wattq.sweep import Phases, Pieces, cut

NANO = 1_000_000_000
_GAP_SECONDS = 20e-6
_SUBSTEP_SECONDS = 1e-3
_AROUND_SECONDS = 1.0
_MOST_SIGMAS = 3.0


@dataclass(frozen=True)
class Kind:
    """A phase of a step.

    Attributes:
        name: Of the phase.
        seconds: Mean duration.
        watts: Mean power.
    """

    name: str
    seconds: float
    watts: float


REFERENCE = (
    Kind("data_load", 0.008, 130.0),
    Kind("teacher_forward", 0.060, 620.0),
    Kind("student_forward", 0.035, 450.0),
    Kind("backward", 0.070, 540.0),
    Kind("optimizer_step", 0.012, 320.0),
)
"""The distillation step of the published comparison of tools."""


@dataclass(frozen=True)
class Workload:
    """How a run goes.

    Attributes:
        kinds: The phases of a step, in order.
        steps: How many steps.
        duration_jitter: Standard deviation of each duration, as a share of it.
        power_jitter: The same of each phase's power.
        scale: Factor of all powers, so that a workload suits a small device.
        idle_watts: Power before, after and between.
        shape: Power within a phase: `constant`, `decaying`, `ramping`; `drifting` over the run.
        nested: `student_forward` and `backward` lie in an outer phase `update` that has some time of its own.
        overlapped: A phase `copy` of another thread runs over the end of `backward`.
    """

    kinds: tuple[Kind, ...] = REFERENCE
    steps: int = 300
    duration_jitter: float = 0.03
    power_jitter: float = 0.03
    scale: float = 1.0
    idle_watts: float = 95.0
    shape: str = "constant"
    nested: bool = False
    overlapped: bool = False

    def scaled(self, scale: float, idle_watts: float) -> "Workload":
        """Returns the same workload on a device of another size."""
        return replace(self, scale=scale, idle_watts=idle_watts)


@dataclass(frozen=True)
class Trace:
    """What happened.

    Attributes:
        start: Begin of each stretch of constant power, seconds; the last entry ends the trace.
        watts: True power of each stretch; one entry less than `start`.
        phases: The marks, monotonic nanoseconds.
        pieces: The run cut into rows.
        truth: Joules that each row of `pieces` caused at the die.
    """

    start: Floats
    watts: Floats
    phases: Phases
    pieces: Pieces
    truth: Floats

    def energy(self, time: Floats) -> Floats:
        """Returns the energy drawn up to each moment, joules."""
        total = np.append(0.0, np.cumsum(self.watts * np.diff(self.start)))
        return np.asarray(np.interp(time, self.start, total), dtype=np.float64)


class _Builder:
    """Gathers stretches of power and marks as time goes on."""

    def __init__(self, origin: float) -> None:
        self.now = origin
        self.start: list[float] = []
        self.watts: list[float] = []
        self.marks: list[tuple[float, float, str, int]] = []

    def draw(self, seconds: float, watts: "Floats | float") -> None:
        levels = np.atleast_1d(watts)
        for level in levels:
            self.start.append(self.now)
            self.watts.append(float(level))
            self.now += seconds / len(levels)

    def mark(self, begin: float, name: str, lane: int = 0) -> None:
        self.marks.append((begin, self.now, name, lane))


def run(workload: Workload, rng: np.random.Generator) -> Trace:
    """Lets a workload happen once."""
    builder = _Builder(1_000.0 + rng.uniform(0, 1))
    builder.draw(_AROUND_SECONDS, workload.idle_watts)
    begin = builder.now
    turn = rng.uniform(0, 2 * np.pi)
    for step in range(workload.steps):
        drift = 1.0
        if workload.shape == "drifting":
            drift += 0.05 * np.sin(turn + 2 * np.pi * step / max(workload.steps, 1) * 1.3)
        _step(builder, workload, rng, drift)
    end = builder.now
    builder.draw(_AROUND_SECONDS, workload.idle_watts)
    builder.start.append(builder.now)
    return _trace(builder, begin, end, workload, rng)


def _step(builder: _Builder, workload: Workload, rng: np.random.Generator, drift: float) -> None:
    outer = None
    for kind in workload.kinds:
        if workload.nested and kind.name == "student_forward":
            outer = builder.now
            builder.draw(0.006, 0.6 * kind.watts * workload.scale)
        seconds = kind.seconds * _jitter(rng, workload.duration_jitter)
        watts = kind.watts * workload.scale * drift * _jitter(rng, workload.power_jitter)
        begin = builder.now
        builder.draw(seconds, watts * _profile(workload.shape, seconds))
        builder.mark(begin, kind.name)
        builder.draw(_GAP_SECONDS, watts)
        if outer is not None and kind.name == "backward":
            builder.draw(0.004, 0.6 * kind.watts * workload.scale)
            builder.mark(outer, "update")
            outer = None


def _jitter(rng: np.random.Generator, sigma: float) -> float:
    return 1 + sigma * float(np.clip(rng.standard_normal(), -_MOST_SIGMAS, _MOST_SIGMAS))


def _profile(shape: str, seconds: float) -> Floats:
    """Returns power over a phase's age as shares of its level."""
    if shape not in {"decaying", "ramping"}:
        return np.ones(1)
    age = (np.arange(max(round(seconds / _SUBSTEP_SECONDS), 1)) + 0.5) * _SUBSTEP_SECONDS
    if shape == "decaying":
        return np.asarray(1 + 0.2 * np.exp(-age / 0.008))
    return np.asarray(0.85 + 0.3 * age / max(seconds, _SUBSTEP_SECONDS))


def _trace(
    builder: _Builder, begin: float, end: float, workload: Workload, rng: np.random.Generator
) -> Trace:
    start, watts = np.array(builder.start), np.array(builder.watts)
    if workload.overlapped:
        start, watts = _overlap(builder, start, watts, workload, rng)
    begins, ends, names, lanes = zip(*builder.marks, strict=True)
    known, number = np.unique(np.array(names), return_inverse=True)
    phases = Phases(
        _nano(np.array(begins)),
        _nano(np.array(ends)),
        number.astype(np.int64).reshape(-1),
        np.array(lanes, dtype=np.int64),
        tuple(str(name) for name in known),
    )
    pieces = cut(phases, [(int(_nano(np.array([begin]))[0]), int(_nano(np.array([end]))[0]))])
    trace = Trace(start, watts, phases, pieces, np.zeros(0))
    joules = trace.energy(pieces.stop / NANO) - trace.energy(pieces.start / NANO)
    truth = np.bincount(pieces.row, weights=joules, minlength=len(pieces.rows)).astype(np.float64)
    return replace(trace, truth=truth)


def _overlap(
    builder: _Builder, start: Floats, watts: Floats, workload: Workload, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Adds a phase of another thread over the end of each `backward`, with power of its own on top."""
    copies = [
        (end - 0.020 * _jitter(rng, 0.2), end + 0.004 * _jitter(rng, 0.2))
        for _, end, name, _ in builder.marks
        if name == "backward"
    ]
    builder.marks += [(begin, end, "copy", 1) for begin, end in copies]
    extra = 60.0 * workload.scale
    edges = np.array(copies).ravel()
    moments = np.unique(np.concatenate([start, edges]))
    level = watts[np.clip(np.searchsorted(start, moments[:-1], side="right") - 1, 0, len(watts) - 1)]
    inside = np.searchsorted(edges, moments[:-1], side="right") % 2 == 1
    return moments, level + np.where(inside, extra, 0.0)


def _nano(seconds: Floats) -> Ints:
    return np.rint(seconds * NANO).astype(np.int64)


def square_wave(
    seconds: float, high: float, low: float, rng: np.random.Generator
) -> tuple[Trace, Ints, Ints]:
    """Lets an alternating load happen: many stretches of 5 to 50 ms, some of 50 to 400; power jitters by 1 %.

    Returns:
        The trace, and begin and end of each high stretch, monotonic nanoseconds.
    """
    builder = _Builder(500.0 + rng.uniform(0, 1))
    builder.draw(_AROUND_SECONDS, low)
    begin = builder.now
    while builder.now < begin + seconds:
        for name, watts in (("high", high), ("low", low)):
            start = builder.now
            length = 0.005 * 10 ** rng.uniform() if rng.uniform() < 0.75 else 0.05 * 8 ** rng.uniform()
            builder.draw(length, watts * _jitter(rng, 0.01))
            if name == "high":
                builder.mark(start, name)
    end = builder.now
    builder.draw(_AROUND_SECONDS, low)
    builder.start.append(builder.now)
    trace = _trace(builder, begin, end, Workload(), rng)
    return trace, trace.phases.begin, trace.phases.end
