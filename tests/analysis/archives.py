"""Writes archives of version 1 by docs/archive.md, with a truth that is known.

Independent of the daemon's writer, so that reader and writer are held to the document and not to each other.
"""

import datetime as dt
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

NANO = 1_000_000_000
MILLI = 1_000_000
# Far from zero, as on a machine that has been up for a while.
START = 5_000 * NANO
WALL = 1_764_000_000 * NANO


@dataclass
class SimulatedDevice:
    """A device whose power is a staircase.

    Attributes:
        device: UUID or stable name.
        domain: Its domain.
        steps: (from when, watts), monotonic nanoseconds, in order.
        update_nano: Period of its counter.
        offset_nano: When the counter's updates begin.
        power_update_nano: Period of its power reading; None: it shows none.
        power_window_nano: A power reading is the mean over so long before its update.
        power_offset_nano: When the power reading's updates begin.
        jitter_nano: By how much each update may be early or late.
    """

    device: str
    domain: str
    steps: list[tuple[int, float]]
    update_nano: int = 100 * MILLI
    offset_nano: int = 0
    index: int = 0
    source: str = "measured"
    sensor: str = "nvml"
    uncertainty_ratio: float | None = None
    power_update_nano: int | None = None
    power_window_nano: int = 25 * MILLI
    power_offset_nano: int = 7 * MILLI
    jitter_nano: int = 0

    def energy(self, time: "np.ndarray | int") -> np.ndarray:
        """Returns the true energy since the first step, joules."""
        edges = np.array([step[0] for step in self.steps], dtype=np.int64)
        watts = np.array([step[1] for step in self.steps])
        total = np.concatenate([[0.0], np.cumsum(watts[:-1] * np.diff(edges) / NANO)])
        place = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, None)
        return total[place] + watts[place] * (time - edges[place]) / NANO

    def shown(self, now: int, *, power: bool = False) -> int:
        """Returns when what the counter, or the power reading, shows now became true."""
        period, offset = self.update_nano, self.offset_nano
        if power:
            assert self.power_update_nano is not None
            period, offset = self.power_update_nano, self.power_offset_nano
        update = (now - offset) // period
        moment = self._update(update + 1, period, offset)
        while moment > now:
            update -= 1
            moment = self._update(update + 1, period, offset)
        return moment

    def _update(self, number: int, period: int, offset: int) -> int:
        # Any number that looks random and is the same each time that it is asked for.
        turn = number * 2_654_435_761 % (1 << 32) / (1 << 31) - 1
        return number * period + offset + round(self.jitter_nano * turn)

    def watts(self, moment: int) -> float:
        """Returns the mean power over the window before a moment."""
        before = np.array([moment - self.power_window_nano, moment])
        return float(np.diff(self.energy(before))[0] * NANO / self.power_window_nano)

    def head(self, number: int) -> dict[str, Any]:
        """Returns what a segment's first line says of the device."""
        head = {
            "number": number,
            "device": self.device,
            "index": self.index,
            "domain": self.domain,
            "source": self.source,
            "sensor": self.sensor,
            "model": "Simulated",
            "update_nano": self.update_nano,
        }
        return (
            head if self.uncertainty_ratio is None else head | {"uncertainty_ratio": self.uncertainty_ratio}
        )


def staircase(
    phases: list[tuple[int, int, float]], idle: float, begin: int = START
) -> list[tuple[int, float]]:
    """Returns the power of disjoint phases (begin, end, watts) over an idle floor."""
    steps = [(begin, idle)]
    for start, stop, watts in phases:
        steps += [(start, watts), (stop, idle)]
    return steps


