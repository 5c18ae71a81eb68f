"""Simulated hardware shows what real hardware would show of the power it is told to draw."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattd.config import SimulatedConfig
from wattd.control import Control
from wattd.counter import Counter as EnergyCounter
from wattd.sensors.simulated import Simulated
from wattd.values import Domain, Source

MILLISECOND = 1_000_000
GPU, PACKAGE = 0, 2


@pytest.fixture
def control() -> Iterator[Control]:
    """The server's block."""
    control = Control.create(16)
    yield control
    control.close()


def node(control: Control) -> Simulated:
    """Two GPUs, a package and a DRAM domain, from number 0 on."""
    return Simulated(SimulatedConfig(gpus=2, packages=1), control, 0)


def test_devices_say_that_they_are_simulated(control: Control) -> None:
    """By default 8 GPUs and 4 RAPL domains, each labelled."""
    channels = Simulated(SimulatedConfig(), control, 0).open()
    domains = [channel.device.domain for channel in channels]
    assert Counter(domains) == {Domain.GPU: 8, Domain.PACKAGE: 2, Domain.DRAM: 2}
    assert all(channel.device.source is Source.SIMULATED for channel in channels)
    assert len({channel.device.device for channel in channels}) == 12


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(100, 700), st.integers(20, 400)), min_size=1, max_size=8))
def test_counter_holds_the_energy_that_was_drawn(levels: list[tuple[float, int]]) -> None:
    """After any load, a GPU's and a package's counter are at most one update behind the truth."""
    control = Control.create(16)
    channels = node(control).open()
    now, true = 1_000 * MILLISECOND, 0.0
    readings = [channel.read(now) for channel in channels]
    start = [reading.energy_microjoules or 0 for reading in readings]
    for watts, milliseconds in levels:
        control.set_watts(GPU, watts)
        control.set_watts(PACKAGE, watts)
        for channel in channels:
            channel.read(now)  # the load is seen from here on
        for _ in range(milliseconds):
            now += MILLISECOND
            readings = [channel.read(now) for channel in channels]
        true += watts * milliseconds * 1000
    control.close()
    for number, period_ms in ((GPU, 102), (PACKAGE, 1)):
        shown = (readings[number].energy_microjoules or 0) - start[number]
        assert true - 700 * 1000 * period_ms - 2000 <= shown <= true + 2000


def test_package_counter_wraps(control: Control) -> None:
    """A simulated RAPL counter wraps where its range says, and the wrap can be undone."""
    channel = node(control).open()[PACKAGE]
    counter_range = channel.device.counter_range_microjoules or 0
    control.set_watts(PACKAGE, 1900.0)
    counter, now = EnergyCounter(counter_range), 0
    for _ in range(1600):
        now += 100 * MILLISECOND
        total = counter.update(channel.read(now).energy_microjoules or 0, now)
    assert total > counter_range
    assert total == pytest.approx(1900.0 * 159.9e6, rel=1e-3)


def test_power_is_the_mean_of_a_quarter_period(control: Control) -> None:
    """A GPU's power reading shows the last 25 ms before its update, so a fresh load is seen in full."""
    channel = node(control).open()[GPU]
    control.set_watts(GPU, 600.0)
    shown = [channel.read(now * MILLISECOND).power_watts for now in range(1, 400)]
    assert shown[-1] == pytest.approx(600, abs=3)
    assert len(set(shown)) <= 6, "it changes with the updates only"
