"""The sampler: writes what is new, counts what it missed, and says when a device was away."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.wattd import updating
from tests.wattd.updating import grid
from wattd.config import Config, SimulatedConfig, load
from wattd.control import Control
from wattd.ring import Ring
from wattd.sampler import Sampler, Sensors, make_control, ring_bytes
from wattd.sensors import SENSORS, ReadingError, SensorUnavailableError
from wattd.values import Device, Domain, Reading, Source, Tick, UserError

MILLISECOND = 1_000_000
SECOND = 1_000_000_000


class ScriptedSensor:
    """One device that shows what the test says; a negative value is a failed reading."""

    def __init__(self, clock: "Clock") -> None:
        self.clock = clock
        self.shown = 0
        self.call_nano = 0
        self.closed = False
        self.reopened = 0
        self.device = Device(
            device="package-0",
            index=0,
            domain=Domain.PACKAGE,
            source=Source.SIMULATED,
            sensor="rapl",
            counter_range_microjoules=0,
        )

    def open(self) -> Sequence["ScriptedSensor"]:
        return [self]

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True

    def read(self, monotonic_nano: int) -> Reading:
        self.clock.now += self.call_nano
        if self.shown < 0:
            raise ReadingError("gone")
        return Reading(self.shown, None)

    def state(self) -> dict[str, Any]:
        return {}


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 10 * SECOND

    def __call__(self) -> int:
        return self.now


class Bench:
    """A sampler over a scripted sensor, driven tick by tick."""

    def __init__(self, sampler: Sampler, sensor: ScriptedSensor, ring: Ring, clock: Clock) -> None:
        self.sampler, self.sensor, self.clock = sampler, sensor, clock
        self.reader = ring.reader()

    def tick(self, shown: int, after_ms: float = 10) -> list[Any]:
        """Let time pass, show a value, tick, and return what was written."""
        self.clock.now += int(after_ms * MILLISECOND)
        self.sensor.shown = shown
        self.sampler.tick(self.clock.now)
        return self.reader.read()


@pytest.fixture
def config() -> Config:
    """Defaults, without a file."""
    return load(None, {"sensors": ["rapl"]})


@pytest.fixture
def bench(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A sampler whose one sensor is scripted."""
    clock = Clock()
    sensor = ScriptedSensor(clock)
    monkeypatch.setattr("wattd.sampler.SENSORS", {"rapl": lambda *_: sensor})
    ring = Ring.create(1 << 20)
    with Sensors(config, make_control()) as sensors:
        yield Bench(Sampler(config, sensors, ring, clock), sensor, ring, clock)
    assert sensor.closed
    ring.close()


def ticks(records: list[Any]) -> list[Tick]:
    return [record for record in records if isinstance(record, Tick)]


def of_type(records: list[Any], kind: str) -> list[dict[str, Any]]:
    return [record for record in records if isinstance(record, dict) and record["type"] == kind]


def test_tick_without_news_writes_nothing(bench: Bench) -> None:
    """A counter that stands still costs no record."""
    assert len(ticks(bench.tick(100))) == 1
    assert bench.tick(100) == []
    assert bench.tick(100) == []


def test_edge_is_bracketed_by_the_readings_around_it(bench: Bench) -> None:
    """The earlier side of an edge is the last reading that showed the old value."""
    bench.tick(100)
    bench.tick(100)
    old = bench.clock.now
    (tick,) = ticks(bench.tick(150))
    assert tick.energies == [(0, 150, bench.clock.now, old)]


def test_every_second_the_counters_as_they_stand(bench: Bench) -> None:
    """Once a second a record has each absolute counter and the clock triple."""
    (first,) = of_type(bench.tick(100), "second")
    assert first["energy_microjoules"] == [100]
    records = [record for _ in range(100) for record in bench.tick(100)]
    (second,) = of_type(records, "second")
    assert second["monotonic_nano"] - first["monotonic_nano"] == SECOND
    assert second["ticks"] == 100
    assert second["boottime_nano"] > 0
    assert second["time_unix_nano"] > 0


def test_slow_call_is_recorded(bench: Bench) -> None:
    """A call of a millisecond or more is in the record, with its length."""
    bench.sensor.call_nano = 3 * MILLISECOND
    (tick,) = ticks(bench.tick(100))
    assert tick.calls == [(0, 3000)]


