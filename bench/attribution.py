"""How long the energy of a million phases takes, and how much memory: `wattq phases` as anybody runs it.

Overlap on a node-day of 8 GPUs, without and with 4 RAPL domains at 100 Hz; regression on the reference
workload's short phases. The reference is what it takes to decompress the same files and count their lines.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from bench import nodeday
from bench.harness import Result, at_most

_REPEATS = 3
_MOST_BYTES = 2e9
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Case:
    """What is asked of which archive, and within how many seconds it is promised."""

    name: str
    plan: nodeday.Plan
    estimator: str
    seconds: float


_CASES = (
    _Case("overlap_node_day", nodeday.NODE_DAY, "overlap", 10),
    _Case("overlap_node_day_rapl", nodeday.NODE_DAY_RAPL, "overlap", 20),
    _Case("regression_million_phases", nodeday.SHORT_PHASES, "regression", 60),
)


@dataclass
class _Measured:
    """Seconds, bytes and the reference's seconds, one a repeat."""

    seconds: list[float]
    peaks: list[float]
    references: list[float]


def measure() -> Iterator[Result]:
    """Seconds and peak memory of each case; the cases take turns."""
    roots = {case.name: nodeday.make(case.plan) for case in _CASES}
    found = {case.name: _Measured([], [], []) for case in _CASES}
    for _ in range(_REPEATS):
        for case in _CASES:
            measured = found[case.name]
            measured.references.append(_count_lines(roots[case.name]))
            seconds, peak = _ask(roots[case.name], case)
            measured.seconds.append(seconds)
            measured.peaks.append(peak)
    for case in _CASES:
        measured = found[case.name]
        reference = statistics.median(measured.references)
        seconds = statistics.median(measured.seconds)
        yield at_most(f"attribution_{case.name}_seconds", seconds, case.seconds, "s", reference)
        yield at_most(f"attribution_{case.name}_peak_bytes", max(measured.peaks), _MOST_BYTES, "B")


def _ask(root: Path, case: _Case) -> tuple[float, float]:
    """Returns seconds and peak resident bytes of the command; its answer has to be whole."""
    command = [sys.executable, "-m", "wattq", "phases", str(root), "--estimator", case.estimator, "--json"]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begin
    assert process.returncode == 0, f"{' '.join(command)} failed"
    rows = json.loads(answer)
    marked = sum(row["count"] or 0 for row in rows if row["domain"] == "gpu")
    expected = nodeday.phases(case.plan)
    assert marked == expected, f"{marked} phases of {expected} are in the answer"
    return seconds, usage.ru_maxrss * 1024.0


def _count_lines(root: Path) -> float:
    """Returns the seconds that decompressing all files of an archive and counting their lines takes."""
    begin, lines = time.monotonic(), 0
    for path in root.rglob("*.jsonl.zst"):
        with path.open("rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file)
            while text := reader.read(_CHUNK_BYTES):
                lines += text.count(b"\n")
    assert lines > 0
    return time.monotonic() - begin
