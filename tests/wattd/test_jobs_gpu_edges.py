from typing import Any

import pytest

from tests.wattd.marking import BOOT, NOW, SECOND, Marker
from wattd.jobs import State
from wattd.marks import Intake, Taken

_BEGIN, _END = NOW + 400, NOW + 900


def _taken(**edges: Any) -> Taken:
    intake, marker = Intake(State(), BOOT, "ada"), Marker()
    return intake.take(marker.request(marker.begin_run(), marker.phase(**edges)), NOW + 10 * SECOND)


def test_edges_on_the_gpu_stand_beside_the_hosts() -> None:
    """A phase line has the GPU's times and their error where the client knows them, and no key else."""
    edges = {
        "gpu_begin_monotonic_nano": _BEGIN,
        "gpu_end_monotonic_nano": _END,
        "gpu_error_nano": 30_000,
    }
    line = _taken(**edges).lines[1]
    assert {key: line[key] for key in edges} == edges
    assert (line["begin_monotonic_nano"], line["end_monotonic_nano"]) == (NOW, NOW + 1000)
    assert not any(key.startswith("gpu") for key in _taken().lines[1])


def test_a_reason_stands_in_the_place_of_edges() -> None:
    """Where the edges were to be seen and were not, the line says why, and nothing else of the GPU."""
    line = _taken(gpu_reason="no_anchor", gpu_begin_monotonic_nano=_BEGIN).lines[1]
    assert line["gpu_reason"] == "no_anchor"
    assert "gpu_begin_monotonic_nano" not in line


@pytest.mark.parametrize(
    ("begin", "end", "error", "reason"),
    [
        (_END, _BEGIN, 1, ""),
        (0, _END, 1, ""),
        (-1, _END, 1, ""),
        (_BEGIN, NOW + 12 * SECOND, 1, ""),
        (_BEGIN, _END, SECOND + 1, ""),
        (0, 0, 0, "because"),
    ],
)
def test_edges_that_cannot_be_are_refused(begin: int, end: int, error: int, reason: str) -> None:
    """Out of order, in the future, worthless, or with a reason nobody knows: refused in one line."""
    taken = _taken(
        gpu_begin_monotonic_nano=begin, gpu_end_monotonic_nano=end, gpu_error_nano=error, gpu_reason=reason
    )
    assert taken.refused == 1
    assert taken.refusal.startswith("phase forward: ")
    assert len(taken.lines) == 1
