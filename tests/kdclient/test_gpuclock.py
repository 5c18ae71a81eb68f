"""The difference of two clocks, from bounds alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdclient.gpuclock import GpuClock

_START_NANO = 3_000_000_000_000


def _bracket(
    clock: GpuClock, nano: int, drift: float, chance: random.Random, width_nano: int = 100_000
) -> float:
    """Show the clock an event that the GPU reached at `nano`; returns its position."""
    position = (nano - _START_NANO) * (1 + drift)
    clock.bound(position, nano - chance.randrange(width_nano), nano + chance.randrange(width_nano))
    return position


@settings(max_examples=60, deadline=None)
@given(
    drift=st.floats(-1.5e-4, 1.5e-4),
    seed=st.integers(0, 2**32),
    gap_seconds=st.sampled_from([0.01, 0.1, 1.0, 7.0, 40.0]),
    count=st.integers(1, 40),
    width_nano=st.sampled_from([2, 20_000, 5_000_000]),
)
def test_the_error_is_a_bound(
    drift: float, seed: int, gap_seconds: float, count: int, width_nano: int
) -> None:
    """Whatever the drift and the brackets, the truth lies within the stated error, near and far."""
    chance = random.Random(seed)  # noqa: S311 - no secret is made of it
    clock, nano = GpuClock(), _START_NANO
    for _ in range(count):
        nano += round(chance.uniform(0.2, 1.8) * gap_seconds * 1e9)
        _bracket(clock, nano, drift, chance, width_nano)
        line = clock.line()
        assert line is not None
        for truth in (nano, nano - 300_000_000, nano + 300_000_000):
            mapped, error = line.at((truth - _START_NANO) * (1 + drift))
            assert abs(mapped - truth) <= error + 1.0  # a double's own rounding
    assert clock.breaks == 0


def test_many_wide_brackets_make_a_narrow_one() -> None:
    """Looks at 0.1 ms place an event to a few microseconds after some seconds."""
    chance = random.Random(1)  # noqa: S311 - no secret is made of it
    clock, nano = GpuClock(), _START_NANO
    for _ in range(100):
        nano += 100_000_000
        position = _bracket(clock, nano, 5e-5, chance)
    line = clock.line()
    assert line is not None
    assert line.at(position)[1] < 15_000
    assert line.drift == pytest.approx(-5e-5, abs=2e-6)


def test_a_clock_that_changes_its_rate_is_followed() -> None:
    """When the host's clock is slewed by 500 ppm, what was before is given up, not averaged."""
    chance = random.Random(2)  # noqa: S311 - no secret is made of it
    clock, nano, position = GpuClock(), _START_NANO, 0.0
    for step in range(60):
        nano += 100_000_000
        position += 100_000_000 * (1.0 if step < 30 else 1.0005)
        clock.bound(position, nano - chance.randrange(20_000), nano + chance.randrange(20_000))
        line = clock.line()
        assert line is not None
        mapped, error = line.at(position)
        assert abs(mapped - nano) <= error
    assert clock.breaks >= 1


def test_nothing_is_known_without_a_bound() -> None:
    """A clock that nobody has seen says nothing."""
    assert GpuClock().line() is None
