"""What a tick takes in the archive, as written and compressed; how long compressing and mending take.

8 simulated H100s (100 ms counters) and 4 RAPL domains at 100 Hz, read by the real sampler in virtual
time with the jitter of a real clock, written by the real recorder's encoder. A device-sample is one
device at one tick.
"""

import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from bench.harness import Result, at_most, shown
from wattd.archive.lines import second_body, tick_body
from wattd.archive.recovery import mend
from wattd.archive.segment import ZSTD_LEVEL, Segment, compress
from wattd.config import Config
from wattd.control import Control
from wattd.ring import Ring
from wattd.sampler import Sampler, Sensors
from wattd.values import Tick

_TICKS = 60_000
_DEVICES = 12
_LEVELS = (1, 3, 6, 9, 12)
_REPEATS = 5
_WATTS = (620.0, 450.0, 540.0, 320.0, 130.0)


class _Clock:
    """Time as the sampler sees it: each look costs some microseconds."""

    def __init__(self) -> None:
        self._random = random.Random(1)  # noqa: S311 - jitter, not a secret
        self.nano = 5_000_000_000_000

    def __call__(self) -> int:
        self.nano += int(self._random.expovariate(1 / 4_000))
        return self.nano


def measure() -> Iterator[Result]:
    """Bytes a tick, bytes a device-sample at several levels, seconds of compressing and mending."""
    bodies = list(_bodies())
    with tempfile.TemporaryDirectory(prefix="wattd-bench-") as folder:
        host = Path(folder)
        path = host / "date=2026-01-01" / "0123abcd-000000.jsonl"
        segment = Segment(path, {"type": "segment", "version": 1})
        segment.append(bodies)
        segment.sync()
        segment.abandon()
        size = path.stat().st_size
        begin = time.monotonic()
        mend(host)
        mended = (time.monotonic() - begin) * (64 << 20) / size
        data = path.read_bytes()
        closed = compress(path).stat().st_size
    peer = len(zlib.compress(data, 6)) / _TICKS / _DEVICES
    yield at_most("archive_bytes_a_tick", size / _TICKS, 250, "B")
    yield at_most("archive_bytes_a_device_sample", closed / _TICKS / _DEVICES, 5, "B", peer)
    for level in _LEVELS:
        seconds, small = _compressed(data, level)
        name = f"archive_zstd_{level}{'_chosen' if level == ZSTD_LEVEL else ''}"
        yield shown(f"{name}_bytes_a_device_sample", small / _TICKS / _DEVICES, "B", peer)
        yield shown(f"{name}_seconds_a_segment", seconds * (64 << 20) / size, "s")
    yield shown("archive_mend_seconds_a_segment", mended, "s")


def _compressed(data: bytes, level: int) -> tuple[float, int]:
    """Seconds and bytes of compressing at a level."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    return _timed(lambda: compressor.compress(data)), len(compressor.compress(data))


def _timed(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        begin = time.monotonic()
        work()
        seconds.append(time.monotonic() - begin)
    return statistics.median(seconds)


def _bodies() -> Iterator[bytes]:
    """The lines of ten minutes."""
    clock, rng = _Clock(), random.Random(2)  # noqa: S311 - a load, not a secret
    config = Config(archive=Path("/nowhere"), socket=Path("/nowhere"), sensors=("simulated",))
    control, ring = Control.create(_DEVICES), Ring.create(1 << 20)
    reader, offsets = ring.reader(), dict.fromkeys(range(_DEVICES), 0)
    with Sensors(config, control) as sensors:
        sampler = Sampler(config, sensors, ring, clock)
        begin = clock.nano
        for number in range(_TICKS):
            clock.nano = begin + number * 10_000_000 + int(rng.lognormvariate(11, 0.3))
            if number % 17 == 0:
                for device in range(_DEVICES):
                    control.set_watts(device, rng.choice(_WATTS))
            sampler.tick(clock.nano)
            for record in reader.read():
                if isinstance(record, Tick):
                    yield tick_body(record, offsets)
                elif record["type"] == "second":
                    yield second_body(record, offsets)
    ring.close()
    control.close()
