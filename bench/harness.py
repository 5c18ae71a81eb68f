"""What `make bench` has in common: parts, results, repeats, and the file they go to."""

import importlib
import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")

PARTS: dict[str, str] = {
    "marks": "bench.marks",
    "ingest": "bench.ingest",
    "sampler": "bench.sampler",
    "archive": "bench.archive",
    "scrape": "bench.scrape",
    "attribution": "bench.attribution",
}
"""Name of each part -> its module, whose `measure()` yields results."""


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Attributes:
        name: Of the figure; unique over all parts.
        value: Median of the repeats.
        bound: What is promised; None where the figure is information. What it bounds from which side
            is the part's to know: `ok` says whether it holds.
        unit: Of value, bound and reference.
        reference: A fixed yardstick or a peer, timed in the same run; None where there is none.
        ok: Whether the promise holds; None without one.
    """

    name: str
    value: float
    bound: float | None
    unit: str
    reference: float | None
    ok: bool | None


class MissingPartError(Exception):
    """There is no such part; the text says which there are."""


def at_most(name: str, value: float, bound: float, unit: str, reference: float | None = None) -> Result:
    """A figure that is promised not to exceed its bound."""
    return Result(name, value, bound, unit, reference, value <= bound)


def at_least(name: str, value: float, bound: float, unit: str, reference: float | None = None) -> Result:
    """A figure that is promised to reach its bound."""
    return Result(name, value, bound, unit, reference, value >= bound)


def shown(name: str, value: float, unit: str, reference: float | None = None) -> Result:
    """A figure without a promise."""
    return Result(name, value, None, unit, reference, None)


def median_of(repeats: int, measure: Callable[[], float]) -> float:
    """The median of so many repeats."""
    return statistics.median(measure() for _ in range(repeats))


def medians_in_turn(repeats: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each measure; they take turns, so that a noisy minute meets all of them."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: statistics.median(found) for name, found in values.items()}


def run_part(name: str) -> Iterator[Result]:
    """The results of a part, each as soon as it is known.

    Raises:
        MissingPartError: It is not in the table, or its module is not there.
    """
    module = PARTS.get(name)
    if module is None:
        raise MissingPartError(f"no part {name}; there are {', '.join(PARTS)}")
    if importlib.util.find_spec(module) is None:
        raise MissingPartError(f"part {name} has no module {module} in this checkout")
    yield from importlib.import_module(module).measure()


def merge(results: Iterable[Result], path: Path = RESULTS) -> list[Result]:
    """Put results into the file, each in the place of an older one of its name; returns all."""
    known = {result.name: result for result in load(path)}
    known.update({result.name: result for result in results})
    merged = sorted(known.values(), key=lambda result: result.name)
    text = json.dumps([asdict(result) for result in merged], indent=1) + "\n"
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)  # noqa: PTH105 - whole or not at all
    return merged


def load(path: Path = RESULTS) -> list[Result]:
    """The results in the file; none where there is no file."""
    if not path.exists():
        return []
    return [Result(**entry) for entry in json.loads(path.read_text())]


def table(results: Iterable[Result]) -> str:
    """Results as lines of text."""
    rows = [("name", "value", "bound", "reference", "unit", "ok")]
    verdicts = {True: "yes", False: "NO", None: ""}
    rows += [
        (r.name, _short(r.value), _short(r.bound), _short(r.reference), r.unit, verdicts[r.ok])
        for r in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
