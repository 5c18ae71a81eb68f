"""One run in real time: a device drawn at random, a workload of a seed, and what each tool says of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.accuracy.peers.environments import ROOT, PeerMissingError, python
from bench.accuracy.peers.tools import TOOLS, TOTAL
from bench.accuracy.simulator import SENSORS, draw
from bench.accuracy.workload import REFERENCE
from tests.daemon import Daemon
from tests.nvml.driver import Trace, build

DEVICES = {100: "h100_100", 20: "h100_20"}
"""Update period of the energy counter, milliseconds -> the device of simulator.py."""

JITTER = 0.03
_MOST_SIGMAS = 3.0
_AROUND_SECONDS = 1.0
_MOST_SECONDS_A_STEP = 2.0
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """What one tool said of one run.

    Attributes:
        errors: Answer / truth - 1 by phase; one that the tool says no number of is not in it.
        covered: Whether the 95 % interval has the truth in it, by phase; empty for a tool that has none.
        reasons: Why there is no number, by phase; under "" why there is none at all.
        late_milliseconds: 99th percentile of how late the workload met its deadlines: the machine's noise.
    """

    errors: dict[str, float]
    covered: dict[str, bool]
    reasons: dict[str, str]
    late_milliseconds: float | None = None


@dataclass(frozen=True)
class Run:
    """One run to be measured.

    Attributes:
        counter: Update period of the energy counter, milliseconds; of DEVICES.
        seed: Of device and workload.
        steps: Training steps.
        folder: For its archive, traces and truths.
    """

    counter: int
    seed: int
    steps: int
    folder: Path


def measure_once(run: Run, tools: Sequence[str], words: Sequence[str] = ()) -> dict[str, Outcome]:
    """Every tool on the same workload, with the same simulated device.

    wattd is alone on the machine; then come the other tools, all at once, each with a process, a trace and
    so a GPU of its own: their calls take time between the phases, which would disturb the others' marks.

    Args:
        run: Which.
        tools: By their names in peers/tools.py.
        words: More words for `wattd serve`.
    """
    rng = np.random.default_rng([run.seed, run.counter])
    settings, plan = _device(run.counter, rng), _plan(run.steps, rng)
    library = build(ROOT / "build" / "accuracy")
    _offer_command(library.parent)
    (run.folder / "plan").write_text(json.dumps(plan))
    found = dict[str, Outcome]()
    players = dict[str, _Player]()
    for tool in sorted(tools, key=lambda tool: TOOLS[tool][0] is not None):
        environment = TOOLS[tool][0]
        if environment is None:
            found[tool] = _measure_wattd(_Player(tool, run, library, settings), words)
            continue
        try:
            interpreter = python(environment)
        except PeerMissingError as error:
            found[tool] = Outcome({}, {}, {"": str(error)})
            continue
        players[tool] = _Player(tool, run, library, settings)
        players[tool].start(interpreter)
    return found | {tool: _peer_outcome(player.finish()) for tool, player in players.items()}


class _Player:
    """The workload's process with one tool, and its trace."""

    def __init__(self, tool: str, run: Run, library: Path, settings: dict[str, Any]) -> None:
        self.tool = tool
        self._steps = run.steps
        self.folder = folder = run.folder
        self._result = folder / f"{tool}.result"
        self._plan = folder / "plan"
        self._process: subprocess.Popen[str] | None = None
        with Trace.create(folder / f"{tool}.trace", **settings) as trace:
            self.trace = trace.path
            self.environment = {
                **os.environ,
                **trace.environment(library),
                "PATH": f"{library.parent}:{os.environ.get('PATH', '')}",
                "PYTHONPATH": "",
            }

    def start(self, interpreter: Path, **environment: str) -> None:
        words = ["-m", "bench.accuracy.peers.play", self.tool, self._plan, self.trace, self._result]
        with (self.folder / f"{self.tool}.log").open("w") as log:
            self._process = subprocess.Popen(
                [str(word) for word in (interpreter, *words)],
                cwd=ROOT,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
                text=True,
            )

    def finish(self) -> dict[str, Any]:
        """Waits for its end; returns what it found, with `failed` where it failed."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=_START_SECONDS + _MOST_SECONDS_A_STEP * self._steps)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self._process.kill()
            self._process.wait()
        if code != 0:
            last = ((self.folder / f"{self.tool}.log").read_text().strip().splitlines() or ["no message"])[-1]
            how = "did not end in time" if code is None else f"ended with code {code}"
            return {"failed": f"{self.tool} {how}: {last}"}
        found: dict[str, Any] = json.loads(self._result.read_text())
        return found


def _measure_wattd(player: _Player, words: Sequence[str]) -> Outcome:
    """The daemon reads while the workload marks; then the archive is asked."""
    folder = player.folder / player.tool
    daemon = Daemon(folder, "--sensors", "nvml", *words, environment=player.environment)
    if player.tool == "wattd_calibrated":
        load = f"command:{sys.executable} -m tests.nvml.load {player.trace}"
        calibrate = ("calibrate", "--sensors", "nvml", "--load", load, "--archive", str(daemon.archive))
        said = _command(player, "wattd", *calibrate)
        if said.returncode:
            return Outcome({}, {}, {"": said.stderr.strip()})
    with daemon:
        player.start(Path(sys.executable), WATTD_SOCKET=str(daemon.socket), WATTD_SPOOL=str(folder / "spool"))
        found = player.finish()
        if "failed" in found:
            return Outcome({}, {}, {"": found["failed"]})
        time.sleep(0.5)  # the counter's last update of the run is still to come
        daemon.stop()
    said = _command(player, "wattq", "phases", str(daemon.archive), "--format", "json")
    if said.returncode:
        return Outcome({}, {}, {"": said.stderr.strip()})
    rows = [row for row in json.loads(said.stdout) if row["domain"] == "gpu"]
    return _wattd_outcome({row["phase"]: row for row in rows}, found)


def _command(player: _Player, *words: str) -> subprocess.CompletedProcess[str]:
    """One of wattd's commands, on the player's simulated driver."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**player.environment, "WATTD_CONFIG": os.devnull},
    )


