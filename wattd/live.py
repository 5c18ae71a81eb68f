"""Energy per phase, live: a convenience beside what `wattq phases` says from the archive.

The counter is shared out by time, without an error bar, and only for phases that are long against
the device's updates; the energy of shorter ones is kept together under UNRESOLVED. A nested phase
takes its energy out of the outer one; phases of different threads are each given the whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wattd.history import History
from wattd.jobs import State
from wattd.node import DeviceView, Node
from wattd.runs import Job, Run
from wattd.values import NANOSECONDS_PER_SECOND, Domain

UNRESOLVED = "(unresolved)"

UPDATES_PER_PHASE = 5
"""Mean duration of a phase, in update periods, from which it is shown by name."""

_MOST_A_SECOND = 1_000
"""So many phases a second are looked at one by one; the others are counted together."""

_LOOSE_NANO = 10 * NANOSECONDS_PER_SECOND
_UNKNOWN_PERIOD_NANO = 100_000_000


@dataclass(slots=True)
class _Ended:
    """A phase that has ended, or several in a row: `busy_nano` of the time was in phases."""

    run_id: str
    rank: int
    phase: str
    begin_nano: int
    end_nano: int
    busy_nano: int
    number: int = 0

    def energy(self, history: History) -> int | None:
        """Its energy, microjoules; None where the history does not reach."""
        energy = history.between(self.begin_nano, self.end_nano)
        span = self.end_nano - self.begin_nano
        return energy if energy is None or self.busy_nano >= span else energy * self.busy_nano // span


@dataclass(slots=True)
class _Open:
    """A phase that is open: where the counters stood, and what inner phases used since."""

    begin_nano: int
    counters: dict[str, int]
    inner: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Thread:
    """One thread of a client: its phases nest."""

    open: dict[int, _Open] = field(default_factory=dict)
    loose: list[_Ended] = field(default_factory=list)

    def take_inner(self, begin_nano: int) -> list[_Ended]:
        """Take the ended phases that lie in one that began at a moment."""
        place = len(self.loose)
        while place and self.loose[place - 1].begin_nano >= begin_nano:
            place -= 1
        inner = self.loose[place:]
        del self.loose[place:]
        return inner


class PhaseEnergies:
    """Energies of phases by (job, phase, device).

    Attributes:
        microjoules: The sums; they never go down.
    """

    def __init__(self, state: State, node: Node, tick_nano: int) -> None:
        """Make it; `tick_nano` is the time between two readings of a device."""
        self.microjoules: dict[tuple[str, str, str], int] = {}
        self._state = state
        self._node = node
        self._tick_nano = tick_nano
        self._threads: dict[tuple[str, int], _Thread] = {}
        self._arrived: list[tuple[tuple[str, int], _Ended]] = []
        self._waiting: list[tuple[tuple[str, int], _Ended]] = []
        self._begun: list[tuple[tuple[str, int], Mapping[str, Any]]] = []
        self._crowd: dict[tuple[str, int], _Ended] = {}

    def note_begin(self, line: Mapping[str, Any]) -> None:
        """Take a `phase_begin` line."""
        self._begun.append(((line["client"], line["thread"]), line))

    def note_end(self, line: Mapping[str, Any]) -> None:
        """Take a `phase` line."""
        begin, end = line["begin_monotonic_nano"], line["end_monotonic_nano"]
        key = line["client"], line["thread"]
        if len(self._arrived) < _MOST_A_SECOND:
            ended = _Ended(
                line["run_id"], line["rank"], line["phase"], begin, end, end - begin, line["phase_number"]
            )
            self._arrived.append((key, ended))
            return
        crowd = self._crowd.get(key)
        if crowd is None or crowd.run_id != line["run_id"]:
            self._crowd[key] = _Ended(line["run_id"], line["rank"], UNRESOLVED, begin, end, end - begin)
            return
        crowd.begin_nano = min(crowd.begin_nano, begin)
        crowd.busy_nano += max(0, end - max(begin, crowd.end_nano))
        crowd.end_nano = max(crowd.end_nano, end)

    def settle(self) -> None:
        """Once a second: count what arrived before the last call; its readings are there by now."""
        for key, line in self._begun:
            self._begin(key, line)
        self._begun.clear()
        due = sorted(self._waiting, key=lambda item: (item[1].end_nano, -item[1].begin_nano))
        self._waiting = self._arrived + list(self._crowd.items())
        self._arrived, self._crowd = [], {}
        for key, ended in due:
            self._end(key, ended)
        for key, thread in list(self._threads.items()):
            self._tidy(key, thread)

    def _begin(self, key: tuple[str, int], line: Mapping[str, Any]) -> None:
        thread = self._threads.setdefault(key, _Thread())
        counters = {
            view.name: energy
            for view in self._devices(line["run_id"], line["rank"])
            if (energy := view.history.at(line["begin_monotonic_nano"])) is not None
        }
        thread.open[line["phase_number"]] = _Open(line["begin_monotonic_nano"], counters)

    def _end(self, key: tuple[str, int], ended: _Ended) -> None:
        thread = self._threads.setdefault(key, _Thread())
        opened = thread.open.pop(ended.number, None) if ended.number else None
        inner = thread.take_inner(ended.begin_nano)
        run = self._state.runs.get(ended.run_id)
        job = self._state.jobs.get(run.job_id) if run else None
        if job is None:
            return
        for view in self._devices(ended.run_id, ended.rank):
            energy = self._energy_of(ended, opened, view)
            if energy is None:
                continue
            energy -= sum(phase.energy(view.history) or 0 for phase in inner)
            energy -= opened.inner.get(view.name, 0) if opened else 0
            place = (job.job_id, self._name(job, ended.phase, view), view.name)
            self.microjoules[place] = self.microjoules.get(place, 0) + max(0, energy)
        thread.loose.append(ended)

    @staticmethod
    def _energy_of(ended: _Ended, opened: _Open | None, view: DeviceView) -> int | None:
        """Energy of a phase with all that it encloses."""
        if opened is None or opened.begin_nano != ended.begin_nano or view.name not in opened.counters:
            return ended.energy(view.history)
        counter = view.history.at(ended.end_nano)
        return None if counter is None else counter - opened.counters[view.name]

    def _name(self, job: Job, phase: str, view: DeviceView) -> str:
        """The name a phase has for a device: its own, `other` or UNRESOLVED."""
        if phase == UNRESOLVED:
            return UNRESOLVED
        name = job.name_of(phase)
        total = job.phases.get(name)
        period = max(view.described.get("update_nano") or _UNKNOWN_PERIOD_NANO, self._tick_nano)
        if total and total.nanoseconds >= UPDATES_PER_PHASE * period * total.instances:
            return name
        return UNRESOLVED

    def _devices(self, run_id: str, rank: int) -> list[DeviceView]:
        run = self._state.runs.get(run_id)
        return list(devices_of(self._node, run, rank)) if run and not run.boot_id else []

    def _tidy(self, key: tuple[str, int], thread: _Thread) -> None:
        """Give ended phases to the open one around them; forget those that nothing encloses."""
        if thread.open and thread.loose:
            newest = max(thread.open.values(), key=lambda phase: phase.begin_nano)
            for ended in thread.take_inner(newest.begin_nano):
                for view in self._devices(ended.run_id, ended.rank):
                    energy = ended.energy(view.history) or 0
                    newest.inner[view.name] = newest.inner.get(view.name, 0) + energy
        latest = thread.loose[-1].end_nano if thread.loose else 0
        thread.loose = [ended for ended in thread.loose if latest - ended.end_nano < _LOOSE_NANO]
        if not thread.open and self._node.clock[0] - latest > _LOOSE_NANO:
            del self._threads[key]

    def forget(self, job_id: str) -> None:
        """Drop the sums of a job."""
        for place in [place for place in self.microjoules if place[0] == job_id]:
            del self.microjoules[place]


def devices_of(node: Node, run: Run, rank: int) -> Iterable[DeviceView]:
    """The devices that the phases of a rank cut: its GPUs, and on the lowest rank what all share."""
    uuids = run.ranks[rank].gpu_uuids if rank in run.ranks else []
    is_lowest = rank == run.lowest_rank
    for view in node.accounted():
        if view.domain == Domain.GPU:
            if not uuids or view.name in uuids:
                yield view
        elif is_lowest:
            yield view


def job_devices(node: Node, gpu_uuids: Iterable[str]) -> list[str]:
    """The devices a local job has: the GPUs it names (else all), and every package and DRAM."""
    uuids = set(gpu_uuids)
    return [
        view.name for view in node.accounted() if view.domain != Domain.GPU or not uuids or view.name in uuids
    ]
