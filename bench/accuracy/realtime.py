"""Accuracy in real time, through the whole path: simulated driver, `wattd serve`, kdclient, `wattq phases`.

A workload process walks the reference step 300 times and writes the power that each phase draws into a trace
as it goes. A simulated libnvidia-ml.so.1 (tests/nvml) shows every process what a GPU's sensors would. The
daemon reads that, the workload marks its phases, and the archive is asked what they cost. The error is
answer / truth - 1, where the truth is the energy that a phase caused at the die. Other tools measure the same
workload with the same driver, by their own interfaces.
"""

import argparse
import contextlib
import json
import math
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.accuracy.peers.environments import PACKAGES
from bench.accuracy.peers.tools import TOOLS, TOTAL
from bench.accuracy.runs import DEVICES, Outcome, Run, measure_once
from bench.accuracy.workload import REFERENCE

STEPS, QUICK_STEPS = 300, 100
REPEATS, QUICK_REPEATS = 3, 1
USUAL_TOOLS = tuple(tool for tool in TOOLS if tool != "wattd_calibrated")
"""Without the run after `wattd calibrate`, which takes twice as long."""

_BOUNDS = ((0.030, 0.015), (0.008, 0.15))
"""(Least mean seconds of a phase, most rms error): 1.5 times what is promised with a fitted response."""

_TOTAL_BOUND = 0.001

