"""One hung device does not delay the others: the clock goes to another thread; what came late is taken."""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.daemon import wait_until
from tests.wattd.updating import SECOND, Clock
from wattd.config import Config, load
from wattd.line import MOST_STUCK, Line, SensorHealth
from wattd.ring import Ring
from wattd.sampler import Sampler, Sensors, make_control
from wattd.values import Device, Domain, Reading, Source, Tick
from wattd.watchdog import HUNG_NANO, Guard


class HangingChannel:
    """A counter that moves with time; while `answers` is cleared, its calls wait."""

    def __init__(self, number: int, sensor: str) -> None:
        self.device = Device(
            device=f"d{number}",
            index=number,
            domain=Domain.GPU,
            source=Source.SIMULATED,
            sensor=sensor,
            counter_range_microjoules=0,
        )
        self.answers = threading.Event()
        self.answers.set()
        self.state_answers = threading.Event()
        self.state_answers.set()
        self.calls = 0

    def read(self, monotonic_nano: int) -> Reading:
        self.calls += 1
        self.answers.wait()
        return Reading(time.monotonic_ns() // 1000 * 100, None)

    def state(self) -> dict[str, Any]:
        self.state_answers.wait()
        return {"utilization_ratio": 0.5}


class HangingSensor:
    """Some channels."""

    def __init__(self, name: str, count: int, first: int) -> None:
        self.channels = [HangingChannel(first + number, name) for number in range(count)]
        self.is_closed = False

    def open(self) -> list[HangingChannel]:
        return self.channels

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class World:
    """A running sampler over six devices of one sensor and one of another."""

    def __init__(self, sampler: Sampler, sensors: list[HangingSensor], ring: Ring) -> None:
        self.sampler, self.sensors = sampler, sensors
        self.many, (self.other,) = sensors[0].channels, sensors[1].channels
        self.records = list[Any]()
        self._reader = ring.reader()
        # Threads that other tests left behind (pools of torch, progress bars) are not the sampler's.
        self._before = set(threading.enumerate())

    def threads(self) -> int:
        """How many threads there are for the sampler: its own, and those that are stuck."""
        return len(set(threading.enumerate()) - self._before)

    def read(self) -> list[Any]:
        self.records += self._reader.read()
        return self.records

    def edges(self, number: int) -> list[Any]:
        ticks = [record for record in self.read() if isinstance(record, Tick)]
        return [edge for tick in ticks for edge in tick.energies if edge.number == number]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.read() if not isinstance(record, Tick) and record["type"] == kind]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    many, other = HangingSensor("many", 6, 0), HangingSensor("other", 1, 6)
    monkeypatch.setattr("wattd.sampler.SENSORS", {"many": lambda *_: many, "other": lambda *_: other})
    config: Config = load(None, {"sensors": ["many", "other"], "hz": 100.0})
    ring = Ring.create(1 << 22)
    with Sensors(config, make_control()) as sensors:
        world = World(Sampler(config, sensors, ring), [many, other], ring)
        world.sampler.start()
        yield world
        for channel in [*many.channels, *other.channels]:
            channel.answers.set()
            channel.state_answers.set()
        world.sampler.stop()
    assert other.is_closed
    ring.close()


def longest_wait(edges: list[Any]) -> float:
    """The longest time between two edges, seconds."""
    reads: list[int] = [edge.read_nano for edge in edges]
    return max(later - earlier for earlier, later in pairwise(reads)) / SECOND


def test_a_hung_device_does_not_delay_the_others(world: World) -> None:
    """While one hangs for a second and a half the others are read as ever, then its late reading counts."""
    time.sleep(0.3)
    hung = world.many[2]
    hung.answers.clear()
    begin = time.monotonic_ns()
    time.sleep(1.5)
    hung.answers.set()
    wait_until(lambda: world.edges(2)[-1].read_nano > begin + 1.5 * SECOND)
    time.sleep(0.3)
    assert hung.calls > 30, "it is read again"
    for number in (0, 3, 6):
        assert longest_wait(world.edges(number)) < 0.12
        meanwhile = [edge for edge in world.edges(number) if 0 < edge.read_nano - begin < 1.5 * SECOND]
        assert len(meanwhile) > 120
    late, *_ = [edge for edge in world.edges(2) if edge.old_nano and edge.read_nano - edge.old_nano > SECOND]
    assert late.old_nano < begin + 0.1 * SECOND
    assert late.read_nano > begin + 1.5 * SECOND
    energies = [edge.energy_microjoules for edge in world.edges(2)]
    assert energies == sorted(energies)
    (gap,) = world.of_type("gap")
    assert (gap["device"], gap["reason"]) == ("d2", "sensor_down")
    assert "has not returned" in world.of_type("sensor")[0]["reason"]


