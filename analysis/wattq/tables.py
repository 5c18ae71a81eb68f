"""Answers as tables for people, JSON and CSV for programs."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wattq.numbers import DASH, half, number, plain, share, whole
from wattq.sweep import UNRESOLVED

# Wide enough that nothing is cut when the output goes into a file.
_FILE_WIDTH = 180


def console() -> Console:
    """Returns where tables are printed."""
    probe = Console()
    return probe if probe.is_terminal else Console(width=_FILE_WIDTH)


def _plain(value: Any) -> float | str:
    """Returns what JSON has for a value that it does not know: a decimal is a number, all else a text."""
    return float(value) if isinstance(value, Decimal) else str(value)


def print_json(records: Iterable[dict[str, Any]]) -> None:
    """Prints rows as a list of JSON objects, one to a line."""
    # JSON knows neither infinity nor NaN, and neither is a number that anybody could use.
    finite = (
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        for record in records
    )
    lines = (json.dumps(record, default=_plain, allow_nan=False, ensure_ascii=False) for record in finite)
    print("[" + ",\n ".join(lines) + "]")


def print_csv(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> None:
    """Prints rows as CSV with a heading; what is not known is an empty cell."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([record[name] for name in columns] for record in records)


def _cell(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return number(value)
    return escape(str(value))


def print_table(columns: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a plain table, numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        numeric = any(isinstance(record[name], int | float) for record in records)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for record in records:
        table.add_row(*(_cell(record[name]) for name in columns))
    console().print(table)


def print_answer(form: str, columns: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
    """Prints rows in a form: `table`, `json` or `csv`."""
    if form == "json":
        print_json(records)
    elif form == "csv":
        print_csv(columns, records)
    else:
        print_table(columns, records)


def _phase_cells(row: dict[str, Any]) -> list[str]:
    joules = row["energy_joules"]
    width = half(row["energy_low_joules"], row["energy_high_joules"], joules)
    watts = joules / row["duration_seconds"] if joules is not None and row["duration_seconds"] else None
    error = None if width is None or watts is None else width / row["duration_seconds"]
    token = row["energy_per_token_joules"]
    return [
        escape(row["phase"]),
        whole(row["count"]),
        plain(row["duration_seconds"]),
        number(joules, width),
        DASH if width is None else number(width, width),
        number(watts, error),
        whole(row["tokens"]),
        DASH if token is None else number(token * 1000),
        share(row["coverage_ratio"]),
        escape(row["reason"] or ""),
    ]


def _headed(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("device")
    table.add_column("phase")
    for heading in ("count", "time s", "energy J", "± J", "power W", "tokens", "mJ/token", "covered"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    return table


def _device(row: dict[str, Any]) -> str:
    """Returns a device's name, short enough for a table, with what its numbers are worth."""
    name = row["device"] if len(row["device"]) <= 16 else row["device"][:15] + "…"
    return name if row["source"] == "measured" else f"{name} ({row['source']})"


def print_phases(
    rows: Sequence[dict[str, Any]],
    counters: dict[tuple[str, str, str], float],
    choices: dict[tuple[str, str, str], str],
) -> None:
    """Prints energy per phase, a table a run and node, with the sum check of each device under it.

    Args:
        rows: Rows of `phase_energy`, run by run.
        counters: The counter over the run by (run_id, node, device), joules.
        choices: Which estimator made each account, and why.
    """
    out = console()
    for (run_id, node), chunk in groupby(rows, key=lambda row: (row["run_id"], row["node"])):
        ours = list(chunk)
        again = f", {ours[0]['restarts']} restarts" if ours[0]["restarts"] else ""
        table = _headed(f"{ours[0]['run']}  (run {run_id}, job {ours[0]['job']}, node {node}{again})")
        for _, device_rows in groupby(ours, key=lambda row: row["device"]):
            said = None
            for place, row in enumerate(device_rows):
                cells = _phase_cells(row)
                # What holds for the rows above need not be said again.
                cells[-1] = "" if row["valid"] and row["reason"] == said else cells[-1]
                said = row["reason"] if row["valid"] else said
                table.add_row(escape(_device(row)) if place == 0 else "", *cells)
            table.add_section()
        out.print(table)
        out.print()
        for line in sum_checks(ours, counters):
            out.print(line, highlight=False, markup=False)
        for device in dict.fromkeys(row["device"] for row in ours):
            why = choices.get((run_id, node, device))
            if why:
                out.print(f"{device}: estimator {why}", highlight=False, markup=False)
        out.print()


def sum_checks(rows: Sequence[dict[str, Any]], counters: dict[tuple[str, str, str], float]) -> list[str]:
    """Returns, for each device of a run, whether its rows add up to its counter, and what its numbers are."""
    lines = []
    for device, chunk in groupby(rows, key=lambda row: row["device"]):
        ours = list(chunk)
        counter = counters.get((ours[0]["run_id"], ours[0]["node"], device))
        if counter is None:
            lines.append(f"{device}: no counter over the run")
            continue
        total = sum(row["energy_joules"] or 0.0 for row in ours)
        unresolved = sum(row["energy_joules"] or 0.0 for row in ours if row["phase"] == UNRESOLVED)
        fits = abs(total - counter) <= max(1e-9 * counter, 1e-6)
        verdict = "=" if fits else "DOES NOT EQUAL"
        without = f", {number(unresolved)} J of it unresolved" if unresolved else ""
        lines.append(
            f"{device}: rows {total:,.3f} J {verdict} counter {counter:,.3f} J{without}; "
            f"{ours[0]['source']}; scale of the counter itself ±{ours[0]['calibration_ratio']:.0%}"
        )
    return lines
