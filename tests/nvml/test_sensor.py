"""The simulated sensors against a reckoning of their own: what a die draws, smeared, delayed and averaged."""

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nvml.driver import FOLDER, Trace, build

STEP = 20e-6
Steps = list[tuple[float, float]]
Open = Callable[..., "Probe"]


class Probe:
    """A freshly loaded library and its trace; times in seconds after the epoch."""

    def __init__(self, path: Path, trace: Trace) -> None:
        self.trace = trace
        self._library = ctypes.CDLL(str(path))
        self._library.probe_millijoules.restype = ctypes.c_ulonglong
        self._library.probe_update.restype = ctypes.c_double
        assert self._library.probe_open() == 0

    def draw(self, steps: Steps, gpu: int = 0) -> None:
        for seconds, watts in steps:
            self.trace.draw(watts, gpu, self.trace.epoch_nano + round(seconds * 1e9))

    def joules(self, time: float, gpu: int = 0) -> float:
        millijoules: int = self._library.probe_millijoules(gpu, ctypes.c_double(time))
        return millijoules / 1e3

    def watts(self, time: float, *, is_average: bool = False) -> float:
        milliwatts: int = self._library.probe_milliwatts(0, ctypes.c_double(time), int(is_average))
        return milliwatts / 1e3

    def update(self, time: float, stream: int = 0) -> float:
        moment: float = self._library.probe_update(0, ctypes.c_double(time), stream)
        return moment


@pytest.fixture(scope="session")
def probe_library(must_have_compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("probe"), FOLDER / "probe.c")


