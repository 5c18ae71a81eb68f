"""A page of metrics as text: families of samples in, Prometheus or OpenMetrics out.

Label sets are rendered once and kept: a page is mostly numbers put behind known beginnings.
"""

import gzip
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]


class Family(NamedTuple):
    """A metric with its samples.

    Attributes:
        name: Its name; of a counter with `_total`.
        kind: `counter`, `gauge` or `histogram`.
        help: What it is, with the unit in words.
        unit: Base unit that the name ends with, or empty.
        samples: (suffix, labels, value) each; the suffix is for histograms alone.
    """

    name: str
    kind: str
    help: str
    unit: str
    samples: Iterable[Sample]


@lru_cache(maxsize=65536)
def _prefix(name: str, labels: Labels) -> str:
    if not labels:
        return f"{name} "
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
    return f"{name}{{{inner}}} "


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Page:
    """One snapshot, in each form that was asked for."""

    def __init__(self, families: Iterable[Family]) -> None:
        """Render the samples; families without one are left out."""
        self._parts: list[tuple[Family, str]] = []
        for family in families:
            name = family.name
            lines = [f"{_prefix(name + suffix, labels)}{value}\n" for suffix, labels, value in family.samples]
            if lines:
                self._parts.append((family, "".join(lines)))
        self._made: dict[tuple[bool, bool], bytes] = {}

    def render(self, *, openmetrics: bool, compressed: bool = False) -> bytes:
        """The page as bytes; made once and kept."""
        key = openmetrics, compressed
        if key not in self._made:
            if compressed:
                plain = self.render(openmetrics=openmetrics)
                self._made[key] = gzip.compress(plain, compresslevel=1, mtime=0)
            else:
                self._made[key] = self._text(openmetrics=openmetrics).encode()
        return self._made[key]

    def _text(self, *, openmetrics: bool) -> str:
        parts = []
        for family, lines in self._parts:
            name = family.name
            if openmetrics and family.kind == "counter":
                name = name.removesuffix("_total")
            parts.append(f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n")
            if openmetrics and family.unit:
                parts.append(f"# UNIT {name} {family.unit}\n")
            parts.append(lines)
        if openmetrics:
            parts.append("# EOF\n")
        return "".join(parts)


def one(value: float | None) -> list[Sample]:
    """The sample of a metric without labels; none if the value is not known."""
    return [] if value is None else [("", (), value)]


def histogram(
    label_set: Labels, bounds: Iterable[float], counts: Iterable[int], total: float
) -> Iterable[Sample]:
    """The samples of a histogram; `counts` has one more entry than `bounds`, for what is above."""
    cumulated = 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        cumulated += count
        yield "_bucket", (*label_set, ("le", bound)), cumulated
    yield "_sum", label_set, total
    yield "_count", label_set, cumulated


def by_label(key: str, values: Mapping[str, float]) -> Iterable[Sample]:
    """Samples that differ in one label."""
    return (("", ((key, name),), value) for name, value in values.items())
