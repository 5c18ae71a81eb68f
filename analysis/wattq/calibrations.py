"""The responses that `wattd calibrate` measured, as an archive keeps them."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from wattq.fit import Fit
from wattq.lines import CALIBRATION
from wattq.problem import Noise
from wattq.response import LOGARITHMIC, NAMES, Response
from wattq.segments import Segment, reader

_NOTHING = {
    "power_delay_seconds": 0.003,
    "power_window_seconds": 0.03,
    "power_gain": 1.0,
    "power_offset_watts": 0.0,
}
"""What a device without a power reading has in the place of its parameters."""


@dataclass(frozen=True)
class Measured:
    """A measured response.

    Attributes:
        fit: The response and how well it is known.
        when: Date of the measurement.
    """

    fit: Fit
    when: str


def measured_responses(
    connection: duckdb.DuckDBPyConnection, segments: Sequence[Segment]
) -> dict[tuple[str, str], Measured]:
    """Returns the newest calibration of each (node, device) in an archive.

    A device with a UUID is the same on whatever node; `package-0` is another on each.

    Args:
        connection: DuckDB.
        segments: The archive's segments.
    """
    paths = [part.path for part in segments if part.kind == "events"]
    if not paths:
        return {}
    nodes = {str(part.path): part.node for part in segments}
    columns = ", ".join(
        ("filename", "device", "time_unix_nano", *NAMES, "counter_window_seconds", "covariance")
    )
    found = connection.execute(f"""
        select {columns} from {reader(paths, CALIBRATION)}
        where type = 'calibration' and device is not null and covariance is not null
        order by time_unix_nano nulls first
    """).fetchall()  # noqa: S608 fixed words and quoted paths
    measured: dict[tuple[str, str], Measured] = {}
    for path, device, unix_nano, *values, window, covariance in found:
        named = dict(zip(NAMES, values, strict=True))
        named = {name: _NOTHING.get(name) if value is None else value for name, value in named.items()}
        fit = _fit(named, window, covariance)
        if fit is not None:
            when = dt.datetime.fromtimestamp((unix_nano or 0) / 1e9, dt.UTC).date().isoformat()
            measured[_owner(nodes[path], device), device] = Measured(fit, when)
    return measured


def _owner(node: str, device: str) -> str:
    return "" if device.startswith(("GPU-", "MIG-")) else node


def measured_of(responses: dict[tuple[str, str], Measured], node: str, device: str) -> Measured | None:
    """Returns the calibration of a device on a node, if there is one."""
    return responses.get((_owner(node, device), device))


def _fit(named: dict[str, float | None], window: float | None, covariance: list[list[float]]) -> Fit | None:
    """Returns what was measured; None where it can be no sensor's response."""
    try:
        values = np.array([*named.values(), 1.0 if window is None else window], dtype=np.float64)
        matrix = np.array(covariance, dtype=np.float64)
        finite = np.isfinite(values).all() and np.isfinite(matrix).all()
        if not finite or (values[np.append(LOGARITHMIC, True)] <= 0).any() or len(matrix) != len(NAMES):
            return None
        np.linalg.cholesky(matrix)
    except (ValueError, np.linalg.LinAlgError):
        return None  # a list that is no matrix, or a matrix that is no covariance
    known = dict(zip(NAMES, values[:-1].tolist(), strict=True))
    response = Response(**known, counter_window_seconds=window)
    return Fit(response, matrix, Noise(), np.zeros(0), np.inf)
