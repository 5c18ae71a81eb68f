from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.wattd.marking import BOOT, NOW, SECOND, Marker
from wattd.accounting import Accounting
from wattd.control import Control
from wattd.jobs import State
from wattd.marks import Intake
from wattd.node import Node

_JOULE = 1_000_000


class _World:
    """Two simulated GPUs and a package at 100 W each, read every 100 ms."""

    def __init__(self, control: Control, state: State | None = None) -> None:
        self.control, self.node, self.state = control, Node(), state or State()
        self.node.announce(
            {
                "number": number,
                "device": name,
                "domain": domain,
                "source": "simulated",
                "index": 0,
                "sensor": "simulated",
                "update_nano": 100_000_000,
            }
            for number, name, domain in (
                (0, "GPU-a", "gpu"),
                (1, "GPU-b", "gpu"),
                (2, "package-0", "package"),
            )
        )
        for view in self.node.devices.values():
            for step in range(400):
                view.history.append(NOW + step * 100_000_000, step * 10 * _JOULE)
        self.intake = Intake(self.state, BOOT, "ada")
        self.accounting = Accounting(self.state, self.node, control, 10_000_000)

    def take(self, marker: Marker, *marks: Any) -> None:
        self.accounting.note(self.intake.take(marker.request(*marks), NOW + 60 * SECOND).lines)

    def divided(self, device: str, seconds: float) -> tuple[float, dict[str, float]]:
        """Joules of idle and of each job up to a moment."""
        self.accounting.settle(NOW + int((seconds + 2) * SECOND))
        account = self.accounting.ledger.accounts[device]
        return account.idle / _JOULE, {job: energy / _JOULE for job, energy in account.jobs.items()}


@pytest.fixture
def control() -> Iterator[Control]:
    control = Control.create(3)
    yield control
    control.close()


def test_a_run_uses_its_gpus_and_the_packages(control: Control) -> None:
    """From its begin to its end; other GPUs are idle meanwhile."""
    world, marker = _World(control), Marker()
    begin = marker.begin_run(nano=NOW + 2 * SECOND, gpu_uuids=["GPU-a"], gpu_source="torch")
    world.take(marker, begin, marker.end_run(nano=NOW + 6 * SECOND))
    assert world.divided("GPU-a", 10) == (600.0, {"local-run": 400.0})
    assert world.divided("package-0", 10) == (600.0, {"local-run": 400.0})
    assert world.divided("GPU-b", 10) == (1000.0, {})


def test_a_run_whose_gpus_are_unknown_uses_all_until_they_are_known(control: Control) -> None:
    """CUDA is often started after the run."""
    world, marker = _World(control), Marker()
    world.take(marker, marker.begin_run(nano=NOW + SECOND))
    world.take(marker, marker.update_run("run", ["GPU-b"], NOW + 3 * SECOND))
    assert world.divided("GPU-a", 10) == (800.0, {"local-run": 200.0})
    assert world.divided("GPU-b", 10) == (100.0, {"local-run": 900.0})


def test_a_restarted_server_goes_on_with_the_open_runs(control: Control) -> None:
    """What began before it still uses its devices."""
    world, marker = _World(control), Marker()
    world.take(marker, marker.begin_run(nano=NOW + SECOND))
    again = _World(control, State.restore(orjson.loads(world.state.checkpoint())))
    assert again.divided("GPU-a", 10) == (100.0, {"local-run": 900.0})


def test_the_ledger_waits_for_marks_that_are_on_their_way(control: Control) -> None:
    """Marks come in batches: the newest two seconds are divided later."""
    world, marker = _World(control), Marker()
    world.accounting.settle(NOW + 10 * SECOND)
    world.take(marker, marker.begin_run(nano=NOW + 9 * SECOND))
    assert world.divided("GPU-a", 20) == (900.0, {"local-run": 1100.0})


def test_marks_of_another_boot_divide_nothing(control: Control) -> None:
    """Their times mean nothing here."""
    world = _World(control)
    marker = Marker(boot_id="ffff0000-0000-4000-8000-000000000000")
    world.take(marker, marker.begin_run(nano=NOW + SECOND), marker.phase(begin=NOW, end=NOW + 5 * SECOND))
    assert world.divided("GPU-a", 10) == (1000.0, {})
    assert world.accounting.phases.microjoules == {}


def test_simulated_devices_draw_what_the_innermost_open_phase_draws(control: Control) -> None:
    """Else the mean of what ended in the batch, weighted by time; nothing when the run is over."""
    world, marker = _World(control), Marker()
    begin = marker.begin_run(gpu_uuids=["GPU-a"], gpu_source="torch")
    outer, inner = marker.open_phase("step", NOW), marker.open_phase("backward", NOW + 5)
    world.take(marker, begin, outer, inner)
    assert [control.watts(number) for number in range(3)] == [540.0, 0.0, 120.0]
    world.take(marker, marker.phase("step", NOW, NOW + 50, phase_number=1))
    world.take(
        marker, marker.phase("eval:mmlu", NOW, NOW + 30), marker.phase("x", NOW, phase_number=2, end=NOW + 10)
    )
    assert control.watts(0) == pytest.approx((500 * 30 + 400 * 10) / 40)
    world.take(marker, marker.end_run())
    assert [control.watts(number) for number in range(3)] == [0.0, 0.0, 0.0]


def test_the_sampler_is_told_on_which_devices_a_run_is_open(control: Control) -> None:
    """From a run's begin to its end, on its GPUs once they are known; a restarted server says it again."""
    world, marker = _World(control), Marker()
    world.take(marker, marker.begin_run(nano=NOW + SECOND))
    assert control.wanted() == bytes([1, 1, 1])
    world.take(marker, marker.update_run("run", ["GPU-b"], NOW + 3 * SECOND))
    assert control.wanted() == bytes([0, 1, 1])
    control.want(())
    again = _World(control, State.restore(orjson.loads(world.state.checkpoint())))
    again.accounting.settle(NOW + 10 * SECOND)
    assert control.wanted() == bytes([0, 1, 1])
    again.take(marker, marker.end_run())
    assert control.wanted() == bytes(3)


def test_a_run_that_ended_before_a_restart_is_followed_no_longer(control: Control) -> None:
    """What an earlier server asked for is taken back by the state of the new one."""
    control.want({0, 1, 2})
    _World(control).accounting.settle(NOW + 10 * SECOND)
    assert control.wanted() == bytes(3)
