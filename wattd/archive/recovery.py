"""What a starting daemon finds: segments left open are mended, and the last ones say where to go on."""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from wattd.archive.lines import microjoules
from wattd.archive.segment import FILE_MODE, end_line, read_lines

_NAME = re.compile(r"(?P<boot>[0-9a-f]{8})-(?P<number>\d{6,})\.jsonl(?P<closed>\.zst)?")
_CHUNK_BYTES = 1 << 20
_SEGMENTS_TO_LOOK_BACK = 4


class Found(NamedTuple):
    """A segment that lies in the archive."""

    number: int
    boot: str
    path: Path
    closed: bool


def find(folder: Path) -> list[Found]:
    """The segments below `.../host=<node>`, oldest number first; foreign files are passed over."""
    found = []
    for path in folder.glob("date=*/*.jsonl*"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Found(int(match["number"]), match["boot"], path, match["closed"] is not None))
    return sorted(found)


def mend(folder: Path) -> tuple[list[Path], int]:
    """Close what a daemon that died left open.

    Returns:
        Segments that wait to be compressed, and how many bytes of torn lines were cut off.

    Raises:
        OSError: A segment cannot be read or written.
    """
    for draft in folder.glob("date=*/.*.zst.tmp"):
        draft.unlink()
    waiting, torn = list[Path](), 0
    for segment in find(folder):
        if segment.closed:
            continue
        if segment.path.with_name(segment.path.name + ".zst").exists():
            segment.path.unlink()  # compressed and renamed; only the removal was missing
            continue
        cut = _mend_segment(segment.path)
        if cut is not None:
            torn += cut
            waiting.append(segment.path)
    return waiting, torn


def _mend_segment(path: Path) -> int | None:
    """Cut the torn tail and write the end; None if there was not one whole line."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        keep, lines, crc, last = _whole_part(file.fileno())
        if not lines:
            path.unlink()
            return None
        if last.get("type") == "end":
            return 0
        os.ftruncate(file.fileno(), keep)
        file.seek(keep)
        file.write(end_line(lines, crc, "recovered", size - keep))
        file.flush()
        os.fchmod(file.fileno(), FILE_MODE)
        os.fsync(file.fileno())
        return size - keep


def _whole_part(fd: int) -> tuple[int, int, int, dict[str, Any]]:
    """Bytes, lines and checksum up to the last whole line that is JSON, and that line."""
    keep = lines = crc = offset = 0
    last: dict[str, Any] = {}
    rest = b""
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        offset += len(chunk)
        data = rest + chunk
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        whole = data[:end]
        parsed = _parse(whole[whole[:-1].rfind(b"\n") + 1 :]) if whole else None
        if whole and parsed is None:
            # Blocks that a power cut left empty: look for the last good line one by one.
            for line in whole.splitlines(keepends=True):
                good = _parse(line)
                if good is None:
                    return keep, lines, crc, last
                keep, lines, crc, last = keep + len(line), lines + 1, zlib.crc32(line, crc), good
        elif parsed is not None:
            keep, lines = keep + len(whole), lines + whole.count(b"\n")
            crc, last = zlib.crc32(whole, crc), parsed
    return keep, lines, crc, last


def _parse(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(line)
        if isinstance(parsed, dict):
            return parsed
    return None


def lines_of(segment: Found) -> Iterator[dict[str, Any]]:
    """The lines of a segment; what is not JSON is passed over."""
    for line in read_lines(segment.path):
        parsed = _parse(line)
        if parsed is not None:
            yield parsed


@dataclass(slots=True)
class LastCounter:
    """Where the counter of a device stood when it was last archived.

    Attributes:
        microjoules: The energy as archived.
        monotonic_nano: When it was read.
        offset_microjoules: What had been added to the sampler's counter.
    """

    microjoules: int
    monotonic_nano: int
    offset_microjoules: int


@dataclass(slots=True)
class LastSamples:
    """What the samples of this boot say at their end.

    Attributes:
        counters: Last counter by device name.
        monotonic_nano: Time of the newest line by its type; empty if there is none.
    """

    counters: dict[str, LastCounter] = field(default_factory=dict)
    monotonic_nano: dict[str, int] = field(default_factory=dict)

    def note(self, line: dict[str, Any], names: dict[int, tuple[str, int]]) -> None:
        """Take a line; `names` has device name and offset by number."""
        kind, nano = line["type"], line.get("monotonic_nano", 0)
        if kind not in ("tick", "second", "state"):
            return
        self.monotonic_nano[kind] = max(nano, self.monotonic_nano.get(kind, 0))
        reads = line.get("read_us")
        for place, number in enumerate(line.get("device", ())):
            if number not in names:
                continue
            name, offset = names[number]
            read = nano + reads[place] * 1000 if reads else nano
            energy = microjoules(line["energy_joules"][place])
            self.counters[name] = LastCounter(energy, read, offset)


def last_samples(folder: Path, boot: str) -> LastSamples:
    """Read the end of the newest samples of a boot."""
    newest = [segment for segment in find(folder) if segment.boot == boot][-_SEGMENTS_TO_LOOK_BACK:]
    last = LastSamples()
    for segment in newest:
        names: dict[int, tuple[str, int]] = {}
        for raw in _first_and_tail(segment.path):
            line = _parse(raw)
            if line is None:
                continue
            if line["type"] == "segment":
                names = {
                    device["number"]: (device["device"], device.get("offset_microjoules", 0))
                    for device in line["devices"]
                }
            else:
                last.note(line, names)
    return last


def _first_and_tail(path: Path, tail_bytes: int = _CHUNK_BYTES) -> Iterator[bytes]:
    """The first line and those of about the last megabyte (a minute and more)."""
    kept: list[bytes] = []
    size = 0
    for count, line in enumerate(read_lines(path)):
        if count == 0:
            yield line
            continue
        kept.append(line)
        size += len(line)
        if size > 2 * tail_bytes:
            kept = kept[len(kept) // 2 :]
            size = sum(map(len, kept))
    yield from kept
