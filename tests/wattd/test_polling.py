"""Polling: update-locked while wanted, ten times a second otherwise, at the tick where nothing is learned."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wattd.updating import MILLISECOND, SECOND, Clock, UpdatingChannel, Watch, grid, steps, widths
from wattd.edges import Mode
from wattd.polling import Poller
from wattd.values import EnergyEdge, PowerEdge

TICK = 10 * MILLISECOND


class World:
    """One GPU, followed for a while in virtual time."""

    def __init__(self, energy: Any, power: Any, **channel: Any) -> None:
        self.clock = Clock()
        self.channel = UpdatingChannel(self.clock, energy, power, **channel)
        self.poller = Poller.of([self.channel], TICK, self.clock)
        self.line = self.poller.lines[0]
        self.begin = self.clock.now
        self.energies = list[EnergyEdge]()
        self.powers = list[PowerEdge]()

    def run(self, seconds: float, watch: Watch | None = None) -> None:
        sleep = watch or self.clock.sleep
        for tick in self.poller.ticks(self.clock.now + round(seconds * SECOND), sleep):
            self.energies += tick.energies
            self.powers += tick.powers

    def follow(self, seconds: float) -> None:
        self.poller.follow(self.line, wanted=True)
        self.run(seconds)

    def modes(self) -> tuple[Mode, Mode]:
        assert self.line.followers
        return self.line.followers[0].mode, self.line.followers[1].mode

    def forget(self) -> None:
        """Judge from here on."""
        self.energies.clear()
        self.powers.clear()
        self.channel.calls.clear()
        self.begin = self.clock.now

    def calls_per_second(self) -> float:
        return len(self.channel.calls) * SECOND / (self.clock.now - self.begin)


def share(edges: list[Any], at_most_ms: float) -> float:
    found = widths(edges)
    return sum(width <= at_most_ms for width in found) / len(found)


JITTERS = {"none": {}, "on the grid": {"jitter_ms": 0.6}, "adding up": {"jitter_ms": 0.6, "adds_up": True}}


@pytest.mark.parametrize("jitter", JITTERS.values(), ids=JITTERS)
@pytest.mark.parametrize("period_ms", [100.0, 101.16, 20.04, 50.0])
def test_edges_are_located_to_a_millisecond(period_ms: float, jitter: dict[str, Any]) -> None:
    """Counter and power on grids of their own: nearly every edge within 1 ms, six calls an update."""
    world = World(grid(1, period_ms, **jitter), grid(2, period_ms * 1.003, **jitter))
    world.follow(2)
    assert world.modes() == (Mode.LOCKED, Mode.LOCKED)
    world.forget()
    world.run(30)
    for edges in (world.energies, world.powers):
        assert len(edges) == pytest.approx(30_000 / period_ms, rel=0.02)
        assert share(edges, 1.0) >= 0.95
    assert world.calls_per_second() <= 2 * 6 * 1000 / period_ms


@pytest.mark.parametrize("adds_up", [False, True])
def test_a_millisecond_of_jitter_is_followed(adds_up: bool) -> None:  # noqa: FBT001 - pytest's parameter
    """With a standard deviation of 1 ms most edges lie within 1 ms, and nearly all within 1.5."""
    world = World(grid(3, 100, 1.0, adds_up=adds_up), grid(4, 100, 1.0, adds_up=adds_up))
    world.follow(2)
    world.forget()
    world.run(60)
    for edges in (world.energies, world.powers):
        assert share(edges, 1.0) >= 0.85
        assert share(edges, 1.5) >= 0.97
    assert world.calls_per_second() <= 120


def test_one_grid_for_both_shares_the_calls() -> None:
    """Where counter and power change together, a call serves both."""
    world = World(grid(5, 100, 0.3), grid(5, 100, 0.3))
    world.follow(2)
    world.forget()
    world.run(30)
    assert world.calls_per_second() <= 60
    assert share(world.energies, 1.0) >= 0.95


@pytest.mark.parametrize("drift", [1e-5, -1e-5])
def test_a_drifting_period_is_followed(drift: float) -> None:
    """A period that changes by one per cent a minute and a half."""
    world = World(grid(6, 100, 0.3, drift=drift), grid(7, 100, 0.3, drift=drift))
    world.follow(2)
    world.forget()
    world.run(60)
    assert share(world.energies, 1.0) >= 0.95
    assert world.calls_per_second() <= 120


def test_a_lost_lock_is_found_again() -> None:
    """The grid jumps by a third of a period: within five updates edges are located as before."""

    def jumping(seed: int) -> Any:
        for number, moment in enumerate(grid(seed, 100, 0.3)):
            yield moment if number < 100 else moment - 33 * MILLISECOND

    world = World(jumping(8), jumping(9))
    world.follow(20)
    late = [edge for edge in world.energies if edge.read_nano > world.begin + 10.8 * SECOND]
    assert share(late, 1.0) >= 0.95
    assert world.modes() == (Mode.LOCKED, Mode.LOCKED)


def test_without_a_run_ten_readings_a_second() -> None:
    """Nobody wants the edges: read at 10 Hz, also after a run; the period is still known."""
    world = World(grid(10, 100, 0.3), grid(11, 100, 0.3))
    world.run(5)
    assert world.calls_per_second() == pytest.approx(10, abs=0.5)
    world.follow(3)
    world.poller.follow(world.line, wanted=False)
    world.forget()
    world.run(5)
    assert world.calls_per_second() == pytest.approx(10, abs=0.5)
    world.follow(0.3)
    assert world.modes() == (Mode.LOCKED, Mode.LOCKED), "the phase alone is to be found"


def test_what_updates_faster_than_it_can_be_followed_is_read_at_the_tick() -> None:
    """A counter of 1 ms: 100 readings a second; its power reading is still locked to."""
    world = World(grid(12, 1), grid(13, 100, 0.3))
    world.follow(2)
    assert world.modes() == (Mode.FAST, Mode.LOCKED)
    world.forget()
    world.run(5)
    assert world.calls_per_second() == pytest.approx(100 + 45, abs=20)
    assert share(world.powers, 1.0) >= 0.9


def test_constant_power_costs_no_calls() -> None:
    """A reading that never changes has no edges; when it begins to change, it is followed."""
    watts = {"value": 0}
    world = World(
        grid(14, 100, 0.3), grid(15, 100, 0.3), watts=lambda update: 300.0 + watts["value"] * (update % 97)
    )
    world.follow(5)
    assert world.modes() == (Mode.LOCKED, Mode.REST)
    world.forget()
    world.run(10)
    assert world.calls_per_second() <= 60
    watts["value"] = 1
    world.run(4)
    assert world.modes() == (Mode.LOCKED, Mode.LOCKED)
    world.forget()
    world.run(10)
    assert share(world.powers, 1.0) >= 0.95


def test_a_value_that_repeats_is_no_lost_lock() -> None:
    """Every third update shows the old power again: the others are still located, within the budget."""
    world = World(grid(16, 100, 0.3), grid(17, 100, 0.3), watts=lambda update: 300.0 + (update * 2 // 3) % 97)
    world.follow(3)
    assert world.modes() == (Mode.LOCKED, Mode.LOCKED)
    world.forget()
    world.run(30)
    assert share(world.powers, 1.0) >= 0.7
    assert world.calls_per_second() <= 120


def test_blips_do_not_lose_the_lock() -> None:
    """One reading in twenty shows neither counter nor power."""
    calls = {"number": 0}

    def watts(update: int) -> float | None:
        calls["number"] += 1
        return None if calls["number"] % 20 == 0 else 300.0 + update % 97

    world = World(grid(18, 100, 0.3), grid(19, 100, 0.3), watts=watts)
    world.follow(2)
    world.forget()
    world.run(30)
    assert share(world.powers, 1.0) >= 0.85
    assert share(world.powers, 2.0) >= 0.97


def test_what_is_shown_no_more_is_not_asked_for_without_end() -> None:
    """The power reading goes away for good, the counter stays: no more calls than the counter takes."""
    shown = {"power": True}
    world = World(
        grid(22, 100, 0.3),
        grid(23, 100, 0.3),
        watts=lambda update: 300.0 + update % 97 if shown["power"] else None,
    )
    world.follow(3)
    shown["power"] = False
    world.run(3)
    assert world.modes() == (Mode.LOCKED, Mode.REST)
    world.forget()
    world.run(10)
    assert world.calls_per_second() <= 60


def test_a_device_without_a_counter_is_followed_by_its_power() -> None:
    """Its energy is the integral of its power: there is no other edge to look for."""
    world = World(grid(24, 100, 0.3), grid(25, 100, 0.3), counts=False)
    world.follow(3)
    assert world.modes() == (Mode.OFF, Mode.LOCKED)
    world.forget()
    world.run(10)
    assert world.calls_per_second() <= 60
    assert share(world.powers, 1.0) >= 0.95


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(4, 500),
    st.floats(0, 3),
    st.floats(-1e-4, 1e-4),
    st.integers(5_000, 2_000_000),
)
def test_whatever_the_updates_the_brackets_hold_them(
    seed: int, period_ms: float, jitter_ms: float, drift: float, call_nano: int
) -> None:
    """Each bracket has a true update in it, the energy is what is shown, and the calls stay bounded."""
    jitter_ms = min(jitter_ms, period_ms / 5)
    world = World(
        grid(seed, period_ms, jitter_ms, drift=drift),
        grid(seed + 1, period_ms, jitter_ms, adds_up=True),
        call_nano=call_nano,
    )
    world.follow(10)
    channel = world.channel
    for edges, updates in ((world.energies, channel.energy), (world.powers, channel.power)):
        for edge in edges:
            assert not edge.old_nano or updates.holds(edge.old_nano, edge.read_nano)
    assert world.line.tracker.energy_microjoules == channel.energy.at(channel.calls[-1] + call_nano // 2)
    assert len(channel.calls) <= 10 * 2 * 6.5 * 1000 / period_ms + 2 * 400 + 2 * 10 * 100


def test_devices_due_together_are_read_in_one_wake() -> None:
    """Without a run all GPUs are read on a common grid."""
    clock = Clock()
    channels = [UpdatingChannel(clock, grid(n, 100), grid(n + 9, 100), number=n) for n in range(8)]
    poller = Poller.of(channels, TICK, clock)
    wakes = sum(1 for _ in poller.ticks(clock.now + 10 * SECOND, clock.sleep))
    assert 99 <= wakes <= 103
    assert all(len(channel.calls) == wakes for channel in channels)


def test_deadlines_of_the_tick_are_absolute() -> None:
    """A wake that is late does not shift the next; ticks that passed meanwhile are counted."""
    clock = Clock()
    channel = UpdatingChannel(clock, grid(1, 1), grid(2, 1), sensor="rapl")
    poller = Poller.of([channel], TICK, clock)
    begin = clock.now
    watch = Watch(clock).at(begin + SECOND, lambda: clock.sleep(0.035))
    for _ in poller.ticks(begin + 2 * SECOND, watch):
        pass
    assert poller.missed_ticks == 3
    assert len(channel.calls) + poller.missed_ticks == 199
    assert max((call - begin) % TICK for call in channel.calls if call < begin + SECOND) < MILLISECOND
    assert max(steps(channel.calls)) == pytest.approx(45, abs=11)


def test_a_device_that_fails_is_tried_at_the_tick_and_then_once_a_second() -> None:
    """A GPU that is gone takes next to no time; when it is back its edges are found again."""
    world = World(grid(20, 100, 0.3), grid(21, 100, 0.3))
    world.follow(2)
    world.forget()
    world.channel.fault = "GPU is lost"
    world.run(1)
    assert len(world.channel.calls) == pytest.approx(100, abs=10)
    world.forget()
    world.run(10)
    assert len(world.channel.calls) in range(9, 12)
    world.channel.fault = None
    world.run(3)
    world.forget()
    world.run(10)
    assert share(world.energies, 1.0) >= 0.95
