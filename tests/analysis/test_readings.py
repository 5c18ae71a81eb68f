"""What is fetched from the lines of an archive."""

from pathlib import Path
from typing import Any

import pytest
from wattq.counter import UNKNOWN
from wattq.readings import NodeReadings, fetch
from wattq.runner import Archive

from tests.analysis.archives import MILLI, START, ArchiveWriter, SimulatedDevice
from tests.analysis.conftest import Study


def fetched(root: Path, powers: tuple[str, ...] = ()) -> NodeReadings:
    """Returns the readings of an archive of one boot."""
    with Archive(root) as archive:
        return fetch(
            archive.connection, [part for part in archive.segments if part.kind == "samples"], powers
        )


@pytest.fixture
def writer(tmp_path: Path) -> ArchiveWriter:
    """Two GPUs, of which nothing has been read yet."""
    devices = [SimulatedDevice(name, "gpu", [(START, 100.0)]) for name in ("GPU-a", "GPU-b")]
    return ArchiveWriter(tmp_path / "archive", devices=devices)


def tick(nano: int, **keys: Any) -> dict[str, Any]:
    """Returns a line of a tick."""
    return {"type": "tick", "monotonic_nano": nano, **keys}


def test_powers_are_of_the_devices_asked_for(study: Study) -> None:
    """Power readings cost memory: only who asks for them gets them, and only of the devices named."""
    root = study.writer.write(segments=3)
    assert fetched(root).evidence == {}
    node = fetched(root, ("GPU-aaaa",))
    assert set(node.evidence) == {"GPU-aaaa"}
    evidence, readings = node.evidence["GPU-aaaa"], node.readings["GPU-aaaa"]
    assert evidence.energy_joules is readings.energy
    assert evidence.energy_read_nano is readings.read
    told = [
        (line["monotonic_nano"], line["power_watts"][line["power_device"].index(0)])
        for line in study.writer.samples
        if line["type"] == "tick" and 0 in line.get("power_device", [])
    ]
    assert sorted(zip(evidence.power_read_nano, evidence.power_watts, strict=True)) == told


def test_power_has_times_of_its_own(writer: ArchiveWriter) -> None:
    """power_old_us and power_read_us place a power reading; a list of one number holds for all."""
    writer.samples = [
        tick(
            START, device=[0], energy_joules=[1.0], old_us=[-7], power_device=[0, 1], power_watts=[90.0, 80.5]
        ),
        tick(START + MILLI, power_device=[1, 0], power_watts=[81.0, 91.0], power_old_us=[-950]),
        tick(
            START + 2 * MILLI,
            power_device=[0, 1],
            power_watts=[92.0, 82.0],
            power_old_us=[-1000, None],
            power_read_us=[250, -3],
        ),
    ]
    node = fetched(writer.write(), ("GPU-a", "GPU-b"))
    one, two = node.evidence["GPU-a"], node.evidence["GPU-b"]
    assert one.power_watts.tolist() == [90.0, 91.0, 92.0]
    assert one.power_read_nano.tolist() == [START, START + MILLI, START + 2 * MILLI + 250_000]
    assert one.power_old_nano.tolist() == [UNKNOWN, START + 50_000, START + MILLI]
    assert two.power_watts.tolist() == [80.5, 81.0, 82.0]
    assert two.power_read_nano.tolist() == [START, START + MILLI, START + 2 * MILLI - 3_000]
    assert two.power_old_nano.tolist() == [UNKNOWN, START + 50_000, UNKNOWN]
    assert one.energy_joules.tolist() == [1.0]
    assert one.energy_old_nano.tolist() == [START - 7_000]


def test_copy_of_each_second_is_no_power_reading(writer: ArchiveWriter) -> None:
    """What a second's line repeats was not read then; it tells of the lowest and highest alone."""
    writer.samples = [
        tick(
            START, device=[0], energy_joules=[1.0], power_device=[0], power_watts=[90.0], power_old_us=[-950]
        ),
        {"type": "second", "monotonic_nano": START + MILLI, "power_device": [0], "power_watts": [70.0]},
    ]
    node = fetched(writer.write(), ("GPU-a",))
    assert node.evidence["GPU-a"].power_watts.tolist() == [90.0]
    assert node.power_watts["GPU-a"] == (70.0, 90.0)


def test_device_without_power_has_evidence_without_power(study: Study) -> None:
    """A counter alone is evidence; no power is no reading, not one of 0 W."""
    for line in study.writer.samples:
        for key in [key for key in line if key.startswith("power")]:
            del line[key]
    evidence = fetched(study.writer.write(), ("package-0",)).evidence["package-0"]
    assert len(evidence.energy_joules) > 100
    assert evidence.power_watts.size == evidence.power_read_nano.size == evidence.power_old_nano.size == 0


def test_clock_of_a_gpu_is_fetched_with_its_power(writer: ArchiveWriter) -> None:
    """Who asks for a device's power gets its clock too, in order; one without a clock has an empty one."""
    writer.samples = [
        {"type": "state", "monotonic_nano": nano, "gpus": [{"number": 0, "sm_clock_hertz": hertz}]}
        for nano, hertz in ((START + 2, 1.2e9), (START, 1.7e9))
    ]
    clocks = fetched(writer.write(segments=2), ("GPU-a", "GPU-b")).clocks
    assert clocks["GPU-a"].nano.tolist() == [START, START + 2]
    assert clocks["GPU-a"].hertz.tolist() == [1.7e9, 1.2e9]
    assert clocks["GPU-b"].nano.size == clocks["GPU-b"].hertz.size == 0


def test_columns_that_grow_keep_what_they_hold(writer: ArchiveWriter) -> None:
    """However many segments a day has, their readings stand one after the other."""
    writer.samples = [
        tick(START + number * MILLI, device=[0], energy_joules=[float(number)], old_us=[-900])
        for number in range(60)
    ]
    readings = fetched(writer.write(segments=30)).readings["GPU-a"]
    assert readings.energy.tolist() == [float(number) for number in range(60)]
    assert readings.read.tolist() == [START + number * MILLI for number in range(60)]
    assert readings.old.tolist() == [START + number * MILLI - 900_000 for number in range(60)]
