"""A whole daemon on a simulated NVML that misbehaves: everything is survived and said, nothing invented."""

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, lines, wait_until
from tests.nvml.driver import CompilerMissingError, Trace, build

WATTS = 300.0
UUID = "GPU-00000000-0000-4000-8000-00000000000{}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("nvml"))
    except CompilerMissingError as error:
        assert not os.environ.get("CI"), "CI has a C compiler"
        pytest.skip(f"left out: {error}")


class World:
    """A daemon over GPUs that draw 300 W each, and what its archive says."""

    def __init__(self, daemon: Daemon, trace: Trace) -> None:
        self.daemon, self.trace = daemon, trace

    def later_ms(self, after_ms: float = 0) -> float:
        """A moment from now, as the settings count it."""
        return self.trace.since_epoch_ms() + after_ms

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in lines(self.daemon.archive, "events") if line["type"] == kind]

    def gaps(self, gpu: int) -> list[tuple[str, float]]:
        """Reason and seconds of each gap of a GPU."""
        return [
            (gap["reason"], (gap["end_monotonic_nano"] - gap["begin_monotonic_nano"]) / 1e9)
            for gap in self.events("gap")
            if gap.get("device") == UUID.format(gpu)
        ]

    def energies(self, gpu: int) -> list[tuple[float, float]]:
        """(seconds since the trace began, joules) of each edge of a GPU's counter."""
        found = []
        for line in lines(self.daemon.archive, "samples"):
            if line["type"] == "tick" and gpu in line.get("device", ()):
                place = line["device"].index(gpu)
                read_us = line.get("read_us", [0] * len(line["device"]))[place]
                seconds = (line["monotonic_nano"] - self.trace.epoch_nano) / 1e9 + read_us / 1e6
                found.append((seconds, line["energy_joules"][place]))
        return found

    def powers(self, gpu: int) -> set[float]:
        return {
            line["power_watts"][line["power_device"].index(gpu)]
            for line in lines(self.daemon.archive, "samples")
            if gpu in line.get("power_device", ())
        }


@pytest.fixture
def world(library: Path, tmp_path: Path) -> Iterator[World]:
    with (
        Trace.create(tmp_path / "trace", gpus=4, watts=WATTS) as trace,
        Daemon(tmp_path / "d", "--sensors", "nvml", environment=trace.environment(library)) as daemon,
    ):
        yield World(daemon, trace)


def check(world: World, gpu: int, unknown_seconds: float) -> None:
    """Energy never falls, and lacks at most what was drawn while nobody could know."""
    edges = world.energies(gpu)
    joules = [energy for _, energy in edges]
    assert joules == sorted(joules)
    drawn = (edges[-1][0] - edges[0][0]) * WATTS
    # A reading ten times a second sees an update up to 0.1 s after it: at either end.
    assert drawn - (unknown_seconds + 0.25) * WATTS <= joules[-1] - joules[0] <= drawn + 0.25 * WATTS


def test_faults_of_single_gpus(world: World) -> None:
    """A blip, a counter that begins anew, a call that hangs and a lost GPU, each on a GPU of its own."""
    time.sleep(0.5)
    now = world.later_ms()
    world.trace.set(
        **{"blip_at_ms@0": now, "blip_ms@0": 600, "reset_at_ms@1": now + 300},
        **{"hang_at_ms@2": now, "hang_ms@2": 1500, "lost_after_ms@3": now},
    )
    wait_until(lambda: world.gaps(2))
    lost_until = world.later_ms() / 1000
    world.trace.set(**{"lost_after_ms@3": -1})
    wait_until(lambda: world.gaps(3))
    time.sleep(0.5)
    assert world.daemon.stop() == 0
    assert world.gaps(0) == []
    assert world.powers(0) == {WATTS}, "0 mW is no power"
    assert [reason for reason, _ in world.gaps(1)] == ["counter_reset"]
    ((reason, seconds),) = world.gaps(2)
    assert reason == "sensor_down"
    assert seconds == pytest.approx(1.5, abs=0.3)
    assert "sensor_down" in {reason for reason, _ in world.gaps(3)}
    for gpu, unknown in enumerate([0.0, 0.2, 0.0, 0.0]):
        check(world, gpu, unknown)
    meanwhile = [seconds for seconds, _ in world.energies(0) if now / 1000 + 0.7 < seconds < lost_until]
    assert max(later - earlier for earlier, later in pairwise(meanwhile)) < 0.25, (
        "the others are read as ever"
    )
    reasons = " ".join(event["reason"] for event in world.events("sensor"))
    assert "GPU is lost" in reasons
    assert "has not returned" in reasons
    assert world.events("sensor")[-1]["up"] is True
    assert world.daemon.log() == ""


def test_restart_of_the_driver(world: World) -> None:
    """The driver is unloaded for a second: found again by UUID; the counters begin anew, and that is said."""
    time.sleep(0.5)
    world.trace.set(restart_at_ms=world.later_ms(), restart_ms=1200)
    wait_until(lambda: all(len(world.gaps(gpu)) >= 2 for gpu in range(4)))
    time.sleep(0.5)
    assert world.daemon.stop() == 0
    for gpu in range(4):
        assert {reason for reason, _ in world.gaps(gpu)} == {"sensor_down", "counter_reset"}
        down = max(seconds for _, seconds in world.gaps(gpu))
        assert 1.0 < down < 4.5
        check(world, gpu, down)
    assert world.events("sensor")[-1]["up"] is True
    assert world.daemon.log() == ""
