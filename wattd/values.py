"""What sensors read and what the sampler publishes: the nouns of the daemon.

Energies are whole microjoules in integers, so that sums are exact; powers are watts;
times are CLOCK_MONOTONIC nanoseconds.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

MICROJOULES_PER_JOULE = 1_000_000
NANOSECONDS_PER_SECOND = 1_000_000_000

READ_SECONDS_BUCKETS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Upper bounds of the histogram of sensor calls, seconds."""


class Domain(StrEnum):
    """The part of a node that a device meters."""

    GPU = "gpu"
    PACKAGE = "package"
    CORE = "core"
    UNCORE = "uncore"
    DRAM = "dram"
    PSYS = "psys"
    NODE = "node"
    MODULE = "module"


class Source(StrEnum):
    """How a number came about; said wherever it appears."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One thing that uses energy and is metered as a whole.

    Attributes:
        device: UUID where the hardware has one, else a stable name such as `package-0`.
        index: Number within its domain, from 0.
        domain: The part of the node it meters.
        source: Measured, estimated or simulated.
        sensor: Name of the sensor that reads it.
        model: What the vendor calls it, or empty.
        counter_range_microjoules: A hardware counter wraps to 0 after this much; 0 if it does
            not wrap; None if there is no hardware counter and energy is integrated from 0.
        update_nano: The sensor's nominal update period, or None where it is not known.
        uncertainty_ratio: Half-width of an estimate's interval as a share of the energy.
        power_limit_watts: The most an estimate can say at any moment, or None.
    """

    device: str
    index: int
    domain: Domain
    source: Source
    sensor: str
    model: str = ""
    counter_range_microjoules: int | None = None
    update_nano: int | None = None
    uncertainty_ratio: float | None = None
    power_limit_watts: float | None = None

    def as_json(self, number: int) -> dict[str, Any]:
        """The device as the archive's `devices` lists it, without what is not known."""
        described = {"number": number, **asdict(self)}
        return {key: value for key, value in described.items() if value is not None}


class Reading(NamedTuple):
    """One reading of one device; what it does not deliver is None.

    Attributes:
        energy_microjoules: The counter as the hardware shows it, before wraps are undone.
        power_watts: The power as the hardware shows it.
        average_power_watts: The hardware's own average over a longer window, where it has a second reading.
    """

    energy_microjoules: int | None
    power_watts: float | None
    average_power_watts: float | None = None


class EnergyEdge(NamedTuple):
    """A counter has a new value: its edge lies in (old_nano, read_nano].

    Attributes:
        number: The device's number with this sampler.
        energy_microjoules: Cumulative, wraps and resets undone.
        read_nano: When the new value was first read.
        old_nano: When the old value was last read; 0 if it never was.
    """

    number: int
    energy_microjoules: int
    read_nano: int
    old_nano: int


class PowerEdge(NamedTuple):
    """A power reading has a new value; times as in EnergyEdge."""

    number: int
    power_watts: float
    read_nano: int
    old_nano: int


class Tick(NamedTuple):
    """What one wake of the sampler published.

    Attributes:
        monotonic_nano: When the sampler woke.
        energies: Counters with a new value.
        powers: Power readings with a new value.
        calls: (device number, microseconds) of sensor calls of 1 ms or more.
    """

    monotonic_nano: int
    energies: list[EnergyEdge]
    powers: list[PowerEdge]
    calls: list[tuple[int, int]]


class UserError(Exception):
    """A mistake or a fault that the user can mend: one line that says what to do.

    Attributes:
        code: Exit code; 1 for what failed, 2 for wrong usage.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