def _wattd_outcome(rows: dict[str, dict[str, Any]], found: dict[str, Any]) -> Outcome:
    errors, covered, reasons = dict[str, float](), dict[str, bool](), dict[str, str]()
    for name, truth in found["truth"].items():
        row = rows.get(name)
        if name == TOTAL:
            errors[name] = sum(row["energy_joules"] or 0.0 for row in rows.values()) / truth - 1
        elif row is None or not row["valid"]:
            reasons[name] = row["reason"] if row else "no such phase in the archive"
        else:
            errors[name] = row["energy_joules"] / truth - 1
            covered[name] = row["energy_low_joules"] <= truth <= row["energy_high_joules"]
    return Outcome(errors, covered, reasons, _late(found))


def _peer_outcome(found: dict[str, Any]) -> Outcome:
    if "failed" in found:
        return Outcome({}, {}, {"": found["failed"]})
    answers = found["answers"]
    errors = {name: answers[name] / truth - 1 for name, truth in found["truth"].items() if name in answers}
    return Outcome(errors, {}, {}, _late(found))


def _late(found: dict[str, Any]) -> float:
    return float(np.percentile(found["late_nano"], 99)) / 1e6


def _device(counter: int, rng: np.random.Generator) -> dict[str, Any]:
    """One unit of a device as settings of the simulated library.

    Its power reading differs from its counter by up to 4 % and 5 W, as those of real devices do.
    """
    sensor = replace(
        SENSORS[DEVICES[counter]], gain=1 + rng.uniform(-0.04, 0.04), offset_watts=rng.uniform(-5, 5)
    )
    drawn = draw(sensor, rng)
    counter_phase = drawn.counter_phase * drawn.counter_seconds
    return {
        "gpus": 1,
        "seed": float(rng.integers(1 << 31)),
        "watts": sensor.idle_watts,
        "limit_watts": 700,
        "rise_ms": drawn.rise_seconds * 1e3,
        "jitter_ms": sensor.update_jitter_seconds * 1e3,
        "counter_period_ms": drawn.counter_seconds * 1e3,
        "counter_phase_ms": counter_phase * 1e3,
        "counter_delay_ms": drawn.counter_delay_seconds * 1e3,
        "counter_start_joules": float(rng.integers(10**7)),
        "power_period_ms": drawn.power_seconds * 1e3,
        "power_phase_ms": (counter_phase + drawn.power_phase_seconds) * 1e3,
        "power_delay_ms": drawn.power_delay_seconds * 1e3,
        "power_window_ms": drawn.window_seconds * 1e3,
        "usage_is_average": 1,
        "gain": drawn.gain,
        "offset_watts": drawn.offset_watts,
        "noise_watts": drawn.noise_watts,
        "latency_least_us": 5,
        "latency_most_us": 400,
        "stall_ratio": 0.004,
        "stall_ms": 5,
    }


def _plan(steps: int, rng: np.random.Generator) -> dict[str, Any]:
    """The phases of a run in their order, each with its own duration and power."""
    scatter = np.clip(rng.standard_normal((steps, len(REFERENCE), 2)), -_MOST_SIGMAS, _MOST_SIGMAS)
    factor = 1 + JITTER * scatter
    return {
        "idle_watts": SENSORS["h100_100"].idle_watts,
        "before_seconds": _AROUND_SECONDS,
        "after_seconds": _AROUND_SECONDS,
        "phases": [
            (kind.name, kind.seconds * float(of_time), kind.watts * float(of_power))
            for step in factor
            for kind, (of_time, of_power) in zip(REFERENCE, step, strict=True)
        ],
    }


def _offer_command(folder: Path) -> None:
    """A driver comes with its command; codecarbon takes a machine without it for one without GPUs."""
    command = folder / "nvidia-smi"
    if not command.exists():
        command.write_text("#!/bin/sh\necho 'simulated driver'\n")
        command.chmod(0o755)
