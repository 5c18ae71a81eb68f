"""Cumulative energy that never goes down, from counters that wrap, reset and fall silent.

A `Tracker` follows one device: it turns what the hardware shows into a cumulative counter and
remembers, for each quantity, the last reading that still showed the old value.
"""

from wattd.values import Device, Reading

_IMPLAUSIBLE_WATTS = 20_000.0
"""No single metered device draws more; a larger step is a broken counter, not energy."""

_MOST_RAPL_WATTS = 2_000.0
"""No RAPL zone draws more: after range / this, a counter may have wrapped more than once."""

_MOST_RESTARTED_WATTS = 5_000.0
"""A counter that began at 0 since its last reading has not counted more than this."""

_LONGEST_BLIP_NANO = 1_000_000_000
"""A counter that is back within this after it went back has not begun anew."""

_LONGEST_STEP_NANO = 2_000_000_000
"""Power readings further apart than this are not joined into energy: nobody saw what was between."""


class Counter:
    """Undoes wraps and resets of a hardware counter.

    The cumulative value starts at what the hardware shows, so that it goes on where it was
    when the daemon is started again.

    Attributes:
        resets: Times the counter went back other than by a wrap, or jumped implausibly. The
            energy around a reset is unknown and not counted.
    """

    def __init__(self, range_microjoules: int) -> None:
        """Args: range_microjoules: where the counter wraps to 0; 0 if it does not."""
        self._range = range_microjoules
        self._raw: int | None = None
        self._nano = 0
        self._total = 0
        self._may_be_new = False
        self._raw_before_drop: int | None = None
        self._drop_nano = 0
        self.resets = 0

    def suspect_restart(self) -> None:
        """The driver was away: before the next reading, the counter may have begun at 0 again."""
        self._may_be_new = True

    def update(self, raw_microjoules: int, monotonic_nano: int) -> int:
        """The cumulative energy in microjoules after a reading."""
        if self._raw is None:
            self._total = raw_microjoules
        elif self._may_be_new and self._could_be_new(raw_microjoules, monotonic_nano - self._nano):
            # Grown by what is plausible, too, perhaps: nobody can tell, and nothing is invented.
            self.resets += 1
        elif self._is_back(raw_microjoules, monotonic_nano):
            # Back where it was: the drop was a blip, and what is counted on from it would be false.
            step = raw_microjoules - (self._raw_before_drop or 0)
            self._total += self._step(step, monotonic_nano - self._drop_nano)
            self._raw_before_drop = None
        elif raw_microjoules != self._raw:
            self._note_drop(raw_microjoules, monotonic_nano)
            self._total += self._step(raw_microjoules - self._raw, monotonic_nano - self._nano)
        self._may_be_new = False
        self._raw = raw_microjoules
        self._nano = monotonic_nano
        return self._total

    def _is_back(self, raw_microjoules: int, monotonic_nano: int) -> bool:
        """Whether the counter is back at least where it was before a drop, soon after it."""
        before = self._raw_before_drop
        recent = monotonic_nano - self._drop_nano <= _LONGEST_BLIP_NANO
        return before is not None and recent and raw_microjoules >= before

    def _note_drop(self, raw_microjoules: int, monotonic_nano: int) -> None:
        """Remember for a second where the counter was before it went back: it may have been a blip."""
        if self._raw is not None and raw_microjoules < self._raw and not self._range:
            self._raw_before_drop, self._drop_nano = self._raw, self._nano
        elif monotonic_nano - self._drop_nano > _LONGEST_BLIP_NANO:
            self._raw_before_drop = None

    @staticmethod
    def _could_be_new(raw_microjoules: int, elapsed_nano: int) -> bool:
        """Whether a counter that began at 0 since the last reading can show this much."""
        return raw_microjoules <= _MOST_RESTARTED_WATTS * (elapsed_nano + 1_000_000_000) / 1000

    def _step(self, step: int, elapsed_nano: int) -> int:
        # W * ns / 1000 = microjoules. The second of grace covers what a slow counter had saved up.
        most = _IMPLAUSIBLE_WATTS * (elapsed_nano + 1_000_000_000) / 1000
        may_wrap_twice = self._range and _MOST_RAPL_WATTS * elapsed_nano / 1000 > self._range
        if step < 0 and self._range:
            step += self._range
        if step < 0 or step > most or may_wrap_twice:
            self.resets += 1
            return 0
        return step