def test_silent_device_is_a_gap_and_no_false_energy(bench: Bench) -> None:
    """A device that is away for two seconds: down, then a gap from its last reading, and it goes on."""
    bench.tick(100)
    last_read = bench.clock.now
    down = [record for _ in range(200) for record in bench.tick(-1)]
    (event,) = of_type(down, "sensor")
    assert (event["up"], event["reason"]) == (False, "package-0: gone")
    back = [record for _ in range(200) for record in bench.tick(500)]
    (gap,) = of_type(back, "gap")
    assert (gap["begin_monotonic_nano"], gap["reason"], gap["device"]) == (
        last_read,
        "sensor_down",
        "package-0",
    )
    assert of_type(back, "sensor")[0]["up"] is True
    (edge,) = [edge for tick in ticks(back) for edge in tick.energies]
    assert edge.energy_microjoules == 500
    assert edge.old_nano == last_read, "the edge may lie anywhere in the silence"


def test_short_blip_is_no_event(bench: Bench) -> None:
    """Three failed readings in a row are not worth a word; the edge's bracket tells."""
    bench.tick(100)
    records = [record for _ in range(3) for record in bench.tick(-1)]
    records += bench.tick(200)
    assert of_type(records, "sensor") == of_type(records, "gap") == []


def test_reset_is_a_gap(bench: Bench) -> None:
    """A counter that was reset: a gap says so, and its energy does not go down."""
    bench.tick(5_000_000)
    last_read = bench.clock.now
    records = bench.tick(100) + bench.tick(200)
    (gap,) = of_type(records, "gap")
    assert (gap["begin_monotonic_nano"], gap["reason"]) == (last_read, "counter_reset")
    assert [edge.energy_microjoules for tick in ticks(records) for edge in tick.energies] == [5_000_100]


def test_absence_of_the_sampler_itself_is_a_gap(bench: Bench) -> None:
    """A sampler that was stopped for three seconds says which three."""
    bench.tick(100)
    before = bench.clock.now
    records = bench.tick(200, after_ms=3000)
    (gap,) = of_type(records, "gap")
    assert (gap["begin_monotonic_nano"], gap["end_monotonic_nano"]) == (before, bench.clock.now)
    assert gap["reason"] == "late"


class Gpus:
    """Two GPUs in virtual time."""

    def __init__(self, clock: updating.Clock) -> None:
        self.channels = [
            updating.UpdatingChannel(clock, grid(n, 100, 0.3), grid(n + 2, 100, 0.3), number=n, average=280.0)
            for n in range(2)
        ]

    def open(self) -> Sequence[updating.UpdatingChannel]:
        return self.channels

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class Node:
    """The sampler of two GPUs and what it wrote."""

    def __init__(
        self, sampler: Sampler, gpus: Gpus, control: Control, ring: Ring, clock: updating.Clock
    ) -> None:
        self.sampler, self.gpus, self.control, self.clock = sampler, gpus, control, clock
        self.reader = ring.reader()

    def run(self, seconds: float) -> list[Any]:
        end = self.clock.now + round(seconds * SECOND)
        while self.sampler.poller.next_nano < end:
            wait = self.sampler.poller.next_nano - self.clock.now
            self.clock.sleep(max(0, wait) / SECOND)
            self.sampler.tick(self.clock.now)
        return self.reader.read()


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A sampler over two GPUs, driven by its own schedule."""
    clock = updating.Clock()
    gpus, control, ring = Gpus(clock), make_control(), Ring.create(1 << 22)
    monkeypatch.setattr("wattd.sampler.SENSORS", {"nvml": lambda *_: gpus})
    config = load(None, {"sensors": ["nvml"]})
    with Sensors(config, control) as sensors:
        yield Node(Sampler(config, sensors, ring, clock), gpus, control, ring, clock)
    ring.close()


def test_a_device_is_followed_while_a_run_is_open_on_it(node: Node) -> None:
    """The server's word is enough: one device is locked to, and the record of each second says so."""
    (*_, before) = of_type(node.run(3), "second")
    assert "followed_device" not in before
    node.control.want({1})
    (*_, during) = of_type(node.run(4), "second")
    assert during["followed_device"] == [1]
    assert during["energy_polling"] == during["power_polling"] == ["locked"]
    assert during["energy_update_us"] == pytest.approx([100_000], rel=0.01)
    assert during["power_update_us"] == pytest.approx([100_000], rel=0.01)
    edges = [edge for tick in ticks(node.run(5)) for edge in tick.energies]
    assert {
        number: sum(edge.read_nano - edge.old_nano < MILLISECOND for edge in edges if edge.number == number)
        > 45
        for number in (0, 1)
    } == {0: False, 1: True}
    node.control.want(())
    (*_, after) = of_type(node.run(3), "second")
    assert "followed_device" not in after


