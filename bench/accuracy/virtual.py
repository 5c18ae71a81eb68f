"""The accuracy of the regression in virtual time: cells of many trials on sensors whose truth is known.

Each trial draws a unit of a device, lets a workload happen, reads it as the sampler does, and asks the
analysis. Beside it the same system is solved with the true response and the true variances: the limit of what
can be known. Truth is the energy that each phase caused at the die.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from wattq.attribution import NotApplicableError, attribute, groups_of
from wattq.calibration import calibrate
from wattq.clocks import Clock
from wattq.counter import Counter, Device, Floats, Ints, Readings, locate
from wattq.evidence import Evidence, Series, power_series
from wattq.fit import Fit
from wattq.overlap import share
from wattq.problem import Noise
from wattq.regression import Run, regress
from wattq.response import NAMES
from wattq.sweep import OUTSIDE, union

from bench.accuracy.simulator import SENSORS, Drawn, Sensor, draw, observe
from bench.accuracy.workload import Kind, Trace, Workload, run, square_wave

CALIBRATION_SECONDS = 120.0
_LIMIT_WATTS = 700.0
_LONG_SECONDS = 0.030
PROMISED_STEPS = 300
"""Of runs of so many steps it is promised how near they come to the limit; of longer ones it is shown."""

_REFERENCE = Workload()
_NO_CLOCK = Clock(np.zeros(0, dtype=np.int64), np.zeros(0))
_NO_GAPS: Ints = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class Cell:
    """Trials of one kind.

    Attributes:
        name: Of the cell; unique.
        sensor: Name of the sensor.
        response: `calibrated`, as `wattd calibrate` measures it on the same unit, or `fitted` from the run.
        trials: How many.
        workload: What runs; its kinds are drawn anew for each trial where `shuffled` says so.
        shuffled: Steps of 3 to 6 phases of 5 to 300 ms and 100 to 700 W.
        counter_only: The power reading is withheld.
        gain: Of the power reading; None: the device's own.
        part_time: The counter looks at this share of each period only; None: at all of it.
        judged: Absolute bounds hold (the reference workload on a device with a fine sensor).
    """

    name: str
    sensor: str
    response: str
    trials: int
    workload: Workload = _REFERENCE
    shuffled: bool = False
    counter_only: bool = False
    gain: float | None = None
    part_time: float | None = None
    judged: bool = False


@dataclass(frozen=True)
class Trial:
    """What one trial gave, an entry a row of `names`.

    Attributes:
        names: Of the phases.
        seconds: Mean duration of each.
        truth: Joules that each caused at the die.
        answer: Joules that the analysis says.
        half: Half-width of its interval.
        limit: Joules by the system solved with the truth about the sensor.
        refused: The phase got no number.
        total: The answer's sum over the counter's rise, less 1.
        attribution_seconds: How long the analysis took, of process time.
    """

    names: tuple[str, ...]
    seconds: Floats
    truth: Floats
    answer: Floats
    half: Floats
    limit: Floats
    refused: "np.ndarray[Any, np.dtype[np.bool_]]"
    total: float
    attribution_seconds: float


def _shuffled(workload: Workload, rng: np.random.Generator) -> Workload:
    """Returns the workload with a step drawn anew."""
    kinds = tuple(
        Kind(f"phase_{number}", float(0.005 * 60 ** rng.uniform()), float(rng.uniform(100, 700)))
        for number in range(int(rng.integers(3, 7)))
    )
    return replace(workload, kinds=kinds)


def _read(sensor: Sensor, evidence: Evidence, *, counter_only: bool) -> tuple[Counter, Series]:
    update = round(sensor.counter_seconds * 1e9) if sensor.tick_seconds else None
    readings = Readings(evidence.energy_read_nano, evidence.energy_old_nano, evidence.energy_joules)
    power = power_series(evidence)
    return locate(readings, update), power.between(0, 0) if counter_only else power


def _measured(sensor: Sensor, drawn: Drawn, rng: np.random.Generator) -> Fit:
    """Calibrates the unit, read each millisecond, under a load that knows nothing of it."""
    trace, begin, end = square_wave(CALIBRATION_SECONDS, 620.0 * sensor.scale, sensor.idle_watts, rng)
    close = replace(sensor, tick_seconds=sensor.tick_seconds and 0.001)
    evidence = observe(close, drawn, trace, rng)
    update = round(sensor.counter_seconds * 1e9) if sensor.tick_seconds else None
    calibration = calibrate(evidence, begin, end, update)
    assert calibration.response is not None, calibration.reason
    return Fit(calibration.response, calibration.covariance, Noise(), np.zeros(0), np.inf)


def try_once(cell: Cell, seed: int) -> Trial | None:
    """Runs one trial.

    Args:
        cell: Of what kind.
        seed: Everything in the trial follows from it.

    Returns:
        What it gave; None where the analysis refused the regression as a whole.
    """
    rng = np.random.default_rng(seed)
    sensor = SENSORS[cell.sensor]
    sensor = sensor if cell.gain is None else replace(sensor, gain=cell.gain)
    sensor = replace(sensor, part_time=cell.part_time)
    drawn = draw(sensor, rng)
    measured = _measured(sensor, drawn, rng) if cell.response == "calibrated" else None
    workload = _shuffled(cell.workload, rng) if cell.shuffled else cell.workload
    trace = run(workload.scaled(sensor.scale, sensor.idle_watts), rng)
    counter, power = _read(sensor, observe(sensor, drawn, trace, rng), counter_only=cell.counter_only)
    limit_watts = _LIMIT_WATTS * sensor.scale
    device = Device("node", sensor.name, "gpu", "simulated", "virtual", power_limit_watts=limit_watts)
    phases, pieces = trace.phases, trace.pieces
    cut = (phases, pieces, union(phases.begin, phases.end, phases.name))
    overlap = share(counter, device, pieces, _NO_GAPS)
    begin = time.process_time()
    try:
        found = attribute(
            counter, power, _NO_CLOCK, device, cut=cut, gaps=_NO_GAPS, overlap=overlap, measured=measured
        )
    except NotApplicableError:
        return None
    took = time.process_time() - begin
    shares = found.shares
    half = np.hypot(shares.statistical, shares.response)
    keep = np.array([name != OUTSIDE for name in pieces.rows])
    refused = np.array([name in found.reasons for name in pieces.rows]) | (half > 0.5 * shares.joules)
    noise = Noise(workload.power_jitter, drawn.noise_watts)
    best = _limit(
        trace,
        counter,
        power,
        limit_watts,
        Fit(drawn.response(sensor.part_time), _nothing(), noise, _no(), 0.0),
        aged=found.age_share,
    )
    counts = np.bincount(pieces.row, minlength=len(pieces.rows))
    ends = counter.at(np.array([pieces.start[0], pieces.stop[-1]]))
    total = float(ends[1] - ends[0])
    return Trial(
        tuple(name for name in pieces.rows if name != OUTSIDE),
        (shares.seconds / counts)[keep],
        trace.truth[keep],
        shares.joules[keep],
        half[keep],
        best[keep],
        refused[keep],
        float(shares.joules.sum()) / total - 1,
        took,
    )


def _nothing() -> Floats:
    return np.zeros((len(NAMES), len(NAMES)))


def _no() -> Floats:
    return np.zeros(0)


def _limit(
    trace: Trace, counter: Counter, power: Series, limit_watts: float, truth: Fit, *, aged: float
) -> Floats:
    """Returns the energies of the same system with the true response and variances."""
    groups, _ = groups_of(
        trace.phases, trace.pieces, union(trace.phases.begin, trace.phases.end, trace.phases.name)
    )
    system = Run(trace.pieces, groups, counter, power, limit_watts=limit_watts)
    with threadpool_limits(limits=1, user_api="blas"):
        return regress(system, truth, aged).joules[: len(trace.pieces.rows)]


def summarise(cell: Cell, made: Sequence[Trial | None]) -> dict[str, Any]:
    """Returns what a cell's trials say, as bench/accuracy.json holds it; errors are shares of the truth.

    Trials that the analysis refused as a whole are counted, and not among those that have errors.
    """
    trials = [trial for trial in made if trial is not None]
    error = np.concatenate([trial.answer / trial.truth - 1 for trial in trials])
    limit = np.concatenate([trial.limit / trial.truth - 1 for trial in trials])
    covered = np.concatenate([np.abs(trial.answer - trial.truth) <= trial.half for trial in trials])
    refused = np.concatenate([trial.refused for trial in trials])
    seconds = np.concatenate([trial.seconds for trial in trials])
    names = np.concatenate([np.array(trial.names) for trial in trials])
    if cell.shuffled:
        edges = ((0.0, 0.008), (0.008, 0.030), (0.030, 1.0))
        groups = {
            f"{low * 1000:.0f}-{high * 1000:.0f} ms": (seconds >= low) & (seconds < high)
            for low, high in edges
        }
    else:
        groups = {str(name): names == name for name in dict.fromkeys(names.tolist())}
    phases = {
        name: {
            "duration_seconds": float(seconds[mine].mean()),
            "rms_ratio": _rms(error[mine]),
            "limit_rms_ratio": _rms(limit[mine]),
            "times_limit": _rms(error[mine]) / _rms(limit[mine]),
            "covered_ratio": float(covered[mine].mean()),
            "refused_ratio": float(refused[mine].mean()),
        }
        for name, mine in groups.items()
        if mine.any()
    }
    times = np.array([phase["times_limit"] for phase in phases.values()])
    found: dict[str, Any] = {
        "kind": "virtual_time",
        "cell": cell.name,
        **{
            key: value
            for key, value in asdict(cell).items()
            if key in {"sensor", "response", "counter_only", "shuffled"}
        },
        "steps": cell.workload.steps,
        "shape": cell.workload.shape,
        "power_jitter": cell.workload.power_jitter,
        "trials": len(made),
        "not_applicable": len(made) - len(trials),
        "phases": phases,
        "times_limit": float(np.sqrt((times**2).mean())),
        "covered_ratio": float(covered.mean()),
        "total_ratio_max": float(max(abs(trial.total) for trial in trials)),
        "attribution_seconds": float(np.median([trial.attribution_seconds for trial in trials])),
    }
    found["verdicts"] = _verdicts(cell, found)
    found["ok"] = all(found["verdicts"].values())
    return found


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))


def _verdicts(cell: Cell, found: dict[str, Any]) -> dict[str, bool]:
    """Returns which promises a cell keeps; a promise that is not made of it is not there."""
    calibrated = cell.response == "calibrated"
    verdicts = {
        "coverage": 0.90 <= found["covered_ratio"] <= 0.99,
        "totals": found["total_ratio_max"] <= 1e-3,
    }
    if cell.workload.steps == PROMISED_STEPS:
        verdicts["times_limit"] = found["times_limit"] <= (1.3 if calibrated else 4.0)
    if cell.judged:
        long, short = (0.005, 0.05) if calibrated else (0.01, 0.10)
        rms = {"long_phases": [0.0], "short_phases": [0.0]}
        for phase in found["phases"].values():
            name = "long_phases" if phase["duration_seconds"] >= _LONG_SECONDS else "short_phases"
            rms[name].append(phase["rms_ratio"])
        verdicts["long_phases"] = max(rms["long_phases"]) <= long
        verdicts["short_phases"] = max(rms["short_phases"]) <= short
    if cell.response == "fitted" and cell.workload.steps == PROMISED_STEPS:
        verdicts["speed"] = found["attribution_seconds"] <= 3.0
    return verdicts


_JUDGED = ("a100", "h100_20", "h100_100", "v100", "rapl")
_L40S = tuple(f"l40s_{offset}" for offset in (0, 1, 5, 20, 50))
_SHAPES: dict[str, dict[str, Any]] = {
    "decaying": {"workload": Workload(shape="decaying")},
    "ramping": {"workload": Workload(shape="ramping")},
    "drifting": {"workload": Workload(shape="drifting")},
    "jitter_10": {"workload": Workload(power_jitter=0.1, duration_jitter=0.1)},
    "jitter_30": {"workload": Workload(power_jitter=0.3, duration_jitter=0.3)},
    "durations": {"shuffled": True},
    "overlaps": {"workload": Workload(overlapped=True)},
    "nesting": {"workload": Workload(nested=True)},
    "counter_only": {"counter_only": True},
    "gain_4_off": {"gain": 1.04},
    "part_time": {"part_time": 0.25},
}


def cells(*, quick: bool) -> list[Cell]:
    """Returns all cells; quick: few trials of some."""
    found = []
    for sensor in (*_JUDGED, *_L40S):
        for response, trials in (("calibrated", 200), ("fitted", 60)):
            judged = sensor in _JUDGED
            found.append(Cell(f"{sensor} {response}", sensor, response, trials, judged=judged))
    for sensor in ("rtx4090", "gh200"):
        found += [Cell(f"{sensor} {response}", sensor, response, 40) for response in ("calibrated", "fitted")]
    for shape, facts in _SHAPES.items():
        for response in ("calibrated", "fitted"):
            found.append(Cell(f"h100_100 {shape} {response}", "h100_100", response, 40, **facts))
    for steps, trials in ((1_000, 10), (10_000, 5)):
        found += [
            Cell(f"{sensor} {steps} steps", sensor, "fitted", trials, workload=Workload(steps=steps))
            for sensor in ("a100", "h100_20", "h100_100", "v100", "rapl")
        ]
    if not quick:
        return found
    some = ("h100_100 calibrated", "h100_100 fitted", "v100 fitted", "rapl fitted", "h100_100 nesting fitted")
    return [replace(cell, trials=10) for cell in found if cell.name in some]
