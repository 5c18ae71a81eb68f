"""Gathers what the report's pictures of power over time show."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattq.charts import COLUMNS, Skyline, column_watts, dominant, skyline
from wattq.counter import Counter, Device, Ints
from wattq.estimate import counters
from wattq.loading import Chosen, Cuts, boots, claims, gaps_of, load_run
from wattq.runner import Archive
from wattq.sweep import OUTSIDE, Pieces

Found = dict[str, tuple[Device, Counter]]

# Domains that are drawn; core and uncore lie inside package.
_DRAWN = ("module", "gpu", "package", "dram", "node", "psys")
# With more stretches than this a column holds many phases, and a close-up shows what a step looks like.
_CROWDED = 120
_CLOSE_STRETCHES = 40


@dataclass(frozen=True)
class RunPicture:
    """Power over time of a run on one boot of a node.

    Attributes:
        run_id: The run.
        node: The node.
        skylines: One a domain: the whole run.
        close_ups: The same for a usual short stretch; empty where the whole is clear enough.
        legend: Names of the rows that are to be seen.
    """

    run_id: str
    node: str
    skylines: list[Skyline]
    close_ups: list[Skyline]
    legend: list[str]


@dataclass(frozen=True)
class _Domain:
    """Devices of one domain, summed in a picture; cut by the phases of the first of them."""

    title: str
    members: list[tuple[Counter, Ints]]
    pieces: Pieces


def _grid(begin: int, end: int) -> Ints:
    columns = int(min(COLUMNS, max(end - begin, 1)))
    return np.unique(np.linspace(begin, end, columns + 1).astype(np.int64))


def _draw(domain: _Domain, begin: int, end: int, origin: int) -> Skyline:
    edges = _grid(begin, end)
    watts = np.sum([column_watts(counter, gaps, edges) for counter, gaps in domain.members], axis=0)
    rows = dominant(domain.pieces, edges)
    return skyline(domain.title, edges, watts, rows, domain.pieces.rows, offset=(begin - origin) / 1e9)


def _close_up(pieces: Pieces) -> tuple[int, int] | None:
    """Returns a usual stretch of some dozen phases; `None` when the whole is clear enough."""
    if len(pieces.start) <= _CROWDED:
        return None
    lengths = pieces.stop[_CLOSE_STRETCHES - 1 :] - pieces.start[: len(pieces.start) - _CLOSE_STRETCHES + 1]
    # The usual case, not the middle of the run: that may lie in one long evaluation.
    first = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    begin, end = int(pieces.start[first]), int(pieces.stop[first + _CLOSE_STRETCHES - 1])
    return (begin, end) if 3 * (end - begin) < int(pieces.stop[-1] - pieces.start[0]) else None


def _domains(archive: Archive, run: dict[str, Any], found: Found) -> Iterable[_Domain]:
    connection = archive.connection
    cuts = Cuts(load_run(connection, run))
    claimed = claims(connection, run["run_id"], run["node"], run["boot_id"])
    for domain in _DRAWN:
        ours = [
            (device, counter)
            for name, (device, counter) in found.items()
            if device.domain == domain and name in claimed and len(counter.edge) > 1
        ]
        if not ours:
            continue
        members = [
            (counter, gaps_of(connection, run["node"], run["boot_id"], device.device))
            for device, counter in ours
        ]
        several = (
            f"{domain}, {len(ours)} devices together" if len(ours) > 1 else f"{domain}, {ours[0][0].device}"
        )
        sources = sorted({device.source for device, _ in ours} - {"measured"})
        title = f"{several} ({', '.join(sources)})" if sources else several
        yield _Domain(title, members, cuts.of(claimed[ours[0][0].device][0], ours[0][0].domain)[1])


def _picture(archive: Archive, run: dict[str, Any], found: Found) -> RunPicture | None:
    domains = list(_domains(archive, run, found))
    if not domains:
        return None
    pieces = domains[0].pieces
    begin, end = int(pieces.start[0]), int(pieces.stop[-1])
    near = _close_up(pieces)
    whole = [_draw(domain, begin, end, begin) for domain in domains]
    close = [_draw(domain, *near, begin) for domain in domains] if near else []
    seen = {area.row for picture in [*whole, *close] for area in picture.areas}
    seconds = dict.fromkeys(seen, 0.0)
    for row, name in enumerate(pieces.rows):
        if name in seen:
            seconds[name] = float((pieces.stop - pieces.start)[pieces.row == row].sum())
    legend = sorted(seen, key=lambda name: (name == OUTSIDE, -seconds[name], name))
    return RunPicture(run["run_id"], run["node"], whole, close, legend)


def picture_runs(archive: Archive, run_ids: list[str]) -> list[RunPicture]:
    """Draws runs.

    Args:
        archive: The archive.
        run_ids: Which runs.
    """
    found = []
    for (node, boot_id), runs in boots(archive.connection, Chosen()):
        wanted = [run for run in runs if run["run_id"] in run_ids]
        if not wanted:
            continue
        devices, _ = counters(archive.connection, archive.segments, node, boot_id)
        found += [picture for run in wanted if (picture := _picture(archive, run, devices))]
    return found