def test_edges_are_gathered_and_none_stands_twice_in_a_record(node: Node) -> None:
    """Located edges share records, which are in order, and go with the next wake after 50 ms."""
    node.control.want({0, 1})
    node.run(4)
    records = ticks(node.run(10))
    assert len(records) < 300, "400 edges"
    assert sum(len(tick.energies) for tick in records) == pytest.approx(200, abs=3)
    for tick in records:
        numbers = [edge.number for edge in tick.energies]
        assert len(numbers) == len(set(numbers))
        reads = [edge.read_nano for edge in tick.energies] + [edge.read_nano for edge in tick.powers]
        assert (
            tick.monotonic_nano - 110 * MILLISECOND
            < min(reads)
            <= max(reads)
            < tick.monotonic_nano + MILLISECOND
        )
    times = [tick.monotonic_nano for tick in records]
    assert times == sorted(times)


def test_a_second_has_the_powers_of_devices_that_answer(node: Node) -> None:
    """Average power stands beside the instant one; a device that fails has no power, though a counter."""
    (*_, second) = of_type(node.run(3), "second")
    assert second["power_device"] == second["average_power_device"] == [0, 1]
    assert second["average_power_watts"] == [280.0, 280.0]
    node.gpus.channels[0].fault = "GPU is lost"
    (*_, second) = of_type(node.run(3), "second")
    assert second["power_device"] == second["average_power_device"] == [1]
    assert second["device"] == [0, 1]


def test_sensor_that_was_asked_for_must_be_there(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensor named by the user and not there is an error with its reason."""

    def absent(*_: object) -> Any:
        class Absent:
            def open(self) -> Any:
                raise SensorUnavailableError("no such hardware", "buy some")

        return Absent()

    monkeypatch.setattr("wattd.sampler.SENSORS", {"rapl": absent})
    with (
        pytest.raises(UserError, match="sensor rapl: no such hardware; buy some"),
        Sensors(config, make_control()),
    ):
        pass


def test_no_sensor_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can measure nothing is told so, and where to look."""
    config = load(None, {})

    def absent(*_: object) -> Any:
        class Absent:
            def open(self) -> Any:
                raise SensorUnavailableError("nothing here")

        return Absent()

    monkeypatch.setattr("wattd.sampler.SENSORS", dict.fromkeys(SENSORS, absent))
    with pytest.raises(UserError, match=r"no sensor at all .*wattd probe"), Sensors(config, make_control()):
        pass


def test_estimate_only_where_nothing_is_measured() -> None:
    """Without RAPL the CPU is estimated, and says so; simulated hardware is never chosen by itself."""
    with Sensors(load(None, {}), make_control()) as sensors:
        by_name = {health.name: health for health in sensors.health}
        assert "simulated" not in by_name
        if not by_name["rapl"].up:
            assert by_name["cpu_estimate"].up


def test_deadlines_are_absolute_and_the_ring_is_fed() -> None:
    """In real time: 12 simulated devices at 200 Hz for half a second, at most one tick away from 100."""
    config = load(None, {"sensors": ["simulated"], "hz": 200.0})
    config_small = Config(
        archive=config.archive,
        socket=config.socket,
        sensors=("simulated",),
        hz=200.0,
        simulated=SimulatedConfig(gpus=2),
    )
    with Sensors(config_small, make_control()) as sensors:
        ring = Ring.create(ring_bytes(config_small, len(sensors.lines)))
        sampler = Sampler(config_small, sensors, ring)
        reader = ring.reader()
        begun = time.monotonic()
        sampler.start()
        time.sleep(0.5)
        sampler.stop()
        elapsed = time.monotonic() - begun
        records = reader.read()
    due = elapsed * 200
    assert sampler.ticks + sampler.missed_ticks <= due + 1
    assert sampler.ticks + sampler.missed_ticks >= 0.5 * 200 - 2
    assert of_type(records, "devices")
    assert of_type(records, "second")[-1]["device"] == list(range(6))
    times = [tick.monotonic_nano for tick in ticks(records)]
    assert times == sorted(times)