class Integrator:
    """Energy of a device that shows power alone: the trapezoid over its readings.

    Attributes:
        resets: Steps that were left out because the readings were too far apart.
    """

    def __init__(self) -> None:
        self._watts = 0.0
        self._nano = 0
        self._microjoules = 0.0
        self.resets = 0

    def update(self, power_watts: float, monotonic_nano: int) -> int:
        """The energy in whole microjoules since the first reading."""
        elapsed = monotonic_nano - self._nano
        if self._nano and elapsed <= _LONGEST_STEP_NANO:
            self._microjoules += (self._watts + power_watts) / 2 * elapsed / 1000
        elif self._nano:
            self.resets += 1
        self._watts, self._nano = power_watts, monotonic_nano
        return int(self._microjoules)


class Tracker:
    """One device: its cumulative energy, its power, and the edges of both.

    Attributes:
        number: The device's number with this sampler.
        energy_microjoules: Cumulative energy as of `read_nano`; None while unknown.
        power_watts: Last power reading; None where there is none.
        average_power_watts: Last reading of the hardware's own average; None where there is none.
        read_nano: When the device last gave a reading; 0 if never.
    """

    __slots__ = (
        "_counter",
        "_energy_seen",
        "_integrates",
        "_integrator",
        "_power_seen",
        "average_power_watts",
        "energy_microjoules",
        "number",
        "power_watts",
        "read_nano",
    )

    def __init__(self, number: int, device: Device) -> None:
        self.number = number
        self.energy_microjoules: int | None = None
        self.power_watts: float | None = None
        self.average_power_watts: float | None = None
        self.read_nano = 0
        self._energy_seen = 0
        self._power_seen = 0
        self._counter = Counter(device.counter_range_microjoules or 0)
        self._integrator = Integrator()
        # Once and for all: a counter that is silent for a moment must not be mistaken for none.
        self._integrates = device.counter_range_microjoules is None

    @property
    def resets(self) -> int:
        """Times energy could not be followed, so that an unknown part is missing."""
        return self._counter.resets + self._integrator.resets

    def suspect_restart(self) -> None:
        """The device's driver was away: its counter may have begun anew."""
        self._counter.suspect_restart()

    def take(
        self, reading: Reading, before_nano: int, nano: int, energies: list[int], powers: list[float]
    ) -> None:
        """Take a reading; append what is new to the flat lists of `ring.encode_tick`.

        Args:
            reading: What the device showed.
            before_nano: When it was asked: an edge seen later came after this.
            nano: When it had answered: an edge seen now came before this.
            energies: Gets number, cumulative microjoules, nano and the earlier side of the edge.
            powers: Gets number, watts, nano and the earlier side of the edge.
        """
        raw, watts, average = reading
        if raw is not None:
            self._publish_energy(self._counter.update(raw, nano), nano, energies)
            self._energy_seen = before_nano
        if watts is not None:
            if watts != self.power_watts:
                self.power_watts = watts
                powers += (self.number, watts, nano, self._power_seen)
            self._power_seen = before_nano
            if self._integrates:
                self._publish_energy(self._integrator.update(watts, nano), nano, energies)
                self._energy_seen = before_nano
        if average is not None:
            self.average_power_watts = average
        self.read_nano = nano

    def _publish_energy(self, total: int, nano: int, energies: list[int]) -> None:
        if total != self.energy_microjoules:
            self.energy_microjoules = total
            energies += (self.number, total, nano, self._energy_seen)
