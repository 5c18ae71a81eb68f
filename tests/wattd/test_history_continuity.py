import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattd.continuity import offset_microjoules
from wattd.history import History

_JOULE = 1_000_000
_RANGE = 262_143_328_850
_SECOND = 1_000_000_000


def _offset(device: dict[str, Any], counter: int, seconds: float, last: int, last_offset: int = 0) -> int:
    return offset_microjoules(
        {"source": "measured", **device},
        counter,
        10**12 + int(seconds * _SECOND),
        last_microjoules=last,
        last_nano=10**12,
        last_offset=last_offset,
    )


def test_a_counter_that_went_on_keeps_the_energy_of_the_downtime() -> None:
    """The GPU counted while the daemon was away."""
    device = {"counter_range_microjoules": 0}
    assert _offset(device, 5_000 * _JOULE, 10, 1_000 * _JOULE) == 0
    assert _offset(device, 5_000 * _JOULE, 10, 8_000 * _JOULE, last_offset=7_000 * _JOULE) == 7_000 * _JOULE


def test_a_counter_that_began_anew_goes_on_where_it_stopped() -> None:
    """A driver was loaded again, or the step is more than any device draws."""
    device = {"counter_range_microjoules": 0}
    assert _offset(device, 10 * _JOULE, 10, 1_000 * _JOULE) == 990 * _JOULE
    assert _offset(device, 5_000_000 * _JOULE, 10, 1_000 * _JOULE) == -4_999_000 * _JOULE


def test_a_wrapping_counter_is_followed_over_a_short_downtime() -> None:
    """Modulo its range, while it cannot have wrapped twice."""
    device = {"counter_range_microjoules": _RANGE}
    last = 3 * _RANGE - 50 * _JOULE
    assert last + (50 + 70) * _JOULE == 70 * _JOULE + _offset(device, 70 * _JOULE, 2, last)
    assert _offset(device, 70 * _JOULE, 3_600, last) == last - 70 * _JOULE


@pytest.mark.parametrize(
    "device", [{"counter_range_microjoules": 0, "source": "simulated"}, {}, {"source": "estimated"}]
)
def test_energy_that_the_sampler_integrates_goes_on_where_it_stopped(device: dict[str, Any]) -> None:
    """Nobody counted meanwhile."""
    assert _offset(device, 3, 1, 100) == 97


@given(
    st.sampled_from([None, 0, _RANGE]),
    st.integers(0, 10**15),
    st.integers(-10, 10**7),
    st.integers(0, 10**15),
    st.integers(-(10**15), 10**15),
)
def test_the_archived_energy_never_goes_down(
    counter_range: int | None, counter: int, seconds: int, last: int, last_offset: int
) -> None:
    """Whatever the hardware shows after a restart."""
    device = {"counter_range_microjoules": counter_range}
    assert counter + _offset(device, counter, seconds, last, last_offset) >= last


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 10**9)), min_size=1, max_size=20),
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
def test_pieces_of_a_history_add_up(steps: list[tuple[int, int]], cuts: list[float]) -> None:
    """Interpolated energies are monotone and telescope; outside there is no answer."""
    history = History()
    nano = energy = 0
    for elapsed, used in steps:
        nano, energy = nano + elapsed, energy + used
        history.append(nano, energy)
    first = history.first_nano
    places = sorted(first + int(cut * (nano - first)) for cut in cuts)
    pieces = [history.between(begin, end) for begin, end in itertools.pairwise(places)]
    assert all(piece is not None and piece >= 0 for piece in pieces)
    assert sum(piece or 0 for piece in pieces) == history.between(places[0], places[-1])
    assert history.at(nano) == energy
    assert history.at(nano + 1) is None
    assert history.at(first - 1) is None


def test_a_history_forgets_what_is_old() -> None:
    """Memory is bounded however long the daemon runs."""
    history = History()
    for number in range(40_000):
        history.append(number * 10_000_000, number)
    assert history.last_nano - history.first_nano < 200 * _SECOND
    assert history.at(history.last_nano - 60 * _SECOND) is not None