_EPILOG = """examples:
  python -m bench.accuracy.realtime                    both counters, 3 repeats, every tool: about 15 minutes
  QUICK=1 python -m bench.accuracy.realtime            one repeat of 100 steps, which no promise covers
  python -m bench.accuracy.realtime --counter 20 --tool wattd --repeats 1 --seed 7 --json
"""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        steps: Training steps a run.
        repeats: Runs a cell.
        tools: By their names in peers/tools.py.
        seed: Of the first repeat; the next ones follow. By default another one each time.
        words: More words for `wattd serve`.
        keep: Folder that keeps archives, traces and truths; None: they are thrown away.
    """

    steps: int = STEPS
    repeats: int = REPEATS
    tools: Sequence[str] = USUAL_TOOLS
    seed: int = field(default_factory=lambda: secrets.randbelow(1_000_000))
    words: Sequence[str] = ()
    keep: Path | None = None


def measure(
    *, quick: bool, counters: Sequence[int] = tuple(DEVICES), options: Options | None = None
) -> Iterator[dict[str, Any]]:
    """Cells, one per (counter, tool, phase), those of a counter as soon as its repeats are done.

    Args:
        quick: One repeat of fewer steps; then nothing is promised, and `bound_ratio` is None.
        counters: Update periods of the energy counter, milliseconds.
        options: Instead of those of `quick`.
    """
    if options is None:
        options = Options(steps=QUICK_STEPS, repeats=QUICK_REPEATS) if quick else Options()
    for counter in counters:
        seeds = [options.seed + repeat for repeat in range(options.repeats)]
        outcomes: dict[str, list[Outcome]] = {tool: [] for tool in options.tools}
        for seed in seeds:
            print(
                f"bench: counter {counter} ms, {options.steps} steps, seed {seed}",
                file=sys.stderr,
                flush=True,
            )
            with _folder(options.keep, f"{counter}-{seed}") as folder:
                run = Run(counter, seed, options.steps, folder)
                for tool, outcome in measure_once(run, options.tools, options.words).items():
                    outcomes[tool].append(outcome)
        shared = {"counter_milliseconds": counter, "steps": options.steps, "seeds": seeds}
        for tool in options.tools:
            for phase in (*(kind.name for kind in REFERENCE), TOTAL):
                bound = _bound(phase) if tool == "wattd" and options.steps >= STEPS else None
                cell = _cell(tool, phase, outcomes[tool], bound)
                yield {"kind": "real_time", "source": "simulated", **shared, **cell}


@contextlib.contextmanager
def _folder(keep: Path | None, name: str) -> Iterator[Path]:
    if keep is not None:
        folder = keep.resolve() / name
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="wattd-accuracy-") as passing:
        yield Path(passing)


def _bound(phase: str) -> float | None:
    if phase == TOTAL:
        return _TOTAL_BOUND
    seconds = next(kind.seconds for kind in REFERENCE if kind.name == phase)
    return next((bound for least, bound in _BOUNDS if seconds >= least), None)


def _cell(tool: str, phase: str, outcomes: list[Outcome], bound: float | None) -> dict[str, Any]:
    """One figure of a tool: its error over the repeats. `ok` is None where nothing is promised."""
    errors = [outcome.errors.get(phase) for outcome in outcomes]
    known = [error for error in errors if error is not None]
    reasons = {outcome.reasons.get(phase) or outcome.reasons.get("") for outcome in outcomes}
    environment = TOOLS[tool][0]
    rms = math.sqrt(sum(error**2 for error in known) / len(known)) if known else None
    return {
        "tool": tool,
        "package": PACKAGES[environment] if environment else None,
        "phase": phase,
        "phase_milliseconds": next((kind.seconds * 1e3 for kind in REFERENCE if kind.name == phase), None),
        "trials": len(outcomes),
        "errors": errors,
        "refused": len(errors) - len(known),
        "rms_ratio": rms,
        "bound_ratio": bound,
        "covered": [outcome.covered[phase] for outcome in outcomes if phase in outcome.covered],
        "reason": "; ".join(sorted(filter(None, reasons))),
        "late_milliseconds": [outcome.late_milliseconds for outcome in outcomes],
        "ok": None if bound is None else len(known) == len(outcomes) and rms is not None and rms <= bound,
    }


def table(cells: Sequence[dict[str, Any]]) -> str:
    """The cells as text: a line a tool, a column a phase; the error of one run, of several the rms."""
    phases = list(dict.fromkeys(cell["phase"] for cell in cells))
    rows = [["counter", "tool", *phases]]
    for counter, tool in dict.fromkeys((cell["counter_milliseconds"], cell["tool"]) for cell in cells):
        mine = {
            cell["phase"]: cell
            for cell in cells
            if (cell["counter_milliseconds"], cell["tool"]) == (counter, tool)
        }
        rows.append([f"{counter} ms", tool, *(_shown(mine[phase]) for phase in phases)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def _shown(cell: dict[str, Any]) -> str:
    if cell["rms_ratio"] is None:
        return "no number"
    value = f"{cell['errors'][0]:+.2%}" if cell["trials"] == 1 else f"{cell['rms_ratio']:.2%}"
    refused = f" ({cell['refused']} refused)" if cell["refused"] else ""
    covered = cell["covered"]
    missed = "" if all(covered) else f" ({sum(covered)} of {len(covered)} covered)"
    return value + refused + missed + (" NO" if cell["ok"] is False else "")


def main(words: list[str] | None = None) -> int:
    """Measure and say it.

    Returns:
        0: every promise holds; 1: one does not, or a tool failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy.realtime",
        description="Compare what phases cost with what tools say, in real time on a simulated driver.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    parser.add_argument("--counter", type=int, action="append", choices=list(DEVICES), help="default: both")
    parser.add_argument(
        "--tool", action="append", choices=list(TOOLS), help="default: all but wattd_calibrated"
    )
    parser.add_argument("--steps", type=int, default=QUICK_STEPS if quick else STEPS)
    parser.add_argument("--repeats", type=int, default=QUICK_REPEATS if quick else REPEATS)
    parser.add_argument("--seed", type=int, help="of the first repeat; default: another one each time")
    parser.add_argument("--hz", help="tick of the daemon, for comparison; default: its own")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep archives, traces and truths here")
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    chosen = parser.parse_args(words)
    options = Options(chosen.steps, chosen.repeats, tuple(chosen.tool or USUAL_TOOLS), keep=chosen.keep)
    if chosen.seed is not None:
        options = replace(options, seed=chosen.seed)
    if chosen.hz:
        options = replace(options, words=("--hz", chosen.hz))
    cells = list(measure(quick=quick, counters=chosen.counter or tuple(DEVICES), options=options))
    print(json.dumps(cells, indent=1) if chosen.json else table(cells))
    for reason in dict.fromkeys(f"{cell['tool']}: {cell['reason']}" for cell in cells if cell["reason"]):
        print(f"bench: {reason}", file=sys.stderr)
    failed = any(cell["rms_ratio"] is None and cell["phase"] != TOTAL for cell in cells)
    return 1 if failed or any(cell["ok"] is False for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
