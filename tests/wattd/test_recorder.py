import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.daemon import lines
from wattd.archive import Archive, LastSamples
from wattd.config import Config
from wattd.jobs import recover
from wattd.node import Node
from wattd.recorder import Recorder
from wattd.ring import Ring, encode_message, encode_tick

_BOOT = "0123abcd-0000-4000-8000-000000000000"
_SECOND = 1_000_000_000
_T = 1_000 * _SECOND


def _device(
    number: int, name: str, counter_range: int | None = 0, source: str = "measured"
) -> dict[str, Any]:
    device = {"number": number, "device": name, "index": number, "domain": "gpu", "source": source}
    device |= {"sensor": "nvml", "model": "m"}
    return device if counter_range is None else {**device, "counter_range_microjoules": counter_range}


def _second(nano: int, energies: dict[int, int]) -> bytes:
    return encode_message(
        {
            "type": "second",
            "monotonic_nano": nano,
            "time_unix_nano": nano + 7,
            "boottime_nano": nano,
            "device": list(energies),
            "energy_microjoules": list(energies.values()),
            "read_us": [0] * len(energies),
            "power_device": [],
            "power_watts": [],
            "ticks": 100,
            "missed_ticks": 0,
        }
    )


def _tick(nano: int, energies: dict[int, int]) -> bytes:
    flat = [part for number, energy in energies.items() for part in (number, energy, nano, nano - 10)]
    return encode_tick(nano, flat, [], [])


def _health(started: int) -> bytes:
    return encode_message({"type": "health", "started_monotonic_nano": started, "sensors": []})


def _devices(*devices: dict[str, Any]) -> bytes:
    return encode_message({"type": "devices", "devices": list(devices)})


class _Life(NamedTuple):
    """What a server's life left behind."""

    recorder: Recorder
    events: list[dict[str, Any]]


def _serve(folder: Path, ring: Ring, *batches: Iterable[bytes]) -> _Life:
    """A server's life: the ring as it is, then batches, then the end."""

    async def life() -> Recorder:
        def devices() -> list[dict[str, Any]]:
            return recorder.devices()

        archive = Archive(
            Config(archive=folder, socket=folder / "s", node="n"),
            _BOOT,
            devices,
            dict,
            lambda: (_T, 1_700_000_000_000_000_000),
        )
        same_boot, found = archive.last_events()
        state = recover(found, same_boot=same_boot)

        def record(line: dict[str, Any]) -> None:
            if not state.is_known(line):
                state.apply(line)
                archive.events.append([b'"type":"%b"}' % str(line["type"]).encode()])
                events.append(line)

        recorder = Recorder(Node(), archive.samples, archive.last_samples(), record)
        archive.start()
        reader = ring.reader(from_start=True)
        recorder.feed(reader.read(), reader.lost)
        for batch in batches:
            for payload in batch:
                ring.write(payload)
            recorder.feed(reader.read(), reader.lost)
            await asyncio.sleep(0)
        await archive.close()
        return recorder

    events: list[dict[str, Any]] = []
    return _Life(asyncio.run(life()), events)


def _energies(folder: Path) -> list[tuple[int, str, float]]:
    """(time, device, joules) of every reading in the archive."""
    found, names = [], dict[int, str]()
    for line in lines(folder, "samples"):
        if line["type"] == "segment":
            names = {device["number"]: device["device"] for device in line["devices"]}
        elif line["type"] in ("tick", "second"):
            pairs = zip(line["device"], line["energy_joules"], strict=True)
            found += [(line["monotonic_nano"], names[number], joules) for number, joules in pairs]
    return found


def test_records_before_the_table_of_devices_wait_for_it(tmp_path: Path) -> None:
    """Nothing that the ring holds is lost, whatever comes first."""
    ring = Ring.create(1 << 16)
    ring.write(_tick(_T, {0: 5_000_000}))
    _serve(tmp_path, ring, [_devices(_device(0, "GPU-a"))])
    assert _energies(tmp_path) == [(_T, "GPU-a", 5.0)]


def test_a_restarted_server_neither_loses_nor_doubles_a_record(tmp_path: Path) -> None:
    """The ring goes on; what stands in the archive already is passed over, per kind of record."""
    ring = Ring.create(1 << 16)
    for number in range(10):
        nano = _T + number * _SECOND
        if number % 3 == 0:
            ring.write(_devices(_device(0, "GPU-a")))
        ring.write(_tick(nano, {0: number * 100}))
        ring.write(_second(nano + 5, {0: number * 100}))
        ring.write(_health(_T - 5))
        if number in (4, 7):
            _serve(tmp_path, ring)
    life = _serve(tmp_path, ring)
    assert life.recorder.is_same_sampler
    assert [nano for nano, _, _ in _energies(tmp_path)] == [
        _T + number * _SECOND + late for number in range(10) for late in (0, 5)
    ]
    assert life.events == []


