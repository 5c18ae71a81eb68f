"""Pictures of the report as plain shapes: the skyline of power over time, filled with the phase that ran.

Shapes are drawn in a box of 1000 x 100 that the page stretches to its width; words stand beside them in HTML,
so that they stay readable on a telephone.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wattq.counter import NANO, Counter, Floats, Ints, blind_spots, time_within
from wattq.sweep import Pieces

WIDTH = 1000.0
HEIGHT = 100.0
# Columns of a skyline: more than a wide screen shows apart, few enough for a page of some hundred kilobytes.
COLUMNS = 720


@dataclass(frozen=True)
class Area:
    """A stretch of the skyline in which one row is the longest in each column.

    Attributes:
        path: SVG path.
        row: Name of the row.
    """

    path: str
    row: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in per cent of it, and what it says."""

    percent: float
    label: str


@dataclass(frozen=True)
class Skyline:
    """Power over time.

    Attributes:
        title: What is shown.
        areas: Fillings.
        line: SVG path of the power; broken where the counter is blind.
        blind: (begin, width) of blind stretches in the box's units.
        ticks_time: Marks of the time axis.
        ticks_watts: Marks of the power axis.
        summary: The picture in a sentence, for those who do not see it.
    """

    title: str
    areas: list[Area]
    line: str
    blind: list[tuple[float, float]]
    ticks_time: list[Tick]
    ticks_watts: list[Tick]
    summary: str


def column_watts(counter: Counter, gaps: Ints, edges: Ints) -> Floats:
    """Returns the mean power of a device in each column, watts; `nan` where it is mostly not known.

    Args:
        counter: Edges of the device's counter.
        gaps: Recorded gaps, one row (begin, end) each, monotonic nanoseconds.
        edges: Limits of the columns, monotonic nanoseconds.
    """
    begin, end = int(edges[0]), int(edges[-1])
    span = np.diff(edges) / NANO
    watts = np.diff(counter.at(edges)) / span
    blind = np.diff(time_within(blind_spots(counter.between(begin, end), gaps, [(begin, end)]), edges)) / NANO
    return np.where(blind > span / 2, np.nan, watts)


def dominant(pieces: Pieces, edges: Ints) -> Ints:
    """Returns the row that holds most of each column."""
    best = np.zeros(len(edges) - 1)
    winner = np.zeros(len(edges) - 1, dtype=np.int64)
    origin = pieces.start[0]
    bounds = (np.column_stack([pieces.start, pieces.stop]).ravel() - origin).astype(np.float64)
    moments = (edges - origin).astype(np.float64)
    for row in range(len(pieces.rows)):
        time = np.where(pieces.row == row, pieces.stop - pieces.start, 0).astype(np.float64)
        after = np.cumsum(time)
        held = np.diff(np.interp(moments, bounds, np.column_stack([after - time, after]).ravel()))
        winner = np.where(held > best, row, winner)
        best = np.maximum(best, held)
    return winner


def nice_steps(limit: float, count: int) -> list[float]:
    """Returns round numbers from 0 up to a limit, about `count` of them."""
    if limit <= 0 or not math.isfinite(limit):
        return [0.0]
    rough = limit / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * number for number in range(math.floor(limit / step * 1.0001) + 1)]


def _runs(rows: Ints, known: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> list[tuple[int, int]]:
    """Returns (first, last + 1) of the stretches of columns with one row and known power."""
    change = np.flatnonzero((rows[1:] != rows[:-1]) | (known[1:] != known[:-1])) + 1
    limits = [0, *change.tolist(), len(rows)]
    return list(pairwise(limits))


def _steps(x: Floats, y: Floats, first: int, last: int) -> str:
    return "".join(f"V{y[place]:.2f}H{x[place + 1]:.1f}" for place in range(first, last))


def time_ticks(seconds: float, offset: float = 0.0) -> list[Tick]:
    """Returns the marks of a time axis that is `seconds` long and begins `offset` seconds into the run."""
    unit, name = (1.0, "s") if seconds < 300 else (60.0, "min") if seconds < 18000 else (3600.0, "h")
    steps = nice_steps(seconds / unit, 5)
    decimals = 0 if len(steps) < 2 or steps[1] >= 1 else 2
    return [
        Tick(100 * step * unit / seconds if seconds else 0.0, f"{step + offset / unit:,.{decimals}f} {name}")
        for step in steps
    ]


def skyline(
    title: str, edges: Ints, watts: Floats, rows: Ints, names: tuple[str, ...], *, offset: float
) -> Skyline:
    """Draws power over time.

    Args:
        title: What is shown.
        edges: Limits of the columns, monotonic nanoseconds.
        watts: Mean power of each column; `nan` where it is not known.
        rows: Row of each column.
        names: Names of the rows.
        offset: Where the picture begins, seconds into the run.
    """
    known = ~np.isnan(watts)
    top = float(np.nanmax(watts)) if known.any() else 0.0
    scale = top * 1.08 or 1.0
    x = (edges - edges[0]) / (edges[-1] - edges[0]) * WIDTH
    y = HEIGHT - np.nan_to_num(watts) / scale * HEIGHT
    areas, blind, line = [], [], ""
    pen_up = True
    for first, last in _runs(rows, known):
        if not known[first]:
            blind.append((round(float(x[first]), 1), round(float(x[last] - x[first]), 1)))
            pen_up = True
            continue
        steps = _steps(x, y, first, last)
        areas.append(Area(f"M{x[first]:.1f} {HEIGHT:.0f}{steps}V{HEIGHT:.0f}Z", names[int(rows[first])]))
        line += (f"M{x[first]:.1f} {y[first]:.2f}" if pen_up else "") + steps
        pen_up = False
    seconds = float(edges[-1] - edges[0]) / NANO
    mean = (
        f"{np.nanmean(watts):,.0f} W on average, {top:,.0f} W at most" if known.any() else "power not known"
    )
    return Skyline(
        title=title,
        areas=areas,
        line=line,
        blind=blind,
        ticks_time=time_ticks(seconds, offset),
        ticks_watts=[Tick(100 * step / scale, f"{step:,.0f} W") for step in nice_steps(top, 4)],
        summary=f"{title}: power over {seconds:,.0f} s, {mean}.",
    )
