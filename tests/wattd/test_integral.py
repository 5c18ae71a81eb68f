"""Counter against power readings: their ratio on devices that tell the truth, and on those that do not."""

import random
from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattd.history import History
from wattd.integral import STRETCH_NANO, Comparison
from wattd.node import Node

SECOND = 1_000_000_000
BEGIN = 1000 * SECOND
UPDATE, WINDOW = SECOND // 10, SECOND // 40


class Truth:
    """Power that swings between phases, and its integral."""

    def __init__(
        self, seed: int, seconds: float, levels: tuple[float, ...] = (130, 620, 450, 540, 320)
    ) -> None:
        rng = random.Random(seed)  # noqa: S311 - a load, not a secret
        self.nanos, watts = [0], list[float]()
        while self.nanos[-1] < seconds * SECOND:
            watts.append(levels[len(watts) % len(levels)] * rng.uniform(0.97, 1.03))
            self.nanos.append(self.nanos[-1] + round(rng.uniform(0.005, 0.3) * SECOND))
        spans = zip(watts, self.nanos, self.nanos[1:], strict=False)
        self.joules = [0.0, *accumulate(power * (end - begin) / SECOND for power, begin, end in spans)]

    def at(self, nano: float) -> float:
        place = bisect_right(self.nanos, nano) - 1
        begin, end = self.nanos[place], self.nanos[place + 1]
        share = (nano - begin) / (end - begin)
        return self.joules[place] + (self.joules[place + 1] - self.joules[place]) * share


def play(
    comparison: Comparison, truth: Truth, seconds: float, *, gain: float = 1.0, counted: float = 1.0
) -> History:
    """Show a counter and power readings of 25 of 100 ms, each on a grid of its own."""
    counter = History()
    for step in range(2, int(seconds * 10)):
        nano = step * UPDATE
        counter.append(BEGIN + nano, round(counted * truth.at(nano) * 1e6))
        power_nano = nano + UPDATE // 3
        watts = (truth.at(power_nano) - truth.at(power_nano - WINDOW)) * SECOND / WINDOW
        comparison.note_power(gain * watts, BEGIN + power_nano)
        if step % 10 == 0:
            comparison.note_power(gain * watts, BEGIN + power_nano + UPDATE // 2)
            comparison.compare(counter)
    return counter


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_two_true_tales_agree(seed: int) -> None:
    """Over ten minutes of a training load, readings that see a quarter of the time agree to 2 per cent."""
    comparison = Comparison()
    play(comparison, Truth(seed, 601), 600)
    assert comparison.ratio == pytest.approx(1, abs=0.02)


def test_a_steady_rise_is_no_disagreement() -> None:
    """Readings lag behind; that is allowed for: power that rises from 100 to 700 W in two minutes."""
    truth = Truth(0, 0)
    truth.nanos = [step * SECOND // 100 for step in range(12_100)]
    truth.joules = list(accumulate((100 + 0.05 * step) / 100 for step in range(12_100)))
    comparison = Comparison()
    play(comparison, truth, 120)
    assert comparison.ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("gain", "counted"), [(1.045, 1.0), (1.0, 0.6)])
def test_a_device_that_contradicts_itself_is_seen(gain: float, counted: float) -> None:
    """A power reading that is 4.5 per cent high, and a counter that counts 60 per cent."""
    comparison = Comparison()
    play(comparison, Truth(1, 301), 300, gain=gain, counted=counted)
    assert comparison.ratio == pytest.approx(counted / gain, rel=0.02)


def test_without_ground_there_is_no_ratio() -> None:
    """Less than 30 s, or an interruption every 20 s: nothing is said."""
    comparison = Comparison()
    play(comparison, Truth(2, 30), STRETCH_NANO / SECOND - 0.5)
    assert comparison.ratio is None
    again, truth = Comparison(), Truth(3, 100)
    for _ in range(4):
        play(again, truth, 20)
        again.interrupt()
    assert again.ratio is None


def test_a_constant_reading_holds() -> None:
    """A reading that does not change holds as long as the device is heard of, and no longer."""
    comparison, counter = Comparison(), History()
    comparison.note_power(200.0, BEGIN)
    for second in range(1, 40):
        counter.append(BEGIN + second * SECOND, second * 200_000_000)
        comparison.note_power(200.0, BEGIN + second * SECOND + 1)
        comparison.compare(counter)
    assert comparison.ratio == pytest.approx(1, abs=1e-6)
    comparison.note_power(200.0, BEGIN + 60 * SECOND)
    counter.append(BEGIN + 60 * SECOND, 10**12)
    comparison.compare(counter)
    assert comparison.ratio == pytest.approx(1, abs=1e-6), "nobody knows what it was in twenty silent seconds"


def _second(second: int, powered: list[int]) -> dict[str, object]:
    nano = BEGIN + second * SECOND
    return {
        "monotonic_nano": nano,
        "time_unix_nano": nano,
        "device": [0],
        "energy_microjoules": [second * 300_000_000],
        "read_us": [0],
        "power_device": powered,
        "power_watts": [300.0] * len(powered),
    }


@pytest.mark.parametrize("counter_range", [0, None])
def test_only_a_hardware_counter_is_judged(counter_range: int | None) -> None:
    """Energy that is itself integrated power agrees with it by nature."""
    node = Node()
    device = {"number": 0, "device": "GPU-a", "domain": "gpu", "counter_range_microjoules": counter_range}
    node.announce([device])
    node.devices[0].note_power(300.0, BEGIN)
    for second in range(40):
        node.devices[0].history.append(BEGIN + second * SECOND, second * 300_000_000)
        node.note_second(_second(second, [0]), {})
    expected = None if counter_range is None else pytest.approx(1, abs=1e-6)
    assert node.devices[0].integral_ratio == expected


def test_a_gap_interrupts_the_comparison() -> None:
    """Around a reset of the counter, or a device that was away, nothing is compared."""
    node = Node()
    node.announce([{"number": 0, "device": "GPU-a", "domain": "gpu", "counter_range_microjoules": 0}])
    view = node.devices[0]
    for second in range(100):
        if second % 25 == 0:
            node.note_gap({"type": "gap", "device": "GPU-a", "reason": "counter_reset"})
            view.note_power(300.0, BEGIN + second * SECOND)
        view.history.append(BEGIN + second * SECOND, second * 300_000_000)
        node.note_second(_second(second, [0]), {})
    assert view.integral_ratio is None
    node.note_gap({"type": "gap", "device": "GPU-b", "reason": "counter_reset"})
    view.note_power(300.0, BEGIN + 100 * SECOND)
    for second in range(100, 140):
        view.history.append(BEGIN + second * SECOND, second * 300_000_000)
        node.note_second(_second(second, [0]), {})
    assert view.integral_ratio == pytest.approx(1, abs=1e-3), "another's gap is not its own"
