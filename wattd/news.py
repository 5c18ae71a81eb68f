"""What polling found that was new, on its way into the ring."""

from typing import Any, Self

from wattd.values import EnergyEdge, PowerEdge, Tick


class News:
    """What was new, in the flat lists of `ring.encode_tick`.

    Attributes:
        energies: Number, cumulative microjoules, when it was read, when the old value was.
        powers: Likewise, watts.
        calls: Number, microseconds, of calls of a millisecond and more.
    """

    __slots__ = ("calls", "energies", "powers")

    def __init__(self) -> None:
        self.energies = list[int]()
        self.powers = list[float]()
        self.calls = list[int]()

    def __bool__(self) -> bool:
        return bool(self.energies or self.powers or self.calls)

    def __iadd__(self, other: Self) -> Self:
        self.energies += other.energies
        self.powers += other.powers
        self.calls += other.calls
        return self

    def as_tick(self, now: int) -> Tick:
        """As a record of a wake at `now`."""
        energies: list[Any] = self.energies
        powers: list[Any] = self.powers
        calls = self.calls
        return Tick(
            now,
            [EnergyEdge(*energies[i : i + 4]) for i in range(0, len(energies), 4)],
            [PowerEdge(*powers[i : i + 4]) for i in range(0, len(powers), 4)],
            [(calls[i], calls[i + 1]) for i in range(0, len(calls), 2)],
        )
