"""What the daemon knows of its devices and its sampler right now; the archive knows the rest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wattd.history import History
from wattd.integral import Comparison
from wattd.values import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain

SUMMED_DOMAINS = (Domain.GPU, Domain.PACKAGE, Domain.DRAM)
"""Domains that add up to a total; the others lie inside them or beside them."""

_STALE_NANO = 5 * NANOSECONDS_PER_SECOND


@dataclass(slots=True)
class DeviceView:
    """A device and its newest readings.

    Attributes:
        described: The device as the sampler announces it.
        history: Its counter over the last minute, continued over restarts.
        power_watts: Its last power reading; None where it has none.
        mean_watts: Mean power over the last second by its counter, else the last reading; None
            while unknown.
        state: Its last state; None if there is none.
        seen_nano: When it last gave a reading.
        comparison: Its counter held against its power readings.
    """

    described: dict[str, Any]
    history: History = field(default_factory=History)
    power_watts: float | None = None
    mean_watts: float | None = None
    state: dict[str, Any] | None = None
    seen_nano: int = 0
    comparison: Comparison = field(default_factory=Comparison)

    @property
    def name(self) -> str:
        """UUID, or a stable name."""
        return str(self.described["device"])

    @property
    def domain(self) -> str:
        """The part of the node it meters."""
        return str(self.described["domain"])

    @property
    def integral_ratio(self) -> float | None:
        """Energy by its counter over energy by its power readings (integral.py); None without both."""
        return self.comparison.ratio

    def note_power(self, power_watts: float, nano: int) -> None:
        """Take a power reading that is new."""
        self.comparison.note_power(power_watts, nano)
        self.power_watts = power_watts
        self.seen_nano = nano

    def compare(self, power_watts: float | None, nano: int) -> None:
        """Once a second: hold the counter against the power readings; None if the device gives none."""
        if self.described.get("counter_range_microjoules") is None:
            return  # its energy is the integral of its power: there is no counter to judge
        if power_watts is None:
            self.comparison.interrupt()
        else:
            self.comparison.note_power(power_watts, nano)
            self.comparison.compare(self.history)


@dataclass(slots=True)
class Node:
    """The devices by their number, and how the sampler is.

    Attributes:
        health: The sampler's last health record; empty before the first.
        clock: (monotonic, Unix) nanoseconds of the last clock triple.
        cpu_state: CPU utilisation and memory of the node.
    """

    devices: dict[int, DeviceView] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    clock: tuple[int, int] = (0, 0)
    cpu_state: dict[str, Any] = field(default_factory=dict)

    def announce(self, devices: Iterable[dict[str, Any]]) -> None:
        """Take the sampler's table of devices."""
        known = self.devices
        self.devices = {}
        for described in devices:
            view = known.get(described["number"])
            if view is None or view.described["device"] != described["device"]:
                view = DeviceView(described)
            view.described = described
            self.devices[described["number"]] = view

    def by_name(self) -> dict[str, DeviceView]:
        """The devices by UUID or name."""
        return {view.name: view for view in self.devices.values()}

    def accounted(self) -> list[DeviceView]:
        """Devices whose energies add up to the node's total: gpu, package and dram, else node."""
        views = list(self.devices.values())
        summed = [view for view in views if view.domain in SUMMED_DOMAINS]
        return summed or [view for view in views if view.domain == Domain.NODE]

    def note_second(self, second: Mapping[str, Any], offsets: Mapping[int, int]) -> None:
        """Take the sampler's once-a-second record: clock, counters, powers."""
        nano = second["monotonic_nano"]
        self.clock = (nano, second["time_unix_nano"])
        reads = second["read_us"]
        for number, energy, read_us in zip(
            second["device"], second["energy_microjoules"], reads, strict=True
        ):
            view = self.devices.get(number)
            if view is None:
                continue
            read = nano + read_us * 1000
            view.seen_nano = read
            # A counter's edges come from ticks; a reading between two edges would bend the line.
            if read - view.history.last_nano > 2 * NANOSECONDS_PER_SECOND:
                view.history.append(read, energy + offsets.get(number, 0))
        for number, watts in zip(second["power_device"], second["power_watts"], strict=True):
            view = self.devices.get(number)
            if view is not None:
                view.power_watts = watts
                view.seen_nano = nano
        followed = second.get("followed_device", ())
        for number, update_us in zip(followed, second.get("power_update_us", ()), strict=True):
            if update_us and number in self.devices:
                self.devices[number].comparison.update_nano = update_us * 1000
        powers = dict(zip(second["power_device"], second["power_watts"], strict=True))
        for number, view in self.devices.items():
            view.mean_watts = _mean_watts(view, nano)
            view.compare(powers.get(number), nano)

    def note_gap(self, gap: Mapping[str, Any]) -> None:
        """Take a gap in the readings of a device, or of all."""
        for view in self.devices.values():
            if gap.get("device", view.name) == view.name:
                view.comparison.interrupt()

    def note_state(self, state: Mapping[str, Any]) -> None:
        """Take the sampler's device state."""
        for view in self.devices.values():
            view.state = None
        for gpu in state.get("gpus", ()):
            if gpu["number"] in self.devices:
                self.devices[gpu["number"]].state = gpu
        self.cpu_state = {key: value for key, value in state.items() if key.startswith(("cpu_", "memory_"))}


def _mean_watts(view: DeviceView, nano: int) -> float | None:
    """Mean power over the last second up to the newest edge; None where that is long ago."""
    if nano - view.seen_nano > _STALE_NANO:
        return None
    last = view.history.last_nano
    energy = view.history.between(last - NANOSECONDS_PER_SECOND, last)
    if energy is None:
        return view.power_watts
    return energy / MICROJOULES_PER_JOULE
