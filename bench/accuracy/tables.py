"""The results of the accuracy harness as text: a line a cell as it comes, and the summary for people."""

from collections.abc import Sequence
from typing import Any

REFERENCE = ("data_load", "teacher_forward", "student_forward", "backward", "optimizer_step")
"""The phases of the reference workload in their order."""


def percent(ratio: float) -> str:
    """Returns a share as per cent with two figures that count."""
    return f"{ratio:.2%}" if ratio < 0.1 else f"{ratio:.0%}"


def line(cell: dict[str, Any]) -> str:
    """Returns a cell in one line."""
    if cell["kind"] == "real_time":
        errors = " ".join("refused" if error is None else f"{error:+.1%}" for error in cell["errors"])
        verdict = {True: "", False: "  MISSES ITS BOUND", None: ""}[cell.get("ok")]
        name = f"{cell['counter_milliseconds']} ms counter, {cell['tool']}, {cell['phase']}"
        return f"{name:<60} {errors}{verdict}"
    missed = [name for name, kept in cell["verdicts"].items() if not kept]
    verdict = f"  MISSES {', '.join(missed)}" if missed else ""
    return (
        f"{cell['cell']:<32} {cell['trials']:>4} trials  {cell['times_limit']:5.2f} x limit  "
        f"coverage {cell['covered_ratio']:.1%}  {cell['attribution_seconds']:.2f} s{verdict}"
    )


def summary(cells: Sequence[dict[str, Any]]) -> str:
    """Returns the tables that the README shows."""
    parts = []
    for kind, make in (("virtual_time", _virtual), ("real_time", _real)):
        chosen = [cell for cell in cells if cell["kind"] == kind]
        if chosen:
            parts.append(make(chosen))
    return "\n\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _virtual(cells: Sequence[dict[str, Any]]) -> str:
    head = ["sensor, response", "steps", "trials", *REFERENCE, "times the limit", "intervals hold"]
    lines = [_row(head), _row(["---"] * len(head))]
    for cell in cells:
        phases = cell["phases"]
        if not set(REFERENCE) <= set(phases):
            continue
        rms = [percent(phases[name]["rms_ratio"]) for name in REFERENCE]
        facts = [f"{cell['times_limit']:.2f}", f"{cell['covered_ratio']:.1%}"]
        lines.append(_row([cell["cell"], str(cell["steps"]), str(cell["trials"]), *rms, *facts]))
    return "\n".join(lines)


def _real(cells: Sequence[dict[str, Any]]) -> str:
    head = ["counter", "tool", *REFERENCE]
    lines = [_row(head), _row(["---"] * len(head))]
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault((cell["counter_milliseconds"], cell["tool"]), {})[cell["phase"]] = cell
    for (period, tool), phases in rows.items():
        shown = [percent(phases[name]["rms_ratio"]) if _has(phases, name) else "-" for name in REFERENCE]
        lines.append(_row([f"{period} ms", tool, *shown]))
    return "\n".join(lines)


def _has(phases: dict[str, Any], name: str) -> bool:
    return name in phases and phases[name].get("rms_ratio") is not None
