"""Progress bars: on a terminal as they move, in a log a line now and then."""

import sys
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
_bars: "weakref.WeakSet[tqdm[Any]]" = weakref.WeakSet()


def bar(
    items: Iterable[_T], what: str, *, unit: str = "it", first: int = 0, total: int | None = None
) -> "tqdm[_T]":
    """A bar over the items, on standard error.

    Args:
        items: What is gone through.
        what: What is being done.
        unit: Of an item.
        first: Items done before (a resumed run).
        total: Items in all, those done before with them; by default the items' own count.
    """
    quiet = not sys.stderr.isatty()
    made = tqdm(
        items,
        desc=what,
        unit=unit,
        initial=first,
        total=total,
        file=sys.stderr,
        mininterval=15.0 if quiet else 0.2,
        maxinterval=30.0,
        dynamic_ncols=not quiet,
        ncols=90 if quiet else None,
    )
    _bars.add(made)
    return made


def end_bars() -> None:
    """End the bars that an error has left in the middle, so that its line stands alone."""
    for left in list(_bars):
        left.close()
