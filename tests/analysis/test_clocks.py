"""The states of a GPU's clock, in each of which a phase has a power of its own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from wattq.clocks import Clock
from wattq.counter import NANO, Ints

from tests.analysis.made import seeds

SECONDS = np.arange(100) * NANO


def states(hertz: np.ndarray, moments: Ints) -> Ints | None:
    return Clock(SECONDS, np.asarray(hertz, dtype=np.float64)).states(0, int(SECONDS[-1]), moments)


@given(seeds, st.floats(1e9, 2e9))
def test_a_steady_clock_has_no_states(seed: int, hertz: float) -> None:
    """A spread within 3 %, and a clock that is not sampled or shows 0, split nothing."""
    spread = np.random.default_rng(seed).uniform(0.986, 1.014, 100)
    assert states(hertz * spread, SECONDS) is None
    assert states(np.zeros(100), SECONDS) is None
    assert Clock(SECONDS[:0], np.zeros(0)).states(0, NANO, SECONDS) is None


@given(st.integers(10, 90), st.sampled_from([0.5, 0.8, 0.9]), st.floats(1e9, 2e9))
def test_a_throttled_stretch_is_a_state_of_its_own(when: int, share: float, hertz: float) -> None:
    """Each moment has the state of the nearest sample, and two clocks are two states."""
    found = states(np.where(np.arange(100) < when, hertz, share * hertz), SECONDS + NANO // 4)
    assert found is not None
    assert set(found.tolist()) == {0, 1}
    assert len(set(found[:when].tolist())) == len(set(found[when:].tolist())) == 1
    assert found[0] != found[-1]


def test_a_blip_is_no_state() -> None:
    """What is rarer than one sample in twenty counts as the nearest that is not."""
    hertz = np.full(100, 1.4e9)
    hertz[50:] = 1.0e9
    hertz[20] = 1.9e9
    found = states(hertz, SECONDS)
    assert found is not None
    assert found[20] == found[0]
    assert set(found.tolist()) == {0, 1}


def test_only_the_run_counts() -> None:
    """A clock that changed before the run began does not split it."""
    clock = Clock(SECONDS, np.where(np.arange(100) < 50, 1.0e9, 1.5e9))
    assert clock.states(60 * NANO, 90 * NANO, SECONDS[60:90]) is None
    assert clock.states(0, 90 * NANO, SECONDS) is not None
    with_zeros = Clock(SECONDS, np.where(np.arange(100) % 2 == 0, 0.0, 1.5e9))
    assert with_zeros.states(0, 90 * NANO, SECONDS) is None
