"""A simulated training whose truth is known, as an archive."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from wattq import estimate
from wattq.loading import Chosen
from wattq.runner import Archive

from tests.analysis.archives import MILLI, NANO, START, ArchiveWriter, SimulatedDevice, staircase

# Phase, milliseconds, watts on the GPU.
STEP = (
    ("data_load", 200, 130.0),
    ("teacher_forward", 1_200, 620.0),
    ("student_forward", 700, 450.0),
    ("backward", 1_400, 540.0),
    ("optimizer_step", 400, 320.0),
)
TOKENS = {"teacher_forward": 4_096, "student_forward": 4_000}


ENERGY = "select * from phase_energy order by rowid"
# What asks nothing of the regression need not wait for it.
OVERLAP = Chosen(estimator="overlap")


def answer(root: Path, sql: str = ENERGY, chosen: Chosen = OVERLAP) -> list[dict[str, Any]]:
    """Returns the rows of a query as dictionaries."""
    with Archive(root) as archive:
        return archive.query(sql, chosen=chosen).records()


def by_phase(rows: list[dict[str, Any]], device: str = "GPU-aaaa") -> dict[str, dict[str, Any]]:
    """Returns the rows of one device by phase."""
    return {row["phase"]: row for row in rows if row["device"] == device}


@dataclass
class Study:
    """The archive's writer, not yet written, and what is true of it."""

    writer: ArchiveWriter
    begin: int
    end: int
    spans: list[tuple[str, int, int, float]]

    def truth(self, phase: str, device: int = 0) -> float:
        """Returns the true energy of a phase on a device, joules."""
        energy = self.writer.devices[device].energy
        return sum(float(energy(b) - energy(a)) for name, a, b, _ in self.spans if name == phase)


def make_study(root: Path, steps: int = 6) -> Study:
    """Simulates a training of some steps on one GPU and one package."""
    study: Study = pickle.loads(_simulated(steps))  # noqa: S301 our own, from the lines above
    study.writer.root = root
    return study


@cache
def _simulated(steps: int) -> bytes:
    """Returns a study, packed, for simulating takes longer than unpacking."""
    writer = ArchiveWriter(Path())
    begin = now = START + 2 * NANO
    spans = []
    for _ in range(steps):
        for phase, length, watts in STEP:
            spans.append((phase, now, now + length * MILLI, watts))
            now += length * MILLI
    gpu = staircase([(a, b, watts) for _, a, b, watts in spans], 90.0)
    package = staircase([(a, b, 40 + watts / 10) for _, a, b, watts in spans], 30.0)
    writer.devices = [
        SimulatedDevice("GPU-aaaa", "gpu", gpu, 20 * MILLI, 3 * MILLI, power_update_nano=20 * MILLI),
        SimulatedDevice("package-0", "package", package, MILLI, sensor="rapl"),
    ]
    writer.run("run-1", begin, now, run="study", gpu_uuids=["GPU-aaaa"], gpu_source="torch", seed=0)
    for phase, a, b, _ in spans:
        told: dict[str, Any] = {"tokens": TOKENS[phase]} if phase in TOKENS else {}
        writer.phase("run-1", phase, a, b, **told)
    writer.measure(START, now + NANO)
    return pickle.dumps(Study(writer, begin, now, spans))


@pytest.fixture(scope="module")
def easily_content() -> Iterator[None]:
    """`auto` takes overlap however wide it is: for tests of pages and tables, not of numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "GOOD_ENOUGH", float("inf"))
        yield


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A training of six steps; write it with `study.writer.write()`."""
    return make_study(tmp_path / "archive")
