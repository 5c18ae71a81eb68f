"""RAPL: each zone once, its domain by name, its counter by one pread."""

import os
from pathlib import Path

import pytest

from wattd.sensors import ReadingError, SensorUnavailableError
from wattd.sensors.rapl import Rapl
from wattd.values import Domain, Reading

RANGE = 262_143_328_850


def zone(root: Path, name: str, label: str, energy: int) -> Path:
    """A powercap zone as the kernel lays it out."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return folder / "energy_uj"


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    """Two packages with sub-zones, a platform zone, the MMIO copy, and the control type's own folder."""
    (tmp_path / "intel-rapl").mkdir()
    for package in (0, 1):
        zone(tmp_path, f"intel-rapl:{package}", f"package-{package}", 1_000_000 + package)
        zone(tmp_path, f"intel-rapl:{package}:0", "core", 500_000)
        zone(tmp_path, f"intel-rapl:{package}:1", "dram", 200_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    return tmp_path


def test_every_zone_once(two_sockets: Path) -> None:
    """Packages, their sub-zones and psys are devices of their own domain; the MMIO copy is left out."""
    sensor = Rapl(two_sockets)
    names = sorted(channel.device.device for channel in sensor.open())
    sensor.close()
    assert names == ["core-0", "core-1", "dram-0", "dram-1", "package-0", "package-1", "psys-0"]


def test_reading_follows_the_file_and_names_its_range(two_sockets: Path) -> None:
    """A reading is what the kernel shows now; the counter takes range + 1 values before it wraps."""
    sensor = Rapl(two_sockets)
    channel = next(channel for channel in sensor.open() if channel.device.device == "package-1")
    assert channel.read(0) == Reading(1_000_001, None)
    (two_sockets / "intel-rapl:1" / "energy_uj").write_text("77\n")
    assert channel.read(0).energy_microjoules == 77
    assert channel.device.counter_range_microjoules == RANGE + 1
    assert channel.device.domain is Domain.PACKAGE
    sensor.close()


def test_zone_that_goes_silent_is_a_reading_error(two_sockets: Path) -> None:
    """An empty answer is no zero."""
    sensor = Rapl(two_sockets)
    channel = sensor.open()[0]
    (two_sockets / "intel-rapl:0" / "energy_uj").write_text("")
    with pytest.raises(ReadingError):
        channel.read(0)
    sensor.close()


def test_machine_without_rapl_says_so(tmp_path: Path) -> None:
    """No zones: absent, nothing to mend."""
    with pytest.raises(SensorUnavailableError, match="no RAPL zones") as caught:
        Rapl(tmp_path / "powercap").open()
    assert not caught.value.denied


def test_missing_right_is_named_with_its_remedy(two_sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones that may not be read are denied, with the command that mends it."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SensorUnavailableError, match="may not be read") as caught:
        Rapl(two_sockets).open()
    assert caught.value.denied
    assert "energy_uj" in caught.value.remedy
