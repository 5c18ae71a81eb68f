"""Archives for the bench, as a busy node writes them: 8 GPUs locked to their updates, a million phases.

Written by the encoders of the daemon, always the same, and kept in build/bench between runs.
"""

import datetime as dt
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wattd.archive.lines import body, second_body, tick_body
from wattd.archive.segment import Segment, compress
from wattd.values import EnergyEdge, PowerEdge, Tick

_VERSION = 1
"""Of the generator: what was kept is made anew when it changes."""

_FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"
_NANO, _MILLI = 1_000_000_000, 1_000_000
_BOOT = "0badcafe-1111-2222-3333-444455556666"
_BOOTED_UNIX_NANO = 1_764_000_000 * _NANO
_START = 1_036_800 * _NANO
_LEAD_NANO = 2 * _NANO
_SEGMENT_NANO = 900 * _NANO
_GPUS, _RAPL = 8, 4
_UPDATE_NANO, _POLL_NANO, _TICK_NANO = 100 * _MILLI, _MILLI, 10 * _MILLI
_WINDOW_NANO = 25 * _MILLI
_TOGETHER_NANO = 150_000
_CALL_NANO = 4_000
_CHUNK_LINES = 20_000

PHASES = (
    ("data_load", 8, 130.0),
    ("teacher_forward", 60, 620.0),
    ("student_forward", 35, 450.0),
    ("backward", 70, 540.0),
    ("optimizer_step", 12, 320.0),
)
"""The reference workload: phase, milliseconds, watts."""

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What an archive holds.

    Attributes:
        name: Of its folder.
        steps: Steps of five phases on each of 8 ranks, each of which has a GPU.
        stretch: The phases are so many times longer than in the reference workload.
        has_rapl: 4 RAPL domains are read at 100 Hz beside the GPUs.
    """

    name: str
    steps: int
    stretch: float
    has_rapl: bool = False

    @property
    def nano(self) -> int:
        """How long the run lasts, nearly, nanoseconds."""
        return round(self.steps * sum(length for _, length, _ in PHASES) * self.stretch * _MILLI)


NODE_DAY = Plan("node-day", 25_000, 86_400 / 25_000 / 0.185)
NODE_DAY_RAPL = Plan("node-day-rapl", 25_000, 86_400 / 25_000 / 0.185, has_rapl=True)
SHORT_PHASES = Plan("short-phases", 25_000, 1.0)


@dataclass(frozen=True)
class _Trace:
    """What a rank does: the edges of its phases, nanoseconds, the energy at each, joules."""

    edge: _Ints
    joules: _Floats

    def energy(self, time: _Ints) -> _Floats:
        return np.interp((time - _START) / _NANO, (self.edge - _START) / _NANO, self.joules)


class _Node:
    """The node of a plan: traces of its ranks, and the lines of each segment."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.segments = -(-(plan.nano + 4 * _LEAD_NANO) // _SEGMENT_NANO)

    @cached_property
    def traces(self) -> list[_Trace]:
        return [self._trace(rank) for rank in range(_GPUS)]

    def _trace(self, rank: int) -> _Trace:
        rng = np.random.default_rng([_VERSION, rank])
        usual = np.tile([length * _MILLI * self.plan.stretch for _, length, _ in PHASES], self.plan.steps)
        watts = np.tile([level for _, _, level in PHASES], self.plan.steps)
        length = (usual * rng.normal(1, 0.03, len(usual)).clip(0.5, 1.5)).astype(np.int64)
        watts = watts * rng.normal(1, 0.03, len(usual))
        begin = _START + _LEAD_NANO + rank * 500_000
        edge = begin + np.concatenate([[0], np.cumsum(length)])
        # Some idling before and after, so that the counter is known on both sides.
        edge = np.concatenate([[_START - _NANO], edge, [_START + self.segments * _SEGMENT_NANO + _NANO]])
        watts = np.concatenate([[90.0], watts, [90.0]])
        joules = np.concatenate([[0.0], np.cumsum(watts * np.diff(edge) / _NANO)])
        return _Trace(edge, 1_000.0 * (rank + 1) + joules)

    def devices(self) -> list[dict[str, Any]]:
        found = [
            _device(rank, f"GPU-{rank:08x}-0000-0000-0000-000000000000", rank, "gpu", _UPDATE_NANO)
            for rank in range(_GPUS)
        ]
        if self.plan.has_rapl:
            names = [
                (f"{domain}-{index}", index, domain) for domain in ("package", "dram") for index in (0, 1)
            ]
            found += [
                _device(_GPUS + place, name, index, domain, _MILLI)
                for place, (name, index, domain) in enumerate(names)
            ]
        return found

    def readings(self, number: int) -> tuple[_Ints, _Ints, _Ints, _Floats]:
        """Everything that is read in a segment, in order.

        Returns:
            When it was read, when the old value was, the device (those of power readings count from
            100), and joules or watts.
        """
        rng = np.random.default_rng([_VERSION, 1_000 + number])
        begin = _START + number * _SEGMENT_NANO
        parts = []
        for rank, trace in enumerate(self.traces):
            # The grids of the two quantities and of the devices lie anyhow.
            for place, is_power in ((0.07 + 0.11 * rank, False), (0.013 + 0.119 * rank, True)):
                first = begin + int(place % 1 * _UPDATE_NANO)
                update = np.arange(first, begin + _SEGMENT_NANO, _UPDATE_NANO)
                update = update + rng.integers(-_MILLI // 2, _MILLI // 2, len(update))
                read = update + rng.integers(0, _POLL_NANO, len(update))
                if is_power:
                    value = (trace.energy(update) - trace.energy(update - _WINDOW_NANO)) / (
                        _WINDOW_NANO / _NANO
                    )
                    value = np.round(value + rng.normal(0, 0.4, len(value)), 3)
                else:
                    value = np.round(trace.energy(update), 3)
                old = read - _POLL_NANO - rng.integers(0, 60_000, len(read))
                parts.append((read, old, np.full(len(read), rank + 100 * is_power), value))
        if self.plan.has_rapl:
            parts += self._rapl(begin, rng)
        read, old, device, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(read, kind="stable")
        return read[order], old[order], device[order], value[order]

    def _rapl(self, begin: int, rng: np.random.Generator) -> list[tuple[_Ints, _Ints, _Ints, _Floats]]:
        tick = np.arange(begin, begin + _SEGMENT_NANO, _TICK_NANO)
        tick = tick + rng.lognormal(11, 0.3, len(tick)).astype(np.int64)
        parts = []
        for place in range(_RAPL):
            read = tick + 2_000 * place
            joules = 50 * (place + 1) * (read - _START + _NANO) / _NANO + self.traces[place].energy(read) / 10
            old = np.concatenate([read[:1] - _TICK_NANO, read[:-1]])
            parts.append((read, old, np.full(len(read), _GPUS + place), np.round(joules, 6)))
        return parts

    def sample_lines(self, number: int) -> Iterator[bytes]:
        columns = (column.tolist() for column in self.readings(number))
        standing: dict[int, tuple[int, float]] = {}
        edges: list[tuple[int, int, int, float]] = []
        second = _START + number * _SEGMENT_NANO + _NANO
        for read, old, device, value in zip(*columns, strict=True):
            if edges and read - edges[0][0] > _TOGETHER_NANO:
                yield _tick(edges)
                edges = []
                if read >= second:
                    yield _second(second, standing)
                    yield _state(second, standing)
                    second += _NANO
            edges.append((read, old, device, value))
            standing[device] = (read, value)
        yield _tick(edges)

    def phase_lines(self, number: int) -> Iterator[bytes]:
        """The marks whose batches arrive in a segment, in the order of their ends."""
        begin = _START + number * _SEGMENT_NANO
        found: list[tuple[int, dict[str, Any]]] = []
        for rank, trace in enumerate(self.traces):
            if number == 0:
                found.append((int(trace.edge[1]), _run_begin(rank, int(trace.edge[1]) - _MILLI)))
            first, last = np.searchsorted(trace.edge[2:-1], [begin, begin + _SEGMENT_NANO]).tolist()
            edges = trace.edge[1 + first : 2 + last].tolist()
            for place, (start, stop) in enumerate(pairwise(edges), start=first):
                found.append((stop, _phase(rank, place, start, stop)))
            if begin <= trace.edge[-2] < begin + _SEGMENT_NANO:
                found.append((int(trace.edge[-2]) + _MILLI, _run_end(rank, len(trace.edge) - 3, trace)))
        found.sort(key=lambda entry: entry[0])
        return (body(line) for _, line in found)


def _device(number: int, device: str, index: int, domain: str, update_nano: int) -> dict[str, Any]:
    return {
        "number": number,
        "device": device,
        "index": index,
        "domain": domain,
        "source": "simulated",
        "sensor": "nvml" if domain == "gpu" else "rapl",
        "model": "NVIDIA H100 80GB HBM3" if domain == "gpu" else "",
        "update_nano": update_nano,
        "offset_microjoules": 0,
    }


def _tick(edges: list[tuple[int, int, int, float]]) -> bytes:
    energies = [
        EnergyEdge(device, round(value * 1_000_000), read, old)
        for read, old, device, value in edges
        if device < 100
    ]
    powers = [
        PowerEdge(device - 100, value, read, old) for read, old, device, value in edges if device >= 100
    ]
    return tick_body(Tick(edges[0][0] - _CALL_NANO, energies, powers, []), _Offsets())


class _Offsets(dict[int, int]):
    """Every device's counter starts where the hardware's does."""

    def __missing__(self, number: int) -> int:
        return 0


def _second(now: int, standing: dict[int, tuple[int, float]]) -> bytes:
    energies = sorted((device, *known) for device, known in standing.items() if device < 100)
    powers = sorted((device - 100, value) for device, (_, value) in standing.items() if device >= 100)
    second = {
        "type": "second",
        "monotonic_nano": now,
        "time_unix_nano": _BOOTED_UNIX_NANO + now,
        "boottime_nano": now,
        "device": [device for device, _, _ in energies],
        "energy_microjoules": [round(joules * 1_000_000) for _, _, joules in energies],
        "read_us": [(read - now) // 1000 for _, read, _ in energies],
        "power_device": [device for device, _ in powers],
        "power_watts": [watts for _, watts in powers],
        "ticks": 500,
        "missed_ticks": 0,
        "late_p99_us": 87,
    }
    return second_body(second, _Offsets())


def _state(now: int, standing: dict[int, tuple[int, float]]) -> bytes:
    gpus = [
        {
            "number": number,
            "utilization_ratio": 0.97,
            "memory_used_bytes": 61_234_567_168 + number,
            "memory_total_bytes": 85_520_809_984,
            "temperature_celsius": 61.0,
            "sm_clock_hertz": 1_755_000_000.0,
            "power_limit_watts": 700.0,
            "throttle_reasons": "",
        }
        for number in sorted(standing)
        if number < _GPUS
    ]
    state = {"type": "state", "monotonic_nano": now, "gpus": gpus, "cpu_utilization_ratio": 0.12}
    return body(state | {"memory_used_bytes": 123_456_789_504, "memory_total_bytes": 1_081_101_176_832})


def _mark(kind: str, rank: int, mark: int, **keys: Any) -> dict[str, Any]:
    client = f"{rank:032x}"
    return {"type": kind, "client": client, "mark": mark, **keys, "run_id": "0123456789abcdef", "rank": rank}


def _run_begin(rank: int, nano: int) -> dict[str, Any]:
    return _mark(
        "run_begin",
        rank,
        1,
        monotonic_nano=nano,
        run="node-day",
        method="response",
        seed=0,
        tokens_phase="",
        local_rank=rank,
        world_size=_GPUS,
        gpu_uuids=[f"GPU-{rank:08x}-0000-0000-0000-000000000000"],
        gpu_source="torch",
        resume=False,
        synchronised=False,
        pid=4_711 + rank,
        job_id="4711",
        user="ada",
        account="none",
        partition="none",
        restarts=0,
    )


def _run_end(rank: int, phases: int, trace: _Trace) -> dict[str, Any]:
    return _mark("run_end", rank, phases + 2, monotonic_nano=int(trace.edge[-2]) + _MILLI)


def _phase(rank: int, place: int, begin: int, end: int) -> dict[str, Any]:
    name = PHASES[place % len(PHASES)][0]
    times = {"begin_monotonic_nano": begin, "end_monotonic_nano": end}
    tokens = {"tokens": 4_096} if name.endswith("forward") else {}
    line = _mark("phase", rank, place + 2, phase_number=place + 1, phase=name, thread=0, **times)
    return line | tokens | {"failed": False}


def _write(root: Path, node: _Node, number: int, kind: str) -> None:
    opened = _START + number * _SEGMENT_NANO
    unix = _BOOTED_UNIX_NANO + opened
    date = dt.datetime.fromtimestamp(unix / _NANO, dt.UTC).date().isoformat()
    header: dict[str, Any] = {"type": "segment", "version": 1, "kind": kind, "node": "node-1"}
    header |= {"boot_id": _BOOT, "segment": number, "wattd_version": "0.1.0"}
    header |= {"monotonic_nano": opened, "time_unix_nano": unix}
    header |= {"devices": node.devices()} if kind == "samples" else {"state": dict[str, Any]()}
    folder = root / "v=1" / f"kind={kind}" / "host=node-1" / f"date={date}"
    segment = Segment(folder / f"{_BOOT[:8]}-{number:06d}.jsonl", header)
    bodies: list[bytes] = []
    for line in node.sample_lines(number) if kind == "samples" else node.phase_lines(number):
        bodies.append(line)
        if len(bodies) >= _CHUNK_LINES:
            segment.append(bodies)
            bodies = []
    segment.append(bodies)
    segment.finish("rotated")
    compress(segment.path)


def phases(plan: Plan) -> int:
    """Returns how many phases all ranks of a plan have."""
    return plan.steps * len(PHASES) * _GPUS


def make(plan: Plan) -> Path:
    """Returns the archive of a plan, which is made where an earlier run has not left it.

    It takes a minute or two for a node-day.
    """
    root = _FOLDER / f"{plan.name}-{_VERSION}"
    if root.is_dir():
        return root
    draft = root.with_name(root.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    for old in _FOLDER.glob(f"{plan.name}-[0-9]*"):
        shutil.rmtree(old)
    node = _Node(plan)
    with ProcessPoolExecutor(max_workers=2) as pool:
        tasks = [
            pool.submit(_write, draft, node, number, kind)
            for number in range(node.segments)
            for kind in ("samples", "events")
        ]
        for task in tasks:
            task.result()
    draft.rename(root)
    return root