@dataclass
class ArchiveWriter:
    """Gathers what happened on one boot of a node and writes it as an archive."""

    root: Path
    node: str = "node-1"
    boot_id: str = "0badcafe-1111-2222-3333-444455556666"
    devices: list[SimulatedDevice] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    phase_numbers: dict[str, int] = field(default_factory=dict)
    version: int = 1

    def mark(self, client: str, kind: str, **keys: Any) -> dict[str, Any]:
        """Adds a mark of a client and returns its line."""
        self.marks[client] = self.marks.get(client, 0) + 1
        line = {"type": kind, "client": client, "mark": self.marks[client], **keys}
        self.events.append(line)
        return line

    def run(self, run_id: str, begin: int, end: int | None, *, client: str = "c0", **keys: Any) -> None:
        """Adds a run's begin and, unless it is still going on, its end."""
        head: dict[str, Any] = {
            "run": "run",
            "rank": 0,
            "local_rank": 0,
            "world_size": 1,
            "gpu_uuids": [],
            "gpu_source": "unknown",
            "job_id": "local-" + run_id[:8],
            "user": "ada",
            "account": "none",
            "partition": "none",
            "restarts": 0,
            "method": "response",
            "tokens_phase": "",
        } | keys
        self.mark(client, "run_begin", monotonic_nano=begin, run_id=run_id, **head)
        if end is not None:
            self.mark(client, "run_end", monotonic_nano=end, run_id=run_id, rank=head["rank"])

    def phase(
        self, run_id: str, phase: str, begin: int, end: int | None, *, client: str = "c0", **keys: Any
    ) -> dict[str, Any]:
        """Adds a phase; without an end it is still open."""
        number = self.phase_numbers[client] = self.phase_numbers.get(client, 0) + 1
        line = {"run_id": run_id, "rank": 0, "phase_number": number, "phase": phase, "thread": 0} | keys
        line["begin_monotonic_nano"] = begin
        if end is None:
            return self.mark(client, "phase_begin", **line)
        return self.mark(client, "phase", end_monotonic_nano=end, failed=False, **line)

    def measure(self, begin: int, end: int, poll_nano: int = 10 * MILLI) -> None:
        """Polls all devices over a stretch of time and adds the lines that a daemon would write."""
        seen = [-1] * len(self.devices)
        powers = [-1] * len(self.devices)
        last = begin - poll_nano
        for now in range(begin, end + 1, poll_nano):
            fresh = self._news(now, seen)
            power = self._news(now, powers, power=True)
            if fresh or power:
                old_us = (last - now) // 1000 if now > begin else None
                self.samples.append(self._tick(now, old_us, (fresh, seen), (power, powers)))
            if (now - begin) % NANO < poll_nano:
                self.samples.append(self._second(now, seen))
            last = now

    def _news(self, now: int, seen: list[int], *, power: bool = False) -> list[int]:
        fresh = []
        for number, device in enumerate(self.devices):
            if power and device.power_update_nano is None:
                continue
            moment = device.shown(now, power=power)
            if moment != seen[number]:
                fresh.append(number)
                seen[number] = moment
        return fresh

    def _value(self, number: int, moment: int) -> float:
        device = self.devices[number]
        return round(float(device.energy(max(moment, device.steps[0][0]))), 6)

    def _tick(
        self,
        now: int,
        old_us: int | None,
        energy: tuple[list[int], list[int]],
        power: tuple[list[int], list[int]],
    ) -> dict[str, Any]:
        line: dict[str, Any] = {"type": "tick", "monotonic_nano": now}
        fresh, seen = energy
        if fresh:
            line["device"] = fresh
            line["energy_joules"] = [self._value(number, seen[number]) for number in fresh]
        if fresh and old_us is not None:
            line["old_us"] = [old_us]
        fresh, seen = power
        if fresh:
            line["power_device"] = fresh
            line["power_watts"] = [round(self.devices[number].watts(seen[number]), 3) for number in fresh]
        if fresh and old_us is not None:
            line["power_old_us"] = [old_us]
        return line

    def _second(self, now: int, seen: list[int]) -> dict[str, Any]:
        numbers = list(range(len(self.devices)))
        return {
            "type": "second",
            "monotonic_nano": now,
            "time_unix_nano": WALL + now - START,
            "boottime_nano": now,
            "device": numbers,
            "energy_joules": [self._value(number, seen[number]) for number in numbers],
            "read_us": [0 for _ in numbers],
            "ticks": 100,
            "missed_ticks": 0,
        }

    def write(
        self, *, segments: int = 1, closed: bool = True, reverse: bool = False, kinds: str = "both"
    ) -> Path:
        """Writes the archive, in as many segments of each kind as asked for.

        Args:
            segments: How many segments.
            closed: Compress the segments; else they look as if they were being written.
            reverse: Write the segments' lines in reverse order of the segments.
            kinds: `both`, `samples` or `events`.
        """
        for kind, lines in (("samples", self.samples), ("events", self.events)):
            if kinds not in {"both", kind}:
                continue
            size = -(-len(lines) // segments) or 1
            parts = [lines[first : first + size] for first in range(0, max(len(lines), 1), size)]
            for number, part in enumerate(reversed(parts) if reverse else parts):
                self._segment(kind, number, part, closed=closed)
        return self.root

    def _segment(self, kind: str, number: int, lines: list[dict[str, Any]], *, closed: bool) -> None:
        opened = lines[0].get("monotonic_nano", START) if lines else START
        date = dt.datetime.fromtimestamp((WALL + opened - START) / NANO, dt.UTC).date().isoformat()
        folder = self.root / f"v={self.version}" / f"kind={kind}" / f"host={self.node}" / f"date={date}"
        folder.mkdir(parents=True, exist_ok=True)
        head: dict[str, Any] = {
            "type": "segment",
            "version": self.version,
            "kind": kind,
            "node": self.node,
            "boot_id": self.boot_id,
            "segment": number,
            "wattd_version": "0.1.0",
            "monotonic_nano": opened,
            "time_unix_nano": WALL + opened - START,
        }
        if kind == "samples":
            head["devices"] = [device.head(place) for place, device in enumerate(self.devices)]
        else:
            head["state"] = {"private": [1, 2, 3]}
        text = "".join(_line(seq, line) for seq, line in enumerate([head, *lines]))
        name = f"{self.boot_id[:8]}-{number:06d}.jsonl"
        if not closed:
            (folder / name).write_text(text, encoding="utf-8")
            return
        count = len(lines) + 1
        end = {
            "type": "end",
            "lines": count,
            "crc32": f"{zlib.crc32(text.encode()):08x}",
            "reason": "rotated",
        }
        whole = (text + _line(count, end)).encode()
        (folder / f"{name}.zst").write_bytes(zstandard.compress(whole))


def _line(seq: int, line: dict[str, Any]) -> str:
    return json.dumps({"seq": seq, **line}, separators=(",", ":")) + "\n"
