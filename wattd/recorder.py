"""From the sampler's ring to the archive's samples and to what the daemon knows of its devices."""

from collections.abc import Callable, Sequence
from typing import Any

from wattd.archive import LastSamples, Log, second_body, tick_body
from wattd.archive import body as line_body
from wattd.continuity import offset_microjoules
from wattd.node import Node
from wattd.values import NANOSECONDS_PER_SECOND, Tick

Record = Tick | dict[str, Any]

_UNSEEN_NANO = 2 * NANOSECONDS_PER_SECOND


class Recorder:
    """Takes records in the order of the ring.

    Attributes:
        offsets: Microjoules that are added to the sampler's counters, by device number.
        ticks: Records of ticks that were written.
        is_same_sampler: The sampler is older than this server; None until that is known.
    """

    def __init__(
        self, node: Node, samples: Log, last: LastSamples, record_event: Callable[[dict[str, Any]], None]
    ) -> None:
        """Make the recorder.

        Args:
            node: Gets the newest readings.
            samples: Gets the lines.
            last: How the samples of this boot ended before this server.
            record_event: Takes lines of kind=events (gaps, sensors).
        """
        self._node = node
        self._samples = samples
        self._last = last
        self._record_event = record_event
        self._held: list[Record] = []
        self._header_due = False
        self.offsets = _Offsets()
        self._started: set[int] = set()
        self._fed_nano = 0
        self._kept_nano = self._dropped_from_nano = 0
        self._looked_back = False
        self._seen_lost = 0
        self.ticks = 0
        self.is_same_sampler: bool | None = None

    def devices(self) -> list[dict[str, Any]]:
        """The table of devices as the archive lists it."""
        listed = []
        for number, view in self._node.devices.items():
            device = {
                key: value for key, value in view.described.items() if key != "counter_range_microjoules"
            }
            if self.offsets.get(number):
                device["offset_microjoules"] = self.offsets[number]
            listed.append(device)
        return listed

    def feed(self, records: Sequence[Record], lost: int) -> list[Tick]:
        """Take what the ring held since the last call.

        Args:
            records: Oldest first.
            lost: Records that were overwritten since the start, as the ring's reader counts them.

        Returns:
            The ticks among them that are new.
        """
        if not self._node.devices:
            self._held += records
            if not any(not isinstance(record, Tick) and record["type"] == "devices" for record in self._held):
                return []
            records, self._held = self._held, []
            self._announce(next(r for r in records if not isinstance(r, Tick) and r["type"] == "devices"))
        if self.is_same_sampler is None and records:
            self._meet(records)
        bodies: list[bytes] = []
        ticks: list[Tick] = []
        for record in records:
            if isinstance(record, Tick):
                self._tick(record, bodies, ticks, lost)
            else:
                self._message(record, bodies, lost)
        self._append(bodies)
        return ticks

    def _meet(self, records: Sequence[Record]) -> None:
        """Find out whether this sampler wrote the end of the archive as well."""
        last_nano = max(self._last.monotonic_nano.values(), default=0)
        self.is_same_sampler = any(
            record.monotonic_nano <= last_nano
            if isinstance(record, Tick)
            else record.get("started_monotonic_nano", last_nano + 1) <= last_nano
            for record in records
        )
        self._fed_nano = last_nano
        if not self.is_same_sampler:
            self._last.monotonic_nano.clear()
            return
        for number, view in self._node.devices.items():
            if view.name in self._last.counters:
                self.offsets[number] = self._last.counters[view.name].offset_microjoules
                self._started.add(number)

    def _announce(self, message: dict[str, Any]) -> None:
        known = {number: view.described for number, view in self._node.devices.items()}
        announced = {device["number"]: device for device in message["devices"]}
        if announced == known:
            return
        for number, device in known.items():
            if announced.get(number, {}).get("device") != device["device"]:
                self._started.discard(number)
                self.offsets.pop(number, None)
        self._node.announce(message["devices"])
        self._header_due = True

    def _is_old(self, kind: str, nano: int) -> bool:
        """The server before this one has written it already."""
        return nano <= self._last.monotonic_nano.get(kind, 0)

    def _message(self, message: dict[str, Any], bodies: list[bytes], lost: int) -> None:
        kind = message["type"]
        if kind == "devices":
            self._append(bodies)
            self._announce(message)
        elif kind == "health":
            self._node.health = message
        elif kind == "second":
            if not self._is_old(kind, message["monotonic_nano"]):
                pairs = zip(message["device"], message["energy_microjoules"], strict=True)
                self._prepare(message["monotonic_nano"], dict(pairs), bodies, lost)
                bodies.append(second_body(message, self.offsets))
                self._node.note_second(message, self.offsets)
        elif kind == "state":
            self._node.note_state(message)
            if not self._is_old(kind, message["monotonic_nano"]) and not self._header_due:
                bodies.append(line_body(message))
        else:
            if kind == "gap":
                self._node.note_gap(message)
            self._record_event(message)

    def _tick(self, tick: Tick, bodies: list[bytes], ticks: list[Tick], lost: int) -> None:
        nano = tick.monotonic_nano
        if self._is_old("tick", nano):
            return
        self._prepare(nano, {edge[0]: edge[1] for edge in tick.energies}, bodies, lost)
        offsets, devices = self.offsets, self._node.devices
        bodies.append(tick_body(tick, offsets))
        self.ticks += 1
        for number, energy, read, _ in tick.energies:
            devices[number].history.append(read, energy + offsets[number])
        for number, watts, read, _ in tick.powers:
            devices[number].note_power(watts, read)
        ticks.append(tick)

    def _prepare(self, nano: int, energies: dict[int, int], bodies: list[bytes], lost: int) -> None:
        """Before a record with readings: start devices that are new, begin a segment, tell of gaps."""
        if not self._started.issuperset(energies):
            for number in energies.keys() - self._started:
                self._start(number, energies[number], nano)
        if self._header_due:
            self._append(bodies)
            self._samples.rotate()
            self._header_due = False
        if not self._looked_back:
            self._looked_back = True
            if self._fed_nano and not self.is_same_sampler:
                self._gap(self._fed_nano, nano, "daemon_down")
            elif self._fed_nano and nano - self._fed_nano > _UNSEEN_NANO:
                self._gap(self._fed_nano, nano, "lost_samples")
        elif lost > self._seen_lost:
            self._gap(self._fed_nano, nano, "lost_samples")
        self._seen_lost = lost
        self._fed_nano = nano

    def _start(self, number: int, energy: int, nano: int) -> None:
        view = self._node.devices[number]
        last = self._last.counters.get(view.name)
        offset = 0
        if last is not None:
            offset = offset_microjoules(
                view.described,
                energy,
                nano,
                last_microjoules=last.microjoules,
                last_nano=last.monotonic_nano,
                last_offset=last.offset_microjoules,
            )
        self._started.add(number)
        self._header_due = self._header_due or offset != 0
        self.offsets[number] = offset

    def _gap(self, begin: int, end: int, reason: str) -> None:
        gap = {"type": "gap", "begin_monotonic_nano": begin, "end_monotonic_nano": max(begin, end)}
        self._record_event({**gap, "reason": reason})

    def _append(self, bodies: list[bytes]) -> None:
        """Hand lines to the archive; what it cannot hold is a gap once it can again."""
        if not bodies:
            return
        if not self._samples.append(bodies):
            self._dropped_from_nano = self._dropped_from_nano or self._kept_nano
        else:
            if self._dropped_from_nano:
                self._gap(self._dropped_from_nano, self._fed_nano, "lost_samples")
                self._dropped_from_nano = 0
            self._kept_nano = self._fed_nano
        bodies.clear()


class _Offsets(dict[int, int]):
    """Offsets by number; a device that has none has 0."""

    def __missing__(self, number: int) -> int:
        return 0
