"""The estimator `auto`: which of the two accounts of a device over a run is the better one, and why."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wattq.sweep import OUTSIDE, UNRESOLVED

# An overlap this sure needs no second opinion.
GOOD_ENOUGH = 0.01


def _phases(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["phase"] not in {OUTSIDE, UNRESOLVED}]


def worst(rows: Sequence[dict[str, Any]]) -> float:
    """Returns the widest relative half-width of the phases; infinity where one has no number."""
    widths = [0.0]
    for row in _phases(rows):
        if not row["valid"]:
            return float("inf")
        half = np.hypot(row["energy_statistical_joules"], row["energy_response_joules"])
        widths.append(float(half / row["energy_joules"]) if row["energy_joules"] else 0.0)
    return max(widths)


def _known(rows: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Returns how many phases have a number, and minus the sum of their half-widths."""
    valid = [row for row in _phases(rows) if row["valid"]]
    halves = [np.hypot(row["energy_statistical_joules"], row["energy_response_joules"]) for row in valid]
    return len(valid), -float(np.sum(halves))


def choose(overlap: Sequence[dict[str, Any]], regression: Sequence[dict[str, Any]]) -> bool:
    """Returns whether the regression is the better account of a device over a run.

    It is where it gives more phases a number, and where it gives the same number of them narrower ones; where
    neither has a number its reasons say more.
    """
    return not _known(overlap)[0] or _known(regression) > _known(overlap)
