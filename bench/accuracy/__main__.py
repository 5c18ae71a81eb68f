"""`make bench-accuracy`: how well phases are attributed, against what can be known and against peers.

Environment:
  QUICK=1    few trials of some cells, and one repeat in real time (for CI)
  PART=x     virtual or real: one half
  FRESH=1    forget the cells of an interrupted run
Finished cells are kept in build/accuracy until the estimator or the simulator changes, so that a run that was
interrupted goes on where it stopped. The result is bench/accuracy.json (quick: build/accuracy/quick.json).
"""

import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.accuracy import picture, tables

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_BUILD = _ROOT / "build" / "accuracy"
RESULTS = _HERE.parent / "accuracy.json"
_CHUNK = 10
_LEAST_OF_FEW = 0.8
"""Least coverage of the 50 intervals of ten trials: chance goes below it less than once in 1,000."""


_ESTIMATOR = (
    "attribution calibration clocks counter evidence fit mixed observations overlap problem regression "
    "response stretches sweep trust"
)
_HARNESS = "simulator virtual workload"


def _source_sha256() -> str:
    """Returns what the cells depend on: the estimator and the simulator."""
    digest = hashlib.sha256()
    analysis = _ROOT / "analysis" / "wattq"
    paths = [analysis / f"{name}.py" for name in _ESTIMATOR.split()]
    for path in paths + [_HERE / f"{name}.py" for name in _HARNESS.split()]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run_seed(*, quick: bool) -> int:
    """Returns the seed of this run: new for each, kept while the run goes on."""
    path = _BUILD / ("quick.run" if quick else "full.run")
    source = _source_sha256()
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["source"] == source:
            return int(kept["seed"])
    shutil.rmtree(_BUILD / path.stem, ignore_errors=True)
    seed = int(os.environ.get("SEED") or secrets.randbelow(2**31))
    path.write_text(json.dumps({"source": source, "seed": seed}))
    return seed


def _trials(work: tuple[Any, int, int]) -> list[Any]:
    """Runs some trials of a cell in a process of its own."""
    from bench.accuracy.virtual import try_once  # noqa: PLC0415 - after the number of threads is set

    cell, first, count = work
    return [try_once(cell, first + number) for number in range(count)]


def _virtual(*, quick: bool) -> Iterator[dict[str, Any]]:
    from bench.accuracy.virtual import cells, summarise  # noqa: PLC0415 - after the number of threads is set

    seed = _run_seed(quick=quick)
    kept = _BUILD / ("quick" if quick else "full")
    kept.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for place, cell in enumerate(cells(quick=quick)):
            path = kept / f"{cell.name.replace(' ', '_')}.json"
            if path.exists():
                yield json.loads(path.read_text())
                continue
            begin = time.monotonic()
            first = seed + 1_000_000 * place
            size = 1 if cell.workload.steps > 1_000 else _CHUNK
            work = [
                (cell, first + start, min(size, cell.trials - start)) for start in range(0, cell.trials, size)
            ]
            trials = [trial for chunk in pool.map(_trials, work) for trial in chunk]
            found = {**summarise(cell, trials), "seed": first, "wall_seconds": time.monotonic() - begin}
            path.with_suffix(".new").write_text(json.dumps(found))
            path.with_suffix(".new").rename(path)
            yield found


def _lenient(cell: dict[str, Any]) -> dict[str, Any]:
    """Returns a cell of few trials, judged as far as so few can tell."""
    if cell["kind"] != "virtual_time":
        return cell
    most = 1.3 if cell["response"] == "calibrated" else 4.0
    verdicts = {
        "times_limit": cell["times_limit"] <= 1.5 * most,
        "coverage": cell["covered_ratio"] >= _LEAST_OF_FEW,
        "totals": cell["verdicts"]["totals"],
    }
    return {**cell, "verdicts": verdicts, "ok": all(verdicts.values())}


def _real(*, quick: bool) -> Iterator[dict[str, Any]]:
    from bench.accuracy.realtime import measure  # noqa: PLC0415 - builds a library and starts a daemon

    yield from measure(quick=quick)


def main() -> int:
    """Runs the harness; returns 1 where a promise is not kept."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    quick = os.environ.get("QUICK") == "1"
    part = os.environ.get("PART", "")
    if part not in {"", "virtual", "real"}:
        print("bench-accuracy: PART is virtual or real", file=sys.stderr)
        return 2
    if os.environ.get("FRESH") == "1":
        shutil.rmtree(_BUILD, ignore_errors=True)
    _BUILD.mkdir(parents=True, exist_ok=True)
    found = []
    for name, cells in (("virtual", _virtual), ("real", _real)):
        if part in {"", name}:
            for measured in cells(quick=quick):
                cell = _lenient(measured) if quick else measured
                print(tables.line(cell), flush=True)
                found.append(cell)
    results = _BUILD / "quick.json" if quick else RESULTS
    kinds = {cell["kind"] for cell in found}
    if results.exists():
        found += [cell for cell in json.loads(results.read_text())["cells"] if cell["kind"] not in kinds]
    results.write_text(json.dumps({"cells": found}, indent=1) + "\n")
    print()
    print(tables.summary(found))
    if not quick:
        picture.write(found, _ROOT / "docs" / "accuracy.svg")
    failed = [cell for cell in found if cell.get("ok") is False]
    print(f"\n{len(found)} cells, {len(failed)} of them miss a promise; {results.relative_to(_ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