def test_no_more_than_four_threads_are_risked_on_a_driver(world: World) -> None:
    """All six devices of a driver hang: four calls are stuck, two are left alone, and all come back."""
    time.sleep(0.3)
    for channel in world.many:
        channel.answers.clear()
    begin = time.monotonic_ns()
    wait_until(lambda: len(world.sampler.poller.lines[0].health.stuck) == MOST_STUCK)
    time.sleep(1.2)
    calls = [channel.calls for channel in world.many]
    time.sleep(0.2)
    assert [channel.calls for channel in world.many] == calls
    assert world.threads() <= 3 + MOST_STUCK
    meanwhile = [edge for edge in world.edges(6) if edge.read_nano > begin + 0.2 * SECOND]
    assert longest_wait(meanwhile) < 0.05
    for channel in world.many:
        channel.answers.set()
    wait_until(lambda: all(now.calls > was + 10 for now, was in zip(world.many, calls, strict=True)))
    assert {gap["device"] for gap in world.of_type("gap")} == {f"d{number}" for number in range(6)}


def test_a_hung_state_holds_up_neither_readings_nor_health(world: World) -> None:
    """State is asked by a thread of its own, and one device's is not waited for by the others."""
    world.many[0].state_answers.clear()
    wait_until(lambda: any(len(state["gpus"]) == 6 for state in world.of_type("state")))
    assert longest_wait(world.edges(0)) < 0.12
    world.many[0].state_answers.set()
    wait_until(lambda: len(world.of_type("state")[-1]["gpus"]) == 7)


def test_a_sensor_whose_call_hangs_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a driver that does not answer would hang the end of the daemon."""
    sensor = HangingSensor("many", 1, 0)
    monkeypatch.setattr("wattd.sampler.SENSORS", {"many": lambda *_: sensor})
    config = load(None, {"sensors": ["many"]})
    ring = Ring.create(1 << 20)
    with Sensors(config, make_control()) as sensors:
        sampler = Sampler(config, sensors, ring)
        sampler.start()
        time.sleep(0.1)
        sensor.channels[0].answers.clear()
        begin = time.monotonic()
        sampler.stop()
        assert time.monotonic() - begin < 1
    assert not sensor.is_closed
    sensor.channels[0].answers.set()
    ring.close()


@pytest.fixture
def line() -> Line:
    return Line(HangingChannel(0, "x"), 0, SensorHealth("x"))


def test_a_call_is_hung_only_after_its_time(line: Line) -> None:
    """Twenty milliseconds are granted, and a guard between calls is never taken."""
    clock, guard = Clock(), Guard()
    assert guard.take_over(clock.now) is None
    call = guard.enter(line, clock.now)
    assert guard.take_over(clock.now + HUNG_NANO) is None
    assert guard.next_look_nano(clock.now) == clock.now + HUNG_NANO + 1, "not before it can hang, nor later"
    assert guard.take_over(clock.now + HUNG_NANO + 1) is call
    assert guard.take_over(clock.now + SECOND) is None, "once"


def test_who_lost_the_guard_leaves_the_result(line: Line) -> None:
    """The thread that was stuck is told so, exactly if the guard was taken; its call is then in `late`."""
    guard = Guard()
    assert guard.leave(guard.enter(line, 0), 0)
    call = guard.enter(line, 0)
    guard.take_over(SECOND)
    successor = guard.enter(line, SECOND)
    assert not guard.leave(call, 0)
    assert list(guard.late) == [call]
    assert guard.leave(successor, 1), "the successor's call is its own"
