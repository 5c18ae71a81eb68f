from typing import Any

import pytest

from wattd.jobs import State
from wattd.live import UNRESOLVED, PhaseEnergies
from wattd.node import Node

_MS = 1_000_000
_T = 10**12
_CLIENT = "a" * 32


class _World:
    """Two GPUs and a package that use a millijoule each millisecond, so that energies read as times."""

    def __init__(self) -> None:
        self.node, self.state = Node(), State()
        self.node.announce(
            {
                "number": number,
                "device": name,
                "domain": domain,
                "source": "simulated",
                "index": 0,
                "sensor": "simulated",
                "update_nano": update,
            }
            for number, name, domain, update in (
                (0, "GPU-a", "gpu", 100 * _MS),
                (1, "GPU-b", "gpu", 100 * _MS),
                (2, "package-0", "package", _MS),
            )
        )
        for view in self.node.devices.values():
            for step in range(700):
                view.history.append(_T + step * 100 * _MS, step * 100_000)
        self.node.clock = (_T + 70_000 * _MS, 0)
        self.phases = PhaseEnergies(self.state, self.node, 10 * _MS)
        self.number = 0

    def run(self, rank: int = 0, **changed: Any) -> None:
        line = {"type": "run_begin", "client": _CLIENT, "mark": 1, "monotonic_nano": _T, "run_id": "r"}
        line |= {"run": "r", "rank": rank, "local_rank": rank, "job_id": "j", "user": "u"}
        self.state.apply({**line, "account": "none", "partition": "none", **changed})

    def line(self, phase: str, begin_ms: float, end_ms: float, **changed: Any) -> dict[str, Any]:
        self.number += 1
        line = {"type": "phase", "client": _CLIENT, "run_id": "r", "rank": 0, "thread": 0, "phase": phase}
        line |= {"phase_number": self.number, "begin_monotonic_nano": _T + int(begin_ms * _MS)}
        return {**line, "end_monotonic_nano": _T + int(end_ms * _MS), **changed}

    def phase(self, phase: str, begin_ms: float, end_ms: float, **changed: Any) -> None:
        line = self.line(phase, begin_ms, end_ms, **changed)
        self.state.apply(line)
        self.phases.note_end(line)

    def begin(self, phase: str, begin_ms: float, number: int) -> None:
        line = self.line(phase, begin_ms, begin_ms, type="phase_begin", phase_number=number)
        self.state.apply(line)
        self.phases.note_begin(line)

    def settled(self, device: str = "GPU-a") -> dict[str, int]:
        self.phases.settle()
        self.phases.settle()
        return {
            phase: energy // 1000
            for (_, phase, name), energy in self.phases.microjoules.items()
            if name == device
        }


@pytest.fixture
def world() -> _World:
    return _World()


def test_long_phases_have_their_name_and_short_ones_none(world: _World) -> None:
    """Five updates of the device on average are the bound, per device."""
    world.run()
    world.phase("long", 1000, 1600)
    world.phase("short", 2000, 2060)
    assert world.settled("GPU-a") == {"long": 600, UNRESOLVED: 60}
    assert world.settled("package-0") == {"long": 600, "short": 60}


def test_a_nested_phase_takes_its_energy_out_of_the_outer_one(world: _World) -> None:
    """Rows of one thread are disjoint, whichever way the begin came."""
    world.run()
    world.begin("outer", 1000, 500)
    world.phase("inner", 2000, 3000)
    world.settled()
    world.phase("innermost", 4000, 4600)
    world.phase("inner", 3500, 5000)
    world.phase("outer", 1000, 9000, phase_number=500)
    assert world.settled() == {"inner": 1000 + 900, "innermost": 600, "outer": 8000 - 2500}


def test_each_rank_counts_on_its_gpus_and_the_lowest_on_what_all_share(world: _World) -> None:
    """A package's energy is not counted once for each rank."""
    world.run(0, gpu_uuids=["GPU-a"])
    world.run(1, gpu_uuids=["GPU-b"])
    world.phase("p", 1000, 2000)
    world.phase("p", 1000, 1700, rank=1, thread=1)
    assert world.settled("GPU-a") == {"p": 1000}
    assert world.settled("GPU-b") == {"p": 700}
    assert world.settled("package-0") == {"p": 1000}


def test_nothing_is_counted_that_no_reading_covers(world: _World) -> None:
    """Marks that come a day late, or run ahead of the readings, have no live energy: not 0, none."""
    world.run()
    world.phase("early", -90_000_000, -80_000_000)
    world.phase("ahead", 69_000, 75_000)
    assert world.settled() == {}


def test_a_flood_of_phases_is_counted_together(world: _World) -> None:
    """Above the bound the work stays small and the energy is still there."""
    world.run()
    for number in range(3000):
        world.phase("tiny", 1000 + number, 1000 + number + 0.5)
    assert world.settled() == {UNRESOLVED: 1500}


def test_phases_of_a_job_can_be_forgotten(world: _World) -> None:
    """Ended jobs do not stay for ever."""
    world.run()
    world.phase("long", 1000, 2000)
    assert world.settled()
    world.phases.forget("j")
    assert not world.phases.microjoules
