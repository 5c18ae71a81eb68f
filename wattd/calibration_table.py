"""What `wattd calibrate` prints."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from wattd.calibrate import Outcome


def print_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> int:
    """Print what was found.

    Returns:
        The exit code: 1 where no device was calibrated.
    """
    if as_json:
        print(json.dumps([outcome.as_json() for outcome in outcomes], indent=2))
    else:
        _print_table(outcomes)
    for outcome in outcomes:
        if outcome.event is None:
            print(
                f"wattd: {outcome.channel.device.device} is not calibrated: {outcome.reason}", file=sys.stderr
            )
    return 0 if any(outcome.event is not None for outcome in outcomes) else 1


_COLUMNS: tuple[str, ...] = ("device", "reading", "period", "window", "delay", "rise", "seen", "gain")


def _print_table(outcomes: Iterable[Outcome]) -> None:
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    if not rows:
        return
    rows.insert(0, _COLUMNS)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("times in ms, +- two standard deviations; gain: of the power reading against the counter")


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    event, name = outcome.event or {}, outcome.channel.device.device
    shown = [reading for reading in ("counter", "power") if f"{reading}_period_seconds" in event]
    return [(name, reading, *_cells(event, reading)) for reading in shown]


def _cells(event: dict[str, Any], reading: str) -> Sequence[str]:
    """Period, window, delay, rise, seen and gain of a reading; `-` where there is none."""
    return (
        _shown(event, f"{reading}_period", "seconds", 1e3),
        _shown(event, f"{reading}_window", "seconds", 1e3),
        _shown(event, f"{reading}_delay", "seconds", 1e3),
        _shown(event, "rise", "seconds", 1e3),
        _shown(event, "seen", "ratio", 1.0) if reading == "power" else "-",
        _shown(event, "power", "gain", 1.0) if reading == "power" else "-",
    )


def _shown(event: dict[str, Any], name: str, unit: str, scale: float) -> str:
    value, deviation = event.get(f"{name}_{unit}"), event.get(f"{name}_sd_{unit}")
    if value is None:
        return "-"
    text = f"{value * scale:.4g}"
    return text if deviation is None else f"{text} +- {2 * deviation * scale:.2g}"
