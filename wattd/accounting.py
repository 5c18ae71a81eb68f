"""Hangs the live figures together: what events mean for the ledger, the phases and simulated devices."""

from collections.abc import Iterable, Mapping
from typing import Any

from wattd.control import Control
from wattd.following import Following
from wattd.jobs import State
from wattd.ledger import Ledger
from wattd.live import PhaseEnergies, job_devices
from wattd.node import Node
from wattd.simulation import Steering
from wattd.values import NANOSECONDS_PER_SECOND

_PATIENCE_NANO = 2 * NANOSECONDS_PER_SECOND
"""The ledger runs so far behind, because marks come in batches."""

_FORGET_NANO = 300 * NANOSECONDS_PER_SECOND


class Accounting:
    """Takes events as they are appended, and divides energy once a second.

    Attributes:
        ledger: Energy by job, idle and unattributed.
        phases: Energy by phase.
    """

    def __init__(self, state: State, node: Node, control: Control, tick_nano: int) -> None:
        self._state = state
        self._node = node
        self._steering = Steering(control, node, state)
        self._following = Following(control, node, state)
        self._restored = False
        self.ledger = Ledger()
        self.phases = PhaseEnergies(state, node, tick_nano)

    def note(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take lines of kind=events that the state knows already."""
        is_run = False
        for line in lines:
            kind = line["type"]
            if "boot_id" in line:
                continue  # another boot's clock: nothing live can be said of it
            if kind == "phase":
                self.phases.note_end(line)
            elif kind == "phase_begin":
                self.phases.note_begin(line)
            elif kind in ("run_begin", "run_update"):
                is_run = True
                self._claim(line["run_id"], line["rank"], line["monotonic_nano"])
            elif kind == "run_end":
                is_run = True
                self.ledger.release((line["run_id"], line["rank"]), line["monotonic_nano"])
        self._steering.note(lines)
        if is_run:
            self._following.renew()

    def _claim(self, run_id: str, rank: int, begin_nano: int) -> None:
        run = self._state.runs.get(run_id)
        # Before the devices are known there is nothing to claim; `settle` makes up for it.
        if run is not None and rank in run.ranks and self._node.devices:
            devices = job_devices(self._node, run.ranks[rank].gpu_uuids)
            self.ledger.claim((run_id, rank), run.job_id, devices, begin_nano)

    def settle(self, now_nano: int) -> None:
        """Once a second: divide what is old enough for its marks to be here."""
        if not self._node.devices:
            return
        if not self._restored:
            self._restored = True
            for run in self._state.open_runs():
                for number, rank in run.ranks.items():
                    if rank.end_nano is None and not self.ledger.is_claimed((run.run_id, number)):
                        self._claim(run.run_id, number, rank.begin_nano)
        self._following.renew()
        self.phases.settle()
        for view in self._node.accounted():
            self.ledger.advance(view.name, view.history, now_nano - _PATIENCE_NANO)
        for job in list(self._state.jobs.values()):
            if job.end_nano is not None and now_nano - job.end_nano > _FORGET_NANO:
                self.ledger.forget(job.job_id)
                self.phases.forget(job.job_id)
