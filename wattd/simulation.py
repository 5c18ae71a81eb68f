"""How simulated devices follow the phases of the runs that use them.

The table is made up, but of the order that such phases have on an H100 node; everything it leads
to says `simulated`.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from wattd.control import Control
from wattd.jobs import State
from wattd.live import devices_of
from wattd.node import Node
from wattd.values import Domain, Source


class Watts(NamedTuple):
    """Power of one device of each domain in a phase, watts."""

    gpu: float
    package: float
    dram: float


OTHER = Watts(400.0, 120.0, 20.0)
PHASE_WATTS: Mapping[str, Watts] = MappingProxyType(
    {
        "teacher_forward": Watts(620.0, 120.0, 18.0),
        "student_forward": Watts(450.0, 120.0, 18.0),
        "backward": Watts(540.0, 120.0, 18.0),
        "optimizer_step": Watts(320.0, 110.0, 24.0),
        "data_load": Watts(130.0, 190.0, 30.0),
        "eval": Watts(500.0, 130.0, 18.0),
    }
)
"""By the name of the phase, or what stands before its colon."""

_IDLE = 0.0  # tells the device to draw what it draws when nothing runs


class Steering:
    """Sets the power of simulated devices after each batch of marks."""

    def __init__(self, control: Control, node: Node, state: State) -> None:
        self._control = control
        self._node = node
        self._state = state
        self._ranks: dict[tuple[str, int], Watts] = {}

    def note(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take the lines of a batch; the state knows them already."""
        if not any(view.described["source"] == Source.SIMULATED for view in self._node.devices.values()):
            return
        closed: dict[tuple[str, int], list[tuple[int, str]]] = {}
        for line in lines:
            if "rank" in line and "boot_id" not in line:
                phases = closed.setdefault((line["run_id"], line["rank"]), [])
                if line["type"] == "phase":
                    phases.append((line["end_monotonic_nano"] - line["begin_monotonic_nano"], line["phase"]))
        for place, phases in closed.items():
            self._note_rank(place, phases)
        if closed:
            self._steer()

    def _note_rank(self, place: tuple[str, int], closed: list[tuple[int, str]]) -> None:
        run_id, number = place
        run = self._state.runs.get(run_id)
        rank = run.ranks.get(number) if run else None
        if rank is None or rank.end_nano is not None:
            self._ranks.pop(place, None)
            return
        client = self._state.clients.get(rank.client)
        opened = [phase for phase in client.phases.values() if phase.run_id == run_id] if client else []
        if opened:
            self._ranks[place] = _watts(max(opened, key=lambda phase: phase.begin_nano).phase)
        elif total := sum(nanoseconds for nanoseconds, _ in closed):
            weighed = [(nanoseconds / total, _watts(phase)) for nanoseconds, phase in closed]
            self._ranks[place] = Watts(
                *(sum(share * watts[domain] for share, watts in weighed) for domain in range(3))
            )

    def _steer(self) -> None:
        """Each device draws what the hungriest rank that uses it asks for."""
        wanted = {number: _IDLE for number, view in self._node.devices.items() if _is_steered(view.described)}
        numbers = {view.name: number for number, view in self._node.devices.items()}
        for (run_id, rank), watts in self._ranks.items():
            run = self._state.runs.get(run_id)
            for view in devices_of(self._node, run, rank) if run else ():
                number = numbers[view.name]
                if number in wanted:
                    wanted[number] = max(wanted[number], getattr(watts, view.domain))
        for number, power_watts in wanted.items():
            self._control.set_watts(number, power_watts)


def _is_steered(described: Mapping[str, Any]) -> bool:
    domains = (Domain.GPU, Domain.PACKAGE, Domain.DRAM)
    return described["source"] == Source.SIMULATED and described["domain"] in domains


def _watts(phase: str) -> Watts:
    return PHASE_WATTS.get(phase.partition(":")[0], OTHER)
