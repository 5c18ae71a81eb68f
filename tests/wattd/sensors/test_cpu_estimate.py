"""The CPU estimate: energy from utilisation between two published figures, and labelled."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattd.config import CpuEstimateConfig
from wattd.sensors import SensorUnavailableError
from wattd.sensors.cpu_estimate import CpuEstimate
from wattd.values import Source

STEP = 100_000_000


def write_stat(proc: Path, busy: int, idle: int) -> None:
    """/proc/stat with so many busy and idle ticks in all."""
    (proc / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A proc file system of an unknown CPU."""
    (tmp_path / "cpuinfo").write_text("vendor_id\t: Somebody\ncpu family\t: 1\nmodel\t\t: 2\n")
    write_stat(tmp_path, 1000, 1000)
    return tmp_path


@pytest.mark.parametrize(("busy_share", "watts"), [(0.0, 20.0), (0.5, 60.0), (1.0, 100.0)])
def test_power_is_linear_in_utilisation(proc: Path, busy_share: float, watts: float) -> None:
    """Idle, half and full load give the lower figure, the middle and the upper figure."""
    sensor = CpuEstimate(CpuEstimateConfig(idle_watts=20, max_watts=100), proc)
    (channel,) = sensor.open()
    channel.read(STEP)
    all_threads = (os.cpu_count() or 1) * 10  # ticks that all threads have in 100 ms
    for number in range(1, 11):
        busy = round(busy_share * all_threads * number)
        write_stat(proc, 1000 + busy, 1000 + all_threads * number - busy)
        reading = channel.read(STEP * (number + 1))
    sensor.close()
    assert reading.energy_microjoules == pytest.approx(watts * 1e6, abs=2)
    assert reading.power_watts is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(9, 400)), min_size=1, max_size=60))
def test_rounding_of_ticks_does_not_add_up(updates: list[tuple[int, int]]) -> None:
    """However ticks fall into readings, the energy is that of the time and of the ticks in all."""
    with tempfile.TemporaryDirectory() as folder:
        proc = Path(folder)
        (proc / "cpuinfo").write_text("")
        write_stat(proc, 1000, 1000)
        sensor = CpuEstimate(CpuEstimateConfig(idle_watts=20, max_watts=100), proc)
        (channel,) = sensor.open()
        now, busy = STEP, 1000
        channel.read(now)
        for ticks, milliseconds in updates:
            now, busy = now + milliseconds * 1_000_000, busy + ticks
            write_stat(proc, busy, 1000)
            channel.read(now)
        reading = channel.read(now + STEP)
        sensor.close()
    seconds, busy_seconds = now / 1e9, (busy - 1000) / os.sysconf("SC_CLK_TCK")
    joules = 20 * seconds + 80 * busy_seconds / (os.cpu_count() or 1)
    assert reading.energy_microjoules == pytest.approx(joules * 1e6, abs=2)


def test_it_says_that_it_is_an_estimate_and_how_wide(proc: Path) -> None:
    """The device is labelled, carries its model's interval and the figures it uses."""
    sensor = CpuEstimate(CpuEstimateConfig(), proc)
    sensor.open()
    sensor.close()
    assert sensor.device.source is Source.ESTIMATED
    assert sensor.device.uncertainty_ratio == 0.7
    assert sensor.device.counter_range_microjoules is None
    assert sensor.device.power_limit_watts == pytest.approx(3.25 * (os.cpu_count() or 1))
    assert "mean of published servers" in sensor.device.model


def test_known_cpu_gets_its_published_figures(proc: Path) -> None:
    """A Zen 3 server takes 0.45 to 1.87 W a thread."""
    (proc / "cpuinfo").write_text("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n")
    sensor = CpuEstimate(CpuEstimateConfig(), proc)
    sensor.open()
    sensor.close()
    threads = os.cpu_count() or 1
    assert f"{0.45 * threads:.3g} to {1.87 * threads:.3g} W (EPYC, third generation)" in sensor.device.model


def test_counters_that_go_back_add_nothing(proc: Path) -> None:
    """Ticks that go back (a CPU was taken offline) take no energy away and are no error."""
    sensor = CpuEstimate(CpuEstimateConfig(idle_watts=20, max_watts=100), proc)
    (channel,) = sensor.open()
    channel.read(STEP)
    write_stat(proc, 10, 10)
    assert channel.read(2 * STEP).energy_microjoules == 20 * 100_000  # idle power alone
    sensor.close()


def test_machine_without_proc_says_so(tmp_path: Path) -> None:
    """No /proc/stat: unavailable, in one line."""
    with pytest.raises(SensorUnavailableError, match="can't be read"):
        CpuEstimate(CpuEstimateConfig(), tmp_path).open()