def test_energy_goes_on_over_a_restart_of_the_daemon(tmp_path: Path) -> None:
    """A counter in hardware keeps the downtime's energy, another goes on; the gap is a row either way."""
    table = [_device(0, "GPU-a"), _device(1, "GPU-b", None)]
    first, second = Ring.create(1 << 16), Ring.create(1 << 16)
    _serve(tmp_path, first, [_devices(*table), _tick(_T, {0: 9_000_000, 1: 0}), _tick(_T + 5, {1: 400_000})])
    later = _T + 20 * _SECOND
    batch = [_devices(*table), _tick(later, {0: 29_000_000, 1: 0}), _tick(later + 5, {1: 100_000})]
    life = _serve(tmp_path, second, batch)
    assert _energies(tmp_path) == [
        (_T, "GPU-a", 9.0),
        (_T, "GPU-b", 0.0),
        (_T + 5, "GPU-b", 0.4),
        (later, "GPU-a", 29.0),
        (later, "GPU-b", 0.4),
        (later + 5, "GPU-b", 0.5),
    ]
    gap = {"type": "gap", "begin_monotonic_nano": _T + 5, "end_monotonic_nano": later}
    assert life.events == [{**gap, "reason": "daemon_down"}]
    # A server that is restarted now must find the offset again.
    second.write(_health(later - 5))
    second.write(_tick(later + _SECOND, {1: 200_000}))
    _serve(tmp_path, second)
    assert _energies(tmp_path)[-1] == (later + _SECOND, "GPU-b", 0.6)


def test_a_device_that_appears_begins_a_new_segment(tmp_path: Path) -> None:
    """Numbers in a segment mean one device each."""
    one, two = _device(0, "GPU-a"), _device(1, "GPU-b")
    _serve(
        tmp_path,
        Ring.create(1 << 16),
        [_devices(one), _tick(_T, {0: 0}), _devices(one), _tick(_T + 10, {0: 10})],
        [_devices(two | {"number": 0}, one | {"number": 1}), _tick(_T + 20, {0: 70, 1: 20})],
    )
    tables = [line["devices"] for line in lines(tmp_path, "samples") if line["type"] == "segment"]
    assert [[device["device"] for device in table] for table in tables] == [["GPU-a"], ["GPU-b", "GPU-a"]]
    assert "counter_range_microjoules" not in tables[0][0]
    assert _energies(tmp_path)[-2:] == [(_T + 20, "GPU-b", 7e-05), (_T + 20, "GPU-a", 2e-05)]


def test_what_the_server_was_too_late_for_is_a_gap(tmp_path: Path) -> None:
    """Overwritten records are counted and said; the energy is in the next ones."""
    ring = Ring.create(4096)
    ticks = [_tick(_T + number, {0: number}) for number in range(200)]
    life = _serve(tmp_path, ring, [_devices(_device(0, "GPU-a")), ticks[0]], ticks[1:])
    (gap,) = life.events
    assert (gap["reason"], gap["begin_monotonic_nano"]) == ("lost_samples", _T)
    energies = _energies(tmp_path)
    assert len(energies) < 200
    assert energies[1][0] == gap["end_monotonic_nano"]
    assert energies[-1] == (_T + 199, "GPU-a", 0.000199)


def test_events_of_the_sampler_are_written_once(tmp_path: Path) -> None:
    """The ring holds a gap still when a restarted server reads it again."""
    ring = Ring.create(1 << 16)
    gap = {"type": "gap", "begin_monotonic_nano": _T, "end_monotonic_nano": _T + 5, "reason": "late"}
    ring.write(_devices(_device(0, "GPU-a")))
    ring.write(_tick(_T, {0: 1}))
    ring.write(encode_message(gap))
    first = _serve(tmp_path, ring)
    assert first.events == [gap]


def test_samples_that_memory_cannot_hold_are_a_gap(tmp_path: Path) -> None:
    """While the disk refuses, what comes after the bound is dropped, counted, and said afterwards."""
    events: list[dict[str, Any]] = []

    async def scenario() -> None:
        full = _Full()
        recorder = Recorder(Node(), full, LastSamples(), events.append)  # type: ignore[arg-type]
        feed = ring.reader(from_start=True)
        for number, is_full in enumerate([False, True, True, False, False]):
            full.is_full = is_full
            if not number:
                ring.write(_devices(_device(0, "GPU-a")))
            ring.write(_tick(_T + number, {0: number}))
            recorder.feed(feed.read(), feed.lost)

    ring = Ring.create(1 << 16)
    asyncio.run(scenario())
    assert events == [
        {
            "type": "gap",
            "begin_monotonic_nano": _T,
            "end_monotonic_nano": _T + 3,
            "reason": "lost_samples",
        }
    ]


class _Full:
    """A log that is full when the test says so."""

    is_full = False

    def append(self, _bodies: list[bytes]) -> bool:
        return not self.is_full

    def rotate(self) -> None:
        """Nothing to part."""
