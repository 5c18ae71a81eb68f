"""What a phase costs the training thread, while a real sender sends to a real recording process.

A pair is `with run.phase(name, tokens=n)`, made, begun and ended. Every pair is timed by itself, so
that the percentile is that of pairs; the time of reading the clock twice is part of what is shown.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import kdclient
from bench.harness import Result, at_most, median_of, shown
from kdclient.phases import Run

_REPEATS = 5
_PAIRS = 400_000  # some tenths of a second, so that several flushes fall into them
_SPACED_PAIRS = 500


def measure() -> Iterator[Result]:
    """Back-to-back pairs against the promise; pairs 1 ms apart and the bare pair beside them."""
    found: dict[str, list[list[int]]] = {"bare": [], "back_to_back": [], "nested": [], "spaced": []}
    folder = tempfile.mkdtemp(prefix="wattd-bench-")
    recorder = _Recorder(Path(folder) / "s")
    with recorder as socket:
        client = kdclient.connect(socket=socket, spool=f"{folder}/spool")
        with client.run("bench") as run:
            for _ in range(_REPEATS):
                for name, times in _measures(run).items():
                    found[name].append(times())
                    client.flush(seconds=30.0)  # each begins with an empty queue, and sends while it runs
        client.close()
    assert recorder.came["marks"] > _REPEATS * 2 * _PAIRS, "the sender did not send what was measured"
    assert not recorder.came["dropped"]
    shutil.rmtree(folder)
    yield from _figures(found)
    yield at_most(
        "import_kdclient",
        median_of(_REPEATS, lambda: _import_seconds("kdclient")),
        0.05,
        "s",
        median_of(_REPEATS, lambda: _import_seconds("json")),
    )


def _import_seconds(module: str) -> float:
    """How long the import takes in a fresh interpreter."""
    script = f"import time; begin = time.monotonic(); import {module}; print(time.monotonic() - begin)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _figures(found: dict[str, list[list[int]]]) -> Iterator[Result]:
    def median(name: str, share: float) -> float:
        return statistics.median(_quantile(times, share) for times in found[name]) / 1e9

    for name in ("back_to_back", "nested"):
        yield at_most(f"marks_pair_{name}_median", median(name, 0.5), 2e-6, "s", median("bare", 0.5))
        yield at_most(f"marks_pair_{name}_p99", median(name, 0.99), 1e-5, "s", median("bare", 0.99))
    yield shown("marks_pair_1ms_apart_median", median("spaced", 0.5), "s", median("bare", 0.5))
    yield shown("marks_pair_1ms_apart_p99", median("spaced", 0.99), "s", median("bare", 0.99))


def _quantile(times: list[int], share: float) -> int:
    return sorted(times)[int(len(times) * share)]


def _measures(run: Run) -> dict[str, Callable[[], list[int]]]:
    return {
        "bare": _bare,
        "back_to_back": lambda: _pairs(run, _PAIRS, pause_seconds=0.0),
        "nested": lambda: _nested(run),
        "spaced": lambda: _pairs(run, _SPACED_PAIRS, pause_seconds=0.001),
    }


def _bare() -> list[int]:
    """The yardstick: two looks at the clock and an append, in a loop of the same form."""
    clock, times, queue = time.monotonic_ns, [], deque[tuple[int, int]]()
    for _ in range(_PAIRS):
        before = clock()
        queue.append((clock(), clock()))
        times.append(clock() - before)
    return times


def _pairs(run: Run, count: int, pause_seconds: float) -> list[int]:
    clock, times = time.monotonic_ns, []
    for number in range(count):
        before = clock()
        with run.phase("student_forward", tokens=number):
            pass
        times.append(clock() - before)
        if pause_seconds:
            time.sleep(pause_seconds)
    return times


def _nested(run: Run) -> list[int]:
    """An outer phase with two inside, tokens set at the end; the time of a third of it is a pair's."""
    clock, times = time.monotonic_ns, []
    for number in range(_PAIRS // 3):
        before = clock()
        with run.phase("step") as step:
            with run.phase("teacher_forward", tokens=number):
                pass
            with run.phase("backward"):
                pass
            step.tokens = number
        times.append((clock() - before) // 3)
    return times


class _Recorder:
    """A process that takes marks and acknowledges them, at a socket.

    Attributes:
        came: What it says at its end: `marks`, `repeats`, `dropped`.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def __enter__(self) -> str:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kdclient.recorder", str(self._socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"
        return str(self._socket)

    def __exit__(self, *_: object) -> None:
        self.came: dict[str, int] = json.loads(self._process.communicate()[0])
