"""Which devices the sampler shall follow closely: those on which a run is open."""

from wattd.control import Control
from wattd.jobs import State
from wattd.live import devices_of
from wattd.node import Node


class Following:
    """Tells the sampler, from the state alone: so a server that starts anew says the same."""

    def __init__(self, control: Control, node: Node, state: State) -> None:
        self._control = control
        self._node = node
        self._state = state
        self._wanted: frozenset[int] | None = None

    def renew(self) -> None:
        """Say which devices an open rank of an open run uses; all GPUs where it does not know its own."""
        numbers = {view.name: number for number, view in self._node.devices.items()}
        wanted = frozenset(
            numbers[view.name]
            for run in self._state.open_runs()
            for number, rank in run.ranks.items()
            if rank.end_nano is None
            for view in devices_of(self._node, run, number)
        )
        if wanted != self._wanted:
            self._control.want(wanted)
            self._wanted = wanted