@pytest.fixture
def probe(probe_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a library with these settings; a copy, since a loaded library keeps its trace."""
    opened = list[Trace]()

    def open_one(**values: Any) -> Probe:
        name = f"{len(opened)}"
        opened.append(Trace.create(tmp_path / f"{name}.trace", capacity=64, **values))
        monkeypatch.setenv("NVML_TRACE", str(opened[-1].path))
        return Probe(Path(shutil.copy(probe_library, tmp_path / f"{name}.so")), opened[-1])

    yield open_one
    for trace in opened:
        trace.close()


def board_joules(steps: Steps, idle_watts: float, rise: float, until: float) -> float:
    """Energy of a board that follows its die by a first-order rise, in small steps."""
    time = (np.arange(round(until / STEP)) + 0.5) * STEP
    starts = np.array([0.0] + [seconds for seconds, _ in steps])
    watts = np.array([idle_watts] + [watts for _, watts in steps])
    die = watts[np.searchsorted(starts, time, side="right") - 1]
    if rise == 0:
        return float(die.sum() * STEP)
    level, total = idle_watts, 0.0
    share = 1 - np.exp(-STEP / rise)
    for power in die.tolist():
        middle = level + (power - level) * share / 2
        level += (power - level) * share
        total += middle * STEP
    return total


STEPS = st.lists(st.tuples(st.floats(0.001, 0.04), st.floats(50, 700)), min_size=1, max_size=6).map(
    lambda parts: [(sum(length for length, _ in parts[: n + 1]), watts) for n, (_, watts) in enumerate(parts)]
)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(steps=STEPS, rise_ms=st.sampled_from([0.0, 0.5, 3.0, 8.0]), delay_ms=st.floats(0, 8))
def test_counter_shows_the_smeared_energy_of_its_last_update(
    probe: Open, steps: Steps, rise_ms: float, delay_ms: float
) -> None:
    """The counter is the board's energy, delayed, as of its last update, to its quantum."""
    one = probe(watts=95, rise_ms=rise_ms, counter_delay_ms=delay_ms, counter_start_joules=1000, jitter_ms=1)
    one.draw(steps)
    update = one.update(0.35)
    expected = 1000 + board_joules(steps, 95, rise_ms / 1e3, update - delay_ms / 1e3)
    assert one.joules(0.35) == pytest.approx(expected, abs=0.03)
    assert one.joules(update - 1e-6) < one.joules(update + 1e-6)


@FEW
@given(
    steps=STEPS, rise_ms=st.sampled_from([0.0, 3.0]), delay_ms=st.floats(0, 8), window_ms=st.floats(5, 100)
)
def test_power_shows_the_mean_of_its_window(
    probe: Open, steps: Steps, rise_ms: float, delay_ms: float, window_ms: float
) -> None:
    """The power reading is gain times the mean before its own last update, plus offset."""
    one = probe(
        watts=95,
        rise_ms=rise_ms,
        power_delay_ms=delay_ms,
        power_window_ms=window_ms,
        power_phase_ms=37,
        jitter_ms=1,
        gain=0.954,
        offset_watts=-1.2,
    )
    one.draw(steps)
    end = one.update(0.3, stream=1) - delay_ms / 1e3
    begin = end - window_ms / 1e3
    rise = rise_ms / 1e3
    mean = (board_joules(steps, 95, rise, end) - board_joules(steps, 95, rise, begin)) / (window_ms / 1e3)
    # A step of the reckoning may fall to either side of a window's edge.
    assert one.watts(0.3) == pytest.approx(0.954 * mean - 1.2, abs=0.01 + 700 * 2 * STEP / (window_ms / 1e3))


def test_smearing_loses_no_energy(probe: Open) -> None:
    """Long after the last step the counter has counted all that the die drew."""
    one = probe(watts=0, rise_ms=5, counter_delay_ms=7, counter_start_joules=0)
    one.draw([(0.01, 620.0), (0.07, 450.0), (0.105, 0.0)])
    assert one.joules(2.0) == pytest.approx(620 * 0.06 + 450 * 0.035, abs=0.002)


def test_updates_lie_on_their_own_grids(probe: Open) -> None:
    """Counter and power update once a period of their own, each within its grid's jitter."""
    one = probe(counter_period_ms=20, power_period_ms=101, power_phase_ms=37, jitter_ms=1, seed=5)
    times = np.linspace(1, 5, 20_000)
    for stream, period, phase in ((0, 0.020, 0.0), (1, 0.101, 0.037)):
        updates = np.unique([one.update(float(time), stream) for time in times])
        share = (updates - phase) / period
        off_grid = np.abs(share - np.round(share)) * period
        assert off_grid.max() <= 0.001 + 1e-9
        assert off_grid.mean() > 0.0002, "there is jitter"
        assert len(np.unique(np.round(share))) == len(updates) == pytest.approx(4 / period, abs=2)


def test_noise_is_as_large_as_it_is_set(probe: Open) -> None:
    """Each power update has its own noise of the set standard deviation, the same whenever it is read."""
    one = probe(watts=300, noise_watts=0.5, seed=9)
    seen = np.array([one.watts(0.05 + 0.1 * number) for number in range(1000)])
    assert seen.mean() == pytest.approx(300, abs=0.08)
    assert seen.std() == pytest.approx(0.5, rel=0.1)
    assert [one.watts(0.09 + 0.1 * number) for number in range(1000)] == seen.tolist()


def test_average_power_is_a_slow_mean(probe: Open) -> None:
    """The average reading is the mean of a second, whatever the window of the instant one."""
    one = probe(watts=100, power_window_ms=25)
    one.draw([(1.5, 500.0)])
    assert one.watts(2.05) == 500
    assert one.watts(2.05, is_average=True) == pytest.approx(300, abs=0.01)


def test_part_time_counter_counts_what_it_sees_for_all(probe: Open) -> None:
    """A counter that looks at a quarter of each period takes that quarter for the whole."""
    one = probe(watts=100, counter_seen_ratio=0.25, counter_start_joules=0)
    one.draw([(0.01, 500.0), (0.07, 100.0), (0.18, 300.0)])  # seen of the first period: nothing of the 500 W
    assert one.joules(0.11) == pytest.approx(100 * 0.1)
    assert one.joules(0.21) == pytest.approx(100 * 0.1 + 0.1 * (0.005 * 100 + 0.020 * 300) / 0.025)
    assert one.joules(0.11) == pytest.approx(100 * 0.1), "also when asked again"


def test_idle_undercount_spares_the_busy_time(probe: Open) -> None:
    """Below the threshold the counter counts its share only, above it all; power is shown in full."""
    one = probe(watts=60, idle_below_watts=80, idle_counted_ratio=0.5, counter_start_joules=0)
    one.draw([(1.0, 400.0)])
    assert one.joules(2.05) == pytest.approx(30 * 1.0 + 400 * 1.0)
    assert one.watts(0.95) == 60


def test_reset_begins_at_zero(probe: Open) -> None:
    """After a reset the counter counts from there, from its last update on."""
    one = probe(watts=200, reset_at_ms=1020, counter_start_joules=5000)
    assert one.joules(1.01) == 5000 + 200
    assert one.joules(1.03) == 0
    assert one.joules(1.55) == pytest.approx(200 * 0.5)


def test_gpus_have_settings_and_steps_of_their_own(probe: Open) -> None:
    """`name@gpu` sets one GPU; a step is one GPU's."""
    one = probe(watts=100, counter_start_joules=0, **{"watts@1": 40})
    one.draw([(1.0, 300.0)], gpu=1)
    assert one.joules(2.0, gpu=0) == 200
    assert one.joules(2.0, gpu=1) == 340


def test_full_trace_is_said(tmp_path: Path) -> None:
    """A trace that is full refuses the next step instead of overwriting another GPU's."""
    with Trace.create(tmp_path / "trace", capacity=2) as trace:
        trace.draw(1.0)
        trace.draw(2.0)
        with pytest.raises(ValueError, match="larger capacity"):
            trace.draw(3.0)


def test_unknown_setting_is_refused(tmp_path: Path) -> None:
    """A setting that the library does not know would change nothing: it is refused."""
    with pytest.raises(ValueError, match=r"no setting wats; settings.h has gpus, seed, watts"):
        Trace.create(tmp_path / "trace", wats=3)
